from collections.abc import Mapping, Sequence

from mesh.http2.events import Event
from mesh.http2.settings import Limits, Settings

Bytes = bytes | bytearray | memoryview

class Connection:
    """One side of an HTTP/2 connection (RFC 9113) without any I/O. Not thread-safe.

    Its first bytes (preface, SETTINGS, connection window) are there to pull() from the start. Misuse raises
    LocalProtocolError and changes nothing; a misbehaving peer never raises, it becomes StreamReset or Terminated.
    """

    client: bool
    settings: Settings
    limits: Limits

    def __init__(self, *, client: bool, settings: Settings, limits: Limits) -> None: ...

    # bytes and events
    def receive(self, data: Bytes, now: float) -> list[Event]:
        """Take what the peer sent; `now` in seconds of any clock that does not go back.

        Answers everything that happened since the last receive() or events(). The connection's window is given back
        at once, streams' windows by consume(). After Terminated, input is ignored. Call pull() afterwards.
        """

    def events(self) -> list[Event]:
        """What pull() and commands caused: WindowOpened, StreamClosed, StreamReset. Call it after pull()."""

    def pull(self, limit: int | None = None) -> bytes:
        """Bytes to send now, at most `limit`; b"" if there is nothing or no window for it.

        Streams take turns of limits.turn bytes, in DATA frames of at most limits.max_data_frame.
        """

    # streams
    def request(self, headers: Sequence[tuple[bytes, bytes]], end_stream: bool = False) -> int:
        """Client: open a stream; answers its id. LocalProtocolError when available_streams is 0."""

    def respond(self, stream_id: int, headers: Sequence[tuple[bytes, bytes]], end_stream: bool = False) -> None:
        """Server: the final response, or any number of 1xx before it."""

    def write(self, stream_id: int, data: Bytes) -> None:
        """Queue a copy of `data`. LocalProtocolError when room() is less; StreamGone when the stream is over."""

    def end(self, stream_id: int) -> None:
        """END_STREAM after what is queued; the other direction goes on. Like data, it waits for windows to open."""

    def trailers(self, stream_id: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """end() with trailing headers."""

    def reset(self, stream_id: int, error_code: int) -> None:
        """RST_STREAM; what is queued is dropped. No effect on a stream that is gone."""

    def consume(self, stream_id: int, length: int) -> None:
        """The application took so many received bytes: the peer may send more. No effect on a stream that is gone."""

    def grow(self, stream_id: int, window: int) -> None:
        """Raise the stream's receive window to `window` bytes (it starts with settings.initial_window_size)."""

    def buffered(self, stream_id: int) -> int:
        """Bytes written and not yet framed; 0 for a stream that is gone."""

    def room(self, stream_id: int) -> int:
        """How many bytes write() accepts now; 0 if it would raise."""

    # the connection
    def ping(self, opaque: bytes) -> None:
        """PING with these 8 bytes; PingAck brings them back."""

    def shutdown_notice(self) -> None:
        """Server: graceful GOAWAY (last stream 2^31-1). Requests in flight are still served; goaway() follows later."""

    def goaway(self, error_code: int = 0, debug: bytes = b"") -> None:
        """GOAWAY naming the last stream seen: later ones are ignored; when the open ones have ended, it is closed."""

    def terminate(self, error_code: int = 0) -> None:
        """GOAWAY, and nothing is received or sent after it."""

    @property
    def want_read(self) -> bool: ...
    @property
    def want_write(self) -> bool:
        """pull() has something, or once in a while finds that a stream's window is used up."""

    @property
    def closed(self) -> bool:
        """Neither reading nor writing can bring anything more: close the transport."""

    @property
    def terminated(self) -> bool: ...
    @property
    def open_streams(self) -> int: ...
    @property
    def available_streams(self) -> int:
        """Client: requests that may be opened now (100 less the open ones until the peer's SETTINGS are known)."""

    @property
    def peer_settings(self) -> Mapping[str, int]:
        """By RFC 9113 6.5.2 name in lower case, e.g. "max_concurrent_streams"; defaults until SettingsReceived."""

    def remote_window(self, stream_id: int = 0) -> int:
        """Bytes the peer lets us send: on a stream, or (0) on the connection."""

    def local_window(self, stream_id: int = 0) -> int:
        """Size of the window we opened: of a stream, or (0) of the connection."""
