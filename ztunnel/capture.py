"""Outbound: what a pod's application dialled, and where that goes.

The flow's source is the owner of the netns it was captured in, never what an address claims. One snapshot decides,
once, and the answer is one order; the record beside it is what admin, metrics and the access log will say.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from mesh import route
from mesh.model import Flow, SocketAddress, Workload
from mesh.reason import Reason
from mesh.route import Plain, Tunnel
from mesh.snapshot import Snapshot
from ztunnel import headers
from ztunnel.connections import Connection
from ztunnel.orders import Captured, Order, Refuse, RelayPlain, RelayTunnel, TunnelKey


class Rng(route.Rng, headers.Bits, Protocol):
    """What is needed of random.Random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One order to the engine, and the record of the connection it is about."""

    order: Order
    connection: Connection


def answer(
    snapshot: Snapshot,
    source: Workload | None,
    fact: Captured,
    rng: Rng,
    now: datetime,
    besides: Collection[SocketAddress] = (),
) -> Answer:
    """Decide about one captured connection. `source` None: the controller has not sent the pod's own workload.
    `besides`: endpoints to which the kernel's draw has not fallen."""
    connection = Connection(
        id=fact.id,
        pod=fact.pod,
        inbound=False,
        client=fact.client,
        asked=fact.destination,
        opened_at=now,
        source=source,
        upstream=fact.destination,
    )
    if source is None:
        return _refuse(connection, Reason.SOURCE_UNKNOWN, f"no workload is known for pod {fact.pod}")
    chosen = route.pick(snapshot, Flow(source, fact.destination), rng, drawn=fact.drawn, besides=besides)
    return towards(connection, source, chosen, rng)


def towards(connection: Connection, source: Workload, chosen: route.Route, rng: Rng) -> Answer:
    """What this choice means for the connection, whose record is completed."""
    connection.service = chosen.service
    if isinstance(chosen, Tunnel):
        return _through_tunnel(connection, source, chosen, rng)
    if isinstance(chosen, Plain):
        connection.destination, connection.upstream = chosen.workload, chosen.destination
        return Answer(order=RelayPlain(id=connection.id, destination=chosen.destination), connection=connection)
    return _refuse(connection, chosen.reason, chosen.detail)


def _through_tunnel(connection: Connection, source: Workload, chosen: Tunnel, rng: Rng) -> Answer:
    workload = chosen.workload
    connection.destination, connection.upstream, connection.hbone = workload, chosen.authority, chosen.address
    connection.source_identity = source.identity
    connection.trace = headers.traceparent(rng)
    key = TunnelKey(
        pod=connection.pod,
        source=source.identity,
        expected=chosen.expected,
        workload=f"{workload.uid}@{workload.instance}",
        address=chosen.address,
    )
    order = RelayTunnel(
        id=connection.id,
        key=key,
        authority=str(chosen.authority),
        headers=headers.request(source, connection.client, chosen.service, connection.trace),
    )
    return Answer(order=order, connection=connection)


def _refuse(connection: Connection, reason: Reason, detail: str) -> Answer:
    connection.reason, connection.detail = reason, detail
    return Answer(order=Refuse(id=connection.id, reason=reason, detail=detail), connection=connection)
