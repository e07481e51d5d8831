"""One tunnel connection of either role: TLS and HTTP/2 put together, from the handshake to the last words.

Stepped by readiness. Reading never waits for writing (two peers doing that would wait for each other); what a peer
could make us queue without reading it is bounded by `mesh.http2`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from mesh.identity import SpiffeId
from mesh.model import SocketAddress
from mesh.reason import Reason
from ztunnel.engine.channel import Channel
from ztunnel.engine.endpoint import Lost
from ztunnel.engine.limits import Limits
from ztunnel.engine.mux import Header, Mux
from ztunnel.engine.stream import Stream
from ztunnel.engine.tcp import TcpEndpoint
from ztunnel.engine.tls import Session

_log = logging.getLogger(__name__)
_READS_PER_STEP = 8
_STEP = 0.002  # seconds: what arrived may be a thousand requests, and others wait
_PULL = 64 << 10  # bytes framed at once: what the socket does not take of them waits before the next stream's turn
_PULLS_PER_STEP = 8


class Owner(Protocol):
    """Whoever made the tunnel: a pod's tunnel server, or a group of the pool."""

    def verify(self, uris: tuple[str, ...]) -> SpiffeId:
        """The peer's identity from its certificate's URI SANs; Lost if it is not welcome."""

    def ready(self, tunnel: Tunnel) -> None:
        """The handshake is complete and the peer verified."""

    def offered(self, tunnel: Tunnel, stream: Stream, headers: Sequence[Header]) -> None:
        """Server role: a request. Pseudo headers included."""

    def freed(self, tunnel: Tunnel) -> None:
        """There may be room for streams, or none left."""

    def over(self, tunnel: Tunnel, lost: Lost) -> None:
        """The connection is gone; its streams know. Called once."""


