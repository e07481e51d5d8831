"""Readiness of many sockets, edge-triggered, from one epoll that the event loop watches.

asyncio's own readers and writers cannot watch a socket for nothing but failure; an edge-triggered registration always
reports a reset, also while its owner neither reads nor writes for want of room on the other side.
"""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable

_log = logging.getLogger(__name__)
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_BATCH = 256  # events per turn of the loop, so that timers and orders get theirs

Watcher = Callable[[bool, bool, bool], None]
"""(readable, writable, failed): edges since the last call. Can be spurious, as always with epoll."""


class Poller:
    """Calls a watcher per file descriptor on the event loop's thread."""

    __slots__ = ("_epoll", "_loop", "_watchers")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._watchers: dict[int, Watcher] = {}
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def watch(self, fd: int, watcher: Watcher) -> None:
        """Begin to watch; what is ready already is reported too. A second call replaces the watcher."""
        known = fd in self._watchers
        self._watchers[fd] = watcher
        if known:
            self._epoll.modify(fd, _EVENTS)
        else:
            self._epoll.register(fd, _EVENTS)

    def forget(self, fd: int) -> None:
        """Stop watching; before the descriptor is closed. Nothing happens if it is not watched."""
        if self._watchers.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    def close(self) -> None:
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _dispatch(self) -> None:
        for fd, events in self._epoll.poll(0, _BATCH):
            watcher = self._watchers.get(fd)
            if watcher is None:
                continue
            failed = bool(events & select.EPOLLERR)
            readable = failed or bool(events & (select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP))
            writable = failed or bool(events & (select.EPOLLOUT | select.EPOLLHUP))
            try:
                watcher(readable, writable, failed)
            except Exception:  # one connection's fault must not starve the others of this batch
                _log.exception("a watcher failed")
            if self._epoll.closed:
                return
