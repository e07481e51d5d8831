"""TCP sockets: options, dialling, and a connected socket as an endpoint.

A clean close is FIN, an error is RST: an application behind the mesh sees the difference it would see without it. A
socket is made to reset (SO_LINGER 0) and changes its mind only when both directions have ended cleanly, so that the
death of this process, which asks nobody, is an error too: the kernel would send FIN, a clean end in mid-sentence.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from mesh.model import SocketAddress, canonical_ip
from mesh.reason import Reason
from ztunnel.engine.endpoint import Lost
from ztunnel.engine.poller import Poller

_SO_COOKIE = 57  # asm-generic/socket.h
_IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h
_CLOSE_RESETS, _CLOSE_ENDS = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)  # struct linger, socket(7)
_DISCARDS, _DISCARDED = 64, 64 << 10  # reads and bytes each, of a peer that goes on sending
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_PROBES = 180, 180, 9  # istio-facts §1.2


def family_of(ip: str) -> int:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def address_of(name: tuple[Any, ...]) -> SocketAddress:
    """From getsockname(), getpeername() or accept(); a scope id is dropped."""
    return SocketAddress(canonical_ip(name[0].partition("%")[0]), name[1])


def socket_cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")


def reset_on_close(sock: socket.socket) -> None:
    """Whoever closes it, the kernel too after SIGKILL: RST, and bytes that were not sent are dropped. Shutting down one
    direction still is FIN. What a listener accepts inherits it, so there is no moment without."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_RESETS)


