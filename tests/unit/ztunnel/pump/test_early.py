"""What an application says before its CONNECT is answered goes with it: exact, bounded, and sent again if need be."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

import pytest

from mesh import http2
from mesh.reason import Reason
from tests.unit.ztunnel.pump.nodes import DEADLINE, Pair, application, echo, eventually, pair
from tests.unit.ztunnel.pump.test_engine import reset
from tests.unit.ztunnel.pump.test_tunnel import Peer, accept_all, client_of, server_for

EARLY = 4096  # ztunnel/pump/early.pxi


def data_of(peer: Peer) -> bytes:
    return b"".join(event.data for event in peer.of(http2.DataReceived))


async def test_it_comes_with_the_request_and_counts_once_the_stream_is_open() -> None:
    async def serve(peer: Peer) -> None:
        await peer.until(lambda: data_of(peer) == b"hello")
        assert not peer.of(http2.StreamEnded)
        assert set(made.client.engine.counts().values()) == {(0, 0)}
        await accept_all(peer)

    async with pair() as made, server_for(made, serve):
        reader, writer = await made.connect()
        writer.write(b"hello")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b"hello"
        (ended,) = await made.client.ended()
        assert (ended.reason, ended.sent, ended.received) == (Reason.OK, 5, 5)
        writer.close()


async def test_a_request_that_is_sent_again_has_it_again() -> None:
    said = os.urandom(300_000)
    count = 0

    async def refuse_twice(peer: Peer) -> None:
        nonlocal count
        count += 1
        if count > 2:
            await accept_all(peer)
            return
        await peer.until(lambda: len(data_of(peer)) == EARLY)
        assert data_of(peer) == said[:EARLY]
        peer.http.reset(peer.of(http2.HeadersReceived)[0].stream_id, 7)  # REFUSED_STREAM
        peer.http.goaway()
        await peer.until(lambda: False)

    async with pair() as made, server_for(made, refuse_twice):
        reader, writer = await made.connect()
        writer.write(said)
        assert await asyncio.wait_for(reader.readexactly(len(said)), DEADLINE) == said
        assert count == 3
        writer.close()
        (ended,) = await made.client.ended()
        assert (ended.sent, ended.received) == (len(said), len(said))


async def test_no_more_than_that_is_read_and_all_of_it_is_held_in_account() -> None:
    said = os.urandom(200_000)
    answered = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.until(lambda: len(data_of(peer)) >= EARLY)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await peer.until(lambda: len(data_of(peer)) > EARLY)
        assert data_of(peer) == said[:EARLY]
        assert made.client.engine.held[1] >= EARLY
        answered.set()
        await accept_all(peer)

    async with pair() as made, server_for(made, serve):
        reader, writer = await made.connect()
        writer.write(said)
        assert await asyncio.wait_for(reader.readexactly(len(said)), DEADLINE) == said
        assert answered.is_set()
        writer.close()
        await made.client.ended()
        await eventually(lambda: made.client.engine.held[1] == 0)


async def test_bytes_of_a_refused_connection_were_not_sent() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.until(lambda: data_of(peer) == b"hello")
        peer.http.respond(peer.of(http2.HeadersReceived)[0].stream_id, [(b":status", b"403")], True)
        peer.flush()
        await peer.until(lambda: False)

    async with pair() as made, server_for(made, refuse):
        reader, writer = await made.connect()
        writer.write(b"hello")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        (ended,) = await made.client.ended()
        assert (ended.reason, ended.sent) == (Reason.TUNNEL_REFUSED, 0)
        await eventually(lambda: made.client.engine.held[1] == 0)
        writer.close()


async def test_a_client_that_leaves_before_the_answer_is_an_error_of_its_own() -> None:
    async def serve(peer: Peer) -> None:
        await peer.until(lambda: data_of(peer) == b"hello")
        reset(client)
        await peer.until(lambda: peer.of(http2.StreamReset))
        cut.set_result(peer.of(http2.StreamReset)[0].error_code)

    cut = asyncio.get_running_loop().create_future()
    async with pair() as made, server_for(made, serve):
        _, client = await made.connect()
        client.write(b"hello")
        assert await asyncio.wait_for(cut, DEADLINE) == 8  # CANCEL
        assert (await made.client.ended())[0].reason == Reason.RESET_BY_PEER


async def test_who_says_nothing_is_relayed_all_the_same() -> None:
    async with pair() as made, application(made, echo):
        reader, writer = await made.connect()
        await made.client.opened()
        for size in (1, 5000, 100_000):
            said = os.urandom(size)
            writer.write(said)
            assert await asyncio.wait_for(reader.readexactly(size), DEADLINE) == said
        with contextlib.suppress(OSError):
            writer.write_eof()
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
        writer.close()


# The answer to one that came with bytes


async def ask(made: Pair, peer: Peer, said: bytes, *, until: Callable[[], object]) -> None:
    """A CONNECT and, in the same write, what goes with it."""
    stream = peer.http.request([(b":method", b"CONNECT"), (b":authority", str(made.application).encode())])
    peer.http.write(stream, said)
    await peer.until(until)


@pytest.mark.parametrize("said", [b"", b"hello", b"x" * EARLY], ids=["nothing", "little", "all that may be said"])
async def test_it_comes_though_the_application_says_nothing(said: bytes) -> None:
    heard = bytearray()
    done = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(heard) < len(said):
            heard.extend(await reader.read(65536))
        await done.wait()
        writer.close()

    async with pair() as made, application(made, listen), client_of(made) as peer:
        await ask(made, peer, said, until=lambda: peer.of(http2.HeadersReceived))
        (answer,) = peer.of(http2.HeadersReceived)
        assert (b":status", b"200") in answer.headers
        assert not peer.of(http2.DataReceived)
        done.set()
        await peer.until(lambda: peer.of(http2.StreamEnded))
        assert heard == said


async def test_it_comes_before_the_reply_and_the_end() -> None:
    async with pair() as made, application(made, echo), client_of(made) as peer:
        for number in range(1, 20):
            await ask(made, peer, b"hello", until=lambda: len(data_of(peer)) == 5)
            peer.http.end(peer.of(http2.HeadersReceived)[0].stream_id)
            await peer.until(lambda: peer.of(http2.StreamEnded))
            kinds = [type(event) for event in peer.events]
            wanted = [http2.HeadersReceived, http2.DataReceived, http2.StreamEnded]
            assert [kind for kind in kinds if kind in wanted] == wanted
            peer.events.clear()
            ended = await made.server.ended(number)
            assert (ended[-1].reason, ended[-1].sent, ended[-1].received) == (Reason.OK, 5, 5)


async def test_it_comes_before_the_error_of_an_application_that_resets() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        reset(writer)

    async with pair() as made, application(made, cut), client_of(made) as peer:
        await ask(made, peer, b"hello", until=lambda: peer.of(http2.StreamReset))
        (answer,) = peer.of(http2.HeadersReceived)
        assert (b":status", b"200") in answer.headers
        assert peer.of(http2.StreamReset)[0].error_code == 10  # CONNECT_ERROR
        assert (await made.server.ended())[0].reason == Reason.RESET_BY_PEER
