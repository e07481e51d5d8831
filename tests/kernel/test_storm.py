"""One pod's storm of connections takes nothing from another: no entry, no permission, no place in a queue."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from bpf import DirectClosed, Event, Kernel, Mode, Target
from mesh.reason import Reason
from tests.kernel import packets
from tests.kernel.rig import STRANGER4, STRANGER6, AgentListeners, Pod, Rig, Worker, enrol, run
from tests.kernel.test_life import until

QUOTA = 50
FAMILIES = ["ip4", "ip6"]
UNDER_WAY = {"EINPROGRESS", "OK"}  # how a connect may begin


@pytest.fixture
def kernel(rig: Rig) -> Kernel:
    return rig.kernel(direct=True, quota=QUOTA)


@pytest.fixture
def server_pod(kernel: Kernel, rig: Rig, pod: Pod) -> Iterator[Pod]:
    """`pod` storms, `neighbour` wants to be served: all three are enrolled, and reach each other directly."""
    made = rig.add_pod()
    theirs = AgentListeners(made)
    enrol(kernel, made, theirs)
    yield made
    theirs.close()


@pytest.fixture
def neighbour(kernel: Kernel, rig: Rig, listeners: AgentListeners, server_pod: Pod) -> Pod:
    made = rig.add_pod()
    enrol(kernel, made, listeners=None)
    kernel.set_targets({p.name: Target(mode=Mode.OPEN, accelerate=False) for p in rig.pods})
    return made


@pytest.fixture
def server(rig: Rig, server_pod: Pod) -> Worker:
    return rig.worker("pods", server_pod)


def storm(sockets: Any, targets: list[tuple[str, int]], times: int) -> dict[str, int]:
    """So many connects to each, all begun before any is answered; how they began. They stay open."""
    began: dict[str, int] = {}
    for _ in range(times):
        for target in targets:
            s = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
            s.setblocking(False)
            code = s.connect_ex(target)
            name = errno.errorcode[code] if code else "OK"
            began[name] = began.get(name, 0) + 1
            if code in (0, errno.EINPROGRESS):
                sockets._keep(s)
            else:
                s.close()
    return began


def ended(sockets: Any) -> dict[str, int]:
    """How many of its sockets are established, or come to be within a while; of the others, why not."""
    pending = {s.fileno(): s for s in sockets.sockets.values()}
    poll = select.poll()
    for fd in pending:
        poll.register(fd, select.POLLOUT)
    found: dict[str, int] = {}
    while pending and (ready := poll.poll(5000)):
        for fd, _ in ready:
            poll.unregister(fd)
            code = pending.pop(fd).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            name = errno.errorcode[code] if code else "established"
            found[name] = found.get(name, 0) + 1
    return found | ({"no answer": len(pending)} if pending else {})


def held(kernel: Kernel, pod: Pod) -> int:
    """Connections that count for it."""
    return int.from_bytes(dict(kernel._maps["usage"].items())[struct.pack("=Q", pod.cookie)], "little")


def close_all(sockets: Any) -> None:
    for number in list(sockets.sockets):
        sockets.close(number)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["direct", "captured", "both"])
def test_a_storm_stops_at_the_pods_own_quota(
    way: str, family: str, kernel: Kernel, pod: Pod, neighbour: Pod, server_pod: Pod, app: Worker, server: Worker,
    rig: Rig,
) -> None:  # fmt: skip
    """A neighbour at the height of it gets all that it may have, and after it the pod itself does."""
    _, port = server.listen("::", dual=True)
    there = (getattr(server_pod, family), port)
    stranger = (STRANGER4 if family == "ip4" else STRANGER6, 80)
    targets = {"direct": [there], "captured": [stranger], "both": [there, stranger]}[way]
    began = app.call(storm, targets, 200)
    assert began["EPERM"] == 200 * len(targets) - QUOTA, began
    refused = [e for e in kernel.events().read() if isinstance(e, Event)]
    assert {e.netns for e in refused} == {pod.cookie}
    assert kernel.counters()[Reason.MAP_FULL] == began["EPERM"]
    assert app.call(ended) == {"established": QUOTA}
    quiet = rig.worker("pods", neighbour)
    assert quiet.call(storm, [there], QUOTA).keys() <= UNDER_WAY
    assert quiet.call(ended) == {"established": QUOTA}
    assert sum(f.source == neighbour.name for f in kernel.flows()) == QUOTA
    app.call(close_all)
    until(lambda: not held(kernel, pod))
    again = app.call(storm, targets, QUOTA // len(targets))
    assert again.keys() <= UNDER_WAY
    assert app.call(ended) == {"established": QUOTA}


def test_refusals_leave_room_for_what_the_agent_has_to_hear(
    kernel: Kernel, neighbour: Pod, server_pod: Pod, app: Worker, server: Worker, rig: Rig
) -> None:
    """A pod is refused again and again, faster than anybody reads; meanwhile its neighbour's connection ends."""
    listener, port = server.listen("0.0.0.0")
    began = app.call(storm, [("127.0.0.1", 15006)], 12000)
    assert began == {"EPERM": 12000}
    assert kernel.counters()[Reason.RESERVED_PORT] == 12000
    lost = kernel.lost_events()
    assert lost, "else there was room for all of them"
    quiet = rig.worker("pods", neighbour)
    client = quiet.dial(server_pod.ip4, port)
    accepted, _ = server.accept(listener)
    quiet.close(client)
    server.close(accepted)
    until(lambda: not kernel.flows())
    heard = list(kernel.events().read())
    assert [e.source for e in heard if isinstance(e, DirectClosed)] == [neighbour.cookie]
    assert len(heard) == 12000 - lost + 1
    assert kernel.lost_events() == lost


