"""The direct path as the agent keeps it: what the kernel is told and in which order, records of flows, revocation."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bpf import DirectTally, Outcome
from mesh import balance
from mesh.balance import Balance, Endpoint
from mesh.direct import Key, Mode, Target, VerdictEntry
from mesh.model import (
    Clause,
    Match,
    MatchKind,
    Policy,
    PolicyAction,
    PolicyScope,
    Port,
    Resource,
    Rule,
    Service,
    SocketAddress,
    StringMatch,
    TunnelProtocol,
    Workload,
    WorkloadStatus,
)
from mesh.reason import Reason
from mesh.snapshot import Delta, Snapshot
from ztunnel import capture
from ztunnel import direct as ztunnel_direct
from ztunnel.admin import report
from ztunnel.connections import Connection, Connections, Passed, Tally
from ztunnel.direct import Direct
from ztunnel.flows import Flows
from ztunnel.metrics.labels import traffic_labels
from ztunnel.older import OlderConnection
from ztunnel.orders import Captured

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLIENT, SERVER = SocketAddress("10.0.0.2", 40000), SocketAddress("10.0.0.1", 5432)


def pod(name: str, address: str) -> Workload:
    return Workload(
        uid=f"u/{name}",
        name=name,
        namespace="shop",
        instance=f"uid-{name}",
        addresses=(address,),
        service_account=name,
        tunnel_protocol=TunnelProtocol.HBONE,
        capture=True,
    )


DB, WEB, EVIL = pod("db", "10.0.0.1"), pod("web", "10.0.0.2"), pod("evil", "10.0.0.3")
FROM_WEB = Match(principals=(StringMatch(MatchKind.EXACT, WEB.identity.principal),))


def policy(action: PolicyAction, match: Match = FROM_WEB, *, dry_run: bool = False) -> Policy:
    rules = (Rule((Clause((match,)),)),)
    return Policy(name="p", namespace="shop", scope=PolicyScope.NAMESPACE, action=action, rules=rules, dry_run=dry_run)


ONLY_WEB, NOT_WEB = policy(PolicyAction.ALLOW), policy(PolicyAction.DENY)


@dataclass(frozen=True, kw_only=True)
class SmallFlow:
    id: int = 7
    source: str = WEB.instance
    destination: str = DB.instance
    client: SocketAddress = CLIENT
    server: SocketAddress = SERVER
    asked: SocketAddress = SERVER
    sent: int = 0
    received: int = 0
    established: bool = True
    opened_ns: int = 5_000_000_000
    closed_ns: int = 0


@dataclass(kw_only=True)
class SmallKernel:
    """Maps as bpf.Kernel keeps them, looked up as its programs do; `told` is what it was asked to do, in order."""

    enrolled: dict[str, str] = field(default_factory=lambda: {w.instance: "" for w in (DB, WEB, EVIL)})
    targets: dict[str, tuple[int, Target]] = field(default_factory=dict)
    verdicts: dict[Key, int] = field(default_factory=dict)
    services: dict[SocketAddress, Balance] = field(default_factory=dict)
    live: list[SmallFlow] = field(default_factory=list)
    opened_flows: int = 0
    found: list[int] = field(default_factory=list)
    each: bool = False
    tallies: list[DirectTally] = field(default_factory=list)
    generation: int = 1
    room: int = 100
    fault: OSError | None = None
    deaf: Exception | None = None
    outcome: Outcome = Outcome.PROMOTED
    told: list[str] = field(default_factory=list)
    targeted: asyncio.Event = field(default_factory=asyncio.Event)
    spread: asyncio.Event = field(default_factory=asyncio.Event)

    def pods(self) -> Mapping[str, str]:
        if self.deaf is not None:
            raise self.deaf
        return self.enrolled

    def switch(self, targets: Mapping[str, Target], entries: Iterable[VerdictEntry]) -> int:
        if self.fault is not None:
            raise self.fault
        self.told.append("switch")
        self.targeted.set()
        self.generation += 1
        self.targets = {i: (self.generation, target) for i, target in targets.items()}
        return self.put_verdicts(entries)

    def bump(self) -> int:
        self.told.append("bump")
        self.generation += 1
        return self.generation

    def set_targets(self, targets: Mapping[str, Target]) -> None:
        if self.fault is not None:
            raise self.fault
        self.told.append("targets")
        self.targeted.set()
        self.targets = {i: (self.generation, target) for i, target in targets.items()}

    def put_verdicts(self, entries: Iterable[VerdictEntry]) -> int:
        left_out = 0
        for entry in entries:
            if len(self.verdicts) >= self.room:
                left_out += 1
            else:
                self.verdicts[entry.key] = self.generation
        return left_out

    @property
    def promoter(self) -> SmallKernel:
        return self

    def promote(
        self, destination: int, client: SocketAddress, server: SocketAddress, *, at_source: int, at_destination: int
    ) -> Outcome:
        assert os.fstat(at_source).st_ino == os.fstat(at_destination).st_ino != 0
        return self._asked("promote", destination, client, server)

    def close_lanes(self, destination: int, client: SocketAddress, server: SocketAddress) -> None:
        self._asked("close_lanes", destination, client, server)

    def demote(self, destination: int, client: SocketAddress, server: SocketAddress) -> Outcome:
        return self._asked("demote", destination, client, server)

    def _asked(self, what: str, destination: int, client: SocketAddress, server: SocketAddress) -> Outcome:
        self.told.append(f"{what} {destination} {client} {server}")
        if self.fault is not None:
            raise self.fault
        return self.outcome

    def nudge(self, event: object, *, at_sender: int) -> None:
        assert os.fstat(at_sender).st_ino != 0
        self.told.append(f"nudge {event}")
        if self.fault is not None:
            raise self.fault

    def set_services(self, services: Mapping[SocketAddress, Balance]) -> int:
        self.told.append("services")
        self.spread.set()
        self.services = dict(list(services.items())[: self.room])
        return len(services) - len(self.services)

    def flows(self, known: Container[int] = (), most: int | None = None) -> list[SmallFlow]:
        return [flow for flow in self.live if flow.id not in known][:most]

    @property
    def ledger(self) -> SmallKernel:
        return self

    def opened(self) -> int:
        return self.opened_flows

    def found_until(self, now_ns: int) -> None:
        self.found.append(now_ns)

    def tell_each(self, wanted: bool) -> None:
        self.each = wanted

    def turn(self) -> list[DirectTally]:
        if self.fault is not None:
            raise self.fault
        found, self.tallies = self.tallies, []
        return found

    def direct(self, source: Workload, destination: Workload, port: int) -> bool:
        generation, target = self.targets.get(destination.instance, (0, None))
        if target is None or generation != self.generation or source.instance not in self.targets:
            return False
        key = Key(source.instance, destination.instance, port)
        return target.mode is Mode.OPEN or self.verdicts.get(key) == self.generation


@dataclass
class Told:
    """A subscriber: how records ended."""

    ended: list[tuple[bool, Reason, int, int]] = field(default_factory=list)

    def opened(self, connection: Connection) -> None: ...

    def closed(self, connection: Connection, seconds: float) -> None:
        self.ended.append((connection.inbound, connection.reason, connection.sent, connection.received))

    refused = closed

    def passed(self, common: Connection, each: Sequence[Passed]) -> None:
        self.ended += [(common.inbound, common.reason, one.sent, one.received) for one in each]

    def tallied(self, common: Connection, tally: Tally) -> None:
        self.ended.append((common.inbound, common.reason, tally.sent, tally.received))


class Node:
    """The direct path of an agent, with a kernel to look into and a table of connections."""

    def __init__(self, *resources: Resource, on: bool = True) -> None:
        self.kernel = SmallKernel()
        self.snapshot = Snapshot()
        self.told = Told()
        self.looked_into: list[str] = []
        self.netns: Path | None = None
        self.connections = Connections(self._counts, lambda: NOW)
        self.connections.subscribe(self.told)
        self.flows = Flows(
            connections=self.connections,
            snapshot=lambda: self.snapshot,
            workload=self._workload,
            kernel=self.kernel,
            now=lambda: NOW,
            monotonic_ns=lambda: 8_000_000_000,
        )
        self.direct = Direct(
            on=on,
            kernel=self.kernel,
            flows=self.flows,
            snapshot=lambda: self.snapshot,
            workload=self._workload,
            netns=self._netns,
        )
        self.swap(DB, WEB, EVIL, *resources)

    def _counts(self) -> dict[int, tuple[int, int]]:
        return self.flows.counts()

    def _workload(self, snapshot: Snapshot, instance: str) -> Workload | None:
        return snapshot.workload_of_pod(instance, "", "") if instance else None

    def _netns(self, instance: str) -> Path | None:
        self.looked_into.append(instance)
        return self.netns

    def swap(self, *upserts: Resource, removes: tuple[str, ...] = ()) -> None:
        self.kernel.told.clear()
        self.snapshot = self.snapshot.apply(Delta(upserts=upserts, removes=removes))
        self.direct.swapped()

    def asks(self, source: Workload, port: int) -> None:
        """A pod's connection to the database is captured and sent through the tunnel."""
        fact = Captured(
            id=1,
            pod=source.instance,
            client=SocketAddress(source.addresses[0], 40000),
            destination=SocketAddress(DB.addresses[0], port),
        )
        self.direct.asked(capture.answer(self.snapshot, source, fact, random.Random(1), NOW).connection)

    def opens(self, flow: SmallFlow) -> tuple[Connection, ...]:
        self.kernel.live.append(flow)
        self.direct.opened(flow)
        return tuple(self.connections.live())


