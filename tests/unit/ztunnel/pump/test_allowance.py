"""Rates: what a pod may begin, and what one address may ask of it. A pod's own connections wait, others are refused."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
import time
from contextlib import suppress

import pytest

from mesh.http2 import Rate
from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.unit.ztunnel.pump.authority import CLIENT
from tests.unit.ztunnel.pump.contexts import contexts
from tests.unit.ztunnel.pump.nodes import DEADLINE, Node, application, echo, eventually, pair
from tests.unit.ztunnel.pump.test_tunnel import HEADERS, PREFACE, SETTINGS, Peer, client_of, frame, still_serves
from ztunnel.orders import Captured, Offered, Plaintext
from ztunnel.pump import Limits

SLOW = 0.001  # tokens per second: none comes while a test runs


def refused(made: Node, door: str) -> bool:
    """A connection to the listener is reset; otherwise it is answered, with a byte or an end."""
    try:
        with socket.create_connection(made.address(door), DEADLINE) as sock:
            sock.recv(1)
    except ConnectionResetError:
        return True
    return False


def waiting(listener: int) -> int:
    """Connections that are not accepted yet: tcpi_unacked of struct tcp_info."""
    with socket.socket(fileno=os.dup(listener)) as sock:
        return struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 24)[0]


def until_wait(listener: int, count: int) -> None:
    """While Python does nothing else."""
    end = time.monotonic() + DEADLINE
    while waiting(listener) != count:
        assert time.monotonic() < end
        time.sleep(0.01)


async def ask_for_tls(address: tuple[str, int], host: str, context: ssl.SSLContext) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(*address, local_addr=(host, 0), ssl=context, server_hostname="")
    return writer


def stranger() -> ssl.SSLContext:
    """Without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


async def test_a_pods_own_connections_wait_for_their_tokens_and_none_is_refused() -> None:
    made = Node("pod", limits=Limits(captures=Rate(burst=2, per_second=20)))
    made.memory.destination = SocketAddress("10.0.0.2", 80)
    began = asyncio.get_running_loop().time()
    socks = [socket.create_connection(made.address("outbound4"), DEADLINE) for _ in range(12)]
    await made.until(lambda: len(made.of(Captured)) == len(socks))
    assert asyncio.get_running_loop().time() - began > 0.4, "ten tokens, 20 per second"
    assert made.engine.refused == {}
    for sock in socks:
        sock.close()
    await made.engine.drain(0)


async def test_a_pods_own_connections_wait_until_others_were_decided_and_none_is_refused() -> None:
    """Nothing is awaited while they come: Python hears of none. Each is over again at once."""
    made = Node("pod", limits=Limits(untold_captured=10))
    made.memory.destination = SocketAddress("10.0.0.2", 80)
    for _ in range(25):
        socket.create_connection(made.address("outbound4"), DEADLINE).close()
    until_wait(made.listeners.outbound4, 15)
    await made.until(lambda: len(made.of(Captured)) == 25)
    assert made.engine.refused == {}
    await made.engine.drain(0)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(untold_per_peer=10),
        Limits(inbound_of_peer=Rate(burst=10, per_second=SLOW)),
        Limits(inbound=Rate(burst=10, per_second=SLOW)),
    ],
    ids=["not decided yet", "of a peer", "of the pod"],
)
async def test_who_asks_too_fast_is_refused_and_the_pods_own_connections_are_not(limits: Limits) -> None:
    """Nothing is awaited while they come: Python hears of none."""
    made = Node("pod", limits=limits)
    made.memory.destination = SocketAddress("10.0.0.2", 80)
    for _ in range(10):
        socket.create_connection(made.address("plaintext4"), DEADLINE).close()
    assert all(refused(made, "plaintext4") for _ in range(5))
    await eventually(lambda: made.engine.refused == {Reason.LIMIT: 5})
    with socket.create_connection(made.address("outbound4"), DEADLINE):
        await made.until(lambda: made.of(Captured))
    assert len(made.of(Plaintext)) == 10
    await made.engine.drain(0)


