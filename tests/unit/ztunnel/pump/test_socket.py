"""How sockets end: in order when both sides have, with a reset however else it comes to that, SIGKILL included."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.unit.ztunnel.pump.nodes import DEADLINE, Node
from ztunnel.orders import RelayPlain

TOP = Path(__file__).resolve().parents[4]
# An agent's engine that relays what it captures to the port it is told; it says where it listens.
RELAY = """
import asyncio, sys
from mesh.model import SocketAddress
from tests.unit.ztunnel.pump.nodes import Node
from ztunnel.orders import RelayPlain

async def main():
    node = Node("pod")
    application = SocketAddress("127.0.0.1", int(sys.argv[1]))
    node.memory.destination = application
    node.decide = lambda fact: RelayPlain(id=fact.id, destination=application)
    print(node.ports["outbound4"], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextmanager
def relay(port: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process and its port."""
    with subprocess.Popen(
        [sys.executable, "-c", RELAY, str(port)], cwd=TOP, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def relayed() -> Iterator[tuple[subprocess.Popen[str], socket.socket, socket.socket]]:
    """(the relay, an application's socket on either side)."""
    with socket.create_server(("127.0.0.1", 0)) as listener, relay(listener.getsockname()[1]) as (process, port):
        client = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        server, _ = listener.accept()
        server.settimeout(DEADLINE)
        with client, server:
            yield process, client, server


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(DEADLINE)


def everything(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize("half_closed", [False, True])
def test_a_killed_relay_is_a_reset_on_both_sides(half_closed: bool) -> None:
    with relayed() as (process, client, server):
        client.sendall(b"question")
        assert server.recv(100) == b"question"
        server.sendall(b"answ")
        assert client.recv(100) == b"answ"
        if half_closed:
            client.shutdown(socket.SHUT_WR)
            assert server.recv(100) == b""
        kill(process)
        with pytest.raises(ConnectionResetError):
            client.recv(100)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            server.sendall(b"er") if half_closed else server.recv(100)


def test_what_ended_in_order_stays_in_order_when_the_relay_is_killed() -> None:
    with relayed() as (process, client, server):
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert everything(server) == b"question"
        server.sendall(b"answer")
        server.close()
        assert client.recv(100, socket.MSG_PEEK) == b"answer"
        assert everything(client) == b"answer"
        kill(process)


async def test_a_clean_close_leaves_the_kernel_time_to_send_everything() -> None:
    payload = os.urandom(1 << 20)
    node = Node("pod")
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        application = SocketAddress(*listener.getsockname())
        node.memory.destination = application
        node.decide = lambda fact: RelayPlain(id=fact.id, destination=application)
        client.settimeout(DEADLINE)
        client.connect(node.address("outbound4"))
        client.shutdown(socket.SHUT_WR)
        server = await asyncio.to_thread(lambda: listener.accept()[0])
        with server:
            await asyncio.to_thread(server.sendall, payload)
            server.shutdown(socket.SHUT_WR)
            (fact,) = await node.ended()
            assert (fact.reason, fact.received) == (Reason.OK, len(payload))
        await node.engine.drain(0)
        assert await asyncio.to_thread(everything, client) == payload
