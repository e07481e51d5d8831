"""Pods of the lab as they change: restarts, back-off, probes, scaling, labels. Without the mesh."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deploy.lab import fabric
from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key, Object
from tests.lab.talk import until
from tests.lab.test_cluster import CLUSTER, is_ready


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(CLUSTER, agent=False)


RESTARTS = """
apiVersion: v1
kind: Pod
metadata: {name: crashing}
spec:
  nodeName: n1
  containers: [{name: main, command: [sh, -c, "echo life; exit 3"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  initContainers:
    - {name: first, command: [sh, -c, "echo done > /shared/x"], volumeMounts: [{name: v, mountPath: /shared}]}
  containers:
    - {name: main, command: [cat, /shared/x], volumeMounts: [{name: v, mountPath: /shared}]}
  volumes: [{name: v, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: dying}
spec:
  nodeName: n2
  containers:
    - name: main
      command: [sh, -c, "touch /tmp/alive; exec sleep infinity"]
      livenessProbe:
        {exec: {command: [test, -e, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1, initialDelaySeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  nodeName: n2
  containers:
    - name: main
      command:
        [/usr/bin/python3, -S, -E, -c, "import socket, time; s = socket.create_server(('', 9000)); time.sleep(1e6)"]
      startupProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}
"""


def test_restarts_probes_and_back_off(lab: Lab) -> None:
    lab.apply({"restarts.yaml": RESTARTS}, wait=False)

    def state(name: str) -> Object:
        return (lab.pod(name)["status"].get("containerStatuses") or [{"restartCount": 0, "state": {}}])[0]

    until(lambda: state("crashing")["restartCount"] >= 3)
    until(lambda: state("crashing")["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff")
    assert state("crashing")["lastState"]["terminated"]["exitCode"] == 3
    assert lab.logs("crashing").read_text().startswith("life\nlife\n")
    until(lambda: lab.pod("once")["status"]["phase"] == "Succeeded")
    assert lab.logs("once").read_text() == "done\n"
    until(lambda: is_ready(lab, "slow") and is_ready(lab, "dying"))
    assert state("slow")["started"]
    lab.exec("dying", ["rm", "/tmp/alive"], check=True)
    until(lambda: state("dying")["restartCount"] == 1)
    gone = lab.delete(Key("Pod", "default", name) for name in ("crashing", "once", "dying", "slow"))
    assert len(gone) == 4
    assert not any(name in entry for name in ("crashing", "once", "dying") for entry in fabric.leftovers(lab.layout))


def test_scaling_and_replacing_a_deployment(lab: Lab) -> None:
    text = CLUSTER.replace("name: web}", "name: rolling}").replace("app: web}", "app: rolling}")
    document = next(d for d in text.split("---") if "kind: Deployment" in d)

    def pods() -> set[str]:
        return {
            p["metadata"]["name"]
            for p in lab.pods("default")
            if p["metadata"].get("labels", {}).get("app") == "rolling"
        }

    lab.apply({"d.yaml": document})
    before = pods()
    lab.apply({"d.yaml": document.replace("replicas: 2", "replicas: 3")})
    assert before < pods() and len(pods()) == 3
    lab.apply({"d.yaml": document.replace("- name: web", "- name: changed")})
    assert len(pods()) == 2 and not before & pods()
    lab.delete([Key("Deployment", "default", "rolling")])
    assert not pods()


def test_labels_change_without_touching_processes(lab: Lab) -> None:
    pid = lab.exec("c1", ["readlink", "/proc/1/ns/pid"]).stdout
    lab.label(Key("Pod", "default", "c1"), {"colour": "blue"})
    assert lab.pod("c1")["metadata"]["labels"]["colour"] == "blue"
    lab.label(Key("Pod", "default", "c1"), {"colour": None})
    assert "colour" not in lab.pod("c1")["metadata"]["labels"]
    assert lab.exec("c1", ["readlink", "/proc/1/ns/pid"]).stdout == pid
