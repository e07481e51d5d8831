"""TCP Fast Open sends data with the SYN, before anybody has attested who gets it: not on the direct path."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from bpf import Kernel, Mode, Target
from tests.kernel.rig import AgentListeners, Pod, Rig, Worker, enrol, run
from tests.kernel.test_direct import FAMILIES, SECRET, borrow, sniff, sniffed

TCP_FASTOPEN, TCP_FASTOPEN_CONNECT = 23, 30
PORT = 9000


@pytest.fixture
def kernel(rig: Rig) -> Kernel:
    return rig.kernel(direct=True)


def listen(sockets: Any) -> int:
    number, _ = sockets.listen("::", PORT, dual=True)
    sockets.sockets[number].setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
    return int(number)


def send_early(sockets: Any, way: str, ip: str) -> int:
    """`flag`: sendto() instead of connect(). `option`: a connect() that waits for the first data."""
    s = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    if way == "flag":
        s.sendto(SECRET, socket.MSG_FASTOPEN, (ip, PORT))
    else:
        s.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        s.connect((ip, PORT))
        s.sendall(SECRET)
    return int(sockets._keep(s))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["flag", "option"])
def test_it_goes_through_the_agent_and_an_impostor_hears_nothing(
    way: str, family: str, kernel: Kernel, rig: Rig, pod: Pod, app: Worker
) -> None:
    server_pod, thief = rig.add_pod(), rig.add_pod()
    server, impostor, ip = rig.worker("pods", server_pod), rig.worker("pods", thief), getattr(server_pod, family)
    for each in rig.pods:
        run("ip", "netns", "exec", each.name, "sysctl", "-qw", "net.ipv4.tcp_fastopen=3")
    listener = server.call(listen)
    for _ in range(2):  # it learns the cookie with which data may go out with the SYN; then both are enrolled
        app.call(send_early, way, ip)
        accepted, _ = server.accept(listener)
        assert server.recv(accepted) == SECRET
    listeners = AgentListeners(pod)
    enrol(kernel, pod, listeners)
    enrol(kernel, server_pod)
    kernel.set_targets({p.name: Target(mode=Mode.OPEN, accelerate=False) for p in (pod, server_pod)})
    borrow(rig, server_pod, thief)
    wire = impostor.call(sniff, "eth0")
    app.call(send_early, way, ip)
    accepted, _ = listeners.accept("outbound6" if ":" in ip else "outbound4")
    assert accepted.recv(100) == SECRET
    assert kernel.flows() == []
    assert impostor.call(sniffed, wire, SECRET)[1] is False
    with pytest.raises(OSError):  # without data it is direct, and meets the impostor in vain
        app.send(app.dial(ip, PORT), SECRET)
    listeners.close()
