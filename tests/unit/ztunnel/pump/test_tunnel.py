"""A tunnel connection under a peer of our own making: violations, silence, GOAWAY, floods."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from mesh import http2
from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.unit.ztunnel.pump.authority import CLIENT, SERVER
from tests.unit.ztunnel.pump.contexts import contexts
from tests.unit.ztunnel.pump.nodes import DEADLINE, Pair, application, connect, echo, eventually, pair
from ztunnel.orders import Ended, Offered
from ztunnel.pump import Limits

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CONNECT = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.2:8080")]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


SETTINGS = frame(4, 0, 0)


class Peer:
    """One side of a tunnel, by hand: mesh.http2 over asyncio's TLS, or raw frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, client: bool) -> None:
        self.reader, self.writer = reader, writer
        settings = http2.Settings(initial_window_size=1 << 20, max_concurrent_streams=100)
        self.http = http2.Connection(client=client, settings=settings, limits=http2.Limits())
        self.events: list[http2.Event] = []

    def flush(self) -> None:
        self.writer.write(self.http.pull())

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not true():
                self.flush()
                data = await self.reader.read(65536)
                if not data:
                    raise ConnectionError("the other side closed")
                self.events += self.http.receive(data, asyncio.get_running_loop().time())
            self.flush()

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    async def ending(self) -> list[http2.Event]:
        """Everything until the other side closes."""
        async with asyncio.timeout(DEADLINE):
            try:
                while data := await self.reader.read(65536):
                    self.events += self.http.receive(data, asyncio.get_running_loop().time())
            except ConnectionError:
                pass
        return self.events


@asynccontextmanager
async def client_of(made: Pair) -> AsyncIterator[Peer]:
    context = contexts(made.authority.issue(CLIENT)).client
    host, port = made.server.address("tunnel4")
    reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="")
    try:
        yield Peer(reader, writer, client=True)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def server_for(made: Pair, serve: Callable[[Peer], object]) -> AsyncIterator[list[Peer]]:
    """A server by hand that `made.client` tunnels to; the peers it met."""
    context = contexts(made.authority.issue(SERVER)).server
    peers: list[Peer] = []

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, client=False)
        peers.append(peer)
        try:
            await serve(peer)
        except (ConnectionError, TimeoutError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=context)
    address = SocketAddress("127.0.0.1", server.sockets[0].getsockname()[1])
    made.client.decide = lambda fact: made.tunnel(fact.id, address=address)
    try:
        yield peers
    finally:
        server.close()


async def still_serves(made: Pair) -> None:
    reader, writer = await made.connect()
    writer.write(b"fine")
    assert await asyncio.wait_for(reader.readexactly(4), DEADLINE) == b"fine"
    writer.close()


# What a client may do to our inbound

HEADERS = b"\x42\x07CONNECT\x41\x0d10.0.0.2:8080"  # HPACK literals: :method, :authority


@pytest.mark.parametrize(
    "attack",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        PREFACE + SETTINGS + frame(0, 0, 1, b"x" * 16_385),
        PREFACE + SETTINGS + frame(8, 0, 0, struct.pack(">I", 0)),
        PREFACE + SETTINGS + frame(8, 0, 0, struct.pack(">I", 2**31 - 1)),
        PREFACE + SETTINGS + frame(1, 0, 1, HEADERS) + frame(9, 0, 1, b"\x40\x01a\x01b") * 100,
        PREFACE + SETTINGS + frame(1, 4, 2, HEADERS),
        PREFACE + SETTINGS + frame(1, 4, 1, b"\xff" * 50),
        PREFACE
        + SETTINGS
        + b"".join(frame(1, 4, 1 + 2 * n, HEADERS) + frame(3, 0, 1 + 2 * n, b"\0\0\0\x08") for n in range(4000)),
        PREFACE + SETTINGS + frame(6, 0, 0, b"12345678") * 20_000,
        PREFACE + SETTINGS * 5000,
        PREFACE + SETTINGS + frame(1, 4, 1, HEADERS) + frame(0, 0, 1) * 50_000,
    ],
    ids=[
        "HTTP/1.1",
        "oversized frame",
        "zero window update",
        "window overflow",
        "CONTINUATION flood",
        "even stream id",
        "broken HPACK",
        "rapid reset",
        "PING flood",
        "SETTINGS flood",
        "empty DATA flood",
    ],
)
async def test_a_violation_ends_the_tunnel_and_nothing_else(attack: bytes) -> None:
    async with pair() as made, application(made, echo), client_of(made) as peer:
        peer.writer.write(attack)
        await peer.ending()
        await eventually(lambda: made.server.engine.refused.get(Reason.HTTP2_PROTOCOL))
        await eventually(lambda: not made.server.engine.counts())
        await still_serves(made)


