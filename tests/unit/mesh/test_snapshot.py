"""Snapshots: lookups with their tie-breaks, and deltas that lead to the same place by any way."""

from __future__ import annotations

import time
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.model import (
    Clause,
    Match,
    NetworkMode,
    Policy,
    PolicyAction,
    PolicyScope,
    Port,
    Resource,
    Rule,
    Service,
    Workload,
    WorkloadStatus,
)
from mesh.snapshot import Delta, Index, Snapshot, check


def pod(name: str, namespace: str = "default", **given: object) -> Workload:
    return Workload(uid=f"Kubernetes//Pod/{namespace}/{name}", name=name, namespace=namespace, **given)  # type: ignore[arg-type]


def service(name: str, namespace: str = "default", hostname: str = "", **given: object) -> Service:
    return Service(
        name=name,
        namespace=namespace,
        hostname=hostname or f"{name}.{namespace}.svc.cluster.local",
        **given,  # type: ignore[arg-type]
    )


def policy(name: str, namespace: str, scope: PolicyScope) -> Policy:
    return Policy(name=name, namespace=namespace, scope=scope, action=PolicyAction.DENY)


def holding(*resources: Resource) -> Snapshot:
    return Snapshot().apply(Delta(upserts=resources))


def test_a_workload_is_found_by_address_instance_pod_and_node() -> None:
    w = pod("a", addresses=("10.0.0.1", "fd00::1"), instance="i-1", node="n1")
    snapshot = holding(w)
    assert snapshot.workload_at("10.0.0.1") is w
    assert snapshot.workload_at("fd00::1") is w
    assert snapshot.workload_at("10.0.0.1", "other-network") is None
    assert snapshot.workload_of_pod("i-1", "default", "a") is w
    assert list(snapshot.on_node("n1")) == [w]


def test_another_instance_of_the_same_name_is_another_pod() -> None:
    snapshot = holding(pod("a", instance="old"))
    assert snapshot.workload_of_pod("new", "default", "a") is None


def test_a_workload_without_instance_is_found_by_name() -> None:
    w = pod("a")
    assert holding(w).workload_of_pod("any", "default", "a") is w


def test_host_network_pods_own_no_address() -> None:
    snapshot = holding(pod("a", addresses=("10.0.0.1",), network_mode=NetworkMode.HOST_NETWORK))
    assert snapshot.workload_at("10.0.0.1") is None


def test_of_two_claims_to_an_address_the_healthy_one_is_taken() -> None:
    finished = pod("a", addresses=("10.0.0.1",), status=WorkloadStatus.UNHEALTHY)
    running = pod("b", addresses=("10.0.0.1",))
    snapshot = holding(finished, running)
    assert snapshot.workload_at("10.0.0.1") is running
    assert snapshot.apply(Delta(removes=(running.key,))).workload_at("10.0.0.1") is finished


@pytest.mark.parametrize(
    ("client", "expected"),
    [("one", "one"), ("two", "two"), ("elsewhere", "three")],
    ids=["client's namespace", "client's namespace, though another is canonical", "canonical"],
)
def test_services_that_share_a_vip(client: str, expected: str) -> None:
    snapshot = holding(
        service("s", "one", "shared.example", addresses=("10.9.0.1",), canonical=False),
        service("s", "two", "shared.example", addresses=("10.9.0.1",), canonical=False),
        service("s", "three", "shared.example", addresses=("10.9.0.1",), canonical=True),
    )
    by_vip, by_name = snapshot.service_at("10.9.0.1", "", client), snapshot.service_named("shared.example", client)
    assert by_vip is not None and by_vip.namespace == expected
    assert by_name is by_vip


def test_all_services_of_a_vip() -> None:
    found = holding(*(service("s", each, addresses=("10.9.0.1",)) for each in ("one", "two")))
    assert {s.namespace for s in found.services_at("10.9.0.1")} == {"one", "two"}
    assert not found.services_at("10.9.0.1", "another network")


def test_a_service_forgets_the_address_it_lost() -> None:
    s = service("s", addresses=("10.9.0.1",))
    snapshot = holding(s).apply(Delta(upserts=(replace(s, addresses=("10.9.0.2",)),)))
    assert snapshot.service_at("10.9.0.1") is None
    assert snapshot.service_at("10.9.0.2") is not None


def test_endpoints_follow_the_workloads() -> None:
    s = service("s")
    w = pod("a", services={s.namespaced_hostname: (Port(service_port=80, target_port=8080),)})
    snapshot = holding(s, w)
    assert list(snapshot.endpoints(s)) == [w]
    assert list(snapshot.apply(Delta(upserts=(replace(w, services={}),))).endpoints(s)) == []


def test_policies_of_namespace_of_all_and_listed_ones_are_considered() -> None:
    everywhere = policy("everywhere", "istio-system", PolicyScope.GLOBAL)
    here = policy("here", "default", PolicyScope.NAMESPACE)
    elsewhere = policy("elsewhere", "other", PolicyScope.NAMESPACE)
    selected = policy("selected", "istio-system", PolicyScope.WORKLOAD_SELECTOR)
    unselected = policy("unselected", "default", PolicyScope.WORKLOAD_SELECTOR)
    w = pod("a", authorization_policies=("istio-system/selected", "default/gone"))
    found, missing = holding(everywhere, here, elsewhere, selected, unselected).policies_for(w)
    assert [p.name for p in found] == ["here", "everywhere", "selected"]
    assert missing == ("default/gone",)


