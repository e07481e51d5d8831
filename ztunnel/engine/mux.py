"""The streams of one tunnel over HTTP/2, without I/O: bytes in and out on one side, streams on the other.

What streams want sent is framed only when the connection pulls, so that bytes wait per stream and no stream waits
behind another one's. Streams that changed hear of it once per batch, from `tell_changed`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from mesh import http2
from mesh.reason import Reason
from ztunnel.engine.endpoint import Lost
from ztunnel.engine.limits import Limits
from ztunnel.engine.stream import CANCEL, CONNECT_ERROR, NO_ERROR, REFUSED_STREAM, Stream, reset_by_peer

_log = logging.getLogger(__name__)
_RELAY_CHUNK = 64 << 10  # a relay's last write may exceed `stream_buffer` by so much

Header = tuple[str, str]


class Mux:
    """`wake`: there may be something to pull. `freed`: a stream was let go or the peer allows more. `offered`: a
    request (server role)."""

    __slots__ = (
        "_awaited",
        "_changed",
        "_freed",
        "_growth",
        "_held",
        "_http",
        "_limits",
        "_offered",
        "_refused",
        "_server",
        "_streams",
        "_wake",
        "going_away",
        "heard",
        "ping_sent",
    )

    def __init__(
        self,
        limits: Limits,
        *,
        server: bool,
        wake: Callable[[], None],
        freed: Callable[[], None],
        offered: Callable[[Stream, Sequence[Header]], None],
    ) -> None:
        self._limits, self._server = limits, server
        self._wake, self._freed, self._offered = wake, freed, offered
        self._http = http2.Connection(
            client=not server,
            settings=_settings(limits, server),
            limits=http2.Limits(
                max_outbound_buffer=limits.stream_buffer + _RELAY_CHUNK,
                resets=http2.Rate(burst=limits.resets, per_second=limits.resets_per_second),
            ),
        )
        self.heard = False  # the peer's SETTINGS: it has accepted our certificate
        self.going_away = False  # the peer's GOAWAY
        self.ping_sent: float | None = None  # when, while its answer is awaited
        self._streams: dict[int, Stream] = {}  # live ones
        self._held: set[Stream] = set()  # not let go yet by their relays; closed ones with undelivered bytes included
        self._refused: list[Stream] = []
        self._awaited: set[Stream] = set()  # whose relays want to hear that there is room, or that all is framed
        self._changed: dict[Stream, None] = {}
        self._growth = 0

    # The connection's side

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
        """Bytes accepted for sending and not framed."""
        return sum(self._http.buffered(number) for number in self._streams)

    @property
    def vacancies(self) -> int:
        """Streams that can be opened now (client role)."""
        return min(self._limits.streams_opened - len(self._streams), self._http.available_streams)

    def receive(self, data: bytes, now: float) -> None:
        """Lost(HTTP2_PROTOCOL) when the peer broke the protocol or a limit; `pull` then has the GOAWAY."""
        self._handle_all(self._http.receive(data, now))

    def pull(self, limit: int) -> bytes:
        """Up to `limit` bytes to send; empty when there is nothing, or no window for it."""
        while True:
            data = self._http.pull(limit)
            self._handle_all(self._http.events())
            if data:
                self._find_room()
                return data
            if not self._refused:
                return b""
            self._end_refused()

    def open(self, headers: Sequence[Header]) -> Stream:
        """Send a request; only with `vacancies`. `answered` of the stream hears the status."""
        stream = Stream(self, self._http.request(_encoded(headers)), self._limits.stream_window)
        self._streams[stream.id] = stream
        self._held.add(stream)
        self._wake()
        return stream

    def ping(self, opaque: bytes, now: float) -> None:
        self._http.ping(opaque)
        self.ping_sent = now
        self._wake()

    def announce_end(self) -> None:
        """Server role: ask the peer to open no more streams (GOAWAY with the highest id, RFC 9113 §6.8)."""
        self._http.shutdown_notice()
        self._wake()

    def end(self) -> None:
        """GOAWAY: later requests are ignored, open streams go on."""
        self._http.goaway(NO_ERROR)
        self._wake()

    def fail(self, lost: Lost) -> None:
        """The connection is gone: every live stream with it."""
        for stream in self._streams.values():
            stream.fail(lost)
            self._changed[stream] = None
        self._streams.clear()
        self._awaited.clear()

    def tell_changed(self) -> None:
        while self._changed:
            stream, _ = self._changed.popitem()
            try:
                stream.on_change()
            except Exception:
                _log.exception("stream %d failed", stream.id)

    # The streams' side

    def room(self, stream: Stream) -> bool:
        if self._http.buffered(stream.id) < self._limits.stream_buffer:
            return True
        self._awaited.add(stream)
        return False

    def flushed(self, stream: Stream) -> bool:
        return self._http.buffered(stream.id) == 0

    def send(self, stream: Stream, data: bytes) -> None:
        self._command(stream, lambda: self._http.write(stream.id, data))

    def finish(self, stream: Stream) -> None:
        self._awaited.add(stream)
        self._command(stream, lambda: self._http.end(stream.id))

    def respond(self, stream: Stream, status: int, headers: Sequence[Header]) -> None:
        fields = _encoded([(":status", str(status)), *headers])
        self._command(stream, lambda: self._http.respond(stream.id, fields))

    def refuse(self, stream: Stream, status: int) -> None:
        """A response without body; once it is framed, no more is wanted of the request (RFC 9113 §8.1)."""
        fields = _encoded([(":status", str(status))])
        self._command(stream, lambda: self._http.respond(stream.id, fields, end_stream=True))
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
        """Its relay is through with it. A live one may still have its END_STREAM to send."""
        self._awaited.discard(stream)
        if stream in self._held:
            self._held.discard(stream)
            self._growth -= stream.window - self._limits.stream_window
            self._freed()

    def grow(self, stream: Stream) -> int:
        """Double the stream's window if the tunnel's budget has that much; the window it has now."""
        spare = self._limits.window_budget - self._growth
        window = min(stream.window * 2, stream.window + spare, self._limits.stream_window_max)
        if window <= stream.window:
            return stream.window
        self._growth += window - stream.window
        self._http.grow(stream.id, window)
        return window

    def consume(self, stream: Stream, count: int) -> None:
        if not stream.closed:
            self._http.consume(stream.id, count)
            self._wake()

    # Inside

    def _command(self, stream: Stream, command: Callable[[], None]) -> None:
        """Nothing happens on a stream that is gone: its own `lost` tells, or will."""
        if stream.closed:
            return
        try:
            command()
        except http2.StreamGone:
            stream.fail(Lost(Reason.RESET_BY_PEER, "the stream is gone"))
            self._changed[stream] = None
        self._wake()

    def _reset(self, stream: Stream, code: int) -> None:
        if self._streams.pop(stream.id, None) is not None:
            self._http.reset(stream.id, code)
            self._wake()
        stream.gone()

    def _end_refused(self) -> None:
        refused, self._refused = self._refused, []
        for stream in refused:
            if not stream.closed:
                self._reset(stream, NO_ERROR)
            self.let_go(stream)

    def _find_room(self) -> None:
        """Frames were made: streams that waited for room may go on, ended ones be complete."""
        for stream in list(self._awaited):
            if stream.flushed or self._http.buffered(stream.id) < self._limits.stream_buffer:
                self._awaited.discard(stream)
                self._changed[stream] = None

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
                self._of(event.stream_id, lambda stream: self._fail(stream, event))
            case http2.StreamClosed():
                self._closed(event.stream_id)
            case http2.PingAck():
                self.ping_sent = None
            case http2.SettingsReceived():
                self.heard = True
                self._freed()
            case http2.GoAwayReceived():
                self.going_away = True
                self._freed()
            case http2.Terminated():
                raise Lost(Reason.HTTP2_PROTOCOL, f"{event.detail} (error {event.error_code:#x})")
            case _:
                pass

    def _of(self, number: int, action: Callable[[Stream], None]) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            action(stream)
            self._changed[stream] = None

    def _fail(self, stream: Stream, event: http2.StreamReset) -> None:
        stream.unprocessed = event.error_code == REFUSED_STREAM
        stream.fail(reset_by_peer(event.error_code, by_peer=event.by_peer))

    def _closed(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.gone()
            self._changed[stream] = None
            self._freed()

    def _headers(self, event: http2.HeadersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if self._server:
            if stream is None:
                self._offer(event)
        elif stream is not None and not event.informational and not event.trailers:
            stream.answered(int(dict(event.headers)[b":status"]))
            self._changed[stream] = None

    def _offer(self, event: http2.HeadersReceived) -> None:
        if len(self._held) >= 2 * self._limits.streams_accepted:
            self._http.reset(event.stream_id, REFUSED_STREAM)
            return
        stream = Stream(self, event.stream_id, self._limits.stream_window)
        self._streams[event.stream_id] = stream
        self._held.add(stream)
        self._offered(stream, [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers])


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
