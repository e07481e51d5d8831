"""The mesh end to end: real agents and controller, real processes, policy and enrolment as they change."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from deploy.lab import agents
from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key

SERVER = """
import os, socket, socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        host = self.client_address[0].removeprefix("::ffff:")
        self.wfile.write(f"{os.getpid()} {host}\\n".encode())
        for line in self.rfile:
            self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address, daemon_threads = socket.AF_INET6, True, True
Server(("::", 9000), Handler).serve_forever()
"""
# Each line in, each answer out; the end and what it was.
CLIENT = """
import socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
    file = s.makefile("rwb")
    greeting = file.readline()
    if not greeting: raise EOFError("closed at once")
    print("open", greeting.decode().strip(), flush=True)
    s.settimeout(0.2)
    import select
    while True:
        ready, _, _ = select.select([s, sys.stdin], [], [], 60)
        if s in ready:
            s.settimeout(None); got = s.recv(4096)
            if not got: raise EOFError("closed")
            print("got", got.decode().strip(), flush=True)
        if sys.stdin in ready:
            line = sys.stdin.readline()
            if not line: break
            s.sendall(line.encode())
    print("end OK", flush=True)
except Exception as error:
    print("end", type(error).__name__, error, flush=True)
"""


def pod(name: str, namespace: str, node: str, program: str = "") -> str:
    command = json.dumps(["/usr/bin/python3", "-S", "-u", "-c", program] if program else ["sleep", "infinity"])
    probe = ", readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}" if program else ""
    return f"""
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  containers: [{{name: main, command: {command}{probe}}}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}, namespace: {namespace}}}
"""


CLUSTER = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: mesh, labels: {{istio.io/dataplane-mode: ambient}}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: plain}}
---
apiVersion: v1
kind: Node
metadata: {{name: n1}}
---
apiVersion: v1
kind: Node
metadata: {{name: n2}}
---
apiVersion: v1
kind: Service
metadata: {{name: server, namespace: mesh}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: server}}
  ports: [{{port: 80, targetPort: 9000}}]
{pod("server", "mesh", "n2", SERVER)}
{pod("client", "mesh", "n1")}
{pod("neighbour", "mesh", "n2")}
{pod("outsider", "plain", "n1")}
{pod("legacy", "plain", "n1", SERVER)}
"""
SERVICE = "server.mesh"

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: mesh}
spec: {mtls: {mode: STRICT}}
"""
STRICT_KEY = Key("PeerAuthentication", "mesh", "strict")
ONLY_NEIGHBOUR = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-neighbour, namespace: mesh}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules:
    - from: [{source: {principals: [cluster.local/ns/mesh/sa/neighbour]}}]
      to: [{operation: {ports: ["9000"]}}]
"""
ONLY_NEIGHBOUR_KEY = Key("AuthorizationPolicy", "mesh", "only-neighbour")
AMBIENT = "istio.io/dataplane-mode"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(CLUSTER)


