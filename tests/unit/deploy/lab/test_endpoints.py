"""Which pods stand behind which service port."""

from __future__ import annotations

from deploy.lab.dns import hosts
from deploy.lab.endpoints import ServicePort, service_ports, target_port
from deploy.lab.manifest import Key, Object


def pod(
    name: str, ip: str, *, ready: bool = True, phase: str = "Running", labels: Object | None = None, **spec: object
) -> Object:
    ports = [{"name": "http", "containerPort": 8080}, {"name": "http", "containerPort": 53, "protocol": "UDP"}]
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": labels or {"app": "web"}},
        "spec": {"containers": [{"name": "c", "ports": ports}], **spec},
        "status": {
            "phase": phase,
            "podIPs": [{"ip": ip}, {"ip": f"fd00::{ip.rpartition('.')[2]}"}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def service(
    name: str = "web", *, ips: tuple[str, ...] = ("10.70.1.0",), target: int | str = "http", **spec: object
) -> Object:
    return {
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "selector": {"app": "web"},
            "clusterIPs": list(ips),
            "ports": [{"port": 80, "targetPort": target, "protocol": "TCP"}],
            **spec,
        },
    }


def objects(*items: Object) -> dict[Key, Object]:
    return {Key(i["kind"], i["metadata"]["namespace"], i["metadata"]["name"]): i for i in items}


def behind(*items: Object) -> list[tuple[str, tuple[tuple[str, int], ...]]]:
    return [(port.cluster_ip, port.endpoints) for port in service_ports(objects(*items))]


def test_ready_pods_serve_in_the_service_s_families() -> None:
    two = pod("a", "10.1.0.2"), pod("b", "10.1.0.3")
    assert behind(service(), *two) == [("10.70.1.0", (("10.1.0.2", 8080), ("10.1.0.3", 8080)))]
    assert behind(service(ips=("fd00:70::1",)), *two) == [("fd00:70::1", (("fd00::2", 8080), ("fd00::3", 8080)))]


def test_pods_that_do_not_serve() -> None:
    ending = pod("e", "10.1.0.6")
    ending["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    others = (
        pod("unready", "10.1.0.3", ready=False),
        pod("done", "10.1.0.4", phase="Succeeded"),
        pod("other", "10.1.0.5", labels={"app": "other"}),
        ending,
    )
    assert behind(service(), *others) == [("10.70.1.0", ())]
    assert behind(service(publishNotReadyAddresses=True), *others) == [("10.70.1.0", (("10.1.0.3", 8080),))]
    assert behind(service(selector={}), pod("a", "10.1.0.2")) == [("10.70.1.0", ())]


def test_target_ports() -> None:
    one = pod("a", "10.1.0.2")
    assert target_port(one, {"targetPort": 9}) == 9
    assert target_port(one, {"targetPort": "http", "protocol": "UDP"}) == 53
    assert target_port(one, {"targetPort": "absent"}) is None
    assert behind(service(target="absent"), one) == [("10.70.1.0", ())]


def test_headless_services_have_names_and_no_ports() -> None:
    named = pod("a", "10.1.0.2", hostname="first", subdomain="web")
    headless = service(ips=("None",), ipFamilies=["IPv4"])
    assert behind(headless, named) == []
    records = hosts(
        objects(headless, named, pod("b", "10.1.0.3"), pod("c", "10.1.0.4", ready=False)), {"x.svc": ["1.1.1.1"]}
    )
    assert records == (
        "1.1.1.1 x.svc\n"
        "10.1.0.2 first.web.shop.svc.cluster.local\n"
        "10.1.0.2 web.shop.svc.cluster.local\n"
        "10.1.0.3 web.shop.svc.cluster.local\n"
    )


def test_names_of_services_with_addresses() -> None:
    assert hosts(objects(service(ips=("10.70.1.0", "fd00:70::1"))), {}) == (
        "10.70.1.0 web.shop.svc.cluster.local\nfd00:70::1 web.shop.svc.cluster.local\n"
    )


def test_ports_are_in_a_stable_order() -> None:
    found = service_ports(objects(service("z"), service("a"), pod("p", "10.1.0.2")))
    assert [port.service for port in found] == ["a", "z"] and isinstance(found[0], ServicePort)
