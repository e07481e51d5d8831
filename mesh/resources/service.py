"""Service (k8s.io/api core/v1): ClusterIP and headless; the other types are carried as what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from mesh.resources import check
from mesh.resources.fault import Invalid
from mesh.resources.meta import ObjectMeta
from mesh.resources.pod import PortNumber, Protocol


class ServicePort(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    port: PortNumber
    name: str = ""
    protocol: Protocol = "TCP"
    target_port: int | str = 0  # a number, a container port's name, or absent: the same as `port`
    app_protocol: str = ""
    node_port: int = 0


class ServiceSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    selector: Mapping[str, str] = {}
    ports: tuple[ServicePort, ...] = ()
    cluster_ip: str = msgspec.field(name="clusterIP", default="")  # "None": headless
    cluster_ips: tuple[str, ...] = msgspec.field(name="clusterIPs", default=())
    ip_families: tuple[Literal["IPv4", "IPv6"], ...] = ()
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack", ""] = ""
    internal_traffic_policy: Literal["Cluster", "Local"] = "Cluster"
    traffic_distribution: str = ""
    publish_not_ready_addresses: bool = False
    session_affinity: str = ""
    external_name: str = ""

    @property
    def headless(self) -> bool:
        return "None" in (self.cluster_ip, *self.cluster_ips)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The cluster IPs, the primary one first, each once; empty if headless or not yet given."""
        given = dict.fromkeys((self.cluster_ip, *self.cluster_ips))
        return tuple(ip for ip in given if ip not in ("", "None"))


class Service(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, tag_field="kind", tag="Service"
):
    api_version: Literal["v1"]
    metadata: ObjectMeta
    spec: ServiceSpec = ServiceSpec()


def check_service(service: Service) -> None:
    spec = service.spec
    check.dns_label("metadata.name", service.metadata.name)
    check.labels("spec.selector", spec.selector)
    for index, ip in enumerate(spec.addresses):
        check.address("spec.clusterIP" if index == 0 else f"spec.clusterIPs[{index}]", ip)
    if spec.type == "ExternalName":
        if not spec.external_name:
            raise Invalid("spec.externalName", "an ExternalName service names nothing", "give the host name")
        return
    if not spec.ports and not spec.headless:
        raise Invalid("spec.ports", "a service needs at least one port", "list its ports")
    for index, port in enumerate(spec.ports):
        path = f"spec.ports[{index}]"
        if port.name:
            check.dns_label(f"{path}.name", port.name)
        elif len(spec.ports) > 1:
            raise Invalid(f"{path}.name", "it has no name", "each of several ports needs one")
        if port.target_port != 0:
            check.port_reference(f"{path}.targetPort", port.target_port)
    check.unique("spec.ports[*].name", (p.name for p in spec.ports if p.name), "port name")
    check.unique("spec.ports[*]", (f"{p.protocol} {p.port}" for p in spec.ports), "port")
