"""Two engines back to back: bytes, half-close, errors, refusals, both address families."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import hashlib
import os
import random
import resource
import socket
import struct
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from bpf.netns import socket_cookie
from mesh.model import Dialled, SocketAddress
from mesh.reason import Reason
from tests.unit.ztunnel.pump.authority import CLIENT, SERVER
from tests.unit.ztunnel.pump.nodes import DEADLINE, Memory, Node, Pair, application, connect, echo, eventually, pair
from ztunnel.orders import Captured, Close, Deaf, Ended, Listeners, Offered, Opened, Refuse, RelayPlain
from ztunnel.pump import Limits


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def cut_connections(port: int) -> None:
    """End this process' own connections that were accepted at a port, in mid-sentence."""
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as sock:
            inet = sock.family in (socket.AF_INET, socket.AF_INET6)
            if inet and sock.getsockname()[1] == port and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                sock.shutdown(socket.SHUT_RDWR)


def open_files() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/fd").iterdir()}


async def exchange(made: Pair, seed: int) -> None:
    """Random bytes in random pieces through an echo, half-closed, compared."""
    random_ = random.Random(seed)
    reader, writer = await made.connect()
    sent, received = hashlib.sha256(), hashlib.sha256()
    total = 0

    async def send() -> None:
        nonlocal total
        for _ in range(random_.randint(0, 12)):
            data = random_.randbytes(random_.choice([1, 7, 100, 1500, 16384, 65536, 200_000]))
            sent.update(data)
            total += len(data)
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def receive() -> int:
        count = 0
        while data := await reader.read(random_.choice([1, 100, 65536])):
            received.update(data)
            count += len(data)
        return count

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        count = group.create_task(receive())
    assert count.result() == total
    assert received.digest() == sent.digest()
    writer.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_64_connections_are_byte_exact_both_ways(family: int) -> None:
    async with pair(family=family) as made, application(made, echo):
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for seed in range(64):
                group.create_task(exchange(made, seed))
        for node in (made.client, made.server):
            ended = await node.ended(64)
            assert {fact.reason for fact in ended} == {Reason.OK}
            assert len({fact.id for fact in ended}) == 64
            assert node.engine.counts() == {}
        assert sorted((f.sent, f.received) for f in made.client.of(type(ended[0]))) == sorted(
            (f.sent, f.received) for f in made.server.of(type(ended[0]))
        )


async def test_the_facts_tell_who_and_where() -> None:
    async with pair() as made, application(made, echo):
        made.client.memory.drawn, made.client.memory.elsewhere = SocketAddress("10.9.9.9", 9), True
        reader, writer = await made.connect()
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        await made.client.opened()
        await made.server.opened()
        (captured,) = made.client.of(Captured)
        assert captured.pod == "client-pod"
        assert captured.destination == made.client.memory.destination
        assert (captured.drawn, captured.elsewhere) == (made.client.memory.drawn, True)
        assert captured.client == SocketAddress("127.0.0.1", writer.get_extra_info("sockname")[1])
        (offered,) = made.server.of(Offered)
        assert (offered.method, offered.authority, offered.peer) == ("CONNECT", "10.0.0.2:8080", CLIENT)
        assert list(offered.headers) == [("baggage", "a=b")]
        assert offered.local == SocketAddress(*made.server.address("tunnel4"))
        (opened,) = made.client.of(Opened)
        assert opened.peer == SERVER
        assert opened.upstream == offered.local
        (opened,) = made.server.of(Opened)
        assert (opened.peer, opened.upstream) == (None, made.application)
        assert [client for _, client in made.server.memory.announced] == [offered.client]
        await eventually(lambda: made.client.engine.counts() == {captured.id: (5, 5)})
        writer.close()
        await made.client.ended()
        assert made.server.memory.withdrawn == []


async def test_a_half_closed_connection_goes_on_the_other_way() -> None:
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read()
        writer.write(b"you said %d" % len(question))
        writer.close()

    async with pair() as made, application(made, answer_at_the_end):
        reader, writer = await made.connect()
        writer.write(b"x" * 1000)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b"you said 1000"
        writer.close()
        (fact,) = await made.client.ended()
        assert (fact.reason, fact.sent, fact.received) == (Reason.OK, 1000, 13)


