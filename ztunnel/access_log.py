"""The access log: one line per connection, with the fields of Istio's ztunnel (istio-facts §4.4).

    2026-01-02T03:04:05.678901Z<TAB>info<TAB>access<TAB>connection complete<TAB>src.addr=10.0.0.9:33772 src.workload="…"

`connection opened` is debug, `connection complete` info or, with an error, error; `connection failed` (refused before
both ends were known) warn. Bytes are from the reporter's own side: what the workload of this node sent and received.
Lines are written by a thread of their own from a bounded queue: a blocked stderr costs lines, which are counted and
announced, never a stall of the loop.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import IntEnum
from typing import TextIO

from mesh.reason import Reason
from ztunnel.connections import Connection, Passed, Tally
from ztunnel.metrics.traffic import WITHOUT_CONTEXT

CAPACITY = 8192  # lines; some 4 MiB


class Level(IntEnum):
    """Numbers as in Python's `logging`, names as ztunnel prints them."""

    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40
    OFF = 60

    @classmethod
    def parse(cls, text: str) -> Level:
        """ValueError names what there is; `warning` is taken for `warn`."""
        try:
            return cls[{"WARNING": "WARN"}.get(text.upper(), text.upper())]
        except KeyError:
            raise ValueError(
                f"{text!r} is no level; there are {', '.join(level.name.lower() for level in cls)}"
            ) from None


def _utc_now() -> datetime:
    return datetime.now(UTC)


