"""Which connections that are older than an enrolment policy forbids."""

from __future__ import annotations

import socket

import pytest

from mesh.model import (
    Clause,
    Match,
    MatchKind,
    Policy,
    PolicyAction,
    PolicyScope,
    Rule,
    SocketAddress,
    StringMatch,
    Workload,
)
from mesh.snapshot import Delta, Snapshot
from ztunnel.older import OlderConnection, forbidden

SERVER = Workload(uid="u", name="p", namespace="shop", instance="i", addresses=("10.0.0.2",))


def connection(inbound: bool = True, remote: str = "10.0.0.1", port: int = 8080) -> OlderConnection:
    return OlderConnection(
        pod="i",
        inbound=inbound,
        local=SocketAddress("10.0.0.2", port),
        remote=SocketAddress(remote, 40000),
        family=socket.AF_INET,
        id=bytes(48),
    )


def denying(match: Match) -> Policy:
    rule = Rule((Clause((match,)),))
    return Policy(name="p", namespace="shop", scope=PolicyScope.NAMESPACE, action=PolicyAction.DENY, rules=(rule,))


PLAINTEXT = Match(not_principals=(StringMatch(MatchKind.PRESENCE),))


@pytest.mark.parametrize(
    ("match", "older", "condemned"),
    [
        (None, connection(), False),
        (PLAINTEXT, connection(), True),
        (PLAINTEXT, connection(inbound=False), False),
        (Match(source_ips=("10.0.0.0/24",)), connection(), True),
        (Match(source_ips=("10.0.0.0/24",)), connection(remote="10.0.1.1"), False),
        (Match(destination_ports=(8080,)), connection(), True),
        (Match(destination_ports=(8080,)), connection(port=9090), False),
    ],
)
def test_inbound_ones_are_plaintext_from_where_they_come(
    match: Match | None, older: OlderConnection, condemned: bool
) -> None:
    policies = (denying(match),) if match is not None else ()
    snapshot = Snapshot().apply(Delta(upserts=(SERVER, *policies)))
    expected = [(older, "denied by shop/p")] if condemned else []
    assert forbidden(snapshot, SERVER, [older]) == expected
