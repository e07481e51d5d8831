"""One scrape: bring the counters up to date, collect, write."""

from __future__ import annotations

import asyncio
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
# make, so that asking costs the node a quarter of one core at most.
_REUSE = 3.0


@dataclass(slots=True, kw_only=True)
class Scrape:
    """The text of a scrape, kept for a moment so that several scrapers cost no more than one."""

    view: AgentView
    traffic: Traffic
    trials: Trials
    version: str
    _made: dict[str, tuple[float, bytes]] = field(default_factory=dict)  # content type -> (good until, text)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def text(self, content_type: str) -> bytes:
        async with self._turn:
            good_until, text = self._made.get(content_type, (0.0, b""))
            start = monotonic()
            if start < good_until:
                return text
            try:
                kernel = await asyncio.to_thread(self.view.kernel)
            except OSError as error:  # the rest is worth having without it
                log.warning("the kernel side cannot be read: %s", error)
                kernel = None
            families = self._collect(kernel)
            text = await asyncio.to_thread(render, families, content_type)
            end = monotonic()
            self._made[content_type] = (end + _REUSE * (end - start), text)
            return text

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
