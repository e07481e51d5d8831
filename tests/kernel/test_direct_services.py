"""Services on the direct path: an endpoint is drawn once, in connect(), with the odds that were given; what is drawn is
still judged, and the application sees what it dialled."""

from __future__ import annotations

import errno
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from bpf import DirectClosed, Event, Kernel, Mode, Target, VerdictEntry, compile
from bpf.layouts import BACKENDS, SERVICE
from mesh.balance import Balance, Endpoint
from mesh.model import Dialled, SocketAddress
from mesh.reason import Reason
from tests.kernel.promoting import promoted, promoter
from tests.kernel.rig import AgentListeners, Pod, Rig, Worker, enrol
from tests.kernel.test_direct import drained, events
from tests.kernel.test_life import another_layout, artifact, until

VIP4, VIP6 = SocketAddress("10.96.0.80", 80), SocketAddress("fd96::80", 80)
FAMILIES = [VIP4, VIP6]
PORT = 8080


@pytest.fixture
def kernel(rig: Rig) -> Kernel:
    return rig.kernel(direct=True)


@pytest.fixture
def server_pods(kernel: Kernel, rig: Rig, pod: Pod, listeners: AgentListeners) -> list[Pod]:
    """Three of them, enrolled; they and the client's are open targets."""
    made = [rig.add_pod() for _ in range(3)]
    for each in made:
        enrol(kernel, each)
    open_all(kernel, pod, *made)
    return made


@pytest.fixture
def servers(rig: Rig, server_pods: list[Pod]) -> list[Worker]:
    """Each listens on PORT; its listener is number 1."""
    workers = [rig.worker("pods", each) for each in server_pods]
    for worker in workers:
        worker.listen("::", PORT, dual=True)
    return workers


def open_all(kernel: Kernel, *pods: Pod, mode: Mode = Mode.OPEN) -> None:
    kernel.set_targets({p.name: Target(mode=mode, accelerate=False) for p in pods})


def balance(vip: SocketAddress, pods: Sequence[Pod], weights: Sequence[int] = (), elsewhere: int = 0) -> Balance:
    own = [p.ip6 if ":" in vip.ip else p.ip4 for p in pods]
    return Balance(
        endpoints=tuple(
            Endpoint(instance=p.name, address=SocketAddress(ip, PORT), weight=weight)
            for p, ip, weight in zip(pods, own, weights or [1] * len(pods), strict=True)
        ),
        elsewhere=elsewhere,
    )


def spread(kernel: Kernel, pods: Sequence[Pod], weights: Sequence[int] = (), elsewhere: int = 0) -> None:
    assert kernel.set_services({vip: balance(vip, pods, weights, elsewhere) for vip in FAMILIES}) == 0


def peer(address: tuple[Any, ...]) -> SocketAddress:
    return SocketAddress(address[0].removeprefix("::ffff:"), address[1])


class Asked:
    """An agent in one pod that notes what its captured connections are about, and refuses them."""

    def __init__(self, kernel: Kernel, pod: Pod, listeners: AgentListeners) -> None:
        self._kernel, self._cookie, self._listeners = kernel, pod.cookie, listeners

    def next(self, kind: str = "outbound4", timeout: float = 10) -> Dialled | None:
        accepted, _ = self._listeners.accept(kind, timeout)
        with accepted:
            local, remote = (SocketAddress(*name[:2]) for name in (accepted.getsockname(), accepted.getpeername()))
            return self._kernel.original_destination(self._cookie, local, remote)


@pytest.fixture
def agent_here(kernel: Kernel, pod: Pod, listeners: AgentListeners) -> Asked:
    return Asked(kernel, pod, listeners)


