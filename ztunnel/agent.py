"""The agent, put together: kernel, engine, certificates, enrolment, the stream to the controller, admin.

Nothing decides here. What changes the snapshot calls `_swap`, what the engine reports goes to the decider, and
everything that runs is a task of one group: should one of them fail for good, the agent ends, enrolled pods are closed,
and whoever started it starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from bpf import Event
from mesh.model import Workload
from mesh.reason import Reason
from mesh.snapshot import Snapshot
from ztunnel import pods as records
from ztunnel import refusals, shown, tenants
from ztunnel.access_log import AccessLog, Level
from ztunnel.admin.levels import Levels
from ztunnel.admin.listener import unix_listener
from ztunnel.admin.server import Endpoints, Ports
from ztunnel.certificates import Certificates
from ztunnel.config import Config
from ztunnel.connections import Connections
from ztunnel.decider import Decider
from ztunnel.direct import Direct
from ztunnel.direct import Kernel as DirectKernel
from ztunnel.enrol import Capture, Surroundings
from ztunnel.flows import Flows
from ztunnel.flows import Kernel as FlowsKernel
from ztunnel.handover.giver import Giver
from ztunnel.handover.heir import SOCKET, Inheritance
from ztunnel.hearing import Hearing
from ztunnel.holdings import Holdings
from ztunnel.journal import Journal
from ztunnel.metrics.scrape import Scrape
from ztunnel.metrics.traffic import Traffic
from ztunnel.metrics.trials import Trials
from ztunnel.orders import Close, Engine, EngineFactory, Fact, Steering
from ztunnel.premises import ASIDE, SNAPSHOT, processes
from ztunnel.roster import Pods
from ztunnel.succession import Kernel as SuccessionKernel
from ztunnel.succession import Succession
from ztunnel.sync import Sync
from ztunnel.uplink import Uplink
from ztunnel.watchdog import Watchdog

log = logging.getLogger(__name__)


class Kernel(Capture, Steering, DirectKernel, FlowsKernel, SuccessionKernel, shown.Kernel, tenants.Kernel, Protocol):
    """What the agent needs of the kernel side (implemented by `bpf.Kernel`)."""

    def events(self) -> refusals.Ring: ...


def _now() -> datetime:
    return datetime.now(UTC)


class Agent:
    """One node's agent."""

    def __init__(
        self,
        config: Config,
        kernel: Kernel,
        engine: EngineFactory,
        *,
        version: str,
        ports: Ports | None = None,
        inherited: Inheritance | None = None,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self._kernel = config, kernel
        self._rng = random.SystemRandom()
        self._ending, self._stopping = asyncio.Event(), asyncio.Event()
        self._inherited = inherited
        self._begun = begun  # called when the next agent finds this one
        self._tasks: asyncio.TaskGroup | None = None
        self._background: list[asyncio.Task[None]] = []

        self.engine: Engine = engine(kernel, self._facts)
        self._watchdog = Watchdog(self.engine.pulses)
        self._connections = Connections(lambda: self._shown.counts(), _now)  # noqa: PLW0108 - it is made below
        uplink = Uplink(address=config.controller, node=config.node, root=config.root, token=config.token)
        self._sync = Sync(
            uplink=uplink,
            journal=Journal(path=config.run / SNAPSHOT),
            apply=self._swap,
            settled=self.engine.settled,
            joined=lambda: self._certificates.retry(),  # noqa: PLW0108 - they are made below
            rng=self._rng,
        )
        self._certificates = Certificates(
            fetch=uplink.certificate,
            changed=lambda credentials: self._pods.certified(credentials),  # noqa: PLW0108 - likewise
            failed=lambda identity: self._pods.uncertified(identity),  # noqa: PLW0108
            rng=self._rng,
            now=_now,
        )
        self._direct = Direct(
            on=config.direct == "on",
            kernel=kernel,
            flows=Flows(
                connections=self._connections,
                snapshot=self._snapshot,
                workload=self._workload_of,
                kernel=kernel,
                now=_now,
                monotonic_ns=time.monotonic_ns,
            ),
            snapshot=self._snapshot,
            workload=self._workload_of,
            netns=lambda instance: self._pods.netns_of(instance),  # noqa: PLW0108 - they are made below
            redrawn=self.engine.lapse,
        )
        self._pods = Pods(
            around=Surroundings(
                kernel=kernel,
                engine=self.engine,
                certificates=self._certificates,
                reporting=self._sync,
                snapshot=self._snapshot,
                joined=self._direct.joined,
                leaving=self._direct.leave,
                not_direct=self._direct.not_direct,
                agents=partial(processes, config.agent_cgroup),
                own_netns=Path("/proc/self/ns/net").stat().st_ino,
            ),
            spawn=self._spawn,
        )
        self._tenants = tenants.Tenants(kernel=kernel, pods=self._pods.by_instance)
        self._decider = Decider(
            snapshot=self._snapshot,
            workload=self._workload_of,
            order=self.engine.order,
            connections=self._connections,
            deaf=self._pods.deaf,
            rng=self._rng,
            now=_now,
            tunnelled=self._direct.asked,
            drawable=self._direct.drawable,
            stands=self.engine,
            each=lambda: self._access.wants_each,
        )
        access = self._access = AccessLog(sys.stdout, level=Level.parse(config.log_level))
        traffic, trials = Traffic(), Trials()
        for subscriber in (traffic, trials, access):
            self._connections.subscribe(subscriber)
        view = self._shown = shown.Shown(
            config=config,
            started_at=_now(),
            source=kernel,
            engine=self.engine,
            controller=self._sync,
            held=self._pods,
            wallet=self._certificates,
            table=self._connections,
            direct=self._direct,
            watchdog=self._watchdog,
            ending=self._ending.is_set,
        )
        self._endpoints = Endpoints(
            view=view,
            scrape=Scrape(view=view, traffic=traffic, trials=trials, version=version),
            levels=Levels(logging.getLogger(), access),
            run=config.run,
            version=version,
            stop=self.stop,
            ports=ports or Ports(),
        )

        self._succession = Succession(
            kernel=kernel,
            engine=self.engine,
            sync=self._sync,
            certificates=self._certificates,
            direct=self._direct,
            pods=self._pods,
            endpoints=self._endpoints,
            halt=self._halt,
            begin=self._begin,
            ended=self._ending.set,
        )

    def stop(self) -> None:
        """Begin a graceful stop: listeners closed, GOAWAY, drain deadline, end. The kernel side stays: closed."""
        self._stopping.set()
        self._succession.stop()

    async def run(self) -> None:
        """Serve until `stop`, or until another agent has taken over; then drain. NotTaken (in a group) if this one was
        to take over and may not."""
        self._pods.adopted = frozenset(self._kernel.pods())
        self._watchdog.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                if self._inherited is not None:
                    await self._succession.inherit(self._inherited, records.read(self.config.pods, {}))
                elif self._sync.restore():
                    log.info(
                        "%d resources of the last run are in force until the controller answers",
                        len(self._sync.holdings.entries),
                    )
                self._begin()
                giving = tasks.create_task(self._give(), name="hand-over")
                await self._ending.wait()
                await self._succession.settled.wait()  # who is stopped while it hands over first learns whose all is
                await self._drain()
                if self._succession.released and self.config.replaced == "wait":
                    await self._stopping.wait()
                await self._halt()
                giving.cancel()  # last: whoever waits for the end makes the same sockets then
                log.info("stopped")
        finally:
            self._watchdog.stop()
            self._access.close()

    def _begin(self) -> None:
        work = {
            "admin": self._endpoints.serve(),
            "controller": self._sync.run(),
            "certificates": self._certificates.run(),
            "kernel events": self._follow_kernel(),
            "direct": self._direct.run(),
            "pods": self._pods.follow(self.config.pods),
        }
        assert self._tasks is not None
        self._background = [self._tasks.create_task(each, name=name) for name, each in work.items()]

    async def _halt(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _give(self) -> None:
        path = self.config.run / SOCKET
        listener = self._succession.listener or unix_listener(path)
        self._succession.listener = listener
        self._begun()
        try:
            await Giver(holder=self._succession, listener=listener).serve()
        finally:
            listener.close()
            if not self._succession.released:
                path.unlink(missing_ok=True)

    async def _drain(self) -> None:
        log.info("stopping: %d connections may take %.1f s", len(self.engine.counts()), self.config.drain_seconds)
        assert self._tasks is not None
        if self._succession.released:  # and so halted: enrolment is another's now
            enrolling = list(self._pods.tasks)
            aside = self._endpoints.serve_aside(f"{ASIDE}{os.getpid()}.sock")
            self._background = [self._tasks.create_task(each) for each in (self._sync.obey(self._blind), aside)]
        else:  # no pod is enrolled any more; snapshots still come, and still close what they forbid
            enrolling = [self._background[-1], *self._pods.tasks]
        for task in enrolling:
            task.cancel()
        await asyncio.gather(*enrolling, return_exceptions=True)
        await self.engine.drain(self.config.drain_seconds)

    def _blind(self) -> None:
        """Nobody can tell what is permitted any more."""
        self._decider.blind = True  # to those too that are still to be told of
        self.engine.lapse()
        for id_ in self.engine.counts():
            self.engine.order(Close(id=id_, reason=Reason.REVOKED, detail="the agent cannot learn what is permitted"))

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        assert self._tasks is not None
        return self._tasks.create_task(work, name=name)

    # What is asked and told

    def _snapshot(self) -> Snapshot:
        return self._sync.holdings.snapshot

    def _workload_of(self, snapshot: Snapshot, instance: str) -> Workload | None:
        return self._pods.workload_of(snapshot, instance)

    def _facts(self, facts: Sequence[Fact]) -> None:
        self._decider.facts(facts)

    def _swap(self, holdings: Holdings) -> None:
        """A new snapshot is in force: what it forbids is closed before anything else runs on the loop."""
        self._decider.swapped()
        self._direct.swapped()
        self._pods.swapped()

    async def _follow_kernel(self) -> None:
        hearing = Hearing(
            direct=self._direct,
            ledger=self._kernel.ledger,
            instance=self._tenants.instance,
            each=lambda: self._access.wants_each,
            monotonic=time.monotonic,
        )
        await refusals.follow(self._kernel.events(), self._tenants.names, Event, hearing.hear)
