"""What a process in a pod may try, with the capabilities a pod can be given: whose name it speaks in, whom it reaches,
whom it keeps from working."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key
from mesh.identity import SpiffeId
from tests.lab.intruder import ARMED, ISTIO_MARK
from tests.lab.objects import pod
from tests.lab.offender import (
    Agent,
    Hbone,
    credentials,
    in_pod,
    trusting,
    undisturbed,
)
from tests.lab.talk import applied, ip, reaches, talk, until
from tests.lab.test_direct import ON
from tests.lab.test_mesh import CLUSTER, STRICT, STRICT_KEY, enrolled

# One connection per line of argument: `address port source mark`; what came of it, and the first bytes heard.
DIAL = """
import json, socket, sys
found = []
for address, port, source, mark in json.loads(sys.argv[1]):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    s.settimeout(1.5)
    try:
        if mark: s.setsockopt(socket.SOL_SOCKET, 36, mark)  # SO_MARK
        if source:
            s.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT
            s.bind((source, 0))
        s.connect((address, port))
        found.append(["open", s.recv(100).decode("latin-1")])
    except Exception as error:
        found.append([type(error).__name__, ""])
    s.close()
print(json.dumps(found))
"""
ROGUES = "".join(
    pod(name, namespace, node, securityContext=ARMED)
    for name, namespace, node in (("rogue", "mesh", "n1"), ("rogue", "plain", "n1"), ("rogue2", "mesh", "n2"))
)
ONLY_CLIENT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-client, namespace: mesh}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]}]
"""
ONLY_CLIENT_KEY = Key("AuthorizationPolicy", "mesh", "only-client")


@pytest.fixture(scope="module", params=["tunnel", "direct"])
def lab(make_lab: Callable[..., Lab], request: pytest.FixtureRequest) -> Lab:
    """The server on a node of its own; or everybody on that one, where who may goes directly."""
    text = CLUSTER + ROGUES
    if request.param == "tunnel":
        return make_lab(text)
    made = make_lab(text.replace('"nodeName": "n1"', '"nodeName": "n2"'))
    made.restart_agent("n2", arguments=ON)
    return made


def agent_of(lab: Lab, pod: str, namespace: str = "mesh") -> Agent:
    return Agent(lab=lab, node=lab.pod(pod, namespace)["spec"]["nodeName"])


@contextmanager
def in_force(lab: Lab, text: str, key: Key) -> Iterator[None]:
    """A policy, from when the agent of the server has it until it has no more."""
    agent = agent_of(lab, "server")
    with applied(lab, text, key):
        until(agent.policies)
        yield
    until(lambda: not agent.policies())


@pytest.fixture(scope="module")
def server(lab: Lab) -> str:
    return ip(lab, "server")


def dials(
    lab: Lab, source: str, namespace: str, *wanted: tuple[str, int], bound: str = "", mark: int = 0
) -> list[tuple[str, str]]:
    """(how it went, what was heard) of each."""
    argument = json.dumps([(address, port, bound, mark) for address, port in wanted])
    command = ["/usr/bin/python3", "-S", "-c", DIAL, argument]
    output = lab.exec(source, command, namespace=namespace, check=True).stdout
    return [(how, heard) for how, heard in json.loads(output)]


# Ports that are not the pods'


@pytest.mark.parametrize("mark", [0, ISTIO_MARK])
@pytest.mark.parametrize("namespace", ["mesh", "plain"])
def test_the_agents_ports_give_nothing_to_pods(lab: Lab, server: str, namespace: str, mark: int) -> None:
    own, own6 = (ip(lab, "rogue", namespace, family) for family in (0, 1))
    node, other = lab.node("n1"), lab.node("n2")
    agents = [(address, port) for address in (own, own6, "127.0.0.1", "127.9.8.7", "::1") for port in (15001, 15006)]
    agents += [(address, 15008) for address in ("127.0.0.1", "::1")]
    agents += [(address, port) for address in (server, ip(lab, "client")) for port in (15001, 15006)]
    agents += [(machine.address4, port) for machine in (node, other) for port in (15000, 15001, 15006, 15008, 15012)]
    agents += [(lab.layout.control_addresses[0], port) for port in (15000, 15010, 15017)]
    for wanted, (how, heard) in zip(agents, dials(lab, "rogue", namespace, *agents, mark=mark), strict=True):
        assert not heard and how != "TimeoutError", (wanted, how, heard)


