"""Network namespaces: enter one for a moment, and the cookie that names it, which is never reused and not forged."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SO_COOKIE = 57  # asm-generic/socket.h
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def entered(netns_fd: int) -> Iterator[None]:
    """This thread is in the namespace for the length of a block that neither waits nor awaits; a socket that is made in
    it stays in it. OSError if `netns_fd` is none.

    Needs CAP_SYS_ADMIN, unless the thread is there already. Should it be unable to return to its own namespace, the
    process aborts: everything after that would happen in some pod's.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.path.sameopenfile(home, netns_fd):
            yield
            return
        _enter(netns_fd)
        try:
            yield
        finally:
            _return_to(home)
    finally:
        os.close(home)


def open_socket(netns_fd: int, family: int, *, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
    """A non-blocking socket (TCP if nothing else is said) in a namespace; OSError if it cannot be made."""
    with entered(netns_fd):
        return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)


def cookie(netns_fd: int | None = None) -> int:
    """The cookie of a namespace; None: of the one that this thread is in."""
    if netns_fd is not None:
        with entered(netns_fd):
            return cookie()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return cookie_of(s)


def cookie_of(sock: socket.socket) -> int:
    """The cookie of the namespace that a socket lives in."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])


def socket_cookie(fd: int) -> bytes:
    """What names the socket for the life of this machine; as the look-up of a sockmap gives it."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"network namespace (file descriptor {fd}) could not be entered: {os.strerror(code)}")


def _return_to(home: int) -> None:
    while _libc.setns(home, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        if code == errno.EINTR:
            continue
        print(f"cannot leave a network namespace ({os.strerror(code)}): abort", file=sys.stderr, flush=True)
        os.abort()
