"""The way to the controller: TLS verified with the root on disk, the node's bootstrap token with every request."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec

from mesh.control import MAX_MESSAGE_BYTES, CertificateReply, CertificateRequest, encode

_CONNECT_SECONDS = 10.0
_HEARTBEAT_SECONDS = 10.0
_CLOSE_SECONDS = 1.0  # for the controller's half of a closing handshake
_CERTIFICATE_SECONDS = 20.0
_MAX_REPLY_BYTES = 1 << 20


class Refusal(Exception):
    """The controller answered with a status other than success; `status` is HTTP's."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"the controller answered {status}: {said}")
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    """`address` is host:port. Root and token are read anew for every connection, so that both can be replaced."""

    address: str
    node: str
    root: Path
    token: Path

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """The WebSocket of mesh.control; aiohttp.ClientError, OSError, ssl.SSLError if it cannot be had."""
        async with self._session() as session:
            try:
                socket = await session.ws_connect(
                    f"https://{self.address}/v1/stream",
                    ssl=self._tls(),
                    headers=self._headers(),
                    heartbeat=_HEARTBEAT_SECONDS,
                    max_msg_size=MAX_MESSAGE_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
                )
            except aiohttp.WSServerHandshakeError as error:
                raise Refusal(error.status, error.message) from None
            except aiohttp.ClientConnectorError as error:  # aiohttp's own text tells the reader of an SSLContext
                raise ConnectionError(f"cannot connect: {error.os_error}") from error
            async with socket:
                yield socket

    async def certificate(self, request: CertificateRequest) -> CertificateReply:
        """Have a CSR signed; Refusal with the controller's words, or the errors of `stream`, or ValueError."""
        async with (
            self._session(_CERTIFICATE_SECONDS) as session,
            session.post(
                f"https://{self.address}/v1/certificates",
                data=encode(request),
                ssl=self._tls(),
                headers={**self._headers(), "Content-Type": "application/json"},
                allow_redirects=False,
            ) as response,
        ):
            body = await response.content.read(_MAX_REPLY_BYTES)
            if response.status != 200:
                raise Refusal(response.status, body[:300].decode(errors="replace").strip())
            if not response.content.at_eof():
                raise ValueError(f"the controller's reply exceeds {_MAX_REPLY_BYTES} bytes")
            return msgspec.json.decode(body, type=CertificateReply)

    def _session(self, total: float | None = None) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=total, connect=_CONNECT_SECONDS, sock_connect=_CONNECT_SECONDS)
        return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=1, force_close=True))

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=str(self.root))
        except (OSError, ssl.SSLError) as error:
            cause = getattr(error, "strerror", None) or error
            raise OSError(f"--root {self.root}: {cause}; it must be the controller's ca.crt (PEM)") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    def _headers(self) -> dict[str, str]:
        try:
            token = self.token.read_text(encoding="ascii").strip()
        except (OSError, UnicodeError) as error:
            cause = getattr(error, "strerror", None) or error
            raise OSError(f"--token {self.token}: {cause}; it must hold this node's bootstrap token") from error
        return {"Authorization": f"Bearer {token}", "X-Gossamer-Node": self.node}