def test_without_the_connect_hook_the_ports_are_closed_too(lab: Lab) -> None:
    """A process of the pod's netns outside of its cgroup, as after an escape: the SYN is judged."""
    place, own = in_pod(lab, "rogue", "mesh"), ip(lab, "rogue")
    for address, port in (("127.0.0.1", 15001), ("127.3.2.1", 15006), (own, 15006), ("::1", 15008)):
        with pytest.raises(ConnectionRefusedError):
            place.dial(address, port)


def test_the_listeners_own_ports_lead_nowhere(lab: Lab, server: str) -> None:
    """/proc/net/tcp tells them to everybody in the pod."""
    listing = lab.exec("rogue", ["ss", "-Htln"], namespace="mesh", check=True).stdout
    found = [line.split()[3].rpartition(":") for line in listing.splitlines()]
    ports = [(address.strip("[]"), int(port)) for address, _, port in found]
    assert len(ports) == 6
    for how, heard in dials(lab, "rogue", "mesh", *ports):
        assert not heard, how
    assert reaches(lab, "rogue")


def test_the_admin_interface_is_the_nodes_own_and_metrics_are_not(lab: Lab) -> None:
    for machine in (lab.node("n1"), lab.node("n2")):
        url = f"http://{machine.address4}"
        admin = lab.exec("rogue", ["curl", "-sS", "-m", "3", f"{url}:15000/"], namespace="mesh")
        assert admin.returncode in (7, 56) and not admin.stdout, "refused, or reset by the agent of the pod"
        metrics = lab.exec("rogue", ["curl", "-sS", "-m", "3", f"{url}:15020/metrics"], namespace="mesh", check=True)
        assert "istio_build" in metrics.stdout
    assert not lab.exec("rogue", ["ls", "/run/gossamer"], namespace="mesh").stdout


# Names that are not one's own


@contextmanager
def borrowed(lab: Lab, namespace: str, *addresses: str) -> Iterator[None]:
    """Addresses of others on the rogue's own interface."""

    def change(what: str) -> None:
        for address in addresses:
            argv = ["/usr/sbin/ip", "addr", what, address, "dev", "eth0", *(["nodad"] if ":" in address else [])]
            lab.exec("rogue", argv[: None if what == "add" else 6], namespace=namespace, check=True)

    change("add")
    try:
        yield
    finally:
        change("del")


@pytest.mark.parametrize("mark", [0, ISTIO_MARK])
def test_an_enrolled_pod_speaks_in_its_own_name_whatever_address_it_takes(lab: Lab, server: str, mark: int) -> None:
    client = ip(lab, "client")
    with in_force(lab, ONLY_CLIENT, ONLY_CLIENT_KEY), borrowed(lab, "mesh", client):
        assert reaches(lab, "client")
        with agent_of(lab, "server").refuses("POLICY_NO_ALLOW", says="spiffe://cluster.local/ns/mesh/sa/rogue"):
            ((_, heard),) = dials(lab, "rogue", "mesh", (server, 9000), bound=client, mark=mark)
            assert not heard
        lines = [line for line in agent_of(lab, "rogue").log.splitlines() if "mesh/sa/rogue" in line]
        assert lines and all(f"src.addr={client}:" not in line for line in lines)
        assert reaches(lab, "client"), "whose address it is keeps it"


def test_a_pod_outside_the_mesh_gains_nothing_from_an_address(lab: Lab, server: str) -> None:
    client, client6 = ip(lab, "client"), ip(lab, "client", family=1)
    with in_force(lab, ONLY_CLIENT, ONLY_CLIENT_KEY), borrowed(lab, "plain", client, client6, server):
        for bound in (client, ""):
            for how, heard in dials(lab, "rogue", "plain", (server, 9000), (server, 15008), bound=bound):
                assert not heard, how
        assert reaches(lab, "client")


FORGED = {
    "forwarded": 'for="{client}:4711";host=server.mesh.svc.cluster.local',
    "baggage": "k8s.namespace.name=mesh,k8s.pod.name=client,service.name=client",
    "x-forwarded-for": "{client}",
    "x-forwarded-client-cert": "By=x;URI=spiffe://cluster.local/ns/mesh/sa/client",
}
OUTSIDER = SpiffeId("cluster.local", "plain", "outsider")


