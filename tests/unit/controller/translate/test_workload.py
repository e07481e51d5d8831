"""Pods: names, health, owners, capture."""

from __future__ import annotations

from typing import Any

import pytest

from controller.translate import workload
from controller.translate.settings import Settings
from mesh.model import Locality, NetworkMode, TunnelProtocol, Workload, WorkloadStatus
from mesh.resources import Node, Pod, parse

READY = {"conditions": [{"type": "Ready", "status": "True"}], "podIP": "10.0.0.1", "phase": "Running"}


def pod(
    metadata: dict[str, Any] | None = None, spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None
) -> Pod:
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p-1", "namespace": "shop", "uid": "u1"} | (metadata or {}),
        "spec": {"containers": [{"name": "c"}], "nodeName": "n1"} | (spec or {}),
        "status": READY | (status or {}),
    }
    made = parse(document, file="f")
    assert isinstance(made, Pod)
    return made


def convert(given: Pod, *, captured: bool = False, enrolled: bool = False) -> Workload:
    return workload.convert(
        given,
        captured=captured,
        enrolled=enrolled,
        services={},
        policies=(),
        locality=Locality(),
        settings=Settings(trust_domain="td", cluster_id="c1"),
    )


def test_a_pod() -> None:
    made = convert(pod(spec={"serviceAccountName": "sa"}, status={"podIPs": [{"ip": "10.0.0.1"}, {"ip": "FD00::1"}]}))
    assert made.uid == "c1//Pod/shop/p-1"
    assert (made.name, made.namespace, made.instance, made.node) == ("p-1", "shop", "u1", "n1")
    assert made.addresses == ("10.0.0.1", "fd00::1")
    assert str(made.identity) == "spiffe://td/ns/shop/sa/sa"
    assert (made.cluster_id, made.status, made.network_mode) == ("c1", WorkloadStatus.HEALTHY, NetworkMode.STANDARD)
    assert convert(pod()).service_account == "default"
    assert convert(pod(spec={"serviceAccount": "old"})).service_account == "old"


@pytest.mark.parametrize(
    ("captured", "enrolled", "tunnel"),
    [
        (True, True, TunnelProtocol.HBONE),
        (True, False, TunnelProtocol.NONE),
        (False, True, TunnelProtocol.NONE),
        (False, False, TunnelProtocol.NONE),
    ],
)
def test_the_tunnel_needs_both_the_labels_and_the_node(captured: bool, enrolled: bool, tunnel: TunnelProtocol) -> None:
    made = convert(pod(), captured=captured, enrolled=enrolled)
    assert (made.capture, made.tunnel_protocol) == (captured, tunnel)


@pytest.mark.parametrize(
    ("metadata", "status", "health"),
    [
        ({}, {}, WorkloadStatus.HEALTHY),
        ({}, {"conditions": []}, WorkloadStatus.UNHEALTHY),
        ({}, {"conditions": [{"type": "Ready", "status": "False"}]}, WorkloadStatus.UNHEALTHY),
        ({}, {"conditions": [{"type": "Ready", "status": "Unknown"}]}, WorkloadStatus.UNHEALTHY),
        ({"deletionTimestamp": "2024-01-01T00:00:00Z"}, {}, WorkloadStatus.UNHEALTHY),
    ],
)
def test_health(metadata: dict[str, Any], status: dict[str, Any], health: WorkloadStatus) -> None:
    assert convert(pod(metadata, status=status)).status is health


@pytest.mark.parametrize(
    ("status", "exists"),
    [
        ({}, True),
        ({"phase": "Pending"}, True),
        ({"phase": "Succeeded"}, False),
        ({"phase": "Failed"}, False),
        ({"podIP": ""}, False),
        ({"podIP": "", "podIPs": [{"ip": "10.0.0.1"}]}, True),
    ],
)
def test_which_pods_exist(status: dict[str, Any], exists: bool) -> None:
    assert workload.exists(pod(status=status)) is exists


def owned(kind: str, name: str, *, controller: bool = True) -> dict[str, Any]:
    return {"ownerReferences": [{"apiVersion": "x", "kind": kind, "name": name, "uid": "o", "controller": controller}]}


@pytest.mark.parametrize(
    ("metadata", "owner"),
    [
        ({}, ("pod", "p-1")),
        (
            owned("ReplicaSet", "reviews-v1-6f8d9") | {"labels": {"pod-template-hash": "6f8d9"}},
            ("deployment", "reviews-v1"),
        ),
        (owned("ReplicaSet", "reviews-v1-6f8d9"), ("pod", "reviews-v1-6f8d9")),
        (owned("ReplicaSet", "reviews-6f8d9") | {"labels": {"pod-template-hash": "other"}}, ("pod", "reviews-6f8d9")),
        (owned("ReplicaSet", "x", controller=False), ("pod", "p-1")),
        (owned("StatefulSet", "db"), ("pod", "db")),
        (owned("DaemonSet", "agent"), ("pod", "agent")),
        (owned("Job", "backup"), ("job", "backup")),
        (owned("Job", "backup-28349760"), ("cronjob", "backup")),
        (owned("Job", "backup-123"), ("job", "backup-123")),
    ],
)
def test_owner(metadata: dict[str, Any], owner: tuple[str, str]) -> None:
    assert workload.owner(pod(metadata)) == owner
    made = convert(pod(metadata))
    assert (made.workload_type, made.workload_name) == owner


