"""Connections that have not shown a node's token yet: bounded in number, per peer and in all, and in time.

Whoever reaches the port can knock, and a TLS connection costs some 300 KiB from its first byte on. Nobody is refused:
of the peer with the most, the one that has waited longest goes, so that neither a silent pod nor many of them keep a
node out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field

_log = logging.getLogger(__name__)

WAITING = 256  # in all
WAITING_PER_PEER = 64
PATIENCE_S = 15.0  # from a connection's start until it has shown a token
_BACKLOG = 1024
_PAUSE_S = 0.1


@dataclass(slots=True, eq=False)
class _Visitor:
    peer: str
    task: asyncio.Task[None] | None = None
    transport: asyncio.BaseTransport | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Door:
    """`make` gives the protocol of a connection; `admit` is told when it has proved who it is."""

    context: ssl.SSLContext
    make: Callable[[], asyncio.BaseProtocol]
    listening: Sequence[socket.socket]
    _waiting: dict[asyncio.BaseProtocol, _Visitor] = field(default_factory=dict)  # the oldest first
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def port(self) -> int:
        return int(self.listening[0].getsockname()[1])

    def open(self) -> None:
        """Accept from now on, until `close`."""
        for listener in self.listening:
            self._spawn(self._accept(listener))

    def admit(self, protocol: asyncio.BaseProtocol) -> None:
        self._waiting.pop(protocol, None)

    async def close(self) -> None:
        """No new connections; those that wait go too."""
        for listener in self.listening:
            listener.close()
        for protocol in list(self._waiting):
            self._turn_away(protocol)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:  # out of file descriptors, or the peer was gone again
                _log.warning("cannot accept", extra={"cause": error.strerror})
                await asyncio.sleep(_PAUSE_S)
                continue
            protocol, visitor = self.make(), _Visitor(str(address[0]))
            self._make_room(visitor.peer)
            self._waiting[protocol] = visitor
            visitor.task = self._spawn(self._receive(sock, protocol, visitor))

    async def _receive(self, sock: socket.socket, protocol: asyncio.BaseProtocol, visitor: _Visitor) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(PATIENCE_S, self._turn_away, protocol)
        try:
            sock.setblocking(False)
            visitor.transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=self.context)
        except (OSError, asyncio.CancelledError):  # no TLS, gone, or turned away
            self._waiting.pop(protocol, None)
            sock.close()

    def _make_room(self, peer: str) -> None:
        """For one more of this peer."""
        waiting = Counter(visitor.peer for visitor in self._waiting.values())
        if waiting[peer] >= WAITING_PER_PEER:
            self._turn_away_oldest(peer)
        elif len(self._waiting) >= WAITING:
            self._turn_away_oldest(waiting.most_common(1)[0][0])

    def _turn_away_oldest(self, peer: str) -> None:
        self._turn_away(next(p for p, visitor in self._waiting.items() if visitor.peer == peer))

    def _turn_away(self, protocol: asyncio.BaseProtocol) -> None:
        visitor = self._waiting.pop(protocol, None)
        if visitor is None:
            return
        if visitor.transport is not None:
            abort(visitor.transport)
        elif visitor.task is not None:
            visitor.task.cancel()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def listeners(host: str | None, port: int) -> list[socket.socket]:
    """Non-blocking listening sockets on every address of `host` (None: of this machine); OSError. A port of 0 is any,
    and the same for all."""
    found: list[socket.socket] = []
    try:
        for family, kind, _, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind)
            found.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], found[0].getsockname()[1] if not port and len(found) > 1 else port, *address[2:]))
            sock.listen(_BACKLOG)
            sock.setblocking(False)
    except OSError:
        for sock in found:
            sock.close()
        raise
    return found


def abort(transport: asyncio.BaseTransport | None) -> None:
    """Python 3.11: a TLS transport that was closed twice has let go of its protocol and raises AttributeError; its
    shutdown, under way, has a timeout of its own."""
    if isinstance(transport, asyncio.WriteTransport):
        try:
            transport.abort()
        except AttributeError:
            return