def test_identity_comes_from_the_certificate_and_from_no_header(lab: Lab, server: str) -> None:
    client = ip(lab, "client")
    forged = {name: value.format(client=client) for name, value in FORGED.items()}
    place, context = in_pod(lab, "outsider", "plain"), trusting(credentials(lab, OUTSIDER))
    with place.tls(server, context) as sock:
        peer = Hbone(sock=sock)
        stream = peer.request(f"{server}:9000", headers=forged)
        assert peer.status(stream) == 200
        assert peer.data(stream).decode().split()[1] == ip(lab, "outsider", "plain")
    with in_force(lab, ONLY_CLIENT, ONLY_CLIENT_KEY), place.tls(server, context) as sock:
        peer = Hbone(sock=sock)
        with agent_of(lab, "server").refuses("POLICY_NO_ALLOW", says=str(OUTSIDER)):
            assert peer.status(peer.request(f"{server}:9000", headers=forged)) == 401


def test_a_tunnel_leads_to_its_own_pod_and_to_no_port_of_the_agents(lab: Lab, server: str) -> None:
    server6, client, node = ip(lab, "server", family=1), ip(lab, "client"), lab.node("n2")
    expected = {
        f"{server}:9000": 200,
        f"[::ffff:{server}]:9000": 200,  # the same address
        "server.mesh.svc.cluster.local:80": 200,
        f"{client}:9000": 400,
        f"[{server6}]:9000": 400,  # the pod's, but not the one that was dialled
        f"{node.address4}:15020": 400,
        "127.0.0.1:9000": 400,
        "[::1]:9000": 400,
        "[::ffff:127.0.0.1]:9000": 400,
        "0.0.0.0:9000": 400,
        "2130706433:9000": 400,
        "169.254.169.254:80": 400,
        f"{server}:0": 400,
        f"{server}:65536": 400,
        f"{server}": 400,
        f"user@{server}:9000": 400,
        "x" * 300 + ":80": 400,
        "localhost:9000": 503,
        "server.mesh.svc.cluster.local:9000": 503,  # no such service port
        "kubernetes.default.svc.cluster.local:443": 503,
        f"{server}:15001": 503,
        f"{server}:15006": 503,
        f"{server}:15008": 503,
        f"{server}:9": 503,  # nobody listens
    }
    context = trusting(credentials(lab, OUTSIDER))
    with in_pod(lab, "outsider", "plain").tls(server, context) as sock:
        peer = Hbone(sock=sock)
        found = {}
        for authority in expected:
            try:
                found[authority] = peer.status(peer.request(authority))
            except ConnectionError as error:
                found[authority] = str(error)
        assert found == expected
        assert peer.status(peer.request(f"{server}:9000", method="GET")) == 400


def test_strict_is_closed_to_plaintext_by_every_way_in(lab: Lab, server: str) -> None:
    """Through the Service, from the node, by hairpin (masqueraded as the node), from the same node, to any port."""
    vip = lab.objects()[Key("Service", "mesh", "server")]["spec"]["clusterIP"]
    with in_force(lab, STRICT, STRICT_KEY):
        for namespace, source in (("plain", "rogue"), ("plain", "outsider")):
            for how, heard in dials(lab, source, namespace, (vip, 80), (server, 9000), (server, 22)):
                assert not heard, how
        for node in ("node/n1", "node/n2"):
            for address in (f"{server}:9000", f"{vip}:80"):
                assert not lab.exec(node, ["curl", "-sS", "-m", "5", f"telnet://{address}"]).stdout
        assert reaches(lab, "client")
        own = in_pod(lab, "server", "mesh")  # outside of the pod's cgroup: not captured, and masqueraded
        with suppress(ConnectionError), own.dial(vip, 80) as sock:
            assert sock.recv(100) == b""


def test_a_pod_that_destroys_the_agents_sockets_harms_only_itself(lab: Lab) -> None:
    """NET_ADMIN may (sock_diag's SOCK_DESTROY); the agent comes back to it by itself, and is not kept busy."""
    agent = agent_of(lab, "server")

    def destroy() -> None:
        for _ in range(6):  # the listing that ss goes by ends early when what it lists is gone
            lab.exec("rogue2", ["ss", "-K", "-t", "state", "listening"], namespace="mesh")

    with talk(lab, "client") as bystander, undisturbed(bystander, agent):
        with agent.logs("destroyed the agent's listeners"):
            destroy()
        until(lambda: agent.idle)
        until(lambda: enrolled(lab, "rogue2", "mesh"))
        until(lambda: reaches(lab, "rogue2"))


def test_nobody_stumbled(lab: Lab) -> None:
    """After all of the above."""
    for target in ("node/n1", "node/n2", "controller"):
        text = lab.logs(target).read_text()
        assert "Traceback" not in text, text
        assert "INTERNAL" not in text