async def test_the_server_may_finish_first() -> None:
    got = asyncio.get_running_loop().create_future()

    async def finish_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        got.set_result(await reader.read())
        writer.close()

    async with pair() as made, application(made, finish_first):
        reader, writer = await made.connect()
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b"bye"
        writer.write(b"late words")
        writer.write_eof()
        assert await asyncio.wait_for(got, DEADLINE) == b"late words"
        writer.close()
        assert (await made.server.ended())[0].reason == Reason.OK


async def test_a_reset_by_the_client_reaches_the_application_as_a_reset() -> None:
    fate = asyncio.get_running_loop().create_future()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            fate.set_result(await reader.read())
        except ConnectionResetError as error:
            fate.set_result(error)
        writer.close()

    async with pair() as made, application(made, wait):
        _, writer = await made.connect()
        writer.write(b"half a request")
        await made.server.opened()
        reset(writer)
        assert isinstance(await asyncio.wait_for(fate, DEADLINE), ConnectionResetError)
        assert (await made.client.ended())[0].reason == Reason.RESET_BY_PEER
        assert (await made.server.ended())[0].reason == Reason.RESET_BY_PEER


async def test_a_reset_by_the_application_reaches_the_client_after_what_was_sent() -> None:
    async def abandon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"some of it")
        await writer.drain()
        await reader.readexactly(3)
        reset(writer)

    async with pair() as made, application(made, abandon):
        reader, writer = await made.connect()
        assert await reader.readexactly(10) == b"some of it"
        writer.write(b"ack")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        (fact,) = await made.client.ended()
        assert (fact.reason, fact.received) == (Reason.RESET_BY_PEER, 10)
        assert "CONNECT_ERROR" in fact.detail
        writer.close()


