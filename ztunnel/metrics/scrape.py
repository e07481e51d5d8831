"""One scrape: bring the counters up to date, collect, write."""

from __future__ import annotations

import asyncio
import gzip
import logging
from dataclasses import dataclass, field
from time import monotonic

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, Metric

from bpf.facts import Description
from ztunnel.admin.view import AgentView
from ztunnel.metrics import node
from ztunnel.metrics.exposition import render
from ztunnel.metrics.traffic import Traffic
from ztunnel.metrics.trials import Trials

log = logging.getLogger(__name__)

# Metrics can be asked for by anybody who reaches the port; an answer serves for this many times as long as it took to
# make, so that asking for both formats costs the node half of one core at most.
_REUSE = 3.0


@dataclass(slots=True, kw_only=True)
class Scrape:
    """The text of a scrape, kept for a moment so that several scrapers cost no more than one."""

    view: AgentView
    traffic: Traffic
    trials: Trials
    version: str
    _made: dict[str, tuple[float, bytes]] = field(default_factory=dict)  # content type -> (good until, text)
    _packed: dict[str, bytes] = field(default_factory=dict)  # content type -> the same text, once somebody wants it
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def text(self, content_type: str, *, packed: bool = False) -> bytes:
        """`packed`: by gzip."""
        async with self._turn:
            good_until, text = self._made.get(content_type, (0.0, b""))
            start = monotonic()
            if start >= good_until:
                text = await self._make(content_type)
                end = monotonic()
                self._made[content_type] = (end + _REUSE * (end - start), text)
                self._packed.pop(content_type, None)
            if not packed:
                return text
            if content_type not in self._packed:
                self._packed[content_type] = await asyncio.to_thread(gzip.compress, text, 1)
            return self._packed[content_type]

    async def _make(self, content_type: str) -> bytes:
        try:
            kernel = await asyncio.to_thread(self.view.kernel)
        except OSError as error:  # the rest is worth having without it
            log.warning("the kernel side cannot be read: %s", error)
            kernel = None
        return await asyncio.to_thread(render, self._collect(kernel), content_type)

    def _collect(self, kernel: Description | None) -> list[Metric]:
        """On the loop's thread: nothing else touches what it reads."""
        self.traffic.advance(self.view.counts())
        self.traffic.expire(self.view.snapshot)
        self.trials.expire(self.view.snapshot)
        families = [*node.collect(self.view, kernel, self.version), *self.traffic.collect(self.view.refused())]
        families.append(self.trials.collect())
        for collector in (PROCESS_COLLECTOR, GC_COLLECTOR, PLATFORM_COLLECTOR):
            families.extend(collector.collect())
        return families
