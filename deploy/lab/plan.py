"""What `apply` and `delete` change: from the objects there are and those wanted, which to put and which to delete.

Pure: the time and the random numbers are arguments. Plays the API server (defaults, uids, addresses), the Deployment
controller and the scheduler.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import random
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.lab.fault import LabError
from deploy.lab.layout import NODE_LIMIT, POD_LIMIT, RESERVED_NODES, Layout
from deploy.lab.manifest import Key, Object, key_of

_SAFE = "bcdfghjklmnpqrstvwxz2456789"  # Kubernetes' alphabet for generated names: no vowels, no words


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Objects to write, in order, and keys to delete (before the writes). Unchanged objects are in neither."""

    put: tuple[Object, ...]
    delete: tuple[Key, ...]


@dataclass(slots=True, kw_only=True)
class _Cluster:
    """The cluster as it will be; changed while a plan is made."""

    layout: Layout
    now: str
    rng: random.Random
    objects: dict[Key, Object]
    put: dict[Key, Object] = field(default_factory=dict)
    delete: list[Key] = field(default_factory=list)

    def of(self, kind: str) -> Iterator[Object]:
        return (item for key, item in self.objects.items() if key.kind == kind)

    def store(self, item: Object) -> None:
        key = key_of(item)
        if self.objects.get(key) != item:
            self.objects[key] = item
            self.put[key] = item

    def drop(self, key: Key) -> None:
        if self.objects.pop(key, None) is not None:
            self.delete.append(key)
        self.put.pop(key, None)

    def uid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def name(self, length: int) -> str:
        return "".join(self.rng.choices(_SAFE, k=length))


def plan_apply(
    current: Mapping[Key, Object], wanted: Iterable[Object], *, layout: Layout, now: str, rng: random.Random
) -> Plan:
    """The plan that brings `wanted` into the cluster. `now` is RFC 3339. LabError where it cannot be."""
    cluster = _Cluster(layout=layout, now=now, rng=rng, objects=dict(current))
    items = list(wanted)
    order = {"Namespace": 0, "Node": 1, "ServiceAccount": 2, "ConfigMap": 3, "Service": 4}
    items.sort(key=lambda item: order.get(item["kind"], 5))
    for name in ("default", "kube-system", "istio-system"):
        if Key("Namespace", "", name) not in cluster.objects and not any(
            key_of(i) == ("Namespace", "", name) for i in items
        ):
            _put_plain(cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    if not any(cluster.of("Node")) and not any(item["kind"] == "Node" for item in items):
        for name in ("n1", "n2"):
            _put_node(cluster, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    for item in items:
        _check_namespace(cluster, item)
        {
            "Namespace": _put_namespace,
            "Node": _put_node,
            "Service": _put_service,
            "Pod": _put_pod,
            "Deployment": _put_deployment,
        }.get(item["kind"], _put_plain)(cluster, item)
    return Plan(put=tuple(cluster.put.values()), delete=tuple(cluster.delete))


def plan_delete(current: Mapping[Key, Object], unwanted: Iterable[Key]) -> Plan:
    """The plan that removes objects and what belongs to them: a Deployment's pods, everything in a Namespace."""
    doomed: dict[Key, None] = {}
    for key in unwanted:
        if key.kind == "Node":
            raise LabError(f"{key}: the lab cannot remove a node while it runs; take the lab down and up without it")
        if key not in current:
            continue
        doomed[key] = None
        if key.kind == "Namespace":
            doomed.update(dict.fromkeys(k for k in current if k.namespace == key.name))
        if key.kind == "Deployment":
            doomed.update(dict.fromkeys(key_of(pod) for pod in pods_of(current, key)))
    return Plan(put=(), delete=tuple(doomed))


def pods_of(objects: Mapping[Key, Object], deployment: Key) -> list[Object]:
    """A Deployment's pods, oldest first."""
    found = [
        item
        for key, item in objects.items()
        if key.kind == "Pod"
        and key.namespace == deployment.namespace
        and item["metadata"].get("annotations", {}).get("lab.gossamer/deployment") == deployment.name
    ]
    return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])


def _check_namespace(cluster: _Cluster, item: Object) -> None:
    key = key_of(item)
    if key.namespace and Key("Namespace", "", key.namespace) not in cluster.objects:
        raise LabError(f"{key}: metadata.namespace: there is no Namespace {key.namespace!r}; add one to the file")


def _merged(cluster: _Cluster, item: Object) -> Object:
    """The object with the metadata that the API server keeps, and the status it has had."""
    before = cluster.objects.get(key_of(item), {})
    kept = before.get("metadata", {})
    meta = item["metadata"] | {
        "uid": kept.get("uid") or cluster.uid(),
        "creationTimestamp": kept.get("creationTimestamp") or cluster.now,
    }
    merged = item | {"metadata": meta}
    if "status" in before:
        merged["status"] = before["status"]
    return merged