class Tunnel:
    """`peer` is set once it is ready. `retired` means that no new stream shall use it. `address` is the peer's, `local`
    what the peer dialled."""

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
        self._loop, self._owner, self._limits, self._server = loop, owner, limits, server
        self._channel = Channel(loop, transport, session, self._step)
        self.address, self.local = address, local
        self.peer: SpiffeId | None = None
        self._mux: Mux | None = None
        self._retired = self._announced = self._over = False
        self._pings = 0
        self._flushing: asyncio.Handle | None = None
        self._freeing: asyncio.Handle | None = None
        self._stepping: asyncio.Handle | None = loop.call_soon(self._step)
        timeout = Lost(Reason.TLS_FAILED, f"no TLS handshake within {limits.handshake_timeout:g} s")
        self._timer: asyncio.Handle = loop.call_later(limits.handshake_timeout, self._lose, timeout)

    @property
    def retired(self) -> bool:
        return self._retired or self._over or (self._mux is not None and self._mux.going_away)

    @property
    def idle(self) -> bool:
        """No stream, nor a relay that still has bytes of one."""
        return self._mux is None or self._mux.idle

    @property
    def backlog(self) -> int:
        """Bytes accepted for sending and not with the kernel yet."""
        return self._channel.backlog + (self._mux.backlog if self._mux is not None else 0)

    @property
    def vacancies(self) -> int:
        """Streams that can be opened now (client role)."""
        return 0 if self._mux is None or self.retired else self._mux.vacancies

    def open(self, headers: Sequence[Header]) -> Stream:
        """Send a request; only with `vacancies`."""
        assert self._mux is not None
        return self._mux.open(headers)

    def announce_end(self) -> None:
        """Server role: tell the peer to open no more streams here, then, after a while, insist."""
        if self._mux is None:
            self._lose(Lost(Reason.DRAINED, "the agent is stopping"))
        elif not self._announced and not self._over:
            self._announced = True
            self._mux.announce_end()
            self._loop.call_later(self._limits.goaway_grace, self._insist)

    def retire(self) -> None:
        """Client role: no new streams; it ends with the last one."""
        self._retired = True
        self._schedule_freed()

    def end_gracefully(self) -> None:
        """GOAWAY, close_notify, FIN. Streams that are left end with TUNNEL_LOST."""
        if self._mux is not None and not self._over:
            self._mux.end()
        self._lose(Lost(Reason.TUNNEL_LOST, "the tunnel was closed"))

    def lose(self, reason: Reason, detail: str) -> None:
        """End it at once with an error, streams included."""
        self._lose(Lost(reason, detail))

    # Inside

    def _step(self) -> None:
        self._stepping = None
        if self._over:
            return
        try:
            more = self._receive()
            self._flush()
        except Lost as lost:
            self._lose(self._explained(lost))
            return
        except Exception:
            self._fault()
            return
        if more and self._stepping is None:
            self._stepping = self._loop.call_soon(self._step)
        self._tell_changed()

    def _receive(self) -> bool:
        """Take what has arrived, within bounds; True if there may be more right away."""
        enough = self._loop.time() + _STEP
        for _ in range(_READS_PER_STEP):
            if self._mux is None:
                if not self._channel.handshake():
                    return False
                self._mux = self._begin()
                self._owner.ready(self)
            data = self._channel.read()
            if data is None:
                return False
            self._mux.receive(data, self._loop.time())
            if self._loop.time() > enough:
                break
        return True

    def _begin(self) -> Mux:
        """TLS is up: verify the peer, then speak HTTP/2."""
        self.peer = self._owner.verify(self._channel.peer_uris())
        self._timer.cancel()
        self._timer = self._loop.call_later(self._limits.ping_interval, self._ping)
        return Mux(
            self._limits,
            server=self._server,
            wake=self._schedule_flush,
            freed=self._schedule_freed,
            offered=lambda stream, headers: self._owner.offered(self, stream, headers),
        )

    def _flush(self) -> None:
        """Frame, encrypt and send as much as the socket takes, within bounds."""
        if self._mux is None:
            return
        for _ in range(_PULLS_PER_STEP):
            if not self._channel.room:
                return
            data = self._mux.pull(_PULL)
            if not data:
                return
            self._channel.write(data)
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if self._flushing is None and not self._over:
            self._flushing = self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = None
        try:
            self._flush()
        except Lost as lost:
            self._lose(self._explained(lost))
            return
        except Exception:
            self._fault()
            return
        self._tell_changed()

    def _fault(self) -> None:
        """Of ours: this tunnel's state cannot be trusted any more, the others' can."""
        _log.exception("the tunnel with %s failed", self.address)
        self._lose(Lost(Reason.INTERNAL, "a fault of the agent"))

    def _schedule_freed(self) -> None:
        if self._freeing is None and not self._over:
            self._freeing = self._loop.call_soon(self._tell_freed)

    def _tell_freed(self) -> None:
        self._freeing = None
        self._owner.freed(self)

    def _tell_changed(self) -> None:
        if self._mux is not None:
            self._mux.tell_changed()

    def _insist(self) -> None:
        if self._mux is not None and not self._over:
            self._retired = True
            self._mux.end()
            self._schedule_freed()

    def _ping(self) -> None:
        """RFC 9113 §6.7; a peer that does not answer in time is gone, whatever TCP thinks."""
        assert self._mux is not None
        now, sent = self._loop.time(), self._mux.ping_sent
        if sent is not None and now - sent >= self._limits.ping_timeout:
            self._lose(Lost(Reason.TUNNEL_LOST, f"no answer to a PING within {self._limits.ping_timeout:g} s"))
            return
        if sent is None:
            self._pings += 1
            self._mux.ping(self._pings.to_bytes(8, "big"), now)
        self._timer = self._loop.call_later(self._limits.ping_interval, self._ping)

    def _explained(self, lost: Lost) -> Lost:
        """What an error of the transport means at this point of the connection's life."""
        if lost.reason in (Reason.HTTP2_PROTOCOL, Reason.PEER_IDENTITY):
            return lost
        if self._mux is None:
            failed = lost.reason is Reason.TLS_FAILED
            return lost if failed else Lost(Reason.TLS_FAILED, f"in the handshake: {lost.detail}")
        if not self._server and not self._mux.heard:
            return Lost(Reason.TLS_FAILED, f"after the handshake; maybe our certificate was refused: {lost.detail}")
        return Lost(Reason.TUNNEL_LOST, lost.detail)

    def _lose(self, lost: Lost) -> None:
        if self._over:
            return
        self._over = True
        for handle in (self._timer, self._flushing, self._freeing, self._stepping):
            if handle is not None:
                handle.cancel()
        self._last_words()
        if self._mux is not None:
            self._mux.fail(lost)
            self._loop.call_soon(self._mux.tell_changed)
        self._owner.over(self, lost)

    def _last_words(self) -> None:
        """GOAWAY, as far as the socket takes it. Whatever goes wrong with it, the socket is closed."""
        try:
            for _ in range(_PULLS_PER_STEP):
                data = self._mux.pull(_PULL) if self._mux is not None and self._channel.room else b""
                if not data:
                    break
                self._channel.write(data)
        except Lost:
            pass  # it cannot be said any more
        except Exception:
            _log.exception("the tunnel with %s could not say GOAWAY", self.address)
        self._channel.close()
