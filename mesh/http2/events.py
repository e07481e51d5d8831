"""What a connection reports. Order is the order of the wire; StreamClosed is the last word about a stream."""

from __future__ import annotations

from dataclasses import dataclass

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class HeadersReceived:
    """A whole header block: a request (server), a response (client), or trailers (both). Field names are lower case.

    With end_stream a StreamEnded follows.
    """

    stream_id: int
    headers: Headers
    end_stream: bool = False
    informational: bool = False  # a 1xx response: the final one is still to come
    trailers: bool = False


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Payload, never empty; neighbouring frames of one stream come as one. Give its length back with consume()."""

    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer finished its half (END_STREAM), on DATA or on headers; exactly once unless reset."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The stream was cut; what was buffered for it is dropped. Not reported for our own reset().

    by_peer: its RST_STREAM. Otherwise we cut it because the peer broke a rule (error_code is what it was told), or,
    with REFUSED_STREAM, the request was never processed (GOAWAY, RFC 9113 6.8) and may be sent on another connection.
    """

    stream_id: int
    error_code: int
    by_peer: bool


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """Both halves are over, or it was reset. The id means nothing to the connection any more."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class WindowOpened:
    """The stream's outbound buffer was above a quarter of its limit and is not any more: the producer may resume."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class PingAck:
    opaque: bytes  # the 8 bytes given to ping()


@dataclass(frozen=True, slots=True)
class SettingsReceived:
    """The peer's SETTINGS are in force: see peer_settings, available_streams."""


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """Open no more streams here. Streams of ours above last_stream_id are reset with REFUSED_STREAM right after."""

    last_stream_id: int
    error_code: int
    debug: bytes


@dataclass(frozen=True, slots=True)
class Terminated:
    """The peer broke the protocol or a limit (or memory ran out): the last event of a connection.

    Send what pull() still has (it ends with GOAWAY), then close. Streams that were open get no event of their own.
    """

    error_code: int
    detail: str


Event = (
    HeadersReceived
    | DataReceived
    | StreamEnded
    | StreamReset
    | StreamClosed
    | WindowOpened
    | PingAck
    | SettingsReceived
    | GoAwayReceived
    | Terminated
)
