"""One CONNECT stream of a tunnel as an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mesh.reason import Reason
from ztunnel.engine.endpoint import Lost

if TYPE_CHECKING:
    from ztunnel.engine.mux import Mux

NO_ERROR, REFUSED_STREAM, CANCEL, CONNECT_ERROR = 0x0, 0x7, 0x8, 0xA  # RFC 9113 §7


class Stream:
    """Bytes received wait here, never more than the stream's window; bytes to send wait in the HTTP/2 connection, at
    most `stream_buffer`. The window is returned as the relay takes bytes, which it does only when the local socket has
    room, and grows while that keeps up.
    """

    __slots__ = (
        "_closed",
        "_ended",
        "_finished",
        "_inbound",
        "_lost",
        "_mux",
        "_since_growth",
        "answered",
        "id",
        "on_change",
        "unprocessed",
        "window",
    )

    def __init__(self, mux: Mux, stream_id: int, window: int) -> None:
        self._mux = mux
        self.id = stream_id
        self.window = window
        self.on_change: Callable[[], None] = lambda: None
        self.answered: Callable[[int], None] = lambda _status: None  # client side: the final status of the CONNECT
        self.unprocessed = False  # the peer says it has not looked at the request: safe to try elsewhere
        self._inbound = bytearray()
        self._ended = self._finished = self._closed = False
        self._lost: Lost | None = None
        self._since_growth = 0

    @property
    def lost(self) -> Lost | None:
        return self._lost

    @property
    def room(self) -> bool:
        return self._closed or self._mux.room(self)

    @property
    def flushed(self) -> bool:
        return self._finished and (self._closed or self._mux.flushed(self))

    @property
    def closed(self) -> bool:
        """HTTP/2 is done with it; bytes received may still wait here."""
        return self._closed

    def read(self, limit: int) -> bytes | None:
        if self._inbound:
            data = bytes(self._inbound[:limit])
            del self._inbound[:limit]
            self._return_window(len(data))
            return data
        if self._lost is not None:
            raise self._lost
        return b"" if self._ended else None

    def write(self, data: bytes) -> None:
        if self._lost is not None:
            raise self._lost
        self._mux.send(self, data)

    def finish(self) -> None:
        if not self._finished and self._lost is None:
            self._finished = True
            self._mux.finish(self)

    def abort(self) -> None:
        self._inbound.clear()
        self._mux.abort(self)

    def close(self) -> None:
        self._mux.let_go(self)

    def accept(self, headers: Sequence[tuple[str, str]]) -> None:
        self._mux.respond(self, 200, headers)

    def refuse(self, status: int) -> None:
        self._inbound.clear()
        self._mux.refuse(self, status)

    def _return_window(self, taken: int) -> None:
        if self._closed or self._ended or self._lost is not None:
            return
        self._since_growth += taken
        if self._since_growth >= self.window and not self._inbound:
            self._since_growth = 0
            self.window = self._mux.grow(self)
        self._mux.consume(self, taken)

    # From the mux, as frames arrive. It calls `on_change` once per batch afterwards.

    def received(self, data: bytes) -> None:
        self._inbound += data

    def ended(self) -> None:
        self._ended = True

    def gone(self) -> None:
        """Both sides have ended, or it was reset."""
        self._closed = True

    def fail(self, lost: Lost) -> None:
        self._closed = True
        if self._lost is None:
            self._lost = lost


def reset_by_peer(code: int, *, by_peer: bool) -> Lost:
    """The stream was cut: by the peer, or by HTTP/2 on our side because of what the peer did."""
    names = {NO_ERROR: "NO_ERROR", REFUSED_STREAM: "REFUSED_STREAM", CANCEL: "CANCEL", CONNECT_ERROR: "CONNECT_ERROR"}
    name = names.get(code, f"error {code:#x}")
    if by_peer or code == REFUSED_STREAM:
        return Lost(Reason.RESET_BY_PEER, f"the peer reset the stream: {name}")
    return Lost(Reason.HTTP2_PROTOCOL, f"the stream was reset for a violation of the peer: {name}")
