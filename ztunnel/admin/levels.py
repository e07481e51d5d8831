"""Log levels that can be changed while the agent runs: of its own log, and of the access log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from ztunnel.access_log import AccessLog, Level


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of the agent's log and of the access log, to be read and changed while it runs."""

    agent: logging.Logger
    access: AccessLog

    def read(self) -> dict[str, str]:
        agent = logging.getLevelName(self.agent.getEffectiveLevel()).lower()
        return {"level": "warn" if agent == "warning" else agent, "access": self.access.level.name.lower()}

    def change(self, wanted: Mapping[str, str]) -> None:
        """`level` and `access`, either or both. ValueError names what is wrong; then nothing has changed."""
        if not wanted or not wanted.keys() <= {"level", "access"}:
            raise ValueError("give level=LEVEL (the agent's log), access=LEVEL (the access log), or both")
        parsed = {name: Level.parse(text) for name, text in wanted.items()}
        if "level" in parsed:
            self.agent.setLevel(parsed["level"].value)
        if "access" in parsed:
            self.access.level = parsed["access"]
