"""A pod's connect() lands at the agent's outbound listener, whatever the socket; what was asked for is known."""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from bpf import Kernel
from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.kernel.rig import NODE4, STRANGER4, STRANGER6, AgentListeners, Pod, Rig, Worker, enrol

MAPPED = f"::ffff:{STRANGER4}"


def address(name: tuple[Any, ...]) -> SocketAddress:
    return SocketAddress(name[0], name[1])


def destination(kernel: Kernel, pod: Pod, accepted: socket.socket) -> SocketAddress | None:
    names = address(accepted.getsockname()), address(accepted.getpeername())
    dialled = kernel.original_destination(pod.cookie, *names)
    assert dialled is None or (dialled.drawn, dialled.elsewhere) == (None, False)
    return None if dialled is None else dialled.destination


CASES = {
    # socket options, what is dialled, which listener, what the agent is told
    "v4": ({"family": socket.AF_INET}, STRANGER4, "outbound4", STRANGER4),
    "v6": ({"family": socket.AF_INET6}, STRANGER6, "outbound6", STRANGER6),
    "v6-only": ({"family": socket.AF_INET6, "v6only": True}, STRANGER6, "outbound6", STRANGER6),
    "mapped": ({"family": socket.AF_INET6}, MAPPED, "outbound4", STRANGER4),
    "v4 bound to the pod": ({"family": socket.AF_INET, "bind": ("POD4", 0)}, STRANGER4, "outbound4", STRANGER4),
    "v4 bound to a port": ({"family": socket.AF_INET, "bind": ("0.0.0.0", 4567)}, STRANGER4, "outbound4", STRANGER4),
    "v6 bound to the pod": ({"family": socket.AF_INET6, "bind": ("POD6", 0)}, STRANGER6, "outbound6", STRANGER6),
    "v6 bound to a port": ({"family": socket.AF_INET6, "bind": ("::", 4568)}, STRANGER6, "outbound6", STRANGER6),
    "mapped bound to a port": ({"family": socket.AF_INET6, "bind": ("::", 4569)}, MAPPED, "outbound4", STRANGER4),
    "mapped bound to the pod": (
        {"family": socket.AF_INET6, "bind": ("::ffff:POD4", 0)}, MAPPED, "outbound4", STRANGER4
    ),
    "v4 bound to eth0": ({"family": socket.AF_INET, "device": "eth0"}, STRANGER4, "outbound4", STRANGER4),
    "v6 bound to eth0": ({"family": socket.AF_INET6, "device": "eth0"}, STRANGER6, "outbound6", STRANGER6),
    "marked": (
        {"family": socket.AF_INET, "options": [(socket.SOL_SOCKET, 36, 0x539)]}, STRANGER4, "outbound4", STRANGER4
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_is_captured(
    case: str, blocking: bool, kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker
) -> None:
    options, dialled, listener, told = CASES[case]
    options = dict(options)
    if "bind" in options:
        host, port = options["bind"]
        options["bind"] = (host.replace("POD4", pod.ip4).replace("POD6", pod.ip6), port)
    client = app.socket(**options)
    if blocking:
        app.connect(client, dialled, 8080)
    else:
        assert app.dial_nonblocking(client, dialled, 8080) == 0
    accepted, _ = listeners.accept(listener)
    with accepted:
        assert destination(kernel, pod, accepted) == (told, 8080)
        assert app.names(client)[1] == (dialled, 8080)
        own = pod.ip6 if listener == "outbound6" else f"::ffff:{pod.ip4}" if ":" in dialled else pod.ip4
        assert app.names(client)[0][0] == own
        if "bind" in options and options["bind"][1]:
            assert app.names(client)[0][1] == options["bind"][1]
        app.send(client, b"question")
        assert accepted.recv(100) == b"question"
        accepted.sendall(b"answer")
        assert app.recv(client) == b"answer"


def test_reconnects_after_a_failure(kernel: Kernel, pod: Pod, app: Worker) -> None:
    enrol(kernel, pod)
    client = app.socket()
    app.wait_forever(client)  # with a timeout, Python's connect() is a non-blocking one, which fails twice on any Linux
    with pytest.raises(ConnectionRefusedError):
        app.connect(client, STRANGER4, 80)
    listeners = AgentListeners(pod)
    enrol(kernel, pod, listeners)
    app.connect(client, STRANGER4, 81)
    accepted, _ = listeners.accept("outbound4")
    assert destination(kernel, pod, accepted) == (STRANGER4, 81)
    assert app.names(client)[1] == (STRANGER4, 81)
    accepted.close()
    listeners.close()


def test_reconnects_after_a_disconnect_to_loopback(listeners: AgentListeners, app: Worker) -> None:
    server, port = app.listen("127.0.0.1")
    client = app.socket()
    app.connect(client, STRANGER4, 80)
    accepted, _ = listeners.accept("outbound4")
    app.disconnect(client)
    app.connect(client, "127.0.0.1", port)
    assert app.names(client) == (app.names(client)[0], ("127.0.0.1", port))
    assert app.names(client)[0][0] == "127.0.0.1"
    assert app.accept(server)[1] == app.names(client)[0]
    accepted.close()


def test_fast_open_data_arrives(kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker) -> None:
    client = app.fast_open(STRANGER4, 80, b"early")
    accepted, _ = listeners.accept("outbound4")
    assert destination(kernel, pod, accepted) == (STRANGER4, 80)
    assert accepted.recv(10) == b"early"
    assert app.names(client)[1] == (STRANGER4, 80)
    accepted.close()


def test_a_client_that_sends_and_leaves_is_still_known(
    kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker
) -> None:
    for dialled, listener in ((STRANGER4, "outbound4"), (STRANGER6, "outbound6")):
        client = app.dial(dialled, 514)
        app.send(client, b"log line")
        port = app.names(client)[0][1]
        app.close(client)
        app.call(_await_time_wait, port)
        accepted, _ = listeners.accept(listener)
        assert destination(kernel, pod, accepted) == (dialled, 514)
        assert accepted.recv(100) == b"log line"
        assert accepted.recv(100) == b""
        accepted.close()


def _await_time_wait(_: Any, port: int) -> None:
    """The socket is gone for good, also in the kernel: its last state has been answered by the agent's."""
    deadline = time.monotonic() + 10
    while True:
        lines = [
            line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()
        ]
        states = {fields[3] for fields in lines if fields[1].endswith(f":{port:04X}")}
        if not states - {"05", "06"}:  # TIME_WAIT and its substate FIN_WAIT2
            return
        assert time.monotonic() < deadline, states
        time.sleep(0.01)


def test_connections_are_spread(kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker) -> None:
    """One address and one port would leave the pod 28 k ephemeral ports."""
    seen4, seen6 = set(), set()
    for _ in range(200):
        for dialled, seen, listener in ((STRANGER4, seen4, "outbound4"), (STRANGER6, seen6, "outbound6")):
            client = app.dial(dialled, 80)
            accepted, _ = listeners.accept(listener)
            seen.add(accepted.getsockname()[:2])
            accepted.close()
            app.close(client)
    assert len(seen4) > 190
    assert all(port == 15001 and ipaddress.ip_address(ip).is_loopback for ip, port in seen4)
    assert not any(ip.endswith((".0", ".255")) for ip, _ in seen4)
    assert len(seen6) > 150
    assert {ip for ip, _ in seen6} == {"::1"}


def test_one_local_port_serves_many(kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker) -> None:
    """With a range of one ephemeral port, as many connections are possible as there are addresses to spread over."""
    app.call(_one_port)
    clients = [app.dial(STRANGER4, 80 + n) for n in range(20)]
    assert len({app.names(client)[0] for client in clients}) == 1
    told = set()
    for _ in clients:
        accepted, _ = listeners.accept("outbound4")
        told.add(destination(kernel, pod, accepted))
        accepted.close()
    assert told == {(STRANGER4, 80 + n) for n in range(20)}


def _one_port(_: Any) -> None:
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40000")


def test_passes_by(kernel: Kernel, rig: Rig, pod: Pod, listeners: AgentListeners, app: Worker, host: Worker) -> None:
    """Loopback, the pod itself, bypassed networks and the un-enrolled: not captured, names as they are."""
    kernel.set_bypass([f"{NODE4}/32", "fd93::1/128"])
    for at, dialled in (
        ("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1"), (pod.ip4, pod.ip4), (pod.ip6, pod.ip6),
        ("0.0.0.0", "0.0.0.0"), ("::1", "::"), ("0.0.0.0", f"::ffff:{pod.ip4}"), ("127.0.0.1", "::ffff:127.0.0.1"),
    ):  # fmt: skip
        server, port = app.listen(at)
        client = app.dial(dialled, port)
        _, peer = app.accept(server)
        name, shown = app.names(client)
        assert shown[1] == port and peer[1] == name[1], (at, dialled)
        app.close(client)
        app.close(server)
    for at in (NODE4, "fd93::1"):
        server, port = host.listen(at)
        client = app.dial(at, port)
        _, peer = host.accept(server)
        assert peer[:2] == app.names(client)[0]
    assert listeners.waiting() == set()
    kernel.set_bypass([])
    client = app.dial(NODE4, port)
    assert listeners.waiting() == {"outbound4"}


def test_a_bad_bypass_changes_nothing(kernel: Kernel) -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/8"):
        kernel.set_bypass(["10.1.0.0/16", "10.0.0.1/8"])
    assert next(m.entries for m in kernel.describe().maps if m.name == "bypass") == 0


def test_the_agents_ports_are_refused(kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker) -> None:
    reserved = [(ip, port) for ip in ("127.0.0.1", "127.3.2.1", "::1", "0.0.0.0") for port in (15001, 15006, 15008)]
    reserved += [(ip, port) for ip in (pod.ip4, pod.ip6) for port in (15001, 15006)]
    for ip, port in reserved:
        with pytest.raises(PermissionError):
            app.dial(ip, port)
    assert kernel.counters()[Reason.RESERVED_PORT] == len(reserved)
    events = list(kernel.events().read())
    assert [(e.reason, e.local) for e in events] == [(Reason.RESERVED_PORT, r) for r in reserved]
    assert {e.netns for e in events} == {pod.cookie}
    assert list(kernel.events().read()) == []


def test_a_listeners_own_port_has_no_destination(
    kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker
) -> None:
    client = app.dial("127.0.0.1", listeners.sockets["outbound4"].getsockname()[1])
    accepted, _ = listeners.accept("outbound4")
    assert destination(kernel, pod, accepted) is None
    app.close(client)
    accepted.close()


def test_a_pod_at_its_quota_is_refused_and_recovers(rig: Rig, pod: Pod, app: Worker) -> None:
    kernel = rig.kernel(quota=5)
    listeners = AgentListeners(pod)
    enrol(kernel, pod, listeners)
    other = rig.add_pod()
    others = AgentListeners(other)
    enrol(kernel, other, others)
    clients = [app.dial(STRANGER4, 80) for _ in range(5)]
    with pytest.raises(PermissionError):
        app.dial(STRANGER4, 80)
    assert kernel.counters()[Reason.MAP_FULL] == 1
    rig.worker("pods", other).dial(STRANGER4, 80)  # one pod's storm is nobody else's
    for _ in clients:
        listeners.accept("outbound4")[0].close()
    for client in clients:
        app.close(client)
    client = app.dial(STRANGER4, 80)
    app.close(client)
    listeners.close()
    others.close()


def test_udp_and_unix_pass(kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker) -> None:
    app.call(_udp, STRANGER4)
    app.call(_unix)


def _unix(_: Any) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as s:
        listener.bind("")  # an abstract name of the kernel's choice: unix(7), autobind
        listener.listen()
        s.connect(listener.getsockname())
        assert s.getpeername() == listener.getsockname()


def _udp(_: Any, host: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((host, 53))
        assert s.getpeername() == (host, 53)
        assert s.getsockname()[0] != "127.0.0.1"
        assert s.connect_ex((host, 53)) != errno.EPERM


def test_a_link_local_address_is_refused(kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker) -> None:
    """The agent could not tell on which link it is; the next hop answers pings, as ever."""
    assert app.call(_dial_link, "fe80::1", "eth0") == errno.EPERM
    assert kernel.counters()[Reason.UNROUTABLE_SOCKET] == 1
    kernel.set_bypass(["fe80::/10"])
    assert app.call(_dial_link, "fe80::1", "eth0") == errno.ECONNREFUSED, "nobody listens there"


def _dial_link(_: Any, host: str, device: str) -> int:
    with socket.socket(socket.AF_INET6) as s:
        s.settimeout(20)
        return s.connect_ex((host, 80, 0, socket.if_nametoindex(device)))


def test_a_multipath_socket_is_captured(kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker) -> None:
    """What names it has, the hooks cannot say: they are asked for its TCP connection, not for it."""
    number, peer = app.call(_dial_multipath, STRANGER4)
    accepted, _ = listeners.accept("outbound4")
    assert destination(kernel, pod, accepted) == (STRANGER4, 80)
    assert peer[0].startswith("127.")
    accepted.close()
    app.close(number)


def _dial_multipath(sockets: Any, host: str) -> tuple[int, tuple[str, int]]:
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)  # IPPROTO_MPTCP
    s.settimeout(20)
    s.connect((host, 80))
    return sockets._keep(s), s.getpeername()


def test_own_connections_count_too(rig: Rig, pod: Pod, app: Worker) -> None:
    """They are recorded where an address alone does not tell that they are the pod's own."""
    kernel = rig.kernel(quota=3)
    listeners = AgentListeners(pod)
    enrol(kernel, pod, listeners)
    server, port = app.listen("::", dual=True)
    for _ in range(3):
        app.dial(pod.ip6, port)
        app.accept(server)
    with pytest.raises(PermissionError):
        app.dial(pod.ip6, port)
    with pytest.raises(PermissionError):
        app.dial(STRANGER4, 80)
    assert [e.reason for e in kernel.events().read()] == [Reason.MAP_FULL] * 2
    listeners.close()


def test_a_pod_without_ipv6_listeners(kernel: Kernel, pod: Pod, app: Worker, host: Worker) -> None:
    """What has no listener is refused; the other family is not disturbed."""

    class OnlyIPv4(AgentListeners):
        def __getattr__(self, name: str) -> int | None:  # type: ignore[override]
            return None if name.endswith("6") else super().__getattr__(name)

    listeners = OnlyIPv4(pod)
    enrol(kernel, pod, listeners)
    enrol(kernel, pod, listeners)
    for dialler, ip in ((app, STRANGER6), (host, pod.ip6)):
        with pytest.raises(ConnectionRefusedError):
            dialler.dial(ip, 80)
    app.dial(STRANGER4, 80)
    listeners.accept("outbound4")[0].close()
    listeners.close()
