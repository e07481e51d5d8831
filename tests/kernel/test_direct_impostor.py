"""The direct path against those who make packets by hand, or dial from an address that is not theirs."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from bpf import Kernel, Mismatch
from mesh.reason import Reason
from tests.kernel import packets
from tests.kernel.rig import AgentListeners, Pod, Rig, Worker, enrol, run
from tests.kernel.test_direct import FAMILIES, SECRET, dial_and_write, drained, events, open_all, sniff, sniffed
from ztunnel import older


@pytest.fixture
def kernel(rig: Rig) -> Kernel:
    return rig.kernel(direct=True)


@pytest.fixture
def server_pod(rig: Rig, pod: Pod) -> Pod:
    return rig.add_pod()


@pytest.fixture
def server(rig: Rig, server_pod: Pod) -> Worker:
    return rig.worker("pods", server_pod)


@pytest.fixture
def served(kernel: Kernel, listeners: AgentListeners, server_pod: Pod) -> Iterator[AgentListeners]:
    theirs = AgentListeners(server_pod)
    enrol(kernel, server_pod, theirs)
    yield theirs
    theirs.close()


def divert(rig: Rig, owner: Pod, to: Pod) -> None:
    """Packets to the owner's addresses reach the other pod, whose kernel does not know them and says nothing."""
    node = rig.node.name
    for version, ip, bits in (("-4", owner.ip4, 32), ("-6", owner.ip6, 128)):
        run("ip", version, "-n", node, "route", "replace", f"{ip}/{bits}", "dev", to.veth)
        run("ip", version, "-n", node, "neigh", "replace", ip, "lladdr", to.mac, "dev", to.veth, "nud", "permanent")


def answer_with_a_syn(sockets: Any, device: str, mac: str) -> bool:
    """Opens at the same time (RFC 9293 §3.5): to the first SYN that comes, a SYN; then what completes it."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as s:
        s.bind((device, 0))
        while select.select([s], [], [], 10)[0]:
            got = packets.read(s.recv(65536))
            if got is None or not got.flags & packets.SYN:
                continue
            if got.flags & packets.ACK:
                packets.send(device, mac, [packets.segment(got.to, got.source, 1001, got.seq + 1, packets.ACK)])
                return True
            packets.send(device, mac, [packets.segment(got.to, got.source, 1000, 0, packets.SYN)])
    return False


@pytest.mark.parametrize("family", FAMILIES)
def test_who_opens_at_the_same_time_is_attested_too(
    family: str, kernel: Kernel, rig: Rig, pod: Pod, server_pod: Pod, served: AgentListeners, app: Worker
) -> None:
    """Such a connection is established without the answer to its SYN: by another callback."""
    open_all(kernel, pod, server_pod)
    thief = rig.add_pod()
    divert(rig, server_pod, thief)
    impostor = rig.worker("pods", thief)
    wire = impostor.call(sniff, "eth0")
    ip = getattr(server_pod, family)
    client = app.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    impostor.start("call", answer_with_a_syn, "eth0", "02:00:00:00:00:01")
    ended = app.call(dial_and_write, client, ip, 8080)
    assert impostor.finish()
    seen, leaked = impostor.call(sniffed, wire, SECRET)
    assert seen
    assert not leaked
    assert "sent" not in ended
    (found,) = events(kernel, Mismatch)
    assert (found.source, found.destination, found.server) == (pod.cookie, server_pod.cookie, (ip, 8080))
    assert kernel.counters()[Reason.MISMATCH] == 1
    with pod.opened() as fd:
        doomed = older.find(pod.name, fd)
        assert {c.remote for c in doomed} == {(ip, 8080)}
        older.destroy(fd, doomed)
    app.close(client)
    drained(kernel)


def test_an_entry_is_not_replaced_by_a_stranger_to_its_address(
    kernel: Kernel, rig: Rig, pod: Pod, server_pod: Pod, served: AgentListeners, app: Worker, server: Worker
) -> None:
    """A pod that gives itself another's address and dials what that one has dialled, from the same port: the open flow
    stays listed, or nobody could end it. The address's owner replaces an entry that was there before it."""
    other = rig.add_pod()
    theirs = AgentListeners(other)
    enrol(kernel, other, theirs)
    rig.ip("-n", other.name, "addr", "add", f"{pod.ip4}/32", "dev", "eth0")
    thief = rig.worker("pods", other)
    open_all(kernel, pod, server_pod, other)
    listener, port = server.listen("0.0.0.0")
    client = app.dial(server_pod.ip4, port)
    server.accept(listener)
    (flow,) = kernel.flows()
    squatter = thief.socket(bind=flow.client)
    thief.call(begin, squatter, server_pod.ip4, port)
    assert [f.id for f in kernel.flows()] == [flow.id]
    assert (flow.source, flow.client) == (pod.name, app.names(client)[0])
    reserved = thief.socket(bind=(pod.ip4, 0))
    thief.call(begin, reserved, server_pod.ip4, port)
    own = app.socket(bind=thief.sockname(reserved))
    app.connect(own, server_pod.ip4, port)
    server.accept(listener)
    assert {f.source for f in kernel.flows()} == {pod.name}
    for number in (squatter, reserved):
        thief.close(number)
    assert len(kernel.flows()) == 2
    theirs.close()


def begin(sockets: Any, number: int, ip: str, port: int) -> None:
    s = sockets.sockets[number]
    s.setblocking(False)
    s.connect_ex((ip, port))
