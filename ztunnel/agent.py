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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from bpf import Event, PodSlot
from bpf.facts import Description
from mesh.model import Workload
from mesh.reason import Reason
from mesh.snapshot import Snapshot
from ztunnel import pods as records
from ztunnel import refusals
from ztunnel.access_log import AccessLog, Level
from ztunnel.admin.levels import Levels
from ztunnel.admin.listener import unix_listener
from ztunnel.admin.server import Endpoints, Ports
from ztunnel.certificates import Certificates, CertificateView
from ztunnel.config import Config
from ztunnel.connections import Connection, Connections
from ztunnel.decider import Decider
from ztunnel.direct import Direct
from ztunnel.direct import Kernel as DirectKernel
from ztunnel.enrol import Capture, Pod, Surroundings
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
from ztunnel.older import OlderConnection
from ztunnel.orders import Close, Engine, EngineFactory, Fact, Steering
from ztunnel.premises import ASIDE, SNAPSHOT, processes
from ztunnel.roster import Pods
from ztunnel.succession import Kernel as SuccessionKernel
from ztunnel.succession import Succession
from ztunnel.sync import Sync
from ztunnel.uplink import Uplink
from ztunnel.watchdog import Watchdog

log = logging.getLogger(__name__)

_COOKIES = 4096  # of pods that are here, and of those that left last


class Kernel(Capture, Steering, DirectKernel, FlowsKernel, SuccessionKernel, Protocol):
    """What the agent needs of the kernel side (implemented by `bpf.Kernel`)."""

    def pods(self) -> Mapping[str, PodSlot]:
        """Instances that are enrolled in the kernel, of this agent and of earlier ones."""

    def describe(self) -> Description:
        """Programs, links, maps."""

    def counters(self) -> Mapping[Reason, int]: ...
    def events(self) -> refusals.Ring: ...
    def lost_events(self) -> int: ...


def _now() -> datetime:
    return datetime.now(UTC)