async def test_who_asked_too_fast_is_heard_again_once_the_others_were_decided() -> None:
    made = Node("pod", limits=Limits(untold_per_peer=1))
    with socket.create_connection(made.address("plaintext4"), DEADLINE):
        assert refused(made, "plaintext4")
        await made.until(lambda: len(made.of(Plaintext)) == 1)
    with socket.create_connection(made.address("plaintext4"), DEADLINE):
        await made.until(lambda: len(made.of(Plaintext)) == 2)
    await made.engine.drain(0)


async def test_requests_come_out_of_the_same_bucket() -> None:
    limits = Limits(inbound_of_peer=Rate(burst=3, per_second=SLOW))
    async with pair(server_limits=limits) as made, client_of(made) as peer:
        peer.writer.write(PREFACE + SETTINGS + b"".join(frame(1, 4, 1 + 2 * n, HEADERS) for n in range(5)))
        await made.server.until(lambda: len(made.server.of(Offered)) == 3)
        await eventually(lambda: made.server.engine.refused == {Reason.LIMIT: 2})


async def test_a_peer_that_begins_too_many_handshakes_is_refused_and_another_is_not() -> None:
    limits = Limits(handshakes_of_peer=Rate(burst=3, per_second=SLOW))
    async with pair(server_limits=limits) as made:
        member, address = contexts(made.authority.issue(CLIENT)).client, made.server.address("tunnel4")
        writers = [await ask_for_tls(address, "127.0.0.2", member) for _ in range(3)]
        with pytest.raises(ConnectionError):
            await ask_for_tls(address, "127.0.0.2", member)
        await eventually(lambda: made.server.engine.refused == {Reason.LIMIT: 1})
        writers.append(await ask_for_tls(address, "127.0.0.3", member))
        for writer in writers:
            writer.transport.abort()


async def test_a_handshake_that_fails_costs_more() -> None:
    limits = Limits(handshakes_of_peer=Rate(burst=6, per_second=SLOW))
    async with pair(server_limits=limits) as made:
        address = made.server.address("tunnel4")
        for failed in (1, 2):
            writer = await ask_for_tls(address, "127.0.0.2", stranger())  # in TLS 1.3 the client is through first
            await eventually(lambda failed=failed: made.server.engine.refused.get(Reason.TLS_FAILED, 0) == failed)
            writer.transport.abort()
        with pytest.raises(ConnectionError):
            await ask_for_tls(address, "127.0.0.2", stranger())
        await eventually(lambda: made.server.engine.refused == {Reason.TLS_FAILED: 2, Reason.LIMIT: 1})


async def test_a_storm_of_strangers_keeps_no_member_out() -> None:
    """Strangers of many addresses use up what the pod takes; a peer that has proved its identity needs none of it."""
    async with (
        pair(server_limits=Limits(handshakes=Rate(burst=20, per_second=SLOW))) as made,
        application(made, echo),
    ):
        await still_serves(made)
        for number in range(30):
            with suppress(OSError):
                (await ask_for_tls(made.server.address("tunnel4"), f"127.0.1.{number}", stranger())).transport.abort()
        await eventually(lambda: made.server.engine.refused.get(Reason.LIMIT, 0) >= 10)
        made.client.engine.set_credentials("client-pod", made.authority.issue(CLIENT))  # the next tunnel is a new one
        await still_serves(made)
        assert len({fact.client.port for fact in made.server.of(Offered)}) == 2


async def test_a_peer_that_comes_back_has_the_resets_that_it_has_left() -> None:
    """Rapid reset: 10 streams on one connection, 10 on the next, of the 15 that the address may reset."""
    limits = Limits(resets=Rate(burst=15, per_second=SLOW))
    resets = b"".join(frame(1, 4, 1 + 2 * n, HEADERS) + frame(3, 0, 1 + 2 * n, b"\0\0\0\x08") for n in range(10))

    async def reset_ten(peer: Peer) -> None:
        peer.writer.write(PREFACE + SETTINGS + resets + frame(6, 0, 0, b"12345678"))

    async with pair(server_limits=limits) as made, application(made, echo):
        async with client_of(made) as first:
            await reset_ten(first)
            await eventually(lambda: made.server.engine.refused.get(Reason.RESET_BY_PEER, 0) == 10)
        async with client_of(made) as second:
            await reset_ten(second)
            await second.ending()
        await eventually(lambda: made.server.engine.refused.get(Reason.HTTP2_PROTOCOL) == 1)
        await still_serves(made)
