"""The lab with the mesh in it: the demo, agents that come and go, and that nothing stays attached after `down`."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.lab import agents
from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key
from tests.lab.conftest import lab_name

_libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
_CGROUP = 3  # BPF_LINK_TYPE_CGROUP
_NETNS = 5  # BPF_LINK_TYPE_NETNS


def links() -> Iterator[tuple[int, int, int]]:
    """(id, type, what it is attached to: a cgroup's id or a network namespace's inode) of every bpf link there is."""
    number = ctypes.c_uint32(0)
    while _libbpf.bpf_link_get_next_id(number.value, ctypes.byref(number)) == 0:
        handle = _libbpf.bpf_link_get_fd_by_id(number.value)
        if handle < 0:  # gone since
            continue
        info, size = ctypes.create_string_buffer(64), ctypes.c_uint32(64)
        done = _libbpf.bpf_obj_get_info_by_fd(handle, info, ctypes.byref(size))
        os.close(handle)
        if done == 0:
            kind = struct.unpack_from("<I", info.raw)[0]
            yield number.value, kind, struct.unpack_from("<Q" if kind == _CGROUP else "<I", info.raw, 16)[0]


def attached(lab: Lab) -> set[int]:
    """Ids of the links attached to this lab's nodes and pods."""
    groups = {lab.layout.node_cgroup(node.name).stat().st_ino for node in lab.nodes()}
    spaces = {lab.netns(pod).stat().st_ino for pod in lab.pods()}
    return {
        number
        for number, kind, target in links()
        if (kind == _CGROUP and target in groups) or (kind == _NETNS and target in spaces)
    }


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "deploy.cli", "lab", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    name = lab_name()
    try:
        yield name
    finally:
        Lab(name).down()


def test_demo_shows_that_requests_are_answered_and_encrypted(name: str) -> None:
    done = cli("demo", "--name", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "encrypted, every byte" in done.stdout
    assert done.stdout.count("12 of 12 answered") == 2
    again = cli("demo", "--name", name)  # on a lab that is up
    assert again.returncode == 0, again.stdout + again.stderr


def test_status_tells_who_is_enrolled(name: str) -> None:
    state = json.loads(cli("status", "--name", name, "-o", "json").stdout)
    assert {pod["name"]: pod["enrolled"] for pod in state["pods"] if pod["name"] in ("client", "outsider")} == {
        "client": True,
        "outsider": False,
    }
    assert all(node["agent"] == "running" and node["agent_ready"] for node in state["nodes"])
    assert state["controller"] == "running" and state["refused"] == []


def test_an_agent_that_is_killed_stays_away_until_it_is_restarted(name: str) -> None:
    lab = Lab(name)
    assert cli("kill-agent", "--name", name, "n1").returncode == 0
    assert cli("kill-agent", "--name", name, "n1").returncode == 1
    assert agents.ask_socket(agents.admin_socket(lab.layout, "n1"), "/status") is None
    state = json.loads(cli("status", "--name", name, "-o", "json").stdout)
    assert {pod["enrolled"] for pod in state["pods"] if pod["node"] == "n1"} == {None}, "nobody says"
    assert {pod["enrolled"] for pod in state["pods"] if pod["node"] == "n2"} == {True, False}
    assert lab.exec("client", ["curl", "-sS", "-m", "3", "http://ratings:9080/health"]).returncode != 0
    lab.exec("client", ["curl", "-sS", "-f", "-m", "5", "http://productpage:9080/health"], check=True)  # on this node
    assert cli("restart-agent", "--name", name, "n1").returncode == 0
    lab.exec("client", ["curl", "-sS", "-f", "-m", "5", "http://ratings:9080/health"], check=True)


def test_labels_enrol_and_un_enrol_a_running_pod(name: str) -> None:
    lab = Lab(name)
    before = lab.exec("outsider", ["readlink", "/proc/1/ns/pid"], check=True).stdout
    label = "istio.io/dataplane-mode"
    for value in ("ambient", "none"):
        lab.label(Key("Pod", "default", "outsider"), {label: value})
        lab.wait(30)
        state = json.loads(cli("status", "--name", name, "-o", "json").stdout)
        assert next(pod["enrolled"] for pod in state["pods"] if pod["name"] == "outsider") is (value == "ambient")
    assert lab.exec("outsider", ["readlink", "/proc/1/ns/pid"], check=True).stdout == before


POLICY = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: wrong}\n"


