"""Kubernetes YAML: what is read, and what is said about what cannot be."""

from __future__ import annotations

import pytest

from deploy.lab.demo import BOOKINFO
from deploy.lab.fault import LabError
from deploy.lab.manifest import Key, key_of, parse

POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, command: [x]}]}\n"


def pod(container: str = "", spec: str = "") -> str:
    return (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n"
        f"spec: {{{spec} containers: [{{name: c, command: [x], {container}}}]}}\n"
    )


def test_bookinfo_is_accepted_whole() -> None:
    objects = parse(BOOKINFO.read_text(), "bookinfo.yaml")
    kinds = [item["kind"] for item in objects]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "Namespace": 1, "ServiceAccount": 5, "Service": 4, "Deployment": 6, "Pod": 2,
    }  # fmt: skip
    for item in objects:
        if item["kind"] in ("Pod", "Deployment"):
            spec = item["spec"] if item["kind"] == "Pod" else item["spec"]["template"]["spec"]
            assert all(container["image"] for container in spec["containers"]), "a real cluster needs an image"


def test_documents_lists_and_empty_documents() -> None:
    listed = "{apiVersion: v1, kind: Namespace, metadata: {name: n}}"
    text = f"---\n---\n{POD}---\napiVersion: v1\nkind: List\nitems: [{listed}]\n"
    assert [key_of(item) for item in parse(text, "f")] == [Key("Pod", "default", "p"), Key("Namespace", "", "n")]


def test_policy_kinds_are_kept_as_they_come() -> None:
    text = "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: x}, spec: {what: ever}}"
    assert parse(text, "f")[0]["spec"] == {"what": "ever"}


# ruff: noqa: E501 - a table reads best with one case per line
BAD = {
    "a: [": "f: not YAML",
    "- 1": "f: document 1: a Kubernetes object is a mapping, this is a list",
    "kind: Pod": "f: document 1: apiVersion: is missing",
    "apiVersion: v1\nkind: Pod": "f: document 1: metadata: is missing",
    "apiVersion: v1\nkind: Pod\nmetadata: {name: 5}": "f: document 1: metadata.name: must be a string, not a number (5)",
    "apiVersion: v2\nkind: Pod\nmetadata: {name: x}": "f: Pod x: apiVersion: 'v2' is not the version of Pod",
    "apiVersion: v1\nkind: Pod\nmetadata: {name: X_y}": "f: Pod default/X_y: metadata.name: 'X_y' is not a DNS name",
    "apiVersion: batch/v1\nkind: Job\nmetadata: {name: x}": "f: Job x: kind: 'Job' (batch/v1) is unknown to the lab; it knows",
    "apiVersion: v1\nkind: Node\nmetadata: {name: x, namespace: y}": "f: Node x: metadata.namespace: a Node belongs to no",
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {a: true}}": 'metadata.labels[a]: must be a string: write "true"',
    POD + "---\n" + POD: "f: Pod default/p: metadata.name: there are two of that name",
    pod(spec="restartPolicy: Sometimes,"): "spec.restartPolicy: 'Sometimes' is none of Always, OnFailure, Never",
    pod(spec="volumes: [{name: v, hostPath: {path: /}}],"): "spec.volumes[0]: hostPath: the lab knows emptyDir and configMap",
    pod("volumeMounts: [{name: v, mountPath: /x}]"): "spec.containers[0].volumeMounts[0].name: 'v' is none of spec.volumes",
    pod("env: [{name: A, value: 5}]"): 'spec.containers[0].env[0].value: must be a string: write "5" in quotes',
    pod("env: [{name: A, valueFrom: {secretKeyRef: {}}}]"): "spec.containers[0].env[0].valueFrom: secretKeyRef: the lab knows",
    pod("args: [1]"): "spec.containers[0].args[0]: must be a string: write '1' in quotes",
    pod("ports: [{containerPort: 70000}]"): "spec.containers[0].ports[0].containerPort: 70000 is no port",
    pod("readinessProbe: {}"): "spec.containers[0].readinessProbe: needs exactly one of httpGet, tcpSocket, exec",
    pod("readinessProbe: {httpGet: {port: web}}"): "spec.containers[0].readinessProbe.httpGet.port: 'web' is none of",
    POD.replace("command: [x]", "args: [x]"): "spec.containers[0].command: is missing; the lab runs host programs",
    "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {type: LoadBalancer}": "Service default/s: spec.type: 'LoadBalancer'",
    "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {}": "Service default/s: spec.ports: is missing",
    "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 1}, {port: 2}]}": "spec.ports[0].name: is missing",
    "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 1, protocol: SCTP}]}": "spec.ports[0].protocol",
    "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ipFamilies: [IP], ports: [{port: 1}]}": "spec.ipFamilies[0]: 'IP'",
    "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n"
    "spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {}}}": (
        "Deployment default/d: spec.selector.matchLabels: {'a': 'b'} does not select the template's labels {'a': 'c'}"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD.items(), ids=[str(n) for n in range(len(BAD))])
def test_errors_name_file_object_field_and_cure(text: str, message: str) -> None:
    with pytest.raises(LabError) as error:
        parse(text, "f")
    assert message in str(error.value)
    assert str(error.value).startswith("f: ")
