"""What the kernel side draws has the odds that `route.pick` gives, and what it cannot know is left to the agent."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mesh import balance
from mesh.balance import Balance, Balances, Endpoint, plan
from mesh.model import (
    BalancingMode,
    Flow,
    HealthPolicy,
    IpFamilies,
    LoadBalancing,
    Locality,
    Port,
    Scope,
    Service,
    SocketAddress,
    TunnelProtocol,
    Workload,
    WorkloadStatus,
)
from mesh.route import Refuse, pick
from mesh.snapshot import Delta, Snapshot

NAME = "shop/web.shop.svc.cluster.local"
VIP4, VIP6 = SocketAddress("10.9.0.1", 80), SocketAddress("fd09::1", 80)
WEB = Service(
    name="web",
    namespace="shop",
    hostname="web.shop.svc.cluster.local",
    addresses=(VIP4.ip, VIP6.ip),
    ports=(Port(service_port=80, target_port=8080),),
    ip_families=IpFamilies.DUAL,
)


def pod(number: int, **changes: object) -> Workload:
    """Of node n1 and zone z1, and an endpoint of the Service, if nothing else is said."""
    values: dict = {
        "uid": f"Kubernetes//Pod/shop/p{number}",
        "name": f"p{number}",
        "namespace": "shop",
        "instance": f"i{number}",
        "addresses": (f"10.0.0.{number}", f"fd00::{number}"),
        "node": "n1",
        "locality": Locality(region="r", zone="z1"),
        "tunnel_protocol": TunnelProtocol.HBONE,
        "capture": True,
        "services": {NAME: ()},
    }
    return Workload(**(values | changes))


CLIENT = pod(1, services={})


def holding(*resources: Workload | Service) -> Snapshot:
    return Snapshot().apply(Delta(upserts=resources))


def planned(*resources: Workload | Service, targets: Iterable[Workload], before: Balances | None = None) -> Balances:
    """Every workload of node n1 may dial directly."""
    sources = {w.instance: w for w in resources if isinstance(w, Workload) and w.node == "n1"}
    return plan(holding(*resources), sources, [w.instance for w in targets], before=before)


def here(number: int, vip: SocketAddress, weight: int = 1, port: int = 8080) -> Endpoint:
    ip = f"fd00::{number}" if ":" in vip.ip else f"10.0.0.{number}"
    return Endpoint(instance=f"i{number}", address=SocketAddress(ip, port), weight=weight)


def test_targets_are_listed_and_all_others_are_elsewhere() -> None:
    a, b, far = pod(2), pod(3, capacity=4), pod(4, node="n2", capacity=7)
    made = planned(CLIENT, WEB, a, b, far, targets=(a, b))
    assert made.spread == {vip: Balance(endpoints=(here(2, vip), here(3, vip, 4)), elsewhere=7) for vip in (VIP4, VIP6)}


@pytest.mark.parametrize(
    ("service", "endpoint"),
    [
        (WEB, pod(2, services={})),
        (WEB, pod(2, status=WorkloadStatus.UNHEALTHY)),
        (replace(WEB, load_balancing=LoadBalancing(mode=BalancingMode.PASSTHROUGH)), pod(2)),
        (replace(WEB, ports=()), pod(2)),
        (replace(WEB, addresses=()), pod(2)),  # headless
        (replace(WEB, ports=(Port(service_port=80, target_port=0),)), pod(2)),  # named, and the pod has none
        (replace(WEB, ports=(Port(service_port=80, target_port=15008),)), pod(2)),
        (replace(WEB, network="elsewhere"), pod(2)),
        (WEB, pod(2, capacity=1 << 60)),
    ],
)
def test_what_the_kernel_has_no_part_in(service: Service, endpoint: Workload) -> None:
    far = pod(9, node="n2", capacity=1 << 50 if endpoint.capacity > 1 else 1)
    assert planned(CLIENT, service, endpoint, far, targets=(endpoint,)).spread == {}


def test_without_a_target_there_is_nothing_to_draw() -> None:
    assert planned(CLIENT, WEB, pod(2), targets=()).spread == {}


def test_an_unready_endpoint_takes_part_where_the_service_wants_it() -> None:
    everyone = replace(WEB, load_balancing=LoadBalancing(health_policy=HealthPolicy.ALLOW_ALL))
    unready = pod(2, status=WorkloadStatus.UNHEALTHY)
    assert planned(CLIENT, everyone, unready, targets=(unready,)).spread[VIP4].endpoints == (here(2, VIP4),)


def test_an_address_that_two_services_share_depends_on_who_asks() -> None:
    other = replace(WEB, namespace="other", addresses=(VIP4.ip,))
    a = pod(2)
    assert planned(CLIENT, WEB, other, a, targets=(a,)).spread.keys() == {VIP6}


def test_so_does_a_preference_for_what_pods_of_one_node_differ_in() -> None:
    near = LoadBalancing(mode=BalancingMode.FAILOVER, routing_preference=(Scope.CLUSTER,))
    a, b = pod(2), pod(3, cluster_id="c2")
    service = replace(WEB, load_balancing=near)
    assert planned(CLIENT, service, a, b, targets=(a, b)).spread == {}
    assert planned(CLIENT, service, a, targets=(a,)).spread.keys() == {VIP4, VIP6}


def test_a_socket_has_one_family() -> None:
    old, new = pod(2, addresses=("10.0.0.2",)), pod(3, addresses=("fd00::3",))
    made = planned(CLIENT, replace(WEB, ip_families=IpFamilies.AUTOMATIC), old, new, targets=(old, new))
    assert made.spread[VIP4] == Balance(endpoints=(here(2, VIP4),), elsewhere=1)
    assert made.spread[VIP6] == Balance(endpoints=(here(3, VIP6),), elsewhere=1)


def test_more_than_there_is_room_for_are_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "ENDPOINTS", 2)
    pods = [pod(n) for n in (4, 2, 3)]
    assert planned(CLIENT, WEB, *pods, targets=pods).spread[VIP4] == Balance(
        endpoints=(here(2, VIP4), here(3, VIP4)), elsewhere=1
    )


def test_what_has_not_changed_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pod(2), pod(3)
    before = planned(CLIENT, WEB, a, b, targets=(a, b))
    monkeypatch.setattr(balance, "candidates", None)
    after = planned(CLIENT, WEB, a, b, targets=(a, b), before=before)
    assert after.made[NAME] is before.made[NAME]


@pytest.mark.parametrize(
    "changed",
    [
        replace(WEB, ports=(Port(service_port=80, target_port=9090),)),
        pod(2, capacity=3),
        pod(3, status=WorkloadStatus.UNHEALTHY),
        pod(4, node="n2"),
        replace(WEB, namespace="other", addresses=(VIP4.ip,)),
    ],
)
def test_what_has_changed_is(changed: Workload | Service) -> None:
    a, b = pod(2), pod(3)
    before = planned(CLIENT, WEB, a, b, targets=(a, b))
    resources = {r.key: r for r in (CLIENT, WEB, a, b, changed)}.values()
    after = planned(*resources, targets=(a, b), before=before)
    assert after.spread != before.spread
    assert after == planned(*resources, targets=(a, b))


def test_a_plan_has_an_end_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "WORK", 2)
    services = [replace(WEB, hostname=f"s{n}", addresses=(f"10.9.0.{n}",)) for n in range(5)]
    one = pod(2, services={f"shop/s{n}": () for n in range(5)})
    made, seen = None, []
    while made is None or not made.complete:
        made = planned(CLIENT, *services, one, targets=(one,), before=made)
        seen.append(len(made.spread))
    assert seen == [3, 5]


# Any Service: what the kernel draws, with what the agent makes of a draw that is elsewhere, has the odds of `pick`.

PARTS = math.lcm(*range(1, 20))


@dataclass
class Spinner:
    """Of `route.Rng`, the middle of one of PARTS parts of the unit interval."""

    part: int = 0

    def random(self) -> float:
        return (2 * self.part + 1) / (2 * PARTS)


def odds(snapshot: Snapshot, vip: SocketAddress, besides: frozenset[SocketAddress]) -> dict[str, Fraction]:
    """Of each endpoint, by pick(): its share of the unit interval, which is one piece."""
    counted: Counter[str] = Counter()

    def at(part: int) -> str:
        route = pick(snapshot, Flow(CLIENT, vip), Spinner(part), besides=besides)
        return "none" if isinstance(route, Refuse) else str(getattr(route, "authority", route))

    def count(first: int, last: int) -> None:
        if at(first) == at(last):
            counted[at(first)] += last - first + 1
        else:
            middle = (first + last) // 2
            count(first, middle)
            count(middle + 1, last)

    count(0, PARTS - 1)
    return {name: Fraction(n, PARTS) for name, n in counted.items()}


@st.composite
def endpoints(draw: st.DrawFn) -> list[Workload]:
    capacities = draw(st.sampled_from([[1], [0], [0, 1], [1, 3]]))
    made: list[Workload] = []
    for n in range(2, draw(st.integers(3, 8))):
        node, zone = draw(st.sampled_from([("n1", "z1"), ("n2", "z1"), ("n3", "z2")]))
        addresses = (f"10.0.0.{n}", f"fd00::{n}")
        made.append(
            pod(
                n,
                node=node,
                locality=Locality(region="r", zone=zone),
                status=draw(st.sampled_from([*WorkloadStatus, WorkloadStatus.HEALTHY])),
                capacity=draw(st.sampled_from(capacities)),
                addresses=draw(st.sampled_from([addresses, addresses, addresses[:1], addresses[1:], ()])),
                services={NAME: draw(st.sampled_from([(), (Port(service_port=80, target_port=9090),)]))},
            )
        )
    return made


@st.composite
def services(draw: st.DrawFn) -> Service:
    balancing = LoadBalancing(
        mode=draw(st.sampled_from([BalancingMode.UNSPECIFIED, BalancingMode.STRICT, BalancingMode.FAILOVER])),
        health_policy=draw(st.sampled_from(HealthPolicy)),
        routing_preference=draw(st.sampled_from([(Scope.NODE,), (Scope.ZONE,), (Scope.NETWORK, Scope.ZONE)])),
    )
    return replace(WEB, ip_families=draw(st.sampled_from(IpFamilies)), load_balancing=balancing)


@given(services(), endpoints(), st.sampled_from([VIP4, VIP6]))
def test_the_odds_are_those_of_the_agent(service: Service, pods: Sequence[Workload], vip: SocketAddress) -> None:
    targets = [w for w in pods if w.node == "n1" and w.addresses]
    snapshot = holding(CLIENT, service, *pods)
    made = planned(CLIENT, service, *pods, targets=targets).spread.get(vip)
    assume(made is not None)
    total = made.elsewhere + sum(e.weight for e in made.endpoints)
    drawn = {str(e.address): Fraction(e.weight, total) for e in made.endpoints}
    if made.elsewhere:
        for name, share in odds(snapshot, vip, frozenset(e.address for e in made.endpoints)).items():
            drawn[name] = drawn.get(name, Fraction(0)) + share * Fraction(made.elsewhere, total)
    assert drawn == odds(snapshot, vip, frozenset())
    for endpoint in made.endpoints:
        route = pick(snapshot, Flow(CLIENT, vip), random.Random(1), drawn=endpoint.address)
        assert getattr(route, "authority", None) == endpoint.address
