"""One pod on several threads: who serves what, what is counted together, and what an idle thread costs."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from mesh.http2 import Rate
from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.halting import halted
from tests.unit.ztunnel.pump.authority import CLIENT
from tests.unit.ztunnel.pump.nodes import (
    DEADLINE,
    Node,
    Pair,
    application,
    connect,
    echo,
    eventually,
    pair,
    port_of,
)
from tests.unit.ztunnel.pump.test_limits import MIB, NO_WINDOW, hose
from tests.unit.ztunnel.pump.test_tunnel import HEADERS, PREFACE, Peer, client_of, frame
from ztunnel.orders import Captured, Ended, Offered, Opened
from ztunnel.pump import Limits

THREADS = 2
TOGETHER = 16  # connections that a pod's home takes before another thread gets one
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def open_connections(made: Pair, count: int) -> list[Connection]:
    """One after the other."""
    connections = []
    before = len(made.client.of(Opened))
    for number in range(count):
        connections.append(await made.connect())
        await made.client.opened(before + number + 1)
    return connections


async def close_all(made: Pair, connections: Sequence[Connection]) -> None:
    for _, writer in connections:
        writer.close()
    await made.client.ended(len(made.client.of(Captured)))


def by_thread(node: Node, kind: type, threads: int = THREADS) -> list[int]:
    """How many connections each thread was given; an id tells its thread."""
    ids = [fact.id % threads for fact in node.of(kind)]
    return [ids.count(thread) for thread in range(threads)]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def talk(connection: Connection, rng: random.Random) -> None:
    reader, writer = connection
    for _ in range(10):
        said = rng.randbytes(rng.randrange(1, 100_000))
        writer.write(said)
        assert await asyncio.wait_for(reader.readexactly(len(said)), DEADLINE) == said


async def test_a_few_connections_stay_together_and_many_are_spread_each_thread_with_its_tunnel() -> None:
    async with pair(threads=THREADS) as made, application(made, echo):
        connections = await open_connections(made, TOGETHER)
        assert sorted(by_thread(made.client, Captured)) == [0, TOGETHER]
        assert len(made.client.tunnels()) == len(made.server.tunnels(server=True)) == 1
        connections += await open_connections(made, 4 * TOGETHER)
        assert sorted(by_thread(made.client, Captured)) == [2 * TOGETHER, 3 * TOGETHER]
        assert len(made.client.tunnels()) == len(made.server.tunnels(server=True)) == 2
        assert sorted(by_thread(made.server, Offered)) == [2 * TOGETHER, 3 * TOGETHER], "tunnels are spread too"
        rng = random.Random(7)
        await asyncio.gather(*(talk(connection, rng) for connection in connections))
        await close_all(made, connections)
        assert {fact.reason for fact in made.client.of(Ended)} == {Reason.OK}


async def test_peers_with_a_tunnel_each_are_spread_and_what_comes_behind_a_handshake_is_not_lost() -> None:
    """The client sends its first request with the end of the handshake: the thread that gets the tunnel finds it."""
    async with pair(threads=3) as made, application(made, echo):
        connections = []
        for number in range(9):
            made.client.decide = lambda fact, number=number: made.tunnel(fact.id, workload=f"server@{number}")
            connections += await open_connections(made, 1)
        assert by_thread(made.server, Offered, 3) == [3, 3, 3]
        rng = random.Random(8)
        await asyncio.gather(*(talk(connection, rng) for connection in connections))
        await close_all(made, connections)


async def test_limits_of_a_pod_and_of_a_peer_count_all_threads() -> None:
    limits = Limits(connections_per_pod=20)
    async with pair(client_limits=limits, threads=THREADS) as made, application(made, echo):
        connections = await open_connections(made, 20)
        assert min(by_thread(made.client, Captured)) > 0
        with pytest.raises(ConnectionResetError):
            reader, _ = await made.connect()
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert made.client.engine.refused == {Reason.LIMIT: 1}
        await close_all(made, connections)
    async with pair(server_limits=Limits(tunnels_per_peer=3), threads=THREADS) as made, application(made, echo):
        connections = []
        for number in range(5):
            made.client.decide = lambda fact, number=number: made.tunnel(fact.id, workload=f"server@{number}")
            connections.append(await made.connect())
            await made.client.until(lambda: len(made.client.of(Opened) + made.client.of(Ended)) == len(connections))
        await made.client.until(lambda: len(made.client.of(Ended)) == 2)
        assert made.server.engine.refused == {Reason.LIMIT: 2}
        assert made.server.engine.census().peers == 1
        made.client.engine.remove_pod("client-pod")
        await eventually(lambda: made.server.engine.census().peers == 0)


@asynccontextmanager
async def two_peers(made: Pair) -> AsyncIterator[tuple[Peer, Peer]]:
    """Of one address, each served by another thread; each has asked once."""
    async with client_of(made) as one, client_of(made) as other:
        for count, peer in enumerate((one, other), 1):
            peer.writer.write(PREFACE + NO_WINDOW + frame(1, 4, 1, HEADERS))
            await made.server.until(lambda count=count: len(made.server.of(Offered)) == count)
        assert by_thread(made.server, Offered) == [1, 1]
        yield one, other


async def test_what_is_asked_counts_on_all_threads() -> None:
    limits = Limits(inbound_of_peer=Rate(burst=7, per_second=0.001))
    async with pair(server_limits=limits, threads=THREADS) as made, two_peers(made) as peers:
        for peer in peers:
            peer.writer.write(b"".join(frame(1, 4, 3 + 2 * n, HEADERS) for n in range(5)))
        await eventually(lambda: made.server.engine.refused == {Reason.LIMIT: 5})
        await made.server.until(lambda: len(made.server.of(Offered)) == 7)


async def test_bytes_of_a_pod_count_on_all_threads() -> None:
    async with (
        pair(server_limits=Limits(buffered_per_pod=MIB), threads=THREADS) as made,
        application(made, hose),
        two_peers(made) as (greedy, modest),
    ):
        greedy.writer.write(b"".join(frame(1, 4, 3 + 2 * n, HEADERS) for n in range(30)))
        await eventually(lambda: made.server.engine.held[1] >= MIB)
        modest.writer.write(frame(1, 4, 3, HEADERS))
        await eventually(lambda: made.server.engine.refused == {Reason.LIMIT: 1})
        await made.server.until(lambda: sorted(by_thread(made.server, Offered)) == [1, 31])


async def test_what_is_on_its_way_to_another_thread_counts() -> None:
    """The other thread stands still: it takes nothing of what it is handed. It was asleep, so that it holds no lock."""
    made = Node("pod", limits=Limits(connections_per_pod=20, decision_timeout=600), threads=THREADS)
    made.memory.destination = SocketAddress("10.0.0.2", 80)
    (other,) = {f"pump-{thread}" for thread in range(THREADS)} - {f"pump-{home(made)}"}
    await eventually(lambda: not made.engine.pulses()[other][1])
    with halted(os.getpid(), other):
        connections = [await connect(made.address("outbound4")) for _ in range(20)]
        for _ in range(10):
            with suppress(ConnectionResetError):  # here already, or a moment later
                connections.append(await connect(made.address("outbound4")))
        await eventually(lambda: made.engine.refused == {Reason.LIMIT: 10})
        assert made.engine.held[0] == 2 * 20, "the application's, and the one that will be dialled"
        assert len(made.of(Captured)) < 20
    await made.until(lambda: len(made.of(Captured)) == 20)
    assert made.engine.held[0] == 2 * 20
    made.engine.remove_pod("pod")
    assert made.engine.held[0] == 0
    await made.engine.drain(0)
    for _, writer in connections:
        writer.close()


async def test_pods_come_and_go_while_a_thread_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    """It does its part when it goes on."""
    made = Node("pod", threads=THREADS)
    made.memory.destination = SocketAddress("10.0.0.2", 80)
    port = port_of(made.enrol_another("another").outbound4)
    stuck, lives = home(made), (home(made) + 1) % THREADS
    connections = [await connect(made.address("outbound4")), await connect(("127.0.0.1", port))]
    await made.until(lambda: len(made.of(Captured)) == 2)
    assert by_thread(made, Captured) == [1, 1]
    with halted(os.getpid(), f"pump-{stuck}"):
        made.engine.remove_pod("pod")
        made.engine.remove_pod("another")
        made.enrol_another("third")
        fourth = port_of(made.enrol_another("fourth").outbound4)
        connections.append(await connect(("127.0.0.1", fourth)))
        await made.until(lambda: len(made.of(Captured)) == 3)
        assert by_thread(made, Captured)[lives] == 2
        (ended,) = await made.ended(1)
        assert (ended.id % THREADS, ended.reason) == (lives, Reason.POD_GONE)
        assert {text.partition(": ")[0] for text in caplog.messages} == {
            "remove pod pod",
            "remove pod another",
            "add pod third",
            "add pod fourth",
        }
    assert {ended.reason for ended in await made.ended(2)} == {Reason.POD_GONE}
    caplog.clear()
    await eventually(lambda: not any(busy for _, busy in made.engine.pulses().values()))
    made.engine.remove_pod("third")
    made.engine.remove_pod("fourth")
    assert not caplog.messages, "it is waited for again"
    await made.ended(3)
    for _, writer in connections:
        writer.close()
    await made.engine.drain(0)


def home(made: Node) -> int:
    """The thread that accepts for its pod."""
    return made.engine._pods[made.pod].number % THREADS


async def test_a_new_certificate_is_used_by_every_thread() -> None:
    async with pair(threads=THREADS) as made, application(made, echo):
        before = await open_connections(made, 3 * TOGETHER)
        assert len(made.client.tunnels()) == 2
        made.client.engine.set_credentials("client-pod", made.authority.issue(CLIENT))
        after = await open_connections(made, 3 * TOGETHER)
        assert [tunnel.retired for tunnel in made.client.tunnels()].count(False) == 2
        await close_all(made, before + after)
        await eventually(lambda: [tunnel.retired for tunnel in made.client.tunnels()] == [False, False])


async def test_a_pod_that_leaves_and_comes_again_keeps_what_each_thread_has_open() -> None:
    async with pair(threads=THREADS) as made, application(made, echo):
        first = await open_connections(made, 3 * TOGETHER)
        made.client.engine.remove_pod("client-pod", listeners_only=True)
        made.client.enrol()
        second = await open_connections(made, 3 * TOGETHER)
        rng = random.Random(9)
        await asyncio.gather(*(talk(connection, rng) for connection in first + second))
        made.client.engine.remove_pod("client-pod", listeners_only=True)
        await close_all(made, first + second)
        await eventually(lambda: not made.client.engine._pods)
        assert {fact.reason for fact in made.client.of(Ended)} == {Reason.OK}


async def test_dropping_a_pod_ends_what_any_thread_serves_and_gives_back_every_descriptor() -> None:
    async with pair(threads=THREADS) as made, application(made, echo):
        before = descriptors()
        for _ in range(3):
            connections = await open_connections(made, 3 * TOGETHER)
            ended = len(made.client.of(Captured))
            made.client.engine.remove_pod("client-pod")
            assert {fact.reason for fact in await made.client.ended(ended)} == {Reason.POD_GONE}
            for _, writer in connections:
                writer.close()
            made.client.enrol()
            made.client.engine.set_credentials("client-pod", made.authority.issue(CLIENT))
        await eventually(lambda: not made.server.engine.census().tunnels)
        await eventually(lambda: descriptors() <= before)


async def test_connections_that_come_and_go_while_the_engine_ends_are_nobodys_fault() -> None:
    """A thread may be handed something when its pod, or the thread itself, is on its way out."""
    for _ in range(5):
        async with pair(threads=THREADS) as made, application(made, echo):

            async def storm(made: Pair = made) -> None:
                for _ in range(100):
                    try:
                        _, writer = await made.connect()
                    except ConnectionError:
                        return
                    writer.close()

            storms = [asyncio.create_task(storm()) for _ in range(4)]
            await made.client.until(lambda made=made: len(made.client.of(Captured)) > 20)
            await asyncio.gather(made.server.engine.drain(0), made.client.engine.drain(0))
            await asyncio.gather(*storms, return_exceptions=True)


def wakings() -> int:
    """How often threads of the pump were woken, in all: they sleep nowhere but in epoll_wait."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            if (task / "comm").read_text().startswith("pump-"):
                line = next(x for x in (task / "status").read_text().splitlines() if x.startswith("voluntary"))
                total += int(line.split()[1])
        except FileNotFoundError:
            continue  # it has ended
    return total


async def test_an_idle_thread_is_not_woken() -> None:
    async with pair(threads=4):
        for _ in range(10):  # what the beginning left behind may take a while
            before = wakings()
            await asyncio.sleep(2)
            if wakings() == before:
                return
    raise AssertionError("they are never at rest")


async def test_idle_connections_cost_the_pings_of_their_tunnel_however_many_they_are() -> None:
    """Each side asks once in an interval: a timer, the answer, and the other's question. That are three wakings, or by
    default eighteen in a minute."""
    limits = Limits(ping_interval=0.5)
    async with pair(client_limits=limits, server_limits=limits) as made, application(made, echo):
        connections = await open_connections(made, 100)
        await asyncio.sleep(0.5)
        before, began = wakings(), time.monotonic()
        await asyncio.sleep(3)
        woken, took = wakings() - before, time.monotonic() - began
        assert 6 <= woken <= 2 * 3 * (took / 0.5 + 1)
        await close_all(made, connections)
