"""A small agent with its endpoints up: on a real unix socket and on free TCP ports of the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.ztunnel.small_agent import SmallAgent
from ztunnel.access_log import AccessLog
from ztunnel.admin.levels import Levels
from ztunnel.admin.server import Endpoints, Ports
from ztunnel.metrics.scrape import Scrape
from ztunnel.metrics.traffic import Traffic
from ztunnel.metrics.trials import Trials


@dataclass(kw_only=True)
class Served:
    agent: SmallAgent
    endpoints: Endpoints
    access: AccessLog
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def socket(self) -> Path:
        return self.endpoints.run / "admin.sock"


@asynccontextmanager
async def served(run: Path, agent: SmallAgent | None = None) -> AsyncIterator[Served]:
    agent = agent or SmallAgent()
    access, traffic, stopped = AccessLog(io.StringIO()), Traffic(), asyncio.Event()
    agent.table.subscribe(traffic)
    endpoints = Endpoints(
        view=agent,
        scrape=Scrape(view=agent, traffic=traffic, trials=Trials(), version="1.2.3"),
        levels=Levels(logging.getLogger("tests.served"), access),
        run=run,
        version="1.2.3",
        stop=stopped.set,
        ports=Ports(admin=0, metrics=0, readiness=0),
    )
    task = asyncio.create_task(endpoints.serve())
    try:
        listening = asyncio.create_task(endpoints.listening.wait())
        await asyncio.wait({task, listening}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if task.done():
            await task
        yield Served(agent=agent, endpoints=endpoints, access=access, stopped=stopped)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        access.close()
