"""What one answer says about all connections of its kind."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from mesh.model import Policy, SocketAddress
from mesh.route import Tunnel, odds
from mesh.snapshot import Delta, Snapshot
from tests.unit.ztunnel import test_capture as out
from tests.unit.ztunnel import test_inbound as into
from ztunnel import capture, headers, inbound, standing
from ztunnel.connections import Connection
from ztunnel.orders import PORT, TRACE, Begun, Captured, Offered, Plaintext, RelayPlain, RelayTunnel, Standing
from ztunnel.standing import MOST_ALTERNATIVES, Template

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VIP = "10.9.0.1:80"
SERVER = replace(into.SERVER, authorization_policies=())
ARRIVALS = into.SNAPSHOT.apply(Delta(upserts=(SERVER,)))


def outbound(to: str = VIP, snapshot: Snapshot = out.SNAPSHOT, **changes: object) -> Standing | None:
    fact = replace(out.captured(to), **changes)
    answer = capture.answer(snapshot, out.CLIENT, fact, random.Random(1), NOW)
    return standing.outbound(snapshot, out.CLIENT, fact, answer, random.Random(2))


def arrived(fact: Offered | Plaintext, snapshot: Snapshot = ARRIVALS) -> Standing | None:
    if isinstance(fact, Offered):
        return standing.inbound(snapshot, fact, inbound.offered(snapshot, SERVER, fact, NOW))
    return standing.inbound(snapshot, fact, inbound.plaintext(snapshot, SERVER, fact, NOW))


def offered(forwarded: str | None = 'for="10.0.0.1:41000"', **changes: object) -> Offered:
    fact = Offered(
        id=3,
        pod="s",
        client=SocketAddress("10.0.0.1", 40000),
        local=SocketAddress("10.0.0.2", 15008),
        peer=into.PEER,
        method="CONNECT",
        authority="10.0.0.2:8080",
        headers=[("forwarded", forwarded)] if forwarded is not None else [],
    )
    return replace(fact, **changes)


def only(order: Standing | None) -> tuple[RelayPlain | RelayTunnel, Template]:
    assert order is not None
    (alternative,) = order.alternatives
    assert isinstance(alternative.name, Template)
    return alternative.order, alternative.name


def test_a_tunnel_stands_with_the_clients_port_and_the_trace_left_open() -> None:
    order, template = only(outbound())
    answer = out.asked(VIP)
    assert isinstance(order, RelayTunnel) and isinstance(answer.order, RelayTunnel)
    assert (order.key, order.authority) == (answer.order.key, answer.order.authority)
    filled = [(k, v.replace(PORT, "40000").replace(TRACE, answer.connection.trace)) for k, v in order.headers]
    assert filled == list(answer.order.headers)
    begun = Begun(id=7, pod="i-client", under=template, port=40000, trace=answer.connection.trace, began_ns=1)
    assert template.begun(begun, NOW) == answer.connection


def test_an_ipv6_client_stands_in_brackets() -> None:
    order, _ = only(outbound(client=SocketAddress("fd00::1", 40000)))
    assert isinstance(order, RelayTunnel)
    assert dict(order.headers)["forwarded"] == f'for="[fd00::1]:{PORT}";host={out.WEB.hostname}'


def test_what_is_outside_the_mesh_stands_as_it_is() -> None:
    order, template = only(outbound("192.0.2.1:443"))
    assert isinstance(order, RelayPlain)
    assert (order.destination, order.bind, order.as_client) == (SocketAddress("192.0.2.1", 443), None, None)
    assert template.connection.client == SocketAddress("10.0.0.1", 0)


@pytest.mark.parametrize("drawn", [None, SocketAddress("10.0.0.4", 8080)])
def test_endpoints_of_a_service_stand_with_the_odds_of_each(drawn: SocketAddress | None) -> None:
    second = replace(out.SERVER, uid="u/second", name="second", instance="i2", addresses=("10.0.0.4",), capacity=3)
    plain = replace(out.SERVER, uid="u/third", instance="i3", addresses=("10.0.0.5",), tunnel_protocol="NONE")
    snapshot = out.SNAPSHOT.apply(Delta(upserts=(second, plain)))
    fact = replace(out.captured(VIP), drawn=drawn)
    found = outbound(snapshot=snapshot, drawn=drawn)
    assert found is not None
    expected = odds(snapshot, capture.Flow(out.CLIENT, fact.destination), drawn=drawn)
    assert len(expected) == (1 if drawn else 3)
    assert [a.weight for a in found.alternatives] == [weight for weight, _ in expected]
    for alternative, (_, chosen) in zip(found.alternatives, expected, strict=True):
        assert isinstance(alternative.name, Template)
        record = alternative.name.connection
        assert record.destination == chosen.workload
        if isinstance(chosen, Tunnel):
            assert (record.upstream, record.hbone) == (chosen.authority, chosen.address)
            assert record.source_identity == out.CLIENT.identity
        else:
            assert (record.upstream, record.hbone, record.source_identity) == (chosen.destination, None, None)


def test_of_a_service_with_very_many_endpoints_each_connection_is_asked_about() -> None:
    many = [
        replace(out.SERVER, uid=f"u/{n}", name=f"n{n}", instance=f"i{n}", addresses=(f"10.1.0.{n}",))
        for n in range(MOST_ALTERNATIVES)
    ]
    assert outbound(snapshot=out.SNAPSHOT.apply(Delta(upserts=many[:-1]))) is not None
    assert outbound(snapshot=out.SNAPSHOT.apply(Delta(upserts=many))) is None


def test_refusals_do_not_stand() -> None:
    assert outbound("10.9.0.1:81") is None
    assert arrived(offered(authority="10.0.0.9:8080")) is None
    assert arrived(offered(), ARRIVALS.apply(Delta(upserts=(into.only_from("cluster.local/ns/x/sa/y"),)))) is None


def test_a_request_stands_with_its_client_left_open() -> None:
    order, template = only(arrived(offered()))
    assert isinstance(order, RelayPlain)
    assert (order.destination, order.bind) == (SocketAddress("10.0.0.2", 8080), "10.0.0.2")
    assert order.as_client is not None
    begun = Begun(id=3, pod="s", under=template, port=41000, trace="t", began_ns=1)
    record = template.begun(begun, NOW)
    expected = inbound.offered(ARRIVALS, SERVER, offered(), NOW).connection
    assert record == replace(expected, trace="t")
    assert record.arrival is not None


@pytest.mark.parametrize(
    ("forwarded", "stands"),
    [
        ('for="10.0.0.1:41000"', True),
        ('for="10.0.0.1:41000";host=db.shop.svc.cluster.local', True),
        (None, False),
        ("", False),
        ("for=10.0.0.1:41000", False),
        ('for="10.0.0.9:41000"', False),  # somebody else's address
        ('for="10.0.0.1:041"', False),
        ('for="10.0.0.1:41000";for="10.0.0.1:41001"', False),
        ('for="10.0.0.1:41000", for="10.0.0.7:1"', False),
        ('for="10.0.0.1:41000";host="db.shop.svc.cluster.local"', False),
        ('For="10.0.0.1:41000"', False),
        ('host=db;for="10.0.0.1:41000"', False),
    ],
)
def test_a_request_stands_in_its_usual_form_only(forwarded: str | None, stands: bool) -> None:
    assert (arrived(offered(forwarded)) is not None) == stands


def test_plaintext_stands() -> None:
    fact = Plaintext(
        id=4, pod="s", client=SocketAddress("10.0.0.1", 40000), destination=SocketAddress("10.0.0.2", 8080)
    )
    order, template = only(arrived(fact))
    assert order.as_client is not None if isinstance(order, RelayPlain) else False
    assert template.connection.source_identity is None


def test_what_there_is_something_to_say_about_each_time_does_not_stand() -> None:
    trial = replace(into.only_from("cluster.local/ns/x/sa/y"), dry_run=True)
    assert isinstance(trial, Policy)
    assert arrived(offered(), ARRIVALS.apply(Delta(upserts=(trial,)))) is None


def test_those_that_proved_another_identity_have_that_in_common() -> None:
    _, template = only(outbound())
    assert template.opened(None) is template.connection
    proved = template.opened(out.SERVER.identity)
    assert isinstance(proved, Connection)
    assert proved.destination_identity == out.SERVER.identity
    assert headers.is_plain_forwarded([("forwarded", 'for="1.2.3.4:5"')], SocketAddress("1.2.3.4", 5), "")


def test_nothing_is_asked_of_the_fact_but_what_is_in_the_kind() -> None:
    """All of Captured but ids: client's address, destination, drawn, elsewhere."""
    assert set(Captured.__dataclass_fields__) == {"id", "pod", "client", "destination", "drawn", "elsewhere"}
    kind = {"pod", "client", "local", "peer", "method", "authority", "headers"}
    assert set(Offered.__dataclass_fields__) == {"id", *kind}
    assert set(Plaintext.__dataclass_fields__) == {"id", "pod", "client", "destination"}
