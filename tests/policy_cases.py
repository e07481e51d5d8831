"""One table of what policy means at layer 4: `policy_cases.yaml`, read here.

Who goes through it: mesh.policy (tests/unit/mesh/test_policy.py), the plan for the kernel's maps (test_direct.py beside
it), the kernel (tests/kernel/test_direct_policy.py), and the mesh in a lab (tests/lab/test_policy.py).

    - case: what is claimed
      authorization: {NAMESPACE/NAME: spec of an AuthorizationPolicy, …}
      peer: {NAMESPACE/NAME: spec of a PeerAuthentication, …}
      annotations: {NAMESPACE/NAME: annotations of that AuthorizationPolicy}
      expect: {FLOW: OUTCOME, …}
      conditions: {NAMESPACE/NAME: what a status condition of that object says}

    FLOW     SOURCE [> DESTINATION] [PORT] [v4 | v6]; else to `server`, port 8080, over both families
    OUTCOME  allowed | allowed by POLICY | denied (no ALLOW policy matched) | denied by POLICY | strict

`$client4` in a spec is that pod's IPv4 address. `server` (labels app: server, tier: back), `second` and `other` are
pods of the namespace `shop`, `client` is one of `web`, each under the service account of its name; `outsider` of
`plain` is not in the mesh, and so without identity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml

from controller.translate.settings import Settings
from controller.translate.snapshot import Translation, translate
from mesh.identity import SpiffeId
from mesh.policy import CONVERTED_PREFIX, STATIC_STRICT, Arrival
from mesh.reason import Reason
from mesh.resources import ObjectKey, key_of, load, parse
from mesh.snapshot import Delta, Snapshot

NAMESPACES = {"server": "shop", "second": "shop", "other": "shop", "client": "web", "outsider": "plain"}
LABELS = {"server": {"app": "server", "tier": "back"}, "second": {"app": "second", "tier": "back"}}
OUTSIDE = "outsider"
PORTS = (8080, 9090)
Addresses = Mapping[str, tuple[str, str]]  # by pod: IPv4, IPv6
ADDRESSES: Addresses = {name: (f"10.0.0.{n}", f"fd00::{n}") for n, name in enumerate(NAMESPACES, 1)}

_FLOW = re.compile(r"(\w+)(?: > (\w+))?(?: (\d+))?(?: v([46]))?")
_KINDS = {"authorization": "AuthorizationPolicy", "peer": "PeerAuthentication"}


@dataclass(frozen=True, slots=True)
class Flow:
    source: str
    destination: str
    port: int
    family: int  # 0: IPv4, 1: IPv6


@dataclass(frozen=True, slots=True)
class Outcome:
    allow: bool
    policy: str  # NAMESPACE/NAME; empty: none decided
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    documents: tuple[dict[str, Any], ...]
    flows: Mapping[Flow, Outcome]
    conditions: Mapping[ObjectKey, str] = field(default_factory=dict)

    @property
    def keys(self) -> list[ObjectKey]:
        return [_key(d["kind"], f"{d['metadata']['namespace']}/{d['metadata']['name']}") for d in self.documents]

    def text(self, addresses: Addresses) -> str:
        """The objects, for pods of these addresses."""
        values = {f"{name}{version}": ips[i] for name, ips in addresses.items() for i, version in enumerate("46")}
        return "".join(f"---\n{Template(json.dumps(document)).substitute(values)}\n" for document in self.documents)

    @property
    def names_addresses(self) -> bool:
        return any("$" in json.dumps(document) for document in self.documents)

    def whole(self, flow: Flow) -> bool:
        """Allowed over both families: what the kernel can be told with one entry."""
        both = (Flow(flow.source, flow.destination, flow.port, family) for family in (0, 1))
        return all(self.flows[f].allow for f in both)


def _key(kind: str, name: str) -> ObjectKey:
    return ObjectKey(kind, *name.split("/"))


def _flows(text: str) -> list[Flow]:
    match = _FLOW.fullmatch(text)
    assert match, f"{text!r} is no flow"
    source, destination, port, version = match.groups()
    families = (0, 1) if version is None else ("46".index(version),)
    return [Flow(source, destination or "server", int(port or PORTS[0]), family) for family in families]


def _outcome(text: str) -> Outcome:
    if text == "strict":
        text = f"denied by istio-system/{STATIC_STRICT}"
    what, _, policy = text.partition(" by ")
    assert what in ("allowed", "denied"), f"{text!r} is no outcome"
    if what == "allowed":
        return Outcome(True, policy, Reason.OK)
    name = policy.partition("/")[2]
    if name == STATIC_STRICT or name.startswith(CONVERTED_PREFIX):
        return Outcome(False, policy, Reason.STRICT_PLAINTEXT)
    return Outcome(False, policy, Reason.POLICY_DENY if policy else Reason.POLICY_NO_ALLOW)


def _case(given: Mapping[str, Any]) -> Case:
    documents, keys = [], {}
    for field_, kind in _KINDS.items():
        for name, spec in given.get(field_, {}).items():
            key = _key(kind, name)
            keys[name] = key
            metadata: dict[str, Any] = {"name": key.name, "namespace": key.namespace}
            if name in given.get("annotations", {}):
                metadata["annotations"] = given["annotations"][name]
            documents.append({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec})
    return Case(
        name=given["case"],
        documents=tuple(documents),
        flows={flow: _outcome(said) for text, said in given["expect"].items() for flow in _flows(text)},
        conditions={keys[name]: text for name, text in given.get("conditions", {}).items()},
    )


CASES = [_case(given) for given in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())]


def instance(name: str) -> str:
    return f"uid-{name}"


def pods(addresses: Addresses) -> str:
    """All of them on one node, as the API server would tell of them."""
    documents: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for name, labels in (("shop", _AMBIENT), ("web", _AMBIENT), ("plain", {}))
    ]
    for name, namespace in NAMESPACES.items():
        metadata = {"name": name, "namespace": namespace, "uid": instance(name), "labels": LABELS.get(name, {})}
        spec = {"nodeName": "n1", "serviceAccountName": name, "containers": [{"name": "main"}]}
        ips = [{"ip": ip} for ip in addresses[name]]
        ready = [{"type": "Ready", "status": "True"}]
        status = {"phase": "Running", "podIP": addresses[name][0], "podIPs": ips, "conditions": ready}
        documents.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})
    return "".join(f"---\n{json.dumps(document)}\n" for document in documents)


_AMBIENT = {"istio.io/dataplane-mode": "ambient"}


def translated(case: Case, addresses: Addresses = ADDRESSES) -> Translation:
    """By the controller's own code, with all pods but the outsider enrolled."""
    documents = load(pods(addresses) + case.text(addresses), file=case.name)
    objects = {key_of(o): o for o in (parse(document, file=case.name) for document in documents)}
    enrolled = {instance(name) for name in NAMESPACES if name != OUTSIDE}
    return translate(objects, enrolled=enrolled, settings=Settings())


def snapshot(case: Case, addresses: Addresses = ADDRESSES) -> Snapshot:
    return Snapshot().apply(Delta(upserts=tuple(e.resource for e in translated(case, addresses).entries.values())))


def arrival(snapshot: Snapshot, flow: Flow, addresses: Addresses = ADDRESSES) -> Arrival:
    uid = f"Kubernetes//Pod/{NAMESPACES[flow.destination]}/{flow.destination}"
    identity = SpiffeId("cluster.local", NAMESPACES[flow.source], flow.source) if flow.source != OUTSIDE else None
    return Arrival(
        source_ip=addresses[flow.source][flow.family],
        identity=identity,
        destination=snapshot.workloads[uid],
        destination_ip=addresses[flow.destination][flow.family],
        destination_port=flow.port,
    )
