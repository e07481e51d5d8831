"""How ended direct flows are told: each once, by itself if it had been found, else added to others that are alike."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bpf import DirectClosed, DirectOpened, Kernel, Mode, Target
from bpf.layouts import DIRECT, ENTRY, TALLY
from bpf.ledger import DirectTally
from tests.kernel.rig import Pod, Rig, Worker, enrol, run
from tests.kernel.test_direct import _begin, _decided, drained, events
from tests.kernel.test_life import until

BODY = b"x" * 100


@pytest.fixture
def server_pod(rig: Rig, pod: Pod) -> Pod:
    return rig.add_pod()


@pytest.fixture
def kernel(rig: Rig, pod: Pod, server_pod: Pod) -> Kernel:
    """As the agent has it: only what was found is told by itself."""
    made = rig.kernel(direct=True)
    made.ledger.tell_each(False)
    for each in (pod, server_pod):
        enrol(made, each)
    made.set_targets({p.name: Target(mode=Mode.OPEN, accelerate=False) for p in (pod, server_pod)})
    return made


@pytest.fixture
def server(rig: Rig, server_pod: Pod) -> Worker:
    return rig.worker("pods", server_pod)


@pytest.fixture
def listening(server: Worker) -> Iterator[tuple[int, int]]:
    """The listener's number and its port."""
    yield server.listen("::", dual=True)


def serve(sockets: Any, number: int, times: int) -> None:
    """Twice as much as is asked, and the end."""
    for _ in range(times):
        s, _ = sockets.sockets[number].accept()
        with s:
            s.settimeout(60)
            s.sendall(2 * s.recv(1000))
            assert s.recv(1) == b""


def ask(sockets: Any, ip: str, port: int, times: int) -> None:
    for _ in range(times):
        with socket.create_connection((ip, port), timeout=60) as s:
            s.sendall(BODY)
            got = 0
            while got < 2 * len(BODY):
                got += len(s.recv(1000))


def talk(app: Worker, server: Worker, server_pod: Pod, listening: tuple[int, int], family: str, times: int) -> None:
    number, port = listening
    server.start("call", serve, number, times)
    app.call(ask, getattr(server_pod, family), port, times)
    server.finish()


def told(kernel: Kernel) -> list[DirectClosed]:
    return [event for event in kernel.events().read() if isinstance(event, DirectClosed)]


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_what_came_and_went_is_added_up(
    family: str, kernel: Kernel, pod: Pod, server_pod: Pod, app: Worker, server: Worker, listening: tuple[int, int]
) -> None:
    talk(app, server, server_pod, listening, family, 5)
    drained(kernel)
    assert kernel.ledger.opened() == 5
    assert kernel.ledger.turn() == [], "this page may still be written to"
    (tally,) = kernel.ledger.turn()
    there = (getattr(server_pod, family), listening[1])
    assert tally == DirectTally(
        pod.cookie, server_pod.cookie, getattr(pod, family), there, there, 5, 5 * len(BODY), 10 * len(BODY)
    )
    assert kernel.ledger.turn() == kernel.ledger.turn() == []
    assert told(kernel) == []


def test_what_was_found_is_told(
    kernel: Kernel, server_pod: Pod, app: Worker, server: Worker, listening: tuple[int, int]
) -> None:
    """Also what was opened before and found later, when its SYN took long; not what is younger."""
    number, port = listening
    found = app.dial(server_pod.ip4, port)
    kernel.ledger.found_until(time.monotonic_ns())
    (flow,) = kernel.flows()
    assert kernel.flows({flow.id}) == []
    younger = app.dial(server_pod.ip4, port)
    (other,) = kernel.flows({flow.id})
    for client in (found, younger):
        server.close(server.accept(number)[0])
        app.close(client)
    drained(kernel)
    (closed,) = told(kernel)
    assert closed.id == flow.id != other.id
    assert flow.opened_ns < closed.closed_ns
    kernel.ledger.turn()
    assert [tally.flows for tally in kernel.ledger.turn()] == [1]


def test_nothing_is_lost_nor_counted_twice_whenever_it_is_read(
    kernel: Kernel, server_pod: Pod, app: Worker, server: Worker, listening: tuple[int, int]
) -> None:
    number, port = listening
    count, tallied, sent, ended = 300, 0, 0, 0

    def look() -> None:
        nonlocal tallied, sent, ended
        kernel.ledger.found_until(time.monotonic_ns())
        for tally in kernel.ledger.turn():
            tallied += tally.flows
            sent += tally.sent
        for event in told(kernel):
            ended += 1
            sent += event.sent

    server.start("call", serve, number, count)
    app.start("call", ask, server_pod.ip4, port, count)
    while not app.answered(0.05):
        look()
    app.finish()
    server.finish()
    drained(kernel)
    look()
    look()
    assert tallied + ended == count == kernel.ledger.opened()
    assert sent == count * len(BODY)


def test_what_finds_no_room_is_told(
    kernel: Kernel, server_pod: Pod, app: Worker, server: Worker, listening: tuple[int, int]
) -> None:
    ledger = kernel._maps["ledger"]
    for n in range(ledger.definition.entries):
        ledger.put(ENTRY.pack(n, 0, bytes(16), bytes(16), bytes(16), 0, 0, 0), TALLY.pack(0, 0, 0))
    talk(app, server, server_pod, listening, "ip4", 3)
    assert [event.sent for event in events(kernel, DirectClosed, 3)] == 3 * [len(BODY)]


def test_one_that_is_established_after_policy_has_changed_is_told_at_once(
    kernel: Kernel, rig: Rig, pod: Pod, server_pod: Pod, app: Worker, server: Worker, listening: tuple[int, int]
) -> None:
    """Its SYN was judged by the former one, and who has listed flows since has not found it."""
    _, port = listening
    neighbour = ("ip", "-n", rig.node.name, "neigh", "replace", pod.ip4, "dev", pod.veth, "nud", "permanent", "lladdr")
    run(*neighbour, "02:00:00:00:00:99")  # the answer to the SYN gets lost
    number = app.socket()
    app.call(_begin, number, server_pod.ip4, port)
    until(lambda: [bool(DIRECT.unpack(v)[7]) for _, v in kernel._maps["directs"].items()] == [True])
    kernel.bump()
    kernel.ledger.found_until(time.monotonic_ns())
    assert [flow.established for flow in kernel.flows()] == [False]
    run(*neighbour, pod.mac)
    assert app.call(_decided, number) == 0
    (opened,) = events(kernel, DirectOpened)
    assert [(flow.id, flow.established) for flow in kernel.flows()] == [(opened.id, True)]
    app.close(number)
    server.close(server.accept(listening[0])[0])
    (closed,) = events(kernel, DirectClosed)
    assert closed.id == opened.id
