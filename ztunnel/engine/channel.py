"""TLS over a socket: plaintext in and out, the handshake, and the last words of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mesh.reason import Reason
from ztunnel.engine.endpoint import Lost
from ztunnel.engine.tcp import TcpEndpoint
from ztunnel.engine.tls import Session

_READ = 64 << 10  # ciphertext from the socket, and plaintext per `read` (it may exceed it by a record)
LINGER = 1.0  # seconds for the last words (alert, GOAWAY) to be read by the peer


class Channel:
    """`on_change` is called when something may have arrived, or there may be room."""

    __slots__ = ("_loop", "_session", "_transport")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: TcpEndpoint,
        session: Session,
        on_change: Callable[[], None],
    ) -> None:
        self._loop, self._transport, self._session = loop, transport, session
        transport.on_change = on_change

    @property
    def room(self) -> bool:
        return self._transport.room and self._transport.lost is None

    @property
    def backlog(self) -> int:
        """Bytes of ciphertext that the kernel has not taken."""
        return self._transport.backlog

    def handshake(self) -> bool:
        """Go on with what has arrived; True once it is complete. Lost."""
        while True:
            try:
                complete = self._session.handshake()
            finally:
                self._send()
            if complete:
                return True
            ciphertext = self._transport.read(_READ)
            if ciphertext is None:
                return False
            if not ciphertext:
                raise Lost(Reason.TLS_FAILED, "the peer closed the connection in the handshake")
            self._session.feed(ciphertext)

    def peer_uris(self) -> tuple[str, ...]:
        """URI SANs of the peer's verified certificate."""
        return self._session.peer_uris()

    def read(self) -> bytes | None:
        """What has arrived, None if nothing has. The end, with close_notify or without, is Lost: a tunnel has no clean
        one, its streams have."""
        parts: list[bytes] = []
        size = 0
        while size < _READ:
            plaintext = self._session.read()
            if plaintext:
                parts.append(plaintext)
                size += len(plaintext)
            elif parts:
                break
            elif plaintext is not None:
                raise Lost(Reason.TUNNEL_LOST, "the peer closed the TLS session")
            else:
                ciphertext = self._transport.read(_READ)
                if ciphertext is None:
                    return None
                if not ciphertext:
                    raise Lost(Reason.TUNNEL_LOST, "the peer closed the connection")
                self._session.feed(ciphertext)
        return b"".join(parts)

    def write(self, plaintext: bytes) -> None:
        """Only while there is `room`. An error is found by reading, after what the peer said before."""
        self._session.write(plaintext)
        self._send()

    def close(self) -> None:
        """close_notify and FIN; the socket follows when the peer has closed too, or soon."""
        try:
            self._session.close_notify()
            self._transport.write(self._session.outgoing())
        except Lost:
            self._transport.abort()
            return
        self._transport.linger(self._loop, LINGER)

    def _send(self) -> None:
        try:
            self._transport.write(self._session.outgoing())
        except Lost:
            self._loop.call_soon(self._transport.on_change)
