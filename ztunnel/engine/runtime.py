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
_LOG_INTERVAL = 1.0  # seconds between log lines about one kind of refusal: a flood of them must not flood the disk


@dataclass(slots=True, kw_only=True)
class Runtime:
    """`refused` counts connections that ended before they had an id: failed handshakes, limits, stray captures."""

    loop: asyncio.AbstractEventLoop
    poller: Poller
    limits: Limits
    refused: Counter[Reason] = field(default_factory=Counter)
    _logged: dict[Reason, float] = field(default_factory=dict)

    def count_refused(self, reason: Reason, detail: str) -> None:
        self.refused[reason] += 1
        now = self.loop.time()
        if now - self._logged.get(reason, float("-inf")) >= _LOG_INTERVAL:
            self._logged[reason] = now
            _log.info("refused (%s, %d so far): %s", reason.name, self.refused[reason], detail)
