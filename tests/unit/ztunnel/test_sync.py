"""The stream from the controller, as transcripts against a real server over TLS."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from controller import ca
from mesh.control import (
    Ack,
    CertificateReply,
    CertificateRequest,
    FromNode,
    Hello,
    Nack,
    PodStatus,
    Redirection,
    Update,
    decode_from_node,
    encode,
    entry,
)
from mesh.model import Workload
from ztunnel.holdings import Holdings
from ztunnel.journal import Journal, Reader
from ztunnel.sync import Sync, backoff
from ztunnel.uplink import Refusal, Uplink

A = Workload(uid="u/a", name="a", namespace="shop", addresses=("10.0.0.1",))
B = Workload(uid="u/b", name="b", namespace="shop", addresses=("10.0.0.2",))
STATUS = PodStatus(uid="u/a", instance="i", redirection=Redirection.ENABLED)
TIMEOUT = 20


@dataclass
class Stream:
    """The controller's end of one WebSocket."""

    socket: web.WebSocketResponse
    headers: dict[str, str]

    async def heard(self) -> FromNode:
        message = await asyncio.wait_for(self.socket.receive(), TIMEOUT)
        return decode_from_node(message.data)

    async def say(self, update: Update | bytes) -> None:
        await self.socket.send_bytes(update if isinstance(update, bytes) else encode(update))


@dataclass
class Controller:
    """A server whose conversation the test leads."""

    state: Path
    port: int = 0
    streams: asyncio.Queue[Stream] = field(default_factory=asyncio.Queue)
    status: int = 0  # answer every stream with this HTTP status
    certificate: Callable[[CertificateRequest], CertificateReply] | None = None
    _runner: web.AppRunner | None = None
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        self._stopped.clear()
        authority = ca.load_or_create(self.state, trust_domain="cluster.local", now=datetime.now(UTC))
        identity = authority.server(["127.0.0.1"], now=datetime.now(UTC))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        chain, key = self.state / "server.crt", self.state / "server.key"
        chain.write_bytes(_pem(identity.chain))
        key.write_bytes(_pem(identity.key))
        context.load_cert_chain(chain, key)
        app = web.Application()
        app.router.add_get("/v1/stream", self._stream)
        app.router.add_post("/v1/certificates", self._certificate)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        assert self._runner is not None
        self._stopped.set()
        await self._runner.cleanup()

    async def joined(self) -> Stream:
        return await asyncio.wait_for(self.streams.get(), TIMEOUT)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self.status:
            return web.Response(status=self.status)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.streams.put_nowait(Stream(socket, dict(request.headers)))
        await self._stopped.wait()  # the test receives
        return socket

    async def _certificate(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=CertificateRequest)
        if self.certificate is None:
            return web.Response(status=403, text="not on this node")
        return web.Response(body=encode(self.certificate(asked)))


def _pem(value: str | bytes | tuple[str, ...]) -> bytes:
    if isinstance(value, tuple):
        value = "".join(value)
    return value if isinstance(value, bytes) else value.encode()


async def _at_once() -> None:
    """Nothing is left to be judged."""


@dataclass
class Node:
    sync: Sync
    uplink: Uplink
    applied: list[Holdings]


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[Controller]:
    server = Controller(tmp_path / "state")
    server.state.mkdir()
    await server.start()
    yield server
    await server.stop()


