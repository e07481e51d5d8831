"""The mesh end to end: real agents and controller, real processes, policy and enrolment as they change."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key
from tests.lab.objects import namespace, node, pod, service
from tests.lab.talk import SERVER, applied, ask, ip, ips, listed, live, reaches, talk, until

CLUSTER = (
    namespace("mesh", ambient=True, direct=False)
    + namespace("plain")
    + node("n1")
    + node("n2")
    + service("server", "mesh")
    + pod("server", "mesh", "n2", SERVER)
    + pod("client", "mesh", "n1")
    + pod("neighbour", "mesh", "n2")
    + pod("outsider", "plain", "n1")
    + pod("legacy", "plain", "n1", SERVER)
)

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


@pytest.mark.parametrize("source", ["client", "neighbour"])
@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_enrolled_pods_talk_through_the_tunnel_under_their_identities(lab: Lab, source: str, family: int) -> None:
    with talk(lab, source, to=ip(lab, "server", family=family), port=9000) as conversation:
        assert conversation.seen_as == ip(lab, source, family=family)
        assert conversation.says("hello") == "got hello"
        text = json.dumps(listed(lab, "n2", source, "inbound"))
        assert f"spiffe://cluster.local/ns/mesh/sa/{source}" in text
        assert "spiffe://cluster.local/ns/mesh/sa/server" in text
        assert "15008" in text


def test_the_service_is_reached_by_name_and_the_real_client_is_seen(lab: Lab) -> None:
    with talk(lab, "client") as conversation:
        assert conversation.seen_as in ips(lab, "client")
        assert "server.mesh.svc.cluster.local" in json.dumps(listed(lab, "n1", "client", "outbound"))


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
            assert reaches(lab, "client")  # the new agent has the keys from the old one
            lab.kill_agent("n1")
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
