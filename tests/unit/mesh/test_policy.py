"""L4 authorization: the table of tests/policy_cases.yaml, and what no object that validation lets through can say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.identity import SpiffeId
from mesh.model import (
    Clause,
    Match,
    MatchKind,
    Policy,
    PolicyAction,
    PolicyScope,
    Rule,
    ServiceAccountMatch,
    StringMatch,
    Workload,
)
from mesh.policy import Arrival, Trial, decide
from mesh.reason import Reason
from mesh.snapshot import Delta, Snapshot
from tests import policy_cases
from tests.policy_cases import CASES, Case

SERVER = Workload(
    uid="Kubernetes//Pod/default/server",
    name="server",
    namespace="default",
    addresses=("10.0.0.9",),
    authorization_policies=("default/selected", "istio-system/istio_converted_static_strict"),
)
CLIENT = SpiffeId("cluster.local", "web", "client")
MESH = Arrival(
    source_ip="10.0.0.1", identity=CLIENT, destination=SERVER, destination_ip="10.0.0.9", destination_port=8080
)
PLAIN = replace(MESH, identity=None)
V6 = replace(MESH, source_ip="fd00::1", destination_ip="fd00::9")


def policy(action: PolicyAction, *rules: Rule, name: str = "p", dry_run: bool = False) -> Policy:
    return Policy(
        name=name, namespace="default", scope=PolicyScope.NAMESPACE, action=action, rules=rules, dry_run=dry_run
    )


def one(match: Match) -> Rule:
    return Rule((Clause((match,)),))


def holding(*policies: Policy) -> Snapshot:
    return Snapshot().apply(Delta(upserts=(SERVER, *policies)))


ALLOW, DENY = PolicyAction.ALLOW, PolicyAction.DENY


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_table(case: Case) -> None:
    snapshot = policy_cases.snapshot(case)
    for flow, expected in case.flows.items():
        verdict = decide(snapshot, policy_cases.arrival(snapshot, flow))
        assert (verdict.allow, verdict.policy, verdict.reason) == (expected.allow, expected.policy, expected.reason), (
            flow
        )


@pytest.mark.parametrize("case", [c for c in CASES if c.conditions], ids=lambda case: case.name)
def test_its_conditions(case: Case) -> None:
    told = policy_cases.translated(case).conditions
    for key, text in case.conditions.items():
        assert any(text in condition.message for condition in told[key]), (key, told[key])


@pytest.mark.parametrize(
    ("match", "arrival", "matches"),
    [
        (Match(), MESH, False),
        (Match(principals=(StringMatch(MatchKind.PREFIX, ""),)), PLAIN, False),
        (
            Match(service_accounts=(ServiceAccountMatch("web", "client"),)),
            replace(MESH, identity=replace(CLIENT, trust_domain="other.td")),
            True,
        ),
        (Match(not_source_ips=("10.0.0.0/24",)), V6, True),
    ],
)
def test_matches_that_no_object_of_the_table_makes(match: Match, arrival: Arrival, matches: bool) -> None:
    snapshot = holding(policy(DENY, one(match)))
    assert decide(snapshot, arrival).allow is not matches


HIT, MISS = Match(destination_ports=(8080,)), Match(destination_ports=(1,))


@pytest.mark.parametrize(
    ("rules", "matches"),
    [
        ((), False),
        ((Rule(),), True),
        ((Rule((Clause(),)),), True),
        ((Rule((Clause((Match(),)),)),), False),
        ((Rule((Clause((Match(), HIT)),)),), True),
        ((Rule((Clause((MISS, HIT)),)),), True),
        ((Rule((Clause((HIT,)), Clause((MISS,)))),), False),
        ((Rule((Clause((HIT,)), Clause((HIT,)))),), True),
        ((Rule((Clause((HIT,)), Clause((Match(),)))),), False),
        ((Rule((Clause((HIT,)), Clause())),), True),
        ((one(MISS), one(HIT)), True),
        ((one(MISS), one(MISS)), False),
    ],
)
def test_a_policy_is_or_of_rules_and_of_clauses_or_of_matches(rules: tuple[Rule, ...], matches: bool) -> None:
    assert decide(holding(policy(DENY, *rules)), MESH).allow is not matches
    assert decide(holding(policy(ALLOW, *rules)), MESH).allow is matches


def test_dry_runs_and_unknown_names_are_noted() -> None:
    verdict = decide(
        holding(policy(DENY, one(HIT), name="d", dry_run=True), policy(ALLOW, one(MISS), name="a", dry_run=True)), MESH
    )
    assert verdict.allow
    assert verdict.trials == (Trial("default/d", "deny"), Trial("default/a", "not allow"))
    assert verdict.notes == (
        "policy default/selected is listed on the workload but not known; skipped",
        "policy istio-system/istio_converted_static_strict is listed on the workload but not known; skipped",
        "dry-run: default/d would deny",
        "dry-run: default/a would not allow",
    )


def test_an_authorization_policy_that_denies_plaintext_is_no_peer_authentication() -> None:
    verdict = decide(holding(policy(DENY, one(Match(not_principals=(StringMatch(MatchKind.PRESENCE),))))), PLAIN)
    assert verdict.reason is Reason.POLICY_DENY
    assert verdict.detail == "denied by default/p"
