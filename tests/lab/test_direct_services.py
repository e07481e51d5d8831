"""Services with endpoints on this node and elsewhere: drawn in the kernel, spread as without it, dialled directly where
that is possible, named by what was dialled; as endpoints and agents come and go."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from deploy.lab import agents
from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key
from tests.lab.objects import namespace, node, pod, service
from tests.lab.talk import applied, ask, ip, until
from tests.lab.test_direct import ON, POLICY

# Told to stop, it serves a while longer: whoever has drawn it by then is answered.
SERVER = """
import os, signal, socket, socketserver, threading
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(f"%s {self.client_address[0].removeprefix('::ffff:')}".encode())
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address, daemon_threads, request_queue_size = socket.AF_INET6, True, True, 512
signal.signal(signal.SIGTERM, lambda *_: threading.Timer(8, os._exit, [0]).start())
Server(("::", 9000), Handler).serve_forever()
"""
# Dials so often, or until a line comes; then tells who answered, and what getpeername() and the servers said.
DIALLER = """
import collections, json, socket, sys, threading
address, times = sys.argv[1], int(sys.argv[2])
answered, shown, seen = (collections.Counter() for _ in range(3))
over, lock = threading.Event(), threading.Lock()
def dial():
    while not over.is_set():
        with lock:
            if times and sum(answered.values()) >= times: return
            answered["pending"] += 1
        who = "pending"
        try:
            with socket.create_connection((address, 80), timeout=30) as s:
                peer, own = s.getpeername()[:2], s.getsockname()[0]
                who, _, client = b"".join(iter(lambda: s.recv(100), b"")).decode().partition(" ")
                who = who or "closed"
        except OSError as error:
            peer, own, client, who = "", "", "", type(error).__name__
        with lock:
            answered["pending"] -= 1
            answered[who] += 1
            if client:
                shown[f"{peer[0]} {peer[1]}"] += 1
                seen[f"{client == own} {client}"] += 1
threads = [threading.Thread(target=dial) for _ in range(4)]
for thread in threads: thread.start()
if not times:
    print("dialling", flush=True)
    sys.stdin.readline()
    over.set()
for thread in threads: thread.join()
print(json.dumps([+answered, shown, seen]))
"""
NEAR, FAR = ("near1", "near2"), "far"
CLUSTER = (
    namespace("mesh", ambient=True)
    + node("n1")
    + node("n2")
    + service("web", "mesh")
    + "".join(pod(name, "mesh", "n1", SERVER % name, labels={"app": "web", "name": name}) for name in NEAR)
    + pod(FAR, "mesh", "n2", SERVER % FAR, labels={"app": "web", "name": FAR})
    + pod("client", "mesh", "n1")
)
CRITICAL = 36.8  # of chi-square with two degrees of freedom, exceeded by chance once in a hundred million times


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(CLUSTER)
    for name in ("n1", "n2"):
        made.restart_agent(name, arguments=ON)
    until(lambda: endpoints(made, "n1") == {*NEAR, FAR})
    until(lambda: all(f"{name} DIRECT" in protocols(made) for name in NEAR))
    return made


def endpoints(lab: Lab, name: str) -> set[str]:
    """Healthy ones of the Service, as the agent of a node knows them."""
    found = ask(lab, name, "/workloads") or {"workloads": []}
    return {w["name"] for w in found["workloads"] if w["services"] and w["status"] == "HEALTHY"}


def vips(lab: Lab) -> list[str]:
    (found,) = [s for s in ask(lab, "n1", "/services")["services"] if s["name"] == "web"]
    return sorted(found["addresses"], key=lambda ip: ":" in ip)


def command(address: str, times: int) -> list[str]:
    return ["/usr/bin/python3", "-S", "-c", DIALLER, address, str(times)]


def dial(lab: Lab, address: str, times: int, source: str = "client") -> tuple[Counter[str], set[str], set[str]]:
    """Who answered how often; what getpeername() showed; whether the servers saw whom the client is, and whom."""
    done = lab.exec(source, command(address, times), namespace="mesh", check=True)
    answered, shown, seen = json.loads(done.stdout)
    if source == "client":
        dialled[lab.name] += times
    return Counter(answered), set(shown), set(seen)


def protocols(lab: Lab) -> set[str]:
    """`POD PROTOCOL` of each way that some connections took, by the metrics of their source's agent."""
    dial(lab, vips(lab)[0], 20)
    return set(counted(lab))


def counted(lab: Lab) -> Counter[str]:
    """Connections from the client that have ended, by destination, and protocol; all to the Service that was dialled,
    by both reporters of what is direct."""
    text = lab.exec("node/n1", ["curl", "-sS", "http://127.0.0.1:15020/metrics"], check=True).stdout
    found: dict[str, Counter[str]] = {"source": Counter(), "destination": Counter()}
    for line in text.splitlines():
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
        if line.startswith("istio_tcp_connections_closed_total") and labels["source_workload"] == "client":
            direct = labels["connection_security_policy"] == "unknown"
            who = f"{labels['destination_workload']} {'DIRECT' if direct else 'HBONE'}"
            assert labels["destination_service"] == "web.mesh.svc.cluster.local", labels
            assert labels["response_flags"] == "-" or not direct, labels
            found[labels["reporter"]][who] += int(float(line.rpartition(" ")[2]))
    direct = {who: n for who, n in found["source"].items() if who.endswith("DIRECT")}
    return found["source"] if direct.items() <= found["destination"].items() else Counter()


dialled: Counter[str] = Counter()  # by the client of a lab, since its agents have been there


