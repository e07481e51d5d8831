"""Which pods stand behind which service: the EndpointSlice controller's part. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from deploy.lab.manifest import Key, Object


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ServicePort:
    """One port of one service in one address family, with the (address, port) of each ready pod."""

    namespace: str
    service: str
    protocol: str  # tcp | udp
    cluster_ip: str  # empty for a headless service
    port: int
    endpoints: tuple[tuple[str, int], ...]


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def is_alive(pod: Object) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and pod.get("status", {}).get("phase") not in (
        "Succeeded",
        "Failed",
    )


def selected(service: Object, pods: Iterable[Object]) -> Iterator[Object]:
    """Live pods that the service selects, ready or not; none for a service without a selector."""
    selector = (service["spec"].get("selector") or {}).items()
    namespace = service["metadata"]["namespace"]
    if selector:
        for pod in pods:
            labels = (pod["metadata"].get("labels") or {}).items()
            if pod["metadata"]["namespace"] == namespace and selector <= labels and is_alive(pod):
                yield pod


def serving(service: Object, pods: Iterable[Object]) -> list[Object]:
    """Selected pods that get traffic: the ready ones, or all with publishNotReadyAddresses."""
    every = service["spec"].get("publishNotReadyAddresses", False)
    return [pod for pod in selected(service, pods) if every or is_ready(pod)]


def target_port(pod: Object, port: Mapping[str, object]) -> int | None:
    """The pod's port for a service's port; a name is looked up in the pod's containers, None if it is not there."""
    target = port["targetPort"]
    if isinstance(target, int):
        return target
    for container in pod["spec"]["containers"]:
        for candidate in container.get("ports") or []:
            if candidate.get("name") == target and candidate.get("protocol", "TCP") == port.get("protocol", "TCP"):
                return candidate["containerPort"]
    return None


def addresses(pod: Object, v6: bool) -> list[str]:
    return [entry["ip"] for entry in pod["status"].get("podIPs") or [] if (":" in entry["ip"]) == v6]


def service_ports(objects: Mapping[Key, Object]) -> list[ServicePort]:
    """Every port of every service with a cluster IP, in a stable order."""
    pods = [item for key, item in objects.items() if key.kind == "Pod"]
    found: list[ServicePort] = []
    for key, service in objects.items():
        if key.kind != "Service":
            continue
        spec = service["spec"]
        ready = serving(service, pods)
        for cluster_ip in spec.get("clusterIPs") or []:
            if cluster_ip == "None":
                continue
            for port in spec.get("ports") or []:
                behind = {
                    (ip, number)
                    for pod in ready
                    if (number := target_port(pod, port)) is not None
                    for ip in addresses(pod, ":" in cluster_ip)[:1]
                }
                found.append(
                    ServicePort(
                        namespace=key.namespace,
                        service=key.name,
                        protocol=port.get("protocol", "TCP").lower(),
                        cluster_ip=cluster_ip,
                        port=port["port"],
                        endpoints=tuple(sorted(behind)),
                    )
                )
    return sorted(found)
