"""All objects together: what is sent, to whom certificates may go, and how long it takes."""

from __future__ import annotations

import time
from typing import Any

from controller.translate.settings import Settings
from controller.translate.snapshot import Place, Translation, translate
from mesh.identity import SpiffeId
from mesh.model import Port, TunnelProtocol, Workload
from mesh.resources import Object, ObjectKey, key_of, load, parse

SETTINGS = Settings()

SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: lonely, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: u-web, labels: {app: web}}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop, uid: u-host, labels: {app: web}}
spec: {nodeName: n1, hostNetwork: true, serviceAccountName: host, containers: [{name: c}]}
status: {phase: Running, podIP: 192.168.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop, uid: u-done}
spec: {nodeName: n1, serviceAccountName: done, containers: [{name: c}]}
status: {phase: Succeeded, podIP: 10.0.0.9}
---
apiVersion: v1
kind: Pod
metadata: {name: starting, namespace: shop, uid: u-starting}
spec: {nodeName: n2, serviceAccountName: starting, containers: [{name: c}]}
status: {phase: Pending}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: other, namespace: shop}
spec: {selector: {matchLabels: {app: other}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: everywhere, namespace: istio-system}
spec: {selector: {matchLabels: {app: web}}, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all-of-shop, namespace: shop}
spec: {rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""


def objects(text: str) -> dict[ObjectKey, Object]:
    parsed = [parse(document, file="f") for document in load(text, file="f")]
    return {key_of(p): p for p in parsed}


def workload(made: Translation, name: str) -> Workload:
    found = made.entries[f"workload/Kubernetes//Pod/shop/{name}"].workload
    assert found is not None
    return found


def test_a_namespace() -> None:
    made = translate(objects(SHOP), enrolled={"u-web"}, settings=SETTINGS)
    assert set(made.entries) == {
        "workload/Kubernetes//Pod/shop/web-1",
        "workload/Kubernetes//Pod/shop/host",
        "service/shop/web.shop.svc.cluster.local",
        "service/shop/lonely.shop.svc.cluster.local",
        "policy/shop/web",
        "policy/shop/other",
        "policy/shop/all-of-shop",
        "policy/istio-system/everywhere",
        "policy/istio-system/istio_converted_static_strict",
    }
    web = workload(made, "web-1")
    assert web.services == {"shop/web.shop.svc.cluster.local": (Port(service_port=80, target_port=8080),)}
    assert web.authorization_policies == (
        "istio-system/everywhere",
        "istio-system/istio_converted_static_strict",
        "shop/web",
    )
    assert (web.capture, web.tunnel_protocol, web.locality.zone) == (True, TunnelProtocol.HBONE, "z1")
    assert not workload(made, "host").capture
    assert made.conditions[ObjectKey("Pod", "shop", "host")][0].message == "it uses the host's network"
    assert made.origins["policy/shop/web"] == ObjectKey("AuthorizationPolicy", "shop", "web")


def test_a_node_gets_identities_of_its_own_living_pods_only() -> None:
    made = translate(objects(SHOP), enrolled=(), settings=SETTINGS)
    assert made.identities == {
        "n1": {SpiffeId("cluster.local", "shop", "web")},
        "n2": {SpiffeId("cluster.local", "shop", "starting")},
    }
    assert made.pods == {
        "Kubernetes//Pod/shop/web-1": Place("u-web", "n1"),
        "Kubernetes//Pod/shop/starting": Place("u-starting", "n2"),
    }


def test_the_same_objects_give_the_same_hashes_and_a_change_only_its_own() -> None:
    first = translate(objects(SHOP), enrolled=(), settings=SETTINGS)
    again = translate(objects(SHOP), enrolled=(), settings=SETTINGS, previous=first)
    fresh = translate(objects(SHOP), enrolled=(), settings=SETTINGS)
    assert first.entries == again.entries == fresh.entries
    enrolled = translate(objects(SHOP), enrolled={"u-web"}, settings=SETTINGS, previous=first)
    different = {k for k in first.entries if first.entries[k].hash != enrolled.entries[k].hash}
    assert different == {"workload/Kubernetes//Pod/shop/web-1"}


def test_unlabelling_is_one_change_of_capture_and_tunnel() -> None:
    text = SHOP.replace("labels: {istio.io/dataplane-mode: ambient}", "labels: {}")
    web = workload(translate(objects(text), enrolled={"u-web"}, settings=SETTINGS), "web-1")
    assert (web.capture, web.tunnel_protocol) == (False, TunnelProtocol.NONE)


def test_a_new_instance_of_a_name_starts_outside_the_tunnel() -> None:
    text = SHOP.replace("uid: u-web", "uid: u-new")
    web = workload(translate(objects(text), enrolled={"u-web"}, settings=SETTINGS), "web-1")
    assert (web.instance, web.capture, web.tunnel_protocol) == ("u-new", True, TunnelProtocol.NONE)


def test_a_pod_without_a_uid_is_not_enrolled_by_an_empty_one() -> None:
    text = SHOP.replace("uid: u-web, ", "")
    web = workload(translate(objects(text), enrolled={""}, settings=SETTINGS), "web-1")
    assert (web.capture, web.tunnel_protocol) == (False, TunnelProtocol.NONE)


def test_misspelt_labels_of_pods_and_namespaces_are_told() -> None:
    text = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {gossamer.io/direct: "no"}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop, uid: u, labels: {istio.io/dataplane-mode: Ambient}}
spec: {nodeName: n, containers: [{name: c, image: i}]}
"""
    made = translate(objects(text), enrolled=(), settings=SETTINGS)
    told = {key.kind: [c.type for c in conditions] for key, conditions in made.conditions.items()}
    assert told == {"Namespace": ["Labels"], "Pod": ["Labels"]}


def test_two_with_one_address_are_both_told() -> None:
    text = (
        SHOP.replace("10.96.0.2", "10.96.0.1")
        .replace("name: starting", "name: twin")
        .replace("status: {phase: Pending}", "status: {podIP: 10.0.0.1}")
    )
    made = translate(objects(text), enrolled=(), settings=SETTINGS)
    told = {
        f"{key.kind} {key.name}": condition.message
        for key, conditions in made.conditions.items()
        for condition in conditions
        if condition.type == "AddressConflict"
    }
    assert told == {
        "Pod web-1": "10.0.0.1 is also the address of Pod twin (shop); remove one of them",
        "Pod twin": "10.0.0.1 is also the address of Pod web-1 (shop); remove one of them",
        "Service web": "10.96.0.1 is also the address of Service lonely (shop); remove one of them",
        "Service lonely": "10.96.0.1 is also the address of Service web (shop); remove one of them",
    }


def large() -> dict[ObjectKey, Object]:
    """5,000 pods in 50 namespaces, 1,000 services, 2,000 policies with selectors."""
    documents: list[dict[str, Any]] = []
    for n in range(50):
        documents.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"ns{n}"}})
        for s in range(20):
            spec = {"clusterIP": f"10.96.{n}.{s}", "selector": {"app": f"s{s}"}, "ports": [{"port": 80}]}
            metadata = {"name": f"s{s}", "namespace": f"ns{n}"}
            documents.append({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    for i in range(5000):
        metadata = {"name": f"p{i}", "namespace": f"ns{i % 50}", "uid": f"u{i}", "labels": {"app": f"s{i // 50 % 20}"}}
        spec = {"nodeName": f"n{i % 7}", "containers": [{"name": "a"}]}
        status = {"podIP": f"10.0.{i // 256}.{i % 256}", "phase": "Running"}
        documents.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})
    for i in range(2000):
        metadata = {"name": f"ap{i}", "namespace": f"ns{i % 50}"}
        spec = {
            "selector": {"matchLabels": {"app": f"s{i // 50 % 20}"}},
            "rules": [{"to": [{"operation": {"ports": ["1"]}}]}],
        }
        version = "security.istio.io/v1"
        documents.append({"apiVersion": version, "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec})
    parsed = [parse(document, file="f") for document in documents]
    return {key_of(p): p for p in parsed}


def test_a_large_mesh_is_translated_well_within_a_second() -> None:
    given = large()
    seconds = []
    made: Translation | None = None
    for _ in range(3):
        began = time.process_time()
        made = translate(given, enrolled=(), settings=SETTINGS, previous=made)
        seconds.append(time.process_time() - began)
    assert made is not None
    assert len(made.entries) == 8000
    assert min(seconds) < 1.0, seconds
