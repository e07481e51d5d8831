"""The door over real TCP and TLS: who waits, who is let in, who has to go."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller import ca, door, serve
from controller.door import Door, listeners

DEADLINE = 10


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@dataclass
class House:
    door: Door
    tls: ssl.SSLContext
    met: list[Echo]
    news: asyncio.Event

    async def knock(self, host: str = "127.0.0.1", *, tls: bool = False) -> tuple:
        """Waits until the door has seen it."""
        self.news.clear()
        context = self.tls if tls else None
        made = await asyncio.open_connection("127.0.0.1", self.door.port, ssl=context, local_addr=(host, 0))
        async with asyncio.timeout(DEADLINE):
            await self.news.wait()
        return made

    async def answers(self, connection: tuple) -> bool:
        reader, writer = connection
        writer.write(b"x")
        try:
            return await asyncio.wait_for(reader.read(1), DEADLINE) == b"x"
        except ConnectionError:
            return False


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    authority = ca.load_or_create(tmp_path, trust_domain="cluster.local", now=datetime.now(UTC))
    context = serve.tls_context()
    serve.load_identity(context, authority, ["127.0.0.1"], tmp_path)
    met: list[Echo] = []
    news = asyncio.Event()

    def make() -> Echo:
        met.append(Echo())
        news.set()
        return met[-1]

    made = Door(context=context, make=make, listening=listeners("127.0.0.1", 0))
    made.open()
    yield House(made, ssl.create_default_context(cadata="".join(authority.roots)), met, news)
    await made.close()


async def ended(connection: tuple) -> bool:
    reader, writer = connection
    try:
        return await asyncio.wait_for(reader.read(), DEADLINE) == b""
    except ConnectionError:
        return True
    finally:
        writer.close()


async def test_of_a_peer_with_too_many_the_oldest_goes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "WAITING_PER_PEER", 2)
    first, second, third = [await house.knock() for _ in range(3)]
    assert await ended(first)
    assert len(house.door._waiting) == 2
    speaks = await house.knock(tls=True)
    assert await house.answers(speaks)
    for _, writer in (second, third, speaks):
        writer.close()


async def test_many_peers_together_keep_nobody_out(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "WAITING", 4)
    silent = [await house.knock(host) for host in ("127.0.0.3", "127.0.0.2", "127.0.0.2", "127.0.0.4")]
    speaks = await house.knock(tls=True)
    assert await ended(silent[1]), "of the peer with the most, the oldest"
    assert await house.answers(speaks)
    for _, writer in (*silent, speaks):
        writer.close()


async def test_who_was_admitted_waits_no_more_and_stays(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "WAITING_PER_PEER", 1)
    monkeypatch.setattr(door, "PATIENCE_S", 0.2)
    member = await house.knock(tls=True)
    house.door.admit(house.met[0])
    stranger = await house.knock(tls=True)
    assert await ended(stranger)
    assert await house.answers(member)
    member[1].close()


async def test_what_is_no_tls_goes_at_once(house: House) -> None:
    connection = await house.knock()
    connection[1].write(b"GET / HTTP/1.0\r\n\r\n")
    assert await ended(connection)
    assert not house.door._waiting


def test_listeners_of_all_addresses_share_a_port() -> None:
    found = listeners(None, 0)
    assert len({sock.getsockname()[1] for sock in found}) == 1
    for sock in found:
        sock.close()
