"""The table of policy (tests/policy_cases.yaml) in the mesh: real objects, real connections, from the same node, where
they are direct once somebody asked, and from another, by the tunnel; and what the agent says of each."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key
from tests import policy_cases
from tests.lab.objects import document, namespace, node, pod
from tests.lab.talk import ask, ips, until
from tests.lab.test_direct import ON
from tests.policy_cases import CASES, LABELS, NAMESPACES, OUTSIDE, PORTS, Addresses, Case, Flow, Outcome

SERVER = f"""
import selectors, socket
ready = selectors.DefaultSelector()
for port in {(9000, *PORTS)}:
    ready.register(socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128), 1)
kept = []
while True:
    for key, _ in ready.select():
        kept[:-500] = []
        kept.append(key.fileobj.accept()[0])
        try: kept[-1].sendall(b"welcome")
        except OSError: pass
"""
# A list of addresses in, one of [whether it was welcome, own port] out; what is open stays so until the next list.
DIALLER = """
import errno, json, os, socket, sys
kept = []
def dial(address, port):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    kept.append(s)
    s.setblocking(False)  # a reset may come before a connect() that waits returns: no port would be known
    code = s.connect_ex((address, port))
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, os.strerror(code))
    own = s.getsockname()[1]
    s.settimeout(30)
    try:
        return s.recv(100) == b"welcome", own
    except ConnectionError:
        return (False, own) if own else dial(address, port)
for line in sys.stdin:
    kept.clear()
    print(json.dumps([dial(*to) for to in json.loads(line)]), flush=True)
"""
SOURCES = ("client", "other", "outsider")
FAR = "-far"
CLUSTER = (
    namespace("shop", ambient=True)
    + namespace("web", ambient=True)
    + namespace("plain")
    + node("n1")
    + node("n2")
    + "".join(pod(name, NAMESPACES[name], "n1", SERVER, labels=labels) for name, labels in LABELS.items())
    + "".join(pod(name, NAMESPACES[name], "n1") for name in SOURCES)
    + "".join(pod(name + FAR, NAMESPACES[name], "n2", serviceAccountName=name) for name in SOURCES)
)


@dataclass(frozen=True, slots=True)
class Dialled:
    flow: Flow
    client: str  # its address and port
    welcome: bool


@dataclass(kw_only=True)
class Side:
    """Where flows begin: on the servers' node, or on the other. `addresses` are the table's, for sources there."""

    lab: Lab
    suffix: str
    addresses: Addresses
    diallers: dict[str, subprocess.Popen[str]]

    def dial(self, case: Case) -> list[Dialled]:
        """Every flow of the case; they stay open until the next call."""
        found = []
        for source, dialler in self.diallers.items():
            flows = [flow for flow in case.flows if flow.source == source]
            assert dialler.stdin is not None and dialler.stdout is not None
            dialler.stdin.write(json.dumps([(self.addresses[f.destination][f.family], f.port) for f in flows]) + "\n")
            dialler.stdin.flush()
            answer = dialler.stdout.readline()
            assert answer, dialler.communicate()[1]
            for flow, (welcome, port) in zip(flows, json.loads(answer), strict=True):
                ip = self.addresses[source][flow.family]
                found.append(Dialled(flow, f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}", welcome))
        return found

    def check(self, case: Case) -> None:
        self.dial(case)  # who goes through the tunnel asks for the next one
        offset = len(self.log())
        dialled = self.dial(case)
        assert [d for d in dialled if d.welcome is not case.flows[d.flow].allow] == []
        permitted = {d.client: d.flow for d in dialled if d.welcome}
        listed: dict[str, tuple[str, str]] = {}

        def told() -> bool:
            """Direct ones a moment later."""
            connections = ask(self.lab, "n1", "/connections")["connections"]
            inbound = (c for c in connections if c["direction"] == "inbound")
            listed.update({c["source"]["address"]: (c["protocol"], c["policy"] or "") for c in inbound})
            return listed.keys() >= permitted.keys()

        until(told)
        for client, flow in permitted.items():
            assert listed[client] == (self.protocol(case, flow), case.flows[flow].policy), flow
        for d in dialled:
            if not d.welcome:
                until(lambda d=d: self.refused(d.client, case.flows[d.flow], self.log()[offset:]))

    def protocol(self, case: Case, flow: Flow) -> str:
        if flow.source == OUTSIDE:
            return "TCP"
        return "DIRECT" if not self.suffix and case.whole(flow) else "HBONE"

    def log(self) -> str:
        return self.lab.logs("node/n1").read_text()

    @staticmethod
    def refused(client: str, expected: Outcome, log: str) -> bool:
        """The access log of the servers' node says so, and why."""
        said = f"denied by {expected.policy}" if expected.policy else "allow policies exist, but none allowed"
        wanted = f"{expected.reason.name}: {said}"
        lines = [line for line in log.splitlines() if f"src.addr={client} " in line and 'direction="inbound"' in line]
        assert all(wanted in line for line in lines), (expected, lines)
        return bool(lines)


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(CLUSTER)
    made.restart_agent("n1", arguments=ON)
    return made


