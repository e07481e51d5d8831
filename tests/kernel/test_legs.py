"""Loopback legs between application and agent go from socket to socket once the application has shown that it never
waits in a receive; for all others nothing differs from TCP."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bpf import Kernel, Mode, Outcome, Target
from mesh.model import SocketAddress
from tests.kernel.promoting import Promoter, chat, promoter
from tests.kernel.rig import STRANGER4, STRANGER6, AgentListeners, Pod, Rig, Worker, enrol
from tests.kernel.streams import echo_at, exchange, flood, pattern
from tests.kernel.test_inbound import last_hop
from tests.kernel.test_life import empty, fill

CLIENT = SocketAddress(ip="198.51.100.7", port=40000)


@pytest.fixture
def kernel(rig: Rig) -> Kernel:
    return rig.kernel(direct=True, accelerate=True)


@pytest.fixture
def made(kernel: Kernel, listeners: AgentListeners, pod: Pod) -> Iterator[Promoter]:
    enrol(kernel, pod, listeners)
    kernel.set_targets({pod.name: Target(mode=Mode.OPEN)})
    with promoter(kernel, pod) as promoting:
        yield promoting


def talk(app: Worker, number: int, agent: socket.socket, times: int = 20) -> None:
    for _ in range(times):
        app.send(number, b"there")
        assert agent.recv(100) == b"there"
        agent.sendall(b"and back")
        assert app.recv(number) == b"and back"


def captured(app: Worker, listeners: AgentListeners, ip: str = STRANGER4) -> tuple[int, socket.socket]:
    """A captured connection: the application's end, the agent's."""
    number = app.dial(ip, 80)
    return number, listeners.accept("outbound4" if "." in ip else "outbound6")[0]


def tracked(kernel: Kernel) -> int:
    return len(kernel._maps["legs"].walk())


@pytest.mark.parametrize("ip", [STRANGER4, STRANGER6])
def test_a_captured_connection_is_promoted(
    ip: str, app: Worker, listeners: AgentListeners, kernel: Kernel, made: Promoter
) -> None:
    number, agent = captured(app, listeners, ip)
    talk(app, number, agent, 10)
    assert made.look() == [] and fill(kernel)["accelerated"] == 0
    talk(app, number, agent, 10)
    assert made.look() == [Outcome.PROMOTED]
    talk(app, number, agent)
    assert made.look() == [], "it is told once"
    assert [n > 50 for n in made.redirected()] == [True, True]
    app.send(number, b"last words")
    app.shutdown(number)
    assert agent.recv(100) == b"last words" and agent.recv(100) == b""
    agent.sendall(b"answer")
    agent.close()
    assert app.recv(number) == b"answer" and app.recv(number) == b""
    app.close(number)
    empty(kernel)
    assert tracked(kernel) == 0


def test_every_byte_arrives_once_and_in_order(
    app: Worker, listeners: AgentListeners, kernel: Kernel, made: Promoter
) -> None:
    """Promoted in the middle of it."""
    with ThreadPoolExecutor(1) as agent:
        answered = agent.submit(echo_at, listeners.sockets["outbound4"], 40)
        app.start("call", exchange, STRANGER4, 80, 40)
        ((bad, _),) = made.during(app)
        assert bad == answered.result(60) == []
    assert Outcome.PROMOTED in made.outcomes
    empty(kernel)
    assert tracked(kernel) == 0


def test_the_tracepoint_is_there_only_when_wanted(rig: Rig, pod: Pod, app: Worker) -> None:
    for wanted in (False, True, False):
        kernel = rig.kernel(accelerate=wanted, direct=True)
        listeners = AgentListeners(pod)
        enrol(kernel, pod, listeners)
        kernel.set_targets({pod.name: Target(mode=Mode.OPEN)})
        number, agent = captured(app, listeners)
        talk(app, number, agent, 1)
        assert tracked(kernel) == int(wanted) and fill(kernel)["consumed"] == 2 * int(wanted)
        attached = [p.name for p in kernel.describe().programs if p.attach == "tracepoint"]
        assert attached == (["received_stub"] if wanted else [])
        app.close(number)
        agent.close()
        listeners.close()
        empty(kernel)


def test_a_last_hop_is_promoted(app: Worker, agent: Worker, pod: Pod, kernel: Kernel, made: Promoter) -> None:
    listener, port = app.listen("0.0.0.0")
    number = last_hop(kernel, agent, pod, 4, CLIENT, port)
    accepted, peer = app.accept(listener)
    assert peer[0] == CLIENT.ip
    chat(agent, app, number, accepted)
    assert made.look() == [Outcome.PROMOTED]
    chat(agent, app, number, accepted)
    assert [n > 50 for n in made.redirected()] == [True, True]
    app.close(accepted)
    assert agent.recv(number) == b""
    agent.close(number)
    app.close(listener)
    empty(kernel)
    assert tracked(kernel) == 0


def blocking(sockets: Any, number: int) -> None:
    sockets.sockets[number].setblocking(True)


def test_who_waits_is_left_alone(app: Worker, listeners: AgentListeners, kernel: Kernel, made: Promoter) -> None:
    number, agent = captured(app, listeners)
    app.call(blocking, number)
    talk(app, number, agent)
    app.wait_forever(number)
    talk(app, number, agent, 40)
    assert made.look() == [] and fill(kernel)["accelerated"] == 0 and not any(made.redirected())


def test_who_waits_later_is_left_alone_again(
    app: Worker, listeners: AgentListeners, kernel: Kernel, made: Promoter
) -> None:
    number, agent = captured(app, listeners)
    talk(app, number, agent)
    assert made.look() == [Outcome.PROMOTED]
    app.call(blocking, number)
    app.wait_forever(number)
    talk(app, number, agent, 1)
    made.look()
    assert made.barred
    assert made.demote() is Outcome.DEMOTED
    assert fill(kernel)["accelerated"] == 0
    before = sum(made.redirected())
    talk(app, number, agent, 40)
    assert sum(made.redirected()) == before and made.look() == []


def test_who_opted_out_is_not_even_counted(
    app: Worker, listeners: AgentListeners, pod: Pod, kernel: Kernel, made: Promoter
) -> None:
    kernel.set_targets({pod.name: Target(mode=Mode.OPEN, accelerate=False)})
    number, agent = captured(app, listeners)
    talk(app, number, agent)
    assert made.look() == [] and tracked(kernel) == 0 and fill(kernel)["consumed"] == 0


def test_what_is_not_read_is_bounded_and_arrives_in_order(
    app: Worker, listeners: AgentListeners, kernel: Kernel, made: Promoter
) -> None:
    """Both ways: past TCP as far as the budget goes, by TCP from there on."""
    number, agent = captured(app, listeners)
    talk(app, number, agent)
    assert made.look() == [Outcome.PROMOTED]
    sent = app.call(flood, number, 4000)
    assert sent < 16 << 20
    got = bytearray()
    while len(got) < sent:
        got += agent.recv(1 << 20)
        made.look()
    assert bytes(got) == pattern(sent)
    agent.setblocking(False)
    back, data = 0, memoryview(pattern(16 << 20))
    with contextlib.suppress(BlockingIOError):
        while back < len(data):
            back += agent.send(data[back : back + 4000])
    assert back < len(data)
    taken = b""
    while len(taken) < back:
        taken += app.recv(number, 1 << 20)
        made.look()
    assert taken == pattern(back)


def test_a_reset_is_an_error_at_the_other_end(
    app: Worker, listeners: AgentListeners, kernel: Kernel, made: Promoter
) -> None:
    number, agent = captured(app, listeners)
    talk(app, number, agent)
    assert made.look() == [Outcome.PROMOTED]
    agent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    agent.close()
    with pytest.raises(ConnectionResetError):
        app.recv(number)
    app.close(number)
    empty(kernel)