def test_open_where_no_policy_is_and_by_entry_where_one_is() -> None:
    node = Node()
    assert node.kernel.direct(WEB, DB, 1)
    assert node.kernel.direct(EVIL, DB, 1)
    node.swap(ONLY_WEB)
    assert node.kernel.told == ["switch"]
    assert not node.kernel.direct(WEB, DB, 1)
    node.asks(WEB, 1)
    node.asks(EVIL, 1)
    assert node.kernel.direct(WEB, DB, 1)
    assert not node.kernel.direct(EVIL, DB, 1)
    assert not node.kernel.direct(WEB, DB, 2)
    node.swap(NOT_WEB)
    assert not node.kernel.direct(WEB, DB, 1)
    node.swap(removes=(NOT_WEB.key,))
    assert node.kernel.direct(WEB, DB, 1)


def test_what_was_asked_for_stays_permitted_as_long_as_it_is() -> None:
    node = Node(ONLY_WEB)
    node.asks(WEB, 1)
    node.swap(replace(DB, canonical_name="renamed"))
    assert node.kernel.told == []
    node.swap(policy(PolicyAction.DENY, Match(destination_ports=(2,))))
    assert node.kernel.direct(WEB, DB, 1)


@pytest.mark.parametrize("fault", [OSError(12, "no memory"), ValueError("a bad object")])
async def test_nothing_is_direct_while_it_cannot_be_said_what_may_be(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ztunnel_direct, "_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(ztunnel_direct, "_LOOK_SECONDS", 0.01)
    node = Node()
    assert node.kernel.direct(EVIL, DB, 1)
    node.kernel.deaf = fault
    node.swap(ONLY_WEB)
    assert not node.kernel.direct(EVIL, DB, 1)
    node.kernel.deaf = None
    node.kernel.targeted.clear()
    looking = asyncio.create_task(node.direct.run())
    await asyncio.wait_for(node.kernel.targeted.wait(), 60)
    looking.cancel()
    node.asks(WEB, 1)
    assert node.kernel.direct(WEB, DB, 1)
    assert not node.kernel.direct(EVIL, DB, 1)


def test_pods_that_left_are_not_remembered() -> None:
    node = Node()
    node.direct.leave(DB.instance)
    del node.kernel.enrolled[DB.instance]
    node.swap()
    node.kernel.enrolled[DB.instance] = ""  # again, by whoever enrols without telling
    node.swap()
    assert node.kernel.direct(WEB, DB, 1)


def test_without_room_in_the_kernel_pods_go_on_asking() -> None:
    node = Node(ONLY_WEB)
    node.kernel.room = 0
    node.asks(WEB, 1)
    assert not node.kernel.direct(WEB, DB, 1)
    assert node.direct.unfilled == 1


async def told_of_joining(node: Node) -> None:
    """Until the kernel has been told of the pods that have joined."""
    node.kernel.targeted.clear()
    task = asyncio.create_task(node.direct.run())
    try:
        async with asyncio.timeout(20):
            await node.kernel.targeted.wait()
    finally:
        task.cancel()


async def test_the_kernel_is_told_once_of_pods_that_join_together() -> None:
    node = Node()
    for each in (DB, WEB, EVIL):
        node.direct.leave(each.instance)
    node.kernel.told.clear()
    for each in (DB, WEB, EVIL):
        node.direct.joined(each.instance)
    assert node.kernel.told == []
    await told_of_joining(node)
    assert node.kernel.told == ["services", "targets"]
    assert node.kernel.direct(WEB, DB, 1)


async def test_pods_that_leave_are_no_targets_before_they_are_released() -> None:
    node = Node()
    node.direct.leave(DB.instance)
    assert not node.kernel.direct(WEB, DB, 1)
    assert node.kernel.told[-1:] == ["switch"]
    assert DB.instance in node.kernel.enrolled
    node.direct.joined(DB.instance)
    await told_of_joining(node)
    assert node.kernel.direct(WEB, DB, 1)


def test_direct_connections_of_an_earlier_life_are_told_from_plaintext() -> None:
    node = Node()

    def had(local: SocketAddress, remote: SocketAddress) -> OlderConnection:
        return OlderConnection(pod=DB.instance, inbound=True, local=local, remote=remote, family=2, id=b"")

    direct, late, plain = (
        had(SERVER, CLIENT),
        had(SERVER, SocketAddress(CLIENT.ip, 1)),
        had(SERVER, CLIENT._replace(port=2)),
    )
    node.opens(SmallFlow())
    node.kernel.live.append(SmallFlow(id=8, client=late.remote, established=False))  # nobody has heard of it yet
    assert node.direct.not_direct(DB.instance, [direct, late, plain]) == (plain,)
    assert node.direct.not_direct(WEB.instance, [direct]) == (direct,)  # these addresses in another netns are another's
    far = SocketAddress(CLIENT.ip, 3)
    node.opens(SmallFlow(id=9, client=far, destination=""))  # heard of while the database was out of the mesh
    assert node.direct.not_direct(DB.instance, [had(SERVER, far)]) == ()
    outbound = had(CLIENT, SERVER)
    assert node.direct.not_direct(WEB.instance, [outbound]) == ()


VIP = SocketAddress("10.9.0.1", 80)
HOSTNAME = "data.shop.svc.cluster.local"
DATA = Service(
    name="data",
    namespace="shop",
    hostname=HOSTNAME,
    addresses=(VIP.ip,),
    ports=(Port(service_port=80, target_port=5432),),
)
REPLICA = replace(DB, services={f"shop/{HOSTNAME}": ()})
REMOTE = replace(REPLICA, uid="u/far", name="far", instance="uid-far", addresses=("10.1.0.1",), node="n2", capacity=2)


def here(*workloads: Workload, elsewhere: int = 0) -> dict[SocketAddress, Balance]:
    endpoints = tuple(
        Endpoint(instance=w.instance, address=SocketAddress(w.addresses[0], 5432), weight=1) for w in workloads
    )
    return {VIP: Balance(endpoints=endpoints, elsewhere=elsewhere)}


def test_services_are_told_as_their_endpoints_change_and_nothing_is_invalidated_for_them() -> None:
    node = Node()
    node.swap(DATA, REPLICA)
    assert node.kernel.services == here(DB)
    assert node.direct.drawable(VIP) == {SERVER}
    node.swap(REMOTE)
    assert node.kernel.told == ["services"]
    assert node.kernel.services == here(DB, elsewhere=2)
    node.swap(replace(REPLICA, status=WorkloadStatus.UNHEALTHY))
    assert node.kernel.told == ["services"]
    assert node.kernel.services == {}
    assert node.direct.drawable(VIP) == frozenset()
    node.swap(replace(REMOTE, capacity=3))
    assert node.kernel.told == []
    assert node.kernel.direct(WEB, DB, 1)


async def test_a_pod_that_leaves_is_drawn_no_more() -> None:
    node = Node()
    node.swap(DATA, REPLICA)
    node.kernel.told.clear()
    node.direct.leave(DB.instance)
    assert node.kernel.told == ["services", "switch"]
    assert node.kernel.services == {}
    node.direct.joined(DB.instance)
    await told_of_joining(node)
    assert node.kernel.services == here(DB)


def test_services_without_room_are_counted() -> None:
    node = Node()
    node.kernel.room = 0
    node.swap(DATA, REPLICA)
    assert node.direct.unfilled == 1


async def test_services_that_a_plan_did_not_get_to_are_planned_later(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    monkeypatch.setattr(balance, "WORK", -1)
    node.swap(DATA, REPLICA)
    assert node.kernel.services == {}
    monkeypatch.undo()
    monkeypatch.setattr(ztunnel_direct, "_LOOK_SECONDS", 0.01)
    node.kernel.spread.clear()
    task = asyncio.create_task(node.direct.run())
    try:
        async with asyncio.timeout(20):
            await node.kernel.spread.wait()
    finally:
        task.cancel()
    assert node.kernel.services == here(DB)


def test_records_name_the_service_that_was_dialled() -> None:
    other = replace(DATA, name="other", hostname="another.shop", addresses=("10.9.0.2",))
    node = Node(DATA, other, replace(DB, services={f"shop/{HOSTNAME}": (), "shop/another.shop": ()}))
    for asked, name in ((VIP, "data"), (SocketAddress("10.9.0.2", 80), "other"), (SERVER, "other")):
        outgoing, incoming = node.opens(SmallFlow(asked=asked))
        assert (outgoing.asked, outgoing.upstream, incoming.asked) == (asked, SERVER, SERVER)
        for record in (outgoing, incoming):
            assert traffic_labels(record)["destination_service_name"] == name
        node.kernel.live.clear()
        node.direct.closed(SmallFlow())


def test_off_withdraws_what_former_agents_permitted() -> None:
    node = Node(on=False)
    assert node.kernel.told == ["services", "switch"]
    assert not node.kernel.targets


def test_nothing_is_withdrawn_before_something_is_known() -> None:
    node = Node()
    again = Direct(
        on=True,
        kernel=node.kernel,
        flows=node.flows,
        snapshot=Snapshot,
        workload=lambda snapshot, instance: None,
        netns=lambda instance: None,
    )
    node.kernel.told.clear()
    node.kernel.live.append(SmallFlow())
    again.swapped()
    again.opened(SmallFlow())
    assert node.kernel.told == []
    assert not node.connections.live()


async def test_a_kernel_that_cannot_be_told_is_told_until_it_can() -> None:
    node = Node()
    node.kernel.fault = OSError(12, "no memory")
    node.swap(ONLY_WEB)
    assert not node.kernel.direct(WEB, DB, 1)  # bumped: all are misses
    assert not node.kernel.direct(EVIL, DB, 1)
    node.kernel.fault = None
    node.kernel.targeted.clear()
    task = asyncio.create_task(node.direct.run())
    try:
        async with asyncio.timeout(20):
            await node.kernel.targeted.wait()
    finally:
        task.cancel()
    node.asks(WEB, 1)
    assert node.kernel.direct(WEB, DB, 1)


def test_a_flow_has_two_records_and_they_end_with_its_bytes() -> None:
    node = Node()
    outgoing, incoming = node.opens(SmallFlow(sent=10, received=20))
    assert (outgoing.inbound, incoming.inbound) == (False, True)
    assert (outgoing.pod, incoming.pod) == (WEB.instance, DB.instance)
    assert outgoing.opened_at == NOW - timedelta(seconds=3)
    for record, reporter in ((outgoing, "source"), (incoming, "destination")):
        assert (record.sent, record.received) == (10, 20)
        labels = traffic_labels(record)
        assert labels["reporter"] == reporter
        assert labels["connection_security_policy"] == "unknown"
        assert labels["source_principal"] == str(WEB.identity)
        assert labels["destination_principal"] == str(DB.identity)
        assert report._connection(record, None, NOW)["protocol"] == "DIRECT"
    node.kernel.live.clear()
    node.direct.closed(SmallFlow(sent=11, received=22))
    assert node.told.ended == [(False, Reason.OK, 11, 22), (True, Reason.OK, 11, 22)]
    assert not node.connections.live()


def test_events_that_were_lost_are_made_up_for() -> None:
    node = Node()
    node.kernel.live.append(SmallFlow(sent=1))
    node.direct._heard_of_all()
    assert len(node.connections.live()) == 2
    node.direct.opened(SmallFlow())  # it was only late
    assert len(node.connections.live()) == 2
    node.kernel.live.clear()
    node.direct._heard_of_all()
    node.direct._heard_of_all()
    assert not node.told.ended  # its end may be on the way
    node.flows.drains += 1
    node.direct._heard_of_all()
    assert node.told.ended == [(False, Reason.OK, 1, 0), (True, Reason.OK, 1, 0)]
    node.direct.closed(SmallFlow(id=8, sent=5))  # whose beginning was lost
    assert node.told.ended[2:] == [(False, Reason.OK, 5, 0), (True, Reason.OK, 5, 0)]


def test_flows_are_found_twice_and_the_younger_are_left_for_the_next_time() -> None:
    """What is opened after the kernel was told until when is added up by it, if it ends before it is found."""
    node = Node()
    young = SmallFlow(id=8, opened_ns=8_000_000_001)
    node.kernel.live += [SmallFlow(), young, SmallFlow(id=9, established=False)]
    node.kernel.opened_flows = 2
    node.kernel.found.clear()
    node.direct.find()
    assert node.kernel.found == [8_000_000_000], "this clock's now"
    assert list(node.flows.live) == [7]
    node.direct._heard_of_all()
    assert list(node.flows.live) == [7]
    node.kernel.found.clear()
    node.direct.find()
    assert node.kernel.found == [], "none was opened since"
    node.kernel.live[1] = replace(young, opened_ns=7_000_000_000)
    node.kernel.opened_flows = 3
    node.direct.find()
    assert list(node.flows.live) == [7, 8]


def test_one_that_cannot_be_recorded_is_not_the_end_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    node.kernel.live += [SmallFlow(id=1, client=None), SmallFlow(id=2)]  # type: ignore[arg-type]
    node.kernel.opened_flows = 2
    node.direct.find()
    assert list(node.flows.live) == [2]
    assert "SmallFlow(id=1" in caplog.text


def test_very_many_flows_are_found_some_at_a_time() -> None:
    node = Node()
    node.kernel.live += [SmallFlow(id=n) for n in range(9000)]
    node.kernel.opened_flows = 9000
    for found in (4000, 8000, 9000):
        node.direct.find()
        assert len(node.flows.live) == found


def test_a_flow_that_was_found_too_late_is_ended() -> None:
    node = Node(NOT_WEB)
    node.kernel.live.append(SmallFlow())
    node.kernel.opened_flows = 1
    node.direct.find()
    assert node.looked_into == [WEB.instance, DB.instance]


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (NOT_WEB, True),
        (policy(PolicyAction.ALLOW, Match(destination_ports=(1,))), True),
        (policy(PolicyAction.DENY, dry_run=True), False),
        (ONLY_WEB, False),
        (policy(PolicyAction.DENY, Match(not_principals=(StringMatch(MatchKind.PRESENCE),))), False),  # STRICT
        (replace(DB, direct=False), False),
        (replace(DB, instance="another"), True),
    ],
)
def test_open_flows_are_judged_anew(change: Resource, lost: bool) -> None:
    node = Node()
    node.opens(SmallFlow())
    node.swap(change)
    assert bool(node.looked_into) is lost
    node.direct.closed(SmallFlow())
    reason = Reason.REVOKED if lost else Reason.OK
    assert [ended[1] for ended in node.told.ended] == [reason, reason]