async def test_a_reset_is_noticed_while_nobody_reads() -> None:
    """The client resets while its bytes pile up before an application that does not read."""
    hold = asyncio.Event()

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        await hold.wait()
        writer.close()

    async with pair() as made, application(made, ignore):
        _, writer = await made.connect()
        writer.transport.set_write_buffer_limits(high=1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    writer.write(b"x" * 65536)
                    await writer.drain()
        reset(writer)
        assert (await made.client.ended())[0].reason == Reason.RESET_BY_PEER
        assert (await made.server.ended())[0].reason == Reason.RESET_BY_PEER
        hold.set()


async def test_an_unread_connection_stalls_only_itself() -> None:
    hold = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(1) == b"s":
            writer.transport.pause_reading()
            await hold.wait()
            writer.transport.resume_reading()
            total = 1
            while data := await reader.read(65536):
                total += len(data)
            writer.write(b"%d" % total)
            writer.close()
        else:
            await echo(reader, writer)

    async with pair() as made, application(made, serve):
        stuck_reader, stuck = await made.connect()
        stuck.transport.set_write_buffer_limits(high=1)
        sent = 1
        stuck.write(b"s")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                while sent < 64 << 20:
                    stuck.write(b"x" * 65536)
                    sent += 65536
                    await stuck.drain()
        assert sent < 64 << 20, "nothing held the writer back"
        for seed in range(4):
            await asyncio.wait_for(exchange_after_hello(made, seed), DEADLINE)
        assert len(made.client.tunnels()) == 1, "both shared one tunnel"
        hold.set()
        stuck.write_eof()
        assert await asyncio.wait_for(stuck_reader.read(), DEADLINE) == b"%d" % sent
        stuck.close()


async def exchange_after_hello(made: Pair, seed: int) -> None:
    reader, writer = await made.connect()
    payload = random.Random(seed).randbytes(1 << 20)
    writer.write(b"e" + payload)
    writer.write_eof()
    assert await reader.read() == payload
    writer.close()


async def test_an_unread_response_is_bounded_and_complete_later() -> None:
    total = 48 << 20
    progress = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal progress
        writer.transport.set_write_buffer_limits(high=1)
        while progress < total:
            writer.write(b"y" * 65536)
            await writer.drain()
            progress += 65536
        writer.close()

    async with pair() as made, application(made, flood):
        reader, writer = await made.connect()
        writer.transport.pause_reading()
        await made.client.opened()
        before = -1
        while before != progress:
            before = progress
            await asyncio.sleep(0.5)
        assert progress < total
        (held,) = made.server.engine.counts().values()
        assert held[1] < 24 << 20
        writer.transport.resume_reading()
        size = 0
        while data := await asyncio.wait_for(reader.read(1 << 20), DEADLINE):
            size += len(data)
        assert size == total
        writer.close()


async def test_a_cut_tunnel_is_an_error_after_an_exact_prefix() -> None:
    payload = random.Random(5).randbytes(8 << 20)

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(payload)
            await writer.drain()
            await reader.read()
        writer.close()

    async with pair() as made, application(made, send):
        reader, writer = await made.connect()
        got = bytearray(await reader.readexactly(100_000))
        cut_connections(made.server.ports["tunnel4"])
        with pytest.raises(ConnectionResetError):
            while data := await asyncio.wait_for(reader.read(65536), DEADLINE):
                got += data
        assert payload.startswith(bytes(got))
        (fact,) = await made.client.ended()
        assert fact.reason == Reason.TUNNEL_LOST
        assert fact.received >= len(got)
        assert (await made.server.ended())[0].reason == Reason.TUNNEL_LOST
        writer.close()


@pytest.mark.parametrize(
    ("reason", "status"),
    [(Reason.BAD_REQUEST, 400), (Reason.POLICY_DENY, 401), (Reason.DESTINATION_UNKNOWN, 503)],
)
async def test_a_refused_request_is_answered_with_its_status(reason: Reason, status: int) -> None:
    async with pair() as made:
        made.server.decide = lambda fact: Refuse(id=fact.id, reason=reason)
        reader, writer = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        (fact,) = await made.client.ended()
        assert (fact.reason, fact.detail) == (Reason.TUNNEL_REFUSED, f"http status: {status}")
        assert (await made.server.ended())[0].reason == reason
        writer.close()


async def test_an_application_that_refuses_is_503() -> None:
    async with pair() as made, application(made, echo) as server:
        server.close()
        await server.wait_closed()
        reader, writer = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert (await made.client.ended())[0].detail == "http status: 503"
        (fact,) = await made.server.ended()
        assert fact.reason == Reason.CONNECT_FAILED
        assert "Connection refused" in fact.detail
        assert made.server.memory.withdrawn == [cookie for cookie, _ in made.server.memory.announced]
        writer.close()


async def test_a_refused_capture_is_reset() -> None:
    async with pair() as made:
        made.client.decide = lambda fact: Refuse(id=fact.id, reason=Reason.NO_ENDPOINT, detail="reviews")
        reader, writer = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        (fact,) = await made.client.ended()
        assert (fact.reason, fact.detail, fact.sent) == (Reason.NO_ENDPOINT, "reviews", 0)
        writer.close()


async def test_a_capture_nobody_recorded_is_reset_and_counted() -> None:
    async with pair() as made:
        made.client.memory.destination = None
        with pytest.raises(ConnectionResetError):
            reader, _ = await made.connect()
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert made.client.engine.refused == {Reason.NO_DESTINATION: 1}
        assert made.client.facts == []


class Faulty(Memory):
    """The kernel side cannot be read, once."""

    def original_destination(self, cookie: int, local: SocketAddress, peer: SocketAddress) -> Dialled | None:
        if not self.withdrawn:
            self.withdrawn.append(0)
            raise OSError(errno.EIO, "the map cannot be read")
        return super().original_destination(cookie, local, peer)


async def test_a_fact_that_cannot_be_read_costs_its_own_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    made = Node("pod", start=False, memory=Faulty(destination=SocketAddress("10.0.0.2", 80)))
    connections = [await connect(made.address("outbound4")) for _ in range(3)]
    made.engine.start_pod("pod")  # they are told together
    await made.until(lambda: len(made.of(Captured)) == 2)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(connections[0][0].read(), DEADLINE)
    assert made.engine.refused == {Reason.INTERNAL: 1}
    assert made.engine.counts() == {captured.id: (0, 0) for captured in made.of(Captured)}
    for _, writer in connections:
        writer.close()
    assert "the map cannot be read" in caplog.text
    await made.engine.drain(0)


@pytest.mark.parametrize("suffix", ["4", "6"])
async def test_plaintext_is_reported_as_dialled_and_relayed(suffix: str) -> None:
    family = socket.AF_INET6 if suffix == "6" else socket.AF_INET
    async with pair(family=family) as made, application(made, echo):
        reader, writer = await connect(made.server.address("plaintext" + suffix))
        writer.write(b"ping")
        assert await asyncio.wait_for(reader.readexactly(4), DEADLINE) == b"ping"
        (fact,) = made.server.of(type(made.server.facts[0]))
        assert fact.destination == SocketAddress(*made.server.address("plaintext" + suffix))
        assert fact.client.port == writer.get_extra_info("sockname")[1]
        writer.close()
        assert (await made.server.ended())[0].reason == Reason.OK


async def test_nothing_is_read_before_the_decision() -> None:
    async with pair() as made, application(made, echo):
        made.client.decide = lambda fact: None
        reader, writer = await made.connect()
        writer.transport.set_write_buffer_limits(high=1)
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    writer.write(b"x" * 65536)
                    await writer.drain()
                    sent += 65536
        (captured,) = made.client.of(Captured)
        assert made.client.engine.counts() == {captured.id: (0, 0)}
        made.client.engine.order(made.tunnel(captured.id))
        assert len(await asyncio.wait_for(reader.readexactly(sent), DEADLINE)) == sent
        writer.close()


async def test_a_client_that_leaves_while_waiting_is_forgotten() -> None:
    async with pair() as made:
        made.client.decide = lambda fact: None
        _, writer = await made.connect()
        await made.client.until(lambda: made.client.of(Captured))
        reset(writer)
        assert (await made.client.ended())[0].reason == Reason.RESET_BY_PEER
        made.client.engine.order(made.tunnel(1))  # too late: ignored
        assert made.client.engine.counts() == {}


async def test_close_ends_both_sides_with_an_error() -> None:
    fate = asyncio.get_running_loop().create_future()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            fate.set_result(await reader.read())
        except ConnectionResetError as error:
            fate.set_result(error)
        writer.close()

    async with pair() as made, application(made, wait):
        reader, writer = await made.connect()
        await made.client.opened()
        (offered,) = made.server.of(Offered)
        made.server.engine.order(Close(id=offered.id, reason=Reason.REVOKED, detail="policy changed"))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert isinstance(await asyncio.wait_for(fate, DEADLINE), ConnectionResetError)
        (fact,) = await made.server.ended()
        assert (fact.reason, fact.detail) == (Reason.REVOKED, "policy changed")
        made.server.engine.order(Close(id=offered.id, reason=Reason.REVOKED))
        writer.close()


async def test_plain_relay_to_an_unreachable_destination_is_reset() -> None:
    node = Node("pod")
    try:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            nobody = SocketAddress(*unused.getsockname())
        node.memory.destination = nobody
        node.decide = lambda fact: RelayPlain(id=fact.id, destination=nobody)
        reader, writer = await connect(node.address("outbound4"))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert (await node.ended())[0].reason == Reason.CONNECT_FAILED
        writer.close()
    finally:
        await node.engine.drain(0)


async def test_remove_pod_ends_what_is_open() -> None:
    async with pair() as made, application(made, echo):
        reader, writer = await made.connect()
        await made.client.opened()
        made.client.engine.remove_pod("client-pod")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert (await made.client.ended())[0].reason == Reason.POD_GONE
        with pytest.raises(ConnectionRefusedError):
            await made.connect()
        await made.server.ended()
        writer.close()


async def test_unenrolling_keeps_what_is_open() -> None:
    async with pair() as made, application(made, echo):
        reader, writer = await made.connect()
        await made.client.opened()
        made.client.engine.remove_pod("client-pod", listeners_only=True)
        made.server.engine.remove_pod("server-pod", listeners_only=True)
        with pytest.raises(ConnectionRefusedError):
            await made.connect()
        writer.write(b"still here")
        assert await asyncio.wait_for(reader.readexactly(10), DEADLINE) == b"still here"
        writer.close()
        assert (await made.client.ended())[0].reason == Reason.OK
        assert (await made.server.ended())[0].reason == Reason.OK
        assert made.client.engine._pods == {}


async def test_enrolling_again_keeps_what_is_open() -> None:
    async with pair() as made, application(made, echo):
        first = await made.connect()
        await made.client.opened()
        for node in (made.client, made.server):
            node.engine.remove_pod(node.pod, listeners_only=True)
            node.enrol()
        second = await made.connect()
        for reader, writer in (first, second):
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
            writer.close()
        assert {fact.reason for fact in await made.client.ended(2)} == {Reason.OK}
        with pytest.raises(ValueError, match="added already"):
            made.client.enrol()


async def test_a_pod_that_is_added_while_its_last_connection_ends_is_there() -> None:
    async with pair() as made, application(made, echo):
        for round_ in range(1, 30):
            reader, writer = await made.connect()
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
            made.client.engine.remove_pod("client-pod", listeners_only=True)
            reset(writer)
            if round_ % 2:
                await asyncio.sleep(0)
            made.client.enrol()
            made.client.engine.set_credentials("client-pod", made.authority.issue(CLIENT))
            await made.client.ended(round_)


async def test_connections_over_the_limit_are_reset_and_counted() -> None:
    async with pair(client_limits=Limits(connections_per_pod=2)) as made, application(made, echo):
        kept = [await made.connect() for _ in range(2)]
        await made.client.opened(2)
        with pytest.raises(ConnectionResetError):
            reader, _ = await made.connect()
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert made.client.engine.refused == {Reason.LIMIT: 1}
        for _, writer in kept:
            writer.close()
        await made.client.ended(2)
        _, writer = await made.connect()
        await made.client.opened(3)
        writer.close()


async def test_a_pod_gets_no_more_connections_than_are_left_for_others() -> None:
    made = Node("pod", limits=Limits(connections=6))
    made.memory.destination = SocketAddress("10.0.0.2", 80)
    open_ = [await connect(made.address("outbound4")) for _ in range(3)]
    await made.until(lambda: len(made.of(Captured)) == 3)
    with pytest.raises(ConnectionResetError):
        reader, _ = await connect(made.address("outbound4"))
        await asyncio.wait_for(reader.read(), DEADLINE)
    assert made.engine.refused == {Reason.LIMIT: 1}
    for _, writer in open_:
        writer.close()
    await made.engine.drain(0)


async def test_facts_are_told_in_their_order_however_many_there_are() -> None:
    made = Node("pod", limits=Limits(descriptors=8000))
    made.memory.destination = SocketAddress("10.0.0.2", 80)
    sources = []
    for _ in range(1500):
        with socket.create_connection(made.address("outbound4"), DEADLINE) as sock:
            sources.append(sock.getsockname()[1])
    await made.until(lambda: len(made.of(Captured)) == len(sources))
    assert [fact.client.port for fact in made.of(Captured)] == sources
    await made.engine.drain(0)


async def test_a_listener_destroyed_from_outside_is_told_once_and_the_pod_can_be_added_again() -> None:
    """shutdown() on the listening socket does what sock_diag's SOCK_DESTROY does: it does not listen any more."""
    async with pair() as made, application(made, echo):
        reader, writer = await made.connect()
        await made.client.opened()
        with socket.socket(fileno=os.dup(made.client.listeners.outbound4)) as listener:
            listener.shutdown(socket.SHUT_RDWR)
        await made.client.until(lambda: made.client.of(Deaf))
        made.client.engine.remove_pod("client-pod", listeners_only=True)
        made.client.enrol()
        assert made.client.of(Deaf) == [Deaf(pod="client-pod")]
        made.client.engine.set_credentials("client-pod", made.authority.issue(CLIENT))
        writer.write(b"older")
        assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"older"
        _, younger = await made.connect()
        await made.client.opened(2)
        writer.close()
        younger.close()


async def test_without_descriptors_the_listener_waits_for_better_times() -> None:
    made = Node("pod", start=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = [await connect(made.address("outbound4")) for _ in range(8)]
    made.memory.destination = SocketAddress("10.0.0.2", 80)
    try:
        used = open_files()
        free = [fd for fd in range(soft) if fd not in used]
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[3], hard))
        made.engine.start_pod("pod")
        await made.until(lambda: made.of(Captured))
        await asyncio.sleep(0.3)
        assert 0 < len(made.of(Captured)) < 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await made.until(lambda: len(made.of(Captured)) == 8)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for _, writer in waiting:
            writer.close()
        await made.engine.drain(0)


