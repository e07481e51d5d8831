"""Pods of one node, socket to socket: under policy, as it changes, and with nobody there to decide."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from deploy.lab import agents
from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key
from tests.lab.objects import namespace, node, pod
from tests.lab.talk import Talk, applied, ask, ip, talk, until

SERVER = """
import os, socket, socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        host, port, *_ = self.client_address
        self.wfile.write(f"{os.getpid()} {host.removeprefix('::ffff:')} {port}\\n".encode())
        try:
            for line in self.rfile:
                self.wfile.write(line)
            print("ended", port, "OK", flush=True)
        except OSError as error:
            print("ended", port, type(error).__name__, flush=True)
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address, daemon_threads = socket.AF_INET6, True, True
Server(("::", 9000), Handler).serve_forever()
"""
NAMES = """
import socket, sys
s = socket.create_connection((sys.argv[1], 9000), timeout=20)
greeting = s.makefile("r").readline().split()
print(s.getsockname()[:2] == (greeting[1], int(greeting[2])), s.getsockname()[0], *s.getpeername()[:2])
"""
CLUSTER = (
    namespace("mesh", ambient=True)
    + node("n1")
    + pod("server", "mesh", "n1", SERVER)
    + pod("client", "mesh", "n1")
    + pod("other", "mesh", "n1")
    + pod("tunnelled", "mesh", "n1", SERVER, labels={"gossamer.io/direct": "off"})
)


def policy(action: str, source: str) -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: policy, namespace: mesh}}
spec:
  selector: {{matchLabels: {{app: server}}}}
  action: {action}
  rules:
    - from: [{{source: {{principals: [cluster.local/ns/mesh/sa/{source}]}}}}]
"""