def apply(name: str, text: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "deploy.cli", "lab", "apply", "--name", name, "-f", "-"]
    return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60, check=False)


def test_a_policy_that_is_refused_is_said(name: str) -> None:
    lab = Lab(name)
    try:
        done = apply(name, f"{POLICY}spec: {{action: AUDIT}}\n")
        assert done.returncode == 1
        assert "AuthorizationPolicy wrong (default): not in force: ztunnel does not support the AUDIT" in done.stderr
        state = json.loads(cli("status", "--name", name, "-o", "json").stdout)
        assert [(item["kind"], item["name"]) for item in state["refused"]] == [("AuthorizationPolicy", "wrong")]
    finally:
        lab.delete([Key("AuthorizationPolicy", "default", "wrong")])


def test_a_policy_of_which_a_part_cannot_be_enforced_is_said(name: str) -> None:
    lab = Lab(name)
    try:
        done = apply(name, f"{POLICY}spec: {{action: DENY, rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]}}\n")
        assert done.returncode == 1
        assert "AuthorizationPolicy wrong (default): not in force as written: ztunnel does not" in done.stderr
        assert "will have no effect" in cli("status", "--name", name).stdout
        mended = apply(name, f"{POLICY}spec: {{action: DENY, rules: [{{to: [{{operation: {{ports: ['1']}}}}]}}]}}\n")
        assert (mended.returncode, mended.stderr.count("in force")) == (0, 0), mended.stderr
    finally:
        lab.delete([Key("AuthorizationPolicy", "default", "wrong")])


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("bad key=x", 'metadata.labels[bad key]: "bad key" is not a label key'),
        ("app=a b", 'metadata.labels[app]: "a b" is not a label value'),
        ("=x", 'metadata.labels[]: "" is not a label key'),
    ],
)
def test_a_label_that_is_none_to_kubernetes_is_not_set(name: str, label: str, says: str) -> None:
    before = Lab(name).objects()
    done = cli("label", "--name", name, "namespace/default", label)
    assert done.returncode == 1 and f"gossamer lab: Namespace default: {says}" in done.stderr
    assert Lab(name).objects() == before


def test_a_label_with_a_value_that_nobody_heeds_is_set_and_said(name: str) -> None:
    label = ("label", "--name", name, "pod/outsider")
    done = cli(*label, "gossamer.io/direct=Off")
    try:
        assert done.returncode == 0 and '"Off" is neither on nor off' in done.stderr
    finally:
        assert cli(*label, "gossamer.io/direct-").stderr == ""


def test_a_file_without_objects_is_a_mistake(name: str) -> None:
    done = apply(name, "# nothing\n")
    assert done.returncode == 1 and "gossamer lab: -: there is no object in it" in done.stderr


def test_a_policy_that_cannot_be_read_changes_nothing(name: str) -> None:
    before = Lab(name).objects()
    good = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: beside}\n"
    for spec, says in (
        ("{mtls: {mode: LAX}}", "spec.mtls: there is no such field; known are selector, targetRef"),
        ("{acton: DENY}", "spec.acton: there is no such field; did you mean action?"),
    ):
        done = apply(name, f"{POLICY}spec: {spec}\n{good}")
        assert done.returncode == 1 and done.stdout == ""
        assert f"gossamer lab: -: AuthorizationPolicy wrong (default): {says}" in done.stderr
    assert Lab(name).objects() == before


def test_down_leaves_no_program_attached(name: str, until: Callable[[Callable[[], object]], None]) -> None:
    lab = Lab(name)
    mine = attached(lab)
    assert len(mine) > len(lab.nodes()), "the check must see what is attached while the lab is up"
    mounts = str(lab.layout.run)
    assert lab.down()
    until(lambda: not mine & {number for number, _, _ in links()})
    assert mounts not in Path("/proc/self/mountinfo").read_text()
