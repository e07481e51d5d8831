"""Descriptors and bytes are counted while they are held, given back afterwards, and run out for the greedy first."""

from __future__ import annotations

import asyncio
import ctypes
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.unit.ztunnel.pump.nodes import DEADLINE, Node, Pair, application, connect, echo, eventually, pair, port_of
from tests.unit.ztunnel.pump.test_tunnel import HEADERS, PREFACE, Peer, client_of, frame
from ztunnel.orders import Captured, Opened
from ztunnel.pump import Limits

NO_WINDOW = frame(4, 0, 0, b"\x00\x04\x00\x00\x00\x00")  # SETTINGS_INITIAL_WINDOW_SIZE: 0
KIB, MIB = 1 << 10, 1 << 20


async def hose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An application that sends for as long as anybody takes it."""
    try:
        while True:
            writer.write(bytes(64 * KIB))
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def unread(made: Pair, streams: int) -> AsyncIterator[Peer]:
    """A peer that asks for much on many streams, and takes none of it."""
    async with client_of(made) as peer:
        peer.writer.write(PREFACE + NO_WINDOW + b"".join(frame(1, 4, 1 + 2 * n, HEADERS) for n in range(streams)))
        yield peer


async def at_rest(made: Node) -> int:
    """Bytes held, once they do not change any more."""
    before = -1
    while before != (now := made.engine.held[1]):
        before = now
        await asyncio.sleep(0.3)
    return now


def test_a_quarter_of_the_descriptors_is_left_to_others() -> None:
    assert Limits.with_descriptors(20_000).descriptors == 15_000
    assert Limits.with_descriptors(1024).descriptors == Limits().descriptors


async def test_descriptors_are_counted_while_they_are_open_or_promised() -> None:
    async with pair() as made, application(made, echo):
        assert made.client.engine.held == made.server.engine.held == (0, 0, 0)
        _, writer = await made.connect()
        await made.client.opened()
        await made.server.opened()
        assert made.client.engine.held[0] == 2, "the application's and the tunnel's"
        assert made.server.engine.held[0] == 2, "the tunnel's and the last hop's"
        writer.close()
        await made.client.ended()
        await made.server.ended()
        made.client.engine.remove_pod("client-pod")
        await eventually(lambda: made.client.engine.held[0] == made.server.engine.held[0] == 0)


async def test_a_connection_holds_the_descriptor_that_it_will_dial_with() -> None:
    made = Node("pod")
    made.memory.destination = SocketAddress("10.0.0.2", 80)
    _, writer = await connect(made.address("outbound4"))
    await made.until(lambda: made.of(Captured))
    assert made.engine.held[0] == 2
    writer.close()
    await made.engine.drain(0)
    assert made.engine.held[0] == 0


async def test_without_descriptors_the_greedy_pod_is_refused_and_another_is_not() -> None:
    made = Node("greedy", limits=Limits(descriptors=20))
    made.memory.destination = SocketAddress("10.0.0.2", 80)
    modest = port_of(made.enrol_another("modest").outbound4)
    open_ = []
    while Reason.LIMIT not in made.engine.refused:
        with suppress(ConnectionResetError):
            open_.append(socket.create_connection(made.address("outbound4"), DEADLINE))
        await eventually(lambda: len(made.of(Captured)) == len(open_) or made.engine.refused)
    assert 5 < len(made.of(Captured)) < 8, "half of what is left, each with two descriptors"
    open_.append(socket.create_connection(("127.0.0.1", modest), DEADLINE))
    await made.until(lambda: made.of(Captured)[-1].pod == "modest")
    assert made.engine.held[0] <= 20
    for sock in open_:
        sock.close()
    await made.engine.drain(0)


async def test_tunnels_are_refused_without_descriptors() -> None:
    async with pair(server_limits=Limits(descriptors=2)) as made:
        kept = [await connect(made.server.address("tunnel4")) for _ in range(2)]
        await eventually(lambda: made.server.engine.held[0] == 2)
        with pytest.raises(ConnectionResetError):
            reader, _ = await connect(made.server.address("tunnel4"))
            await asyncio.wait_for(reader.read(), DEADLINE)
        await eventually(lambda: made.server.engine.refused == {Reason.LIMIT: 1})
        for _, writer in kept:
            writer.close()


@pytest.mark.parametrize(
    "limits", [Limits(buffered_per_pod=MIB), Limits(buffered=2 * MIB)], ids=["of the pod", "of all"]
)
async def test_a_pod_whose_buffers_are_full_begins_no_connection(limits: Limits) -> None:
    """Full at a MiB: alone it has half of what all may."""
    async with pair(server_limits=limits) as made, application(made, hose):
        async with unread(made, 50) as peer:
            await eventually(lambda: len(made.server.of(Opened)) == 50 or made.server.engine.refused)
            held = await at_rest(made.server)
            assert MIB <= held < 50 * 64 * KIB + 2 * MIB, "what the pod may, then a quarter of each stream's buffer"
            peer.writer.write(frame(1, 4, 1001, HEADERS))
            await eventually(lambda: made.server.engine.refused.get(Reason.LIMIT, 0) > 0)
        await eventually(lambda: made.server.engine.held == (0, 0, 0))
        made.application = SocketAddress("127.0.0.1", made.application.port)
        _, writer = await made.connect()
        await made.client.opened()
        writer.close()


async def test_streams_go_on_while_buffers_are_full() -> None:
    async with pair(server_limits=Limits(buffered_per_pod=MIB)) as made, application(made, hose):
        reader, writer = await made.connect()
        await made.client.opened()
        async with unread(made, 20):
            await at_rest(made.server)
            assert made.server.engine.held[1] >= MIB
            left = 32 * MIB
            while left > 0:
                left -= len(await asyncio.wait_for(reader.read(MIB), DEADLINE))
        writer.close()


async def test_windows_grow_out_of_the_pods_budget_and_give_it_back() -> None:
    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(MIB):
            pass
        writer.close()

    async with pair(server_limits=Limits(window_budget_per_pod=192 * KIB)) as made, application(made, sink):
        made_ = [await made.connect() for _ in range(4)]
        for _ in range(64):
            for _, writer in made_:
                writer.write(bytes(256 * KIB))
                await writer.drain()
        await eventually(lambda: made.server.engine.held[2] == 192 * KIB)
        for _, writer in made_:
            writer.close()
        await made.server.ended(4)
        await eventually(lambda: made.server.engine.held[1:] == (0, 0))


class Heap(ctypes.Structure):
    """struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def in_use() -> int:
    """Bytes of the C heap."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Heap
    heap = mallinfo2()
    return heap.uordblks + heap.hblkhd


async def test_connections_that_have_been_busy_shrink_when_they_are_idle() -> None:
    """Each has moved a MiB both ways, through buffers of 256 KiB. What is left is of both applications too."""
    count, payload = 32, bytes(MIB)
    async with pair() as made, application(made, echo):
        open_ = [await made.connect() for _ in range(count)]
        await made.server.opened(count)
        idle = in_use()
        for reader, writer in open_:
            writer.write(payload)
            assert await asyncio.wait_for(reader.readexactly(len(payload)), DEADLINE) == payload
        await asyncio.gather(
            *(reader.readexactly(len(payload)) for reader, writer in open_ if not writer.write(payload))
        )
        assert in_use() - idle > count * 256 * KIB, "in the middle of it"
        await eventually(lambda: in_use() - idle < count * 64 * KIB)
        for _, writer in open_:
            writer.close()
        await made.server.ended(count)
    assert made.client.engine.held == made.server.engine.held == (0, 0, 0)
