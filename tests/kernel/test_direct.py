"""The direct path: pods of one node reach each other without the agent, where targets and verdicts say so, and nobody
else at such an address gets a byte."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bpf import DirectClosed, Event, Kernel, Mismatch, Mode, Target, VerdictEntry, compile
from mesh.reason import Reason
from tests.kernel.rig import AgentListeners, Pod, Rig, Worker, enrol, run
from tests.kernel.test_life import another_layout, artifact, until
from ztunnel import older

FAMILIES = ["ip4", "ip6"]


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
    """Both pods are enrolled and open targets; the agent's listeners in the destination."""
    theirs = AgentListeners(server_pod)
    enrol(kernel, server_pod, theirs)
    yield theirs
    theirs.close()


def open_all(kernel: Kernel, *pods: Pod, mode: Mode = Mode.OPEN, accelerate: bool = False) -> None:
    kernel.set_targets({p.name: Target(mode=mode, accelerate=accelerate) for p in pods})


def events(kernel: Kernel, kind: type, count: int = 1) -> list[Any]:
    found: list[Any] = []

    def enough() -> bool:
        found.extend(e for e in kernel.events().read() if isinstance(e, kind))
        return len(found) >= count

    until(enough)
    return found


def drained(kernel: Kernel) -> None:
    until(lambda: not kernel.flows())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("listening", ["own family", "dual"])
def test_pods_talk_without_the_agent(
    family: str, listening: str, kernel: Kernel, pod: Pod, server_pod: Pod, served: AgentListeners,
    listeners: AgentListeners, app: Worker, server: Worker,
) -> None:  # fmt: skip
    open_all(kernel, pod, server_pod)
    here, there = getattr(pod, family), getattr(server_pod, family)
    dual = listening == "dual"
    listener, port = server.listen("::" if dual or family == "ip6" else "0.0.0.0", dual=dual)
    client = app.dial(there, port)
    accepted, peer = server.accept(listener)
    own, theirs = app.names(client)
    assert theirs == (there, port)
    assert own[0] == here
    mapped = "::ffff:" if dual and family == "ip4" else ""
    assert peer[:2] == (mapped + here, own[1])
    assert server.names(accepted) == ((mapped + there, port), (mapped + here, own[1]))
    app.send(client, b"a" * 1000)
    assert server.recv(accepted) == b"a" * 1000
    server.send(accepted, b"b" * 70)
    assert app.recv(client) == b"b" * 70
    (flow,) = kernel.flows()
    assert (flow.source, flow.destination, flow.client, flow.server) == (pod.name, server_pod.name, own, (there, port))
    assert (flow.sent, flow.received, flow.accelerated, flow.established) == (1000, 70, False, True)
    assert flow.generation == kernel.generation
    app.close(client)
    assert server.recv(accepted) == b""
    server.close(accepted)
    (closed,) = events(kernel, DirectClosed)
    assert (closed.id, closed.sent, closed.received, closed.accelerated) == (flow.id, 1000, 70, False)
    assert (closed.source, closed.destination) == (pod.cookie, server_pod.cookie)
    assert (closed.client, closed.server, closed.opened_ns) == (own, (there, port), flow.opened_ns)
    assert flow.opened_ns < closed.closed_ns <= time.monotonic_ns()
    drained(kernel)
    assert not listeners.waiting() | served.waiting()
    assert kernel.lost_events() == 0


def captured(kernel: Kernel, app: Worker, listeners: AgentListeners, ip: str, port: int) -> bool:
    """Whether a connection goes to the agent."""
    client = app.dial(ip, port)
    try:
        accepted, _ = listeners.accept("outbound6" if ":" in ip else "outbound4", timeout=0.3)
    except TimeoutError:
        return False
    else:
        accepted.close()
        return True
    finally:
        app.close(client)