@pytest.mark.parametrize("fault", ["silence", "exception"])
async def test_a_decider_at_fault_leaves_nothing_open(fault: str) -> None:
    def fail(fact: object) -> None:
        if fault == "exception":
            raise ArithmeticError("the decider's")

    async with pair(client_limits=Limits(decision_timeout=0.2)) as made:
        made.client.decide = fail
        reader, writer = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert (await made.client.ended())[0].reason == Reason.INTERNAL
        writer.close()


async def test_many_short_connections_leave_nothing_behind() -> None:
    async with pair() as made, application(made, echo):
        await exchange(made, 0)
        await made.server.ended(1)
        gc.collect()
        before, files = len(gc.get_objects()), len(open_files())
        for round_ in range(1, 11):
            await asyncio.gather(*(short_exchange(made) for _ in range(50)))
            await made.client.ended(1 + round_ * 50)
            await made.server.ended(1 + round_ * 50)
        for node in (made.client, made.server):
            node.facts.clear()
            node.memory.announced.clear()
        await eventually(lambda: len(open_files()) <= files)
        gc.collect()
        assert len(gc.get_objects()) - before < 500


async def short_exchange(made: Pair) -> None:
    reader, writer = await made.connect()
    writer.write(b"ping")
    assert await reader.readexactly(4) == b"ping"
    writer.close()
    await writer.wait_closed()


