"""Short connections by the thousand: no port, no kernel entry, no descriptor is used up, whoever closes first.

Meant is a minute at 1,000 per second. To see it in seconds the pods have few ports here: a leg that left them in
TIME_WAIT for its minute would be out of them long before the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.bench.load import compiled, words
from deploy.lab import agents, launch
from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key
from tests.lab.objects import PORT, namespace, node, pod, service

PORTS = 4000  # that a pod's connections may take
MORE = 5000  # connections than there are ports
AT_ONCE = 16
RATE = 2500  # per second, however fast the machine is: a port rests for a second before it is taken again
PER_CONNECTION = frozenset({"captured", "flows", "loops", "announced", "clients", "legs", "accelerated", "consumed"})
NAMESPACE = {"client": "mesh", "server": "mesh", "neighbour": "mesh", "outsider": "plain", "legacy": "plain"}
CLUSTER = namespace("mesh", ambient=True) + namespace("plain") + node("n1") + node("n2") + service("server", "mesh")
PODS = {"client": "n1", "outsider": "n1", "legacy": "n2", "server": "n2", "neighbour": "n2"}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    serve = [str(compiled()), *words("server", port=PORT)]
    lab = make_lab(CLUSTER + "".join(pod(n, NAMESPACE[n], at, command=serve) for n, at in PODS.items()))
    for name in ("client", "server", "neighbour"):
        leave_few_ports(lab, name)
    return lab


def leave_few_ports(lab: Lab, name: str) -> None:
    """Both legs of an enrolled pod, application to agent and agent to application, take theirs from these. The first
    one is spread over many loopback addresses; the second one takes a port in TIME_WAIT again after a second."""
    setting = Path("/proc/sys/net/ipv4/ip_local_port_range")
    launch.in_netns(
        lab.netns(lab.pod(name, NAMESPACE[name])), lambda: setting.write_text(f"30000 {30000 + PORTS - 1}") and None
    )


def address(lab: Lab, name: str, family: int) -> str:
    return lab.pod(name, NAMESPACE[name])["status"]["podIPs"][family]["ip"]


def service(lab: Lab, family: int) -> str:
    return lab.objects()[Key("Service", "mesh", "server")]["spec"]["clusterIPs"][family]


def connect(lab: Lab, source: str, host: str, port: int, **options: str | float) -> dict[str, Any]:
    """What the load says; it fails if a connection or a byte does."""
    options = {"connections": AT_ONCE, "seconds": 60, **options}
    command = [str(compiled()), *words("connects", host=host, port=port, **options)]
    done = lab.exec(source, command, namespace=NAMESPACE[source], timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    print(f"{source} to {host} port {port}: {found['connects']} connections, {found['rate']:.0f}/s")
    return found


def ask(lab: Lab, node: str, target: str) -> Any:
    return agents.ask_socket(agents.admin_socket(lab.layout, node), target)


def kernel_entries(lab: Lab, node: str) -> dict[str, int]:
    """Per-connection maps that are not empty."""
    maps = {m["name"]: m["entries"] for m in ask(lab, node, "/bpf")["maps"]}
    assert maps.keys() >= PER_CONNECTION
    return {name: count for name, count in maps.items() if name in PER_CONNECTION and count}


def descriptors(lab: Lab, node: str) -> int:
    return len(list(Path(f"/proc/{ask(lab, node, '/status')['pid']}/fd").iterdir()))


def check_nothing_left(lab: Lab, until: Callable[..., None], before: dict[str, int]) -> None:
    for name in ("n1", "n2"):
        until(lambda name=name: not ask(lab, name, "/connections")["connections"])
        until(lambda name=name: not kernel_entries(lab, name))
        # One more may be the one that is asking. There may be fewer: some sockets had been made ahead by then.
        until(lambda name=name: descriptors(lab, name) <= before[name] + 1)


@pytest.mark.parametrize(
    ("family", "first", "count"),
    [(0, "client", 2 * PORTS), (1, "client", MORE), (0, "server", MORE), (1, "server", MORE)],
    ids=["ipv4-client-first", "ipv6-client-first", "ipv4-server-first", "ipv6-server-first"],
)
def test_thousands_of_short_connections_exhaust_nothing(
    lab: Lab, until: Callable[..., None], family: int, first: str, count: int
) -> None:
    host = service(lab, family)
    connect(lab, "client", host, 80, count=100)
    before = {node: descriptors(lab, node) for node in ("n1", "n2")}
    found = connect(lab, "client", host, 80, count=count, first=first, rate=RATE)
    assert found["connects"] == count, "not done in a minute"
    check_nothing_left(lab, until, before)


@pytest.mark.parametrize(
    ("source", "target"),
    [("neighbour", "server"), ("client", "legacy"), ("outsider", "server")],
    ids=["same-node", "to-outside-the-mesh", "from-outside-the-mesh"],
)
def test_neither_do_those_on_one_node_or_half_outside_the_mesh(
    lab: Lab, until: Callable[..., None], source: str, target: str
) -> None:
    host = address(lab, target, 0)
    connect(lab, source, host, PORT, count=100)
    before = {node: descriptors(lab, node) for node in ("n1", "n2")}
    found = connect(lab, source, host, PORT, count=MORE, rate=RATE)
    assert found["connects"] == MORE, "not done in a minute"
    check_nothing_left(lab, until, before)


def test_nobody_stumbled(lab: Lab) -> None:
    """After all of the above."""
    for name in ("n1", "n2"):
        text = lab.logs(f"node/{name}").read_text()
        assert "Traceback" not in text, text
        assert "INTERNAL" not in text