def settled(lab: Lab) -> Counter[str]:
    """What is counted once all that has ended is; of what is direct it is told twice a second."""
    until(lambda: sum(counted(lab).values()) == dialled[lab.name])
    return counted(lab)


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_connections_are_spread_evenly_and_directly_where_that_is_possible(lab: Lab, family: int) -> None:
    vip, before = vips(lab)[family], settled(lab)
    answered, shown, seen = dial(lab, vip, 420)
    assert answered.keys() == {*NEAR, FAR}
    assert sum((n - 140) ** 2 / 140 for n in answered.values()) < CRITICAL, answered
    assert shown == {f"{vip} 80"}
    assert {address.split()[1] for address in seen} == {ip(lab, "client", family=family)}
    ways = {name: f"{name} {'HBONE' if name == FAR else 'DIRECT'}" for name in answered}
    assert settled(lab) == before + Counter({ways[name]: n for name, n in answered.items()})


def test_a_pod_of_the_service_reaches_it_and_itself(lab: Lab) -> None:
    for family, vip in enumerate(vips(lab)):
        answered, shown, seen = dial(lab, vip, 60, source="near1")
        assert answered.keys() == {*NEAR, FAR}
        assert shown == {f"{vip} 80"}
        assert {address.split()[1] for address in seen} == {ip(lab, "near1", family=family)}


def test_each_endpoint_has_its_policy(lab: Lab) -> None:
    """The one that refuses is drawn no less often: its share ends in a reset."""
    deny = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: policy, namespace: mesh}
spec:
  selector: {matchLabels: {name: near2}}
  action: DENY
  rules:
    - from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]
"""
    refused = {"ConnectionResetError", "closed"}
    with applied(lab, deny, POLICY):
        until(lambda: dial(lab, vips(lab)[0], 20)[0].keys() & refused)
        answered, _, _ = dial(lab, vips(lab)[0], 300)
        assert {"near1", FAR} <= answered.keys() <= {"near1", FAR} | refused
        lost = sum(n for who, n in answered.items() if who in refused)
        assert sum((n - 100) ** 2 / 100 for n in (answered["near1"], answered[FAR], lost)) < CRITICAL, answered
        assert "POLICY_DENY: denied by mesh/policy" in lab.logs("node/n1").read_text()
    until(lambda: dial(lab, vips(lab)[0], 30)[0].keys() == {*NEAR, FAR})


@contextmanager
def dialling(lab: Lab, address: str) -> Iterator[Callable[[], Counter[str]]]:
    """Connections without end; what is given ends them, and tells who answered."""
    process: subprocess.Popen[str] = lab.popen("client", command(address, 0), namespace="mesh", pipe_input=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "dialling\n"

    def end() -> Counter[str]:
        out, _ = process.communicate("\n", timeout=60)
        return Counter(json.loads(out)[0])

    try:
        yield end
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_endpoints_come_and_go_and_no_connection_fails(lab: Lab, family: int) -> None:
    vip, every = vips(lab)[family], {*NEAR, FAR}
    with dialling(lab, vip) as end:
        for _ in range(2):
            for name in (*NEAR, FAR):
                lab.label(Key("Pod", "mesh", name), {"app": "resting"})
                until(lambda gone=name: endpoints(lab, "n1") == every - {gone})
                assert dial(lab, vip, 30)[0].keys() <= every - {name}, "drawn after the swap"
                lab.label(Key("Pod", "mesh", name), {"app": "web"})
                until(lambda: endpoints(lab, "n1") == every)
        answered = end()
    assert answered.keys() == every, answered
    until(lambda: dial(lab, vip, 30)[0].keys() == every)


def test_a_pod_that_ends_is_drawn_no_more_and_a_new_one_is(lab: Lab) -> None:
    labels = {"app": "web", "name": "near3"}
    text = pod("near3", "mesh", "n1", SERVER % "near3", labels=labels, terminationGracePeriodSeconds=30)
    with dialling(lab, vips(lab)[0]) as end:
        lab.apply({"near3.yaml": text})
        until(lambda: "near3" in dial(lab, vips(lab)[0], 30)[0])
        until(lambda: "near3 DIRECT" in protocols(lab))
        lab.delete([Key("Pod", "mesh", "near3"), Key("ServiceAccount", "mesh", "near3")])
        until(lambda: "near3" not in endpoints(lab, "n1"))
        assert "near3" not in dial(lab, vips(lab)[0], 40)[0]
        answered = end()
    assert answered.keys() == {*NEAR, "near3", FAR}, answered


def test_without_the_agent_the_endpoints_of_the_node_serve(lab: Lab) -> None:
    lab.kill_agent("n1")
    try:
        for vip in vips_of(lab):
            answered, shown, _ = dial(lab, vip, 60)
            assert answered.keys() == set(NEAR), answered
            assert shown == {f"{vip} 80"}
    finally:
        if agents.ask_socket(agents.admin_socket(lab.layout, "n1"), "/status") is None:
            lab.restart_agent("n1", arguments=ON)
    until(lambda: dial(lab, vips(lab)[0], 30)[0].keys() == {*NEAR, FAR})


def vips_of(lab: Lab) -> list[str]:
    """As the cluster has them; no agent is asked."""
    spec: dict[str, Any] = lab.objects()[Key("Service", "mesh", "web")]["spec"]
    return list(spec["clusterIPs"])


def test_nobody_stumbled(lab: Lab) -> None:
    """After all of the above."""
    for target in ("node/n1", "node/n2", "controller"):
        text = lab.logs(target).read_text()
        assert "Traceback" not in text, text
        assert "INTERNAL" not in text
    counters = {c["reason"]: c["count"] for c in ask(lab, "n1", "/bpf")["counters"]}
    assert not counters["MISMATCH"], json.dumps(counters)