async def test_requests_over_the_limit_are_answered_503() -> None:
    async with pair(server_limits=Limits(connections_per_pod=1)) as made, application(made, echo):
        _, kept = await made.connect()
        await made.client.opened()
        reader, writer = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert (await made.client.ended())[0].detail == "http status: 503"
        assert made.server.engine.refused == {Reason.LIMIT: 1}
        kept.close()
        writer.close()


async def test_draining_waits_for_what_is_open_then_cuts_it() -> None:
    async with pair() as made, application(made, echo):
        short, long = await made.connect(), await made.connect()
        await made.client.opened(2)
        started = asyncio.get_running_loop().time()
        draining = asyncio.create_task(made.client.engine.drain(1.5))
        await asyncio.sleep(0.1)
        with pytest.raises(ConnectionRefusedError):
            await made.connect()
        short[1].write(b"bye")
        assert await asyncio.wait_for(short[0].readexactly(3), DEADLINE) == b"bye"
        short[1].close()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(long[0].read(), DEADLINE)
        await asyncio.wait_for(draining, DEADLINE)
        assert asyncio.get_running_loop().time() - started >= 1.5
        assert [fact.reason for fact in made.client.of(Ended)] == [Reason.OK, Reason.DRAINED]
        long[1].close()


async def test_draining_an_idle_engine_takes_no_time() -> None:
    async with pair() as made, application(made, echo):
        _, writer = await made.connect()
        await made.client.opened()
        writer.close()
        await made.client.ended()
        async with asyncio.timeout(5):
            await made.client.engine.drain(60)
            await made.server.engine.drain(60)


