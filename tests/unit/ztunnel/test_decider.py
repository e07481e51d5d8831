"""Facts in, one order each out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from mesh.identity import SpiffeId
from mesh.model import (
    Clause,
    Match,
    Policy,
    PolicyAction,
    PolicyScope,
    Port,
    Resource,
    Rule,
    Service,
    SocketAddress,
    TunnelProtocol,
    Workload,
)
from mesh.reason import Reason
from mesh.snapshot import Delta, Snapshot
from ztunnel import connections, decider
from ztunnel.connections import Connection, Connections, Tally
from ztunnel.decider import Decider
from ztunnel.orders import (
    Begun,
    Captured,
    Close,
    Ended,
    Fact,
    Offered,
    Opened,
    Order,
    Passed,
    Plaintext,
    Refuse,
    RelayPlain,
    RelayTunnel,
    Standing,
    Trip,
)

OWN = Workload(uid="u/own", name="own", namespace="shop", instance="p", addresses=("10.0.0.2",))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B = SocketAddress("10.0.0.1", 40000), SocketAddress("10.0.0.2", 8080)


@dataclass
class Desk:
    """A decider, the snapshot it is given, and the orders it gave."""

    snapshot: Snapshot = field(default_factory=Snapshot)
    orders: list[Order] = field(default_factory=list)
    given: asyncio.Event = field(default_factory=asyncio.Event)
    fault: Exception | None = None
    deaf: list[str] = field(default_factory=list)
    standing: list[Standing] = field(default_factory=list)  # in force; the engine's part of it
    told: list[Fact] = field(default_factory=list)  # by the engine when they lapse
    each: bool = True

    def stands(self, id_: int) -> bool:
        return not self.standing

    def stand(self, standing: Standing) -> None:
        self.standing.append(standing)

    def lapse(self) -> None:
        self.standing.clear()
        told, self.told = self.told, []
        self.decider.facts(told)

    def __post_init__(self) -> None:
        self.connections = Connections(dict, lambda: NOW)
        self.heard: list[tuple[object, ...]] = []
        self.tunnelled: list[Connection] = []
        self.connections.subscribe(self)
        self.decider = Decider(
            snapshot=lambda: self.snapshot,
            workload=self._workload,
            order=self._order,
            connections=self.connections,
            deaf=self.deaf.append,
            rng=random.Random(1),
            now=self._now,
            drawable=lambda service: [SocketAddress("10.0.0.9", service.port)],
            stands=self,
            each=lambda: self.each,
            monotonic_ns=lambda: 5_000_000_000,
            tunnelled=self.tunnelled.append,
        )

    def _workload(self, snapshot: Snapshot, pod: str) -> Workload | None:
        return snapshot.workload_of_pod(pod, "shop", "own")

    def _order(self, order: Order) -> None:
        self.orders.append(order)
        self.given.set()

    def _now(self) -> datetime:
        if self.fault is not None:
            raise self.fault
        return NOW

    def opened(self, connection: Connection) -> None:
        self.heard.append(("opened", connection.id))

    def closed(self, connection: Connection, seconds: float) -> None:
        self.heard.append(("closed", connection.id, seconds))

    def refused(self, connection: Connection, seconds: float) -> None:
        self.heard.append(("refused", connection.id))

    def passed(self, common: Connection, each: Sequence[connections.Passed]) -> None:
        self.heard.append(("passed", common.upstream, list(each)))

    def tallied(self, common: Connection, tally: Tally) -> None:
        self.heard.append(("tallied", common.upstream, tally))

    def swap(self, *resources: Resource) -> None:
        self.snapshot = self.snapshot.apply(Delta(upserts=resources))
        self.decider.swapped()


def captured(id_: int) -> Captured:
    return Captured(id=id_, pod="p", client=A, destination=SocketAddress("192.0.2.1", 443))


def plaintext(id_: int) -> Plaintext:
    return Plaintext(id=id_, pod="p", client=A, destination=B)


async def test_each_question_gets_one_order_and_one_record() -> None:
    desk = Desk()
    desk.swap(OWN)
    offered = Offered(
        id=3,
        pod="p",
        client=A,
        local=SocketAddress("10.0.0.2", 15008),
        peer=SpiffeId("cluster.local", "web", "c"),
        method="CONNECT",
        authority="10.0.0.2:8080",
        headers=(),
    )
    desk.decider.facts([captured(1), plaintext(2), offered])
    assert [(type(o), o.id) for o in desk.orders] == [(RelayPlain, 1), (RelayPlain, 2), (RelayPlain, 3)]
    assert [c.id for c in desk.connections.live()] == [1, 2, 3]
    desk.decider.facts([Opened(id=1), Ended(id=1, reason=Reason.OK, detail="", sent=1, received=2)])
    assert [c.id for c in desk.connections.live()] == [2, 3]


async def test_a_connection_waits_for_the_pods_own_workload() -> None:
    desk = Desk()
    desk.decider.facts([captured(1), plaintext(2)])
    assert desk.orders == []
    desk.swap()
    assert desk.orders == []
    desk.swap(OWN)
    assert [(type(o), o.id) for o in desk.orders] == [(RelayPlain, 1), (RelayPlain, 2)]


async def test_who_waited_long_enough_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decider, "WAIT_SECONDS", 0.05)
    desk = Desk()
    desk.decider.facts([captured(1), plaintext(2)])
    async with asyncio.timeout(10):
        while len(desk.orders) < 2:
            desk.given.clear()
            await desk.given.wait()
    assert [(o.id, o.reason) for o in desk.orders if isinstance(o, Refuse)] == [
        (1, Reason.SOURCE_UNKNOWN),
        (2, Reason.DESTINATION_UNKNOWN),
    ]


async def test_waiting_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decider, "MAX_WAITING", 1)
    desk = Desk()
    desk.decider.facts([captured(1), captured(2)])
    assert [(o.id, type(o)) for o in desk.orders] == [(2, Refuse)]


async def test_a_fault_of_ours_refuses_one_connection() -> None:
    desk = Desk()
    desk.swap(OWN)
    desk.fault = RuntimeError("a bug")
    desk.decider.facts([captured(1)])
    desk.fault = None
    desk.decider.facts([captured(2)])
    assert desk.orders[0] == Refuse(id=1, reason=Reason.INTERNAL, detail="the decision failed")
    assert isinstance(desk.orders[1], RelayPlain)


DENY = Policy(
    name="deny",
    namespace="shop",
    scope=PolicyScope.NAMESPACE,
    action=PolicyAction.DENY,
    rules=(Rule((Clause((Match(destination_ports=(8080,)),)),)),),
)


async def test_a_swap_closes_what_it_forbids() -> None:
    desk = Desk()
    desk.swap(OWN)
    desk.decider.facts([plaintext(1), captured(2)])
    desk.swap(DENY)
    assert desk.orders[2:] == [Close(id=1, reason=Reason.REVOKED, detail="denied by shop/deny")]


async def test_of_a_draw_that_fell_to_others_those_that_the_kernel_draws_are_left_out() -> None:
    service = Service(
        name="s",
        namespace="shop",
        hostname="s.shop",
        addresses=("10.9.0.1",),
        ports=(Port(service_port=80, target_port=80),),
    )
    endpoints = [
        replace(
            OWN, uid=f"u/{n}", name=f"e{n}", instance=f"e{n}", addresses=(f"10.0.0.{n}",), services={"shop/s.shop": ()}
        )
        for n in (8, 9)
    ]
    desk = Desk()
    desk.swap(OWN, service, *endpoints)
    vip = SocketAddress("10.9.0.1", 80)
    for elsewhere, expected in ((True, {"10.0.0.8"}), (False, {"10.0.0.8", "10.0.0.9"})):
        desk.orders.clear()
        facts = [Captured(id=n, pod="p", client=A, destination=vip, elsewhere=elsewhere) for n in range(40)]
        desk.decider.facts(facts)
        assert {o.destination.ip for o in desk.orders if isinstance(o, RelayPlain)} == expected


def learned(desk: Desk, fact: Captured | Plaintext) -> object:
    """The name of what stands after this question."""
    desk.swap(OWN)
    desk.decider.facts([fact])
    (order,) = desk.standing
    assert order.id == fact.id
    (alternative,) = order.alternatives
    return alternative.name


async def test_with_an_order_comes_one_for_all_like_it_until_the_next_snapshot() -> None:
    desk = Desk()
    learned(desk, captured(1))
    desk.decider.facts([captured(2)])
    assert len(desk.standing) == 1  # it was of no use
    desk.swap()
    assert desk.standing == []


async def test_one_that_lives_under_a_standing_order_has_a_record_like_any_other() -> None:
    desk = Desk()
    under = learned(desk, plaintext(1))
    desk.decider.facts([Begun(id=9, pod="p", under=under, port=41000, trace="t", began_ns=3_000_000_000)])
    first, second = desk.connections.live()
    assert second == replace(
        first, id=9, client=SocketAddress(A.ip, 41000), trace="t", opened_at=NOW - timedelta(seconds=2)
    )
    desk.decider.facts([Opened(id=9), Ended(id=9, reason=Reason.OK, detail="", sent=3, received=4)])
    assert desk.heard == [("opened", 9), ("closed", 9, 2.0)]
    assert (second.sent, second.received) == (3, 4)


async def test_one_that_was_begun_under_an_older_policy_is_judged_when_it_is_told_of() -> None:
    desk = Desk()
    under = learned(desk, plaintext(1))
    desk.told = [Begun(id=9, pod="p", under=under, port=41000, trace="", began_ns=1)]
    desk.orders.clear()
    desk.swap(DENY)
    detail = "denied by shop/deny"
    assert sorted(desk.orders, key=lambda order: order.id) == [
        Close(id=1, reason=Reason.REVOKED, detail=detail),
        Close(id=9, reason=Reason.REVOKED, detail=detail),
    ]
    desk.decider.facts([Begun(id=10, pod="p", under=under, port=41001, trace="", began_ns=1)])
    assert desk.orders[-1] == Close(id=10, reason=Reason.REVOKED, detail=detail)


async def test_nobody_goes_on_who_is_told_of_when_nobody_can_judge_any_more() -> None:
    desk = Desk()
    under = learned(desk, plaintext(1))
    desk.decider.blind = True
    desk.decider.facts([Begun(id=9, pod="p", under=under, port=41000, trace="", began_ns=1)])
    close = desk.orders[-1]
    assert isinstance(close, Close)
    assert (close.id, close.reason) == (9, Reason.REVOKED)


@pytest.mark.parametrize("each", [True, False])
async def test_those_that_are_over_are_told_one_by_one_or_together(each: bool) -> None:
    desk = Desk(each=each)
    under = learned(desk, captured(1))
    trip = Trip(SocketAddress(A.ip, 41000), 1, 2, 3, 4)

    def trips(ip: str) -> list[Trip]:
        assert each and ip == A.ip
        return [trip, trip]

    desk.decider.facts([Passed(under=under, peer=None, connections=2, sent=2, received=4, each=trips)])
    upstream = SocketAddress("192.0.2.1", 443)
    together = ("tallied", upstream, Tally(connections=2, sent=2, received=4))
    assert desk.heard == [("passed", upstream, [trip, trip]) if each else together]
    assert [c.id for c in desk.connections.live()] == [1]


async def test_those_that_went_through_a_tunnel_are_followed_up() -> None:
    desk = Desk()
    other = replace(
        OWN, uid="u/o", name="o", instance="o", addresses=("192.0.2.1",), tunnel_protocol=TunnelProtocol.HBONE
    )
    desk.swap(other)
    under = learned(desk, captured(1))
    assert isinstance(desk.orders[-1], RelayTunnel)
    assert len(desk.tunnelled) == 1
    peer = SpiffeId("cluster.local", "shop", "default")
    desk.decider.facts([Passed(under=under, peer=peer, connections=1, sent=0, received=0, each=lambda ip: [])])
    assert [c.destination_identity for c in desk.tunnelled] == [None, peer]
