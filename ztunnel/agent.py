"""The agent, put together: kernel, engine, certificates, enrolment, the stream to the controller, admin.

Nothing decides here. What changes the snapshot calls `_swap`, what the engine reports goes to the decider, and
everything that runs is a task of one group: should one of them fail for good, the agent ends, enrolled pods are closed,
and whoever started it starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
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
from ztunnel.admin.server import Endpoints, Ports
from ztunnel.certificates import Certificates, CertificateView
from ztunnel.config import Config
from ztunnel.connections import Connection, Connections
from ztunnel.decider import Decider
from ztunnel.direct import Direct
from ztunnel.direct import Kernel as DirectKernel
from ztunnel.enrol import Capture, Pod, Pods, Surroundings
from ztunnel.flows import Flow, Flows
from ztunnel.hearing import Hearing
from ztunnel.holdings import Holdings
from ztunnel.journal import Journal
from ztunnel.metrics.scrape import Scrape
from ztunnel.metrics.traffic import Traffic
from ztunnel.metrics.trials import Trials
from ztunnel.older import OlderConnection
from ztunnel.orders import Credentials, Engine, EngineFactory, Fact, Steering
from ztunnel.sync import Sync
from ztunnel.uplink import Uplink

log = logging.getLogger(__name__)


class Kernel(Capture, Steering, DirectKernel, Protocol):
    """What the agent needs of the kernel side (implemented by `bpf.Kernel`)."""

    def pods(self) -> Mapping[str, PodSlot]:
        """Instances that are enrolled in the kernel, of this agent and of earlier ones."""

    def describe(self) -> Description:
        """Programs, links, maps."""

    def counters(self) -> Mapping[Reason, int]: ...
    def events(self) -> refusals.Ring: ...
    def flows(self) -> Sequence[Flow]: ...
    def lost_events(self) -> int: ...


def _now() -> datetime:
    return datetime.now(UTC)


class Agent:
    """One node's agent. Satisfies `ztunnel.admin.view.AgentView`."""

    def __init__(
        self, config: Config, kernel: Kernel, engine: EngineFactory, *, version: str, ports: Ports | None = None
    ) -> None:
        self.config, self._kernel = config, kernel
        self.started_at = _now()
        self._rng = random.SystemRandom()
        self._stopping = asyncio.Event()
        self._listed = False
        self._tasks: asyncio.TaskGroup | None = None
        self._pod_tasks: set[asyncio.Task[None]] = set()
        self._cookies: dict[int, str] = {}  # of the pods' network namespaces -> instance

        self.engine: Engine = engine(kernel, self._facts)
        self._connections = Connections(self.counts, _now)
        uplink = Uplink(address=config.controller, node=config.node, root=config.root, token=config.token)
        self._sync = Sync(
            uplink=uplink,
            journal=Journal(path=config.run / "snapshot.jsonl"),
            apply=self._swap,
            joined=self._joined,
            rng=self._rng,
        )
        self._certificates = Certificates(
            fetch=uplink.certificate,
            changed=self._certified,
            failed=self._uncertified,
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
                listed=kernel.flows,
                now=_now,
                monotonic_ns=time.monotonic_ns,
            ),
            snapshot=lambda: self.snapshot,
            workload=self._workload_of,
            netns=self._netns_of,
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
        )
        access = AccessLog(sys.stdout, level=Level.parse(config.log_level))
        self._access = access
        traffic, trials = Traffic(), Trials()
        self._connections.subscribe(traffic)
        self._connections.subscribe(trials)
        self._connections.subscribe(access)
        self._endpoints = Endpoints(
            view=self,
            scrape=Scrape(view=self, traffic=traffic, trials=trials, version=version),
            levels=Levels(logging.getLogger(), access),
            run=config.run,
            version=version,
            stop=self.stop,
            ports=ports or Ports(),
        )

    def stop(self) -> None:
        """Begin a graceful stop: listeners closed, GOAWAY, drain deadline, end. The kernel side stays: closed."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`."""
        adopted = frozenset(self._kernel.pods())
        if self._sync.restore():
            log.info("%d resources of the last run are in force until the controller answers", len(self._held))
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                background = [
                    tasks.create_task(self._endpoints.serve(), name="admin"),
                    tasks.create_task(self._sync.run(), name="controller"),
                    tasks.create_task(self._certificates.run(), name="certificates"),
                    tasks.create_task(self._follow_kernel(), name="kernel events"),
                    tasks.create_task(self._direct.run(), name="direct"),
                    tasks.create_task(self._follow_pods(adopted), name="pods"),
                ]
                await self._stopping.wait()
                await self._drain(background)
        finally:
            self._sync.journal.close()
            self._access.close()

    async def _drain(self, background: list[asyncio.Task[None]]) -> None:
        log.info("stopping: %d connections may take %.1f s", len(self.engine.counts()), self.config.drain_seconds)
        # No pod is enrolled any more; snapshots still come, and still close what they forbid.
        enrolling = [background[-1], *self._pod_tasks]
        for task in enrolling:
            task.cancel()
        await asyncio.gather(*enrolling, return_exceptions=True)
        await self.engine.drain(self.config.drain_seconds)
        for task in background:
            task.cancel()
        log.info("stopped")

    # What changes

    def _facts(self, facts: Sequence[Fact]) -> None:
        self._decider.facts(facts)

    def _certified(self, credentials: Credentials) -> None:
        self._pods.certified(credentials)

    def _uncertified(self) -> None:
        self._pods.wake()  # each says in its status why it waits

    def _swap(self, holdings: Holdings) -> None:
        """A new snapshot is in force: what it forbids is closed before anything else runs on the loop."""
        self._decider.swapped()
        self._direct.swapped()
        self._pods.wake()

    def _joined(self) -> None:
        self._certificates.retry()

    async def _follow_pods(self, adopted: frozenset[str]) -> None:
        async for found in records.follow(self.config.pods):
            if not self._listed:
                self._release_strays(adopted - found.keys())
                self._listed = True
            self._pods.update(found, adopted)
            adopted = frozenset()

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
        hearing = Hearing(direct=self._direct, instance=self._instance)
        await refusals.follow(self._kernel.events(), self._names_by_cookie, Event, hearing.hear)

    def _instance(self, cookie: int) -> str:
        """The pod with this netns, also one that has left; empty if no agent of this life knew it. Cookies are never
        used again."""
        if cookie not in self._cookies:
            self._cookies = {slot.cookie: instance for instance, slot in self._kernel.pods().items()}
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
        if self._stopping.is_set():
            waits.append("stopping")
        if not self._listed:
            waits.append(f"pod records in {self.config.pods}")
        if not self._sync.synced and not self._held:
            waits.append(f"first state from the controller {self.config.controller}")
        return waits

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


def prepare_run_directory(path: Path) -> None:
    """The agent's own directory, for nobody else; OSError names it and the cure."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--run {path} cannot be made: {error.strerror}; name a directory on a writable disk") from error
    with suppress(PermissionError):
        path.chmod(0o700)
