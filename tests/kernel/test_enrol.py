"""Enrolment of real pods: real kernel side, real engine; certificates and the controller are the test's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from bpf import Kernel
from controller import ca
from mesh.control import CertificateReply, PodStatus, Redirection
from mesh.identity import SpiffeId
from mesh.model import Workload
from mesh.snapshot import Delta, Snapshot
from tests.kernel.rig import Pod as RigPod
from tests.kernel.rig import Rig, run
from ztunnel import enrol
from ztunnel.csr import accept, signing_request
from ztunnel.enrol import Capture, Surroundings
from ztunnel.orders import Credentials, Fact, Listeners
from ztunnel.pods import PodRecord
from ztunnel.pump import PumpEngine
from ztunnel.roster import Pods

TIMEOUT = 20.0


@dataclass
class Wallet:
    """Certificates that the test hands out."""

    given: dict[SpiffeId, Credentials] = field(default_factory=dict)
    wanted: list[SpiffeId] = field(default_factory=list)

    def want(self, identity: SpiffeId) -> None:
        self.wanted.append(identity)

    def release(self, identity: SpiffeId) -> None:
        self.wanted.remove(identity)

    def current(self, identity: SpiffeId) -> Credentials | None:
        return self.given.get(identity)

    def error(self, identity: SpiffeId) -> str:
        return "the test says no" if identity not in self.given else ""


@dataclass
class Reports:
    """What the controller would hear."""

    said: list[tuple[str, Redirection, str]] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    def report(self, status: PodStatus) -> None:
        self.said.append((status.instance, status.redirection, status.error))
        self.heard.set()

    def forget(self, instance: str) -> None:
        self.said.append((instance, Redirection.DISABLED, "forgotten"))
        self.heard.set()

    async def until(self, instance: str, redirection: Redirection, says: str = "") -> str:
        """Wait for such a report; its error."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                for said in self.said:
                    if said[:2] == (instance, redirection) and says in said[2]:
                        return said[2]
                self.heard.clear()
                await self.heard.wait()


@dataclass
class Flaky:
    """The real kernel side, but one pod cannot be enrolled the first times."""

    kernel: Kernel
    instance: str
    times: int

    def enrol(self, instance: str, netns_fd: int, addresses: Sequence[str], listeners: Listeners) -> object:
        if instance == self.instance and self.times:
            self.times -= 1
            raise OSError(12, "no memory for the test")
        return self.kernel.enrol(instance, netns_fd, addresses, listeners)

    def unenrol(self, instance: str) -> None:
        self.kernel.unenrol(instance)


@dataclass
class World:
    """A node's enrolment and what surrounds it."""

    pods: Pods
    reports: Reports
    wallet: Wallet
    authority: ca.Authority
    snapshots: list[Snapshot]
    records: dict[str, PodRecord] = field(default_factory=dict)

    def swap(self, *workloads: Workload) -> None:
        self.snapshots[0] = self.snapshots[0].apply(Delta(upserts=workloads))
        self.pods.swapped()

    def record(self, pod: RigPod, instance: str) -> None:
        self.records[instance] = PodRecord(instance=instance, namespace="shop", name=pod.name, netns=str(pod.netns))
        self.pods.update(self.records)

    def remove(self, instance: str) -> None:
        del self.records[instance]
        self.pods.update(self.records)

    def certify(self, identity: SpiffeId) -> None:
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        chain = self.authority.issue(signing_request(identity, key), identity, now=now)
        reply = CertificateReply(chain=chain, roots=self.authority.roots)
        self.wallet.given[identity] = accept(identity, key, reply, now, random.Random(1)).credentials
        self.pods.certified(self.wallet.given[identity])


def nobody(facts: Sequence[Fact]) -> None:
    """No connection is made in these tests."""


