"""Who may come in: the agent's ports to the agent, recorded flows to the application, all else to plaintext."""

from __future__ import annotations

import socket

import pytest

from bpf import Kernel, netns
from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.kernel import packets
from tests.kernel.rig import NODE4, NODE6, AgentListeners, Pod, Rig, Worker, enrol

CLIENT4, CLIENT6 = SocketAddress("198.51.100.9", 40123), SocketAddress("2001:db8:9::9", 40123)


def own(pod: Pod, version: int) -> str:
    return pod.ip4 if version == 4 else pod.ip6


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def version(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def server(app: Worker) -> tuple[int, int]:
    """The application: a dual-stack listener."""
    return app.listen("::", 8080, dual=True)


def last_hop(kernel: Kernel, agent: Worker, pod: Pod, version: int, client: SocketAddress | None, port: int) -> int:
    """As the agent dials the application."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    number = agent.socket_in(str(pod.netns), family, bind=(own(pod, version), 0))
    if client is not None:
        kernel.announce(agent.cookie(number), client)
    agent.connect(number, own(pod, version), port)
    return number


def test_a_stranger_lands_on_plaintext(
    version: int, pod: Pod, listeners: AgentListeners, app: Worker, host: Worker, server: tuple[int, int]
) -> None:
    client = host.dial(own(pod, version), 8080)
    accepted, peer = listeners.accept(f"plaintext{version}")
    assert accepted.getsockname()[:2] == (own(pod, version), 8080)
    assert peer[:2] == host.names(client)[0]
    assert peer[0] == (NODE4 if version == 4 else NODE6)
    with pytest.raises(TimeoutError):
        app.accept(server[0], timeout=0.2)
    accepted.close()


def test_a_port_without_an_application_lands_on_plaintext_too(
    version: int, pod: Pod, listeners: AgentListeners, host: Worker
) -> None:
    host.dial(own(pod, version), 9)
    listeners.accept(f"plaintext{version}")[0].close()


def test_another_pod_that_dodged_its_hook_lands_on_plaintext(
    rig: Rig, version: int, pod: Pod, listeners: AgentListeners, server: tuple[int, int]
) -> None:
    other = rig.add_pod()  # not enrolled, so nothing captures it
    rig.worker("pods", other).dial(own(pod, version), 8080)
    listeners.accept(f"plaintext{version}")[0].close()


def test_the_kubelet_reaches_the_application(
    version: int, pod: Pod, listeners: AgentListeners, app: Worker, kubelet: Worker, server: tuple[int, int]
) -> None:
    client = kubelet.dial(own(pod, version), 8080)
    accepted, peer = app.accept(server[0])
    assert peer[0].removeprefix("::ffff:") == (NODE4 if version == 4 else NODE6)
    assert kubelet.names(client)[1] == (own(pod, version), 8080)
    kubelet.send(client, b"GET /")
    assert app.recv(accepted) == b"GET /"
    assert listeners.waiting() == set()


def test_a_cgroup_below_the_kubelets_is_the_kubelet(
    rig: Rig, pod: Pod, listeners: AgentListeners, app: Worker, server: tuple[int, int]
) -> None:
    below = rig.cgroup / "kubelet" / "prober"
    below.mkdir()
    try:
        prober = rig.worker("kubelet/prober", rig.node)
        prober.dial(pod.ip4, 8080)
        app.accept(server[0])
        prober.kill()
    finally:
        rig.remove_cgroup(below)


def test_a_tuple_that_the_kubelet_used_before_is_no_permission(
    rig: Rig, pod: Pod, listeners: AgentListeners, app: Worker, kubelet: Worker, host: Worker, server: tuple[int, int]
) -> None:
    options = {"bind": (NODE4, 45678), "options": [(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)]}
    client = kubelet.socket(**options)
    kubelet.connect(client, pod.ip4, 8080)
    accepted, _ = app.accept(server[0])
    app.close(accepted)  # the application closes first: TIME_WAIT is at its side
    assert kubelet.recv(client) == b""
    kubelet.close(client)
    intruder = host.socket(**options)
    host.connect(intruder, pod.ip4, 8080)
    listeners.accept("plaintext4")[0].close()


def test_the_last_hop_shows_the_real_client(
    kernel: Kernel, version: int, pod: Pod, listeners: AgentListeners, app: Worker, agent: Worker,
    server: tuple[int, int],
) -> None:  # fmt: skip
    client = CLIENT4 if version == 4 else CLIENT6
    number = last_hop(kernel, agent, pod, version, client, 8080)
    accepted, peer = app.accept(server[0])
    shown = f"::ffff:{client.ip}" if version == 4 else client.ip
    assert peer[:2] == (shown, client.port)
    assert app.names(accepted)[1] == (shown, client.port)
    assert app.names(accepted)[0][0].removeprefix("::ffff:") == own(pod, version)
    assert agent.names(number)[1] == (own(pod, version), 8080), "the agent sees the truth"
    agent.send(number, b"x")
    assert app.recv(accepted) == b"x"
    assert listeners.waiting() == set()


def test_the_last_hop_to_a_v4_socket(
    kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker, agent: Worker
) -> None:
    number, port = app.listen("0.0.0.0")
    last_hop(kernel, agent, pod, 4, CLIENT4, port)
    accepted, peer = app.accept(number)
    assert peer == CLIENT4
    assert app.names(accepted)[1] == CLIENT4


def test_a_v6_client_before_a_v4_socket_is_not_named(
    kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker, agent: Worker
) -> None:
    number, port = app.listen("0.0.0.0")
    last_hop(kernel, agent, pod, 4, CLIENT6, port)
    assert app.accept(number)[1][0] == pod.ip4


def test_an_unannounced_last_hop_passes_as_the_pod(
    kernel: Kernel, version: int, pod: Pod, listeners: AgentListeners, app: Worker, agent: Worker,
    server: tuple[int, int],
) -> None:  # fmt: skip
    last_hop(kernel, agent, pod, version, None, 8080)
    _, peer = app.accept(server[0])
    assert peer[0].removeprefix("::ffff:") == own(pod, version)


def test_a_withdrawn_announcement_is_forgotten(
    kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker, agent: Worker, server: tuple[int, int]
) -> None:
    number = agent.socket_in(str(pod.netns), socket.AF_INET, bind=(pod.ip4, 0))
    kernel.announce(agent.cookie(number), CLIENT4)
    kernel.withdraw(agent.cookie(number))
    agent.connect(number, pod.ip4, 8080)
    assert app.accept(server[0])[1][0] == f"::ffff:{pod.ip4}"


def test_the_pods_own_connections_cannot_be_announced_by_anyone_else(
    kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker, server: tuple[int, int]
) -> None:
    number = app.socket()
    kernel.announce(app.cookie(number), CLIENT4)  # a cookie that is not of a socket of the agent
    app.connect(number, pod.ip4, 8080)
    assert app.accept(server[0])[1][0] == f"::ffff:{pod.ip4}"


def test_the_tunnel_port_is_the_agents(
    version: int, pod: Pod, listeners: AgentListeners, host: Worker, app: Worker
) -> None:
    squatter, _ = app.listen("::", 15008, dual=True)
    for dialler in (host, app):
        dialler.dial(own(pod, version), 15008)
        accepted, _ = listeners.accept(f"tunnel{version}")
        assert accepted.getsockname()[:2] == (own(pod, version), 15008)
        accepted.close()
    with pytest.raises(TimeoutError):
        app.accept(squatter, timeout=0.2)


@pytest.mark.parametrize("port", [15001, 15006])
def test_squatters_of_the_other_ports_are_not_reached(
    kernel: Kernel, version: int, port: int, pod: Pod, listeners: AgentListeners, host: Worker, kubelet: Worker,
    app: Worker,
) -> None:  # fmt: skip
    app.listen("::", port, dual=True)
    for dialler in (host, kubelet):
        with pytest.raises(ConnectionRefusedError):
            dialler.dial(own(pod, version), port)
    assert kernel.counters()[Reason.RESERVED_PORT] == 2
    assert [e.local for e in kernel.events().read()] == [(own(pod, version), port)] * 2


def test_a_squatter_of_15001_gets_no_captured_connection(
    version: int, pod: Pod, listeners: AgentListeners, app: Worker
) -> None:
    squatter, _ = app.listen("0.0.0.0", 15001)
    app.dial("203.0.113.9" if version == 4 else "2001:db8::9", 80)
    listeners.accept(f"outbound{version}")[0].close()
    with pytest.raises(TimeoutError):
        app.accept(squatter, timeout=0.2)


def test_an_ipv6_syn_from_outside_with_source_equal_to_destination_does_not_pass(
    kernel: Kernel, pod: Pod, host: Worker, app: Worker, server: tuple[int, int]
) -> None:
    """IPv6 has no martian check: such a SYN reaches TCP. It must not count as the pod talking to itself, so that with
    no agent there it is refused; the pod's own connection to itself passes."""
    enrol(kernel, pod)
    host.call(_send_syn, pod)
    assert kernel.counters()[Reason.AGENT_ABSENT] >= 1  # the stray reset that answers it is counted as well
    refused = next(iter(kernel.events().read()))
    assert (refused.local, refused.remote) == ((pod.ip6, 8080), (pod.ip6, 50505))
    app.dial(pod.ip6, 8080)
    app.accept(server[0])


def _send_syn(_: object, pod: Pod) -> None:
    """Onto the veth, source = destination."""
    packets.send(pod.veth, pod.mac, [packets.syn((pod.ip6, 50505), (pod.ip6, 8080))])


def test_loopback_listeners_keep_working(app: Worker, pod: Pod, listeners: AgentListeners) -> None:
    for at in ("127.0.0.1", "127.1.2.3", "::1"):
        server, port = app.listen(at)
        app.dial(at, port)
        app.accept(server)


def test_an_application_on_a_spread_port_is_not_disturbed(app: Worker, pod: Pod, listeners: AgentListeners) -> None:
    servers = [app.listen("::1", 20480 + n)[0] for n in range(50)]
    for _ in range(40):
        app.dial("2001:db8::9", 80)
        listeners.accept("outbound6")[0].close()
    for n, server in enumerate(servers):
        app.dial("::1", 20480 + n)
        app.accept(server)


def test_a_second_address_of_the_pod_is_enforced_and_its_own(
    kernel: Kernel, rig: Rig, pod: Pod, app: Worker, host: Worker
) -> None:
    """Inbound steering needs no list of addresses; knowing them lets the pod talk to itself, from one to the other."""
    rig.ip("-n", pod.name, "addr", "add", "10.93.7.7/32", "dev", "eth0")
    rig.ip("-n", rig.node.name, "route", "add", "10.93.7.7/32", "dev", pod.veth)
    listeners = AgentListeners(pod)
    enrol(kernel, pod, listeners)
    server, port = app.listen("0.0.0.0")
    host.dial("10.93.7.7", port)
    accepted, _ = listeners.accept("plaintext4")
    assert accepted.getsockname() == ("10.93.7.7", port)
    with pod.opened() as fd:
        kernel.enrol(pod.name, fd, [pod.ip4, pod.ip6, "10.93.7.7"], listeners)
    number = app.socket(bind=(pod.ip4, 0))
    app.connect(number, "10.93.7.7", port)
    assert app.accept(server)[1] == app.names(number)[0]
    listeners.close()


def test_who_is_out_of_the_hooks_reach_finds_no_destination(
    kernel: Kernel, pod: Pod, listeners: AgentListeners
) -> None:
    """A process of the pod's netns outside of the node's cgroup: this one. Its connect() is not hooked, its SYN is."""
    with pod.opened() as fd, netns.entered(fd):
        dialler4, dialler6 = socket.socket(), socket.socket(socket.AF_INET6)
    with dialler4, dialler6:
        with pytest.raises(ConnectionRefusedError):
            dialler4.connect(("127.7.7.7", 15001))
        assert kernel.counters()[Reason.NO_DESTINATION] >= 1
        with pytest.raises(ConnectionRefusedError):
            dialler6.connect(("::1", 15006))
        assert kernel.counters()[Reason.RESERVED_PORT] >= 1
    assert listeners.waiting() == set()
