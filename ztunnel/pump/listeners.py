"""The listeners of a pod, in its network namespace.

On loopback and arbitrary ports: the kernel's sk_lookup program hands them connections by slot, whatever they are bound
to; on loopback nobody outside the pod reaches them otherwise. What a listener has for options, its connections inherit.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import fields
from pathlib import Path

from bpf.netns import entered
from ztunnel.orders import Listeners

_BACKLOG = 4096  # the kernel caps it at net.core.somaxconn
_KINDS = [(family, tunnel) for tunnel in (False, False, True) for family in (socket.AF_INET, socket.AF_INET6)]
_NO_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EINVAL})
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_PROBES = 180, 180, 9  # istio-facts §1.2


def listen(netns: int, backlog: int) -> list[socket.socket | None]:
    """New listeners in the netns, in the order of the fields of Listeners; OSError. `backlog`: for tunnels, bytes the
    kernel takes beyond what it can send now, so that bytes wait where streams take turns."""
    sockets: list[socket.socket | None] = []
    try:
        for family, tunnel in _KINDS:
            sockets.append(_listener(netns, family, backlog if tunnel else None))
    except BaseException:
        close_all(sockets)
        raise
    return sockets


def adopt(listeners: Listeners, backlog: int) -> list[socket.socket | None]:
    """Another engine's, by its descriptors, which these sockets own, in the order of the fields. OSError, and none of
    them is open any more. Their options are set anew: that engine may have been an older one."""
    fds = [getattr(listeners, field.name) for field in fields(listeners)]
    sockets: list[socket.socket | None] = []
    try:
        for fd in fds:
            sockets.append(None if fd is None else socket.socket(fileno=fd))
        for sock, (_, tunnel) in zip(sockets, _KINDS, strict=True):
            if sock is not None:
                sock.setblocking(False)
                _tune(sock, backlog if tunnel else None)
    except OSError:
        close_all(sockets)
        for fd in fds[len(sockets) :]:
            with suppress(OSError):
                os.close(-1 if fd is None else fd)
        raise
    return sockets


def close_all(sockets: Iterable[socket.socket | None]) -> None:
    for sock in sockets:
        if sock is not None:
            sock.close()


def _listener(netns: int, family: int, backlog: int | None) -> socket.socket | None:
    """None: no IPv6 there."""
    sock = None
    try:
        sock = _open(netns, family)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _tune(sock, backlog)
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        sock.listen(_BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        if family == socket.AF_INET6 and error.errno in _NO_FAMILY:
            return None
        if sock is None:
            raise
        raise OSError(error.errno, f"cannot listen on the pod's loopback, is lo up in its netns? {error}") from error
    return sock


def _open(netns: int, family: int) -> socket.socket:
    own = os.fstat(netns).st_ino == Path("/proc/thread-self/ns/net").stat().st_ino
    with nullcontext() if own else entered(netns):
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _tune(sock: socket.socket, backlog: int | None) -> None:
    # Whoever closes it, the kernel too after SIGKILL: RST.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
    if backlog is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, backlog)