POLICY = Key("AuthorizationPolicy", "mesh", "policy")
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: mesh}
spec: {mtls: {mode: STRICT}}
"""
ON = ("--direct", "on")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(CLUSTER)
    made.restart_agent("n1", arguments=ON)
    return made


@contextmanager
def dialled(lab: Lab, source: str, to: str = "server") -> Iterator[Talk]:
    with talk(lab, source, to=ip(lab, to), port=9000) as conversation:
        yield conversation


def records(lab: Lab, conversation: Talk) -> list[dict[str, Any]]:
    """What the agent lists of an open connection, outbound first. Of what is direct it hears twice a second."""
    _, address, port = conversation.greeting.split()[1:]
    client = f"{address}:{port}"
    found: list[dict[str, Any]] = []

    def listed() -> bool:
        found[:] = [c for c in ask(lab, "n1", "/connections")["connections"] if c["source"]["address"] == client]
        return len(found) == 2

    until(listed)
    return sorted(found, key=lambda c: c["direction"], reverse=True)


def protocol(lab: Lab, source: str, to: str = "server") -> str:
    """By which way a new connection goes; empty: none."""
    with dialled(lab, source, to) as conversation:
        if not conversation.is_open:
            return ""
        assert conversation.says("hello") == "got hello"
        outbound, inbound = records(lab, conversation)
        assert outbound["protocol"] == inbound["protocol"]
        return str(outbound["protocol"])


def test_pods_of_a_node_talk_directly_under_their_identities(lab: Lab) -> None:
    until(lambda: protocol(lab, "client") == "DIRECT")
    with dialled(lab, "client") as conversation:
        assert conversation.says("hello") == "got hello"
        outbound, inbound = records(lab, conversation)
        assert (outbound["direction"], inbound["direction"]) == ("outbound", "inbound")
        for record in (outbound, inbound):
            assert record["protocol"] == "DIRECT"
            assert record["source"]["identity"] == "spiffe://cluster.local/ns/mesh/sa/client"
            assert record["destination"]["identity"] == "spiffe://cluster.local/ns/mesh/sa/server"
        until(lambda: records(lab, conversation)[0]["bytes_sent"] == len("hello\n"))


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_both_ends_see_the_addresses_they_would_see_without_a_mesh(lab: Lab, family: int) -> None:
    server, client = (ip(lab, name, family=family) for name in ("server", "client"))
    command = ["/usr/bin/python3", "-S", "-c", NAMES, server]
    assert lab.exec("client", command, namespace="mesh", check=True).stdout.split() == ["True", client, server, "9000"]


def test_strict_is_no_obstacle_to_an_authenticated_pod(lab: Lab) -> None:
    with dialled(lab, "client") as before, applied(lab, STRICT, Key("PeerAuthentication", "mesh", "strict")):
        until(lambda: not lab.exec("node/n1", ["curl", "-sS", "-m", "3", f"telnet://{ip(lab, 'server')}:9000"]).stdout)
        assert protocol(lab, "client") == "DIRECT"
        assert before.says("still") == "got still"
        lab.kill_agent("n1")
        lab.restart_agent("n1", arguments=ON)
        # Found by the new agent among all that the pod has, and no plaintext.
        assert [record["protocol"] for record in records(lab, before)] == ["DIRECT"] * 2
        assert before.says("after a restart") == "got after a restart"
        assert ask(lab, "n1", "/connections")["older"] == []


def test_who_is_allowed_goes_directly_once_it_has_asked_and_others_not_at_all(lab: Lab) -> None:
    with applied(lab, policy("ALLOW", "client"), POLICY):
        until(lambda: protocol(lab, "other") == "")
        until(lambda: protocol(lab, "client") == "DIRECT")
        assert protocol(lab, "other") == ""
    until(lambda: protocol(lab, "other") == "DIRECT")


def test_a_permission_that_is_lost_ends_what_is_open_in_an_error_at_both_ends(lab: Lab) -> None:
    with dialled(lab, "client") as doomed, dialled(lab, "other") as other:
        assert [record["protocol"] for record in records(lab, doomed)] == ["DIRECT"] * 2
        port = doomed.greeting.split()[3]
        began = time.monotonic()
        with applied(lab, policy("DENY", "client"), POLICY):
            assert doomed.heard().startswith("end Connection")
            assert time.monotonic() - began < 30, "far too late"
            until(lambda: f"ended {port} Connection" in lab.logs("server", namespace="mesh").read_text())
            assert protocol(lab, "client") == ""
            assert other.says("allowed") == "got allowed"
        until(lambda: protocol(lab, "client") == "DIRECT")


def test_a_label_forces_the_tunnel(lab: Lab) -> None:
    assert protocol(lab, "client", "tunnelled") == "HBONE"
    with lab_label(lab, "server"):
        until(lambda: protocol(lab, "client") == "HBONE")
    until(lambda: protocol(lab, "client") == "DIRECT")


@contextmanager
def lab_label(lab: Lab, name: str) -> Iterator[None]:
    key = Key("Pod", "mesh", name)
    lab.label(key, {"gossamer.io/direct": "off"})
    try:
        yield
    finally:
        lab.label(key, {"gossamer.io/direct": None})


def test_metrics_of_both_reporters_and_the_access_log(lab: Lab) -> None:
    with dialled(lab, "client") as conversation:
        assert conversation.says("counted") == "got counted"

    def told() -> bool:
        text = lab.exec("node/n1", ["curl", "-sS", "http://127.0.0.1:15020/metrics"], check=True).stdout
        closed = [
            line
            for line in text.splitlines()
            if line.startswith("istio_tcp_connections_closed_total")
            and 'connection_security_policy="unknown"' in line
            and 'source_principal="spiffe://cluster.local/ns/mesh/sa/client"' in line
            and 'destination_principal="spiffe://cluster.local/ns/mesh/sa/server"' in line
        ]
        return all(any(f'reporter="{end}"' in line for line in closed) for end in ("source", "destination"))

    until(told)
    client = f":{conversation.greeting.split()[3]} "

    def lines() -> list[str]:
        text = lab.logs("node/n1").read_text()
        return [line for line in text.splitlines() if client in line and "connection complete" in line]

    until(lambda: len(lines()) == 2)
    assert ['direction="outbound"' in line for line in lines()] == [True, False]
    assert all('src.identity="spiffe://cluster.local/ns/mesh/sa/client"' in line for line in lines())


def test_without_the_agent_what_is_decided_goes_on_and_all_else_is_closed(lab: Lab) -> None:
    until(lambda: protocol(lab, "client") == "DIRECT")
    with dialled(lab, "client") as before:
        records(lab, before)
        lab.kill_agent("n1")
        try:
            assert before.says("still") == "got still"
            with dialled(lab, "client") as new:
                assert new.says("new") == "got new"
                with dialled(lab, "client", "tunnelled") as closed:
                    assert not closed.is_open
                lab.restart_agent("n1", arguments=ON)
                for conversation in (before, new):
                    assert conversation.says("again") == "got again"
                    assert [record["protocol"] for record in records(lab, conversation)] == ["DIRECT"] * 2
                with applied(lab, policy("DENY", "client"), POLICY):
                    assert new.heard().startswith("end Connection")
                    assert before.heard().startswith("end Connection")
                until(lambda: protocol(lab, "client") == "DIRECT")
        finally:
            if agents.ask_socket(agents.admin_socket(lab.layout, "n1"), "/status") is None:
                lab.restart_agent("n1", arguments=ON)


def test_switched_off_nothing_is_direct(lab: Lab) -> None:
    with dialled(lab, "client") as before:
        assert records(lab, before)[0]["protocol"] == "DIRECT"
        lab.restart_agent("n1", arguments=("--direct", "off"))
        try:
            until(lambda: protocol(lab, "client") == "HBONE")
            assert before.says("still") == "got still"
            assert records(lab, before)[0]["protocol"] == "DIRECT"
        finally:
            lab.restart_agent("n1", arguments=ON)
    until(lambda: protocol(lab, "client") == "DIRECT")


def test_nobody_stumbled(lab: Lab) -> None:
    """After all of the above."""
    for target in ("node/n1", "controller"):
        text = lab.logs(target).read_text()
        assert "Traceback" not in text, text
        assert "INTERNAL" not in text
    counters = {c["reason"]: c["count"] for c in ask(lab, "n1", "/bpf")["counters"]}
    assert not counters["MISMATCH"], json.dumps(counters)