async def test_what_comes_while_paused_waits_and_is_accepted_afterwards() -> None:
    async with pair() as made, application(made, echo):
        open_reader, open_writer = await made.connect()
        await made.client.opened()
        for node in (made.client, made.server):
            node.engine.pause()
        waiting = [await made.connect() for _ in range(10)]  # the kernel completes them
        open_writer.write(b"on")
        assert await asyncio.wait_for(open_reader.readexactly(2), DEADLINE) == b"on"
        assert len(made.client.of(Captured)) == 1
        made.client.engine.start_pod("client-pod")
        made.server.engine.start_pod("server-pod")
        for reader, writer in waiting:
            writer.write(b"ok")
            assert await asyncio.wait_for(reader.readexactly(2), DEADLINE) == b"ok"
            writer.close()
        open_writer.close()


async def test_another_engine_goes_on_with_the_listeners_and_no_connection_is_refused() -> None:
    """As in a hand-over: the descriptors are duplicates, the sockets the same; the first engine then drains."""
    async with pair() as made, application(made, echo):
        long_reader, long_writer = await made.connect()
        await made.client.opened()
        for name in ("client", "server"):
            old = getattr(made, name)
            old.engine.pause()
            heir = Node(old.pod, start=False, listeners=duplicates(old.listeners), memory=old.memory)
            setattr(made, name, heir)
            identity = CLIENT if name == "client" else SERVER
            heir.engine.set_credentials(heir.pod, made.authority.issue(identity))
            heir.decide = old.decide
            waiting = [await made.connect() for _ in range(5)] if name == "client" else []
            draining = asyncio.create_task(old.engine.drain(DEADLINE))
            await asyncio.sleep(0)  # the old engine's descriptors are closed
            heir.engine.start_pod(heir.pod)
            for reader, writer in [*waiting, await made.connect()]:
                writer.write(b"ok")
                assert await asyncio.wait_for(reader.readexactly(2), DEADLINE) == b"ok"
                writer.close()
            if name == "client":
                long_writer.write(b"long")
                assert await asyncio.wait_for(long_reader.readexactly(4), DEADLINE) == b"long"
                long_writer.close()
            await asyncio.wait_for(draining, DEADLINE)


