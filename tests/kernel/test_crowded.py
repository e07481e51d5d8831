"""Maps that pods have filled: what the kubelet and the agent need has room of its own, and is heard."""

from __future__ import annotations

import socket
import struct

import pytest

from bpf import Kernel
from mesh.reason import Reason
from tests.kernel.rig import AgentListeners, Pod, Worker

FAMILIES = ["ip4", "ip6"]


@pytest.fixture
def crowded(kernel: Kernel) -> Kernel:
    """As if pods of this node, each within its quota, were connected to themselves."""
    loops = kernel._maps["loops"]
    for number in range(loops.definition.entries):
        loops.put(struct.pack("=Q40x", 1 << 40 | number), bytes(8))
    return kernel


@pytest.mark.parametrize("family", FAMILIES)
def test_probes_and_last_hops_pass(
    family: str, crowded: Kernel, pod: Pod, listeners: AgentListeners, app: Worker, agent: Worker, kubelet: Worker
) -> None:
    ip = getattr(pod, family)
    server, port = app.listen("::", dual=True)
    kubelet.dial(ip, port)
    app.accept(server)
    hop = agent.socket_in(str(pod.netns), socket.AF_INET6 if ":" in ip else socket.AF_INET, bind=(ip, 0))
    agent.connect(hop, ip, port)
    app.accept(server)
    assert crowded.counters()[Reason.MAP_FULL] == 0
