"""The accelerated loopback leg carries the same bytes, in order, to their end, in bounded memory. Off by default."""

from __future__ import annotations

import hashlib
import random
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bpf import Kernel
from bpf.layouts import ACCELERATE_TO_AGENT, ACCELERATE_TO_APPLICATION
from tests.kernel.rig import STRANGER4, STRANGER6, AgentListeners, Pod, Rig, Worker, enrol
from tests.kernel.test_life import empty, fill

BOTH = ACCELERATE_TO_AGENT | ACCELERATE_TO_APPLICATION


@pytest.fixture(params=[BOTH, ACCELERATE_TO_AGENT, 0], ids=["both", "to-agent", "native"])
def kernel(request: pytest.FixtureRequest, rig: Rig) -> Kernel:
    return rig.kernel(accelerate=request.param)


@pytest.fixture
def echo(listeners: AgentListeners) -> Iterator[None]:
    """The agent's side sends back what it gets, and the end of it."""
    stop = threading.Event()

    def serve(listener: socket.socket) -> None:
        listener.settimeout(0.1)
        while not stop.is_set():
            try:
                s, _ = listener.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=answer, args=(s,), daemon=True)
            thread.start()

    def answer(s: socket.socket) -> None:
        s.settimeout(20)
        with s:
            digest, size = hashlib.sha256(), 0
            while data := s.recv(70000):
                digest.update(data)
                size += len(data)
                s.sendall(data)
            s.sendall(digest.digest())

    threads = [threading.Thread(target=serve, args=(listeners.sockets[k],)) for k in ("outbound4", "outbound6")]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


def _exchange(_: Any, ip: str, seed: int, connections: int) -> list[str]:
    """Random sizes there and back, half-close; the digest comes after the last byte."""
    rnd, bad = random.Random(seed), []
    for n in range(connections):
        with socket.create_connection((ip, 80), timeout=20) as s:
            sent = b"".join(rnd.randbytes(rnd.choice([1, 10, 1000, 20000, 100000])) for _ in range(rnd.randint(1, 12)))
            got = bytearray()

            def read(s: socket.socket = s, got: bytearray = got) -> None:
                while data := s.recv(rnd.choice([1, 100, 65536])):
                    got.extend(data)

            reader = threading.Thread(target=read)
            reader.start()
            at = 0
            while at < len(sent):
                step = rnd.choice([1, 7, 1400, 30000])
                s.sendall(sent[at : at + step])
                at += step
            s.shutdown(socket.SHUT_WR)
            reader.join()
            if bytes(got) != sent + hashlib.sha256(sent).digest():
                bad.append(f"{n}: sent {len(sent)}, got {len(got)}")
    return bad


@pytest.mark.parametrize("ip", [STRANGER4, STRANGER6])
def test_bytes_and_their_end_arrive(ip: str, app: Worker, echo: None, kernel: Kernel) -> None:
    assert app.call(_exchange, ip, 1, 40) == []
    empty(kernel)


def test_a_slow_reader_holds_the_writer_back(listeners: AgentListeners, app: Worker) -> None:
    """Bytes and messages that nobody reads are bounded; later all of them arrive in order."""
    for size in (65536, 1):
        client = app.dial(STRANGER4, 80)
        accepted, _ = listeners.accept("outbound4")
        before = slab()
        sent = app.call(_flood, client, size)
        assert sent < 16 << 20
        assert slab() - before < 64 << 20
        got = bytearray()
        while len(got) < sent:
            got += accepted.recv(1 << 20)
        assert bytes(got) == pattern(sent)
        app.shutdown(client)
        assert accepted.recv(1) == b""
        accepted.close()
        app.close(client)


def pattern(size: int) -> bytes:
    return (b"".join(n.to_bytes(4, "big") for n in range(1 << 16)) * (size // (1 << 18) + 1))[:size]


def _flood(sockets: Any, number: int, size: int) -> int:
    """Write until nothing is taken for half a second."""
    s, sent, data = sockets.sockets[number], 0, memoryview(pattern(64 << 20))
    s.setblocking(False)
    while select.select([], [s], [], 0.5)[1] and sent < 32 << 20:
        try:
            sent += s.send(data[sent : sent + size])
        except BlockingIOError:
            if not select.select([], [s], [], 0.5)[1]:
                break
    s.settimeout(10)
    return sent


def slab() -> int:
    with open("/proc/meminfo") as file:  # noqa: PTH123
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("Slab:"))


def test_peek_and_readiness(listeners: AgentListeners, app: Worker) -> None:
    client = app.dial(STRANGER4, 80)
    accepted, _ = listeners.accept("outbound4")
    app.send(client, b"hello")
    assert select.select([accepted], [], [], 5)[0]
    assert accepted.recv(4, socket.MSG_PEEK) == b"hell"
    assert accepted.recv(100) == b"hello"
    assert not select.select([accepted], [], [], 0)[0]
    app.send(client, b"more")
    assert accepted.recv(100) == b"more"
    app.close(client)
    assert accepted.recv(100) == b""
    accepted.close()


def test_close_and_reset(listeners: AgentListeners, app: Worker, kernel: Kernel) -> None:
    for _ in range(50):
        client = app.dial(STRANGER4, 80)
        accepted, _ = listeners.accept("outbound4")
        accepted.sendall(b"y" * 100000)
        accepted.close()
        assert app.call(_read_all, client) == 100000
        app.close(client)
    client = app.dial(STRANGER4, 80)
    accepted, _ = listeners.accept("outbound4")
    app.send(client, b"unread")
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    accepted.close()
    with pytest.raises(ConnectionResetError):
        app.recv(client)
    app.close(client)
    empty(kernel)


def _read_all(sockets: Any, number: int) -> int:
    size = 0
    while data := sockets.sockets[number].recv(65536):
        size += len(data)
    return size


def test_it_is_accelerated_only_when_wanted(rig: Rig, pod: Pod) -> None:
    app = rig.worker("pods", pod)
    for accelerate, ends in ((0, 0), (BOTH, 2), (0, 0)):
        kernel = rig.kernel(accelerate=accelerate)
        listeners = AgentListeners(pod)
        enrol(kernel, pod, listeners)
        client = app.dial(STRANGER4, 80)
        accepted, _ = listeners.accept("outbound4")
        app.send(client, b"x")
        assert accepted.recv(1) == b"x"
        assert fill(kernel)["accelerated"] == ends
        attached = [p.name for p in kernel.describe().programs if p.attach == "tracepoint"]
        assert attached == (["received_stub"] if accelerate else [])
        app.close(client)
        accepted.close()
        listeners.close()
        empty(kernel)