@pytest.mark.parametrize("family", FAMILIES)
def test_connects_that_fail_give_back_what_they_took(
    family: str, kernel: Kernel, pod: Pod, neighbour: Pod, server_pod: Pod, app: Worker
) -> None:
    """Nobody listens, and a destination that does not answer until the socket is closed."""
    for _ in range(4):
        assert "EPERM" not in app.call(storm, [(getattr(server_pod, family), 9)], QUOTA)
        assert "established" not in app.call(ended)
        app.call(close_all)
    until(lambda: not kernel.flows())
    assert not held(kernel, pod)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("port", ["application", "tunnel"])
def test_a_flood_of_half_open_connections_keeps_nobody_out(
    port: str, family: str, kernel: Kernel, rig: Rig, pod: Pod, neighbour: Pod, server_pod: Pod, app: Worker,
    server: Worker, host: Worker,
) -> None:  # fmt: skip
    """SYNs by hand, from addresses that nobody has: never to the application's queue; the agent's is full, and serves
    still, by SYN cookies."""
    listener, number = server.listen("::", dual=True)
    to = (getattr(server_pod, family), number if port == "application" else 15008)
    prefix = "198.18" if family == "ip4" else "2001:db8:1:"
    app.dial(STRANGER4, 80)  # the pod has its neighbour's hardware address
    flood = [packets.syn((f"{prefix}.{n >> 8}.{n & 255}" if family == "ip4" else f"{prefix}:{n:x}", 4000 + n), to)
             for n in range(6000)]  # fmt: skip
    app.call(_send, flood)
    until(lambda: counted(server_pod, "SyncookiesSent"))  # or the queue was never full
    quiet = rig.worker("pods", neighbour)
    direct = [quiet.dial(getattr(server_pod, family), number) for _ in range(10)]
    for _ in direct:
        assert server.accept(listener)[1][0].removeprefix("::ffff:") == getattr(neighbour, family)
    for _ in range(10):  # from the node, to the port that is flooded: to the agent
        host.close(host.dial(*to))


def counted(pod: Pod, name: str) -> int:
    """One of TCP's counters in a netns."""
    lines = run("ip", "netns", "exec", pod.name, "grep", "^TcpExt:", "/proc/net/netstat").splitlines()
    names, values = (line.split() for line in lines)
    return int(values[names.index(name)])


def _send(sockets: Any, flood: list[bytes]) -> None:
    packets.send("eth0", "02:00:00:00:00:01", flood)
