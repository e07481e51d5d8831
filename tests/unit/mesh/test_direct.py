"""Compiled answers are the policy's answers, and a change of them never leaves an old one behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import direct
from mesh.direct import Key, Mode, Plan, change, plan
from mesh.model import (
    Clause,
    Match,
    MatchKind,
    Policy,
    PolicyAction,
    PolicyScope,
    Port,
    Rule,
    Service,
    ServiceAccountMatch,
    StringMatch,
    TunnelProtocol,
    Workload,
)
from mesh.policy import decide
from mesh.snapshot import Delta, Snapshot
from tests import policy_cases
from tests.policy_cases import CASES, Case

HOSTNAME = "db.shop.svc.cluster.local"
PRESENCE = StringMatch(MatchKind.PRESENCE)
UNAUTHENTICATED = Match(not_principals=(PRESENCE,))
ALLOW, DENY = PolicyAction.ALLOW, PolicyAction.DENY


def pod(name: str, address: str, namespace: str = "shop", **changes: object) -> Workload:
    values: dict = {
        "uid": f"Kubernetes//Pod/{namespace}/{name}",
        "name": name,
        "namespace": namespace,
        "instance": f"uid-{name}",
        "addresses": (address, f"fd00::{address.rpartition('.')[2]}"),
        "node": "n1",
        "service_account": name,
        "tunnel_protocol": TunnelProtocol.HBONE,
        "capture": True,
    }
    return Workload(**(values | changes))


DB = pod("db", "10.0.0.1", services={f"shop/{HOSTNAME}": (Port(service_port=80, target_port=5432),)})
WEB = pod("web", "10.0.0.2")
EVIL = pod("evil", "10.0.0.3", namespace="other")
SERVICE = Service(
    name="db",
    namespace="shop",
    hostname=HOSTNAME,
    addresses=("10.9.0.1",),
    ports=(Port(service_port=80, target_port=5432),),
)
PODS = (DB, WEB, EVIL)


def policy(action: PolicyAction, *rules: Rule, name: str = "p", dry_run: bool = False) -> Policy:
    return Policy(name=name, namespace="shop", scope=PolicyScope.NAMESPACE, action=action, rules=rules, dry_run=dry_run)


def one(*matches: Match) -> Rule:
    return Rule((Clause(matches),))


def holding(*policies: Policy, pods: Sequence[Workload] = PODS) -> Snapshot:
    return Snapshot().apply(Delta(upserts=(*pods, SERVICE, *policies)))


def planned(snapshot: Snapshot, *asked: Key, pods: Sequence[Workload] = PODS, before: Plan | None = None) -> Plan:
    made = plan(snapshot, {w.instance: w for w in pods}, before=before)
    for key in asked:
        entry = direct.ask(snapshot, made, key)
        if entry is not None:
            made.entries[key] = entry
    return made


def lookup(made: Plan, source: Workload, destination: Workload, port: int) -> bool | None:
    """As the kernel does it; None: ask the agent."""
    target = made.targets.get(destination.instance)
    if target is None or source.instance not in made.sources:
        return None
    if target.mode is Mode.OPEN:
        return True
    entry = made.entries.get(Key(source.instance, destination.instance, port))
    return None if entry is None else entry.allow


FROM_WEB = Match(principals=(StringMatch(MatchKind.EXACT, WEB.identity.principal),))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_entries_are_the_answers_of_the_table(case: Case) -> None:
    """Whoever is allowed over every address goes directly once it has asked; nobody else does."""
    snapshot = policy_cases.snapshot(case)
    workloads = {w.name: w for w in snapshot.workloads.values() if w.capture}
    made = plan(snapshot, {w.instance: w for w in workloads.values()})
    for flow in case.flows:
        if flow.source != policy_cases.OUTSIDE:
            source, destination = workloads[flow.source], workloads[flow.destination]
            key = Key(source.instance, destination.instance, flow.port)
            if lookup(made, source, destination, flow.port) is None and (entry := direct.ask(snapshot, made, key)):
                made.entries[key] = entry
            assert lookup(made, source, destination, flow.port) is (True if case.whole(flow) else None), flow


@pytest.mark.parametrize(
    ("policies", "mode"),
    [
        ((), Mode.OPEN),
        ((policy(DENY, one(UNAUTHENTICATED)),), Mode.OPEN),  # STRICT
        ((policy(DENY, Rule((Clause((UNAUTHENTICATED,)), Clause((Match(not_destination_ports=(1,)),))))),), Mode.OPEN),
        ((policy(DENY, one(Match(not_principals=(PRESENCE,), destination_ports=(1,)))),), Mode.OPEN),
        ((policy(DENY),), Mode.OPEN),  # no rules: never matches
        ((policy(DENY, one(Match())),), Mode.OPEN),  # nor does a match without fields
        ((policy(DENY, Rule()),), Mode.LISTED),  # no clauses: everybody
        ((policy(DENY, one()),), Mode.LISTED),
        ((policy(DENY, one(Match(destination_ports=(1,)))),), Mode.LISTED),
        ((policy(DENY, one(Match(source_ips=("10.0.0.0/8",)))),), Mode.LISTED),
        ((policy(DENY, one(UNAUTHENTICATED, FROM_WEB)),), Mode.LISTED),
        ((policy(DENY, Rule(), dry_run=True),), Mode.OPEN),
        ((policy(ALLOW),), Mode.LISTED),  # nobody
        ((policy(ALLOW, Rule()),), Mode.OPEN),
        ((policy(ALLOW, one()),), Mode.OPEN),
        ((policy(ALLOW, one(FROM_WEB)),), Mode.LISTED),
        ((policy(ALLOW, one(FROM_WEB)), policy(ALLOW, Rule(), name="all")), Mode.OPEN),
        ((policy(ALLOW, one(FROM_WEB)), policy(ALLOW, Rule(), name="all", dry_run=True)), Mode.LISTED),
        ((policy(ALLOW, one(FROM_WEB), dry_run=True),), Mode.OPEN),
    ],
)
def test_open_is_what_no_policy_can_refuse(policies: tuple[Policy, ...], mode: Mode) -> None:
    assert planned(holding(*policies)).targets[DB.instance].mode is mode


def test_the_ports_of_services_are_answered_ahead_others_once_they_were_asked_for() -> None:
    snapshot = holding(policy(ALLOW, one(FROM_WEB)))
    made = planned(snapshot)
    assert list(made.entries) == [Key(WEB.instance, DB.instance, 5432)]
    asked = [Key(w.instance, DB.instance, port) for w in (WEB, EVIL) for port in (9000, 15008)]
    assert set(planned(snapshot, *asked).entries) == {*made.entries, Key(WEB.instance, DB.instance, 9000)}


@pytest.mark.parametrize(
    "changed",
    [
        replace(DB, direct=False),
        replace(DB, capture=False),
        replace(DB, tunnel_protocol=TunnelProtocol.NONE),
        replace(DB, addresses=()),
        replace(DB, addresses=("10.9.0.1",)),  # a Service's
        replace(DB, addresses=("10.0.0.3",)),  # another pod's too: which one it leads to, nobody can say
    ],
)
def test_who_is_no_target(changed: Workload) -> None:
    pods = (changed, WEB, replace(EVIL, uid="Kubernetes//Pod/a/evil"))
    assert DB.instance not in planned(holding(pods=pods), pods=pods).targets


def test_a_source_that_opted_out_gets_no_entry() -> None:
    pods = (DB, replace(WEB, direct=False), EVIL)
    made = planned(holding(policy(ALLOW, one(FROM_WEB)), pods=pods), pods=pods)
    assert not made.entries
    assert WEB.instance not in made.sources


def test_an_address_of_the_source_that_is_refused_refuses_its_entry() -> None:
    made = planned(holding(policy(DENY, one(Match(source_ips=("fd00::2/128",))))))
    assert Key(WEB.instance, DB.instance, 5432) not in made.entries
    assert Key(EVIL.instance, DB.instance, 5432) in made.entries


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "AHEAD", 0)
    monkeypatch.setattr(direct, "LIMIT", 3)
    asked = [Key(WEB.instance, DB.instance, port) for port in range(1, 10)]
    made = planned(holding(policy(DENY, one(Match(destination_ports=(1,))))), *asked)
    assert len(made.entries) == 3


def test_what_there_is_no_time_for_has_no_entry_and_is_answered_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snapshot = holding(policy(ALLOW, one(FROM_WEB)))
    before = planned(snapshot)
    monkeypatch.setattr(direct, "WORK", 0)
    renamed = holding(policy(ALLOW, one(FROM_WEB)), pods=(replace(DB, canonical_name="renamed"), WEB, EVIL))
    pods = (replace(DB, canonical_name="renamed"), WEB, EVIL)
    after = planned(renamed, pods=pods, before=before)
    assert not after.entries
    assert change(before, after).revoking
    assert direct.ask(renamed, after, Key(WEB.instance, DB.instance, 5432)) is not None
    monkeypatch.undo()
    assert planned(renamed, pods=pods, before=after).entries


def test_a_long_policy_takes_more_of_the_time_than_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "AHEAD", 0)
    monkeypatch.setattr(direct, "WORK", 100)
    asked = [Key(WEB.instance, DB.instance, port) for port in range(10, 20)]
    short = policy(DENY, one(Match(destination_ports=(1,))))
    long = policy(DENY, *(one(Match(destination_ports=(port,))) for port in range(20, 40)))
    assert len(answered(holding(short), asked)) == 10
    assert len(answered(holding(long), asked)) == 3


def answered(snapshot: Snapshot, keys: list[Key]) -> list[Key]:
    """Of keys that were permitted before the policy changed."""
    before = planned(holding(policy(DENY, one(Match(destination_ports=(2,))))), *keys)
    return list(planned(snapshot, before=before).entries)


REFUSE_WEB = policy(DENY, one(FROM_WEB), name="refuse")


@pytest.mark.parametrize(
    ("first", "second", "revoking"),
    [
        ((), (), False),
        ((), (REFUSE_WEB,), True),  # open, then listed
        ((REFUSE_WEB,), (), False),
        ((policy(ALLOW, one(FROM_WEB)),), (REFUSE_WEB, policy(ALLOW, one(FROM_WEB))), True),
        ((policy(ALLOW, one(FROM_WEB)),), (policy(ALLOW, one(FROM_WEB, Match(destination_ports=(5432,)))),), False),
        ((), (policy(DENY, one(UNAUTHENTICATED)),), False),
    ],
)
def test_what_takes_a_permission_away_invalidates_first(
    first: tuple[Policy, ...], second: tuple[Policy, ...], revoking: bool
) -> None:
    before = planned(holding(*first))
    after = planned(holding(*second), before=before)
    made = change(before, after)
    assert made.revoking is revoking
    old = {} if revoking else before.entries
    assert {e.key for e in made.entries} | set(old) >= set(after.entries)


@pytest.mark.parametrize(
    "pods",
    [
        (WEB, EVIL),
        (DB, EVIL),
        (replace(DB, direct=False), WEB, EVIL),
        (DB, replace(WEB, direct=False), EVIL),
        (replace(DB, addresses=("10.0.0.9",)), WEB, EVIL),
    ],
)
def test_pods_that_leave_or_change_invalidate_too(pods: tuple[Workload, ...]) -> None:
    before = planned(holding())
    assert change(before, planned(holding(pods=pods), pods=pods, before=before)).revoking


def test_nothing_is_known_at_first() -> None:
    assert change(None, planned(holding())).revoking


def test_a_pod_that_comes_takes_nothing_from_others() -> None:
    before = planned(holding(pods=(DB, WEB)), pods=(DB, WEB))
    made = change(before, planned(holding(), before=before))
    assert (made.revoking, made.targets) == (False, True)


# Any policies, any pods: an answer that is there is the policy's.

_strings = st.builds(
    StringMatch,
    st.sampled_from(MatchKind),
    st.sampled_from(["shop", "other", "sh", "er", "cluster.local/ns/shop/sa/web", "/sa/evil", ""]),
)
_cidrs = st.sampled_from(["10.0.0.0/30", "10.0.0.2/32", "fd00::/64", "fd00::3/128", "0.0.0.0/0"])
_accounts = st.builds(ServiceAccountMatch, st.sampled_from(["shop", "other"]), st.sampled_from(["web", "evil"]))
_ports = st.sampled_from([5432, 9000])


def few(each: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(st.just(()), st.lists(each, max_size=2).map(tuple))


_matches = st.builds(
    Match,
    namespaces=few(_strings),
    not_namespaces=few(_strings),
    service_accounts=few(_accounts),
    not_service_accounts=few(_accounts),
    principals=few(_strings),
    not_principals=few(_strings),
    source_ips=few(_cidrs),
    not_source_ips=few(_cidrs),
    destination_ips=few(_cidrs),
    not_destination_ips=few(_cidrs),
    destination_ports=few(_ports),
    not_destination_ports=few(_ports),
)
_rules = few(st.builds(Rule, few(st.builds(Clause, few(_matches)))))


@st.composite
def policies(draw: st.DrawFn) -> list[Policy]:
    return [
        policy(draw(st.sampled_from(PolicyAction)), *draw(_rules), name=f"p{i}", dry_run=draw(st.integers(0, 3)) == 0)
        for i in range(draw(st.integers(0, 3)))
    ]


@given(policies(), policies())
def test_every_compiled_answer_is_the_policys(first: list[Policy], second: list[Policy]) -> None:
    asked = [Key(s.instance, d.instance, port) for s in PODS for d in PODS for port in (5432, 9000)]
    before = planned(holding(*first), *asked)
    after = planned(holding(*second), *asked, before=before)
    for made, snapshot in ((before, holding(*first)), (after, holding(*second))):
        for source in PODS:
            for destination in PODS:
                for port in (5432, 9000):
                    answer = lookup(made, source, destination, port)
                    for mine, theirs in zip(source.addresses, destination.addresses, strict=True):
                        verdict = decide(snapshot, direct.arrival(source, destination, mine, theirs, port))
                        assert answer is None or answer == verdict.allow
    step = change(before, after)
    if not step.revoking:  # then whatever the kernel still holds must hold
        assert all(lookup(after, *_named(key)) for key in before.entries)
        assert all(
            after.targets[i].mode is Mode.OPEN for i, target in before.targets.items() if target.mode is Mode.OPEN
        )


def _named(key: Key) -> tuple[Workload, Workload, int]:
    by_instance = {w.instance: w for w in PODS}
    return by_instance[key.source], by_instance[key.destination], key.port
