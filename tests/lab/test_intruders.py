"""Intruders beside the direct path: on the same node, by every trick a pod, a host-network pod or a process of the node
has, with the agent there and while it is dead. Nobody gets in who may not; whoever may still does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from deploy.lab.cluster import Lab
from tests.lab.intruder import ARMED, ISTIO_MARK, MPTCP, PROBED, SERVER, WELCOME, Dial, Intruder
from tests.lab.objects import namespace, node, pod, python
from tests.lab.talk import ask, ips, until
from tests.lab.test_direct import ON

POLICIES = """
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-client, namespace: mesh}
spec:
  selector: {matchLabels: {app: server}}
  rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]}]
"""
SQUATTED = (15001, 15006, 15008)
CLUSTER = (
    namespace("mesh", ambient=True)
    + namespace("plain")
    + node("n1")
    + pod("server", "mesh", "n1", SERVER, probed=PROBED)
    + pod("open", "mesh", "n1", SERVER, probed=PROBED)  # to whoever is in the mesh
    + pod("squatter", "mesh", "n1", command=[*python(SERVER), *map(str, SQUATTED)], probed=PROBED)
    + pod("client", "mesh", "n1", securityContext=ARMED)
    + pod("rogue", "mesh", "n1", securityContext=ARMED)
    + pod("rogue", "plain", "n1", securityContext=ARMED)
    + pod("onhost", "plain", "n1", securityContext=ARMED, hostNetwork=True)
    + POLICIES
)
SOURCES = {
    "enrolled pod": ("rogue", "mesh"),
    "un-enrolled pod": ("rogue", "plain"),
    "host-network pod": ("onhost", "plain"),
    "process of the node": ("node/n1", ""),
}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(CLUSTER)
    made.restart_agent("n1", arguments=ON)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    lab: Lab
    agent: bool

    def ips(self, name: str, namespace: str = "mesh") -> list[str]:
        return ips(self.lab, name, namespace)

    @property
    def node(self) -> list[str]:
        machine = self.lab.node("n1")
        return [machine.address4, machine.address6]

    def log(self, name: str) -> str:
        return self.lab.logs(name, namespace="mesh").read_text()

    @contextmanager
    def letting_nobody_in(self, *servers: str) -> Iterator[None]:
        """Meanwhile they let in the client alone, which still is; both is in their logs in the order it happened."""
        before = {server: len(self.log(server)) for server in servers}
        yield
        client = Intruder(self.lab, "client", "mesh")
        for server in servers:
            assert set(client.dial(*(Dial(to=ip) for ip in self.ips(server))).values()) == {WELCOME}
            own = set(self.ips("client"))

            def seen(server: str = server) -> set[str]:
                lines = self.log(server)[before[server] :].splitlines()
                return {line.split()[-1] for line in lines if line.startswith(("let in", "heard"))}

            until(lambda seen=seen, own=own: seen() >= own)
            assert seen() == own, self.log(server)[before[server] :]


@pytest.fixture(scope="module", params=[True, False], ids=["agent alive", "agent dead"])
def world(lab: Lab, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(lab=lab, agent=request.param)
    client = Intruder(lab, "client", "mesh")
    everywhere = [Dial(to=ip) for name in ("server", "open") for ip in made.ips(name)]

    def direct() -> bool:
        """Asked for once, they are permitted without the agent."""
        return set(client.dial(*everywhere).values()) == {WELCOME}

    until(direct)
    if made.agent:
        yield made
        return
    lab.kill_agent("n1")
    try:
        yield made
    finally:
        lab.restart_agent("n1", arguments=ON)


@pytest.fixture(params=SOURCES.values(), ids=SOURCES)
def intruder(world: World, request: pytest.FixtureRequest) -> Intruder:
    return Intruder(world.lab, *request.param)


def test_whoever_dials_is_refused(world: World, intruder: Intruder) -> None:
    """Whatever mark or protocol it sets, before and with and without a handshake."""
    with world.letting_nobody_in("server"):
        for ip in world.ips("server"):
            heard = intruder.dial(
                Dial(to=ip),
                Dial(to=ip, mark=ISTIO_MARK),
                Dial(to=ip, mark=0x111),
                Dial(to=ip, protocol=MPTCP),
                Dial(to=ip, early=True),
                Dial(to=ip, repair=True),
            )
            assert WELCOME not in heard.values(), heard


def test_no_address_that_is_bound_makes_a_difference(world: World, intruder: Intruder) -> None:
    """A neighbour's, the destination's own, the node's, nobody's."""
    with world.letting_nobody_in("server"):
        for family in (0, 1):
            to = world.ips("server")[family]
            nobodys = re.sub("[0-9a-f]+$", "99", to)
            taken = [world.ips("client")[family], to, world.node[family], nobodys]
            dials = [Dial(to=to, bound=ip, mark=mark) for ip in taken for mark in (0, ISTIO_MARK)]
            heard = intruder.dial(*dials)
            assert WELCOME not in heard.values(), heard


@pytest.mark.parametrize("source", ["enrolled pod", "un-enrolled pod"])
def test_nor_does_one_that_is_taken(world: World, source: str) -> None:
    intruder = Intruder(world.lab, *SOURCES[source])
    for name in ("client", "server"):
        with world.letting_nobody_in("server", "open"), intruder.owning(*world.ips(name), world.node[0]):
            dials = [Dial(to=ip, bound=own) for ip, own in zip(world.ips("server"), world.ips("client"), strict=True)]
            dials += [Dial(to=ip) for ip in world.ips("server")]
            heard = intruder.dial(*dials)
            assert WELCOME not in heard.values(), heard


@pytest.mark.parametrize("source", ["enrolled pod", "un-enrolled pod"])
def test_packets_made_by_hand_open_nothing(world: World, source: str) -> None:
    intruder = Intruder(world.lab, *SOURCES[source])
    intruder.dial(Dial(to=world.node[0], port=1))  # it knows its gateway from now on
    with world.letting_nobody_in("server", "open"):
        for family in (0, 1):
            targets = [world.ips(name)[family] for name in ("server", "open")]
            forged = [*targets, world.ips("client")[family], world.node[family], ("127.0.0.1", "::1")[family]]
            ports = (9000, 15001, 15006, 15008)
            intruder.forge(*((source, to, port) for to in targets for source in forged for port in ports))
        sockets = world.lab.exec("server", ["ss", "-Htn", "state", "established"], namespace="mesh", check=True).stdout
        assert ":15001" not in sockets and ":15006" not in sockets


def test_a_permission_is_for_one_destination(world: World) -> None:
    """The intruder may reach `open`, and sends its packets to `server` instead, under the client's address, too."""
    intruder = Intruder(world.lab, "rogue", "mesh")
    opened = world.ips("open")
    assert set(intruder.dial(*(Dial(to=ip) for ip in opened)).values()) == {WELCOME}
    for name, tool in (("ip", world.ips("server")[0]), ("ip6", world.ips("server")[1])):
        other = opened[0] if name == "ip" else opened[1]
        to = tool if name == "ip" else f"[{tool}]"
        rules = f"""
            add table {name} twist
            add chain {name} twist output {{ type nat hook output priority -100; }}
            add chain {name} twist after {{ type nat hook postrouting priority 100; }}
            add rule {name} twist output {name} daddr {other} tcp dport 9000 dnat to {to}:9000
            add rule {name} twist after {name} daddr {tool} snat to {world.ips("client")[name == "ip6"]}
        """
        script = "\n".join(line.strip() for line in rules.strip().splitlines())
        world.lab.exec("rogue", ["nft", "-f", "-"], namespace="mesh", input=script, check=True)
        try:
            with world.letting_nobody_in("server"):
                heard = intruder.dial(Dial(to=other), Dial(to=other, mark=ISTIO_MARK), Dial(to=other, early=True))
                assert WELCOME not in heard.values(), heard
        finally:
            world.lab.exec("rogue", ["nft", "delete", "table", name, "twist"], namespace="mesh", check=True)


