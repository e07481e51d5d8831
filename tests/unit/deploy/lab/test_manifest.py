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


def test_every_object_that_is_wrong_is_said() -> None:
    text = (
        f"{pod('readinessProbe: {grpc: {port: 1}}')}---\n{POD}---\napiVersion: v1\nkind: Pot\nmetadata: {{name: q}}\n"
    )
    with pytest.raises(LabError) as told:
        parse(text, "f.yaml")
    first, second = str(told.value).splitlines()
    assert first.startswith("f.yaml: Pod p (default): spec.containers[0].readinessProbe.grpc: ")
    assert second.startswith("f.yaml: Pot q (default): kind: ")


def test_an_object_is_kept_as_it_came_but_for_nulls() -> None:
    text = "{apiVersion: v1, kind: Namespace, metadata: {name: n, labels: null}, spec: {finalizers: [kubernetes]}}"
    expected = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "n"},
        "spec": {"finalizers": ["kubernetes"]},
    }
    assert parse(text, "f") == [expected]
    assert parse(POD, "f")[0]["metadata"]["namespace"] == "default"


def policy(spec: str) -> str:
    return f"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\nspec: {spec}\n"


def service(spec: str) -> str:
    return f"apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {spec}\n"


# ruff: noqa: E501 - a table reads best with one case per line
SHARED = {  # in the words of mesh.resources, which the controller uses too
    "a: [": "f: line 2, column 1: did not find expected node content",
    "- 1": "f: a document is not an object; each needs apiVersion, kind and metadata",
    "kind: Pod": "f: Pod: apiVersion: it is missing; write v1",
    "apiVersion: v1\nkind: Pod": "f: Pod: metadata.name: it is missing; every object has a name",
    "apiVersion: v2\nkind: Pod\nmetadata: {name: x}": 'f: Pod x (default): apiVersion: "v2" does not have this kind; write v1',
    "apiVersion: v1\nkind: Pod\nmetadata: {name: X_y}\n": 'f: Pod X_y (default): metadata.name: "X_y" is not a DNS subdomain; did you mean x-y?',
    "apiVersion: v1\nkind: Pot\nmetadata: {name: x}": 'f: Pot x (default): kind: "Pot" is not a kind this mesh knows; did you mean Pod?',
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {a: true}}": "metadata.labels[a]: expected a string, got bool",
    pod(spec="restartPolicy: Sometimes,"): 'f: Pod p (default): spec.restartPolicy: "Sometimes" is not one of Always, Never, OnFailure',
    pod("ports: [{containerPort: 70000}]"): "spec.containers[0].ports[0].containerPort: expected int <= 65535",
    pod("volumeMounts: [{name: v, mountPath: /x}]"): 'spec.containers[0].volumeMounts[0].name: "v" is not a volume',
    service("{}"): "f: Service s (default): spec.ports: a service needs at least one port",
    policy("{acton: DENY}"): "f: AuthorizationPolicy a (default): spec.acton: there is no such field; did you mean action?",
    policy("{rules: [{from: [{source: {ipBlocks: [10.0.0/8]}}]}]}"): 'spec.rules[0].from[0].source.ipBlocks[0]: "10.0.0/8" is not a CIDR; did you mean 10.0.0.0/8?',
}  # fmt: skip
OF_THE_LAB = {
    POD + "---\n" + POD: "f: Pod p (default): metadata.name: there are two of that name in this file; rename or remove one",
    "apiVersion: v1\nkind: Node\nmetadata: {name: x, namespace: y}": "f: Node x: metadata.namespace: a Node belongs to no namespace",
    "apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {name: x}": "f: ReplicaSet x (default): kind: the lab has no controller of ReplicaSets; write a",
    pod(spec="volumes: [{name: v, hostPath: {path: /}}],"): "spec.volumes[0]: the lab knows emptyDir and configMap volumes only",
    pod("env: [{name: A, valueFrom: {secretKeyRef: {}}}]"): "spec.containers[0].env[0].valueFrom: the lab knows fieldRef and",
    pod("envFrom: [{configMapRef: {name: m}}]"): "spec.containers[0].envFrom: the lab does not know it; list the variables",
    pod("readinessProbe: {grpc: {port: 1}}"): "spec.containers[0].readinessProbe.grpc: the lab does not know it",
    pod("readinessProbe: {httpGet: {port: web}}"): 'readinessProbe.httpGet.port: "web" is none of the container\'s named ports',
    POD.replace("command: [x]", "args: [x]"): "spec.containers[0].command: it is missing; the lab runs host programs",
    service("{type: LoadBalancer, ports: [{port: 1}]}"): 'f: Service s (default): spec.type: "LoadBalancer": there is nothing outside',
    service("{ports: [{port: 1, protocol: SCTP}]}"): 'spec.ports[0].protocol: "SCTP": the lab knows TCP and UDP',
    "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n"
    "spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c}]}}}": (
        "f: Deployment d (default): spec.template.spec.containers[0].command: it is missing"
    ),
}  # fmt: skip
BAD = SHARED | OF_THE_LAB


@pytest.mark.parametrize(("text", "message"), BAD.items(), ids=[str(n) for n in range(len(BAD))])
def test_errors_name_file_object_field_and_cure(text: str, message: str) -> None:
    with pytest.raises(LabError) as error:
        parse(text, "f")
    assert message in str(error.value)
    assert str(error.value).startswith("f: ")
