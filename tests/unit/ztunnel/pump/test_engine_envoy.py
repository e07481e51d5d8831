"""Against a peer nobody here wrote: Envoy as HBONE client of our inbound, and as HBONE server for our outbound,
with certificates of the mesh's own authority."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from mesh.identity import SpiffeId
from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.unit.ztunnel.pump import envoy
from tests.unit.ztunnel.pump.authority import CLIENT, SERVER, ControllerAuthority
from tests.unit.ztunnel.pump.nodes import DEADLINE, Pair, application, echo, eventually, pair
from ztunnel.orders import Offered, Refuse

Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
AUTHORITY = "10.0.0.2:8080"


@asynccontextmanager
async def envoy_as_client(made: Pair, directory: Path) -> AsyncIterator[Dial]:
    listen = SocketAddress("127.0.0.1", envoy.free_port())
    target = SocketAddress(*made.server.address("tunnel4"))
    configuration = envoy.client(listen, target, AUTHORITY, made.authority.issue(CLIENT), SERVER, directory)
    async with envoy.running(configuration, directory):
        yield lambda: asyncio.open_connection(*listen)


@asynccontextmanager
async def envoy_as_server(made: Pair, directory: Path, identity: SpiffeId = SERVER) -> AsyncIterator[Dial]:
    listen = SocketAddress("127.0.0.1", envoy.free_port())
    configuration = envoy.server(listen, made.application, made.authority.issue(identity), CLIENT, directory)
    made.client.decide = lambda fact: made.tunnel(fact.id, address=listen)
    async with envoy.running(configuration, directory):
        yield made.connect


SIDES = pytest.mark.parametrize("side", [envoy_as_client, envoy_as_server], ids=["as client", "as server"])


async def exchange(dial: Dial, seed: int) -> None:
    """A length, so many random bytes in random pieces, and the same back; either side of the echo at its own pace."""
    random_ = random.Random(seed)
    payload = random_.randbytes(random_.choice([0, 1, 1000, 65536, 300_000, 2_000_000]))
    reader, writer = await dial()

    async def send() -> None:
        at = 0
        while at < len(payload):
            size = random_.choice([1, 100, 1500, 16384, 100_000])
            writer.write(payload[at : at + size])
            at += size
            await writer.drain()
        writer.write_eof()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        received = group.create_task(reader.read())
    assert received.result() == payload
    writer.close()


@SIDES
async def test_64_connections_are_byte_exact_and_half_close(side: Callable, tmp_path: Path) -> None:
    async with (
        pair(authority=ControllerAuthority(tmp_path / "ca")) as made,
        application(made, echo),
        side(made, tmp_path) as dial,
    ):
        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            for seed in range(64):
                group.create_task(exchange(dial, seed))
        node = made.server if side is envoy_as_client else made.client
        assert {fact.reason for fact in await node.ended(64)} == {Reason.OK}


async def test_envoy_is_known_by_its_certificate(tmp_path: Path) -> None:
    async with (
        pair(authority=ControllerAuthority(tmp_path / "ca")) as made,
        application(made, echo),
        envoy_as_client(made, tmp_path) as dial,
    ):
        reader, writer = await dial()
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
        (offered,) = made.server.of(Offered)
        assert (offered.method, offered.authority, offered.peer) == ("CONNECT", AUTHORITY, CLIENT)
        writer.close()


async def test_we_know_envoy_by_its_certificate(tmp_path: Path) -> None:
    async with (
        pair(authority=ControllerAuthority(tmp_path / "ca")) as made,
        application(made, echo),
        envoy_as_server(made, tmp_path) as dial,
    ):
        reader, writer = await dial()
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
        assert [opened.peer for opened in await made.client.opened()] == [SERVER]
        writer.close()


async def test_envoy_with_another_identity_gets_nothing(tmp_path: Path) -> None:
    other = SpiffeId("cluster.local", "default", "other")
    async with (
        pair(authority=ControllerAuthority(tmp_path / "ca")) as made,
        application(made, echo),
        envoy_as_server(made, tmp_path, other) as dial,
    ):
        reader, writer = await dial()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert (await made.client.ended())[0].reason == Reason.PEER_IDENTITY
        writer.close()


async def test_envoy_understands_a_refusal(tmp_path: Path) -> None:
    async with pair(authority=ControllerAuthority(tmp_path / "ca")) as made, envoy_as_client(made, tmp_path) as dial:
        made.server.decide = lambda fact: Refuse(id=fact.id, reason=Reason.POLICY_DENY)
        for _ in range(3):
            reader, writer = await dial()
            writer.write(b"secret")
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
            writer.close()
        ended = await made.server.ended(3)
        assert {(fact.reason, fact.sent) for fact in ended} == {(Reason.POLICY_DENY, 0)}
        assert made.server.engine.refused == {}


async def test_we_understand_envoys_refusal(tmp_path: Path) -> None:
    async with pair(authority=ControllerAuthority(tmp_path / "ca")) as made:
        made.application = SocketAddress("127.0.0.1", envoy.free_port())  # nobody there
        async with envoy_as_server(made, tmp_path) as dial:
            reader, writer = await dial()
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), DEADLINE)
            (fact,) = await made.client.ended()
            assert (fact.reason, fact.detail) == (Reason.TUNNEL_REFUSED, "http status: 503")
            writer.close()


@SIDES
async def test_a_reset_by_the_application_is_no_clean_end(side: Callable, tmp_path: Path) -> None:
    async def abandon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SOL_SOCKET, SO_LINGER
        writer.transport.abort()

    async with (
        pair(authority=ControllerAuthority(tmp_path / "ca")) as made,
        application(made, abandon),
        side(made, tmp_path) as dial,
    ):
        reader, writer = await dial()
        writer.write(b"x")
        if side is envoy_as_server:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), DEADLINE)
            assert (await made.client.ended())[0].reason == Reason.RESET_BY_PEER
        else:  # what Envoy makes of our RST_STREAM for its own client is its affair
            (fact,) = await made.server.ended()
            assert fact.reason == Reason.RESET_BY_PEER
        writer.close()


async def test_envoy_leaves_when_we_drain(tmp_path: Path) -> None:
    async with (
        pair(authority=ControllerAuthority(tmp_path / "ca")) as made,
        application(made, echo),
        envoy_as_client(made, tmp_path) as dial,
    ):
        reader, writer = await dial()
        writer.write(b"one")
        assert await asyncio.wait_for(reader.readexactly(3), DEADLINE) == b"one"
        draining = asyncio.create_task(made.server.engine.drain(DEADLINE))
        await eventually(lambda: not made.server.engine._pods["server-pod"].listening)
        writer.write(b"two")
        assert await asyncio.wait_for(reader.readexactly(3), DEADLINE) == b"two"
        writer.close()
        await asyncio.wait_for(draining, DEADLINE)
        assert [fact.reason for fact in await made.server.ended()] == [Reason.OK]