def _put_plain(cluster: _Cluster, item: Object) -> None:
    cluster.store(_merged(cluster, item))


def _put_namespace(cluster: _Cluster, item: Object) -> None:
    merged = _merged(cluster, item)
    name = merged["metadata"]["name"]
    labels = (merged["metadata"].get("labels") or {}) | {"kubernetes.io/metadata.name": name}
    cluster.store(merged | {"metadata": merged["metadata"] | {"labels": labels}, "status": {"phase": "Active"}})


def _put_node(cluster: _Cluster, item: Object) -> None:
    name = item["metadata"]["name"]
    if name in RESERVED_NODES or name.startswith("pod-") or "/" in name:
        raise LabError(f"Node {name}: metadata.name: the lab uses this name itself; choose another")
    merged = _merged(cluster, item)
    taken = {int(node["metadata"]["annotations"]["lab.gossamer/index"]) for node in cluster.of("Node")}
    before = cluster.objects.get(key_of(item))
    index = (
        int(before["metadata"]["annotations"]["lab.gossamer/index"])
        if before
        else next(i for i in range(NODE_LIMIT + 1) if i not in taken)
    )
    if index >= NODE_LIMIT:
        raise LabError(f"Node {name}: a lab has at most {NODE_LIMIT} nodes")
    meta = merged["metadata"]
    v4, v6 = cluster.layout.node_addresses(index)
    cidrs = [str(cluster.layout.node_pods4(index)), str(cluster.layout.node_pods6(index))]
    cluster.store(
        merged
        | {
            "metadata": meta
            | {
                "labels": (meta.get("labels") or {}) | {"kubernetes.io/hostname": name},
                "annotations": (meta.get("annotations") or {}) | {"lab.gossamer/index": str(index)},
            },
            "spec": (merged.get("spec") or {}) | {"podCIDR": cidrs[0], "podCIDRs": cidrs},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": v4},
                    {"type": "InternalIP", "address": v6},
                    {"type": "Hostname", "address": name},
                ],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
    )


def _free(network: Any, taken: set[str], first: int, limit: int) -> str | None:
    for offset in range(first, limit):
        address = str(network[offset])
        if address not in taken:
            return address
    return None


def _put_service(cluster: _Cluster, item: Object) -> None:
    merged = _merged(cluster, item)
    spec = dict(merged["spec"])
    key = key_of(item)
    before = cluster.objects.get(key, {}).get("spec", {})
    spec.setdefault("type", "ClusterIP")
    policy = spec.setdefault("ipFamilyPolicy", "SingleStack")
    families = list(spec.get("ipFamilies") or ["IPv4"])
    if policy != "SingleStack" and len(families) == 1:
        families.append("IPv6" if families == ["IPv4"] else "IPv4")
    spec["ipFamilies"] = families = families[:1] if policy == "SingleStack" else families
    spec["ports"] = [
        {"protocol": "TCP"} | port | {"targetPort": port.get("targetPort", port["port"])}
        for port in spec.get("ports") or []
    ]
    if spec.get("clusterIP") == "None":
        spec["clusterIPs"] = ["None"]
    else:
        asked = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
        spec["clusterIPs"] = [
            _cluster_ip(cluster, key, family, index, asked, before.get("clusterIPs") or [])
            for index, family in enumerate(families)
        ]
        spec["clusterIP"] = spec["clusterIPs"][0]
    cluster.store(merged | {"spec": spec})


def _cluster_ip(cluster: _Cluster, key: Key, family: str, index: int, asked: list[str], before: list[str]) -> str:
    network = cluster.layout.services4 if family == "IPv4" else cluster.layout.services6
    taken = {ip for svc in cluster.of("Service") if key_of(svc) != key for ip in svc["spec"].get("clusterIPs") or []}
    taken.update(cluster.layout.cluster_dns)
    if index < len(asked):
        try:
            inside = ipaddress.ip_address(asked[index]) in network
        except ValueError:
            inside = False
        if not inside:
            raise LabError(
                f"{key}: spec.clusterIP: {asked[index]!r} is not an address of {network}; leave the field out"
            )
        if asked[index] in taken:
            raise LabError(f"{key}: spec.clusterIP: {asked[index]} is taken by another service; leave the field out")
        return asked[index]
    kept = next((ip for ip in before if ip != "None" and ipaddress.ip_address(ip) in network), None)
    address = kept or _free(network, taken, 256, 65000)
    if address is None:
        raise LabError(f"{key}: no cluster IP is left in {network}; delete some services")
    return address


