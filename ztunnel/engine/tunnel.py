"""One tunnel connection of either role: TCP, TLS and HTTP/2 put together, and its streams.

Stepped by readiness: what arrives is decrypted, parsed and handed to the streams; what the streams want sent is framed
only as fast as the socket takes it, so that bytes wait per stream and no stream waits behind another one's. Reading
never waits for writing (two peers doing that would wait for each other); what a peer could make us queue without
reading it is bounded by `mesh.http2`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from mesh import http2
from mesh.identity import SpiffeId
from mesh.model import SocketAddress
from mesh.reason import Reason
from ztunnel.engine.endpoint import Lost
from ztunnel.engine.limits import Limits
from ztunnel.engine.stream import CANCEL, CONNECT_ERROR, NO_ERROR, REFUSED_STREAM, Stream, reset_by_peer
from ztunnel.engine.tcp import TcpEndpoint
from ztunnel.engine.tls import Session

_log = logging.getLogger(__name__)
_READ = 64 << 10
_READS_PER_STEP = 8
_PULL = 64 << 10
_PULLS_PER_STEP = 8
_LINGER = 1.0  # seconds for the last words (alert, GOAWAY) to be read

Header = tuple[str, str]


class Owner(Protocol):
    """Whoever made the tunnel: a pod's tunnel server, or the pool."""

    def verify(self, uris: tuple[str, ...]) -> SpiffeId:
        """The peer's identity from its certificate's URI SANs; Lost if it is not welcome."""

    def ready(self, tunnel: Tunnel) -> None:
        """The handshake is complete and the peer verified."""

    def offered(self, tunnel: Tunnel, stream: Stream, headers: Sequence[Header]) -> None:
        """Server role: a request. Pseudo headers included."""

    def freed(self, tunnel: Tunnel) -> None:
        """A stream ended: there may be room, or nothing left."""

    def over(self, tunnel: Tunnel, lost: Lost) -> None:
        """The connection is gone; its streams know. Called once."""