def test_one_that_opens_too_late_is_ended() -> None:
    node = Node(NOT_WEB)
    node.opens(SmallFlow())
    assert node.looked_into == [WEB.instance, DB.instance]


def test_a_flow_of_a_pod_that_nobody_enrolled_is_judged_as_plaintext() -> None:
    node = Node()
    node.opens(SmallFlow(source=""))
    assert not node.looked_into
    node.swap(policy(PolicyAction.DENY, Match(not_principals=(StringMatch(MatchKind.PRESENCE),))))
    assert node.looked_into


def test_a_stranger_at_the_address_is_a_refused_connection() -> None:
    """However many: each is told of, and their ends are looked for once."""
    node = Node()
    node.direct.mismatched([SmallFlow(id=n) for n in range(50)])
    assert node.told.ended == [(False, Reason.MISMATCH, 0, 0)] * 50
    assert node.looked_into == [WEB.instance, DB.instance]
    node.direct.mismatched([])
    assert node.looked_into == [WEB.instance, DB.instance]


def test_a_flow_whose_ends_do_not_wait_is_promoted() -> None:
    node = Node()
    node.netns = Path("/proc/self/ns/net")
    held = len(list(Path("/proc/self/fd").iterdir()))
    node.direct.ready(SmallFlow(), 7)
    assert node.kernel.told[-1:] == [f"promote 7 {SmallFlow().client} {SmallFlow().server}"]
    assert node.looked_into == [WEB.instance, DB.instance]
    assert len(list(Path("/proc/self/fd").iterdir())) == held


