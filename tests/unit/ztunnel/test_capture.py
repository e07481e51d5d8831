"""Captured connections and the one order each gets."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime

from mesh.identity import SpiffeId
from mesh.model import Flow, Port, Service, SocketAddress, TunnelProtocol, Workload
from mesh.reason import Reason
from mesh.route import Tunnel, pick
from mesh.snapshot import Delta, Snapshot
from ztunnel import headers
from ztunnel.capture import Answer, answer
from ztunnel.orders import Captured, Refuse, RelayPlain, RelayTunnel, TunnelKey

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLIENT = Workload(uid="u/client", name="client", namespace="shop", instance="i-client", addresses=("10.0.0.1",))
WEB = Service(
    name="web",
    namespace="shop",
    hostname="web.shop.svc.cluster.local",
    addresses=("10.9.0.1",),
    ports=(Port(service_port=80, target_port=8080),),
)
SERVER = Workload(
    uid="u/server",
    name="server",
    namespace="shop",
    instance="i-server",
    service_account="web",
    addresses=("10.0.0.2",),
    tunnel_protocol=TunnelProtocol.HBONE,
    services={WEB.namespaced_hostname: ()},
)
OUTSIDE = Workload(uid="u/outside", name="outside", namespace="shop", addresses=("10.0.0.3",))
SNAPSHOT = Snapshot().apply(Delta(upserts=(CLIENT, WEB, SERVER, OUTSIDE)))


def captured(to: str) -> Captured:
    return Captured(id=7, pod="i-client", client=SocketAddress("10.0.0.1", 40000), destination=SocketAddress.parse(to))


def asked(to: str, source: Workload | None = CLIENT) -> Answer:
    return answer(SNAPSHOT, source, captured(to), random.Random(1), NOW)


def test_an_enrolled_destination_gets_a_tunnel_of_its_own_instance() -> None:
    got = asked("10.9.0.1:80")
    assert isinstance(got.order, RelayTunnel)
    assert got.order.key == TunnelKey(
        pod="i-client",
        source=SpiffeId("cluster.local", "shop", "default"),
        expected=frozenset({SpiffeId("cluster.local", "shop", "web")}),
        workload="u/server@i-server",
        address=SocketAddress("10.0.0.2", 15008),
    )
    assert (got.order.id, got.order.authority) == (7, "10.0.0.2:8080")
    assert headers.read_forwarded(got.order.headers) == (SocketAddress("10.0.0.1", 40000), WEB.hostname)
    assert dict(got.order.headers)["traceparent"] == got.connection.trace


def test_the_record_says_who_talks_to_whom() -> None:
    record = asked("10.9.0.1:80").connection
    assert (record.id, record.pod, record.inbound) == (7, "i-client", False)
    assert (record.source, record.destination, record.service) == (CLIENT, SERVER, WEB)
    assert record.asked == SocketAddress("10.9.0.1", 80)
    assert record.upstream == SocketAddress("10.0.0.2", 8080)
    assert record.hbone == SocketAddress("10.0.0.2", 15008)
    assert record.source_identity == CLIENT.identity
    assert record.destination_identity is None  # until the handshake proves one
    assert record.reason is Reason.OK


def test_others_are_dialled_in_plain_without_a_claimed_identity() -> None:
    got = asked("10.0.0.3:5000")
    assert got.order == RelayPlain(id=7, destination=SocketAddress("10.0.0.3", 5000))
    assert (got.connection.destination, got.connection.source_identity, got.connection.hbone) == (OUTSIDE, None, None)


def test_unknown_addresses_are_dialled_as_they_are() -> None:
    got = asked("192.0.2.1:443")
    assert got.order == RelayPlain(id=7, destination=SocketAddress("192.0.2.1", 443))
    assert got.connection.destination is None


def test_a_pod_without_workload_is_refused() -> None:
    got = asked("10.9.0.1:80", source=None)
    assert isinstance(got.order, Refuse)
    assert got.order.reason is got.connection.reason is Reason.SOURCE_UNKNOWN


def test_what_the_route_refuses_is_refused_with_its_reason() -> None:
    got = asked("10.9.0.1:81")
    assert isinstance(got.order, Refuse)
    assert got.order.reason is got.connection.reason is Reason.NO_SERVICE_PORT
    assert "has no port 81" in got.order.detail
    assert got.connection.service is WEB


def test_ipv6_authorities_stand_in_brackets() -> None:
    six = Workload(
        uid="u/six", name="six", namespace="shop", addresses=("fd00::2",), tunnel_protocol=TunnelProtocol.HBONE
    )
    got = answer(SNAPSHOT.apply(Delta(upserts=(six,))), CLIENT, captured("[fd00::2]:80"), random.Random(1), NOW)
    assert isinstance(got.order, RelayTunnel)
    assert got.order.authority == "[fd00::2]:80"


def test_a_reused_address_is_another_tunnel() -> None:
    reborn = Workload(
        uid=SERVER.uid,
        name="server",
        namespace="shop",
        instance="i-reborn",
        addresses=SERVER.addresses,
        tunnel_protocol=TunnelProtocol.HBONE,
    )
    snapshot = SNAPSHOT.apply(Delta(upserts=(reborn,)))
    before, after = (
        answer(s, CLIENT, captured("10.0.0.2:1"), random.Random(1), NOW).order for s in (SNAPSHOT, snapshot)
    )
    assert isinstance(before, RelayTunnel)
    assert isinstance(after, RelayTunnel)
    assert before.key != after.key


def test_what_the_kernel_has_drawn_is_honoured() -> None:
    second = replace(SERVER, uid="u/second", name="second", instance="i-second", addresses=("10.0.0.4",))
    snapshot = SNAPSHOT.apply(Delta(upserts=(second,)))
    first, other = SocketAddress("10.0.0.2", 8080), SocketAddress("10.0.0.4", 8080)
    for seed in range(10):
        drawn = replace(captured("10.9.0.1:80"), drawn=other)
        assert answer(snapshot, CLIENT, drawn, random.Random(seed), NOW).connection.upstream == other
        others = answer(snapshot, CLIENT, captured("10.9.0.1:80"), random.Random(seed), NOW, [other])
        assert others.connection.upstream == first


def test_same_choice_as_the_route() -> None:
    route = pick(SNAPSHOT, Flow(CLIENT, SocketAddress("10.9.0.1", 80)), random.Random(1))
    got = asked("10.9.0.1:80")
    assert isinstance(route, Tunnel)
    assert isinstance(got.order, RelayTunnel)
    assert (got.order.key.address, got.order.authority) == (route.address, str(route.authority))
