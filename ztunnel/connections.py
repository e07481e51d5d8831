"""The live connections of this node, and the leases they run on.

Each record is begun when a connection is answered and ends with the engine's last fact about it. A verdict is a
lease: `revoked` re-decides, on every new snapshot, what is open inbound, and gives the orders that close what lost its
permission. Outbound connections are judged where they arrive, as in Istio.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from mesh.identity import SpiffeId
from mesh.model import Service, SocketAddress, Workload
from mesh.policy import Arrival, Trial, decide
from mesh.reason import Reason
from mesh.snapshot import Snapshot
from ztunnel.orders import Close, Ended, Opened

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Connection:
    """What is known of one connection; the two ends, the counts and the reason change as it goes on.

    `sent` counts bytes from the client to the server, `received` those that come back, whoever reports.
    """

    id: int
    pod: str  # instance of the pod of this node
    inbound: bool
    client: SocketAddress
    asked: SocketAddress  # what the application dialled; of an inbound one, the address it arrived at
    opened_at: datetime
    source: Workload | None = None
    destination: Workload | None = None
    service: Service | None = None
    source_identity: SpiffeId | None = None
    destination_identity: SpiffeId | None = None
    upstream: SocketAddress | None = None  # the workload's own address and port, however it is reached
    hbone: SocketAddress | None = None  # the tunnel's address; None: not through a tunnel
    arrival: Arrival | None = None  # what an inbound permission rests on
    direct: bool = False  # from socket to socket, in the kernel; both ends are pods of this node
    policy: str = ""  # "<ns>/<name>" of the policy that allowed or denied
    notes: tuple[str, ...] = ()  # of the verdict, for the log: dry runs, policies that are listed but not known
    trials: tuple[Trial, ...] = ()  # what policies under dry run would have done
    trace: str = ""
    established: bool = False
    sent: int = 0
    received: int = 0
    reason: Reason = Reason.OK
    detail: str = ""


class Passed(Protocol):
    """One of many alike: what is its own. Times are CLOCK_MONOTONIC."""

    @property
    def client(self) -> SocketAddress: ...
    @property
    def sent(self) -> int: ...
    @property
    def received(self) -> int: ...
    @property
    def opened_ns(self) -> int: ...
    @property
    def closed_ns(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Of many alike; bytes from the clients to the server, and back."""

    connections: int
    sent: int
    received: int


class Subscriber(Protocol):
    """Who wants to know of connections: metrics, access log. `seconds` is how long it lived."""

    def opened(self, connection: Connection) -> None:
        """Both sides are up; bytes may flow."""

    def closed(self, connection: Connection, seconds: float) -> None:
        """The last word about a connection that was opened; its record is final."""

    def refused(self, connection: Connection, seconds: float) -> None:
        """The last word about a connection that never was."""

    def passed(self, common: Connection, each: Sequence[Passed]) -> None:
        """Connections that were opened and closed before anybody looked: first and last word at once. `common` is what
        they share."""

    def tallied(self, common: Connection, tally: Tally) -> None:
        """Likewise, and nothing is known of each."""


class Connections:
    """The table. Bounded by the engine's limits: there is one record per connection that the engine holds."""

    def __init__(self, counts: Callable[[], Mapping[int, tuple[int, int]]], now: Callable[[], datetime]) -> None:
        self._counts = counts
        self._now = now
        self._live: dict[int, Connection] = {}
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.append(subscriber)

    def begin(self, connection: Connection) -> None:
        """An answer was given. Of a refused one, the engine's Ended is still to come."""
        self._live[connection.id] = connection

    def opened(self, fact: Opened) -> None:
        connection = self._live.get(fact.id)
        if connection is None:
            return
        connection.established = True
        if fact.peer is not None:
            connection.destination_identity = fact.peer
        self._tell(lambda s: s.opened(connection))

    def ended(self, fact: Ended, seconds: float | None = None) -> None:
        """The engine's last fact; `seconds` if it is known better than by now how long the connection lived."""
        connection = self._live.pop(fact.id, None)
        if connection is None:
            return
        connection.sent, connection.received = fact.sent, fact.received
        # A refusal's own reason says more than the engine's echo of it.
        if connection.reason is Reason.OK:
            connection.reason, connection.detail = fact.reason, fact.detail
        lived = max(0.0, (self._now() - connection.opened_at).total_seconds()) if seconds is None else seconds
        if connection.established:
            self._tell(lambda s: s.closed(connection, lived))
        else:
            self._tell(lambda s: s.refused(connection, lived))

    def passed(self, common: Connection, each: Sequence[Passed]) -> None:
        """They were opened and closed before anybody looked; there are no records of them."""
        self._tell(lambda s: s.passed(common, each))

    def tallied(self, common: Connection, tally: Tally) -> None:
        """Likewise."""
        self._tell(lambda s: s.tallied(common, tally))

    def forget(self, id_: int) -> None:
        """It goes on, but is told of by somebody else."""
        self._live.pop(id_, None)

    def live(self) -> Sequence[Connection]:
        """All of them, with the bytes they have moved until now."""
        counts = self._counts()
        for id_, connection in self._live.items():
            connection.sent, connection.received = counts.get(id_, (connection.sent, connection.received))
        return list(self._live.values())

    def revoked(self, snapshot: Snapshot) -> list[Close]:
        """Re-decide what is open inbound; the orders that end what is no longer permitted, marked in their records."""
        judged = [self.judged(connection, snapshot) for connection in self._live.values()]
        return [order for order in judged if order is not None]

    def judged(self, connection: Connection, snapshot: Snapshot) -> Close | None:
        """Re-decide one; None: it goes on."""
        if connection.arrival is None or connection.reason is not Reason.OK:
            return None
        try:
            detail = lost(snapshot, connection.arrival)
        except Exception:  # a fault of ours costs this connection, not the swap and not the others
            log.exception("connection %d could not be judged anew", connection.id)
            detail = "it could not be judged anew"
        if not detail:
            return None
        connection.reason, connection.detail = Reason.REVOKED, detail
        return Close(id=connection.id, reason=Reason.REVOKED, detail=detail)

    def _tell(self, say: Callable[[Subscriber], None]) -> None:
        for subscriber in self._subscribers:
            try:
                say(subscriber)
            except Exception:
                log.exception("a subscriber to connections failed; the connection goes on without it")


def lost(snapshot: Snapshot, arrival: Arrival) -> str:
    """Why an open connection may not go on under this snapshot; empty: it may."""
    workload = snapshot.workloads.get(arrival.destination.uid)
    if workload is None or workload.instance != arrival.destination.instance:
        return f"workload {arrival.destination.uid} is gone"
    verdict = decide(snapshot, replace(arrival, destination=workload))
    return "" if verdict.allow else verdict.detail
