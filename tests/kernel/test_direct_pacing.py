"""Streams by a pacing congestion control (BBR) are not held back within the node; all else keeps what it chose."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from bpf import Kernel, Mode, Target
from mesh.model import SocketAddress
from tests.kernel.rig import STRANGER4, STRANGER6, AgentListeners, Pod, Rig, Worker, enrol
from tests.kernel.test_inbound import last_hop

CHUNK = 16 * 1024  # any socket takes as much while nobody reads
STREAM = 4 * 64 * 1024  # four times what it takes to be one
DEADLINE_S = 60.0


@pytest.fixture
def kernel(rig: Rig) -> Kernel:
    return rig.kernel(direct=True)


@pytest.fixture(params=[False, True], ids=["native", "accelerated"])
def server_pod(kernel: Kernel, listeners: AgentListeners, rig: Rig, pod: Pod, request: pytest.FixtureRequest) -> Pod:
    made = rig.add_pod()
    enrol(kernel, made)
    kernel.set_targets({p.name: Target(mode=Mode.OPEN, accelerate=request.param) for p in (pod, made)})
    return made


@pytest.fixture
def server(rig: Rig, server_pod: Pod) -> Worker:
    return rig.worker("pods", server_pod)


def choose(sockets: Any, number: int, name: str) -> None:
    """Accepted sockets inherit it from their listener. Each message is a segment."""
    sockets.sockets[number].setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    sockets.sockets[number].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def chosen(sockets: Any, number: int) -> str:
    name: bytes = sockets.sockets[number].getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.rstrip(b"\0").decode()


def read(s: socket.socket, size: int) -> int:
    """Read as much, or until the end."""
    got = 0
    while got < size and (data := s.recv(size - got)):
        got += len(data)
    return got


def drain(sockets: Any, number: int, size: int) -> int:
    return read(sockets.sockets[number], size)


def stream(source: Worker, number: int, sink: Worker, other: int) -> None:
    for _ in range(STREAM // CHUNK):
        source.send(number, bytes(CHUNK))
        assert sink.call(drain, other, CHUNK) == CHUNK


def becomes(worker: Worker, number: int, name: str) -> bool:
    """Bytes are acknowledged a little later."""
    end = time.monotonic() + DEADLINE_S
    while worker.call(chosen, number) != name:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class Pair:
    """A direct connection whose two ends have chosen `name`."""

    def __init__(self, app: Worker, server: Worker, ip: str, name: str) -> None:
        self.app, self.server = app, server
        listener, port = server.listen("::", dual=True)
        server.call(choose, listener, name)
        self.client = app.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
        app.call(choose, self.client, name)
        app.connect(self.client, ip, port)
        self.accepted, _ = server.accept(listener)

    @property
    def chosen(self) -> tuple[str, str]:
        return self.app.call(chosen, self.client), self.server.call(chosen, self.accepted)


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize(("before", "after"), [("bbr", "reno"), ("cubic", "cubic")])
def test_the_end_that_sends_a_stream(
    before: str, after: str, family: str, server_pod: Pod, app: Worker, server: Worker
) -> None:
    pair = Pair(app, server, getattr(server_pod, family), before)
    app.send(pair.client, b"there")
    assert server.recv(pair.accepted) == b"there"
    assert pair.chosen == (before, before), "a few bytes are no stream"
    stream(app, pair.client, server, pair.accepted)
    assert becomes(app, pair.client, after)
    assert pair.chosen == (after, before), "the other end has sent nothing"
    stream(server, pair.accepted, app, pair.client)
    assert becomes(server, pair.accepted, after)


def test_many_small_messages_are_no_stream(server_pod: Pod, app: Worker, server: Worker) -> None:
    pair = Pair(app, server, server_pod.ip4, "bbr")
    for _ in range(STREAM // 256):
        app.send(pair.client, bytes(256))
        assert server.call(drain, pair.accepted, 256) == 256
    assert pair.chosen == ("bbr", "bbr")


@pytest.mark.parametrize("ip", [STRANGER4, STRANGER6])
@pytest.mark.parametrize(("before", "after"), [("bbr", "reno"), ("cubic", "cubic")])
def test_what_is_captured_goes_over_loopback(
    before: str, after: str, ip: str, server_pod: Pod, app: Worker, listeners: AgentListeners
) -> None:
    client = app.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    app.call(choose, client, before)
    app.connect(client, ip, 80)
    agent, _ = listeners.accept("outbound6" if ":" in ip else "outbound4")
    assert app.call(chosen, client) == before
    with agent:
        for _ in range(STREAM // CHUNK):
            app.send(client, bytes(CHUNK))
            assert read(agent, CHUNK) == CHUNK
    assert becomes(app, client, after)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("before", "after"), [("bbr", "reno"), ("cubic", "cubic")])
def test_so_does_the_last_hop(
    before: str, after: str, version: int, server_pod: Pod, app: Worker, agent: Worker, pod: Pod, kernel: Kernel
) -> None:
    """Whichever end sends the stream: the application's, which was accepted, and the agent's, which has dialled."""
    listener, port = app.listen("0.0.0.0" if version == 4 else "::")
    app.call(choose, listener, before)
    client = SocketAddress(STRANGER4 if version == 4 else STRANGER6, 40000)
    number = last_hop(kernel, agent, pod, version, client, port)
    agent.call(choose, number, before)
    accepted, peer = app.accept(listener)
    assert peer[:2] == tuple(client)
    stream(app, accepted, agent, number)
    assert becomes(app, accepted, after)
    assert agent.call(chosen, number) == before, "the other end has sent nothing"
    stream(agent, number, app, accepted)
    assert becomes(agent, number, after)


def test_few_bytes_of_a_last_hop_are_no_stream(
    app: Worker, agent: Worker, pod: Pod, kernel: Kernel, server_pod: Pod
) -> None:
    listener, port = app.listen("0.0.0.0")
    app.call(choose, listener, "bbr")
    number = last_hop(kernel, agent, pod, 4, SocketAddress(STRANGER4, 40000), port)
    accepted, _ = app.accept(listener)
    for _ in range(STREAM // 256):
        app.send(accepted, bytes(256))
        assert agent.call(drain, number, 256) == 256
    assert app.call(chosen, accepted) == "bbr"