def test_the_agents_ports_are_of_no_use(world: World, intruder: Intruder) -> None:
    """Its own, other pods', the node's; the node's metrics and readiness are for whoever asks."""
    places = [ip for name in ("server", "open", "client", "rogue") for ip in world.ips(name)]
    places += [*world.ips("rogue", "plain"), "127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.1"]
    ports = (15000, 15001, 15006, 15008, 15020, 15021)
    on_node = intruder.name == "onhost" or intruder.name.startswith("node/")
    with world.letting_nobody_in("server", "open"):
        heard = intruder.dial(*(Dial(to=ip, port=port) for ip in [*places, *world.node] for port in ports))
        told = {dial: text for dial, text in heard.items() if "HTTP/" in text or WELCOME in text}
        for dial in told:
            public = dial.port in (15020, 15021) and world.agent
            own = on_node and (dial.to == "::1" or dial.to.removeprefix("::ffff:").startswith("127."))
            assert (public and (dial.to in world.node or own)) or (own and dial.port == 15000), (dial, told[dial])


def test_who_squats_the_agents_ports_is_never_reached(world: World, intruder: Intruder) -> None:
    """It has had them since before it was enrolled. What its own pod sends out would be its, too."""
    squatters = world.ips("squatter")
    for source in (intruder, Intruder(world.lab, "client", "mesh")):
        source.dial(*(Dial(to=ip, port=port) for ip in squatters for port in SQUATTED))
    heard = Intruder(world.lab, "squatter", "mesh").dial(*(Dial(to=ip) for ip in world.ips("server")))
    assert WELCOME not in heard.values()
    assert not world.log("squatter")


def test_nobody_stumbled(lab: Lab) -> None:
    """After all of the above; those who are in the mesh still reach each other, the squatter too."""
    lab.restart_agent("n1", arguments=ON)
    to_open = [Dial(to=ip) for ip in ips(lab, "open")]
    assert set(Intruder(lab, "squatter", "mesh").dial(*to_open).values()) == {WELCOME}
    for target in ("node/n1", "controller"):
        text = lab.logs(target).read_text()
        assert "Traceback" not in text, text
        assert "INTERNAL" not in text
    assert {c["reason"]: c["count"] for c in ask(lab, "n1", "/bpf")["counters"]}["MAP_FULL"] == 0
