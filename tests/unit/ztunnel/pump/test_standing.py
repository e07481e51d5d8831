"""Connections under standing orders: nobody is asked, everything is told, and nothing stands longer than it should."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from mesh.http2 import Rate
from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.halting import halted
from tests.unit.ztunnel.pump.authority import SERVER
from tests.unit.ztunnel.pump.nodes import DEADLINE, Node, Pair, application, connect, echo, eventually, pair
from tests.unit.ztunnel.pump.steering import SteeringMaps, steering_maps
from ztunnel.orders import (
    PORT,
    TRACE,
    Alternative,
    Begun,
    Captured,
    Close,
    Ended,
    Offered,
    Opened,
    Passed,
    Plaintext,
    RelayPlain,
    RelayTunnel,
    Standing,
)
from ztunnel.pump import Limits, book

ASKED = SocketAddress("10.0.0.2", 8080)
FEW = Rate(burst=3, per_second=0.001)


class Commute:
    """A pair whose nodes answer every first connection of a kind with a standing order for the others."""

    def __init__(self, made: Pair, steering: SteeringMaps) -> None:
        self.pair, self.client, self.server, self.steering = made, made.client, made.server, steering
        made.client.memory.destination = ASKED
        made.client.decide = self.tunnel
        made.client.stands = lambda fact: self.standing(replace(self.tunnel(fact), headers=self.headers(PORT, TRACE)))
        made.server.stands = lambda fact: self.standing(made.last_hop(fact))
        self.forwarded: Callable[[str], str] = 'for="127.0.0.1:{}"'.format

    def headers(self, port: str, trace: str) -> list[tuple[str, str]]:
        return [("baggage", "a=b"), ("forwarded", self.forwarded(port)), ("traceparent", trace)]

    def tunnel(self, fact: Captured | Plaintext | Offered) -> RelayTunnel:
        return replace(self.pair.tunnel(fact.id), headers=self.headers(str(fact.client.port), f"00-{'a' * 52}"))

    @staticmethod
    def standing(*orders: RelayPlain | RelayTunnel) -> Standing:
        return Standing(id=orders[0].id, alternatives=[Alternative(weight=1, order=o, name=o) for o in orders])

    async def dial(self, asked: SocketAddress = ASKED) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = await asyncio.to_thread(self.steering.dial, self.client.address("outbound4"), asked)
        sock.setblocking(False)
        return await asyncio.open_connection(sock=sock)

    async def talk(self, asked: SocketAddress = ASKED) -> int:
        """There and back; the port that the application had."""
        reader, writer = await self.dial(asked)
        port = writer.get_extra_info("sockname")[1]
        async with asyncio.timeout(DEADLINE):
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
        writer.close()
        return port

    async def is_reset(self) -> None:
        with pytest.raises(ConnectionResetError):  # while it is dialled, or after
            await (await self.dial())[0].read()

    async def learn(self) -> None:
        """Both nodes are asked about the first one."""
        await self.talk()
        await self.client.ended()
        await self.server.ended()


@asynccontextmanager
async def commute(
    *, client_limits: Limits | None = None, server_limits: Limits | None = None, threads: int = 1
) -> AsyncIterator[Commute]:
    with steering_maps() as steering:
        async with (
            pair(client_limits=client_limits, server_limits=server_limits, threads=threads, maps=steering.maps) as made,
            application(made, echo),
        ):
            yield Commute(made, steering)


def passed(node: Node) -> int:
    return sum(fact.connections for fact in node.of(Passed))


async def have_passed(node: Node, count: int) -> None:
    await node.until(lambda: passed(node) + len(node.of(Begun)) >= count)
    assert passed(node) + len(node.of(Begun)) == count


@pytest.mark.parametrize("threads", [1, 2])
async def test_python_is_asked_once_about_all_connections_of_a_kind(threads: int) -> None:
    async with commute(threads=threads) as way:
        await way.learn()
        ports = [await way.talk() for _ in range(50)]
        for node in (way.client, way.server):
            await have_passed(node, 50)
            assert len(node.of(Captured)) + len(node.of(Offered)) == 1
            told = node.of(Passed)
            assert {fact.sent / fact.connections for fact in told} <= {5.0}
            assert {fact.received / fact.connections for fact in told} <= {5.0}
            trips = [trip for fact in told for trip in fact.each("192.0.2.1")]
            ports_told = [trip.client.port for trip in trips] + [fact.port for fact in node.of(Begun)]
            assert sorted(ports_told) == sorted(ports)
            for trip in trips:
                assert trip.client.ip == "192.0.2.1"
                assert (trip.sent, trip.received) == (5, 5)
                assert 0 < trip.opened_ns <= trip.closed_ns
        assert {fact.peer for fact in way.client.of(Passed)} <= {SERVER}
        assert {fact.peer for fact in way.server.of(Passed)} <= {None}
        announced = {address.port for address in way.steering.seen()}
        assert announced == set(ports)  # the first one was announced by Python
        assert len(way.server.memory.announced) == 1


async def test_the_request_has_the_clients_port_and_a_trace_of_its_own() -> None:
    async with commute() as way:
        way.server.stands = lambda fact: None
        await way.learn()
        ports = [await way.talk() for _ in range(20)]
        await way.server.ended(21)
        asked = [dict(fact.headers) for fact in way.server.of(Offered)][1:]
        assert [each["forwarded"] for each in asked] == [f'for="127.0.0.1:{port}"' for port in ports]
        traces = {each["traceparent"] for each in asked}
        assert len(traces) == 20
        for trace in traces:
            version, one, span, flags = trace.split("-")
            assert (version, len(bytes.fromhex(one)), len(bytes.fromhex(span)), flags) == ("00", 16, 8, "00")


@pytest.mark.parametrize(
    "form",
    ['for="127.0.0.2:{}"', "for=127.0.0.1:{}", 'for="127.0.0.1:0{}"', 'for="127.0.0.1:{}', 'For="127.0.0.1:{}"', "{}"],
)
async def test_a_request_in_another_form_is_asked_about(form: str) -> None:
    async with commute() as way:
        way.forwarded = form.format
        for _ in range(3):
            await way.talk()
        await way.server.ended(3)
        assert len(way.server.of(Offered)) == 3
        assert passed(way.server) == 0


async def test_what_follows_the_address_in_forwarded_is_part_of_the_kind() -> None:
    async with commute() as way:
        await way.learn()
        way.forwarded = 'for="127.0.0.1:{}";host=web'.format
        way.client.engine.lapse()
        for _ in range(3):
            await way.talk()
        await have_passed(way.server, 2)
        assert len(way.server.of(Offered)) == 2


async def test_plaintext_stands_by_the_address_it_comes_from() -> None:
    async with commute() as way:
        for _ in range(5):
            reader, writer = await connect(way.server.address("plaintext4"))
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()
            await eventually(lambda: way.server.of(Ended))
        await have_passed(way.server, 4)
        assert len(way.server.of(Plaintext)) == 1
        assert {address.ip for address in way.steering.seen()} == {"127.0.0.1"}


async def test_another_destination_is_another_kind() -> None:
    async with commute() as way:
        await way.learn()
        await way.talk(SocketAddress("10.0.0.2", 8081))
        await way.client.ended(2)
        assert len(way.client.of(Captured)) == 2


async def test_what_nobody_recorded_is_refused_as_before() -> None:
    async with commute() as way:
        await way.learn()
        way.client.memory.destination = None
        reader, _ = await connect(way.client.address("outbound4"))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await eventually(lambda: way.client.engine.refused.get(Reason.NO_DESTINATION) == 1)


async def test_alternatives_are_drawn_by_their_weights() -> None:
    async with commute() as way:
        orders = [RelayPlain(id=0, destination=way.pair.application) for _ in range(4)]
        weights = [1, 3, 0, 4]
        way.client.decide = lambda fact: RelayPlain(id=fact.id, destination=way.pair.application)
        way.client.stands = lambda fact: Standing(
            id=fact.id,
            alternatives=[
                Alternative(weight=weight, order=order, name=name)
                for name, (order, weight) in enumerate(zip(orders, weights, strict=True))
            ],
        )
        await way.talk()
        await way.client.ended()
        for _ in range(400):
            await way.talk()
        await have_passed(way.client, 400)
        drawn: Counter[object] = Counter(fact.under for fact in way.client.of(Begun))
        for fact in way.client.of(Passed):
            drawn[fact.under] += fact.connections
        assert drawn[2] == 0
        for name, weight in ((0, 1), (1, 3), (3, 4)):
            expected = 400 * weight / 8
            assert abs(drawn[name] - expected) < 6 * (expected * (1 - weight / 8)) ** 0.5


async def test_one_that_lives_is_told_of_and_can_be_closed() -> None:
    async with commute() as way:
        await way.learn()
        reader, writer = await way.dial()
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        for node in (way.client, way.server):
            await node.until(lambda node=node: len(node.of(Opened)) == 2)
            (begun,) = node.of(Begun)
            assert begun.port == writer.get_extra_info("sockname")[1]
            assert len(begun.trace) == 55
            assert node.of(Opened)[1].id == begun.id
            assert node.engine.counts()[begun.id] == (1, 1)
        assert way.client.of(Begun)[0].trace == way.server.of(Begun)[0].trace
        assert way.client.of(Opened)[1].peer == SERVER
        (begun,) = way.server.of(Begun)
        way.server.engine.order(Close(id=begun.id, reason=Reason.REVOKED, detail="gone"))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        ended = (await way.server.ended(2))[1]
        assert (ended.id, ended.reason, ended.sent, ended.received) == (begun.id, Reason.REVOKED, 1, 1)


async def test_when_orders_lapse_who_lives_has_been_told_and_the_next_is_asked_about() -> None:
    async with commute() as way:
        await way.learn()
        streams = [await way.dial() for _ in range(10)]
        await asyncio.gather(*(stream[0].read(0) for stream in streams))
        for _, writer in streams:
            writer.write(b"x")
        assert [await reader.read(1) for reader, _ in streams] == [b"x"] * 10
        for node in (way.client, way.server):
            node.engine.lapse()
            async with asyncio.timeout(DEADLINE):
                await node.engine.settled()
            assert len(node.of(Begun)) == 10
            assert len(node.engine.counts()) == 10
        await way.talk()
        assert len(way.client.of(Captured)) == len(way.server.of(Offered)) == 2


async def test_a_thread_that_is_stuck_holds_up_the_acknowledgement_and_nothing_else() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    to = SocketAddress(*server.sockets[0].getsockname())
    with steering_maps() as steering:
        node = Node("pod", maps=steering.maps, threads=2, limits=Limits(inbound_of_peer=FEW))
        node.decide = lambda fact: RelayPlain(id=fact.id, destination=to, bind="127.0.0.1", as_client=fact.client)
        node.stands = lambda fact: Commute.standing(node.decide(fact))
        engine, streams = node.engine, []
        try:
            for _ in range(4):
                reader, writer = await connect(node.address("plaintext4"))
                streams.append(writer)
                writer.write(b"x")
                assert await reader.read(1) == b"x"
            await node.until(lambda: len(node.of(Begun)) == 2)  # the third is not told of: there is no time for it
            with halted(os.getpid(), "pump-1"):  # its home
                engine.lapse()
                settling = asyncio.create_task(engine.settled())
                reader, writer = await connect(node.address("plaintext4"))
                streams.append(writer)
                await eventually(lambda: [fence.threads for fence in engine._standing._fences.values()] == [1])
                engine.lapse()
                await eventually(lambda: [fence.threads for fence in engine._standing._fences.values()] == [1, 1])
                assert not settling.done()
            async with asyncio.timeout(DEADLINE):
                await settling
                await engine.settled()
                assert len(node.of(Begun)) == 3
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            assert engine.refused == {Reason.LIMIT: 1}, "it was no longer of a known kind"
        finally:
            for writer in streams:
                writer.close()
            await engine.drain(0)
            server.close()


async def test_nothing_stands_after_the_pod_was_enrolled_anew() -> None:
    async with commute() as way:
        await way.learn()
        way.client.engine.remove_pod("client-pod", listeners_only=True)
        way.client.enrol()
        way.client.engine.set_credentials("client-pod", way.pair.authority.issue(way.pair.key().source))
        await way.talk()
        assert len(way.client.of(Captured)) == 2


async def test_one_that_fails_is_told_of_with_its_reason_and_is_announced_no_more() -> None:
    async with commute() as way:
        await way.learn()
        before = way.steering.seen()
        way.server.engine.lapse()
        closed = socket.socket()
        closed.bind(("127.0.0.1", 0))  # nobody listens here
        way.pair.application = SocketAddress(*closed.getsockname())
        for count in (2, 3):
            await way.is_reset()
            ended = (await way.server.ended(count))[-1]
            assert ended.reason is Reason.CONNECT_FAILED
            assert "refused" in ended.detail
            assert (await way.client.ended(count))[-1].reason is Reason.TUNNEL_REFUSED
        assert len(way.server.of(Begun)) == 1
        assert len(way.client.of(Begun)) == 2
        assert way.steering.seen() == before
        closed.close()


async def test_without_certificate_nothing_is_dialled_under_a_standing_order_either() -> None:
    async with commute() as way:
        way.client.engine.set_credentials("client-pod", way.pair.authority.issue(SERVER))  # another's
        for _ in range(2):
            await way.is_reset()
        assert [ended.reason for ended in await way.client.ended(2)] == [Reason.NO_CERTIFICATE] * 2
        assert len(way.client.of(Captured)) == 1


async def test_what_the_pod_had_ends_with_it() -> None:
    async with commute() as way:
        await way.learn()
        reader, writer = await way.dial()
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        way.server.engine.remove_pod("server-pod")
        ended = (await way.server.ended(2))[1]
        assert (ended.id, ended.reason) == (way.server.of(Begun)[0].id, Reason.POD_GONE)


async def test_a_drain_waits_for_those_that_nobody_was_told_of() -> None:
    async with commute() as way:
        await way.learn()
        reader, writer = await way.dial()
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        draining = asyncio.create_task(way.client.engine.drain(DEADLINE))
        await asyncio.sleep(0)
        assert not draining.done()
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await draining
        assert [ended.reason for ended in way.client.of(Ended)] == [Reason.OK] * len(way.client.of(Ended))


async def test_rates_are_of_what_python_is_asked_about() -> None:
    for _ in range(10):
        if await passes_many_with_few_tokens():
            return
    raise AssertionError("each time, so many lived for so long that they were told of, and took the tokens")


async def passes_many_with_few_tokens() -> bool:
    """False: it shows nothing. Who lives for 50 ms, as on a busy machine, costs a token; without any, the pod waits."""
    limits = Limits(captures=FEW, inbound=FEW, inbound_of_peer=FEW)
    async with commute(client_limits=limits, server_limits=limits) as way:
        await way.learn()
        for _ in range(4 * FEW.burst):
            try:
                await way.talk()
            except TimeoutError:
                assert len(way.client.of(Begun)) == FEW.burst - 1, "it waits although there are tokens"
                return False
        for node in (way.client, way.server):
            await have_passed(node, 4 * FEW.burst)
            assert len(node.of(Begun)) < FEW.burst
        assert Reason.LIMIT not in way.server.engine.refused
        return True


async def test_of_those_that_live_no_more_are_told_than_there_is_time_for() -> None:
    async with commute(server_limits=Limits(inbound_of_peer=FEW)) as way, AsyncExitStack() as ending:
        await way.learn()
        streams = [await way.dial() for _ in range(10)]
        for reader, writer in streams:
            ending.callback(writer.close)
            writer.write(b"x")
            assert await reader.read(1) == b"x"
        await way.client.until(lambda: len(way.client.of(Begun)) == 10)
        await way.server.until(lambda: len(way.server.of(Begun)) == FEW.burst - 1)
        for reader, writer in streams:
            writer.write_eof()
            assert await reader.read() == b""
        await have_passed(way.client, 10)
        await have_passed(way.server, 10)
        assert len(way.server.of(Begun)) == FEW.burst - 1


async def test_a_kind_that_fails_too_often_is_asked_about_and_so_limited() -> None:
    limits = Limits(inbound=FEW, inbound_of_peer=FEW)
    async with commute(server_limits=limits) as way:
        closed = socket.socket()
        closed.bind(("127.0.0.1", 0))
        way.pair.application = SocketAddress(*closed.getsockname())
        for _ in range(8):
            await way.is_reset()
        await eventually(lambda: way.server.engine.refused.get(Reason.LIMIT, 0) == 4)
        await way.server.until(lambda: len(way.server.of(Begun)) == 3)  # two in time, and the one that was too much
        closed.close()


@pytest.mark.parametrize("threads", [1, 2])
async def test_of_too_many_orders_those_go_that_are_not_used(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(book, "MOST", 4)
    async with commute(threads=threads) as way:
        way.server.stands = lambda fact: None
        await way.learn()
        pod = way.client.engine._pods["client-pod"]
        for count in range(1, 13):
            await way.talk()
            await have_passed(way.client, count)  # so it is known to be used
            await way.talk(SocketAddress("10.0.0.2", count))
            await way.client.until(lambda count=count: len(way.client.of(Captured)) == 1 + count)
        assert len(pod.book.standing) == pod.book.alternatives == 4
        await eventually(lambda: len(pod.book.numbered) == 4)
        await way.talk(SocketAddress("10.0.0.2", 1))
        await way.client.until(lambda: len(way.client.of(Captured)) == 14)


async def test_who_lives_under_an_order_that_is_recalled_is_told_of_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(book, "MOST", 1)
    async with commute(server_limits=Limits(inbound_of_peer=FEW)) as way, AsyncExitStack() as ending:
        await way.learn()
        streams = [await way.dial() for _ in range(FEW.burst)]
        for reader, writer in streams:
            ending.callback(writer.close)
            writer.write(b"x")
            assert await reader.read(1) == b"x"
        await way.server.until(lambda: len(way.server.of(Begun)) == FEW.burst - 1)
        pod = way.server.engine._pods["server-pod"]
        (given,) = pod.book.standing.values()
        (recalled,) = pod.book.add(book.Given(kind=b"another", first=10_000, names=["another"]))
        assert recalled is given
        way.server.engine._pump.recall(pod.number, recalled.kind)
        way.server.tunnels()  # waits for the thread
        way.server.engine._take_some_facts()
        assert given.first in pod.book.numbered
        for reader, writer in streams:
            writer.write_eof()
            assert await reader.read() == b""
        await have_passed(way.server, FEW.burst)
        await eventually(lambda: list(pod.book.numbered) == [10_000])


async def test_a_header_that_has_no_form_takes_no_order_down() -> None:
    async with commute() as way:
        await way.learn()
        way.client.engine.lapse()
        order = replace(way.tunnel(way.client.of(Captured)[0]), headers=[("forwarded", "\u20ac")])
        way.client.stands = lambda fact: None
        way.client.decide = lambda fact: None
        reader, writer = await way.dial()
        await way.client.until(lambda: len(way.client.of(Captured)) == 2)
        asked = way.client.of(Captured)[1]
        with pytest.raises(UnicodeEncodeError):
            way.client.engine.stand(way.standing(replace(order, id=asked.id)))
        way.client.engine.order(way.tunnel(asked))
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        way.client.decide = way.tunnel
        await way.talk()
