"""Pod -> Workload (istio-facts §2.3, §3.4): names, health, services, and whether it is to be captured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from controller.translate.settings import Settings
from mesh.model import (
    Locality,
    NetworkMode,
    Port,
    TunnelProtocol,
    Workload,
    WorkloadStatus,
    canonical_ip,
)
from mesh.resources import Condition, Node, Pod, check

DATAPLANE_MODE = "istio.io/dataplane-mode"
SIDECAR_STATUS = "sidecar.istio.io/status"
MANAGED = "gateway.istio.io/managed"
DIRECT = "gossamer.io/direct"
ACCELERATION = "gossamer.io/acceleration"

# What they may say; anything else is as if they were not there.
_SWITCHES = {DATAPLANE_MODE: ("ambient", "none"), DIRECT: ("on", "off"), ACCELERATION: ("on", "off")}
_CANONICAL_NAME = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_CANONICAL_REVISION = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
_WORKLOAD_NAME = "service.istio.io/workload-name"
_CRON_JOB = re.compile(r"(.+)-\d{8,10}")  # the job controller appends the scheduled minute


def uid(pod: Pod, settings: Settings) -> str:
    return f"{settings.cluster_id}//Pod/{pod.metadata.namespace}/{pod.metadata.name}"


def exists(pod: Pod) -> bool:
    """It is, or may come to be, a peer: it has an address and has not ended."""
    return bool(pod.status.addresses) and not pod.terminal


def convert(
    pod: Pod,
    *,
    captured: bool,
    enrolled: bool,
    services: Mapping[str, tuple[Port, ...]],
    policies: tuple[str, ...],
    locality: Locality,
    settings: Settings,
    namespace_labels: Mapping[str, str] = MappingProxyType({}),
) -> Workload:
    """`captured`: its labels ask for it (`capture_refusal`); `enrolled`: its node's agent has reported that it is."""
    kind, name = owner(pod)
    labels = pod.metadata.labels
    healthy = pod.status.ready and pod.metadata.deletion_timestamp is None
    return Workload(
        uid=uid(pod, settings),
        name=pod.metadata.name,
        namespace=pod.metadata.namespace,
        instance=pod.metadata.uid,
        addresses=tuple(canonical_ip(ip) for ip in pod.status.addresses),
        node=pod.spec.node_name,
        trust_domain=settings.trust_domain,
        service_account=pod.spec.identity_account,
        tunnel_protocol=TunnelProtocol.HBONE if captured and enrolled else TunnelProtocol.NONE,
        capture=captured,
        network_mode=NetworkMode.HOST_NETWORK if pod.spec.host_network else NetworkMode.STANDARD,
        status=WorkloadStatus.HEALTHY if healthy else WorkloadStatus.UNHEALTHY,
        workload_type=kind,
        workload_name=labels.get(_WORKLOAD_NAME) or name,
        canonical_name=_first(labels, _CANONICAL_NAME, labels.get(_WORKLOAD_NAME) or name),
        canonical_revision=_first(labels, _CANONICAL_REVISION, "latest"),
        cluster_id=settings.cluster_id,
        locality=locality,
        services=services,
        authorization_policies=policies,
        direct=not _off(DIRECT, labels, namespace_labels),
        acceleration=not _off(ACCELERATION, labels, namespace_labels),
    )


def owner(pod: Pod) -> tuple[str, str]:
    """(type, name) of what controls the pod: deployment, job, cronjob, else pod with the owner's name or its own."""
    owners = pod.metadata.owner_references
    reference = next((o for o in owners if o.controller), None)
    if reference is None:
        return "pod", pod.metadata.name
    template = pod.metadata.labels.get("pod-template-hash", "")
    if reference.kind == "ReplicaSet" and template and reference.name.endswith(f"-{template}"):
        return "deployment", reference.name.removesuffix(f"-{template}")
    if reference.kind == "Job":
        scheduled = _CRON_JOB.fullmatch(reference.name)
        return ("cronjob", scheduled[1]) if scheduled else ("job", reference.name)
    return "deployment" if reference.kind == "Deployment" else "pod", reference.name


def asks_for_capture(pod: Pod, namespace_labels: Mapping[str, str]) -> bool:
    """Pod label ambient; or namespace label ambient and pod label not none."""
    own = pod.metadata.labels.get(DATAPLANE_MODE)
    return own == "ambient" or (own != "none" and namespace_labels.get(DATAPLANE_MODE) == "ambient")


def _off(label: str, own: Mapping[str, str], of_namespace: Mapping[str, str]) -> bool:
    """The pod's label goes before its namespace's; what is neither `on` nor `off` is as if it were not there."""
    said = (labels.get(label) for labels in (own, of_namespace))
    return next((value for value in said if value in _SWITCHES[label]), "on") == "off"


def mislabelled(labels: Mapping[str, str]) -> Iterator[Condition]:
    """One for each of the labels that steer the mesh, of a pod or namespace, with a value that nobody heeds."""
    for label, (yes, no) in _SWITCHES.items():
        value = labels.get(label, yes)
        if value not in (yes, no):
            message = (
                f"metadata.labels[{label}]: {check.quoted(value)} is neither {yes} nor {no}; "
                "it is as if the label were not there"
            )
            yield Condition(type="Labels", status="False", reason="UnknownValue", message=message)


def capture_refusal(pod: Pod, settings: Settings) -> str:
    """Why a pod whose labels ask for it is never captured; empty if it is."""
    labels, namespace = pod.metadata.labels, pod.metadata.namespace
    if pod.spec.host_network:
        return "it uses the host's network"
    if SIDECAR_STATUS in pod.metadata.annotations:
        return "it has a sidecar"
    if namespace == "kube-system":
        return "kube-system is not part of the mesh"
    if namespace == settings.root_namespace and labels.get("app") == "ztunnel":
        return "it is a node agent"
    if labels.get(MANAGED) == "istio.io-mesh-controller":
        return "it is a waypoint proxy"
    return "" if pod.metadata.uid else "it has no metadata.uid"


def locality(node: Node | None) -> Locality:
    if node is None:
        return Locality()
    return Locality(
        region=node.labels.get("topology.kubernetes.io/region", ""),
        zone=node.labels.get("topology.kubernetes.io/zone", ""),
        subzone=node.labels.get("topology.istio.io/subzone", ""),
    )


def _first(labels: Mapping[str, str], keys: tuple[str, ...], otherwise: str) -> str:
    return next((labels[key] for key in keys if labels.get(key)), otherwise)