@asynccontextmanager
async def node(
    controller: Controller,
    tmp_path: Path,
    *,
    root: Path | None = None,
    settled: Callable[[], Awaitable[object]] | None = None,
) -> AsyncIterator[Node]:
    token = tmp_path / "token"
    token.write_text("secret\n")
    uplink = Uplink(
        address=f"127.0.0.1:{controller.port}", node="n1", root=root or controller.state / "ca.crt", token=token
    )
    applied: list[Holdings] = []
    sync = Sync(
        uplink=uplink,
        journal=Journal(path=tmp_path / "snapshot.jsonl"),
        apply=applied.append,
        settled=settled or _at_once,
        joined=lambda: None,
        rng=random.Random(1),
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(sync.run())
        try:
            yield Node(sync, uplink, applied)
        finally:
            running.cancel()


async def test_hello_update_ack(controller: Controller, tmp_path: Path) -> None:
    async with node(controller, tmp_path) as n:
        stream = await controller.joined()
        assert (stream.headers["Authorization"], stream.headers["X-Gossamer-Node"]) == ("Bearer secret", "n1")
        assert await stream.heard() == Hello(node="n1", version="1", known={})
        await stream.say(Update(nonce=7, upserts=(entry(A),)))
        assert await stream.heard() == Ack(nonce=7)
        assert n.applied[-1].snapshot.workload_at("10.0.0.1") == A
        assert n.sync.connected
        assert n.sync.synced


async def test_it_is_acknowledged_when_all_is_judged_and_applied_before(controller: Controller, tmp_path: Path) -> None:
    asked, judged = asyncio.Event(), asyncio.Event()

    async def settled() -> None:
        asked.set()
        await judged.wait()

    async with node(controller, tmp_path, settled=settled) as n:
        stream = await controller.joined()
        await stream.heard()
        await stream.say(Update(nonce=1, upserts=(entry(A),)))
        await stream.say(Update(nonce=2, upserts=(entry(B),)))
        await asyncio.wait_for(asked.wait(), TIMEOUT)
        assert n.applied[0].snapshot.workload_at("10.0.0.1") == A
        n.sync.report(STATUS)
        assert await stream.heard() == STATUS, "nothing else waits"
        judged.set()
        assert [await stream.heard(), await stream.heard()] == [Ack(nonce=1), Ack(nonce=2)]


async def test_whoever_leaves_unanswered_is_joined_again(controller: Controller, tmp_path: Path) -> None:
    async with node(controller, tmp_path, settled=asyncio.Event().wait):
        stream = await controller.joined()
        await stream.heard()
        await stream.say(Update(nonce=1, upserts=(entry(A),)))
        await stream.socket.close()
        again = await controller.joined()
        assert await again.heard() == Hello(node="n1", version="1", known={A.key: entry(A).hash})


async def test_one_bad_resource_is_nacked_and_the_rest_applied(controller: Controller, tmp_path: Path) -> None:
    async with node(controller, tmp_path) as n:
        stream = await controller.joined()
        await stream.heard()
        await stream.say(Update(nonce=1, upserts=(entry(A), entry(replace(B, addresses=("nonsense",))))))
        answer = await stream.heard()
        assert isinstance(answer, Nack)
        assert (answer.nonce, list(answer.errors)) == (1, [B.key])
        assert set(n.applied[-1].snapshot.workloads) == {A.uid}
        text = encode(Update(nonce=2, upserts=(entry(B),))).replace(b'"HEALTHY"', b'"SO-SO"')
        await stream.say(text)
        answer = await stream.heard()
        assert isinstance(answer, Nack)
        assert "SO-SO" in answer.errors["upserts[0]"]
        await stream.say(Update(nonce=3, upserts=(entry(B),)))
        assert await stream.heard() == Ack(nonce=3)


async def test_statuses_are_sent_now_and_after_each_reconnection(controller: Controller, tmp_path: Path) -> None:
    async with node(controller, tmp_path) as n:
        n.sync.report(STATUS)
        first = await controller.joined()
        assert isinstance(await first.heard(), Hello)
        assert await first.heard() == STATUS
        n.sync.report(STATUS)
        pending = PodStatus(uid="u/b", instance="j", redirection=Redirection.PENDING, error="no certificate")
        n.sync.report(pending)
        assert await first.heard() == pending
        n.sync.forget("j")
        await first.socket.close()
        second = await controller.joined()
        assert isinstance(await second.heard(), Hello)
        assert await second.heard() == STATUS


async def test_what_is_held_is_not_sent_again(controller: Controller, tmp_path: Path) -> None:
    async with node(controller, tmp_path) as n:
        stream = await controller.joined()
        await stream.heard()
        await stream.say(Update(nonce=1, upserts=(entry(A), entry(B))))
        await stream.heard()
        await stream.say(Update(nonce=2, removes=(B.key,)))
        await stream.heard()
        await stream.socket.close()
        again = await controller.joined()
        assert await again.heard() == Hello(node="n1", version="1", known={A.key: entry(A).hash})
        assert n.applied[-1].snapshot.workload_at("10.0.0.1") == A


async def test_the_controller_may_be_away_and_come_back(controller: Controller, tmp_path: Path) -> None:
    async with node(controller, tmp_path) as n:
        stream = await controller.joined()
        await stream.heard()
        await stream.say(Update(nonce=1, upserts=(entry(A),)))
        await stream.heard()
        await controller.stop()
        assert await _error(n)
        assert not n.sync.connected
        assert n.applied[-1].snapshot.workload_at("10.0.0.1") == A
        await controller.start()
        again = await controller.joined()
        assert await again.heard() == Hello(node="n1", version="1", known={A.key: entry(A).hash})


async def test_a_restarted_agent_begins_with_its_copy(controller: Controller, tmp_path: Path) -> None:
    async with node(controller, tmp_path) as n:
        stream = await controller.joined()
        await stream.heard()
        await stream.say(Update(nonce=1, upserts=(entry(A),)))
        await stream.heard()
    async with node(controller, tmp_path) as n:
        assert n.sync.restore()
        assert n.applied[0].snapshot.workload_at("10.0.0.1") == A
        assert not n.sync.synced
        stream = await controller.joined()
        assert await stream.heard() == Hello(node="n1", version="1", known={A.key: entry(A).hash})


@pytest.mark.parametrize(
    "gibberish", [b"", b"{}", b'{"type":"ack","nonce":1}', b"[" * 200_000, encode(Hello(node="x", version="1"))]
)
async def test_gibberish_begins_the_stream_anew(controller: Controller, tmp_path: Path, gibberish: bytes) -> None:
    async with node(controller, tmp_path) as n:
        stream = await controller.joined()
        await stream.heard()
        await stream.say(gibberish)
        again = await controller.joined()
        assert isinstance(await again.heard(), Hello)
        assert n.applied == []


async def _error(n: Node) -> str:
    async with asyncio.timeout(TIMEOUT):
        while not n.sync.error:  # noqa: ASYNC110  # a field for tables, with no event of its own
            await asyncio.sleep(0.01)
    return n.sync.error


async def test_a_controller_of_another_ca_is_not_spoken_to(controller: Controller, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    ca.load_or_create(stranger, trust_domain="cluster.local", now=datetime.now(UTC))
    async with node(controller, tmp_path, root=stranger / "ca.crt") as n:
        assert "certificate verify failed" in await _error(n)
        assert controller.streams.empty()


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda c, t: setattr(c, "status", 401), "the controller answered 401"),
        (lambda c, t: (c.state / "ca.crt").unlink(), "ca.crt"),
        (lambda c, t: (c.state / "ca.crt").write_text("nonsense"), "ca.crt"),
    ],
)
async def test_errors_say_what_is_wrong(
    controller: Controller, tmp_path: Path, prepare: Callable[[Controller, Path], None], says: str
) -> None:
    prepare(controller, tmp_path)
    async with node(controller, tmp_path) as n:
        assert says in await _error(n)


