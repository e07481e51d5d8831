"""The nftables text of service addresses; that nft takes it is a matter of the lab's tests."""

from __future__ import annotations

from deploy.lab.endpoints import ServicePort
from deploy.lab.proxy import ruleset


def port(ip: str, *endpoints: tuple[str, int], name: str = "web", number: int = 80) -> ServicePort:
    return ServicePort(namespace="shop", service=name, protocol="tcp", cluster_ip=ip, port=number, endpoints=endpoints)


def made(*ports: ServicePort) -> str:
    return ruleset(ports, services=["10.70.0.0/16", "fd00:70::/112"], dns=["10.70.0.10", "fd00:70::a"])


def test_it_replaces_the_whole_table_at_once() -> None:
    text = made()
    assert text.startswith("add table inet kube-proxy\ndelete table inet kube-proxy\ntable inet kube-proxy {\n")
    assert text.count("{") == text.count("}") and "elements" not in text


def test_a_service_s_ports_go_to_a_random_endpoint() -> None:
    text = made(port("10.70.1.0", ("10.1.0.2", 8080), ("10.1.1.2", 8081)), port("fd00:70::1", ("fd00::2", 8080)))
    assert "elements = { 10.70.1.0 . tcp . 80 : goto ip-shop/web/tcp/80 }" in text
    assert "meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.1.0.2 . 8080, 1 : 10.1.1.2 . 8081 }" in text
    assert "meta l4proto tcp dnat ip6 to numgen random mod 1 map { 0 : fd00::2 . 8080 }" in text
    assert "elements = { 10.1.0.2 . 10.1.0.2, 10.1.1.2 . 10.1.1.2 }" in text  # a pod that reaches itself


def test_a_service_without_endpoints_is_refused_with_everything_unknown() -> None:
    text = made(port("10.70.1.0"))
    assert "10.70.1.0 ." not in text
    assert text.count("ip daddr 10.70.0.0/16 ip daddr != { 10.70.0.10 } jump refuse") == 2
    assert text.count("ip6 daddr fd00:70::/112 ip6 daddr != { fd00:70::a } jump refuse") == 2


def test_the_same_services_give_the_same_text() -> None:
    a, b = port("10.70.1.0", ("10.1.0.2", 1)), port("10.70.1.1", ("10.1.0.3", 1), name="other")
    assert made(a, b) == made(b, a)
