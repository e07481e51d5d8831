"""Messages between controller and agent, written and read again."""

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import control
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
    StringMatch,
    TunnelProtocol,
    Workload,
)

WORKLOAD = Workload(
    uid="Kubernetes//Pod/default/reviews",
    name="reviews",
    namespace="default",
    instance="7d0c",
    addresses=("10.1.0.4", "fd00::4"),
    tunnel_protocol=TunnelProtocol.HBONE,
    services={"default/reviews.default.svc.cluster.local": (Port(service_port=80, target_port=9080),)},
)
SERVICE = Service(name="reviews", namespace="default", hostname="reviews.default.svc.cluster.local")
POLICY = Policy(
    name="p",
    namespace="default",
    scope=PolicyScope.NAMESPACE,
    action=PolicyAction.DENY,
    rules=(Rule((Clause((Match(not_principals=(StringMatch(MatchKind.PRESENCE),)),)),)),),
)


@pytest.mark.parametrize("resource", [WORKLOAD, SERVICE, POLICY], ids=lambda r: type(r).__name__)
def test_a_resource_survives_the_wire(resource: Workload | Service | Policy) -> None:
    update = control.Update(nonce=7, upserts=(control.entry(resource),), removes=("workload/x",))
    back = control.decode_from_controller(control.encode(update))
    assert back == update
    assert back.upserts[0].resource == resource


def test_the_hash_is_of_the_content() -> None:
    moved = dataclasses.replace(WORKLOAD, node="n2")
    assert control.entry(WORKLOAD).hash == control.entry(dataclasses.replace(moved, node=WORKLOAD.node)).hash
    assert control.entry(WORKLOAD).hash != control.entry(moved).hash


def test_an_entry_of_two_kinds_is_refused() -> None:
    both = control.Entry(hash="", workload=WORKLOAD, service=SERVICE)
    for entry in (both, control.Entry(hash="")):
        with pytest.raises(ValueError, match="exactly one"):
            _ = entry.resource


@pytest.mark.parametrize(
    "message",
    [
        control.Hello(node="n1", version="0", known={"workload/x": "1"}),
        control.Ack(nonce=1),
        control.Nack(nonce=1, errors={"policy/x": "why"}),
        control.PodStatus(uid="u", instance="i", redirection=control.Redirection.ENABLED),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_a_node_says_survives_the_wire(message: control.FromNode) -> None:
    assert control.decode_from_node(control.encode(message)) == message


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_garbage_is_a_value_error(data: bytes) -> None:
    for decode in (control.decode_from_node, control.decode_from_controller):
        try:
            decode(data)
        except ValueError:
            continue


@pytest.mark.parametrize("decode", [control.decode_from_node, control.decode_from_controller])
def test_deep_nesting_is_a_value_error(decode: Callable[[bytes], object]) -> None:
    with pytest.raises(ValueError, match="nested deeper"):
        decode(b'{"x":' + b"[" * 100_000)
