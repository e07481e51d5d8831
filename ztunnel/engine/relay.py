"""Two endpoints and the bytes between them: back-pressure, half-close, and errors that stay errors.

Pure stepping: it reads from one endpoint only while the other has room, so what it holds is nothing. A step moves a
bounded amount and asks to be called again, so that no connection keeps the others waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from mesh.reason import Reason
from ztunnel.engine.endpoint import Endpoint, Lost

_log = logging.getLogger(__name__)
_CHUNK = 64 << 10
_CHUNKS_PER_STEP = 8


class Direction:
    """One way. `moved` counts what the sink took: always an exact prefix of what the source sent."""

    __slots__ = ("ended", "moved", "sink", "source")

    def __init__(self, source: Endpoint, sink: Endpoint) -> None:
        self.source, self.sink = source, sink
        self.moved = 0
        self.ended = False  # the source's clean end was read

    def move(self) -> bool:
        """Move what can be; True if there may be more right away. Lost if an endpoint failed."""
        for _ in range(_CHUNKS_PER_STEP):
            if self.ended or self.sink.lost is not None:
                return False
            if not self.sink.room:
                if self.source.lost is not None:  # nobody will read up to the error
                    raise self.source.lost
                return False
            data = self.source.read(_CHUNK)
            if data is None:
                return False
            if not data:
                self.ended = True
                self.sink.finish()
                return False
            try:
                self.sink.write(data)
            except Lost:  # found by whoever reads it, after what it sent before
                return False
            self.moved += len(data)
        return True


class Relay:
    """Calls `over` once: with None when both directions have ended cleanly and left our buffers, with the error when
    either endpoint failed. The endpoints are not closed by it."""

    __slots__ = ("_again", "_over", "_pending", "_running", "backward", "forward")

    def __init__(
        self,
        downstream: Endpoint,
        upstream: Endpoint,
        again: Callable[[Callable[[], None]], object],
        over: Callable[[Lost | None], None],
    ) -> None:
        self.forward = Direction(downstream, upstream)
        self.backward = Direction(upstream, downstream)
        self._again, self._over = again, over
        self._running, self._pending = True, False
        downstream.on_change = upstream.on_change = self._wake

    def stop(self) -> None:
        self._running = False

    def step(self) -> None:
        self._pending = False
        if not self._running:
            return
        try:
            more = self.forward.move()
            more = self.backward.move() or more
            self._check_unread()
        except Lost as lost:
            self._running = False
            self._over(lost)
            return
        except Exception:
            _log.exception("a relay failed")
            self._running = False
            self._over(Lost(Reason.INTERNAL, "a fault of the agent"))
            return
        if self._finished():
            self._running = False
            self._over(None)
        elif more:
            self._schedule()

    def _check_unread(self) -> None:
        """A failed endpoint is found by reading it, after what it sent before; but not when it had ended already."""
        for way in (self.forward, self.backward):
            lost = way.source.lost
            if way.ended and lost is not None and not way.source.flushed:
                raise lost

    def _finished(self) -> bool:
        ended = self.forward.ended and self.backward.ended
        return ended and self.forward.sink.flushed and self.backward.sink.flushed

    def _wake(self) -> None:
        if not self._pending:
            self.step()

    def _schedule(self) -> None:
        if not self._pending:
            self._pending = True
            self._again(self.step)