async def test_more_than_the_stream_window_is_an_error_of_the_stream_or_tunnel() -> None:
    async with pair() as made:
        made.server.decide = lambda fact: None
        async with client_of(made) as peer:
            peer.writer.write(PREFACE + SETTINGS + frame(1, 4, 1, HEADERS) + frame(0, 0, 1, b"x" * 16384) * 5)
            # What comes at once is seen at once: a request that is gone already is nobody's to decide.
            await eventually(lambda: made.server.of(Ended) or made.server.engine.refused)
            assert [fact.reason for fact in made.server.of(Ended)] == [Reason.HTTP2_PROTOCOL] or (
                made.server.engine.refused == {Reason.RESET_BY_PEER: 1}
            )


async def test_a_request_that_is_not_connect_is_offered_as_it_is() -> None:
    async with pair() as made, client_of(made) as peer:
        peer.http.request([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")], True)
        peer.flush()
        await made.server.until(lambda: made.server.of(Offered))
        (offered,) = made.server.of(Offered)
        assert (offered.method, offered.authority, list(offered.headers)) == ("GET", "a", [])


async def test_too_many_streams_are_refused_one_by_one() -> None:
    async with pair(server_limits=Limits(streams_accepted=3)) as made, client_of(made) as peer:
        made.server.decide = lambda fact: None
        for _ in range(10):
            peer.http.request(CONNECT)
        await peer.until(lambda: len(peer.of(http2.StreamReset)) == 7)
        assert {event.error_code for event in peer.of(http2.StreamReset)} == {7}  # REFUSED_STREAM
        await eventually(lambda: len(made.server.of(Offered)) >= 3)
        assert len(made.server.of(Offered)) == 3


async def test_too_large_headers_cost_the_stream() -> None:
    limits = Limits(request_headers=4096)
    async with pair(server_limits=limits) as made, application(made, echo), client_of(made) as peer:
        peer.http.request([*CONNECT, (b"baggage", b"x" * 8000)])
        peer.http.request(CONNECT)
        await peer.until(lambda: peer.of(http2.StreamReset) and peer.of(http2.HeadersReceived))
        assert [event.stream_id for event in peer.of(http2.StreamReset)] == [1]
        assert [event.stream_id for event in peer.of(http2.HeadersReceived)] == [3]


async def test_a_peer_that_does_not_answer_pings_is_given_up() -> None:
    limits = Limits(ping_interval=0.1, ping_timeout=0.3)
    async with pair(server_limits=limits) as made, application(made, echo), client_of(made) as peer:
        peer.http.request(CONNECT)
        peer.flush()
        await made.server.opened()
        (fact,) = await made.server.ended()  # nobody reads here, hence no PONG
        assert fact.reason == Reason.TUNNEL_LOST
        assert "PING" in fact.detail


async def test_a_peer_that_answers_pings_is_not() -> None:
    limits = Limits(ping_interval=0.05, ping_timeout=0.2)
    async with pair(server_limits=limits, client_limits=limits) as made, application(made, echo):
        reader, writer = await made.connect()
        await made.client.opened()
        await asyncio.sleep(1)
        writer.write(b"here")
        assert await asyncio.wait_for(reader.readexactly(4), DEADLINE) == b"here"
        writer.close()


async def test_a_handshake_has_a_deadline() -> None:
    async with pair(server_limits=Limits(handshake_timeout=0.2)) as made:
        reader, writer = await connect(made.server.address("tunnel4"))
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
        await eventually(lambda: made.server.engine.refused == {Reason.TLS_FAILED: 1})
        writer.close()


@pytest.mark.parametrize(
    "limits",
    [
        Limits(handshakes_per_pod=3),
        Limits(handshakes_per_peer=3),
        Limits(tunnels_per_pod=3),
        Limits(tunnels_per_peer=3),
    ],
)
async def test_tunnels_and_pending_handshakes_are_limited(limits: Limits) -> None:
    async with pair(server_limits=limits) as made, application(made, echo):
        silent = [await connect(made.server.address("tunnel4")) for _ in range(3)]
        await eventually(lambda: len(made.server.tunnels(server=True)) == 3)
        with pytest.raises(ConnectionResetError):
            reader, _ = await connect(made.server.address("tunnel4"))
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert made.server.engine.refused == {Reason.LIMIT: 1}
        for _, writer in silent:
            writer.close()
        await eventually(lambda: made.server.engine.census().peers == 0)
        await still_serves(made)


async def test_silent_peers_together_keep_nobody_else_out() -> None:
    limits = Limits(handshakes_per_pod=4, handshakes_per_peer=3)
    async with pair(server_limits=limits) as made:
        address = made.server.address("tunnel4")
        silent = []
        for host in ("127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"):
            silent.append(await asyncio.open_connection(*address, local_addr=(host, 0)))
            await eventually(lambda: len(made.server.tunnels(server=True)) == len(silent))
        async with client_of(made) as peer:
            peer.writer.write(PREFACE + SETTINGS)
            assert await asyncio.wait_for(peer.reader.read(1), DEADLINE)
        assert await asyncio.wait_for(silent[0][0].read(), DEADLINE) == b"", "of those with the most, the oldest goes"
        await eventually(lambda: made.server.engine.refused == {Reason.LIMIT: 1})
        for _, writer in silent:
            writer.close()


async def test_a_drained_server_announces_then_insists() -> None:
    limits = Limits(goaway_grace=0.3)
    async with pair(server_limits=limits) as made, application(made, echo), client_of(made) as peer:
        first = peer.http.request(CONNECT)
        await peer.until(lambda: peer.of(http2.HeadersReceived))
        draining = asyncio.create_task(made.server.engine.drain(DEADLINE))
        await peer.until(lambda: peer.of(http2.GoAwayReceived))
        assert peer.of(http2.GoAwayReceived)[0].last_stream_id == 2**31 - 1
        await peer.until(lambda: len(peer.of(http2.GoAwayReceived)) == 2)
        assert peer.of(http2.GoAwayReceived)[1].last_stream_id == first
        peer.http.write(first, b"goes on")
        await peer.until(lambda: peer.of(http2.DataReceived))
        assert peer.of(http2.DataReceived)[0].data == b"goes on"
        peer.http.end(first)
        peer.flush()
        await asyncio.wait_for(draining, DEADLINE)
        assert [fact.reason for fact in made.server.of(type(made.server.facts[-1]))] == [Reason.OK]


# What a server may do to our outbound


async def accept_all(peer: Peer) -> None:
    """Answers every CONNECT with 200 and echoes."""

    def handle() -> bool:
        for event in peer.events:
            match event:
                case http2.HeadersReceived():
                    peer.http.respond(event.stream_id, [(b":status", b"200")])
                case http2.DataReceived():
                    peer.http.write(event.stream_id, event.data)
                    peer.http.consume(event.stream_id, len(event.data))
                case http2.StreamEnded():
                    peer.http.end(event.stream_id)
        peer.events.clear()
        return False

    await peer.until(handle)


async def test_a_server_that_goes_away_gets_no_new_streams() -> None:
    async with pair() as made, server_for(made, accept_all) as peers:
        first = await made.connect()
        await made.client.opened()
        peers[0].http.goaway()
        peers[0].flush()
        await eventually(lambda: all(tunnel.retired for tunnel in made.client.tunnels()))
        second = await made.connect()
        await made.client.opened(2)
        assert len(peers) == 2
        for reader, writer in (first, second):
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
            writer.close()
        await made.client.ended(2)
        await eventually(lambda: len(made.client.tunnels()) == 1)


async def test_a_request_that_was_not_looked_at_is_sent_again_elsewhere() -> None:
    count = 0

    async def refuse_first(peer: Peer) -> None:
        nonlocal count
        count += 1
        if count > 1:
            await accept_all(peer)
            return
        await peer.until(lambda: peer.of(http2.HeadersReceived))
        peer.http.reset(peer.of(http2.HeadersReceived)[0].stream_id, 7)  # REFUSED_STREAM
        peer.http.goaway()
        await peer.until(lambda: False)

    async with pair() as made, server_for(made, refuse_first):
        reader, writer = await made.connect()
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
        assert count == 2
        writer.close()


async def test_a_server_that_never_answers_is_given_up() -> None:
    async def be_silent(peer: Peer) -> None:
        await peer.until(lambda: False)

    async with pair(client_limits=Limits(response_timeout=0.3)) as made, server_for(made, be_silent):
        reader, writer = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert (await made.client.ended())[0].reason == Reason.CONNECT_TIMEOUT
        writer.close()


async def test_a_server_that_breaks_the_protocol_loses_all_streams() -> None:
    async def misbehave(peer: Peer) -> None:
        await peer.until(lambda: peer.of(http2.HeadersReceived))
        for event in peer.of(http2.HeadersReceived):
            peer.http.respond(event.stream_id, [(b":status", b"200")])
        peer.flush()
        peer.writer.write(frame(8, 0, 0, struct.pack(">I", 0)))
        await peer.ending()

    async with pair() as made, server_for(made, misbehave):
        reader, writer = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert (await made.client.ended())[0].reason == Reason.HTTP2_PROTOCOL
        writer.close()


@pytest.mark.parametrize("politely", [True, False])
async def test_a_tunnel_that_ends_with_open_streams_is_lost_however_it_ends(politely: bool) -> None:
    async def leave(peer: Peer) -> None:
        await peer.until(lambda: peer.of(http2.HeadersReceived))
        stream = peer.of(http2.HeadersReceived)[0].stream_id
        peer.http.respond(stream, [(b":status", b"200")])
        peer.http.write(stream, b"half of ")
        peer.flush()
        await peer.writer.drain()
        if politely:
            peer.writer.close()  # close_notify
            await peer.writer.wait_closed()

    async with pair() as made, server_for(made, leave):
        reader, writer = await made.connect()
        got = bytearray()
        with pytest.raises(ConnectionResetError):
            while data := await asyncio.wait_for(reader.read(100), DEADLINE):
                got += data
        assert b"half of ".startswith(bytes(got))
        assert (await made.client.ended())[0].reason == Reason.TUNNEL_LOST
        writer.close()