async def test_given_listeners_belong_to_the_engine_also_if_it_refuses_the_pod() -> None:
    made = Node("pod")
    given = duplicates(made.listeners)
    with pytest.raises(ValueError, match="added already"):
        made.enrol(given=given)
    assert not open_ones(given)
    given = replace(duplicates(made.listeners), plaintext4=10**6)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Node("another", listeners=given)
    assert not open_ones(given)
    await made.engine.drain(0)
    given = Listeners(**dict.fromkeys(NAMES) | {"outbound4": socket.socket().detach()})
    with pytest.raises(ValueError, match="draining"):
        made.enrol(given=given)
    assert not open_ones(given)


async def test_the_descriptor_of_a_destroyed_listener_stays_until_the_pod_is_removed() -> None:
    """Whoever has its number would else close, or hand to another agent, what has that number next."""
    made = Node("pod")
    with socket.socket(fileno=os.dup(made.listeners.outbound4)) as listener:
        cookie = socket_cookie(listener.fileno())
        listener.shutdown(socket.SHUT_RDWR)
    await made.until(lambda: made.of(Deaf))
    assert socket_cookie(made.listeners.outbound4) == cookie
    made.engine.remove_pod("pod", listeners_only=True)
    assert not open_ones(made.listeners)
    await made.engine.drain(0)


def test_an_engine_that_is_forgotten_ends_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    gc.collect()

    async def forget() -> int:
        made = Node("pod")
        made.memory.destination = SocketAddress("10.0.0.2", 80)
        _, writer = await connect(made.address("outbound4"))
        await made.until(lambda: made.of(Captured))
        assert not gc.is_tracked(made.engine._pump)
        writer.close()
        return pumps()

    running = asyncio.run(forget())
    gc.collect()
    assert pumps() < running
    assert not complaints


def pumps() -> int:
    return sum(task.read_text().startswith("pump-") for task in Path("/proc/self/task").glob("*/comm"))


NAMES = [field.name for field in fields(Listeners)]


def open_ones(listeners: Listeners) -> list[str]:
    held = {name: getattr(listeners, name) for name in NAMES}
    return [name for name, fd in held.items() if fd is not None and Path(f"/proc/self/fd/{fd}").exists()]


def duplicates(listeners: Listeners) -> Listeners:
    held = {name: getattr(listeners, name) for name in NAMES}
    return Listeners(**{name: None if fd is None else os.dup(fd) for name, fd in held.items()})


async def test_whoever_waits_for_a_thread_is_answered() -> None:
    """Asked while it takes what was sent just before; one time in some ten thousand nobody woke it again."""
    async with pair() as made:
        for _ in range(100_000):
            made.client.engine._pump.unlisten(4711)  # of a pod that is not there