@pytest.fixture(scope="module")
def sides(lab: Lab) -> Iterator[tuple[Side, Side]]:
    processes: list[subprocess.Popen[str]] = []

    def side(suffix: str) -> Side:
        diallers = {}
        for name in SOURCES:
            command = ["/usr/bin/python3", "-S", "-u", "-c", DIALLER]
            process = lab.popen(name + suffix, command, namespace=NAMESPACES[name], pipe_input=True)
            processes.append(process)
            diallers[name] = process
        addresses = {
            name: tuple(ips(lab, name + (suffix if name in SOURCES else ""), namespace))
            for name, namespace in NAMESPACES.items()
        }
        return Side(lab=lab, suffix=suffix, addresses=addresses, diallers=diallers)

    try:
        yield side(""), side(FAR)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def enforced(lab: Lab, name: str) -> set[str]:
    return {f"{p['namespace']}/{p['name']}" for p in ask(lab, name, "/policies")["policies"]}


@contextmanager
def in_force(lab: Lab, case: Case, addresses: Addresses) -> Iterator[None]:
    """From when both agents enforce the case's policies, and one that says they have come, until they enforce none."""
    marker = Key("AuthorizationPolicy", "plain", f"case-{CASES.index(case)}")
    metadata = {"name": marker.name, "namespace": marker.namespace}
    text = document(marker.kind, metadata, {"action": "DENY"}, "security.istio.io/v1")
    made = policy_cases.translated(case, addresses).entries.values()
    wanted = {e.policy.namespaced_name for e in made if e.policy is not None} | {f"plain/{marker.name}"}
    lab.apply({"case.yaml": case.text(addresses) + text})
    try:
        until(lambda: enforced(lab, "n1") == wanted == enforced(lab, "n2"))
        yield
    finally:
        lab.delete([*case.keys, marker])
        until(lambda: not enforced(lab, "n1") | enforced(lab, "n2"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_table(lab: Lab, sides: tuple[Side, Side], case: Case) -> None:
    near, far = sides
    with in_force(lab, case, near.addresses):
        near.check(case)
        if not case.names_addresses:
            far.check(case)
    if case.names_addresses:
        with in_force(lab, case, far.addresses):
            far.check(case)


TRIED = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-web, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [web]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-shop, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec: {rules: [{from: [{source: {namespaces: [shop]}}]}]}
"""
TRIED_KEYS = [Key("AuthorizationPolicy", "shop", name) for name in ("deny-web", "allow-shop")]


def tried(lab: Lab) -> dict[tuple[str, str], int]:
    text = lab.exec("node/n1", ["curl", "-sS", "http://127.0.0.1:15020/metrics"], check=True).stdout
    found = re.findall(r'^gossamer_dry_run_total\{policy="(\S+)",outcome="(\w+)"\} (\d+)$', text, re.M)
    return {(policy, outcome): int(count) for policy, outcome, count in found}


def test_dry_runs_are_logged_and_counted_for_direct_tunnelled_and_plain_connections(
    lab: Lab, sides: tuple[Side, Side]
) -> None:
    everybody = next(case for case in CASES if case.name == "without a policy everybody may")
    flows = len(everybody.flows)
    from_web, from_shop = (sum(f.source == name for f in everybody.flows) for name in ("client", "other"))
    lab.apply({"tried.yaml": TRIED})
    try:
        until(lambda: enforced(lab, "n1") == {"shop/deny-web", "shop/allow-shop"})
        for rounds, side in enumerate(sides, 1):
            offset = len(side.log())
            dialled = side.dial(everybody)
            assert all(d.welcome for d in dialled)
            expected = {
                ("shop/deny-web", "deny"): rounds * from_web,
                ("shop/allow-shop", "allow"): rounds * from_shop,
                ("shop/allow-shop", "not_allow"): rounds * (flows - from_shop),
            }
            until(lambda expected=expected: tried(lab) == expected)
            log = side.log()[offset:]
            assert log.count("dry-run: shop/deny-web would deny") == from_web
            assert log.count("dry-run: shop/allow-shop would allow") == from_shop
        protocols = {c["protocol"] for c in ask(lab, "n1", "/connections")["connections"]}
        assert protocols == {"DIRECT", "HBONE", "TCP"}
    finally:
        lab.delete(TRIED_KEYS)
        until(lambda: not enforced(lab, "n1"))
    until(lambda: not tried(lab))


def test_nobody_stumbled(lab: Lab) -> None:
    """After all of the above."""
    for target in ("node/n1", "node/n2", "controller"):
        text = lab.logs(target).read_text()
        assert "Traceback" not in text, text
        assert "INTERNAL" not in text