class AccessLog:
    """Takes records of connections on the loop's thread; writes on its own. `close` writes what is queued."""

    def __init__(
        self,
        out: TextIO,
        *,
        level: Level = Level.INFO,
        capacity: int = CAPACITY,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.level = level
        self.dropped = 0  # lines lost to a full queue since the start
        self._announced = 0
        self._out = out
        self._capacity = capacity
        self._now = now
        self._queue: deque[str] = deque()
        self._ready = threading.Condition()
        self._closing = False
        self._writer = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._writer.start()

    def opened(self, connection: Connection) -> None:
        self._log(Level.DEBUG, "connection opened", connection)

    def closed(self, connection: Connection, seconds: float) -> None:
        level = Level.INFO if connection.reason is Reason.OK else Level.ERROR
        self._log(level, "connection complete", connection, seconds)

    def refused(self, connection: Connection, seconds: float) -> None:
        if connection.reason in WITHOUT_CONTEXT:
            self._log(Level.WARN, "connection failed", connection)
        else:
            self._log(Level.ERROR, "connection complete", connection, seconds)

    @property
    def wants_each(self) -> bool:
        """Whether there is a line for a connection that ends well."""
        return self.level <= Level.INFO

    def tallied(self, common: Connection, tally: Tally) -> None:
        """No lines: those that are wanted are not told together."""

    def passed(self, common: Connection, each: Sequence[Passed]) -> None:
        if not self.wants_each:
            return
        if self.level > Level.DEBUG:
            self._put(_alike(self._now(), common, each))
            return
        for one in each:
            own = replace(common, client=one.client, sent=one.sent, received=one.received)
            self.opened(own)
            self.closed(own, (one.closed_ns - one.opened_ns) / 1e9)

    def close(self, timeout: float = 1.0) -> None:
        """Stop after the lines that are queued, or after `timeout` seconds if nobody reads them."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._writer.join(timeout)

    def _log(self, level: Level, message: str, connection: Connection, seconds: float | None = None) -> None:
        if level < self.level:
            return
        # Read the record now: it may change before the line is written.
        self._put([line(self._now(), level, message, connection, seconds)])

    def _put(self, lines: Sequence[str]) -> None:
        with self._ready:
            taken = lines[: max(0, self._capacity - len(self._queue))]
            self.dropped += len(lines) - len(taken)
            self._queue.extend(taken)
            self._ready.notify()

    def _write(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._queue or self._closing)
                lines, closing = list(self._queue), self._closing
                self._queue.clear()
                lost, self._announced = self.dropped - self._announced, self.dropped
            if lost:
                stamp = _timestamp(self._now())
                lines.append(f"{stamp}\twarn\taccess\tlines dropped: nobody reads the log fast enough\tlines={lost}\n")
            try:
                self._out.writelines(lines)
                self._out.flush()
            except (OSError, ValueError):  # the other end is gone; connections go on without a log
                with self._ready:
                    self.dropped += len(lines)
            if closing:
                return


def line(at: datetime, level: Level, message: str, connection: Connection, seconds: float | None = None) -> str:
    """One line of the log. `seconds`: how long the connection lived; None leaves duration and bytes out."""
    fields = " ".join(f"{name}={value}" for name, value in _fields(connection, seconds) if value)
    return f"{_timestamp(at)}\t{level.name.lower()}\taccess\t{message}\t{fields}\n"


def _alike(at: datetime, common: Connection, each: Sequence[Passed]) -> list[str]:
    """`line` of many that ended well, made at once: what they have in common is written once."""
    client, *between, _, _, _ = [f"{name}={value}" for name, value in _fields(common, 0.0) if value]
    name, middle = client.partition("=")[0], " ".join(between)
    begin = f"{_timestamp(at)}\tinfo\taccess\tconnection complete\t{name}="
    lines = []
    for one in each:
        mine, theirs = (one.received, one.sent) if common.inbound else (one.sent, one.received)
        ms = round((one.closed_ns - one.opened_ns) / 1e6)
        lines.append(f'{begin}{one.client} {middle} bytes_sent={mine} bytes_recv={theirs} duration="{ms}ms"\n')
    return lines


def _fields(connection: Connection, seconds: float | None) -> Iterator[tuple[str, str]]:
    source, destination = connection.source, connection.destination
    tunnelled = connection.hbone is not None
    attested = tunnelled or connection.direct
    yield "src.addr", str(connection.client)
    if source is not None:
        yield "src.workload", _quoted(source.name)
        yield "src.namespace", _quoted(source.namespace)
    if attested and connection.source_identity is not None:
        yield "src.identity", _quoted(str(connection.source_identity))
    if source is not None:
        yield "src.cluster", _quoted(source.cluster_id)
    # Of a tunnelled connection: where the packets go, and what the CONNECT asks for.
    yield "dst.addr", str(connection.hbone or connection.upstream or connection.asked)
    if tunnelled and connection.upstream is not None:
        yield "dst.hbone_addr", str(connection.upstream)
    if connection.service is not None:
        yield "dst.service", _quoted(connection.service.hostname)
    if destination is not None:
        yield "dst.workload", _quoted(destination.name)
        yield "dst.namespace", _quoted(destination.namespace)
    if attested and connection.destination_identity is not None:
        yield "dst.identity", _quoted(str(connection.destination_identity))
    if destination is not None:
        yield "dst.cluster", _quoted(destination.cluster_id)
    yield "direction", '"inbound"' if connection.inbound else '"outbound"'
    if seconds is not None:
        mine, theirs = connection.sent, connection.received
        if connection.inbound:
            mine, theirs = theirs, mine
        yield "bytes_sent", str(mine)
        yield "bytes_recv", str(theirs)
        yield "duration", f'"{round(seconds * 1000)}ms"'
    if connection.reason is not Reason.OK:
        yield "error", _quoted(error_text(connection.reason, connection.detail))


def error_text(reason: Reason, detail: str) -> str:
    """The reason's name, what happened, and what it means: `CONNECT_FAILED: refused (maybe a NetworkPolicy …)`."""
    said = f"{reason.name}: {detail}" if detail else reason.name
    return f"{said} ({reason.hint})" if reason.hint else said


def _quoted(text: str) -> str:
    # Names and details may come from a peer: quotes and control characters must not make a second field or line.
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else json.dumps(text)


def _timestamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
