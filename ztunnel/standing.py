"""Standing orders: what one answer says about all connections of its kind.

A kind is what the decision has read; connections of it differ in the client's port and in their trace. So an order for
all of them is the one that was given with these two left open, and the record of each is a copy of one template. Where
a Service was dialled, each endpoint is an alternative with the odds of `mesh.route.pick`.

Pure. What is refused does not stand, nor what there is something to log about each time (dry runs).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime

from mesh import route
from mesh.identity import SpiffeId
from mesh.model import Flow, SocketAddress, Workload
from mesh.snapshot import Snapshot
from ztunnel import capture, headers
from ztunnel.capture import Answer, Rng
from ztunnel.connections import Connection
from ztunnel.orders import (
    PORT,
    TRACE,
    Alternative,
    Begun,
    Captured,
    Offered,
    Plaintext,
    Refuse,
    RelayPlain,
    RelayTunnel,
    Standing,
)

MOST_ALTERNATIVES = 64  # of a Service with more endpoints each connection is asked about


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Template:
    """The name of an alternative: what all connections by it have in common, and what they were decided by."""

    connection: Connection
    snapshot: Snapshot

    def begun(self, fact: Begun, at: datetime) -> Connection:
        """The record of one."""
        client = SocketAddress(self.connection.client.ip, fact.port)
        return replace(self.connection, id=fact.id, client=client, opened_at=at, trace=fact.trace)

    def opened(self, peer: SpiffeId | None) -> Connection:
        """What those have in common whose upstream has proved to be this peer."""
        if peer is None or peer == self.connection.destination_identity:
            return self.connection
        return replace(self.connection, destination_identity=peer)


def outbound(
    snapshot: Snapshot,
    source: Workload,
    fact: Captured,
    answer: Answer,
    rng: Rng,
    besides: Collection[SocketAddress] = (),
) -> Standing | None:
    """For captured connections like this one, which was answered so; None: each is to be asked about. Arguments as for
    `capture.answer`."""
    if isinstance(answer.order, Refuse):
        return None
    odds = route.odds(snapshot, Flow(source, fact.destination), drawn=fact.drawn, besides=besides)
    if len(odds) > MOST_ALTERNATIVES or any(isinstance(chosen, route.Refuse) for _, chosen in odds):
        return None
    begun = replace(
        answer.connection,
        destination=None,
        upstream=fact.destination,
        hbone=None,
        source_identity=None,
        destination_identity=None,
    )
    answers = ((weight, capture.towards(replace(begun), source, chosen, rng)) for weight, chosen in odds)
    return Standing(
        id=fact.id,
        alternatives=[_alternative(snapshot, weight, each, source) for weight, each in answers],
    )


def inbound(snapshot: Snapshot, fact: Offered | Plaintext, answer: Answer) -> Standing | None:
    """Likewise, for connections to the pod."""
    connection = answer.connection
    if isinstance(answer.order, Refuse) or connection.notes or connection.trials:
        return None
    if isinstance(fact, Offered):
        claimed, host = headers.read_forwarded(fact.headers)
        if claimed != connection.client or not headers.is_plain_forwarded(fact.headers, claimed, host):
            return None
    return Standing(id=fact.id, alternatives=[_alternative(snapshot, 1, answer, None)])


def _alternative(snapshot: Snapshot, weight: int, answer: Answer, source: Workload | None) -> Alternative:
    connection, order = answer.connection, answer.order
    assert isinstance(order, RelayPlain | RelayTunnel)
    client = SocketAddress(connection.client.ip, 0)
    common = replace(connection, id=0, client=client, trace="")
    if isinstance(order, RelayTunnel) and source is not None:
        open_client = str(client).removesuffix("0") + PORT
        order = replace(order, headers=headers.request(source, open_client, connection.service, TRACE))
    return Alternative(weight=weight, order=order, name=Template(connection=common, snapshot=snapshot))