def test_verdicts(
    kernel: Kernel, pod: Pod, server_pod: Pod, served: AgentListeners, listeners: AgentListeners, app: Worker,
    server: Worker,
) -> None:  # fmt: skip
    """Unknown: the agent is asked. Known: allowed or refused, for this source, destination and port."""
    _, port = server.listen("0.0.0.0")
    _, other = server.listen("0.0.0.0")
    asked: Callable[[int], bool] = lambda port: captured(kernel, app, listeners, server_pod.ip4, port)  # noqa: E731
    assert asked(port), "no target"
    open_all(kernel, server_pod)
    assert asked(port), "the source does not take the direct path"
    open_all(kernel, pod, server_pod, mode=Mode.LISTED)
    assert asked(port)
    allow = VerdictEntry(source=pod.name, destination=server_pod.name, port=port, allow=True)
    deny = VerdictEntry(
        source=pod.name, destination=server_pod.name, port=other, allow=False, reason=Reason.POLICY_DENY
    )
    back = VerdictEntry(source=server_pod.name, destination=pod.name, port=9, allow=True)
    nobody = VerdictEntry(source="nobody", destination=pod.name, port=9, allow=True)
    assert kernel.put_verdicts([back, nobody]) == 0
    assert asked(port)
    assert kernel.put_verdicts([allow, deny]) == 0
    assert not asked(port)
    with pytest.raises(PermissionError):
        app.dial(server_pod.ip4, other)
    assert kernel.counters()[Reason.POLICY_DENY] == 1
    (event,) = [e for e in events(kernel, Event) if e.reason is Reason.POLICY_DENY]
    assert (event.netns, event.local) == (pod.cookie, (server_pod.ip4, other))
    before = kernel.generation
    assert before < kernel.bump() == kernel.generation
    assert asked(port)
    assert asked(other)
    open_all(kernel, pod, server_pod, mode=Mode.LISTED)
    assert asked(port), "a verdict of an older generation"
    kernel.put_verdicts([allow])
    assert not asked(port)
    for reserved in (15001, 15006, 15008):
        open_all(kernel, pod, server_pod)
        assert asked(reserved)
    kernel.unenrol(server_pod.name)
    assert asked(port)
    enrol(kernel, server_pod, served)
    assert asked(port), "an enrolment is not a target"


def test_what_is_not_allowed_is_refused_at_the_destination_too(
    kernel: Kernel, rig: Rig, pod: Pod, server_pod: Pod, served: AgentListeners, listeners: AgentListeners,
    server: Worker, host: Worker,
) -> None:  # fmt: skip
    """Only recorded flows pass: the node and un-enrolled pods land at the plaintext listener."""
    open_all(kernel, pod, server_pod)
    _, port = server.listen("::", dual=True)
    stranger = rig.worker("pods", rig.add_pod())
    for worker in (host, stranger):
        for ip, kind in ((server_pod.ip4, "plaintext4"), (server_pod.ip6, "plaintext6")):
            number = worker.dial(ip, port)
            served.accept(kind)[0].close()
            worker.close(number)


def sniff(sockets: Any, device: str) -> int:
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    s.bind((device, 0))
    return int(sockets._keep(s))


def sniffed(sockets: Any, number: int, needle: bytes) -> tuple[int, bool]:
    """Packets seen, and whether one of them holds the needle."""
    s, seen, found = sockets.sockets[number], 0, False
    s.setblocking(False)
    while select.select([s], [], [], 0.3)[0]:
        data = s.recv(65536)
        seen += 1
        found = found or needle in data
    return seen, found


def borrow(rig: Rig, owner: Pod, by: Pod) -> None:
    """Packets to the owner's addresses reach the other pod from now on."""
    node = rig.node.name
    for version, ip, bits in (("-4", owner.ip4, 32), ("-6", owner.ip6, 128)):
        run(
            "ip",
            version,
            "-n",
            by.name,
            "addr",
            "add",
            f"{ip}/{bits}",
            "dev",
            "eth0",
            *(["nodad"] if bits > 32 else []),
        )
        run("ip", version, "-n", node, "route", "replace", f"{ip}/{bits}", "dev", by.veth)


SECRET = b"SECRET-OF-THE-SOURCE"


def write_while_connecting(sockets: Any, ip: str, port: int) -> str:
    """A writer that waits in send() before the connection is there."""
    s = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    s.setblocking(False)
    s.connect_ex((ip, port))
    s.settimeout(None)
    s.setblocking(True)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("=qq", 1, 0))
    sockets._keep(s)
    s.setblocking(True)
    result = "sent"
    try:
        s.send(SECRET)
    except OSError as error:
        result = errno.errorcode[error.errno or 0]
    return result


