"""Records of direct connections: what the kernel tells of them, as every other connection is told.

The kernel is asked twice a second which there are. Those that are over by then it has added up, without records; of
those that were found it tells the end. Both sides know by the time that a flow was opened which of the two it is.

No byte of them passes the agent, so both ends are pods of this node and each connection has two records, one per
reporter. Their ids are negative: positive ones are the engine's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import Protocol

from bpf import DirectTally
from mesh.model import Service, SocketAddress, Workload
from mesh.policy import Arrival, Verdict, decide
from mesh.reason import Reason
from mesh.route import service_of
from mesh.snapshot import Snapshot
from ztunnel.connections import Connection, Connections, Passed, Tally
from ztunnel.orders import Ended, Opened

log = logging.getLogger(__name__)

_FRESH = 4000  # flows that records are begun of at a time, outside a change of policy
_KINDS = 4096  # of flows that passed under one snapshot; more are judged again


class Flow(Protocol):
    """A direct connection as the kernel knows it (`bpf.DirectFlow`)."""

    @property
    def id(self) -> int: ...
    @property
    def source(self) -> str: ...  # instance; empty: a pod that is not enrolled any more
    @property
    def destination(self) -> str: ...
    @property
    def client(self) -> SocketAddress: ...
    @property
    def server(self) -> SocketAddress: ...
    @property
    def asked(self) -> SocketAddress: ...  # what was dialled: the server, or a Service
    @property
    def sent(self) -> int: ...
    @property
    def received(self) -> int: ...
    @property
    def established(self) -> bool: ...
    @property
    def opened_ns(self) -> int: ...  # CLOCK_MONOTONIC


class Ledger(Protocol):
    """Implemented by `bpf.ledger.Ledger`."""

    def opened(self) -> int: ...  # how many flows there have been
    def found_until(self, now_ns: int) -> None: ...  # what was opened by then is about to be found
    def tell_each(self, wanted: bool) -> None: ...
    def turn(self) -> Sequence[DirectTally]: ...


class Kernel(Protocol):
    """Where the flows are (implemented by `bpf.Kernel`). All may raise OSError."""

    # Those whose ids are not known; no more than `most`, if it is given.
    def flows(self, known: Container[int] = (), most: int | None = None) -> Sequence[Flow]: ...

    @property
    def ledger(self) -> Ledger: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A flow that an event tells of."""

    id: int
    source: str
    destination: str
    client: SocketAddress
    server: SocketAddress
    asked: SocketAddress
    sent: int = 0
    received: int = 0
    established: bool = True
    opened_ns: int = 0
    closed_ns: int = 0  # likewise; 0: it is open


@dataclass(slots=True, kw_only=True)
class Record:
    """One flow: its two reports, and what its permission rests on; None: nobody knows whose address it leads to."""

    flow: Flow
    reports: tuple[Connection, Connection]
    arrival: Arrival | None
    refusal: str  # why it is not permitted, as far as was known when it was heard of; empty: it is
    missing: int | None = None  # from the kernel's list, and how often events had been drained by then

    @property
    def condemned(self) -> bool:
        return self.reports[0].reason is not Reason.OK