def until(what: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def ask(lab: Lab, node: str, target: str) -> Any:
    return agents.ask_socket(agents.admin_socket(lab.layout, node), target)


class Talk:
    """One long connection of a process in a pod."""

    def __init__(self, lab: Lab, source: str, namespace: str, to: str, port: int) -> None:
        command = ["/usr/bin/python3", "-S", "-u", "-c", CLIENT, to, str(port)]
        self.process: subprocess.Popen[str] = lab.popen(source, command, namespace=namespace, pipe_input=True)
        self.greeting = self.heard()

    @property
    def is_open(self) -> bool:
        return self.greeting.startswith("open ")

    @property
    def server_pid(self) -> str:
        return self.greeting.split()[1]

    @property
    def seen_as(self) -> str:
        """The client's address as the server saw it."""
        return self.greeting.split()[2]

    def heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def says(self, text: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.heard()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def talk(lab: Lab, source: str, namespace: str = "mesh", to: str = SERVICE, port: int = 80) -> Iterator[Talk]:
    conversation = Talk(lab, source, namespace, to, port)
    try:
        yield conversation
    finally:
        conversation.close()


def reaches(lab: Lab, source: str, namespace: str = "mesh", to: str = SERVICE, port: int = 80) -> bool:
    with talk(lab, source, namespace, to, port) as conversation:
        return conversation.is_open


def ip(lab: Lab, name: str, namespace: str = "mesh", family: int = 0) -> str:
    return str(lab.pod(name, namespace)["status"]["podIPs"][family]["ip"])


def ips(lab: Lab, name: str, namespace: str = "mesh") -> list[str]:
    return [entry["ip"] for entry in lab.pod(name, namespace)["status"]["podIPs"]]


@contextmanager
def applied(lab: Lab, text: str, key: Key) -> Iterator[None]:
    lab.apply({"policy.yaml": text})
    try:
        yield
    finally:
        lab.delete([key])


def live(lab: Lab, node: str, source: str) -> list[dict[str, Any]]:
    found = ask(lab, node, "/connections")["connections"]
    return [c for c in found if c["source"]["pod"] == source]


@pytest.mark.parametrize("source", ["client", "neighbour"])
@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_enrolled_pods_talk_through_the_tunnel_under_their_identities(lab: Lab, source: str, family: int) -> None:
    with talk(lab, source, to=ip(lab, "server", family=family), port=9000) as conversation:
        assert conversation.seen_as == ip(lab, source, family=family)
        assert conversation.says("hello") == "got hello"
        (arrived,) = [c for c in live(lab, "n2", source) if c["direction"] == "inbound"]
        text = json.dumps(arrived)
        assert f"spiffe://cluster.local/ns/mesh/sa/{source}" in text
        assert "spiffe://cluster.local/ns/mesh/sa/server" in text
        assert "15008" in text


def test_the_service_is_reached_by_name_and_the_real_client_is_seen(lab: Lab) -> None:
    with talk(lab, "client") as conversation:
        assert conversation.seen_as in ips(lab, "client")
        (left,) = [c for c in live(lab, "n1", "client") if c["direction"] == "outbound"]
        assert "server.mesh.svc.cluster.local" in json.dumps(left)


def test_plaintext_is_permitted_until_strict_and_an_open_one_is_closed_then(lab: Lab) -> None:
    with talk(lab, "outsider", "plain") as outsider, talk(lab, "client") as client:
        assert outsider.seen_as in ips(lab, "outsider", "plain")
        assert outsider.says("still here") == "got still here"
        with applied(lab, STRICT, STRICT_KEY):
            assert outsider.heard().startswith("end ConnectionResetError")
            assert not reaches(lab, "outsider", "plain")
            assert not reaches(lab, "outsider", "plain", ip(lab, "server"), 9000)
            assert not reaches(lab, "neighbour", to=ip(lab, "server"), port=15006)
            assert client.says("through the tunnel") == "got through the tunnel"
            assert reaches(lab, "client")
            # The kubelet's probe is neither captured nor refused.
            until(lambda: lab.pod("server", "mesh")["status"]["conditions"])
            assert {"type": "Ready", "status": "True"} in lab.pod("server", "mesh")["status"]["conditions"]
        until(lambda: reaches(lab, "outsider", "plain"))


def test_the_nodes_own_processes_are_plaintext_peers(lab: Lab) -> None:
    command = ["curl", "-sS", "-m", "5", f"telnet://{ip(lab, 'server')}:9000"]
    assert lab.exec("node/n2", command).stdout
    with applied(lab, STRICT, STRICT_KEY):
        until(lambda: not lab.exec("node/n2", command).stdout)
    until(lambda: lab.exec("node/n2", command).stdout)


def test_an_authorization_policy_is_enforced_and_open_connections_are_judged_anew(lab: Lab) -> None:
    with talk(lab, "client") as client, talk(lab, "neighbour") as neighbour:
        assert client.is_open
        with applied(lab, ONLY_NEIGHBOUR, ONLY_NEIGHBOUR_KEY):
            assert client.heard().startswith("end ConnectionResetError")
            assert not reaches(lab, "client")
            assert not reaches(lab, "outsider", "plain")
            assert reaches(lab, "neighbour")
            assert neighbour.says("allowed") == "got allowed"
        until(lambda: reaches(lab, "client"))


def enrolled(lab: Lab, name: str, namespace: str) -> bool:
    node = lab.pod(name, namespace)["spec"]["nodeName"]
    pods = ask(lab, node, "/status")["pods"]
    return any(p["name"] == name and p["namespace"] == namespace and p["state"] == "enabled" for p in pods)


def test_enrolment_flips_on_a_running_pod_and_its_open_connections_go_on(lab: Lab) -> None:
    key = Key("Pod", "plain", "legacy")
    before = lab.pod("legacy", "plain")
    with talk(lab, "client", to=ip(lab, "legacy", "plain"), port=9000) as older:
        assert not enrolled(lab, "legacy", "plain")
        lab.label(key, {AMBIENT: "ambient"})
        until(lambda: enrolled(lab, "legacy", "plain"))
        assert older.says("older") == "got older"
        listed = ask(lab, "n1", "/connections")["older"]
        assert any(f"{ip(lab, 'legacy', 'plain')}:9000" in json.dumps(c) for c in listed)

        def tunnelled() -> bool:
            with talk(lab, "client", to=ip(lab, "legacy", "plain"), port=9000) as new:
                assert new.server_pid == older.server_pid
                inbound = [c for c in live(lab, "n1", "client") if c["direction"] == "inbound"]
                return "spiffe://cluster.local/ns/plain/sa/legacy" in json.dumps(inbound)

        until(tunnelled)
        with talk(lab, "client", to=ip(lab, "legacy", "plain"), port=9000) as younger:
            lab.label(key, {AMBIENT: None})
            until(lambda: not enrolled(lab, "legacy", "plain"))
            assert younger.says("goes on") == "got goes on"
            assert older.says("too") == "got too"
            until(lambda: reaches(lab, "client", to=ip(lab, "legacy", "plain"), port=9000))
    assert lab.pod("legacy", "plain")["metadata"]["uid"] == before["metadata"]["uid"]


def test_a_connection_older_than_the_enrolment_that_policy_forbids_is_closed(lab: Lab) -> None:
    key = Key("Pod", "plain", "legacy")
    strict = STRICT.replace("namespace: mesh", "namespace: plain")
    with (
        talk(lab, "client", to=ip(lab, "legacy", "plain"), port=9000) as older,
        applied(lab, strict, Key("PeerAuthentication", "plain", "strict")),
    ):
        assert older.says("not enrolled, not refused") == "got not enrolled, not refused"
        lab.label(key, {AMBIENT: "ambient"})
        try:
            assert older.heard().startswith("end ConnectionResetError")
            until(lambda: reaches(lab, "client", to=ip(lab, "legacy", "plain"), port=9000))
        finally:
            lab.label(key, {AMBIENT: None})
            until(lambda: not enrolled(lab, "legacy", "plain"))


def test_without_its_agent_an_enrolled_pod_is_closed_and_after_a_restart_it_works_again(lab: Lab) -> None:
    assert reaches(lab, "client")
    lab.kill_agent("n1")
    try:
        assert not reaches(lab, "client")
        assert not reaches(lab, "client", to=ip(lab, "server"), port=9000)
        assert not reaches(lab, "client", to=ip(lab, "legacy", "plain"), port=9000)
        assert reaches(lab, "outsider", "plain")
    finally:
        lab.restart_agent("n1")
    until(lambda: reaches(lab, "client"))


def test_without_the_destinations_agent_nothing_comes_in(lab: Lab) -> None:
    lab.kill_agent("n2")
    try:
        assert not reaches(lab, "client")
        assert not reaches(lab, "outsider", "plain", ip(lab, "server"), 9000)
    finally:
        lab.restart_agent("n2")
    until(lambda: reaches(lab, "client") and reaches(lab, "outsider", "plain"))


def test_the_data_plane_works_while_the_controller_is_away(lab: Lab) -> None:
    with talk(lab, "client") as before:
        lab.kill_controller()
        try:
            assert before.says("still") == "got still"
            assert reaches(lab, "client")
            lab.restart_agent("n1")
            # Keys are on no disk, so this agent has no certificate; what needs none works from the copy on disk,
            # and what needs one is refused, not sent in plaintext.
            until(lambda: reaches(lab, "client", to=ip(lab, "legacy", "plain"), port=9000))
            assert not reaches(lab, "client")
        finally:
            lab.restart_controller()
    until(lambda: reaches(lab, "client"))
    until(lambda: enrolled(lab, "client", "mesh"))


def test_a_graceful_stop_lets_open_connections_finish(lab: Lab) -> None:
    with talk(lab, "client") as conversation:
        stopping = time.monotonic()
        lab.restart_agent("n1")
        assert conversation.heard().startswith("end ")
        assert time.monotonic() - stopping > 4, "the drain deadline was not waited for"
    until(lambda: reaches(lab, "client"))


def test_a_pod_made_again_under_its_name_is_another_pod(lab: Lab) -> None:
    text = pod("transient", "mesh", "n1", SERVER)
    keys = [Key("Pod", "mesh", "transient"), Key("ServiceAccount", "mesh", "transient")]
    for _ in range(2):
        lab.apply({"transient.yaml": text})
        address = ip(lab, "transient")
        until(lambda address=address: reaches(lab, "neighbour", to=address, port=9000))
        lab.delete(keys)
        until(lambda: all(p["name"] != "transient" for p in ask(lab, "n1", "/status")["pods"]))
        assert not reaches(lab, "neighbour", to=address, port=9000)


def test_a_pod_deleted_while_no_agent_ran_is_released(lab: Lab) -> None:
    lab.apply({"transient.yaml": pod("transient", "mesh", "n1", SERVER)})
    until(lambda: enrolled(lab, "transient", "mesh"))
    lab.kill_agent("n1")
    try:
        lab.delete([Key("Pod", "mesh", "transient"), Key("ServiceAccount", "mesh", "transient")])
    finally:
        lab.restart_agent("n1")
    until(lambda: reaches(lab, "client"))
    assert "is gone since the last run" in lab.logs("node/n1").read_text()
    maps = {m["name"]: m["entries"] for m in ask(lab, "n1", "/bpf")["maps"]}
    assert maps["pods"] == 1, "of n1's pods the client alone is enrolled"


def test_nobody_stumbled(lab: Lab) -> None:
    """After all of the above."""
    for target in ("node/n1", "node/n2", "controller"):
        text = lab.logs(target).read_text()
        assert "Traceback" not in text, text
        assert "INTERNAL" not in text
