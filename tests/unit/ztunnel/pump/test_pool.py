"""Which connections share a tunnel, and which never do."""

from __future__ import annotations

import asyncio
import os

import pytest

from mesh.identity import SpiffeId
from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.unit.ztunnel.pump.authority import CLIENT, SERVER
from tests.unit.ztunnel.pump.nodes import DEADLINE, Pair, application, echo, eventually, pair, port_of
from ztunnel.orders import Captured
from ztunnel.pump import Limits

OTHER = SpiffeId("cluster.local", "default", "other")


async def open_connections(made: Pair, count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    before = len(made.client.of(Captured))
    opened = await asyncio.gather(*(made.connect() for _ in range(count)))
    await made.client.opened(before + count)
    return list(opened)


async def close_all(made: Pair, connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    for _, writer in connections:
        writer.close()
    await made.client.ended(len(made.client.of(Captured)))


def tunnels(made: Pair) -> int:
    return len(made.client.tunnels())


async def test_equal_keys_share_one_tunnel_even_when_they_come_at_once() -> None:
    async with pair() as made, application(made, echo):
        connections = await open_connections(made, 50)
        assert tunnels(made) == 1
        assert len(made.server.tunnels(server=True)) == 1
        await close_all(made, connections)


@pytest.mark.parametrize(
    "change",
    [
        {"expected": frozenset({SERVER, OTHER})},
        {"workload": "cluster//Pod/default/server@2"},
    ],
    ids=["expected identities", "workload instance"],
)
async def test_a_key_that_differs_gets_its_own_tunnel(change: dict) -> None:
    async with pair() as made, application(made, echo):
        connections = await open_connections(made, 1)
        made.client.decide = lambda fact: made.tunnel(fact.id, **change)
        connections += await open_connections(made, 1)
        assert tunnels(made) == 2
        await close_all(made, connections)


async def test_a_reused_address_with_another_identity_is_never_reached() -> None:
    """The pod at the address is another one now; the old tunnel is open, and a new key must prove itself."""
    async with pair() as made, application(made, echo):
        connections = await open_connections(made, 1)
        made.client.decide = lambda fact: made.tunnel(fact.id, expected=frozenset({OTHER}), workload="other@1")
        reader, writer = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert (await made.client.ended())[0].reason == Reason.PEER_IDENTITY
        writer.close()
        await close_all(made, connections)


async def test_another_tunnel_is_opened_at_the_stream_limit() -> None:
    async with pair(client_limits=Limits(streams_opened=4)) as made, application(made, echo):
        connections = await open_connections(made, 10)
        assert tunnels(made) == 3
        await close_all(made, connections)


async def test_the_peers_stream_limit_counts_too() -> None:
    async with pair(server_limits=Limits(streams_accepted=2)) as made, application(made, echo):
        connections = await open_connections(made, 1)  # SETTINGS are known from here on
        connections += await open_connections(made, 3)
        assert tunnels(made) == 2
        await close_all(made, connections)


async def test_another_tunnel_is_opened_when_one_is_busy() -> None:
    hold = asyncio.Event()

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        await hold.wait()
        writer.transport.abort()

    limits = Limits(busy_backlog=64 << 10)
    async with pair(client_limits=limits) as made, application(made, ignore):
        (first,) = await open_connections(made, 1)
        first[1].write(b"x" * (32 << 20))
        await eventually(lambda: made.client.tunnels()[0].backlog > 64 << 10)
        (second,) = await open_connections(made, 1)
        assert tunnels(made) == 2
        hold.set()
        first[1].transport.abort()
        second[1].transport.abort()


async def test_an_idle_tunnel_is_closed_in_the_end_and_not_before() -> None:
    async with pair(client_limits=Limits(idle_timeout=0.3)) as made, application(made, echo):
        await close_all(made, await open_connections(made, 1))
        await close_all(made, await open_connections(made, 1))
        assert tunnels(made) == 1
        await eventually(lambda: tunnels(made) == 0)
        await eventually(lambda: not made.server.tunnels(server=True))
        assert made.client.engine.census().groups == 0
        await close_all(made, await open_connections(made, 1))


async def test_everybody_who_waits_hears_of_a_failed_dial() -> None:
    async with pair() as made:
        made.client.decide = lambda fact: made.tunnel(fact.id, address=SocketAddress("127.0.0.1", 1))
        connections = await asyncio.gather(*(made.connect() for _ in range(5)))
        ended = await made.client.ended(5)
        assert {fact.reason for fact in ended} == {Reason.CONNECT_FAILED}
        assert "127.0.0.1:1" in ended[0].detail
        for _, writer in connections:
            writer.close()


async def test_a_withdrawn_request_leaves_nothing() -> None:
    """The application goes away while its tunnel is being made."""
    async with pair(client_limits=Limits(handshake_timeout=0.5)) as made:
        silent = await asyncio.start_server(lambda r, w: asyncio.sleep(5), "127.0.0.1", 0)
        address = SocketAddress(*silent.sockets[0].getsockname())
        made.client.decide = lambda fact: made.tunnel(fact.id, address=address)
        _, writer = await made.connect()
        await made.client.until(lambda: made.client.of(Captured))
        await asyncio.sleep(0.1)
        writer.transport.get_extra_info("socket").setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: RST
        writer.transport.abort()
        assert (await made.client.ended())[0].reason == Reason.RESET_BY_PEER
        await eventually(lambda: made.client.engine.census().groups == 0)
        silent.close()


async def test_pods_do_not_share_tunnels() -> None:
    """Two client pods under one identity: each dials from its own netns."""
    async with pair() as made, application(made, echo):
        connections = await open_connections(made, 1)
        engine = made.client.engine
        netns = os.open("/proc/self/ns/net", os.O_RDONLY)
        listeners = engine.add_pod("other-pod", netns, "cluster.local", ["127.0.0.1"])
        os.close(netns)
        engine.set_credentials("other-pod", made.authority.issue(CLIENT))
        engine.start_pod("other-pod")
        made.client.decide = lambda fact: made.tunnel(fact.id, pod="other-pod")
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(listeners.outbound4))
        writer.write(b"hi")
        assert await asyncio.wait_for(reader.readexactly(2), DEADLINE) == b"hi"
        assert tunnels(made) == 2
        # A decider that mixes them up is stopped.
        stray, stray_writer = await made.connect()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(stray.read(), DEADLINE)
        assert (await made.client.ended())[0].reason == Reason.INTERNAL
        stray_writer.close()
        connections.append((reader, writer))
        await close_all(made, connections)
