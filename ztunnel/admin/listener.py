"""TCP listeners that a stranger may reach: bounded in connections, per peer and in all, and in their life time.

Any pod can connect to the node's metrics and readiness ports. A hundred silent connections must not cost the agent its
file descriptors, nor keep the next probe out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

PER_PEER = 8
IN_ALL = 128
LIFETIME_SECONDS = 60.0
RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Open:
    peer: str
    since: float
    transport: asyncio.Transport


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
    connections: list[_Open] = []
    try:
        while True:
            try:
                connected, address = await loop.sock_accept(listener)
            except OSError as error:  # out of file descriptors, or the peer was gone again
                _log.warning("accept on port %d: %s", listener.getsockname()[1], error.strerror or error)
                await asyncio.sleep(0.1)
                continue
            connections = _swept(connections, loop.time())
            peer = address[0]
            if len(connections) >= IN_ALL or sum(c.peer == peer for c in connections) >= PER_PEER:
                connected.close()
                continue
            connected.setblocking(False)
            transport, _ = await loop.connect_accepted_socket(protocol, connected)
            connections.append(_Open(peer, loop.time(), transport))
    finally:
        for connection in connections:
            connection.transport.abort()


def _swept(connections: list[_Open], now: float) -> list[_Open]:
    """Those that are still open; what has had its time is ended."""
    for connection in connections:
        if now - connection.since > LIFETIME_SECONDS:
            connection.transport.abort()
    return [c for c in connections if not c.transport.is_closing()]
