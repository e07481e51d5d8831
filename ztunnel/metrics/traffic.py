"""Istio's TCP metrics of this node's connections: who talked to whom, how often, how much, with what end.

`received` counts bytes from client to server and `sent` those from server to client, whoever reports (istio/istio
issue 32399). What a connection moves is added while it lives, at each scrape, and the rest when it ends. Series are
bounded: one of a workload that is gone goes some time after its last connection, and there are never more than `limit`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from time import monotonic

from prometheus_client import Metric
from prometheus_client.samples import Sample

from mesh.reason import Reason
from mesh.snapshot import Snapshot
from ztunnel.connections import Connection, Passed, Tally
from ztunnel.metrics.labels import UNKNOWN, traffic_labels, workload_name

LINGER_SECONDS = 900.0  # three scrapes of the slowest usual interval, and a Grafana panel's look-back
MAX_SERIES = 10_000

# Refused before it is known who talks to whom: an access log line only, no series (istio-facts §4.1).
WITHOUT_CONTEXT = frozenset(
    {
        Reason.NO_DESTINATION,
        Reason.RESERVED_PORT,
        Reason.SOURCE_UNKNOWN,
        Reason.NO_ENDPOINT,
        Reason.NO_SERVICE_PORT,
        Reason.ILLEGAL_PORT,
        Reason.BAD_REQUEST,
        Reason.AUTHORITY_MISMATCH,
        Reason.DESTINATION_UNKNOWN,
    }
)

_FAMILIES = (
    ("istio_tcp_connections_opened", "opened", "TCP connections opened."),
    ("istio_tcp_connections_closed", "closed", "TCP connections closed; each opened one is, also if it was denied."),
    ("istio_tcp_connections_failed", "failed", "TCP connections that were refused or ended in an error."),
    ("istio_tcp_received_bytes", "received", "Bytes from client to server, whoever reports."),
    ("istio_tcp_sent_bytes", "sent", "Bytes from server to client, whoever reports."),
)


@dataclass(slots=True, kw_only=True)
class Series:
    """The counters of one set of labels. None: never counted, so not shown."""

    labels: dict[str, str]
    live: int = 0
    touched: float = 0.0
    opened: int | None = None
    closed: int | None = None
    failed: int | None = None
    received: int | None = None
    sent: int | None = None


@dataclass(slots=True)
class Live:
    """An open connection: the series that its bytes go to, and how many are in it already."""

    series: Series
    to_server: int = 0
    to_client: int = 0


@dataclass(slots=True, kw_only=True)
class Traffic:
    """A subscriber to `ztunnel.connections`. `clock` gives seconds that never go back."""

    clock: Callable[[], float] = monotonic
    limit: int = MAX_SERIES
    linger: float = LINGER_SECONDS
    evicted: int = 0
    refusals: dict[Reason, int] = field(default_factory=dict)
    _series: dict[tuple[str, ...], Series] = field(default_factory=dict)
    _live: dict[int, Live] = field(default_factory=dict)
    _names: tuple[int, frozenset[tuple[str, str]]] = (-1, frozenset())

    def opened(self, connection: Connection) -> None:
        """The upstream is connected, bytes may flow."""
        series = self._touch(connection, Reason.OK)
        _count(series, opened=1, received=0, sent=0)
        series.live += 1
        self._live[connection.id] = Live(series)

    def closed(self, connection: Connection, seconds: float) -> None:
        """The last word about a connection that was opened; its record has the final byte counts."""
        live = self._live.pop(connection.id, None)
        if live is None:
            return
        _move(live, connection.sent, connection.received)
        if connection.reason is Reason.OK:  # its labels are those that it was opened with
            _count(live.series, closed=1)
        else:
            self._finish(connection)
        live.series.live -= 1
        live.series.touched = self.clock()

    def refused(self, connection: Connection, seconds: float) -> None:
        """The last word about a connection that was never opened."""
        if connection.reason is not Reason.OK:  # else the client left before the upstream answered
            self.refusals[connection.reason] = self.refusals.get(connection.reason, 0) + 1
        if connection.reason in WITHOUT_CONTEXT:
            return
        _count(self._touch(connection, Reason.OK), opened=1, received=0, sent=0)
        self._finish(connection)

    def passed(self, common: Connection, each: Sequence[Passed]) -> None:
        """Opened and closed at once, without an error."""
        sent, received = sum(one.sent for one in each), sum(one.received for one in each)
        self.tallied(common, Tally(connections=len(each), sent=sent, received=received))

    def tallied(self, common: Connection, tally: Tally) -> None:
        """Likewise."""
        many = tally.connections
        _count(self._touch(common, Reason.OK), opened=many, closed=many, received=tally.sent, sent=tally.received)

    def _finish(self, connection: Connection) -> None:
        # The flag is known at the end only: as in Istio, `closed` carries it, `opened` and the bytes have "-".
        failed = connection.reason is not Reason.OK
        _count(self._touch(connection, connection.reason), closed=1, failed=int(failed) or None)

    def advance(self, counts: Mapping[int, tuple[int, int]]) -> None:
        """Add what live connections moved since the last time. `counts`: id -> (client to server, server to client)."""
        for id_, (to_server, to_client) in counts.items():
            live = self._live.get(id_)
            if live is not None and _move(live, to_server, to_client):
                live.series.touched = self.clock()

    def expire(self, snapshot: Snapshot) -> None:
        """Drop series without a live connection that have rested for `linger` seconds and name a workload that is
        no longer there."""
        if self._names[0] != snapshot.version:
            known = frozenset((w.namespace, workload_name(w)) for w in snapshot.workloads.values())
            self._names = (snapshot.version, known | {(UNKNOWN, UNKNOWN)})
        names, now = self._names[1], self.clock()
        for key, series in list(self._series.items()):
            if series.live or now - series.touched < self.linger:
                continue
            labels = series.labels
            parties = (
                (labels[f"{end}_workload_namespace"], labels[f"{end}_workload"]) for end in ("source", "destination")
            )
            if not names.issuperset(parties):
                del self._series[key]

    def collect(self, turned_away: Mapping[Reason, int]) -> Iterator[Metric]:
        """`turned_away`: connections that never came to be a record here, failed handshakes for one."""
        series = list(self._series.values())
        for name, attribute, text in _FAMILIES:
            family = Metric(name, text, "counter")
            value = attrgetter(attribute)
            counted = ((s.labels, value(s)) for s in series)
            family.samples = [Sample(f"{name}_total", labels, n) for labels, n in counted if n is not None]
            yield family
        sockets = Metric("istio_tcp_sockets_open", "Connections open now.", "gauge")
        reporters = [live.series.labels["reporter"] for live in self._live.values()]
        for reporter in ("source", "destination"):
            sockets.add_sample(sockets.name, {"reporter": reporter}, reporters.count(reporter))
        yield sockets
        refused = Metric("gossamer_refused", "Connections that were never opened, by reason.", "counter")
        for reason, n in sorted((Counter(self.refusals) + Counter(turned_away)).items()):
            refused.add_sample("gossamer_refused_total", {"reason": reason.name}, n)
        yield refused
        evicted = Metric("gossamer_metric_series_evicted", "Series dropped because there were too many.", "counter")
        evicted.add_sample("gossamer_metric_series_evicted_total", {}, self.evicted)
        yield evicted

    def _touch(self, connection: Connection, reason: Reason) -> Series:
        labels = traffic_labels(connection, reason)
        key = tuple(labels.values())
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= self.limit and not self._evict():
                # Every series is in use: what is new is counted under nobody's name rather than not at all.
                kept = ("reporter", "request_protocol", "response_flags", "connection_security_policy")
                labels = {name: value if name in kept else UNKNOWN for name, value in labels.items()}
                key = tuple(labels.values())
            series = self._series.setdefault(key, Series(labels=labels))
        series.touched = self.clock()
        return series

    def _evict(self) -> bool:
        """Drop the tenth of all series that rested longest. False: all have live connections."""
        resting = sorted(((s.touched, key) for key, s in self._series.items() if not s.live))
        for _, key in resting[: max(1, self.limit // 10)]:
            del self._series[key]
            self.evicted += 1
        return bool(resting)


def _count(series: Series, **more: int | None) -> None:
    for name, n in more.items():
        if n is not None:
            setattr(series, name, (getattr(series, name) or 0) + n)


def _move(live: Live, to_server: int, to_client: int) -> bool:
    """Put into the series what is not in it yet. A count that went back (it should not) adds nothing."""
    received, sent = max(0, to_server - live.to_server), max(0, to_client - live.to_client)
    _count(live.series, received=received, sent=sent)
    live.to_server += received
    live.to_client += sent
    return bool(received or sent)
