"""One end of a relay: a socket or a stream of a tunnel, seen alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mesh.reason import Reason


class Lost(Exception):
    """An endpoint, or a way to one, ended in an error; never a clean end."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.name}: {detail}")
        self.reason = reason
        self.detail = detail


class Endpoint(Protocol):
    """A duplex byte stream with half-close. No method blocks; `on_change` is called, never from within one of these
    methods, whenever reading, room, or the fate of the endpoint may have changed."""

    on_change: Callable[[], None]

    @property
    def lost(self) -> Lost | None:
        """The error, once there is one. What arrived before it can still be read."""

    @property
    def room(self) -> bool:
        """Another `write` is welcome."""

    @property
    def flushed(self) -> bool:
        """`finish` was called and everything before it has left this process' own buffers."""

    def read(self, limit: int) -> bytes | None:
        """Up to `limit` bytes; None if there are none now; empty at the clean end. Lost after an error."""

    def write(self, data: bytes) -> None:
        """Take all of `data`; only while there is `room`. Lost after an error."""

    def finish(self) -> None:
        """No more will be written: FIN or END_STREAM after what is buffered. Reading goes on."""

    def abort(self) -> None:
        """End it with an error the peer can see (RST, RST_STREAM); buffered bytes may be dropped. Idempotent."""

    def close(self) -> None:
        """Let go of an endpoint that has ended cleanly both ways."""


class Downstream(Endpoint, Protocol):
    """The endpoint of whoever opened the connection; waits to hear whether it is accepted."""

    def accept(self, headers: Sequence[tuple[str, str]]) -> None:
        """The upstream is up."""

    def refuse(self, status: int) -> None:
        """It will not be: RST, or `status` (HTTP) with END_STREAM."""
