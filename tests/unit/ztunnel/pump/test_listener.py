"""Accept loops: everybody is accepted, alone or in a crowd, and those who have to wait cost nothing meanwhile."""

from __future__ import annotations

import asyncio
import socket

from mesh.http2 import Rate
from mesh.model import SocketAddress
from tests.unit.ztunnel.pump.nodes import DEADLINE, Node
from ztunnel.orders import Captured
from ztunnel.pump import Limits

CROWDED = 150  # more than are accepted at once


async def test_everybody_is_accepted_alone_or_in_a_crowd() -> None:
    made = Node("pod", start=False)
    made.memory.destination = SocketAddress("10.0.0.2", 80)
    socks = [socket.create_connection(made.address("outbound4"), DEADLINE) for _ in range(CROWDED)]
    made.engine.start_pod("pod")
    await made.until(lambda: len(made.of(Captured)) == CROWDED)
    for number in range(1, 30):
        socks.append(socket.create_connection(made.address("outbound4"), DEADLINE))
        await made.until(lambda number=number: len(made.of(Captured)) == CROWDED + number)
    for sock in socks:
        sock.close()
    await made.engine.drain(0)


async def test_a_thread_does_not_run_in_circles_while_somebody_waits_to_be_accepted() -> None:
    made = Node("pod", limits=Limits(captures=Rate(burst=2, per_second=1)))
    made.memory.destination = SocketAddress("10.0.0.2", 80)
    socks = [socket.create_connection(made.address("outbound4"), DEADLINE) for _ in range(12)]
    await made.until(lambda: len(made.of(Captured)) >= 2)
    ((before, _),) = made.engine._pump.pulses()
    await asyncio.sleep(0.5)
    ((after, _),) = made.engine._pump.pulses()
    assert len(made.of(Captured)) < len(socks)
    assert (after - before) // 2 < 1000, "rounds; it looks at the bucket 100 times per second"
    for sock in socks:
        sock.close()
    await made.engine.drain(0)