async def test_a_new_token_is_used_at_the_next_connection(controller: Controller, tmp_path: Path) -> None:
    async with node(controller, tmp_path):
        stream = await controller.joined()
        (tmp_path / "token").write_text("renewed")
        await stream.socket.close()
        again = await controller.joined()
        assert again.headers["Authorization"] == "Bearer renewed"


async def test_certificates_are_asked_for_over_the_same_way(controller: Controller, tmp_path: Path) -> None:
    reply = CertificateReply(chain=("leaf",), roots=("root",))
    async with node(controller, tmp_path) as n:
        request = CertificateRequest(identity="spiffe://x", csr="csr")
        with pytest.raises(Refusal, match="403: not on this node"):
            await n.uplink.certificate(request)
        asked: list[CertificateRequest] = []

        def sign(request: CertificateRequest) -> CertificateReply:
            asked.append(request)
            return reply

        controller.certificate = sign
        assert await n.uplink.certificate(request) == reply
        assert asked == [request]


def test_backoff_is_random_and_bounded() -> None:
    for attempt in range(1, 60):
        seconds = [backoff(attempt, random.Random(seed)) for seed in range(20)]
        assert len(set(seconds)) > 1
        assert all(0.1 <= s <= 15 for s in seconds)


def update(number: int, *workloads: Workload) -> Update:
    return Update(nonce=number, upserts=tuple(entry(w) for w in workloads))


async def test_after_a_hand_over_the_old_agent_obeys_what_the_new_one_is_told(
    controller: Controller, tmp_path: Path
) -> None:
    async with node(controller, tmp_path) as old:
        stream = await asyncio.wait_for(controller.streams.get(), TIMEOUT)
        await stream.heard()
        await stream.say(update(1, A))
        await stream.heard()
        held = old.sync.holdings
    lost = asyncio.Event()
    obeying = asyncio.create_task(old.sync.obey(lost.set))
    async with node(controller, tmp_path) as new:
        new.sync.inherit(held, synced=True)
        assert new.sync.synced
        assert new.applied == [held]
        stream = await asyncio.wait_for(controller.streams.get(), TIMEOUT)
        hello = await stream.heard()
        assert isinstance(hello, Hello)
        assert hello.known == held.hashes
        await stream.say(update(2, B))
        assert isinstance(await stream.heard(), Ack)
        async with asyncio.timeout(TIMEOUT):
            while B.uid not in old.sync.holdings.snapshot.workloads:  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)
        assert old.applied[-1] is old.sync.holdings
    assert not lost.is_set()
    (tmp_path / "snapshot.jsonl").unlink()
    await asyncio.wait_for(lost.wait(), TIMEOUT)
    await obeying


async def test_a_copy_that_is_not_what_was_handed_over_is_written_anew(controller: Controller, tmp_path: Path) -> None:
    held, _ = Holdings().after(update(1, A))
    path = tmp_path / "snapshot.jsonl"
    Journal(path=path).add(encode(update(1, B)), to=Holdings())
    async with node(controller, tmp_path) as new:
        new.sync.inherit(held, synced=True)
        await asyncio.wait_for(controller.streams.get(), TIMEOUT)
        async with asyncio.timeout(TIMEOUT):
            reader = Reader(path=path)
            while not (reader.read() and reader.holdings.hashes == held.hashes):  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)