@asynccontextmanager
async def world(kernel: Kernel, tmp_path: Path, capture: Capture | None = None) -> AsyncIterator[World]:
    reports, wallet, snapshots = Reports(), Wallet(), [Snapshot()]
    engine = PumpEngine(kernel, nobody)
    async with asyncio.TaskGroup() as tasks:

        def spawn(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
            return tasks.create_task(work, name=name)

        around = Surroundings(
            kernel=capture or kernel,
            engine=engine,
            certificates=wallet,
            reporting=reports,
            snapshot=lambda: snapshots[0],
            own_netns=Path("/proc/self/ns/net").stat().st_ino,
        )
        authority = ca.load_or_create(tmp_path, trust_domain="cluster.local", now=datetime.now(UTC))
        pods = Pods(around=around, spawn=spawn)
        try:
            yield World(pods, reports, wallet, authority, snapshots)
        finally:
            for task in pods.tasks:
                task.cancel()
            await engine.drain(0)


def workload(pod: RigPod, instance: str, capture: bool = True) -> Workload:
    return Workload(
        uid=f"u/{instance}",
        name=pod.name,
        namespace="shop",
        instance=instance,
        addresses=(pod.ip4, pod.ip6),
        capture=capture,
    )


IDENTITY = SpiffeId("cluster.local", "shop", "default")


def reuse(pod: RigPod) -> str:
    return run("ip", "netns", "exec", pod.name, "cat", "/proc/sys/net/ipv4/tcp_tw_reuse").strip()


async def test_a_pod_enters_leaves_enters_and_goes(kernel: Kernel, pod: RigPod, tmp_path: Path) -> None:
    async with world(kernel, tmp_path) as w:
        w.certify(IDENTITY)
        w.record(pod, "i")
        w.swap(workload(pod, "i"))
        await w.reports.until("i", Redirection.ENABLED)
        assert set(kernel.pods()) == {"i"}
        assert w.wallet.wanted == [IDENTITY]
        assert reuse(pod) == "1"
        w.swap(workload(pod, "i", capture=False))
        await w.reports.until("i", Redirection.DISABLED)
        assert set(kernel.pods()) == set()
        assert w.wallet.wanted == []
        assert reuse(pod) == "2"
        w.reports.said.clear()
        w.swap(workload(pod, "i"))
        await w.reports.until("i", Redirection.ENABLED)
        w.remove("i")
        await w.reports.until("i", Redirection.DISABLED, "forgotten")
        assert set(kernel.pods()) == set()
        assert w.wallet.wanted == []


async def test_a_certificate_comes_before_capture(kernel: Kernel, pod: RigPod, tmp_path: Path) -> None:
    async with world(kernel, tmp_path) as w:
        w.record(pod, "i")
        w.swap(workload(pod, "i"))
        error = await w.reports.until("i", Redirection.PENDING)
        assert error == f"no certificate for {IDENTITY} yet: the test says no"
        assert set(kernel.pods()) == set()
        w.certify(IDENTITY)
        await w.reports.until("i", Redirection.ENABLED)
        assert set(kernel.pods()) == {"i"}


async def test_one_pod_that_fails_is_reported_and_retried_and_hurts_no_other(
    kernel: Kernel, rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrol, "_RETRY_FIRST", 0.05)
    bad, good = rig.add_pod(), rig.add_pod()
    async with world(kernel, tmp_path, Flaky(kernel, "bad", 3)) as w:
        w.certify(IDENTITY)
        w.swap(workload(bad, "bad"), workload(good, "good"))
        w.record(bad, "bad")
        w.record(good, "good")
        await w.reports.until("good", Redirection.ENABLED)
        assert "no memory for the test" in await w.reports.until("bad", Redirection.PENDING)
        await w.reports.until("bad", Redirection.ENABLED)
        assert set(kernel.pods()) == {"bad", "good"}
        assert [s for s in w.reports.said if s[0] == "good"] == [("good", Redirection.ENABLED, "")]


@pytest.mark.parametrize(
    ("netns", "says"),
    [("/proc/self/ns/net", "host-network pods are not enrolled"), ("/run/netns/nowhere", "No such file")],
)
async def test_what_is_no_pods_netns_is_refused(
    kernel: Kernel, pod: RigPod, tmp_path: Path, netns: str, says: str
) -> None:
    async with world(kernel, tmp_path) as w:
        w.certify(IDENTITY)
        w.swap(workload(pod, "i"))
        w.pods.update({"i": PodRecord(instance="i", namespace="shop", name=pod.name, netns=netns)})
        assert says in await w.reports.until("i", Redirection.PENDING)
        assert set(kernel.pods()) == set()


async def test_what_an_earlier_agent_left_is_adopted_before_there_is_a_certificate(
    kernel: Kernel, pod: RigPod, tmp_path: Path
) -> None:
    async with world(kernel, tmp_path) as w:
        w.certify(IDENTITY)
        w.record(pod, "i")
        w.swap(workload(pod, "i"))
        await w.reports.until("i", Redirection.ENABLED)
    adopted = frozenset(kernel.pods())
    assert adopted == {"i"}, "stopping must not open a pod"
    async with world(kernel, tmp_path) as w:
        w.swap(workload(pod, "i"))
        w.pods.adopted = adopted
        w.record(pod, "i")
        await w.reports.until("i", Redirection.ENABLED)
        assert all(redirection is not Redirection.PENDING for _, redirection, _ in w.reports.said)


async def test_a_certificate_that_comes_in_the_middle_of_an_adoption_is_not_lost(
    kernel: Kernel, pod: RigPod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, Credentials]] = []
    give, find, loop = PumpEngine.set_credentials, enrol.older.find, asyncio.get_running_loop()

    def giving(engine: PumpEngine, instance: str, credentials: Credentials) -> None:
        given.append((instance, credentials))
        give(engine, instance, credentials)

    def finding(instance: str, netns: int, agents: Iterable[int]) -> list[enrol.older.OlderConnection]:
        async def certify() -> None:
            w.certify(IDENTITY)

        asyncio.run_coroutine_threadsafe(certify(), loop).result(TIMEOUT)
        return find(instance, netns, agents)

    monkeypatch.setattr(PumpEngine, "set_credentials", giving)
    monkeypatch.setattr(enrol.older, "find", finding)
    with pod.opened() as fd:
        kernel.enrol("i", fd, [pod.ip4, pod.ip6])
    async with world(kernel, tmp_path) as w:
        w.swap(workload(pod, "i"))
        w.pods.adopted = frozenset({"i"})
        w.record(pod, "i")
        await w.reports.until("i", Redirection.ENABLED)
        assert given == [("i", w.wallet.given[IDENTITY])]


