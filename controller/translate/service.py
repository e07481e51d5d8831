"""Kubernetes Service -> Service, and its ports as one endpoint serves them (istio-facts §2.3)."""

from __future__ import annotations

from collections.abc import Mapping

from controller.translate.settings import Settings
from mesh.model import (
    AppProtocol,
    BalancingMode,
    HealthPolicy,
    IpFamilies,
    LoadBalancing,
    Port,
    Scope,
    Service,
    canonical_ip,
)
from mesh.resources import Pod
from mesh.resources import Service as KubernetesService
from mesh.resources.service import ServicePort

TRAFFIC_DISTRIBUTION = "networking.istio.io/traffic-distribution"

_PROTOCOLS = {
    "http": AppProtocol.HTTP11,
    "kubernetes.io/ws": AppProtocol.HTTP11,
    "http2": AppProtocol.HTTP2,
    "h2c": AppProtocol.HTTP2,
    "kubernetes.io/h2c": AppProtocol.HTTP2,
    "grpc": AppProtocol.GRPC,
    "grpc-web": AppProtocol.GRPC,
    "tcp": AppProtocol.TCP,
    "mongo": AppProtocol.TCP,
    "mysql": AppProtocol.TCP,
    "redis": AppProtocol.TCP,
    "tls": AppProtocol.TLS,
    "https": AppProtocol.TLS,
    "kubernetes.io/wss": AppProtocol.TLS,
}
_ZONES = (Scope.NETWORK, Scope.REGION, Scope.ZONE)
_NODES = (*_ZONES, Scope.SUBZONE, Scope.NODE)
_DISTRIBUTIONS = {"preferclose": _ZONES, "prefersamezone": _ZONES, "prefersamenode": _NODES}


def hostname(service: KubernetesService, settings: Settings) -> str:
    return f"{service.metadata.name}.{service.metadata.namespace}.svc.{settings.cluster_domain}"


def convert(service: KubernetesService, annotations: Mapping[str, str], settings: Settings) -> Service | None:
    """None for an ExternalName service: it has neither address nor endpoints. `annotations`: of its namespace."""
    if service.spec.type == "ExternalName":
        return None
    return Service(
        name=service.metadata.name,
        namespace=service.metadata.namespace,
        hostname=hostname(service, settings),
        addresses=tuple(canonical_ip(ip) for ip in service.spec.addresses),
        ports=tuple(
            Port(service_port=port.port, target_port=_numeric_target(port), app_protocol=app_protocol(port))
            for port in service.spec.ports
            if port.protocol == "TCP"
        ),
        ip_families=_families(service.spec.ip_families),
        load_balancing=load_balancing(service, annotations),
        canonical=True,
    )


def endpoint_ports(service: KubernetesService, pod: Pod) -> tuple[Port, ...]:
    """The service's TCP ports as this pod serves them; a named port that the pod does not have is left out."""
    ports = []
    for port in service.spec.ports:
        target = _target(port, pod) if port.protocol == "TCP" else 0
        if target:
            ports.append(Port(service_port=port.port, target_port=target, app_protocol=app_protocol(port)))
    return tuple(ports)


def app_protocol(port: ServicePort) -> AppProtocol:
    """appProtocol, else the port name's first part (`http`, `http-web`; `grpc-web` is one word)."""
    given = port.app_protocol.lower()
    if given:
        return _PROTOCOLS.get(given, AppProtocol.UNKNOWN)
    name = port.name.lower()
    return _PROTOCOLS.get(name) or _PROTOCOLS.get(name.partition("-")[0], AppProtocol.UNKNOWN)


def load_balancing(service: KubernetesService, annotations: Mapping[str, str]) -> LoadBalancing:
    """internalTrafficPolicy, then trafficDistribution, then the annotation of the service, then of its namespace."""
    spec = service.spec
    health = HealthPolicy.ALLOW_ALL if spec.publish_not_ready_addresses else HealthPolicy.ONLY_HEALTHY
    if spec.internal_traffic_policy == "Local":
        return LoadBalancing(routing_preference=(Scope.NODE,), mode=BalancingMode.STRICT, health_policy=health)
    for wish in (
        spec.traffic_distribution,
        service.metadata.annotations.get(TRAFFIC_DISTRIBUTION, ""),
        annotations.get(TRAFFIC_DISTRIBUTION, ""),
    ):
        scopes = _DISTRIBUTIONS.get(wish.lower())
        if scopes is not None:
            return LoadBalancing(routing_preference=scopes, mode=BalancingMode.FAILOVER, health_policy=health)
    return LoadBalancing(health_policy=health)


def _numeric_target(port: ServicePort) -> int:
    """0: a named port, each endpoint has its own number."""
    return 0 if isinstance(port.target_port, str) else port.target_port or port.port


def _target(port: ServicePort, pod: Pod) -> int:
    if not isinstance(port.target_port, str):
        return port.target_port or port.port
    sidecars = (c for c in pod.spec.init_containers if c.restart_policy == "Always")
    for container in (*pod.spec.containers, *sidecars):
        for given in container.ports:
            if given.name == port.target_port and given.protocol == port.protocol:
                return given.container_port
    return 0


def _families(families: tuple[str, ...]) -> IpFamilies:
    if not families:
        return IpFamilies.AUTOMATIC
    if len(set(families)) == 2:
        return IpFamilies.DUAL
    return IpFamilies.IPV4_ONLY if families[0] == "IPv4" else IpFamilies.IPV6_ONLY