def tune(sock: socket.socket) -> None:
    """Options of every connection's socket."""
    reset_on_close(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


def tune_tunnel(sock: socket.socket, backlog: int) -> None:
    """Options of a tunnel's socket: the kernel takes only `backlog` bytes beyond what it can send now, so that bytes
    wait where streams take turns."""
    tune(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, backlog)


def bind_last_hop(sock: socket.socket, ip: str) -> None:
    """Bind to the pod's own address without taking a port now: connect() then chooses one that is free towards this
    destination, one in TIME_WAIT too (net.ipv4.tcp_tw_reuse = 1, which enrolment sets in the pod's netns).

    Not bound to `lo`: where another device has the address, answers over loopback count as that device's, and a socket
    bound to `lo` never sees them (IPv4); there is not even a route (IPv6)."""
    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((ip, 0))


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    try:
        reset_on_close(sock)
    finally:
        sock.close()


class Dial:
    """One connect(2) in progress. Calls `done` exactly once, never from the constructor, unless cancelled first: with
    None and the socket connected, or with why not and the socket closed."""

    __slots__ = ("_destination", "_done", "_loop", "_poller", "_sock", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        sock: socket.socket,
        destination: SocketAddress,
        timeout: float,
        done: Callable[[Lost | None], None],
    ) -> None:
        self._loop, self._poller, self._sock, self._done = loop, poller, sock, done
        self._destination = destination
        self._timer: asyncio.Handle
        code = sock.connect_ex((destination.ip, destination.port))
        if code == errno.EINPROGRESS:
            self._timer = loop.call_later(timeout, self._settle, errno.ETIMEDOUT)
            poller.watch(sock.fileno(), self._changed)
        else:
            self._timer = loop.call_soon(self._settle, code)

    def cancel(self) -> None:
        """Give up; `done` will not be called. The socket is closed."""
        self._timer.cancel()
        self._poller.forget(self._sock.fileno())
        self._sock.close()

    def _changed(self, readable: bool, writable: bool, failed: bool) -> None:
        if writable or failed:
            self._settle(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _settle(self, code: int) -> None:
        self._timer.cancel()
        self._poller.forget(self._sock.fileno())
        if code == 0:
            self._done(None)
            return
        self._sock.close()
        reason = Reason.CONNECT_TIMEOUT if code == errno.ETIMEDOUT else Reason.CONNECT_FAILED
        self._done(Lost(reason, f"connect to {self._destination}: {os.strerror(code)}"))


class TcpEndpoint:
    """A connected socket. Not a byte is read before somebody asks for it: until then the kernel's buffer is the bound.

    `side` names it in error texts.
    """

    __slots__ = (
        "_buffer",
        "_closed",
        "_finish_sent",
        "_finish_wanted",
        "_lost",
        "_poller",
        "_readable",
        "_side",
        "_sock",
        "_writable",
        "on_change",
    )

    def __init__(self, poller: Poller, sock: socket.socket, side: str) -> None:
        self._poller, self._sock, self._side = poller, sock, side
        self.on_change: Callable[[], None] = lambda: None
        self._buffer = bytearray()
        self._readable = self._writable = True
        self._finish_wanted = self._finish_sent = self._closed = False
        self._lost: Lost | None = None
        poller.watch(sock.fileno(), self._changed)

    @property
    def lost(self) -> Lost | None:
        return self._lost

    @property
    def room(self) -> bool:
        return not self._buffer

    @property
    def backlog(self) -> int:
        """Bytes the kernel has not taken yet."""
        return len(self._buffer)

    @property
    def flushed(self) -> bool:
        return self._finish_sent

    def read(self, limit: int) -> bytes | None:
        if self._closed:
            raise self._lost or Lost(Reason.INTERNAL, f"{self._side} read after close")
        if not self._readable:
            return None
        try:
            data = self._sock.recv(limit)
        except BlockingIOError:
            if self._lost is not None:
                raise self._lost from None
            self._readable = False
            return None
        except OSError as error:
            raise self._fail(error) from None
        if not data and self._lost is not None:  # a poll took the socket's error: this is no clean end
            raise self._lost
        return data

    def write(self, data: bytes) -> None:
        if self._lost is not None:
            raise self._lost
        if self._buffer or not self._writable:
            self._buffer += data
            return
        sent = self._send(data)
        if sent < len(data):
            self._buffer += memoryview(data)[sent:]

    def finish(self) -> None:
        self._finish_wanted = True
        if not self._buffer:
            self._send_finish()

    def abort(self) -> None:
        if not self._closed:
            self._closed = True
            self._poller.forget(self._sock.fileno())
            reset(self._sock)

    def close(self) -> None:
        """The kernel goes on sending what it has been given; RST remains for a peer whose bytes nobody read."""
        if not self._closed:
            self._closed = True
            self._poller.forget(self._sock.fileno())
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_ENDS)
            finally:
                self._sock.close()

    def linger(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        """Finish, discard what still arrives, and close when the peer has ended or after `seconds`: a peer with bytes
        under way would otherwise be sent RST, which can overtake our last ones."""
        timer = loop.call_later(seconds, self.close)

        def discard() -> None:
            try:
                for _ in range(_DISCARDS):
                    data = self.read(_DISCARDED)
                    if data is None:
                        return
                    if not data:
                        break
            except Lost:
                pass
            timer.cancel()
            self.close()

        self.on_change = discard
        self.finish()
        loop.call_soon(discard)

    def accept(self, headers: Sequence[tuple[str, str]]) -> None:
        """Nothing to say: the peer's connect() has succeeded long ago."""

    def refuse(self, status: int) -> None:
        self.abort()

    def _send(self, data: bytes | bytearray) -> int:
        sent = 0
        view = memoryview(data)
        try:
            while sent < len(data):
                sent += self._sock.send(view[sent:])
        except BlockingIOError:
            self._writable = False
        except OSError as error:
            raise self._fail(error) from None
        finally:
            view.release()
        return sent

    def _send_finish(self) -> None:
        if self._finish_sent or self._closed or self._lost is not None:
            return
        self._finish_sent = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(error)

    def _changed(self, readable: bool, writable: bool, failed: bool) -> None:
        self._readable |= readable
        self._writable |= writable
        if failed:
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._fail(OSError(code, os.strerror(code)))
        if self._writable and self._lost is None and self._buffer:
            try:
                del self._buffer[: self._send(self._buffer)]
            except Lost:
                self._buffer.clear()
        if self._finish_wanted and not self._buffer:
            self._send_finish()
        self.on_change()

    def _fail(self, error: OSError) -> Lost:
        if self._lost is None:
            by_peer = error.errno in (errno.ECONNRESET, errno.EPIPE)
            reason = Reason.RESET_BY_PEER if by_peer else Reason.CONNECT_FAILED
            self._lost = Lost(reason, f"{self._side}: {os.strerror(error.errno or 0)}")
            self._readable = True  # for the reader to find it, after what arrived before
        return self._lost
