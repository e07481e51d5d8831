"""Sockets in a pod's network namespace.

A socket stays in the namespace it was created in, so a thread enters only around socket(2); bind, connect and the rest
happen from outside. All of it is synchronous: nothing else runs on the thread while it is in a foreign namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)

SocketFactory = Callable[[int, int], socket.socket]
"""(file descriptor of a network namespace, address family) -> a non-blocking TCP socket in it; OSError."""


def open_socket(netns: int, family: int, *, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
    """A non-blocking socket (TCP if nothing else is said) in the network namespace `netns`, a file descriptor; OSError
    if it cannot be made.

    Needs CAP_SYS_ADMIN. Should the thread be unable to return to its own namespace, the process aborts: everything
    after that would happen in some pod's.
    """
    with inside(netns):
        return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)


@contextmanager
def inside(netns: int) -> Iterator[None]:
    """This thread, for the length of a block that neither waits nor awaits, in another network namespace; OSError."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(netns)
        try:
            yield
        finally:
            _return_to(home)
    finally:
        os.close(home)


def _enter(netns: int) -> None:
    if _libc.setns(netns, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot enter the pod's network namespace: {os.strerror(code)}")


def _return_to(home: int) -> None:
    while _libc.setns(home, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        if code == errno.EINTR:
            continue
        print(f"cannot leave a pod's network namespace ({os.strerror(code)}): abort", file=sys.stderr, flush=True)
        os.abort()
