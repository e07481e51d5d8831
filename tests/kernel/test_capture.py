"""A pod's connect() lands at the agent's outbound listener, whatever kind of socket it is, and what was asked for is known."""

from __future__ import annotations

from bpf import Kernel
from mesh.model import SocketAddress
from tests.kernel.rig import STRANGER4, AgentListeners, Pod, Worker


def address(name: tuple) -> SocketAddress:
    return SocketAddress(name[0], name[1])


def test_core(kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker) -> None:
    client = app.dial(STRANGER4, 80)
    accepted, peer = listeners.accept("outbound4")
    assert kernel.original_destination(pod.cookie, address(accepted.getsockname()), address(peer)) == (STRANGER4, 80)
    assert app.names(client)[1] == (STRANGER4, 80)
    assert app.names(client)[0][0] == pod.ip4
    app.send(client, b"hello")
    assert accepted.recv(10) == b"hello"
    print(kernel.describe(), kernel.counters())
