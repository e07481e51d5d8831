"""Who sends by a pacing congestion control (BBR) is not held back within the node; others keep what they chose."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from bpf import Kernel, Mode, Target
from tests.kernel.rig import STRANGER4, STRANGER6, AgentListeners, Pod, Rig, Worker, enrol


@pytest.fixture
def kernel(rig: Rig) -> Kernel:
    return rig.kernel(direct=True)


@pytest.fixture
def server_pod(kernel: Kernel, listeners: AgentListeners, rig: Rig, pod: Pod) -> Pod:
    made = rig.add_pod()
    enrol(kernel, made)
    kernel.set_targets({p.name: Target(mode=Mode.OPEN, accelerate=False) for p in (pod, made)})
    return made


@pytest.fixture
def server(rig: Rig, server_pod: Pod) -> Worker:
    return rig.worker("pods", server_pod)


def choose(sockets: Any, number: int, name: str) -> None:
    """Accepted sockets inherit it from their listener."""
    sockets.sockets[number].setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())


def chosen(sockets: Any, number: int) -> str:
    name: bytes = sockets.sockets[number].getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.rstrip(b"\0").decode()


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize(("before", "after"), [("bbr", "reno"), ("cubic", "cubic")])
def test_both_ends_of_a_direct_flow(
    before: str, after: str, family: str, server_pod: Pod, app: Worker, server: Worker
) -> None:
    listener, port = server.listen("::", dual=True)
    server.call(choose, listener, before)
    v6 = family == "ip6"
    client = app.socket(socket.AF_INET6 if v6 else socket.AF_INET)
    app.call(choose, client, before)
    app.connect(client, getattr(server_pod, family), port)
    accepted, _ = server.accept(listener)
    assert (app.call(chosen, client), server.call(chosen, accepted)) == (after, after)
    assert server.call(chosen, listener) == before
    app.send(client, b"there")
    assert server.recv(accepted) == b"there"


@pytest.mark.parametrize("ip", [STRANGER4, STRANGER6])
@pytest.mark.parametrize(("before", "after"), [("bbr", "reno"), ("cubic", "cubic")])
def test_what_is_captured_goes_over_loopback(
    before: str, after: str, ip: str, server_pod: Pod, app: Worker, listeners: AgentListeners
) -> None:
    client = app.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    app.call(choose, client, before)
    app.connect(client, ip, 80)
    assert app.call(chosen, client) == after
