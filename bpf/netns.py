"""Network namespaces: enter one for a moment, and the cookie that names it, which is never reused and not forged."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def entered(netns_fd: int) -> Iterator[None]:
    """This thread is in the namespace meanwhile; a socket made in it stays in it. OSError if `netns_fd` is none."""
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(netns_fd)
        try:
            yield
        finally:
            _setns(back)
    finally:
        os.close(back)


def cookie(netns_fd: int | None = None) -> int:
    """The cookie of a namespace; None: of the one that this thread is in."""
    if netns_fd is not None:
        with entered(netns_fd):
            return cookie()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return int(struct.unpack("=Q", s.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"network namespace (file descriptor {fd}) could not be entered: {os.strerror(code)}")