def dial_and_write(sockets: Any, number: int, ip: str, port: int) -> set[str]:
    """How the attempts to write ended."""
    s, ends = sockets.sockets[number], set()
    try:
        s.connect((ip, port))
        for _ in range(3):
            try:
                s.send(SECRET)
                ends.add("sent")
            except OSError as error:
                ends.add(errno.errorcode[error.errno or 0])
    except OSError as error:
        ends.add(errno.errorcode[error.errno or 0])
    return ends


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("who", ["stranger", "enrolled", "enrolled, no agent"])
def test_an_impostor_gets_nothing(
    who: str, family: str, kernel: Kernel, rig: Rig, pod: Pod, server_pod: Pod, served: AgentListeners,
    listeners: AgentListeners, app: Worker,
) -> None:  # fmt: skip
    """The destination's address is somebody else's by now."""
    open_all(kernel, pod, server_pod)
    thief = rig.add_pod()
    theirs = AgentListeners(thief)
    if who.startswith("enrolled"):
        enrol(kernel, thief, theirs)
    if who == "enrolled, no agent":
        for agents in (theirs, served, listeners):
            agents.close()
    borrow(rig, server_pod, thief)
    impostor = rig.worker("pods", thief)
    listener, port = impostor.listen("::", dual=True)
    wire = impostor.call(sniff, "eth0")
    ip = getattr(server_pod, family)
    if who == "enrolled, no agent":
        with pytest.raises(ConnectionRefusedError):
            app.dial(ip, port)
        return
    client = app.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    ended = app.call(dial_and_write, client, ip, port)
    assert ended in ({"EACCES"}, {"ENETUNREACH"}), "off the wire, IPv6 has no route and says so"
    app.start("call", write_while_connecting, ip, port)
    app.finish()
    found = events(kernel, Mismatch, 2)
    assert {(e.source, e.destination, e.server) for e in found} == {(pod.cookie, server_pod.cookie, (ip, port))}
    assert {e.client.ip for e in found} == {getattr(pod, family)}
    assert kernel.counters()[Reason.MISMATCH] == 2
    seen, leaked = impostor.call(sniffed, wire, SECRET)
    assert seen
    assert not leaked
    with pytest.raises((TimeoutError, BlockingIOError)):
        impostor.accept(listener, timeout=0.3)
    with pod.opened() as fd:
        doomed = older.find(pod.name, fd)
        assert {c.remote for c in doomed} == {(ip, port)}
        older.destroy(fd, doomed)
        assert older.still_open(doomed, fd) == []
    app.close(client)
    drained(kernel)
    theirs.close()


def test_the_agents_death_changes_nothing_for_direct_flows(
    kernel: Kernel, rig: Rig, pod: Pod, server_pod: Pod, served: AgentListeners, listeners: AgentListeners,
    app: Worker, server: Worker,
) -> None:  # fmt: skip
    open_all(kernel, pod, server_pod)
    listener, port = server.listen("0.0.0.0")
    client = app.dial(server_pod.ip4, port)
    accepted, _ = server.accept(listener)
    generation = kernel.bump()
    open_all(kernel, pod, server_pod)
    kernel.close()
    listeners.close()
    served.close()
    app.send(client, b"old")
    assert server.recv(accepted) == b"old"
    late = app.dial(server_pod.ip4, port)
    app.send(late, b"new")
    fresh, _ = server.accept(listener)
    assert server.recv(fresh) == b"new"
    with pytest.raises(ConnectionRefusedError):
        app.dial("203.0.113.7", 80)
    again = rig.kernel(direct=True)
    assert again.generation == generation
    assert {f.client for f in again.flows()} == {app.names(client)[0], app.names(late)[0]}
    assert {(f.source, f.destination, f.established) for f in again.flows()} == {(pod.name, server_pod.name, True)}
    third = app.dial(server_pod.ip4, port)
    assert server.accept(listener)[1] == app.names(third)[0]
    for number in (client, late, third):
        app.close(number)
    drained(again)
    off = rig.kernel(direct=False)
    with pytest.raises(ConnectionRefusedError):
        app.dial(server_pod.ip4, port)
    assert off.flows() == []