@pytest.mark.parametrize(
    ("labels", "name", "revision"),
    [
        ({}, "p-1", "latest"),
        ({"app": "a", "version": "v1"}, "a", "v1"),
        ({"app": "a", "app.kubernetes.io/name": "b", "app.kubernetes.io/version": "v2", "version": "v1"}, "b", "v2"),
        ({"app": "a", "service.istio.io/canonical-name": "c", "service.istio.io/canonical-revision": "v3"}, "c", "v3"),
        ({"service.istio.io/workload-name": "w"}, "w", "latest"),
        ({"app": ""}, "p-1", "latest"),
    ],
)
def test_canonical_names(labels: dict[str, str], name: str, revision: str) -> None:
    made = convert(pod({"labels": labels}))
    assert (made.canonical_name, made.canonical_revision) == (name, revision)


@pytest.mark.parametrize(
    ("own", "namespace", "asks"),
    [
        ("", "", False),
        ("ambient", "", True),
        ("ambient", "none", True),
        ("", "ambient", True),
        ("none", "ambient", False),
        ("none", "", False),
        ("", "none", False),
        ("sidecar", "ambient", True),
    ],
)
def test_which_labels_ask_for_capture(own: str, namespace: str, asks: bool) -> None:
    given = pod({"labels": {workload.DATAPLANE_MODE: own} if own else {}})
    assert workload.asks_for_capture(given, {workload.DATAPLANE_MODE: namespace} if namespace else {}) is asks


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (pod(), ""),
        (pod(spec={"hostNetwork": True}), "it uses the host's network"),
        (pod({"annotations": {"sidecar.istio.io/status": "{}"}}), "it has a sidecar"),
        (pod({"namespace": "kube-system"}), "kube-system is not part of the mesh"),
        (pod({"namespace": "istio-system", "labels": {"app": "ztunnel"}}), "it is a node agent"),
        (pod({"labels": {"app": "ztunnel"}}), ""),
        (pod({"labels": {"gateway.istio.io/managed": "istio.io-mesh-controller"}}), "it is a waypoint proxy"),
        (pod({"uid": ""}), "it has no metadata.uid"),
    ],
)
def test_who_is_never_captured(given: Pod, why: str) -> None:
    assert workload.capture_refusal(given, Settings()) == why


def test_a_host_network_pod_is_sent_as_one() -> None:
    assert convert(pod(spec={"hostNetwork": True})).network_mode is NetworkMode.HOST_NETWORK


def test_locality() -> None:
    labels = {
        "topology.kubernetes.io/region": "eu",
        "topology.kubernetes.io/zone": "eu-1",
        "topology.istio.io/subzone": "rack",
    }
    node = parse({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": labels}}, file="f")
    assert isinstance(node, Node)
    assert workload.locality(node) == Locality(region="eu", zone="eu-1", subzone="rack")
    assert workload.locality(None) == Locality()


@pytest.mark.parametrize(
    ("own", "namespace", "wanted"),
    [
        ("", "", True),
        ("off", "", False),
        ("", "off", False),
        ("on", "off", True),
        ("off", "on", False),
        ("maybe", "off", False),
    ],
)
@pytest.mark.parametrize("field", ["direct", "acceleration"])
def test_labels_that_force_the_tunnel_or_tcp(field: str, own: str, namespace: str, wanted: bool) -> None:
    made = workload.convert(
        pod({"labels": {f"gossamer.io/{field}": own}}),
        captured=True,
        enrolled=True,
        services={},
        policies=(),
        locality=Locality(),
        settings=Settings(),
        namespace_labels={f"gossamer.io/{field}": namespace},
    )
    assert {"direct": made.direct, "acceleration": made.acceleration} == {
        "direct": True,
        "acceleration": True,
        field: wanted,
    }


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({}, []),
        ({"istio.io/dataplane-mode": "ambient", "gossamer.io/direct": "off", "gossamer.io/acceleration": "on"}, []),
        ({"istio.io/dataplane-mode": "none", "app": "anything"}, []),
        ({"gossamer.io/direct": "Off"}, ['metadata.labels[gossamer.io/direct]: "Off" is neither on nor off; ']),
        ({"gossamer.io/acceleration": ""}, ['metadata.labels[gossamer.io/acceleration]: "" is neither on nor off; ']),
        (
            {"istio.io/dataplane-mode": "enabled"},
            ['metadata.labels[istio.io/dataplane-mode]: "enabled" is neither ambient nor none; '],
        ),
    ],
)
def test_a_label_that_nobody_heeds_is_told(labels: dict[str, str], told: list[str]) -> None:
    found = list(workload.mislabelled(labels))
    assert [c.message.removesuffix("it is as if the label were not there") for c in found] == told
    assert all(c.status == "False" and c.reason == "UnknownValue" for c in found)
