"""What every part of one engine shares: loop, poller, limits, and the count of what was turned away."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field

from mesh.reason import Reason
from ztunnel.engine.limits import Limits
from ztunnel.engine.poller import Poller

_log = logging.getLogger(__name__)
_LINES, _INTERVAL = 10, 1.0  # log lines per kind of refusal and seconds: a flood of them must not flood the disk


@dataclass(slots=True, kw_only=True)
class Runtime:
    """`refused` counts connections that ended before they had an id: failed handshakes, limits, stray captures."""

    loop: asyncio.AbstractEventLoop
    poller: Poller
    limits: Limits
    refused: Counter[Reason] = field(default_factory=Counter)
    _logged: dict[Reason, tuple[float, int]] = field(default_factory=dict)  # since when, how many lines

    def count_refused(self, reason: Reason, detail: str) -> None:
        self.refused[reason] += 1
        now = self.loop.time()
        since, lines = self._logged.get(reason, (now, 0))
        if now - since >= _INTERVAL:
            since, lines = now, 0
        self._logged[reason] = since, lines + 1
        if lines < _LINES:
            _log.info("refused (%s, %d so far): %s", reason.name, self.refused[reason], detail)