def test_an_upgrade_to_another_layout_finds_the_flows_and_can_end_them(
    kernel: Kernel, rig: Rig, pod: Pod, server_pod: Pod, served: AgentListeners, listeners: AgentListeners,
    app: Worker, server: Worker, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    open_all(kernel, pod, server_pod)
    listener, port = server.listen("0.0.0.0")
    client = app.dial(server_pod.ip4, port)
    accepted, _ = server.accept(listener)
    monkeypatch.setattr(compile, "build", lambda cache: another_layout(artifact, 7))
    upgraded = rig.kernel(direct=True)
    for each, theirs in ((pod, listeners), (server_pod, served)):
        enrol(upgraded, each, theirs)
    assert captured(upgraded, app, listeners, server_pod.ip4, port), "no target in the new layout yet"
    open_all(upgraded, pod, server_pod)
    late = app.dial(server_pod.ip4, port)
    server.close(server.accept(listener)[0])
    app.send(client, b"still")
    assert server.recv(accepted) == b"still"
    found = {f.client: f for f in upgraded.flows()}
    assert set(found) == {app.names(client)[0], app.names(late)[0]}
    old = found[app.names(client)[0]]
    assert (old.source, old.destination, old.sent) == (pod.name, server_pod.name, 5)
    with pod.opened() as fd:
        older.end(fd, {(old.client, old.server)})
    with pytest.raises(ConnectionAbortedError):
        app.recv(client)
    app.close(client)
    app.close(late)
    drained(upgraded)


def test_a_policy_that_changes_while_a_syn_is_on_its_way(
    kernel: Kernel, rig: Rig, pod: Pod, server_pod: Pod, served: AgentListeners, listeners: AgentListeners,
    app: Worker, server: Worker,
) -> None:  # fmt: skip
    """The SYN is judged again where it arrives."""
    listener, port = server.listen("0.0.0.0")
    node, ip = rig.node.name, server_pod.ip4
    for loosened in (False, True):
        open_all(kernel, pod, server_pod)
        neighbour = ("ip", "-n", node, "neigh", "replace", ip, "dev", server_pod.veth, "nud", "permanent", "lladdr")
        run(*neighbour, "02:00:00:00:00:99")
        number = app.socket()
        app.call(_begin, number, ip, port)
        until(lambda: [f.established for f in kernel.flows()] == [False])
        kernel.bump()
        if loosened:
            open_all(kernel, pod, server_pod)
        run(*neighbour, server_pod.mac)
        code = app.call(_decided, number)
        if loosened:
            assert code == 0
            assert server.accept(listener)[1] == app.names(number)[0]
        else:
            assert code == errno.ECONNREFUSED
            assert kernel.counters()[Reason.STALE_VERDICT] == 1
        app.close(number)
        drained(kernel)


def _begin(sockets: Any, number: int, ip: str, port: int) -> None:
    s = sockets.sockets[number]
    s.setblocking(False)
    s.connect_ex((ip, port))


def _decided(sockets: Any, number: int) -> int:
    s = sockets.sockets[number]
    select.select([], [s], [], 15)
    return int(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def test_failed_connections_leave_nothing(
    kernel: Kernel, pod: Pod, server_pod: Pod, served: AgentListeners, listeners: AgentListeners, app: Worker,
    server: Worker,
) -> None:  # fmt: skip
    open_all(kernel, pod, server_pod)
    for ip in (server_pod.ip4, server_pod.ip6):
        with pytest.raises(ConnectionRefusedError):
            app.dial(ip, 9)
    drained(kernel)
    usage = dict(kernel._maps["usage"].items())
    until(lambda: not any(any(v) for v in dict(kernel._maps["usage"].items()).values()))
    assert usage
    assert not [e for e in kernel.events().read() if not isinstance(e, Event)], "they were never open"
    listener, port = server.listen("0.0.0.0")
    number = app.socket()
    for _ in range(3):  # connect() again with the same socket
        app.connect(number, server_pod.ip4, port)
        server.close(server.accept(listener)[0])
        app.disconnect(number)
    app.close(number)
    drained(kernel)
    assert len(events(kernel, DirectClosed, 3)) == 3


def test_a_pods_storm_stops_at_its_quota(rig: Rig, pod: Pod, server_pod: Pod) -> None:
    kernel = rig.kernel(direct=True, quota=20)
    for each in (pod, server_pod):
        enrol(kernel, each)
    open_all(kernel, pod, server_pod)
    app, server = rig.worker("pods", pod), rig.worker("pods", server_pod)
    _, port = server.listen("0.0.0.0")
    numbers = [app.dial(server_pod.ip4, port) for _ in range(20)]
    with pytest.raises(PermissionError):
        app.dial(server_pod.ip4, port)
    assert kernel.counters()[Reason.MAP_FULL] == 1
    _, back = app.listen("0.0.0.0")
    server.close(server.dial(pod.ip4, back))
    app.close(numbers[0])
    until(lambda: len(kernel.flows()) == 19)
    app.dial(server_pod.ip4, port)
