"""Services, their ports at one endpoint, and how to balance."""

from __future__ import annotations

from typing import Any

import pytest

from controller.translate import service
from controller.translate.settings import Settings
from mesh.model import AppProtocol, BalancingMode, HealthPolicy, IpFamilies, LoadBalancing, Port, Scope
from mesh.resources import Pod, Service, parse
from mesh.resources.service import ServicePort

ZONES = (Scope.NETWORK, Scope.REGION, Scope.ZONE)


def kubernetes(spec: dict[str, Any], annotations: dict[str, str] | None = None) -> Service:
    metadata = {"name": "s", "namespace": "shop", "annotations": annotations or {}}
    full = {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]} | spec
    made = parse({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": full}, file="f")
    assert isinstance(made, Service)
    return made


def convert(spec: dict[str, Any]) -> Any:
    return service.convert(kubernetes(spec), {}, Settings())


def pod(*ports: dict[str, Any], sidecar: tuple[dict[str, Any], ...] = ()) -> Pod:
    spec = {
        "containers": [{"name": "a"}, {"name": "b", "ports": list(ports)}],
        "initContainers": [
            {"name": "once", "ports": [{"name": "http", "containerPort": 1}]},
            {"name": "side", "restartPolicy": "Always", "ports": list(sidecar)},
        ],
    }
    made = parse({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}, file="f")
    assert isinstance(made, Pod)
    return made


def test_names_and_addresses() -> None:
    made = convert({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "FD00:0::1"]})
    assert (made.name, made.namespace, made.hostname) == ("s", "shop", "s.shop.svc.cluster.local")
    assert made.namespaced_hostname == "shop/s.shop.svc.cluster.local"
    assert made.addresses == ("10.96.0.1", "fd00::1")
    assert made.canonical


def test_headless_and_external_name() -> None:
    assert convert({"clusterIP": "None"}).addresses == ()
    assert convert({"clusterIP": "None", "clusterIPs": ["None"], "ports": []}).ports == ()
    assert convert({"type": "ExternalName", "externalName": "example.org", "clusterIP": ""}) is None


def test_ports_are_tcp_and_a_named_target_is_zero() -> None:
    made = convert(
        {
            "ports": [
                {"port": 80, "name": "http", "targetPort": "web"},
                {"port": 81, "name": "tcp"},
                {"port": 82, "name": "grpc-x", "targetPort": 8082},
                {"port": 53, "name": "dns", "protocol": "UDP"},
            ]
        }
    )
    assert made.ports == (
        Port(service_port=80, target_port=0, app_protocol=AppProtocol.HTTP11),
        Port(service_port=81, target_port=81, app_protocol=AppProtocol.TCP),
        Port(service_port=82, target_port=8082, app_protocol=AppProtocol.GRPC),
    )


def test_named_target_ports_are_the_endpoints_own() -> None:
    named = kubernetes({"ports": [{"port": 80, "targetPort": "http"}]})
    assert service.endpoint_ports(named, pod({"name": "http", "containerPort": 8080})) == (
        Port(service_port=80, target_port=8080),
    )
    assert service.endpoint_ports(named, pod({"name": "other", "containerPort": 8080})) == ()
    assert service.endpoint_ports(named, pod({"name": "http", "containerPort": 53, "protocol": "UDP"})) == ()
    assert service.endpoint_ports(named, pod(sidecar=({"name": "http", "containerPort": 9},)))[0].target_port == 9
    numbered = kubernetes({"ports": [{"port": 80, "targetPort": 8080}]})
    assert service.endpoint_ports(numbered, pod())[0].target_port == 8080


@pytest.mark.parametrize(
    ("port", "protocol"),
    [
        ({"name": "http"}, AppProtocol.HTTP11),
        ({"name": "http-web"}, AppProtocol.HTTP11),
        ({"name": "http2-x"}, AppProtocol.HTTP2),
        ({"name": "grpc-web"}, AppProtocol.GRPC),
        ({"name": "https"}, AppProtocol.TLS),
        ({"name": "tls-x"}, AppProtocol.TLS),
        ({"name": "web"}, AppProtocol.UNKNOWN),
        ({}, AppProtocol.UNKNOWN),
        ({"name": "http", "app_protocol": "kubernetes.io/h2c"}, AppProtocol.HTTP2),
        ({"name": "http", "app_protocol": "TCP"}, AppProtocol.TCP),
        ({"name": "http", "app_protocol": "example.org/own"}, AppProtocol.UNKNOWN),
    ],
)
def test_app_protocol(port: dict[str, str], protocol: AppProtocol) -> None:
    assert service.app_protocol(ServicePort(port=80, **port)) is protocol


@pytest.mark.parametrize(
    ("spec", "own", "namespace", "expected"),
    [
        ({}, "", "", LoadBalancing()),
        (
            {"internalTrafficPolicy": "Local"},
            "",
            "",
            LoadBalancing(routing_preference=(Scope.NODE,), mode=BalancingMode.STRICT),
        ),
        (
            {"internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose"},
            "",
            "",
            LoadBalancing(routing_preference=(Scope.NODE,), mode=BalancingMode.STRICT),
        ),
        (
            {"trafficDistribution": "PreferClose"},
            "",
            "",
            LoadBalancing(routing_preference=ZONES, mode=BalancingMode.FAILOVER),
        ),
        (
            {"trafficDistribution": "PreferSameZone"},
            "PreferSameNode",
            "",
            LoadBalancing(routing_preference=ZONES, mode=BalancingMode.FAILOVER),
        ),
        (
            {"trafficDistribution": "PreferSameNode"},
            "",
            "",
            LoadBalancing(routing_preference=(*ZONES, Scope.SUBZONE, Scope.NODE), mode=BalancingMode.FAILOVER),
        ),
        ({}, "preferclose", "PreferSameNode", LoadBalancing(routing_preference=ZONES, mode=BalancingMode.FAILOVER)),
        ({}, "", "PreferSameZone", LoadBalancing(routing_preference=ZONES, mode=BalancingMode.FAILOVER)),
        ({"trafficDistribution": "Random"}, "", "", LoadBalancing()),
        ({"publishNotReadyAddresses": True}, "", "", LoadBalancing(health_policy=HealthPolicy.ALLOW_ALL)),
        (
            {"publishNotReadyAddresses": True, "internalTrafficPolicy": "Local"},
            "",
            "",
            LoadBalancing(
                routing_preference=(Scope.NODE,), mode=BalancingMode.STRICT, health_policy=HealthPolicy.ALLOW_ALL
            ),
        ),
    ],
)
def test_load_balancing(spec: dict[str, Any], own: str, namespace: str, expected: LoadBalancing) -> None:
    given = kubernetes(spec, {service.TRAFFIC_DISTRIBUTION: own} if own else {})
    assert service.load_balancing(given, {service.TRAFFIC_DISTRIBUTION: namespace} if namespace else {}) == expected


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        ([], IpFamilies.AUTOMATIC),
        (["IPv4"], IpFamilies.IPV4_ONLY),
        (["IPv6"], IpFamilies.IPV6_ONLY),
        (["IPv6", "IPv4"], IpFamilies.DUAL),
    ],
)
def test_families(families: list[str], expected: IpFamilies) -> None:
    assert convert({"ipFamilies": families}).ip_families is expected
