"""Sockets in a pod's network namespace.

A socket stays in the namespace it was created in, so a thread enters only around socket(2); bind, connect and the rest
happen from outside. All of it is synchronous: nothing else runs on the thread while it is in a foreign namespace.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from bpf.netns import entered

SocketFactory = Callable[[int, int], socket.socket]
"""(file descriptor of a network namespace, address family) -> a non-blocking TCP socket in it; OSError."""


def open_socket(netns: int, family: int, *, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
    """A non-blocking socket (TCP if nothing else is said) in the network namespace `netns`, a file descriptor; OSError
    if it cannot be made."""
    with entered(netns):
        return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
