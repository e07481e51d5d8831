"""The live table: what subscribers hear, and leases that end when permission does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from mesh.identity import SpiffeId
from mesh.model import (
    Clause,
    Match,
    MatchKind,
    Policy,
    PolicyAction,
    PolicyScope,
    Resource,
    Rule,
    SocketAddress,
    StringMatch,
    Workload,
)
from mesh.policy import Arrival
from mesh.reason import Reason
from mesh.snapshot import Delta, Snapshot
from ztunnel.connections import Connection, Connections, Passed, Tally, lost
from ztunnel.orders import Close, Ended, Opened

START = datetime(2026, 1, 1, tzinfo=UTC)
PEER = SpiffeId("cluster.local", "web", "client")
SERVER = Workload(uid="u/server", name="server", namespace="shop", instance="s", addresses=("10.0.0.2",))
ARRIVAL = Arrival(
    source_ip="10.0.0.1", identity=PEER, destination=SERVER, destination_ip="10.0.0.2", destination_port=8080
)


@dataclass
class Heard:
    """A subscriber that writes down."""

    said: list[tuple[str, int, str, float]] = field(default_factory=list)

    def opened(self, connection: Connection) -> None:
        self.said.append(("opened", connection.id, connection.reason.name, 0.0))

    def closed(self, connection: Connection, seconds: float) -> None:
        self.said.append(("closed", connection.id, connection.reason.name, seconds))

    def refused(self, connection: Connection, seconds: float) -> None:
        self.said.append(("refused", connection.id, connection.reason.name, seconds))

    def passed(self, common: Connection, each: Sequence[Passed]) -> None:
        self.said += [("passed", common.id, common.reason.name, (one.closed_ns - one.opened_ns) / 1e9) for one in each]

    def tallied(self, common: Connection, tally: Tally) -> None:
        self.said += [("tallied", common.id, common.reason.name, float(tally.connections))]


class Deaf:
    """A subscriber that fails."""

    def opened(self, connection: Connection) -> None:
        raise RuntimeError("deaf")

    def closed(self, connection: Connection, seconds: float) -> None:
        raise RuntimeError("deaf")

    def refused(self, connection: Connection, seconds: float) -> None:
        raise RuntimeError("deaf")

    def passed(self, common: Connection, each: Sequence[Passed]) -> None:
        raise RuntimeError("deaf")

    def tallied(self, common: Connection, tally: Tally) -> None:
        raise RuntimeError("deaf")


def record(id_: int, arrival: Arrival | None = ARRIVAL) -> Connection:
    return Connection(
        id=id_,
        pod="s",
        inbound=arrival is not None,
        client=SocketAddress("10.0.0.1", 40000),
        asked=SocketAddress("10.0.0.2", 8080),
        opened_at=START,
        arrival=arrival,
    )


def ended(id_: int, reason: Reason = Reason.OK, detail: str = "") -> Ended:
    return Ended(id=id_, reason=reason, detail=detail, sent=11, received=22)


@pytest.fixture
def table() -> tuple[Connections, Heard]:
    heard = Heard()
    connections = Connections(lambda: {1: (5, 6)}, lambda: START + timedelta(seconds=3))
    connections.subscribe(Deaf())
    connections.subscribe(heard)
    return connections, heard


def test_a_life(table: tuple[Connections, Heard]) -> None:
    connections, heard = table
    connections.begin(record(1))
    connections.opened(Opened(id=1, peer=PEER))
    (live,) = connections.live()
    assert (live.sent, live.received, live.destination_identity) == (5, 6, PEER)
    connections.ended(ended(1))
    assert connections.live() == []
    assert (live.sent, live.received, live.reason) == (11, 22, Reason.OK)
    assert heard.said == [("opened", 1, "OK", 0.0), ("closed", 1, "OK", 3.0)]


def test_what_was_never_opened_was_refused(table: tuple[Connections, Heard]) -> None:
    connections, heard = table
    connections.begin(record(1))
    connections.ended(ended(1, Reason.CONNECT_FAILED, "connection refused"))
    assert heard.said == [("refused", 1, "CONNECT_FAILED", 3.0)]


def test_a_refusals_own_reason_stays(table: tuple[Connections, Heard]) -> None:
    connections, _ = table
    refused = record(1)
    refused.reason, refused.detail = Reason.STRICT_PLAINTEXT, "denied by x"
    connections.begin(refused)
    connections.ended(ended(1, Reason.POD_GONE, "engine's word"))
    assert (refused.reason, refused.detail) == (Reason.STRICT_PLAINTEXT, "denied by x")


def test_facts_about_unknown_connections_are_ignored(table: tuple[Connections, Heard]) -> None:
    connections, heard = table
    connections.opened(Opened(id=9))
    connections.ended(ended(9))
    assert heard.said == []


def denying(match: Match) -> Policy:
    return Policy(
        name="deny",
        namespace="shop",
        scope=PolicyScope.NAMESPACE,
        action=PolicyAction.DENY,
        rules=(Rule((Clause((match,)),)),),
    )


PLAINTEXT = Match(not_principals=(StringMatch(MatchKind.PRESENCE),))
REBORN = replace(SERVER, instance="another")


@pytest.mark.parametrize(
    ("arrival", "resources", "why"),
    [
        (ARRIVAL, [SERVER], ""),
        (ARRIVAL, [SERVER, denying(Match(source_ips=("10.0.0.1/32",)))], "denied by shop/deny"),
        (ARRIVAL, [SERVER, denying(PLAINTEXT)], ""),
        (replace(ARRIVAL, identity=None), [SERVER, denying(PLAINTEXT)], "denied by shop/deny"),
        (ARRIVAL, [], "workload u/server is gone"),
        (ARRIVAL, [REBORN], "workload u/server is gone"),
        (ARRIVAL, [replace(SERVER, authorization_policies=("shop/unknown",))], ""),
    ],
)
def test_a_lease_ends_with_its_permission(arrival: Arrival, resources: list[Resource], why: str) -> None:
    assert lost(Snapshot().apply(Delta(upserts=tuple(resources))), arrival) == why


def test_a_swap_closes_what_it_forbids_once_and_nothing_else(table: tuple[Connections, Heard]) -> None:
    connections, heard = table
    plaintext, tunnelled, outbound = record(1, replace(ARRIVAL, identity=None)), record(2), record(3, arrival=None)
    for connection in (plaintext, tunnelled, outbound):
        connections.begin(connection)
        connections.opened(Opened(id=connection.id))
    strict = Snapshot().apply(Delta(upserts=(SERVER, denying(PLAINTEXT))))
    detail = "denied by shop/deny"
    assert connections.revoked(strict) == [Close(id=1, reason=Reason.REVOKED, detail=detail)]
    assert connections.revoked(strict) == []
    connections.ended(ended(1, Reason.REVOKED, detail))
    assert heard.said[-1] == ("closed", 1, "REVOKED", 3.0)
    assert len(connections.live()) == 2


def test_what_cannot_be_judged_anew_is_closed_and_the_others_are_judged(table: tuple[Connections, Heard]) -> None:
    connections, _ = table
    connections.begin(record(1, replace(ARRIVAL, source_ip="not an address")))
    connections.begin(record(2))
    closed = connections.revoked(Snapshot().apply(Delta(upserts=(SERVER,))))
    assert [(c.id, c.detail) for c in closed] == [(1, "it could not be judged anew")]