async def test_who_was_deleted_while_no_agent_ran_is_released(kernel: Kernel, rig: Rig, tmp_path: Path) -> None:
    """Found by the first look at the records; who is there is adopted."""
    here, gone = rig.add_pod(), rig.add_pod()
    directory = tmp_path / "pods"
    directory.mkdir()
    for name, each in (("here", here), ("gone", gone)):
        with each.opened() as netns:
            kernel.enrol(name, netns, [each.ip4])
    record = PodRecord(instance="here", namespace="shop", name=here.name, netns=str(here.netns))
    (directory / "here.json").write_bytes(msgspec.json.encode(record))
    async with world(kernel, tmp_path) as w:
        w.pods.adopted = frozenset(kernel.pods())
        w.certify(IDENTITY)
        w.swap(workload(here, "here"))
        following = asyncio.create_task(w.pods.follow(directory))
        await w.reports.until("here", Redirection.ENABLED)
        assert w.pods.listed
        assert set(kernel.pods()) == {"here"}
        assert w.pods.netns_of("here") == here.netns and w.pods.netns_of("gone") is None
        following.cancel()


async def test_an_adopted_pod_stays_closed_while_nothing_is_known_of_it(
    kernel: Kernel, pod: RigPod, tmp_path: Path
) -> None:
    with pod.opened() as fd:
        kernel.enrol("i", fd, [pod.ip4])
    async with world(kernel, tmp_path) as w:
        w.pods.adopted = frozenset({"i"})
        w.record(pod, "i")
        w.swap()
        for _ in range(20):
            await asyncio.sleep(0)
        assert w.reports.said == []
        assert set(kernel.pods()) == {"i"}
        w.swap(workload(pod, "i", capture=False))
        await w.reports.until("i", Redirection.DISABLED)
        assert set(kernel.pods()) == set()


async def test_another_address_is_another_enrolment(kernel: Kernel, pod: RigPod, tmp_path: Path) -> None:
    async with world(kernel, tmp_path) as w:
        w.certify(IDENTITY)
        w.record(pod, "i")
        w.swap(workload(pod, "i"))
        await w.reports.until("i", Redirection.ENABLED)
        assert kernel.pods()["i"].addresses == (pod.ip4, pod.ip6)
        w.reports.said.clear()
        w.swap(replace(workload(pod, "i"), addresses=(pod.ip4,)))
        await w.reports.until("i", Redirection.ENABLED)
        assert kernel.pods()["i"].addresses == (pod.ip4,)