class Agent:
    """One node's agent. Satisfies `ztunnel.admin.view.AgentView`."""

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
        self.started_at = _now()
        self._rng = random.SystemRandom()
        self._ending, self._stopping = asyncio.Event(), asyncio.Event()
        self._listed, self._inherited = False, inherited
        self._begun = begun  # called when the next agent finds this one
        self._adopted: frozenset[str] = frozenset()  # in the kernel when this agent began
        self._tasks: asyncio.TaskGroup | None = None
        self._background: list[asyncio.Task[None]] = []
        self._pod_tasks: set[asyncio.Task[None]] = set()
        self._cookies: dict[int, str] = {}  # of the pods' network namespaces -> instance

        self.engine: Engine = engine(kernel, self._facts)
        self._watchdog = Watchdog(self.engine.pulses)
        self._connections = Connections(self.counts, _now)
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
                snapshot=lambda: self.snapshot,
                workload=self._workload_of,
                kernel=kernel,
                now=_now,
                monotonic_ns=time.monotonic_ns,
            ),
            snapshot=lambda: self.snapshot,
            workload=self._workload_of,
            netns=self._netns_of,
            redrawn=self.engine.lapse,
        )
        self._pods = Pods(
            around=Surroundings(
                kernel=kernel,
                engine=self.engine,
                certificates=self._certificates,
                reporting=self._sync,
                snapshot=lambda: self.snapshot,
                joined=self._direct.joined,
                leaving=self._direct.leave,
                not_direct=self._direct.not_direct,
                agents=partial(processes, config.agent_cgroup),
                own_netns=Path("/proc/self/ns/net").stat().st_ino,
            ),
            spawn=self._spawn_pod,
        )
        self._decider = Decider(
            snapshot=lambda: self.snapshot,
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
        self._endpoints = Endpoints(
            view=self,
            scrape=Scrape(view=self, traffic=traffic, trials=trials, version=version),
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
        self._adopted = frozenset(self._kernel.pods())
        self._watchdog.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                if self._inherited is not None:
                    await self._succession.inherit(self._inherited, records.read(self.config.pods, {}))
                elif self._sync.restore():
                    log.info("%d resources of the last run are in force until the controller answers", len(self._held))
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
            "pods": self._follow_pods(),
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
            enrolling = list(self._pod_tasks)
            aside = self._endpoints.serve_aside(f"{ASIDE}{os.getpid()}.sock")
            self._background = [self._tasks.create_task(each) for each in (self._sync.obey(self._blind), aside)]
        else:  # no pod is enrolled any more; snapshots still come, and still close what they forbid
            enrolling = [self._background[-1], *self._pod_tasks]
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

    # What changes

    def _facts(self, facts: Sequence[Fact]) -> None:
        self._decider.facts(facts)

    def _swap(self, holdings: Holdings) -> None:
        """A new snapshot is in force: what it forbids is closed before anything else runs on the loop."""
        self._decider.swapped()
        self._direct.swapped()
        self._pods.swapped()

    async def _follow_pods(self) -> None:
        async for found in records.follow(self.config.pods):
            adopted, self._adopted = self._adopted, frozenset()
            if not self._listed:
                self._release_strays(adopted - found.keys())
                self._listed = True
            self._pods.update(found, adopted)

    def _release_strays(self, instances: frozenset[str]) -> None:
        """Pods that were deleted while no agent ran."""
        for instance in sorted(instances):
            try:
                self._kernel.unenrol(instance)
                log.info("pod %s is gone since the last run", instance)
            except OSError as error:
                log.warning("pod %s, gone since the last run, cannot be released: %s", instance, error)

    def _spawn_pod(self, work: Awaitable[None], name: str) -> None:
        assert self._tasks is not None

        async def run() -> None:
            await work

        task = self._tasks.create_task(run(), name=name)
        self._pod_tasks.add(task)
        task.add_done_callback(self._pod_tasks.discard)

    def _workload_of(self, snapshot: Snapshot, instance: str) -> Workload | None:
        pod = self._pods.by_instance.get(instance)
        # Of adopted pods whose records were not read yet, the instance has to do.
        namespace, name = (pod.namespace, pod.name) if pod is not None else ("", "")
        return snapshot.workload_of_pod(instance, namespace, name) if instance else None

    def _netns_of(self, instance: str) -> Path | None:
        pod = self._pods.by_instance.get(instance)
        return Path(pod.record.netns) if pod is not None and pod.record is not None else None

    async def _follow_kernel(self) -> None:
        hearing = Hearing(
            direct=self._direct,
            ledger=self._kernel.ledger,
            instance=self._instance,
            each=lambda: self._access.wants_each,
            monotonic=time.monotonic,
        )
        await refusals.follow(self._kernel.events(), self._names_by_cookie, Event, hearing.hear)

    def _instance(self, cookie: int) -> str:
        """The pod with this netns, also one that has left not long ago; empty if this agent never knew it. Cookies are
        never used again."""
        if cookie not in self._cookies:
            self._cookies |= {slot.cookie: instance for instance, slot in self._kernel.pods().items()}
            for oldest in list(islice(self._cookies, max(0, len(self._cookies) - _COOKIES))):
                del self._cookies[oldest]
        return self._cookies.get(cookie, "")

    def _names_by_cookie(self) -> dict[int, str]:
        names = {}
        for instance, slot in self._kernel.pods().items():
            pod = self._pods.by_instance.get(instance)
            names[slot.cookie] = f"{pod.namespace}/{pod.name}" if pod is not None else instance
        return names

    @property
    def _held(self) -> Mapping[str, object]:
        return self._sync.holdings.entries

    # What is shown: ztunnel.admin.view.AgentView

    @property
    def node(self) -> str:
        return self.config.node

    @property
    def node_ip(self) -> str:
        return self.config.node_ip

    @property
    def snapshot(self) -> Snapshot:
        return self._sync.holdings.snapshot

    @property
    def controller(self) -> Sync:
        return self._sync

    def pending(self) -> Sequence[str]:
        waits = []
        if self._ending.is_set():
            waits.append("stopping")
        if not self._listed:
            waits.append(f"pod records in {self.config.pods}")
        if not self._sync.synced and not self._held:
            waits.append(f"first state from the controller {self.config.controller}")
        return waits + [f"thread {name}, which is stuck" for name in self.stuck()]

    def stuck(self) -> Sequence[str]:
        return self._watchdog.stuck

    def pods(self) -> Sequence[Pod]:
        return list(self._pods.by_instance.values())

    def certificates(self) -> Sequence[CertificateView]:
        return self._certificates.views()

    def connections(self) -> Sequence[Connection]:
        return self._connections.live()

    def older(self) -> Sequence[OlderConnection]:
        return [connection for pod in self._pods.by_instance.values() for connection in pod.older]

    def counts(self) -> Mapping[int, tuple[int, int]]:
        return {**self.engine.counts(), **self._direct.flows.counts()}

    def refused(self) -> Mapping[Reason, int]:
        return self.engine.refused

    def kernel(self) -> Description:
        return self._kernel.describe()

    def kernel_losses(self) -> tuple[int, int]:
        return self._kernel.lost_events(), self._direct.unfilled

    def kernel_counters(self) -> Mapping[Reason, int]:
        return self._kernel.counters()
