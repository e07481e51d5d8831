"""Facts in, one order each out."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

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
    Workload,
)
from mesh.reason import Reason
from mesh.snapshot import Delta, Snapshot
from ztunnel import decider
from ztunnel.connections import Connections
from ztunnel.decider import Decider
from ztunnel.orders import Captured, Close, Ended, Offered, Opened, Order, Plaintext, Refuse, RelayPlain

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

    def __post_init__(self) -> None:
        self.connections = Connections(dict, lambda: NOW)
        self.decider = Decider(
            snapshot=lambda: self.snapshot,
            workload=self._workload,
            order=self._order,
            connections=self.connections,
            deaf=self.deaf.append,
            rng=random.Random(1),
            now=self._now,
            drawable=lambda service: [SocketAddress("10.0.0.9", service.port)],
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


async def test_a_swap_closes_what_it_forbids() -> None:
    desk = Desk()
    desk.swap(OWN)
    desk.decider.facts([plaintext(1), captured(2)])
    deny = Policy(
        name="deny",
        namespace="shop",
        scope=PolicyScope.NAMESPACE,
        action=PolicyAction.DENY,
        rules=(Rule((Clause((Match(destination_ports=(8080,)),)),)),),
    )
    desk.swap(deny)
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
