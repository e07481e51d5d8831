"""Arrivals and their verdicts: requests on tunnels as a table, plaintext under every PeerAuthentication."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from mesh.identity import SpiffeId
from mesh.model import (
    Clause,
    Match,
    MatchKind,
    Policy,
    PolicyAction,
    PolicyScope,
    Port,
    Rule,
    Service,
    SocketAddress,
    StringMatch,
    Workload,
)
from mesh.reason import Reason
from mesh.snapshot import Delta, Snapshot
from ztunnel.inbound import offered, plaintext
from ztunnel.orders import Offered, Plaintext, Refuse, RelayPlain

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PEER = SpiffeId("cluster.local", "web", "client")
CLIENT = Workload(
    uid="u/client", name="client", namespace="web", service_account="client", addresses=("10.0.0.1",), instance="c"
)
DB = Service(
    name="db",
    namespace="shop",
    hostname="db.shop.svc.cluster.local",
    addresses=("10.9.0.1",),
    ports=(Port(service_port=80, target_port=8080), Port(service_port=81, target_port=0)),
)
SERVER = Workload(
    uid="u/server",
    name="server",
    namespace="shop",
    instance="s",
    addresses=("10.0.0.2", "fd00::2"),
    services={DB.namespaced_hostname: ()},
    authorization_policies=("istio-system/istio_converted_static_strict",),
)
SNAPSHOT = Snapshot().apply(Delta(upserts=(CLIENT, DB, SERVER)))
STRICT = Policy(
    name="istio_converted_static_strict",
    namespace="istio-system",
    scope=PolicyScope.WORKLOAD_SELECTOR,
    action=PolicyAction.DENY,
    rules=(Rule((Clause((Match(not_principals=(StringMatch(MatchKind.PRESENCE),)),)),)),),
)


def only_from(principal: str) -> Policy:
    match = Match(principals=(StringMatch(MatchKind.EXACT, principal),))
    return Policy(
        name="only",
        namespace="shop",
        scope=PolicyScope.NAMESPACE,
        action=PolicyAction.ALLOW,
        rules=(Rule((Clause((match,)),)),),
    )


def request(
    authority: str = "10.0.0.2:8080", method: str = "CONNECT", forwarded: str = "", local: str = "10.0.0.2"
) -> Offered:
    return Offered(
        id=9,
        pod="s",
        client=SocketAddress("10.0.0.1", 50000),
        local=SocketAddress(local, 15008),
        peer=PEER,
        method=method,
        authority=authority,
        headers=[("forwarded", forwarded)] if forwarded else [],
    )


def test_what_is_permitted_goes_to_the_application_as_the_real_client() -> None:
    got = offered(SNAPSHOT, SERVER, request(forwarded='for="10.0.0.1:40000"'), NOW)
    assert got.order == RelayPlain(
        id=9,
        destination=SocketAddress("10.0.0.2", 8080),
        bind="10.0.0.2",
        as_client=SocketAddress("10.0.0.1", 40000),
        response_headers=(("baggage", "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=server"),),
    )
    record = got.connection
    assert (record.inbound, record.source, record.destination, record.service) == (True, CLIENT, SERVER, DB)
    assert (record.source_identity, record.destination_identity) == (PEER, SERVER.identity)
    assert record.hbone == SocketAddress("10.0.0.2", 15008)
    assert record.asked == record.upstream == SocketAddress("10.0.0.2", 8080)
    assert record.arrival is not None


def test_a_claimed_address_that_is_not_the_peers_is_not_shown() -> None:
    got = offered(SNAPSHOT, SERVER, request(forwarded='for="10.0.0.77:40000"'), NOW)
    assert isinstance(got.order, RelayPlain)
    assert got.order.as_client == SocketAddress("10.0.0.1", 50000)


def test_a_peer_that_proved_another_identity_is_not_taken_for_the_owner_of_its_address() -> None:
    got = offered(SNAPSHOT, SERVER, replace(request(), peer=SpiffeId("cluster.local", "web", "other")), NOW)
    assert got.connection.source is None


@pytest.mark.parametrize(
    ("fact", "reason", "status"),
    [
        (request(method="GET"), Reason.BAD_REQUEST, 400),
        (request(authority=""), Reason.BAD_REQUEST, 400),
        (request(authority="10.0.0.2"), Reason.BAD_REQUEST, 400),
        (request(authority="10.0.0.2:0"), Reason.BAD_REQUEST, 400),
        (request(authority="10.0.0.2:65536"), Reason.BAD_REQUEST, 400),
        (request(authority="10.0.0.300:80"), Reason.BAD_REQUEST, 400),
        (request(authority="fd00::2:80"), Reason.BAD_REQUEST, 400),
        (request(authority="user@db.shop:80"), Reason.BAD_REQUEST, 400),
        (request(authority="db..shop:80"), Reason.BAD_REQUEST, 400),
        (request(authority="a" * 300 + ":80"), Reason.BAD_REQUEST, 400),
        (request(authority="10.0.0.9:8080"), Reason.AUTHORITY_MISMATCH, 400),
        (request(authority="[fd00::2]:8080"), Reason.AUTHORITY_MISMATCH, 400),
        (request(authority="127.0.0.1:8080"), Reason.AUTHORITY_MISMATCH, 400),
        (request(authority="10.9.0.1:80"), Reason.AUTHORITY_MISMATCH, 400),
        (request(authority="nowhere.example:80"), Reason.DESTINATION_UNKNOWN, 503),
        (request(authority="db.shop.svc.cluster.local:82"), Reason.NO_SERVICE_PORT, 503),
        (request(authority="db.shop.svc.cluster.local:81"), Reason.NO_SERVICE_PORT, 503),
        (request(authority="10.0.0.2:15001"), Reason.ILLEGAL_PORT, 503),
        (request(authority="10.0.0.2:15006"), Reason.ILLEGAL_PORT, 503),
        (request(authority="10.0.0.2:15008"), Reason.ILLEGAL_PORT, 503),
    ],
)
def test_refusals(fact: Offered, reason: Reason, status: int) -> None:
    got = offered(SNAPSHOT, SERVER, fact, NOW)
    assert isinstance(got.order, Refuse)
    assert (got.order.reason, got.order.reason.http_status) == (reason, status)
    assert got.connection.reason is reason
    assert got.connection.arrival is None


@pytest.mark.parametrize(
    ("authority", "local", "port"),
    [
        ("10.0.0.2:1234", "10.0.0.2", 1234),
        ("[fd00::2]:1234", "fd00::2", 1234),
        ("[::ffff:10.0.0.2]:1234", "10.0.0.2", 1234),
        ("db.shop.svc.cluster.local:80", "10.0.0.2", 8080),
        ("DB.shop.svc.cluster.local:80", "fd00::2", 8080),
    ],
)
def test_authorities(authority: str, local: str, port: int) -> None:
    got = offered(SNAPSHOT, SERVER, request(authority=authority, local=local), NOW)
    assert isinstance(got.order, RelayPlain)
    assert got.order.destination == SocketAddress(local, port)
    assert got.order.bind == local


def test_a_port_that_a_service_leads_to_may_be_illegal_too() -> None:
    loop = replace(DB, ports=(Port(service_port=80, target_port=15001),))
    got = offered(
        SNAPSHOT.apply(Delta(upserts=(loop,))), SERVER, request(authority="db.shop.svc.cluster.local:80"), NOW
    )
    assert isinstance(got.order, Refuse)
    assert got.order.reason is Reason.ILLEGAL_PORT


def test_an_unknown_pod_is_refused() -> None:
    for got in (offered(SNAPSHOT, None, request(), NOW), plaintext(SNAPSHOT, None, arriving(), NOW)):
        assert isinstance(got.order, Refuse)
        assert got.order.reason is Reason.DESTINATION_UNKNOWN


def test_policy_sees_the_proved_identity() -> None:
    allowed = SNAPSHOT.apply(Delta(upserts=(only_from("cluster.local/ns/web/sa/client"),)))
    denied = SNAPSHOT.apply(Delta(upserts=(only_from("cluster.local/ns/web/sa/other"),)))
    got = offered(allowed, SERVER, request(), NOW)
    assert isinstance(got.order, RelayPlain)
    assert got.connection.policy == "shop/only"
    refused = offered(denied, SERVER, request(), NOW)
    assert isinstance(refused.order, Refuse)
    assert refused.order.reason is Reason.POLICY_NO_ALLOW
    assert refused.order.reason.http_status == 401


def arriving(port: int = 8080, client: str = "10.0.0.1") -> Plaintext:
    return Plaintext(id=9, pod="s", client=SocketAddress(client, 50000), destination=SocketAddress("10.0.0.2", port))


def test_plaintext_is_permitted_by_default() -> None:
    got = plaintext(SNAPSHOT, SERVER, arriving(), NOW)
    assert got.order == RelayPlain(
        id=9,
        destination=SocketAddress("10.0.0.2", 8080),
        bind="10.0.0.2",
        as_client=SocketAddress("10.0.0.1", 50000),
    )
    record = got.connection
    assert (record.source, record.source_identity, record.hbone, record.service) == (CLIENT, None, None, DB)


def test_strict_refuses_plaintext_and_only_that() -> None:
    strict = SNAPSHOT.apply(Delta(upserts=(STRICT,)))
    got = plaintext(strict, SERVER, arriving(), NOW)
    assert isinstance(got.order, Refuse)
    assert got.order.reason is Reason.STRICT_PLAINTEXT
    assert isinstance(offered(strict, SERVER, request(), NOW).order, RelayPlain)


def test_an_allow_policy_by_principal_refuses_plaintext() -> None:
    snapshot = SNAPSHOT.apply(Delta(upserts=(only_from("cluster.local/ns/web/sa/client"),)))
    got = plaintext(snapshot, SERVER, arriving(), NOW)
    assert isinstance(got.order, Refuse)
    assert got.order.reason is Reason.POLICY_NO_ALLOW


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_plaintext_to_the_agents_ports_is_refused(port: int) -> None:
    got = plaintext(SNAPSHOT, SERVER, arriving(port), NOW)
    assert isinstance(got.order, Refuse)
    assert got.order.reason is Reason.ILLEGAL_PORT
