"""What nodes talk to: TLS 1.3, `GET /v1/stream` (WebSocket) and `POST /v1/certificates`, each with the node's token.

401 for a wrong token, 403 for an identity that is not on the node, 400 for a request that cannot be understood, 429 for
too many. One stream per node: a new one replaces the old, which may be half-open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from controller import stream
from controller.ca import LEAF_LIFETIME, MAX_CSR_BYTES, Authority, CsrError
from controller.door import Door, abort, listeners
from controller.state import State
from controller.tokens import Tokens
from mesh.control import CertificateReply, CertificateRequest, encode
from mesh.identity import SpiffeId

_log = logging.getLogger(__name__)


STREAM_PATH, CERTIFICATES_PATH = "/v1/stream", "/v1/certificates"
NODE_HEADER = "X-Gossamer-Node"
MAX_NODE_MESSAGE = 16 << 20  # a hello names every resource: about 100 bytes each
_CERTIFICATE_RATE, _CERTIFICATE_BURST = 20.0, 500.0  # per node and second
_HEARTBEAT_S = 20.0  # a node that has not answered a ping after half of that is gone
_BODY_TIMEOUT_S = 10.0
_FAREWELL_S = 1.0
_LEAVING = "replaced or stopping"


class Gate:
    """A token bucket that refuses."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst, self._tokens, self._at = rate, burst, burst, time.monotonic()

    def opens(self) -> bool:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Server:
    """The HTTP handlers. `now` is the clock of the certificates."""

    def __init__(
        self,
        state: State,
        authority: Authority,
        tokens: Tokens,
        *,
        lifetime: timedelta = LEAF_LIFETIME,
        heartbeat_s: float = _HEARTBEAT_S,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._state = state
        self._authority = authority
        self._tokens = tokens
        self._lifetime = lifetime
        self._heartbeat_s = heartbeat_s
        self._now = now
        self._streams: dict[str, asyncio.Task[object]] = {}
        self._gates: dict[str, Gate] = {}
        self._doors: list[Door] = []

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2 * MAX_CSR_BYTES)
        app.router.add_get(STREAM_PATH, self.stream)
        app.router.add_post(CERTIFICATES_PATH, self.certificates)
        return app

    async def stop(self) -> None:
        """End all streams; nodes reconnect elsewhere and keep what they have meanwhile."""
        tasks = list(self._streams.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        node = self._authenticate(request)
        old = self._streams.get(node)
        task = asyncio.current_task()
        assert task is not None
        self._streams[node] = task
        if old is not None:
            _log.info("a new stream replaces the old one", extra={"node": node})
            old.cancel()
        socket = web.WebSocketResponse(
            heartbeat=self._heartbeat_s, max_msg_size=MAX_NODE_MESSAGE, compress=False, timeout=2.0
        )
        why = _LEAVING
        try:
            await socket.prepare(request)
            self._count()
            _log.info("node connected", extra={"node": node, "peer": request.remote})
            why = await stream.serve(_Socket(socket), node, self._state)
        finally:
            if self._streams.get(node) is task:
                del self._streams[node]
                known = self._state.node(node)
                known.connected, known.since = False, time.time()
            self._count()
            _log.info("node disconnected", extra={"node": node, "why": why})
            await self._part(request, socket, why)
        return socket

    async def _part(self, request: web.Request, socket: web.WebSocketResponse, why: str) -> None:
        """A close frame if we are the one who leaves, but never a wait for somebody who does not read."""
        if why == _LEAVING and socket.prepared and not socket.closed:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(_FAREWELL_S):
                    await socket.close(code=WSCloseCode.GOING_AWAY)
        if why != stream.CLOSED:
            abort(request.transport)

    async def certificates(self, request: web.Request) -> web.Response:
        node = self._authenticate(request)
        if not self._gates.setdefault(node, Gate(_CERTIFICATE_RATE, _CERTIFICATE_BURST)).opens():
            raise self._refused(node, "", web.HTTPTooManyRequests, "limited", "too many certificate requests")
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                wanted = msgspec.json.decode(await request.read(), type=CertificateRequest)
            identity = SpiffeId.parse(wanted.identity)
        except (ValueError, RecursionError, TimeoutError) as error:
            raise self._refused(node, "", web.HTTPBadRequest, "bad", f"not a certificate request: {error}") from None
        if identity not in self._state.translation.identities.get(node, ()):
            text = f"no pod of {identity} runs on {node}; a node gets certificates for its own pods' identities only"
            raise self._refused(node, wanted.identity, web.HTTPForbidden, "forbidden", text)
        try:
            chain = self._authority.issue(wanted.csr, identity, now=self._now(), lifetime=self._lifetime)
        except CsrError as error:
            raise self._refused(node, wanted.identity, web.HTTPBadRequest, "bad", str(error)) from None
        self._state.metrics.certificates.labels("issued").inc()
        _log.info("certificate issued", extra={"node": node, "identity": wanted.identity})
        reply = CertificateReply(chain=chain, roots=self._authority.roots)
        return web.Response(body=encode(reply), content_type="application/json")

    async def listen(self, host: str | None, port: int, context: ssl.SSLContext) -> Listener:
        """Start serving; the caller closes."""
        runner = web.AppRunner(
            self.application(), access_log=None, handle_signals=False, keepalive_timeout=30.0, shutdown_timeout=2.0
        )
        await runner.setup()
        server = runner.server
        assert server is not None  # set up above
        try:
            door = Door(context=context, make=server, listening=listeners(host, port))
        except BaseException:
            await runner.cleanup()
            raise
        self._doors.append(door)
        door.open()
        return Listener(runner, door, self)

    def _authenticate(self, request: web.Request) -> str:
        """The node's name, or 401."""
        node = request.headers.get(NODE_HEADER, "")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._tokens.allows(node, token.strip()):
            for door in self._doors:
                door.admit(request.protocol)
            return node
        _log.warning("a wrong token", extra={"node": node[:100], "peer": request.remote})
        text = f"the token is not the bootstrap token of node {node[:100]!r}"
        refusal = web.HTTPUnauthorized(text=text, headers={"WWW-Authenticate": "Bearer"})
        refusal.force_close()
        raise refusal

    def _refused(
        self, node: str, identity: str, status: type[web.HTTPException], outcome: str, why: str
    ) -> web.HTTPException:
        self._state.metrics.certificates.labels(outcome).inc()
        _log.warning("certificate refused", extra={"node": node, "identity": identity[:300], "why": why[:300]})
        return status(text=why[:500])

    def _count(self) -> None:
        self._state.metrics.nodes.set(len(self._streams))


@dataclass(frozen=True, slots=True)
class Listener:
    """A started server."""

    _runner: web.AppRunner
    _door: Door
    _server: Server

    @property
    def port(self) -> int:
        return self._door.port

    async def close(self) -> None:
        """No new connections, then no streams, then nothing."""
        await self._door.close()
        await self._server.stop()
        await self._runner.cleanup()


class _Socket:
    """What `stream` needs of aiohttp's WebSocket."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        async for message in self._socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return
            yield message.data

    async def send(self, data: bytes) -> None:
        await self._socket.send_frame(data, WSMsgType.TEXT)


def tls_context() -> ssl.SSLContext:
    """TLS 1.3, no tickets; the certificate comes with `load_identity`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    return context


async def keep_identity(context: ssl.SSLContext, authority: Authority, names: list[str], scratch: Path) -> None:
    """Renew the controller's own certificate at half of its life, forever. Live connections keep theirs."""
    while True:
        not_after = load_identity(context, authority, names, scratch)
        left = (not_after - datetime.now(UTC)).total_seconds()
        await asyncio.sleep(max(1.0, left / 2))


def load_identity(context: ssl.SSLContext, authority: Authority, names: list[str], scratch: Path) -> datetime:
    """Give the context a fresh key and certificate; when they end. OpenSSL takes them from a file, which is removed."""
    fresh = authority.server(names, now=datetime.now(UTC))
    with tempfile.NamedTemporaryFile(dir=scratch, prefix=".server.") as file:
        file.write(fresh.key + fresh.chain)
        file.flush()
        context.load_cert_chain(file.name)
    return fresh.not_after
