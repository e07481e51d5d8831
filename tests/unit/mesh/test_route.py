"""Where connections go, as tables (istio-facts §1.8)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from mesh.identity import SpiffeId
from mesh.model import (
    BalancingMode,
    Flow,
    HealthPolicy,
    IpFamilies,
    LoadBalancing,
    Locality,
    Port,
    Resource,
    Scope,
    Service,
    SocketAddress,
    TunnelProtocol,
    Workload,
    WorkloadStatus,
)
from mesh.reason import Reason
from mesh.route import Plain, Refuse, Route, Tunnel, pick, service_of
from mesh.snapshot import Delta, Snapshot

HBONE, NONE = TunnelProtocol.HBONE, TunnelProtocol.NONE
WEB = Service(
    name="web",
    namespace="default",
    hostname="web.default.svc.cluster.local",
    addresses=("10.9.0.1", "fd09::1"),
    ports=(Port(service_port=80, target_port=8080), Port(service_port=443, target_port=0)),
)


def pod(name: str, ip: str, protocol: TunnelProtocol = HBONE, **given: object) -> Workload:
    given.setdefault("addresses", (ip,))
    given.setdefault("services", {WEB.namespaced_hostname: ()})
    return Workload(
        uid=f"Kubernetes//Pod/default/{name}",
        name=name,
        namespace="default",
        tunnel_protocol=protocol,
        **given,  # type: ignore[arg-type]
    )


CLIENT = pod(
    "client",
    "10.0.0.1",
    services={},
    node="n1",
    locality=Locality(region="r1", zone="z1", subzone="s1"),
)


def going(to: str, *resources: Resource, seed: int = 1) -> Route:
    snapshot = Snapshot().apply(Delta(upserts=(CLIENT, *resources)))
    return pick(snapshot, Flow(CLIENT, SocketAddress.parse(to)), random.Random(seed))


def test_an_enrolled_workload_is_reached_through_the_tunnel() -> None:
    server = pod("server", "10.0.0.2")
    route = going("10.0.0.2:9000", server)
    assert route == Tunnel(
        workload=server, address=SocketAddress("10.0.0.2", 15008), authority=SocketAddress("10.0.0.2", 9000)
    )


def test_a_workload_of_the_same_node_too() -> None:
    assert isinstance(going("10.0.0.2:9000", pod("server", "10.0.0.2", node="n1")), Tunnel)


def test_other_workloads_are_reached_in_plain() -> None:
    server = pod("server", "10.0.0.2", NONE)
    assert going("10.0.0.2:9000", server) == Plain(destination=SocketAddress("10.0.0.2", 9000), workload=server)


def test_unknown_addresses_pass_as_they_are() -> None:
    assert going("192.0.2.1:443") == Plain(destination=SocketAddress("192.0.2.1", 443))


@pytest.mark.parametrize("to", ["127.0.0.1:15001", "127.9.9.9:15006", "[::1]:15008"])
def test_loopback_and_an_illegal_port_is_refused(to: str) -> None:
    route = going(to)
    assert isinstance(route, Refuse)
    assert route.reason is Reason.ILLEGAL_PORT


def test_an_illegal_port_elsewhere_is_the_destinations_to_refuse() -> None:
    assert isinstance(going("10.0.0.2:15006", pod("server", "10.0.0.2")), Tunnel)


def test_a_service_vip_is_balanced_to_the_target_port() -> None:
    server = pod("server", "10.0.0.2")
    route = going("10.9.0.1:80", WEB, server)
    assert route == Tunnel(
        workload=server,
        address=SocketAddress("10.0.0.2", 15008),
        authority=SocketAddress("10.0.0.2", 8080),
        service=WEB,
    )


def test_a_vip_goes_before_a_workload_of_that_address() -> None:
    route = going("10.9.0.1:80", WEB, pod("server", "10.0.0.2"), pod("squatter", "10.9.0.1", services={}))
    assert isinstance(route, Tunnel)
    assert route.workload.name == "server"


def test_endpoints_outside_the_mesh_are_dialled_in_plain() -> None:
    server = pod("server", "10.0.0.2", NONE)
    assert going("10.9.0.1:80", WEB, server) == Plain(
        destination=SocketAddress("10.0.0.2", 8080), workload=server, service=WEB
    )


@pytest.mark.parametrize(
    ("mapping", "to", "expected"),
    [
        ((), "10.9.0.1:80", 8080),
        ((Port(service_port=80, target_port=8081),), "10.9.0.1:80", 8081),
        ((Port(service_port=443, target_port=8443),), "10.9.0.1:443", 8443),
        ((Port(service_port=443, target_port=8443),), "10.9.0.1:80", 8080),
    ],
    ids=["service's", "endpoint's own goes first", "named", "other port's mapping"],
)
def test_target_ports(mapping: tuple[Port, ...], to: str, expected: int) -> None:
    route = going(to, WEB, pod("server", "10.0.0.2", services={WEB.namespaced_hostname: mapping}))
    assert isinstance(route, Tunnel)
    assert route.authority.port == expected


@pytest.mark.parametrize(
    ("to", "endpoints", "reason", "detail"),
    [
        ("10.9.0.1:81", [pod("a", "10.0.0.2")], Reason.NO_SERVICE_PORT, "has no port 81; it has 80, 443"),
        ("10.9.0.1:80", [], Reason.NO_ENDPOINT, "selects no pods"),
        ("10.9.0.1:443", [pod("a", "10.0.0.2")], Reason.NO_ENDPOINT, "none of the 1 endpoints"),
        ("10.9.0.1:80", [pod("a", "", addresses=())], Reason.NO_ENDPOINT, "none of the 1 endpoints"),
        (
            "10.9.0.1:80",
            [pod("a", "10.0.0.2", status=WorkloadStatus.UNHEALTHY)],
            Reason.NO_ENDPOINT,
            "none of the 1 endpoints of service default/web.default.svc.cluster.local is ready",
        ),
    ],
)
def test_refusals_say_what_is_missing(to: str, endpoints: list[Workload], reason: Reason, detail: str) -> None:
    route = going(to, WEB, *endpoints)
    assert isinstance(route, Refuse)
    assert route.reason is reason
    assert detail in route.detail


def chosen(service: Service, *endpoints: Workload, n: int = 400, to: str = "10.9.0.1:80") -> Counter[str]:
    snapshot = Snapshot().apply(Delta(upserts=(CLIENT, service, *endpoints)))
    rng, flow = random.Random(7), Flow(CLIENT, SocketAddress.parse(to))
    routes = [pick(snapshot, flow, rng) for _ in range(n)]
    return Counter(r.workload.name if isinstance(r, Tunnel) else type(r).__name__ for r in routes)


def test_balanced_by_capacity() -> None:
    found = chosen(WEB, pod("a", "10.0.0.2", capacity=3), pod("b", "10.0.0.3"), pod("c", "10.0.0.4", capacity=0))
    assert set(found) == {"a", "b"}
    assert 250 < found["a"] < 350


def test_all_capacities_zero_means_evenly() -> None:
    found = chosen(WEB, pod("a", "10.0.0.2", capacity=0), pod("b", "10.0.0.3", capacity=0))
    assert 120 < found["a"] < 280


def test_unready_endpoints_serve_where_the_service_wants_them_to() -> None:
    everyone = replace(WEB, load_balancing=LoadBalancing(health_policy=HealthPolicy.ALLOW_ALL))
    unready = pod("b", "10.0.0.3", status=WorkloadStatus.UNHEALTHY)
    assert set(chosen(WEB, pod("a", "10.0.0.2"), unready)) == {"a"}
    assert set(chosen(everyone, pod("a", "10.0.0.2"), unready)) == {"a", "b"}


A, B, C = (pod(name, f"10.0.0.{n}") for n, name in enumerate("abc", start=2))


@pytest.mark.parametrize(
    ("drawn", "besides", "expected"),
    [
        (None, (), {"a", "b", "c"}),
        ("10.0.0.3:8080", (), {"b"}),
        ("10.0.0.3:8080", ("10.0.0.3:8080",), {"b"}),
        ("10.0.0.3:80", (), {"a", "b", "c"}),  # none of its ports
        ("10.0.0.9:8080", (), {"a", "b", "c"}),  # none of the endpoints, any more
        (None, ("10.0.0.2:8080", "10.0.0.9:8080"), {"b", "c"}),
        ("10.0.0.9:8080", ("10.0.0.2:8080",), {"b", "c"}),
        (None, ("10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080"), {"a", "b", "c"}),  # there are no others any more
    ],
)
def test_what_was_drawn_already_is_honoured(drawn: str | None, besides: tuple[str, ...], expected: set[str]) -> None:
    snapshot = Snapshot().apply(Delta(upserts=(CLIENT, WEB, A, B, C)))
    rng, flow = random.Random(7), Flow(CLIENT, SocketAddress.parse("10.9.0.1:80"))
    chosen = SocketAddress.parse(drawn) if drawn else None
    others = frozenset(map(SocketAddress.parse, besides))
    routes = [pick(snapshot, flow, rng, drawn=chosen, besides=others) for _ in range(100)]
    assert {r.workload.name for r in routes if isinstance(r, Tunnel)} == expected


def test_a_draw_is_about_services_only() -> None:
    snapshot = Snapshot().apply(Delta(upserts=(CLIENT, A, B)))
    flow = Flow(CLIENT, SocketAddress.parse("10.0.0.2:9000"))
    route = pick(snapshot, flow, random.Random(1), drawn=SocketAddress.parse("10.0.0.3:9000"))
    assert isinstance(route, Tunnel)
    assert route.workload == A


NEAR = pod("near", "10.0.0.2", node="n1", locality=Locality(region="r1", zone="z1", subzone="s1"))
ZONE = pod("zone", "10.0.0.3", node="n2", locality=Locality(region="r1", zone="z1", subzone="s2"))
REGION = pod("region", "10.0.0.4", node="n3", locality=Locality(region="r1", zone="z2", subzone="s1"))
FAR = pod("far", "10.0.0.5", node="n4", locality=Locality(region="r2", zone="z1", subzone="s1"))
OTHER_NETWORK = pod("other", "10.0.0.6", network="net2", locality=Locality(region="r1", zone="z1"))


@pytest.mark.parametrize(
    ("mode", "preference", "endpoints", "expected"),
    [
        (BalancingMode.STRICT, (Scope.NODE,), [NEAR, ZONE, FAR], {"near"}),
        (BalancingMode.STRICT, (Scope.NODE,), [ZONE, FAR], {"Refuse"}),
        (BalancingMode.STRICT, (Scope.REGION, Scope.ZONE), [NEAR, ZONE, REGION], {"near", "zone"}),
        (BalancingMode.FAILOVER, (Scope.REGION, Scope.ZONE), [ZONE, REGION, FAR], {"zone"}),
        (BalancingMode.FAILOVER, (Scope.REGION, Scope.ZONE), [REGION, FAR], {"region"}),
        (BalancingMode.FAILOVER, (Scope.REGION, Scope.ZONE), [FAR], {"far"}),
        (BalancingMode.FAILOVER, (Scope.REGION, Scope.ZONE, Scope.SUBZONE, Scope.NODE), [NEAR, ZONE], {"near"}),
        (BalancingMode.FAILOVER, (Scope.NETWORK, Scope.REGION, Scope.ZONE), [OTHER_NETWORK, FAR], {"far"}),
        (BalancingMode.FAILOVER, (Scope.NETWORK, Scope.REGION), [OTHER_NETWORK], {"other"}),
        (BalancingMode.FAILOVER, (Scope.CLUSTER,), [replace(NEAR, cluster_id="c2"), FAR], {"far"}),
        (BalancingMode.UNSPECIFIED, (Scope.NODE,), [NEAR, FAR], {"near", "far"}),
    ],
)
def test_locality(
    mode: BalancingMode, preference: tuple[Scope, ...], endpoints: list[Workload], expected: set[str]
) -> None:
    service = replace(WEB, load_balancing=LoadBalancing(mode=mode, routing_preference=preference))
    assert set(chosen(service, *endpoints, n=60)) == expected


def test_passthrough_goes_where_the_application_asked() -> None:
    service = replace(WEB, load_balancing=LoadBalancing(mode=BalancingMode.PASSTHROUGH))
    destination = SocketAddress("10.9.0.1", 1234)
    assert going("10.9.0.1:1234", service) == Plain(destination=destination, service=service)


BOTH = pod("both", "", addresses=("10.0.0.2", "fd00::2"))


@pytest.mark.parametrize(
    ("families", "addresses", "to", "expected"),
    [
        (IpFamilies.AUTOMATIC, ("10.0.0.2", "fd00::2"), "10.9.0.1:80", "10.0.0.2"),
        (IpFamilies.AUTOMATIC, ("10.0.0.2", "fd00::2"), "[fd09::1]:80", "fd00::2"),
        (IpFamilies.IPV6_ONLY, ("10.0.0.2", "fd00::2"), "10.9.0.1:80", "fd00::2"),
        (IpFamilies.IPV4_ONLY, ("10.0.0.2", "fd00::2"), "[fd09::1]:80", "10.0.0.2"),
        (IpFamilies.DUAL, ("10.0.0.2", "fd00::2"), "[fd09::1]:80", "fd00::2"),
        (IpFamilies.AUTOMATIC, ("fd00::2",), "10.9.0.1:80", "fd00::2"),
    ],
)
def test_address_family(families: IpFamilies, addresses: tuple[str, ...], to: str, expected: str) -> None:
    route = going(to, replace(WEB, ip_families=families), replace(BOTH, addresses=addresses))
    assert isinstance(route, Tunnel)
    assert route.authority.ip == expected
    assert route.address == SocketAddress(expected, 15008)


def test_expected_identities_are_the_workloads_and_the_services() -> None:
    names = ("spiffe://td/ns/a/sa/b", "dns.example", "spiffe://broken")
    route = going("10.9.0.1:80", replace(WEB, subject_alt_names=names), pod("server", "10.0.0.2"))
    assert isinstance(route, Tunnel)
    assert route.expected == {SpiffeId("cluster.local", "default", "default"), SpiffeId("td", "a", "b")}


OTHER = replace(
    WEB, name="other", hostname="other.default.svc.cluster.local", ports=(Port(service_port=1, target_port=2),)
)


@pytest.mark.parametrize(
    ("hostname", "port", "expected"),
    [
        ("web.default.svc.cluster.local", 2, "web"),
        ("", 8080, "web"),
        ("", 2, "other"),
        ("stranger.example", 2, "other"),
        ("", 9999, None),
    ],
)
def test_the_service_an_arrival_belongs_to(hostname: str, port: int, expected: str | None) -> None:
    server = pod("server", "10.0.0.2", services={WEB.namespaced_hostname: (), OTHER.namespaced_hostname: ()})
    snapshot = Snapshot().apply(Delta(upserts=(WEB, OTHER, server)))
    found = service_of(snapshot, server, port, hostname)
    assert (found.name if found is not None else None) == expected