# What of a pod may change while it runs (Kubernetes allows little more): only its metadata.
def _put_pod(cluster: _Cluster, item: Object) -> None:
    key = key_of(item)
    before = cluster.objects.get(key)
    merged = _merged(cluster, item)
    if before is None:
        cluster.store(_scheduled(cluster, merged))
        return
    source = _digest(item["spec"])
    if before["metadata"]["annotations"]["lab.gossamer/spec"] != source:
        raise LabError(
            f"{key}: spec: a running pod's spec cannot change; delete the pod first (gossamer lab delete -f FILE)"
        )
    meta = merged["metadata"]
    annotations = (meta.get("annotations") or {}) | {
        k: v for k, v in before["metadata"]["annotations"].items() if k.startswith("lab.gossamer/")
    }
    cluster.store(before | {"metadata": meta | {"annotations": annotations}})


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _scheduled(cluster: _Cluster, pod: Object) -> Object:
    """The new pod with its node, its addresses and Kubernetes' defaults."""
    key = key_of(pod)
    spec = {"restartPolicy": "Always", "serviceAccountName": "default"} | pod["spec"]
    nodes = {node["metadata"]["name"]: node for node in cluster.of("Node")}
    node = spec.get("nodeName") or _round_robin(cluster, nodes)
    if node not in nodes:
        raise LabError(f"{key}: spec.nodeName: there is no Node {node!r}; there are {', '.join(sorted(nodes))}")
    spec["nodeName"] = node
    hosts = [a["address"] for a in nodes[node]["status"]["addresses"] if a["type"] == "InternalIP"]
    addresses = hosts if spec.get("hostNetwork") else _pod_ips(cluster, key, nodes[node])
    meta = pod["metadata"]
    return pod | {
        "metadata": meta
        | {"annotations": (meta.get("annotations") or {}) | {"lab.gossamer/spec": _digest(pod["spec"])}},
        "spec": spec,
        "status": {
            "phase": "Pending",
            "hostIP": hosts[0],
            "hostIPs": [{"ip": ip} for ip in hosts],
            "podIP": addresses[0],
            "podIPs": [{"ip": ip} for ip in addresses],
            "conditions": [{"type": "Ready", "status": "False"}],
        },
    }


def _round_robin(cluster: _Cluster, nodes: Mapping[str, Object]) -> str:
    load = dict.fromkeys(sorted(nodes), 0)
    for pod in cluster.of("Pod"):
        load[pod["spec"]["nodeName"]] += 1
    return min(load, key=lambda name: load[name])


def _pod_ips(cluster: _Cluster, key: Key, node: Object) -> list[str]:
    """The lowest free pair. Addresses are reused early on purpose: a mesh must live with that."""
    index = int(node["metadata"]["annotations"]["lab.gossamer/index"])
    taken = {entry["ip"] for pod in cluster.of("Pod") for entry in pod["status"]["podIPs"]}
    v4, v6 = cluster.layout.node_pods4(index), cluster.layout.node_pods6(index)
    for offset in range(2, POD_LIMIT + 2):
        pair = [str(v4[offset]), str(v6[offset])]
        if not taken.intersection(pair):
            return pair
    raise LabError(f"{key}: node {node['metadata']['name']} holds {POD_LIMIT} pods already; use another node")


def _put_deployment(cluster: _Cluster, item: Object) -> None:
    """Keep the pods made from the same template, up to the number of replicas; replace the others."""
    merged = _merged(cluster, item)
    key = key_of(item)
    spec = merged["spec"]
    replicas = spec.get("replicas", 1)
    template = spec["template"]
    revision = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).digest()
    hashed = "".join(_SAFE[byte % len(_SAFE)] for byte in revision[:9])
    existing = pods_of(cluster.objects, key)
    same = [pod for pod in existing if pod["metadata"]["labels"].get("pod-template-hash") == hashed]
    kept = {key_of(pod) for pod in same[:replicas]}
    for pod in existing:
        if key_of(pod) not in kept:
            cluster.drop(key_of(pod))
    for _ in range(replicas - len(kept)):
        pod = _pod_from(cluster, merged, template, hashed)
        cluster.store(_scheduled(cluster, pod))
    cluster.store(merged | {"spec": spec | {"replicas": replicas}})


def _pod_from(cluster: _Cluster, deployment: Object, template: Object, hashed: str) -> Object:
    owner = deployment["metadata"]
    replica_set = f"{owner['name']}-{hashed}"
    meta = template.get("metadata") or {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta
        | {
            "name": f"{replica_set}-{cluster.name(5)}",
            "generateName": f"{replica_set}-",
            "namespace": owner["namespace"],
            "uid": cluster.uid(),
            "creationTimestamp": cluster.now,
            "labels": (meta.get("labels") or {}) | {"pod-template-hash": hashed},
            "annotations": (meta.get("annotations") or {}) | {"lab.gossamer/deployment": owner["name"]},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": replica_set,
                    "uid": str(uuid.uuid5(uuid.UUID(owner["uid"]), hashed)),
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": template["spec"],
    }