class Tunnel:
    """`peer` is set once `ready`; `retired` means that no new stream shall use it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: TcpEndpoint,
        session: Session,
        owner: Owner,
        limits: Limits,
        *,
        server: bool,
        address: SocketAddress,
        local: SocketAddress | None = None,
    ) -> None:
        self._loop, self._transport, self._session, self._owner = loop, transport, session, owner
        self._limits, self._server = limits, server
        self.address, self.local = address, local  # of the peer; what the peer dialled
        self.peer: SpiffeId | None = None
        self.retired = False
        self._http: http2.Connection | None = None
        self._streams: dict[int, Stream] = {}
        self._held: set[Stream] = set()  # not let go yet by their relays; closed ones included
        self._refused: list[Stream] = []
        self._awaited: set[Stream] = set()  # whose relays want to hear that there is room, or that all is framed
        self._changed: dict[Stream, None] = {}
        self._growth = 0
        self._heard = False  # the peer's SETTINGS: it has accepted our certificate
        self._over = self._announced = False
        self._flushing: asyncio.Handle | None = None
        self._stepping: asyncio.Handle | None = None
        self._ping_sent: float | None = None
        self._pings = 0
        timeout = Lost(Reason.TLS_FAILED, f"no TLS handshake within {limits.handshake_timeout:g} s")
        self._timer: asyncio.Handle = loop.call_later(limits.handshake_timeout, self._lose, timeout)
        transport.on_change = self._step
        self._stepping = loop.call_soon(self._step)

    # What the owner asks

    @property
    def streams(self) -> int:
        """Live streams."""
        return len(self._streams)

    @property
    def idle(self) -> bool:
        """No stream, nor a relay that still has bytes of one."""
        return not self._held and not self._streams

    @property
    def backlog(self) -> int:
        """Bytes accepted for sending and not with the kernel yet."""
        if self._http is None:
            return 0
        return self._transport.backlog + sum(self._http.buffered(number) for number in self._streams)

    @property
    def vacancies(self) -> int:
        """Streams that can be opened now (client role)."""
        if self._http is None or self._over or self.retired:
            return 0
        return min(self._limits.streams_opened - len(self._streams), self._http.available_streams)

    def open(self, headers: Sequence[Header]) -> Stream:
        """Send a request; only with `vacancies`. `answered` of the stream hears the status."""
        assert self._http is not None
        number = self._http.request(_encoded(headers))
        stream = Stream(self, number, self._limits.stream_window)
        self._streams[number] = stream
        self._held.add(stream)
        self._schedule_flush()
        return stream

    def announce_end(self) -> None:
        """Server role: tell the peer to open no more streams here, then, after a while, insist (RFC 9113 §6.8)."""
        if self._http is None:
            self._lose(Lost(Reason.DRAINED, "the agent is stopping"))
        elif not self.retired and not self._announced:
            self._announced = True
            self._http.shutdown_notice()
            self._schedule_flush()
            self._loop.call_later(self._limits.goaway_grace, self._insist)

    def retire(self) -> None:
        """Client role: no new streams; ends with the last one."""
        self.retired = True
        if self.idle:
            self.end_gracefully()

    def end_gracefully(self) -> None:
        """GOAWAY, close_notify, FIN. Streams that are left end with TUNNEL_LOST."""
        if self._http is not None and not self._over:
            self._http.goaway(NO_ERROR)
        self._lose(Lost(Reason.TUNNEL_LOST, "the tunnel was closed"))

    def lose(self, reason: Reason, detail: str) -> None:
        """End it at once with an error, streams included."""
        self._lose(Lost(reason, detail))

    # What its streams ask

    def stream_room(self, stream: Stream) -> bool:
        room = self._buffered(stream) < self._limits.stream_buffer
        if not room:
            self._awaited.add(stream)
        return room

    def stream_flushed(self, stream: Stream) -> bool:
        return self._buffered(stream) == 0

    def send(self, stream: Stream, data: bytes) -> None:
        self._command(stream, lambda http: http.write(stream.id, data))

    def end(self, stream: Stream) -> None:
        self._awaited.add(stream)
        self._command(stream, lambda http: http.end(stream.id))

    def respond(self, stream: Stream, status: int, headers: Sequence[Header]) -> None:
        fields = _encoded([(":status", str(status)), *headers])
        self._command(stream, lambda http: http.respond(stream.id, fields))

    def refuse(self, stream: Stream, status: int) -> None:
        """A response without body; once it is framed, no more is wanted of the request (RFC 9113 §8.1)."""
        fields = _encoded([(":status", str(status))])
        self._command(stream, lambda http: http.respond(stream.id, fields, end_stream=True))
        if stream.closed:
            self.let_go(stream)
        else:
            self._refused.append(stream)

    def abort(self, stream: Stream) -> None:
        """RFC 9113 §8.5: an error of the TCP connection behind a CONNECT is CONNECT_ERROR."""
        if not stream.closed:
            self._reset(stream, CONNECT_ERROR if self._server else CANCEL)
        self.let_go(stream)

    def let_go(self, stream: Stream) -> None:
        self._awaited.discard(stream)
        if stream in self._held:
            self._held.discard(stream)
            self._growth -= stream.window - self._limits.stream_window
            self._loop.call_soon(self._tell_freed)

    def grow(self, stream: Stream) -> int:
        """Double the stream's window if the tunnel's budget has that much; the window it has now."""
        spare = self._limits.window_budget - self._growth
        window = min(stream.window * 2, stream.window + spare, self._limits.stream_window_max)
        if window > stream.window and self._http is not None:
            self._growth += window - stream.window
            self._http.grow(stream.id, window)
            return window
        return stream.window

    def consume(self, stream: Stream, count: int) -> None:
        if self._http is not None and not stream.closed:
            self._http.consume(stream.id, count)
            self._schedule_flush()

    # Inside

    def _command(self, stream: Stream, command: Callable[[http2.Connection], None]) -> None:
        """Nothing happens on a stream that is gone: its own `lost` tells, or will."""
        if self._http is None or stream.closed:
            return
        try:
            command(self._http)
        except http2.StreamGone:
            stream.fail(Lost(Reason.RESET_BY_PEER, "the stream is gone"))
            self._changed[stream] = None
        self._schedule_flush()

    def _buffered(self, stream: Stream) -> int:
        return self._http.buffered(stream.id) if self._http is not None and stream.id in self._streams else 0

    def _reset(self, stream: Stream, code: int) -> None:
        if self._http is not None and not self._over and stream.id in self._streams:
            self._http.reset(stream.id, code)
            self._schedule_flush()
        self._streams.pop(stream.id, None)
        stream.gone()

    def _tell_freed(self) -> None:
        if not self._over:
            self._owner.freed(self)

    def _insist(self) -> None:
        if self._http is not None and not self._over:
            self.retired = True
            self._http.goaway(NO_ERROR)
            self._schedule_flush()
            self._owner.freed(self)

    def _step(self) -> None:
        self._stepping = None
        if self._over:
            return
        try:
            more = self._receive()
            self._flush()
        except Lost as lost:
            self._lose(self._explained(lost))
        else:
            if more and self._stepping is None:
                self._stepping = self._loop.call_soon(self._step)
        self._tell_changed()

    def _receive(self) -> bool:
        """Read what there is, within bounds; True if there may be more right away."""
        for _ in range(_READS_PER_STEP):
            ciphertext = self._transport.read(_READ)
            if ciphertext is None:
                return False
            if not ciphertext:
                raise Lost(Reason.TUNNEL_LOST, "the peer closed the connection")
            self._session.feed(ciphertext)
            if self._http is None and not self._handshake():
                continue
            self._parse()
        return True

    def _handshake(self) -> bool:
        complete = False
        try:
            complete = self._session.handshake()
        finally:
            self._send_ciphertext()
        if not complete:
            return False
        self.peer = self._owner.verify(self._session.peer_uris())
        limits = self._limits
        self._http = http2.Connection(
            client=not self._server,
            settings=_settings(limits, self._server),
            limits=http2.Limits(
                max_outbound_buffer=limits.stream_buffer + (64 << 10),  # room for a relay's last chunk
                resets=http2.Rate(burst=limits.resets, per_second=limits.resets_per_second),
            ),
        )
        self._timer.cancel()
        self._timer = self._loop.call_later(limits.ping_interval, self._ping)
        self._owner.ready(self)
        return True

    def _parse(self) -> None:
        assert self._http is not None
        while True:
            parts: list[bytes] = []
            size = 0
            while size < _READ:
                plaintext = self._session.read()
                if not plaintext:
                    break
                parts.append(plaintext)
                size += len(plaintext)
            if parts:
                self._handle_all(self._http.receive(b"".join(parts), self._loop.time()))
            if plaintext == b"":
                raise Lost(Reason.TUNNEL_LOST, "the peer closed the TLS session")
            if plaintext is None:
                return

    def _handle_all(self, events: Sequence[http2.Event]) -> None:
        for event in events:
            self._handle(event)

    def _handle(self, event: http2.Event) -> None:
        match event:
            case http2.DataReceived():
                self._of(event.stream_id, lambda stream: stream.received(event.data))
            case http2.HeadersReceived():
                self._headers(event)
            case http2.StreamEnded():
                self._of(event.stream_id, Stream.ended)
            case http2.StreamReset():
                self._of(event.stream_id, lambda stream: self._fail(stream, event.error_code))
            case http2.StreamClosed():
                self._closed(event.stream_id)
            case http2.WindowOpened():
                self._of(event.stream_id, lambda stream: None)
            case http2.PingAck():
                self._ping_sent = None
            case http2.SettingsReceived():
                self._heard = True
                self._loop.call_soon(self._tell_freed)
            case http2.GoAwayReceived():
                self.retired = True
                self._loop.call_soon(self._tell_freed)
            case http2.Terminated():
                raise Lost(Reason.HTTP2_PROTOCOL, f"{event.detail} (error {event.error_code:#x})")
            case _:
                pass

    def _of(self, number: int, action: Callable[[Stream], None]) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            action(stream)
            self._changed[stream] = None

    def _fail(self, stream: Stream, code: int) -> None:
        stream.unprocessed = code == REFUSED_STREAM
        stream.fail(reset_by_peer(code))

    def _closed(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.gone()
            self._changed[stream] = None
            self._loop.call_soon(self._tell_freed)

    def _headers(self, event: http2.HeadersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if self._server:
            if stream is None:
                self._offer(event)
        elif stream is not None and not event.informational and not event.trailers:
            stream.answered(int(dict(event.headers)[b":status"]))
            self._changed[stream] = None

    def _offer(self, event: http2.HeadersReceived) -> None:
        assert self._http is not None
        stream = Stream(self, event.stream_id, self._limits.stream_window)
        if len(self._held) >= 2 * self._limits.streams_accepted:  # closed ones with undelivered bytes count too
            self._http.reset(event.stream_id, REFUSED_STREAM)
            return
        self._streams[event.stream_id] = stream
        self._held.add(stream)
        self._changed[stream] = None
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
        self._owner.offered(self, stream, headers)

    def _tell_changed(self) -> None:
        while self._changed:
            stream, _ = self._changed.popitem()
            try:
                stream.on_change()
            except Exception:
                _log.exception("a stream of the tunnel with %s failed", self.address)

    def _schedule_flush(self) -> None:
        if self._flushing is None and not self._over:
            self._flushing = self._loop.call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._flushing = None
        if self._over:
            return
        try:
            self._flush()
        except Lost as lost:
            self._lose(self._explained(lost))
        self._tell_changed()

    def _flush(self) -> None:
        """Frame, encrypt and send as much as the socket takes, within bounds."""
        if self._http is None:
            return
        for _ in range(_PULLS_PER_STEP):
            if not self._transport.room or self._transport.lost is not None:
                return
            data = self._http.pull(_PULL)
            self._handle_all(self._http.events())
            if data:
                self._session.write(data)
                self._send_ciphertext()
                self._find_room()
            elif self._refused:
                self._end_refused()
            else:
                return
        self._schedule_flush()

    def _send_ciphertext(self) -> None:
        try:
            self._transport.write(self._session.outgoing())
        except Lost:  # to be found by reading, after what the peer said before
            if self._stepping is None:
                self._stepping = self._loop.call_soon(self._step)

    def _find_room(self) -> None:
        """Frames were made: streams that waited for room may go on, ended ones be complete."""
        for stream in list(self._awaited):
            if stream.flushed or self._buffered(stream) < self._limits.stream_buffer:
                self._awaited.discard(stream)
                self._changed[stream] = None

    def _end_refused(self) -> None:
        assert self._http is not None
        for stream in self._refused:
            if not stream.closed:
                self._reset(stream, NO_ERROR)
            self.let_go(stream)
        self._refused.clear()

    def _ping(self) -> None:
        now = self._loop.time()
        if self._ping_sent is not None and now - self._ping_sent >= self._limits.ping_timeout:
            self._lose(Lost(Reason.TUNNEL_LOST, f"no answer to a PING within {self._limits.ping_timeout:g} s"))
            self._tell_changed()
            return
        if self._ping_sent is None and self._http is not None:
            self._ping_sent = now
            self._pings += 1
            self._http.ping(self._pings.to_bytes(8, "big"))
            self._schedule_flush()
        self._timer = self._loop.call_later(self._limits.ping_interval, self._ping)

    def _explained(self, lost: Lost) -> Lost:
        """What an error of the transport means at this point of the connection's life."""
        if lost.reason in (Reason.HTTP2_PROTOCOL, Reason.PEER_IDENTITY):
            return lost
        if self._http is None:
            failed = lost.reason is Reason.TLS_FAILED
            return lost if failed else Lost(Reason.TLS_FAILED, f"in the handshake: {lost.detail}")
        if not self._server and not self._heard:
            return Lost(Reason.TLS_FAILED, f"after the handshake; maybe our certificate was refused: {lost.detail}")
        return Lost(Reason.TUNNEL_LOST, lost.detail)

    def _lose(self, lost: Lost) -> None:
        if self._over:
            return
        self._over = self.retired = True
        for handle in (self._timer, self._flushing, self._stepping):
            if handle is not None:
                handle.cancel()
        self._last_words()
        for stream in list(self._streams.values()):
            stream.fail(lost)
            self._changed[stream] = None
        self._streams.clear()
        self._awaited.clear()
        self._owner.over(self, lost)
        self._loop.call_soon(self._tell_changed)

    def _last_words(self) -> None:
        """GOAWAY or alert, as far as the socket takes it; then close once the peer has, or soon."""
        transport = self._transport
        try:
            for _ in range(_PULLS_PER_STEP):
                data = self._http.pull(_PULL) if self._http is not None and transport.room else b""
                if not data:
                    break
                self._session.write(data)
                transport.write(self._session.outgoing())
            self._session.close_notify()
            transport.write(self._session.outgoing())
        except Lost:
            transport.abort()
            return
        transport.linger(self._loop, _LINGER)


def _settings(limits: Limits, server: bool) -> http2.Settings:
    return http2.Settings(
        initial_window_size=limits.stream_window,
        max_frame_size=limits.frame,
        max_header_list_size=limits.request_headers if server else limits.response_headers,
        max_concurrent_streams=limits.streams_accepted if server else 0,
        enable_push=False,
        connection_window=limits.connection_window,
    )


def _encoded(headers: Sequence[Header]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