@pytest.mark.parametrize("there", [True, False])
def test_what_cannot_be_promoted_stays_with_tcp(there: bool, caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    node.netns = Path("/proc/self/ns/net") if there else None
    node.kernel.fault = OSError("no room")
    node.direct.ready(SmallFlow(), 7)
    assert ("no room" if there else "pod shop/web is not here any more") in caplog.text


def test_a_flow_that_needs_tcp_is_demoted_once_what_went_past_it_is_read(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    node.kernel.told.clear()
    node.direct.barred(SmallFlow(), 7)
    flow = f"7 {SmallFlow().client} {SmallFlow().server}"
    assert node.kernel.told == [f"close_lanes {flow}"]
    assert node.direct._again.is_set(), "it is tried soon"
    for outcome, times in ((Outcome.UNREAD, 1), (Outcome.DEMOTED, 2), (Outcome.DEMOTED, 2)):
        node.kernel.outcome = outcome
        node.direct._demote()
        assert node.kernel.told.count(f"demote {flow}") == times
    node.kernel.fault = OSError("not now")
    node.direct.barred(SmallFlow(), 7)
    node.direct._demote()
    assert caplog.text.count("not now") == 2
    node.kernel.fault = None
    node.direct._demote()
    assert node.kernel.told[-1] == f"demote {flow}"


def test_a_reader_that_may_wait_in_vain_is_woken_from_the_other_end(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    node.netns = Path("/proc/self/ns/net")
    node.direct.drained("event", WEB.instance)
    assert node.kernel.told[-1:] == ["nudge event"]
    assert node.looked_into == [WEB.instance]
    node.kernel.fault = OSError("no raw sockets")
    node.direct.drained("event", WEB.instance)
    assert "no raw sockets" in caplog.text


def test_dry_runs_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    node = Node(policy(PolicyAction.DENY, dry_run=True))
    node.opens(SmallFlow())
    assert "dry-run: shop/p would deny" in caplog.text


def successor(node: Node) -> Direct:
    return Direct(
        on=True,
        kernel=node.kernel,
        flows=node.flows,
        snapshot=lambda: node.snapshot,
        workload=node._workload,
        netns=node._netns,
    )


def test_a_successor_keeps_what_was_asked_for_without_a_moment_in_between() -> None:
    node = Node(ONLY_WEB)
    node.asks(WEB, 1)
    state = node.direct.pause()
    assert state is not None
    node.kernel.told.clear()
    heir = successor(node)
    heir.inherit(state, node.snapshot)
    heir.swapped()
    heir.renew()
    assert node.kernel.told == ["services", "targets"], "and no bump"
    assert node.kernel.direct(WEB, DB, 1)
    assert not node.kernel.direct(EVIL, DB, 1)


def test_what_is_not_right_any_more_is_withdrawn_by_the_successor() -> None:
    node = Node()
    state = node.direct.pause()
    assert state is not None
    node.swap(NOT_WEB)
    assert node.kernel.told == [], "an agent that is replaced tells the kernel nothing"
    heir = successor(node)
    heir.inherit(state, node.snapshot)
    heir.swapped()
    assert node.kernel.told == ["switch"]
    assert not node.kernel.direct(WEB, DB, 1)


def test_one_that_was_paused_and_goes_on_begins_anew() -> None:
    node = Node(ONLY_WEB)
    node.asks(WEB, 1)
    node.direct.pause()
    node.asks(EVIL, 1)
    node.direct.leave(DB.instance)
    assert node.kernel.direct(WEB, DB, 1)
    node.direct.joined(DB.instance)
    node.kernel.told.clear()
    node.direct.resume()
    assert node.kernel.told == ["services", "switch"]
    assert not node.kernel.direct(WEB, DB, 1)
    node.asks(WEB, 1)
    assert node.kernel.direct(WEB, DB, 1)


def test_flows_that_another_agent_tells_of_end_without_a_last_word() -> None:
    node = Node()
    node.opens(SmallFlow())
    assert node.connections.live()
    node.flows.leave()
    assert not node.connections.live()
    assert node.told.ended == []
