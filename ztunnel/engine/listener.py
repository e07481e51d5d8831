"""Listeners in a pod's network namespace and their accept loops."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import fields

from ztunnel.engine.netns import SocketFactory
from ztunnel.engine.poller import Poller
from ztunnel.engine.tcp import reset_on_close
from ztunnel.orders import Listeners

_log = logging.getLogger(__name__)
_BACKLOG = 4096  # the kernel caps it at net.core.somaxconn
_BURST = 64  # connections accepted per turn of the loop
_PAUSE = 0.2  # seconds without accepting when descriptors or memory run out
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_DESTROYED = errno.EINVAL  # accept(2): the socket does not listen any more
_NO_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EINVAL})


def listen(sockets: SocketFactory, netns: int, family: int) -> socket.socket | None:
    """A listener on loopback and an arbitrary port of the pod's netns; OSError. None: no IPv6 there.

    The kernel's sk_lookup program hands it connections by slot, whatever it is bound to; on loopback nobody outside
    the pod reaches it otherwise.
    """
    try:
        sock = sockets(netns, family)
    except OSError as error:
        if family == socket.AF_INET6 and error.errno in _NO_FAMILY:
            return None
        raise
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        reset_on_close(sock)
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if family == socket.AF_INET6 and error.errno in _NO_FAMILY:
            return None
        raise OSError(error.errno, f"cannot listen on the pod's loopback, is lo up in its netns? {error}") from error
    return sock


def adopted(listeners: Listeners) -> list[socket.socket | None]:
    """Another engine's, by its descriptors, which these sockets own, in the order of the fields."""
    fds = (getattr(listeners, field.name) for field in fields(listeners))
    return [None if fd is None else _non_blocking(fd) for fd in fds]


def _non_blocking(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


class Listener:
    """Accepts from `start` until `close` and hands each connection, non-blocking, to `accepted`. `destroyed`, called
    once: somebody has ended the socket from outside (a pod with NET_ADMIN may, by sock_diag(7)); it is closed then."""

    __slots__ = ("_accepted", "_destroyed", "_loop", "_pending", "_poller", "_sock", "name")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        sock: socket.socket,
        accepted: Callable[[socket.socket], None],
        destroyed: Callable[[], None],
    ) -> None:
        self._loop, self._poller, self._sock = loop, poller, sock
        self._accepted, self._destroyed = accepted, destroyed
        self._pending: asyncio.Handle | None = None
        self.name = sock.getsockname()[:2]

    def fileno(self) -> int:
        return self._sock.fileno()

    def start(self) -> None:
        self._poller.watch(self._sock.fileno(), lambda _readable, _writable, _failed: self._wake())

    def stop(self) -> None:
        """Accept nothing more until `start`; idempotent. Connections wait in the backlog."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        if self._sock.fileno() >= 0:
            self._poller.forget(self._sock.fileno())

    def close(self) -> None:
        """Idempotent. Connections in the backlog are reset by the kernel, unless another process has the socket too;
        hence no shutdown(), which would end it for everybody."""
        self.stop()
        self._sock.close()

    def _wake(self) -> None:
        if self._pending is None:
            self._accept()

    def _accept(self) -> None:
        self._pending = None
        for _ in range(_BURST):
            if self._sock.fileno() < 0:
                return
            try:
                sock, _name = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    _log.warning("cannot accept: %s; trying again in %s s", error, _PAUSE)
                    self._pending = self._loop.call_later(_PAUSE, self._accept)
                    return
                if error.errno == _DESTROYED:
                    self.close()
                    self._destroyed()
                    return
                continue  # the peer was faster (ECONNABORTED and what accept(2) lists)
            sock.setblocking(False)
            try:
                self._accepted(sock)
            except Exception:
                _log.exception("an accepted connection could not be handled")
                sock.close()
        self._pending = self._loop.call_soon(self._accept)