@pytest.mark.parametrize("vip", FAMILIES, ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("dual", [False, True], ids=["own family", "dual-stack"])
def test_both_ends_see_what_they_would_see_behind_kube_proxy(
    vip: SocketAddress, dual: bool, kernel: Kernel, pod: Pod, server_pods: list[Pod], servers: list[Worker],
    app: Worker, listeners: AgentListeners,
) -> None:  # fmt: skip
    spread(kernel, server_pods[:1])
    v6 = ":" in vip.ip
    number = app.socket(socket.AF_INET6 if v6 or dual else socket.AF_INET)
    mapped = "::ffff:" if dual and not v6 else ""
    app.connect(number, mapped + vip.ip, vip.port)
    accepted, client = servers[0].accept(1)
    own, theirs = app.names(number)
    here, there = (pod.ip6, server_pods[0].ip6) if v6 else (pod.ip4, server_pods[0].ip4)
    assert theirs == (mapped + vip.ip, vip.port)
    assert own[0] == mapped + here
    assert peer(client) == (here, own[1])
    assert peer(servers[0].names(accepted)[0]) == (there, PORT)
    app.send(number, b"hello")
    assert servers[0].recv(accepted) == b"hello"
    (flow,) = kernel.flows()
    assert (flow.source, flow.destination, flow.asked, flow.server) == (
        pod.name,
        server_pods[0].name,
        vip,
        (there, PORT),
    )
    app.close(number)
    servers[0].close(accepted)
    (closed,) = events(kernel, DirectClosed)
    assert (closed.asked, closed.server, closed.sent) == (vip, (there, PORT), 5)
    drained(kernel)
    assert not listeners.waiting()


def test_what_is_dialled_by_its_own_address_is_no_service(
    kernel: Kernel, server_pods: list[Pod], servers: list[Worker], app: Worker
) -> None:
    """Also by a socket that has dialled one before."""
    spread(kernel, server_pods[:1])
    number = app.socket()
    for ip, port in (VIP4, (server_pods[0].ip4, PORT), VIP4):
        app.connect(number, ip, port)
        servers[0].close(servers[0].accept(1)[0])
        assert app.names(number)[1] == (ip, port)
        assert kernel.flows()[0].asked == (ip, port)
        app.disconnect(number)
        drained(kernel)


def dial_many(sockets: Any, ip: str, port: int, times: int) -> Counter[str]:
    """What each server says first, or the error; some at a time."""
    counted: Counter[str] = Counter()
    lock = threading.Lock()

    def dial(n: int) -> None:
        for _ in range(n):
            try:
                with socket.create_connection((ip, port), timeout=20) as s:
                    said = s.recv(100).decode()
            except OSError as error:
                said = errno.errorcode.get(error.errno or 0, type(error).__name__)
            with lock:
                counted[said] += 1

    threads = [threading.Thread(target=dial, args=(times // 4,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counted


def serve(sockets: Any, name: str) -> None:
    """From now on each connection is told the name."""
    listener = sockets.sockets[1]
    listener.settimeout(None)

    def answer() -> None:
        while True:
            s, _ = listener.accept()
            with s:
                s.sendall(name.encode())

    threading.Thread(target=answer, daemon=True).start()


def chi_square(counted: Counter[str], weights: dict[str, int]) -> float:
    times, total = sum(counted.values()), sum(weights.values())
    assert counted.keys() <= {name for name, weight in weights.items() if weight}, counted
    expected = {name: times * weight / total for name, weight in weights.items() if weight}
    return sum((counted[name] - n) ** 2 / n for name, n in expected.items())


# Values that chance exceeds once in a hundred million times, by degrees of freedom.
CRITICAL = {1: 32.8, 2: 36.8, 3: 40.0}


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 3, 2), (1 << 40, 1 << 40, 1 << 41), (1, 0, 1)])
def test_endpoints_are_drawn_by_their_weight(
    weights: tuple[int, ...], kernel: Kernel, server_pods: list[Pod], servers: list[Worker], app: Worker
) -> None:
    spread(kernel, server_pods, weights)
    for worker, each in zip(servers, server_pods, strict=True):
        worker.call(serve, each.name)
    wanted = {p.name: weight for p, weight in zip(server_pods, weights, strict=True)}
    for vip in FAMILIES:
        counted = app.call(dial_many, vip.ip, vip.port, 600)
        assert sum(counted.values()) == 600
        assert chi_square(counted, wanted) < CRITICAL[sum(map(bool, weights)) - 1], counted
    drained(kernel)


def test_draws_that_fall_to_others_are_the_agents_to_make(
    kernel: Kernel, server_pods: list[Pod], servers: list[Worker], app: Worker, agent_here: Asked,
    listeners: AgentListeners,
) -> None:  # fmt: skip
    """Of 400, one in four goes to the agent, which is told that none of the endpoints here was drawn."""
    spread(kernel, server_pods, (1, 1, 1), elsewhere=1)
    seen: Counter[str] = Counter()
    for n in range(400):
        vip, kind = (VIP4, "outbound4") if n % 2 else (VIP6, "outbound6")
        number = app.dial(*vip)
        assert app.names(number)[1] == vip
        if listeners.waiting():
            assert agent_here.next(kind) == Dialled(destination=vip, elsewhere=True)
            seen["agent"] += 1
        else:
            seen["direct"] += 1
        app.close(number)
    assert chi_square(seen, {"agent": 1, "direct": 3}) < CRITICAL[1], seen


def test_a_draw_without_a_verdict_travels_to_the_agent(
    kernel: Kernel, pod: Pod, server_pods: list[Pod], servers: list[Worker], app: Worker, agent_here: Asked
) -> None:
    """One of two is allowed: it is dialled directly; the other, when it is drawn, by the agent. Never another one."""
    open_all(kernel, pod, *server_pods, mode=Mode.LISTED)
    spread(kernel, server_pods[:2])
    allowed, other = server_pods[:2]
    kernel.put_verdicts([VerdictEntry(source=pod.name, destination=allowed.name, port=PORT, allow=True)])
    for worker, each in zip(servers, server_pods, strict=True):
        worker.call(serve, each.name)
    for vip, kind, ip in ((VIP4, "outbound4", other.ip4), (VIP6, "outbound6", other.ip6)):
        app.start("call", dial_many, vip.ip, vip.port, 60)
        asked: list[Dialled | None] = []
        listening = threading.Event()

        def listen(kind: str = kind, asked: list[Dialled | None] = asked, over: threading.Event = listening) -> None:
            while not over.is_set():
                try:
                    asked.append(agent_here.next(kind, timeout=0.2))
                except TimeoutError:
                    continue

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            counted = app.finish()
        finally:
            listening.set()
            thread.join()
        assert set(asked) == {Dialled(destination=vip, drawn=SocketAddress(ip, PORT))}
        assert counted[allowed.name] == 60 - len(asked)
        assert not {p.name for p in server_pods[1:]} & counted.keys()


def test_refused_is_refused(
    kernel: Kernel, pod: Pod, server_pods: list[Pod], servers: list[Worker], app: Worker
) -> None:
    open_all(kernel, pod, *server_pods, mode=Mode.LISTED)
    spread(kernel, server_pods[:1])
    deny = VerdictEntry(
        source=pod.name, destination=server_pods[0].name, port=PORT, allow=False, reason=Reason.POLICY_DENY
    )
    kernel.put_verdicts([deny])
    for vip in FAMILIES:
        with pytest.raises(PermissionError):
            app.dial(*vip)
    assert kernel.counters()[Reason.POLICY_DENY] == 2
    assert {e.local for e in events(kernel, Event, 2)} == {VIP4, VIP6}


def test_after_a_bump_the_agent_is_asked_until_the_targets_are_told_again(
    kernel: Kernel, pod: Pod, server_pods: list[Pod], servers: list[Worker], app: Worker, agent_here: Asked
) -> None:
    spread(kernel, server_pods[:1])
    kernel.bump()
    app.close(app.dial(*VIP4))
    assert agent_here.next() == Dialled(destination=VIP4, drawn=SocketAddress(server_pods[0].ip4, PORT))
    open_all(kernel, pod, *server_pods)
    app.close(app.dial(*VIP4))
    servers[0].accept(1)


def test_an_address_that_is_another_pods_by_now_is_not_dialled_for_the_service(
    kernel: Kernel, server_pods: list[Pod], app: Worker, agent_here: Asked
) -> None:
    """The entry says which pod is meant; the target says another."""
    meant, other = server_pods[:2]
    stale = Balance(
        endpoints=(Endpoint(instance=meant.name, address=SocketAddress(other.ip4, PORT), weight=1),), elsewhere=0
    )
    kernel.set_services({VIP4: stale})
    app.close(app.dial(*VIP4))
    assert agent_here.next() == Dialled(destination=VIP4, drawn=SocketAddress(other.ip4, PORT))


def test_other_ports_and_addresses_ask_the_agent(
    kernel: Kernel, server_pods: list[Pod], app: Worker, agent_here: Asked
) -> None:
    spread(kernel, server_pods)
    for ip, port in ((VIP4.ip, 81), ("10.96.0.81", 80)):
        app.close(app.dial(ip, port))
        assert agent_here.next() == Dialled(destination=SocketAddress(ip, port))


@pytest.mark.parametrize("vip", FAMILIES, ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("mode", Mode)
def test_a_pod_that_is_drawn_by_itself_talks_to_itself(
    mode: Mode, vip: SocketAddress, kernel: Kernel, pod: Pod, server_pods: list[Pod], app: Worker,
    agent_here: Asked, listeners: AgentListeners,
) -> None:  # fmt: skip
    open_all(kernel, pod, mode=mode)
    spread(kernel, [pod])
    own = SocketAddress(pod.ip6 if ":" in vip.ip else pod.ip4, PORT)
    listener, _ = app.listen("::", PORT, dual=True)
    if mode is Mode.LISTED:
        app.close(app.dial(*vip))
        assert agent_here.next("outbound6" if ":" in vip.ip else "outbound4") == Dialled(destination=vip, drawn=own)
        kernel.put_verdicts([VerdictEntry(source=pod.name, destination=pod.name, port=PORT, allow=True)])
    number = app.dial(*vip)
    accepted, client = app.accept(listener)
    assert app.names(number)[1] == vip
    assert peer(client) == app.names(number)[0] == (own.ip, client[1])
    app.send(number, b"to myself")
    assert app.recv(accepted) == b"to myself"
    app.send(accepted, b"from myself")
    assert app.recv(number) == b"from myself"
    (flow,) = kernel.flows()
    assert (flow.source, flow.destination, flow.asked, flow.server) == (pod.name, pod.name, vip, own)
    for end in (number, accepted):
        app.close(end)
    (closed,) = events(kernel, DirectClosed)
    assert (closed.sent, closed.received) == (9, 11)
    drained(kernel)
    assert not listeners.waiting()


@pytest.mark.parametrize("vip", FAMILIES, ids=["IPv4", "IPv6"])
def test_flows_to_a_service_are_promoted_also_to_the_pod_itself(vip: SocketAddress, rig: Rig, pod: Pod) -> None:
    kernel = rig.kernel(direct=True, accelerate=True)
    other = rig.add_pod()
    for each in (pod, other):
        enrol(kernel, each)
    kernel.set_targets({p.name: Target(mode=Mode.OPEN) for p in (pod, other)})
    app = rig.worker("pods", pod)
    with promoter(kernel, pod, other) as made:
        for each in (other, pod):
            kernel.set_services({vip: balance(vip, [each])})
            server = rig.worker("pods", each)
            listener, _ = server.listen("::", PORT, dual=True)
            client = app.dial(*vip)
            accepted, _ = server.accept(listener)
            promoted(made, app, server, client, accepted)
            app.close(client)
            assert server.recv(accepted) == b""
            server.close(accepted)
            drained(kernel)


def test_sockets_of_every_kind(
    kernel: Kernel, pod: Pod, server_pods: list[Pod], servers: list[Worker], app: Worker, listeners: AgentListeners
) -> None:
    """Non-blocking, bound to an address, to a port, to a device; again after a failure; to nobody who listens."""
    spread(kernel, server_pods[:1])
    assert app.dial_nonblocking(app.socket(), *VIP4) == 0
    servers[0].accept(1)
    for options in (
        {"bind": (pod.ip4, 0)},
        {"bind": ("0.0.0.0", 45001)},
        {"bind": (pod.ip4, 45002)},
        {"device": "eth0"},
    ):
        number = app.socket(**options)
        app.connect(number, *VIP4)
        assert app.names(number)[1] == VIP4
        assert peer(servers[0].accept(1)[1]) == app.names(number)[0]
    number = app.socket(socket.AF_INET6, bind=(pod.ip6, 45003))
    app.connect(number, *VIP6)
    assert peer(servers[0].accept(1)[1]) == (pod.ip6, 45003)
    servers[0].close(1)
    number = app.socket()
    app.wait_forever(number)
    with pytest.raises(ConnectionRefusedError):
        app.connect(number, *VIP4)
    assert app.dial_nonblocking(app.socket(), *VIP4) == errno.ECONNREFUSED
    spread(kernel, server_pods[1:2])
    app.connect(number, *VIP4)
    servers[1].accept(1)
    assert not listeners.waiting()


def test_data_in_the_syn_goes_through_the_agent_to_the_endpoint_that_was_drawn(
    kernel: Kernel, pod: Pod, server_pods: list[Pod], app: Worker, agent_here: Asked
) -> None:
    spread(kernel, server_pods[:1])
    app.fast_open(*VIP4, b"early")
    assert agent_here.next() == Dialled(destination=VIP4, drawn=SocketAddress(server_pods[0].ip4, PORT))


def test_what_is_removed_is_not_drawn_any_more_and_all_others_go_on(
    kernel: Kernel, server_pods: list[Pod], servers: list[Worker], app: Worker, listeners: AgentListeners
) -> None:
    """Endpoints come and go under load, without a bump: no connection fails, none goes to who was removed."""
    for worker, each in zip(servers, server_pods, strict=True):
        worker.call(serve, each.name)
    generation = kernel.generation
    for n in range(12):
        left = [each for i, each in enumerate(server_pods) if i != n % 3]
        spread(kernel, left)
        app.start("call", dial_many, VIP4.ip, VIP4.port, 80)
        counted = app.finish()
        assert counted.keys() == {p.name for p in left}
    app.start("call", dial_many, VIP6.ip, VIP6.port, 1200)
    for n in range(300):
        spread(kernel, [each for i, each in enumerate(server_pods) if i != n % 3], elsewhere=0)
    assert app.finish().keys() == {p.name for p in server_pods}
    assert kernel.generation == generation
    assert not listeners.waiting()
    kernel.set_services({})
    assert kernel._maps["services"].fill() == 0


def test_an_entry_that_is_replaced_while_it_is_read_asks_the_agent(
    kernel: Kernel, server_pods: list[Pod], servers: list[Worker], app: Worker, agent_here: Asked
) -> None:
    """Its memory may be another's by then: what is read begins with one version and ends with another."""
    spread(kernel, server_pods[:1])
    map = kernel._maps["services"]
    for key, value in map.items():
        map.put(key, value[:-8] + bytes(8))
    app.close(app.dial(*VIP4))
    assert agent_here.next() == Dialled(destination=VIP4)


def test_more_endpoints_than_have_room_are_elsewhere(kernel: Kernel, pod: Pod, server_pods: list[Pod]) -> None:
    many = balance(VIP4, [server_pods[0]] * (BACKENDS + 6))
    assert kernel.set_services({VIP4: many}) == 0
    ((_, value),) = kernel._maps["services"].items()
    _, total, here, count, *_ = SERVICE.unpack(value)
    assert (total, here, count) == (BACKENDS + 6, BACKENDS, BACKENDS)


def test_endpoints_that_are_not_enrolled_are_elsewhere(
    kernel: Kernel, pod: Pod, server_pods: list[Pod], servers: list[Worker], app: Worker, agent_here: Asked
) -> None:
    kernel.unenrol(server_pods[0].name)
    spread(kernel, server_pods[:2], (1000, 1))
    _, total, here, count, *_ = SERVICE.unpack(next(iter(kernel._maps["services"].items()))[1])
    assert (total, here, count) == (1001, 1, 1)
    kernel.set_services({VIP4: balance(VIP4, server_pods[:1])})
    assert kernel._maps["services"].fill() == 0
    app.close(app.dial(*VIP4))
    assert agent_here.next() == Dialled(destination=VIP4)


def test_services_without_room_ask_the_agent(
    kernel: Kernel, server_pods: list[Pod], servers: list[Worker], app: Worker, agent_here: Asked
) -> None:
    room = kernel._maps["services"].definition.entries
    one = balance(VIP4, server_pods[:1])
    wanted = {SocketAddress(f"10.97.{n >> 8}.{n & 255}", 80): one for n in range(room + 5)}
    assert kernel.set_services(wanted) == 5
    late = [SocketAddress(f"10.97.{n >> 8}.{n & 255}", 80) for n in range(room, room + 5)]
    app.close(app.dial(*late[0]))
    assert agent_here.next() == Dialled(destination=late[0])
    app.close(app.dial("10.97.0.9", 80))
    servers[0].accept(1)
    assert kernel.set_services({late[0]: one}) == 0
    app.close(app.dial(*late[0]))
    servers[0].accept(1)


def test_without_an_agent_the_endpoints_here_serve_alone(
    kernel: Kernel, rig: Rig, pod: Pod, server_pods: list[Pod], servers: list[Worker], app: Worker,
    listeners: AgentListeners,
) -> None:  # fmt: skip
    """A Service most of whose endpoints are elsewhere; with no agent to lead there, those of this node are drawn. What
    is not decided, and other Services, are closed."""
    spread(kernel, server_pods[:2], elsewhere=98)
    for worker, each in zip(servers, server_pods, strict=True):
        worker.call(serve, each.name)
    kernel.close()
    listeners.close()
    for vip in FAMILIES:
        counted = app.call(dial_many, vip.ip, vip.port, 400)
        assert chi_square(counted, {p.name: 1 for p in server_pods[:2]}) < CRITICAL[1], counted
    with pytest.raises(ConnectionRefusedError):
        app.dial(VIP4.ip, 81)
    again = rig.kernel(direct=True)
    theirs = AgentListeners(pod)
    enrol(again, pod, theirs)
    asked, seen = Asked(again, pod, theirs), 0
    for _ in range(40):  # an agent is there again: nearly all go elsewhere
        app.close(app.dial(*VIP4))
        if theirs.waiting():
            assert asked.next() == Dialled(destination=VIP4, elsewhere=True)
            seen += 1
    assert seen > 30
    theirs.close()
    again.bump()
    with pytest.raises(ConnectionRefusedError):
        app.dial(*VIP4)


def test_off_is_off(rig: Rig, kernel: Kernel, server_pods: list[Pod], app: Worker, agent_here: Asked) -> None:
    """An agent without the direct path finds what another left; nothing goes past it."""
    spread(kernel, server_pods[:1])
    rig.kernel(direct=False)
    app.close(app.dial(*VIP4))
    assert agent_here.next() == Dialled(destination=VIP4, drawn=SocketAddress(server_pods[0].ip4, PORT))


def test_an_upgrade_to_another_layout_takes_services_along_by_telling_them_anew(
    kernel: Kernel, rig: Rig, pod: Pod, server_pods: list[Pod], servers: list[Worker], app: Worker,
    listeners: AgentListeners, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    spread(kernel, server_pods[:1])
    old = app.dial(*VIP4)
    accepted, _ = servers[0].accept(1)
    monkeypatch.setattr(compile, "build", lambda cache: another_layout(artifact, 7))
    upgraded = rig.kernel(direct=True)
    enrol(upgraded, pod, listeners)
    for each in server_pods:
        enrol(upgraded, each)
    app.close(app.dial(*VIP4))
    assert Asked(upgraded, pod, listeners).next() == Dialled(destination=VIP4)
    open_all(upgraded, pod, *server_pods)
    spread(upgraded, server_pods[1:2])
    new = app.dial(*VIP4)
    servers[1].accept(1)
    app.send(old, b"still")
    assert servers[0].recv(accepted) == b"still"
    assert app.names(old)[1] == app.names(new)[1] == VIP4
    assert {f.server for f in upgraded.flows()} == {(p.ip4, PORT) for p in server_pods[:2]}
    app.close(old)
    until(lambda: len(upgraded.flows()) == 1)


@pytest.fixture(autouse=True)
def _nothing_was_lost(kernel: Kernel) -> Iterator[None]:
    yield
    if kernel._maps["counters"].fd >= 0:
        assert kernel.counters()[Reason.MISMATCH] == 0
