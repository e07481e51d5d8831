"""L4 authorization as a table, with every trap of istio-facts §3.1 and §3.3."""

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
from mesh.policy import Arrival, decide
from mesh.reason import Reason
from mesh.snapshot import Delta, Snapshot

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


def exact(value: str) -> StringMatch:
    return StringMatch(MatchKind.EXACT, value)


PRESENCE = StringMatch(MatchKind.PRESENCE)


def policy(action: PolicyAction, *rules: Rule, name: str = "p", dry_run: bool = False) -> Policy:
    return Policy(
        name=name, namespace="default", scope=PolicyScope.NAMESPACE, action=action, rules=rules, dry_run=dry_run
    )


def one(match: Match) -> Rule:
    return Rule((Clause((match,)),))


def holding(*policies: Policy) -> Snapshot:
    return Snapshot().apply(Delta(upserts=(SERVER, *policies)))


ALLOW, DENY = PolicyAction.ALLOW, PolicyAction.DENY


@pytest.mark.parametrize(
    ("match", "arrival", "matches"),
    [
        (Match(), MESH, False),
        (Match(namespaces=(exact("web"),)), MESH, True),
        (Match(namespaces=(exact("web"),)), PLAIN, False),
        (Match(namespaces=(exact("other"), exact("web"))), MESH, True),
        (Match(namespaces=(PRESENCE,)), MESH, True),
        (Match(namespaces=(PRESENCE,)), PLAIN, False),
        (Match(not_namespaces=(exact("web"),)), MESH, False),
        (Match(not_namespaces=(exact("other"),)), MESH, True),
        (Match(not_namespaces=(exact("web"),)), PLAIN, True),
        (Match(not_namespaces=(PRESENCE,)), PLAIN, True),
        (Match(principals=(exact("cluster.local/ns/web/sa/client"),)), MESH, True),
        (Match(principals=(exact("spiffe://cluster.local/ns/web/sa/client"),)), MESH, False),
        (Match(principals=(exact("other.td/ns/web/sa/client"),)), MESH, False),
        (Match(principals=(StringMatch(MatchKind.PREFIX, "cluster.local/ns/web/"),)), MESH, True),
        (Match(principals=(StringMatch(MatchKind.SUFFIX, "/sa/client"),)), MESH, True),
        (Match(principals=(StringMatch(MatchKind.SUFFIX, "/sa/other"),)), MESH, False),
        (Match(principals=(PRESENCE,)), MESH, True),
        (Match(principals=(PRESENCE,)), PLAIN, False),
        (Match(principals=(StringMatch(MatchKind.PREFIX, ""),)), PLAIN, False),
        (Match(not_principals=(PRESENCE,)), PLAIN, True),
        (Match(not_principals=(PRESENCE,)), MESH, False),
        (Match(service_accounts=(ServiceAccountMatch("web", "client"),)), MESH, True),
        (
            Match(service_accounts=(ServiceAccountMatch("web", "client"),)),
            replace(MESH, identity=replace(CLIENT, trust_domain="other.td")),
            True,
        ),
        (Match(service_accounts=(ServiceAccountMatch("default", "client"),)), MESH, False),
        (Match(service_accounts=(ServiceAccountMatch("web", "client"),)), PLAIN, False),
        (Match(not_service_accounts=(ServiceAccountMatch("web", "client"),)), MESH, False),
        (Match(not_service_accounts=(ServiceAccountMatch("web", "client"),)), PLAIN, True),
        (Match(source_ips=("10.0.0.0/24",)), MESH, True),
        (Match(source_ips=("10.1.0.0/24", "10.0.0.1/32")), MESH, True),
        (Match(source_ips=("10.1.0.0/24",)), MESH, False),
        (Match(source_ips=("0.0.0.0/0",)), V6, False),
        (Match(source_ips=("fd00::/8",)), V6, True),
        (Match(not_source_ips=("10.0.0.0/24",)), MESH, False),
        (Match(not_source_ips=("10.0.0.0/24",)), V6, True),
        (Match(destination_ips=("10.0.0.9/32",)), MESH, True),
        (Match(not_destination_ips=("10.0.0.9/32",)), MESH, False),
        (Match(destination_ports=(80, 8080)), MESH, True),
        (Match(destination_ports=(80,)), MESH, False),
        (Match(not_destination_ports=(8080,)), MESH, False),
        (Match(not_destination_ports=(80,)), MESH, True),
        (Match(namespaces=(exact("web"),), destination_ports=(80,)), MESH, False),
        (Match(namespaces=(exact("web"),), destination_ports=(8080,)), MESH, True),
        (Match(namespaces=(exact("web"),), not_source_ips=("10.0.0.1/32",)), MESH, False),
    ],
)
def test_a_match_is_and_over_fields_or_over_values(match: Match, arrival: Arrival, matches: bool) -> None:
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


YES, NO = one(HIT), one(MISS)