def test_apply_leaves_the_old_snapshot_as_it_was() -> None:
    before = holding(pod("a", addresses=("10.0.0.1",)), service("s"))
    after = before.apply(Delta(removes=("workload/Kubernetes//Pod/default/a",), trust_domain="td"))
    assert before.workload_at("10.0.0.1") is not None
    assert after.workload_at("10.0.0.1") is None
    assert (before.version, after.version) == (1, 2)
    assert (before.trust_domain, after.trust_domain) == ("cluster.local", "td")
    assert after.services is before.services
    assert after._by_vip is before._by_vip


def test_unknown_removes_are_ignored_and_upserts_win_over_removes() -> None:
    w = pod("a")
    snapshot = holding(w).apply(Delta(upserts=(w,), removes=(w.key, "workload/never", "nonsense")))
    assert list(snapshot.workloads.values()) == [w]


names, ips = st.sampled_from("abcd"), st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]), unique=True)
workloads = st.builds(
    lambda name, ips, node, instance, healthy, host, services: pod(
        name,
        addresses=tuple(ips),
        node=node,
        instance=instance,
        status=WorkloadStatus.HEALTHY if healthy else WorkloadStatus.UNHEALTHY,
        network_mode=NetworkMode.HOST_NETWORK if host else NetworkMode.STANDARD,
        services={f"default/{s}.default.svc.cluster.local": () for s in services},
    ),
    names,
    ips,
    st.sampled_from(["", "n1", "n2"]),
    st.sampled_from(["", "i1", "i2"]),
    st.booleans(),
    st.booleans(),
    st.lists(names, unique=True),
)
services = st.builds(lambda name, ns, ips: service(name, ns, addresses=tuple(ips)), names, st.sampled_from("xy"), ips)
policies = st.builds(policy, names, st.sampled_from(["default", "istio-system"]), st.sampled_from(PolicyScope))
deltas = st.lists(
    st.tuples(
        st.lists(st.one_of(workloads, services, policies), max_size=6),
        st.lists(st.one_of(workloads, services, policies).map(lambda r: r.key), max_size=3),
    ),
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(deltas)
def test_any_way_of_deltas_leads_to_what_a_rebuild_gives(steps: list[tuple[list[Resource], list[str]]]) -> None:
    snapshot, held = Snapshot(), dict[str, Resource]()
    for upserts, removes in steps:
        snapshot = snapshot.apply(Delta(upserts=tuple(upserts), removes=tuple(removes)))
        for key in removes:
            held.pop(key, None)
        held.update({r.key: r for r in upserts})
    rebuilt = holding(*held.values())
    for f in fields(Snapshot):
        if f.name == "version":
            continue
        built, direct = getattr(snapshot, f.name), getattr(rebuilt, f.name)
        assert (built.table if isinstance(built, Index) else built) == (
            direct.table if isinstance(direct, Index) else direct
        ), f.name


def test_ten_thousand_workloads_stay_cheap() -> None:
    """One change costs table copies, not a rebuild: far below a hundredth of the first load's time."""
    s = service("s")
    ports = {s.namespaced_hostname: (Port(service_port=80, target_port=80),)}
    many = [
        pod(f"p{i}", addresses=(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}",), instance=f"i{i}", node=f"n{i % 50}")
        for i in range(10_000)
    ]
    many[:5_000] = [replace(w, services=ports) for w in many[:5_000]]
    start = time.perf_counter()
    snapshot = holding(s, *many)
    load = time.perf_counter() - start
    changes = []
    for i in range(20):
        start = time.perf_counter()
        snapshot = snapshot.apply(Delta(upserts=(replace(many[i], capacity=2),)))
        changes.append(time.perf_counter() - start)
    # What else the machine does makes some of them long, never short.
    assert min(changes) < load / 50, f"a change took {min(changes) * 1e3:.1f} ms, the first load {load * 1e3:.0f} ms"
    assert len(list(snapshot.endpoints(s))) == 5_000


@pytest.mark.parametrize(
    ("resource", "error"),
    [
        (pod("a", addresses=("10.0.0",)), "addresses: '10.0.0' does not appear"),
        (pod("a", addresses=("::ffff:10.0.0.1",)), "not canonical; send '10.0.0.1'"),
        (pod("a", service_account="a/b"), "no SPIFFE identity"),
        (pod("a", capacity=-1), "capacity: -1 is negative"),
        (pod("a", services={"default/s": (Port(service_port=0, target_port=1),)}), "0 -> 1 are not TCP ports"),
        (replace(pod("a"), uid=""), "workload of pod default/a: uid is empty"),
        (service("s", addresses=("nonsense",)), "service/default/s.default.svc.cluster.local: addresses"),
        (service("s", ports=(Port(service_port=80, target_port=70_000),)), "80 -> 70000 are not TCP ports"),
        (
            replace(
                policy("p", "default", PolicyScope.NAMESPACE),
                rules=(Rule((Clause((Match(source_ips=("10.0.0/8",)),)),)),),
            ),
            r"policy/default/p: rules\[0\].clauses\[0\].matches\[0\].source_ips: '10.0.0/8'",
        ),
    ],
)
def test_check_names_object_field_and_cause(resource: Resource, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        check(resource)


def test_check_accepts_what_is_right() -> None:
    check(pod("a", addresses=("10.0.0.1", "fd00::1"), services={"default/s": (Port(service_port=80, target_port=0),)}))
    check(service("s", addresses=("10.9.0.1",)))
    check(policy("p", "default", PolicyScope.GLOBAL))