@dataclass(slots=True, kw_only=True)
class Flows:
    """The live ones. `monotonic_ns` is the clock of the kernel's times."""

    connections: Connections
    snapshot: Callable[[], Snapshot]
    workload: Callable[[Snapshot, str], Workload | None]
    kernel: Kernel
    now: Callable[[], datetime]
    monotonic_ns: Callable[[], int]
    live: dict[int, Record] = field(default_factory=dict)  # by the kernel's id
    drains: int = 0  # how often all events were heard that there were
    _opened: int = -1  # how many there had been when it was looked for fresh ones
    _passed: dict[tuple[object, ...], Record] = field(default_factory=dict)  # what flows alike had in common
    _passed_under: Snapshot | None = None
    _ids: count[int] = field(default_factory=lambda: count(1))

    def opened(self, flow: Flow) -> Record:
        """Begin its records, once. The verdict's notes (dry runs) are logged here: nobody else decided about it."""
        known = self.live.get(flow.id)
        if known is not None:
            return known
        record = self.live[flow.id] = self._judged(flow)
        for note in record.reports[0].notes:
            log.warning("direct connection from %s to %s: %s", flow.client, flow.server, note)
        for report in record.reports:
            self.connections.begin(report)
            self.connections.opened(Opened(id=report.id))
        return record

    def passed(self, like: Flow, each: Sequence[Passed]) -> bool:
        """Flows that are over when they are first heard of, all from one address to one port, as `like` is; they get no
        records. False: they are to be told one by one, there is something to say of each (a refusal, a note)."""
        common = self._common(like)
        if common.refusal or common.reports[0].notes:
            return False
        for report in common.reports:
            self.connections.passed(report, each)
        return True

    def tallied(self, like: Flow, tally: Tally) -> None:
        """Flows that came and went before anybody looked, all as `like` is. Whatever is permitted now, they were."""
        common = self._common(like)
        for note in common.reports[0].notes:
            log.warning("%d direct connections as from %s to %s: %s", tally.connections, like.client, like.server, note)
        for report in common.reports:
            self.connections.tallied(report, tally)

    def find(self) -> list[Record]:
        """Begin records of flows that were opened since the last time; cheap if there are none. If there are very many,
        others have their turn: the next time there will be the rest, and those that have ended meanwhile are told."""
        opened, now = self.kernel.ledger.opened(), self.monotonic_ns()
        if opened == self._opened:
            return []
        self.kernel.ledger.found_until(now)
        fresh = self.kernel.flows(self.live, _FRESH)
        if len(fresh) < _FRESH:
            self._opened = opened
        begun = []
        for flow in fresh:
            if not flow.established or flow.opened_ns > now:
                continue
            try:
                begun.append(self.opened(flow))
            except Exception:  # a fault of ours costs this record, not those of the others
                log.exception("direct connection that was found: %r", flow)
        return begun

    def _common(self, like: Flow) -> Record:
        snapshot = self.snapshot()
        if snapshot is not self._passed_under or len(self._passed) >= _KINDS:
            self._passed, self._passed_under = {}, snapshot
        kind = (like.source, like.destination, like.client.ip, like.server, like.asked)
        known = self._passed.get(kind)
        if known is None:
            known = self._judged(like)
            if known.reports[0].source is not None and known.arrival is not None:
                self._passed[kind] = known
        return known

    def _judged(self, flow: Flow) -> Record:
        snapshot = self.snapshot()
        source = self.workload(snapshot, flow.source)
        destination = self.workload(snapshot, flow.destination) or snapshot.workload_at(flow.server.ip)
        arrival = verdict = None
        refusal = f"nobody knows whose address {flow.server} is"
        if destination is not None:
            arrival = Arrival(
                source_ip=flow.client.ip,
                identity=source.identity if source is not None else None,
                destination=destination,
                destination_ip=flow.server.ip,
                destination_port=flow.server.port,
            )
            verdict = decide(snapshot, arrival)
            refusal = "" if verdict.allow else verdict.detail
        own, theirs = (self._report(flow, inbound, source, destination, verdict) for inbound in (False, True))
        if destination is not None:
            own.service = theirs.service = self._service(snapshot, flow, source, destination)
        return Record(flow=flow, reports=(own, theirs), arrival=arrival, refusal=refusal)

    def closed(self, flow: Flow, reason: Reason = Reason.OK, closed_ns: int = 0) -> None:
        """The last word about it; also of one that was not found. `closed_ns`: when, if that is known."""
        record = self.opened(flow)
        del self.live[flow.id]
        seconds = (closed_ns - flow.opened_ns) / 1e9 if closed_ns else None
        for report in record.reports:
            ended = Ended(id=report.id, reason=reason, detail="", sent=flow.sent, received=flow.received)
            self.connections.ended(ended, seconds)

    def refused(self, flow: Flow, reason: Reason, detail: str) -> None:
        """One that began and was found to lead elsewhere: nothing of it was delivered."""
        snapshot = self.snapshot()
        report = self._report(flow, False, self.workload(snapshot, flow.source), None, None)
        report.reason, report.detail = reason, detail
        self.connections.begin(report)
        self.connections.ended(Ended(id=report.id, reason=reason, detail=detail, sent=0, received=0))

    def reconcile(self) -> list[Record]:
        """Events are lost when nobody reads them fast enough: begin what is there without a record, end what is gone.
        An event may still be on its way, so what is gone is ended once all events that were waiting have been heard.
        Returns what is new."""
        # What is not established yet is judged by the kernel when its SYN arrives. If that was by a former policy, and
        # it is established after this list was made, it is told.
        now = self.monotonic_ns()
        self.kernel.ledger.found_until(now)
        there = (flow for flow in self.kernel.flows() if flow.established)
        listed = {flow.id: flow for flow in there if flow.opened_ns <= now or flow.id in self.live}
        new = listed.keys() - self.live.keys()
        for flow in listed.values():
            record = self.opened(flow)
            record.flow, record.missing = flow, None
        for id_ in self.live.keys() - listed.keys():
            record = self.live[id_]
            if record.missing is None:
                record.missing = self.drains
            elif record.missing < self.drains:
                self.closed(record.flow)
        return [self.live[id_] for id_ in new]

    def counts(self) -> dict[int, tuple[int, int]]:
        """Bytes that each live report has moved: id -> (client to server, server to client)."""
        counted = {}
        for flow in self.kernel.flows() if self.live else ():
            record = self.live.get(flow.id)
            if record is not None:
                record.flow = flow
                for report in record.reports:
                    counted[report.id] = (flow.sent, flow.received)
        return counted

    def condemn(self, record: Record, detail: str) -> None:
        """It is not permitted any more; whoever says this also ends it."""
        for report in record.reports:
            report.reason, report.detail = Reason.REVOKED, detail

    @staticmethod
    def _service(snapshot: Snapshot, flow: Flow, source: Workload | None, destination: Workload) -> Service | None:
        """The one that was dialled, else one of the destination's that leads to its port."""
        if flow.asked != flow.server and source is not None:
            return snapshot.service_at(flow.asked.ip, source.network, source.namespace)
        return service_of(snapshot, destination, flow.server.port)

    def leave(self) -> None:
        """They are another agent's to tell of; without a last word."""
        for record in self.live.values():
            for report in record.reports:
                self.connections.forget(report.id)
        self.live.clear()

    def _report(
        self, flow: Flow, inbound: bool, source: Workload | None, destination: Workload | None, verdict: Verdict | None
    ) -> Connection:
        lived = max(0, self.monotonic_ns() - flow.opened_ns) if flow.opened_ns else 0
        return Connection(
            id=-next(self._ids),
            pod=flow.destination if inbound else flow.source,
            inbound=inbound,
            client=flow.client,
            asked=flow.server if inbound else flow.asked,
            opened_at=self.now() - timedelta(microseconds=lived / 1000),
            source=source,
            destination=destination,
            source_identity=source.identity if source is not None else None,
            destination_identity=destination.identity if destination is not None else None,
            upstream=flow.server,
            direct=True,
            policy=verdict.policy if verdict is not None else "",
            notes=verdict.notes if verdict is not None else (),
            trials=verdict.trials if verdict is not None else (),
        )