@pytest.mark.parametrize(
    ("policies", "allow", "decided", "reason"),
    [
        ([], True, "", Reason.OK),
        ([policy(DENY, NO)], True, "", Reason.OK),
        ([policy(DENY, YES)], False, "default/p", Reason.POLICY_DENY),
        ([policy(ALLOW, YES)], True, "default/p", Reason.OK),
        ([policy(ALLOW, NO)], False, "", Reason.POLICY_NO_ALLOW),
        ([policy(ALLOW)], False, "", Reason.POLICY_NO_ALLOW),
        ([policy(ALLOW, NO), policy(ALLOW, YES, name="q")], True, "default/q", Reason.OK),
        ([policy(ALLOW, YES), policy(DENY, YES, name="q")], False, "default/q", Reason.POLICY_DENY),
        ([policy(ALLOW, YES), policy(DENY, NO, name="q")], True, "default/p", Reason.OK),
        ([policy(DENY, YES, dry_run=True)], True, "", Reason.OK),
        ([policy(ALLOW, NO, dry_run=True)], True, "", Reason.OK),
        ([policy(ALLOW, YES, dry_run=True), policy(ALLOW, NO, name="q")], False, "", Reason.POLICY_NO_ALLOW),
    ],
)
def test_deny_goes_first_then_allow_if_there_is_any(
    policies: list[Policy], allow: bool, decided: str, reason: Reason
) -> None:
    verdict = decide(holding(*policies), MESH)
    assert (verdict.allow, verdict.policy, verdict.reason) == (allow, decided, reason)


def test_dry_runs_and_unknown_names_are_noted() -> None:
    verdict = decide(
        holding(policy(DENY, YES, name="d", dry_run=True), policy(ALLOW, NO, name="a", dry_run=True)), MESH
    )
    assert verdict.allow
    assert verdict.notes == (
        "policy default/selected is listed on Kubernetes//Pod/default/server but not known; skipped",
        "policy istio-system/istio_converted_static_strict is listed on Kubernetes//Pod/default/server but not known; "
        "skipped",
        "dry-run: default/d would deny",
        "dry-run: default/a would not allow",
    )


def test_policies_of_other_namespaces_and_unlisted_selectors_do_not_count() -> None:
    elsewhere = replace(policy(DENY, YES), namespace="other")
    unlisted = replace(policy(DENY, YES, name="unlisted"), scope=PolicyScope.WORKLOAD_SELECTOR)
    assert decide(holding(elsewhere, unlisted), MESH).allow


def test_listed_and_global_policies_count() -> None:
    listed = replace(policy(DENY, YES, name="selected"), scope=PolicyScope.WORKLOAD_SELECTOR)
    everywhere = replace(policy(DENY, YES, name="g"), namespace="istio-system", scope=PolicyScope.GLOBAL)
    assert decide(holding(listed), MESH).policy == "default/selected"
    assert decide(holding(everywhere), MESH).policy == "istio-system/g"


STRICT = Policy(
    name="istio_converted_static_strict",
    namespace="istio-system",
    scope=PolicyScope.WORKLOAD_SELECTOR,
    action=DENY,
    rules=(one(Match(not_principals=(PRESENCE,))),),
)


@pytest.mark.parametrize(
    ("arrival", "allow", "reason"),
    [(MESH, True, Reason.OK), (PLAIN, False, Reason.STRICT_PLAINTEXT)],
    ids=["mutual TLS", "plaintext"],
)
def test_strict(arrival: Arrival, allow: bool, reason: Reason) -> None:
    verdict = decide(holding(STRICT), arrival)
    assert (verdict.allow, verdict.reason) == (allow, reason)


@pytest.mark.parametrize(
    ("port", "allow"),
    [(8080, True), (9090, True), (80, False)],
)
def test_strict_with_permissive_ports_is_one_rule_of_anded_clauses(port: int, allow: bool) -> None:
    converted = Policy(
        name="converted_peer_authentication_x",
        namespace="default",
        scope=PolicyScope.WORKLOAD_SELECTOR,
        action=DENY,
        rules=(
            Rule(
                (
                    Clause((Match(not_principals=(PRESENCE,)),)),
                    Clause((Match(not_destination_ports=(8080,)),)),
                    Clause((Match(not_destination_ports=(9090,)),)),
                )
            ),
        ),
    )
    server = replace(SERVER, authorization_policies=("default/converted_peer_authentication_x",))
    snapshot = Snapshot().apply(Delta(upserts=(server, converted)))
    verdict = decide(snapshot, replace(PLAIN, destination=server, destination_port=port))
    assert (verdict.allow, verdict.reason) == (allow, Reason.OK if allow else Reason.STRICT_PLAINTEXT)
    assert decide(snapshot, replace(MESH, destination=server, destination_port=port)).allow


def test_an_authorization_policy_that_denies_plaintext_is_no_peer_authentication() -> None:
    denies_plaintext = policy(DENY, one(Match(not_principals=(PRESENCE,))))
    verdict = decide(holding(denies_plaintext), PLAIN)
    assert verdict.reason is Reason.POLICY_DENY
    assert verdict.detail == "denied by default/p"
