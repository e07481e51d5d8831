"""What strangers can do to a listener: wait, or not read, and be ended; not keep others out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from ztunnel.admin import listener


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Verbose(asyncio.Protocol):
    """Says more than sockets hold, and closes; nobody has heard all of it."""

    made: ClassVar[list[asyncio.Transport]] = []
    lost: ClassVar[asyncio.Semaphore]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.made.append(transport)
        transport.write(bytes(1 << 25))
        transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.release()


@asynccontextmanager
async def listening(
    host: str = "127.0.0.1", port: int = 0, protocol: type[asyncio.Protocol] = Echo
) -> AsyncIterator[asyncio.Future[int]]:
    bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        listener.listen(host, port, protocol, lambda made: bound.set_result(made.getsockname()[1]))
    )
    try:
        yield bound
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def answers(port: int, source: str = "127.0.0.1") -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        writer.write(b"x")
        return await asyncio.wait_for(reader.read(1), 20) == b"x"
    except ConnectionError:
        return False
    finally:
        writer.close()


async def silent(port: int, source: str, count: int) -> list[asyncio.StreamWriter]:
    return [(await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0)))[1] for _ in range(count)]


async def test_one_peer_may_hold_so_many_and_does_not_keep_another_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CROWDED_SECONDS", 3600.0)
    async with listening() as bound:
        port = await bound
        held = await silent(port, "127.0.0.66", 40)
        assert not await answers(port, "127.0.0.66")
        assert await answers(port)
        held[0].close()
        await held[0].wait_closed()
        async with asyncio.timeout(20):
            while not await answers(port, "127.0.0.66"):  # the listener hears of the close in its own time
                pass
        for writer in held:
            writer.close()


async def test_after_its_first_seconds_the_oldest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CROWDED_SECONDS", 3600.0)
    async with listening() as bound:
        port = await bound
        held = await silent(port, "127.0.0.66", listener.PER_PEER)
        assert not await answers(port, "127.0.0.66")
        monkeypatch.setattr(listener, "CROWDED_SECONDS", 0.0)
        assert await answers(port, "127.0.0.66")
        for writer in held:
            writer.close()


async def test_where_all_is_full_who_has_most_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CROWDED_SECONDS", 3600.0)
    async with listening() as bound:
        port = await bound
        held = [
            writer
            for n in range(listener.IN_ALL // listener.PER_PEER)
            for writer in await silent(port, f"127.0.1.{n + 1}", listener.PER_PEER)
        ]
        assert len(held) == listener.IN_ALL
        assert await answers(port, "127.0.2.1")
        for writer in held:
            writer.close()


async def test_where_all_is_full_and_nobody_has_more_the_first_seconds_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CROWDED_SECONDS", 3600.0)
    monkeypatch.setattr(listener, "IN_ALL", 3)
    async with listening() as bound:
        port = await bound
        held = [(await silent(port, f"127.0.1.{n + 1}", 1))[0] for n in range(3)]
        assert not await answers(port, "127.0.2.1")
        monkeypatch.setattr(listener, "CROWDED_SECONDS", 0.0)
        assert await answers(port, "127.0.2.1")
        for writer in held:
            writer.close()


async def test_who_says_nothing_is_ended_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when nobody else comes."""
    monkeypatch.setattr(listener, "SECONDS", 0.3)
    async with listening() as bound:
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", await bound)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(1), 60) == b""
            writer.close()


async def test_who_does_not_read_is_ended_in_time_and_counts_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when all was written, and the connection closed, as far as the protocol is concerned."""
    monkeypatch.setattr(Verbose, "made", [])
    monkeypatch.setattr(Verbose, "lost", asyncio.Semaphore(0), raising=False)
    monkeypatch.setattr(listener, "CROWDED_SECONDS", 3600.0)
    monkeypatch.setattr(listener, "SECONDS", 3.0)
    async with listening(protocol=Verbose) as bound:
        port = await bound
        readers = []
        for _ in range(2 * listener.PER_PEER):
            s = socket.create_connection(("127.0.0.1", port))
            s.settimeout(60)
            readers.append(s)
        async with asyncio.timeout(60):
            for _ in range(listener.PER_PEER):
                await Verbose.lost.acquire()
        assert len(Verbose.made) == listener.PER_PEER
        assert not any(transport.get_write_buffer_size() for transport in Verbose.made)
        for s in readers:
            assert await asyncio.to_thread(drained, s) < 1 << 25
            s.close()


def drained(s: socket.socket) -> int:
    size = 0
    with contextlib.suppress(ConnectionResetError):
        while data := s.recv(1 << 20):
            size += len(data)
    return size


async def test_ends_its_connections_when_it_ends() -> None:
    async with listening() as bound:
        reader, writer = await asyncio.open_connection("127.0.0.1", await bound)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(1), 20) == b""
    writer.close()


async def test_a_taken_port_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "RETRY_SECONDS", 0.02)
    warned = asyncio.Event()
    handler = logging.Handler()
    handler.emit = lambda record: warned.set() if "is another agent" in record.getMessage() else None  # type: ignore[method-assign]
    logging.getLogger(listener.__name__).addHandler(handler)
    try:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            async with listening(port=port) as bound:
                await asyncio.wait_for(warned.wait(), 20)
                assert not bound.done()
                other.close()
                assert await asyncio.wait_for(bound, 20) == port
                assert await answers(port)
    finally:
        logging.getLogger(listener.__name__).removeHandler(handler)


async def test_listens_on_both_families() -> None:
    async with listening(host="") as bound:
        port = await bound
        assert await answers(port)
        reader, writer = await asyncio.open_connection("::1", port)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        writer.close()


def test_a_unix_socket_is_for_its_owner_and_replaces_what_a_killed_agent_left(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    assert not listener.is_listening(path)
    for _ in range(2):
        made = listener.unix_listener(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert listener.is_listening(path)
        made.close()
        assert path.exists()
        assert not listener.is_listening(path)
    with pytest.raises(OSError, match=r"none/a\.sock"):
        listener.unix_listener(tmp_path / "none" / "a.sock")
