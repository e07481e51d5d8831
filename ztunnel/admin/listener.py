"""TCP listeners that a stranger may reach: bounded in connections, per peer and in all, and in their life time.

Any pod can connect to the node's metrics and readiness ports. Who says nothing, or asks and does not read the answer,
must not cost the agent its file descriptors or its memory, nor keep the next probe out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

PER_PEER = 4
IN_ALL = 64
SECONDS = 30.0  # from accept() to the last byte of the answer
CROWDED_SECONDS = 5.0  # of that are certain where others want in
RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Open:
    peer: str
    since: float
    socket: socket.socket
    transport: asyncio.Transport

    @property
    def gone(self) -> bool:
        """Not yet, if it was closed and nobody takes its last bytes."""
        return self.socket.fileno() < 0

    def end(self) -> None:
        if not self.gone:  # asyncio would fail
            self.transport.abort()


class _Visitors:
    """The connections that are open, oldest first; `close` ends them all."""

    __slots__ = ("_loop", "_open", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: list[_Open] = []
        self._timer: asyncio.TimerHandle | None = None

    async def admit(self, connected: socket.socket, peer: str, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Or turn away, where there is no room."""
        self._sweep()
        if not self._has_room(peer):
            connected.close()
            return
        transport, _ = await self._loop.connect_accepted_socket(protocol, connected)
        self._open.append(_Open(peer, self._loop.time(), connected, transport))
        if self._timer is None:
            self._expect()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for connection in self._open:
            connection.end()

    def _has_room(self, peer: str) -> bool:
        """Where there is none, the oldest goes: of this peer, if it has as many as it may, else of the peer that has
        most. It may stay for its first seconds, unless that peer has more than the newcomer would have."""
        held = Counter(connection.peer for connection in self._open)
        if held[peer] >= PER_PEER:
            crowd = peer
        elif len(self._open) >= IN_ALL:
            crowd = held.most_common(1)[0][0]
        else:
            return True
        oldest = next(connection for connection in self._open if connection.peer == crowd)
        if held[crowd] <= held[peer] + 1 and self._loop.time() - oldest.since < CROWDED_SECONDS:
            return False
        oldest.end()
        self._open.remove(oldest)
        return True

    def _sweep(self) -> None:
        """Forget those that are gone, and end those that have had their time."""
        late = self._loop.time() - SECONDS
        for connection in self._open:
            if connection.since <= late:
                connection.end()
        self._open = [c for c in self._open if c.since > late and not c.gone]

    def _expect(self) -> None:
        self._sweep()
        due = self._open[0].since + SECONDS if self._open else None
        self._timer = None if due is None else self._loop.call_at(due, self._expect)


async def listen(
    host: str,
    port: int,
    protocol: Callable[[], asyncio.Protocol],
    bound: Callable[[socket.socket], None] = lambda listener: None,
    given: socket.socket | None = None,
) -> None:
    """Serve until cancelled. A port that is taken is tried again every few seconds: what is seen of an agent must not
    decide whether it works. `bound` is shown the listener (a port of 0 is any). `given`: go on with this one."""
    while True:
        try:
            listener = given or _listening(host, port)
        except OSError as error:
            _log.warning(
                "cannot listen on %s port %d: %s; is another agent or program there? Trying again in %g s",
                host or "*", port, error.strerror or error, RETRY_SECONDS,
            )  # fmt: skip
            await asyncio.sleep(RETRY_SECONDS)
            continue
        with listener:
            bound(listener)
            await _accept(listener, protocol)


def unix_listener(path: Path) -> socket.socket:
    """A listening socket that only its owner can connect to. An old file of that name, of an agent that was killed,
    goes."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        mask = os.umask(0o177)  # before bind: between bind and chmod anybody could connect
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"socket {path}: {error.strerror}") from error
    return listener


def is_listening(path: Path) -> bool:
    """Whether a process listens on this unix socket; of one that was killed, the file is left."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT)


def _listening(host: str, port: int) -> socket.socket:
    """All addresses of both families for an empty host (IPv4 alone where there is no IPv6)."""
    if host:
        listener = socket.create_server((host, port))
    elif socket.has_dualstack_ipv6():
        listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("", port))
    listener.setblocking(False)
    return listener


async def _accept(listener: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
    loop = asyncio.get_running_loop()
    visitors = _Visitors(loop)
    try:
        while True:
            try:
                connected, address = await loop.sock_accept(listener)
            except OSError as error:  # out of file descriptors, or the peer was gone again
                _log.warning("accept on port %d: %s", listener.getsockname()[1], error.strerror or error)
                await asyncio.sleep(0.1)
                continue
            connected.setblocking(False)
            await visitors.admit(connected, address[0], protocol)
    finally:
        visitors.close()
