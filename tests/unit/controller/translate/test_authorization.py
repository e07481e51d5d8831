"""AuthorizationPolicy -> Policy, as the table in istio-facts §3.2 has it."""

from __future__ import annotations

from typing import Any

import pytest

from controller.translate.authorization import convert, string_match
from mesh.model import (
    Clause,
    Match,
    MatchKind,
    PolicyAction,
    PolicyScope,
    Rule,
    ServiceAccountMatch,
    StringMatch,
)
from mesh.resources import AuthorizationPolicy, parse

EXACT, PREFIX, SUFFIX, ANY = MatchKind.EXACT, MatchKind.PREFIX, MatchKind.SUFFIX, StringMatch(MatchKind.PRESENCE)


def policy(
    spec: dict[str, Any], namespace: str = "shop", annotations: dict[str, str] | None = None
) -> AuthorizationPolicy:
    metadata = {"name": "p", "namespace": namespace, "annotations": annotations or {}}
    document = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec}
    made = parse(document, file="f")
    assert isinstance(made, AuthorizationPolicy)
    return made


def rules(spec: dict[str, Any]) -> tuple[Rule, ...]:
    made, _ = convert(policy(spec), "istio-system")
    assert made is not None
    return made.rules


def rule(*clauses: Match | tuple[Match, ...]) -> Rule:
    return Rule(tuple(Clause(c if isinstance(c, tuple) else (c,)) for c in clauses))


@pytest.mark.parametrize(
    ("spec", "namespace", "scope"),
    [
        ({}, "shop", PolicyScope.NAMESPACE),
        ({}, "istio-system", PolicyScope.GLOBAL),
        ({"selector": None}, "shop", PolicyScope.NAMESPACE),
        ({"selector": {}}, "shop", PolicyScope.WORKLOAD_SELECTOR),
        ({"selector": {"matchLabels": {"a": "b"}}}, "shop", PolicyScope.WORKLOAD_SELECTOR),
        ({"selector": {"matchLabels": {"a": "b"}}}, "istio-system", PolicyScope.WORKLOAD_SELECTOR),
    ],
)
def test_scope(spec: dict[str, Any], namespace: str, scope: PolicyScope) -> None:
    made, (condition,) = convert(policy(spec, namespace), "istio-system")
    assert made is not None
    assert (made.scope, made.action, made.rules) == (scope, PolicyAction.ALLOW, ())
    assert (condition.type, condition.status, condition.reason) == ("ZtunnelAccepted", "True", "Accepted")


CONVERTED = [
    ("no fields: matches all", {}, rule()),
    (
        "from is one clause of ORed matches, to another",
        {
            "from": [{"source": {"namespaces": ["a"]}}, {"source": {"principals": ["td/ns/x/sa/y"]}}],
            "to": [{"operation": {"ports": ["80", "90"], "notPorts": ["8080"]}}],
        },
        rule(
            Match(destination_ports=(80, 90), not_destination_ports=(8080,)),
            (Match(namespaces=(StringMatch(EXACT, "a"),)), Match(principals=(StringMatch(EXACT, "td/ns/x/sa/y"),))),
        ),
    ),
    (
        "each when is a clause",
        {
            "when": [
                {"key": "source.namespace", "values": ["a*"], "notValues": ["*b"]},
                {"key": "source.principal", "values": ["*"]},
                {"key": "source.ip", "values": ["10.1.2.3/8"], "notValues": ["fd00::1"]},
                {"key": "destination.ip", "notValues": ["1.2.3.4"]},
                {"key": "destination.port", "values": ["80"], "notValues": ["81"]},
            ]
        },
        rule(
            Match(namespaces=(StringMatch(PREFIX, "a"),), not_namespaces=(StringMatch(SUFFIX, "b"),)),
            Match(principals=(ANY,)),
            Match(source_ips=("10.0.0.0/8",), not_source_ips=("fd00::1/128",)),
            Match(not_destination_ips=("1.2.3.4/32",)),
            Match(destination_ports=(80,), not_destination_ports=(81,)),
        ),
    ),
    (
        "all of a source's fields are ANDed in one match",
        {
            "from": [
                {
                    "source": {
                        "principals": ["p"],
                        "notPrincipals": ["*"],
                        "namespaces": ["n"],
                        "notNamespaces": ["*x"],
                        "ipBlocks": ["1.2.3.4"],
                        "notIpBlocks": ["::ffff:1.2.0.0/112"],
                    }
                }
            ]
        },
        rule(
            Match(
                principals=(StringMatch(EXACT, "p"),),
                not_principals=(ANY,),
                namespaces=(StringMatch(EXACT, "n"),),
                not_namespaces=(StringMatch(SUFFIX, "x"),),
                source_ips=("1.2.3.4/32",),
                not_source_ips=("1.2.0.0/16",),
            )
        ),
    ),
    (
        "service accounts without a namespace are in the policy's",
        {"from": [{"source": {"serviceAccounts": ["ns/sa", "own"], "notServiceAccounts": ["no"]}}]},
        rule(
            Match(
                service_accounts=(ServiceAccountMatch("ns", "sa"), ServiceAccountMatch("shop", "own")),
                not_service_accounts=(ServiceAccountMatch("shop", "no"),),
            )
        ),
    ),
]


@pytest.mark.parametrize(("given", "expected"), [c[1:] for c in CONVERTED], ids=[c[0] for c in CONVERTED])
@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
def test_l4_rules(given: dict[str, Any], expected: Rule, action: str) -> None:
    assert rules({"action": action, "rules": [given]}) == (expected,)


L7 = [
    ({"to": [{"operation": {"hosts": ["h"]}}]}, "hosts"),
    ({"to": [{"operation": {"notHosts": ["h"]}}]}, "notHosts"),
    ({"to": [{"operation": {"methods": ["GET"]}}]}, "methods"),
    ({"to": [{"operation": {"notMethods": ["GET"]}}]}, "notMethods"),
    ({"to": [{"operation": {"paths": ["/"]}}]}, "paths"),
    ({"to": [{"operation": {"notPaths": ["/"]}}]}, "notPaths"),
    ({"from": [{"source": {"remoteIpBlocks": ["1.2.3.4"]}}]}, "remoteIpBlocks"),
    ({"from": [{"source": {"notRemoteIpBlocks": ["1.2.3.4"]}}]}, "notRemoteIpBlocks"),
    ({"from": [{"source": {"requestPrincipals": ["*"]}}]}, "requestPrincipals"),
    ({"from": [{"source": {"notRequestPrincipals": ["*"]}}]}, "notRequestPrincipals"),
    ({"from": [{"source": {"trustDomains": ["a"]}}]}, "trustDomains"),
    ({"from": [{"source": {"notTrustDomains": ["a"]}}]}, "notTrustDomains"),
    ({"when": [{"key": "request.headers[x]", "values": ["a"]}]}, "request.headers[x]"),
    ({"when": [{"key": "request.auth.claims[iss][x]", "values": ["a"]}]}, "request.auth.claims[iss][x]"),
    ({"when": [{"key": "connection.sni", "values": ["a"]}]}, "connection.sni"),
    ({"when": [{"key": "source.serviceAccount", "values": ["a"]}]}, "source.serviceAccount"),
    ({"when": [{"key": "remote.ip", "values": ["1.2.3.4"]}]}, "remote.ip"),
]


@pytest.mark.parametrize(("given", "name"), L7, ids=[name for _, name in L7])
def test_an_allow_rule_with_anything_l7_is_dropped_whole(given: dict[str, Any], name: str) -> None:
    l4 = {"from": [{"source": {"namespaces": ["a"]}}]}
    made, (condition,) = convert(policy({"rules": [l4 | given, l4]}), "istio-system")
    assert made is not None
    assert made.rules == (rule(Match(namespaces=(StringMatch(EXACT, "a"),))),)
    assert (condition.status, condition.reason) == ("True", "UnsupportedValue")
    assert condition.message == (
        f"ztunnel does not support HTTP attributes (found: {name}). In ambient mode you must use a waypoint proxy to "
        "enforce HTTP rules. Within an ALLOW policy, rules matching HTTP attributes are omitted. This will be more "
        "restrictive than requested."
    )


def test_an_allow_policy_of_l7_rules_only_still_exists_and_so_denies() -> None:
    made, _ = convert(policy({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}), "istio-system")
    assert made is not None
    assert made.rules == ()


def test_a_deny_rule_loses_its_l7_parts_and_keeps_the_rest() -> None:
    spec = {
        "action": "DENY",
        "rules": [
            {
                "from": [{"source": {"principals": ["p"], "requestPrincipals": ["r"], "namespaces": ["n"]}}],
                "to": [{"operation": {"ports": ["80"], "methods": ["GET"]}}],
            }
        ],
    }
    made, (condition,) = convert(policy(spec), "istio-system")
    assert made is not None
    source = Match(principals=(StringMatch(EXACT, "p"),), namespaces=(StringMatch(EXACT, "n"),))
    assert made.rules == (rule(Match(destination_ports=(80,)), source),)
    assert condition.message.endswith(
        "(found: methods, requestPrincipals). In ambient mode you must use a waypoint proxy to enforce HTTP rules. "
        "DENY policy with HTTP attributes is enforced without the HTTP rules. This will be more restrictive than "
        "requested."
    )


def test_a_deny_clause_of_l7_only_becomes_a_match_that_never_matches() -> None:
    spec = {
        "action": "DENY",
        "rules": [
            {
                "when": [
                    {"key": "source.namespace", "values": ["a"]},
                    {"key": "connection.sni", "values": ["b"]},
                ]
            },
            {"to": [{"operation": {"paths": ["/x"]}}]},
        ],
    }
    made, (condition,) = convert(policy(spec), "istio-system")
    assert made is not None
    assert made.rules == (rule(Match(namespaces=(StringMatch(EXACT, "a"),)), Match()), rule(Match()))
    assert "will have no effect" in condition.message


@pytest.mark.parametrize("action", ["AUDIT", "CUSTOM"])
def test_other_actions_are_dropped_and_say_so(action: str) -> None:
    spec: dict[str, Any] = {"action": action, "rules": [{}]}
    if action == "CUSTOM":
        spec["provider"] = {"name": "ext"}
    made, (condition,) = convert(policy(spec), "istio-system")
    assert made is None
    assert (condition.type, condition.status, condition.reason) == ("ZtunnelAccepted", "False", "UnsupportedValue")
    assert condition.message == f"ztunnel does not support the {action} action"


@pytest.mark.parametrize("field", ["targetRef", "targetRefs"])
def test_policies_for_waypoints_are_not_sent_to_nodes(field: str) -> None:
    target = {"kind": "Service", "name": "s", "group": ""}
    made, (condition,) = convert(policy({field: target if field == "targetRef" else [target]}), "istio-system")
    assert made is None
    assert (condition.type, condition.status) == ("WaypointAccepted", "False")


@pytest.mark.parametrize(
    ("value", "dry"), [("true", True), ("1", True), ("T", True), ("false", False), ("maybe", False)]
)
def test_dry_run(value: str, dry: bool) -> None:
    made, _ = convert(policy({}, annotations={"istio.io/dry-run": value}), "istio-system")
    assert made is not None
    assert made.dry_run is dry


def test_a_principal_with_a_scheme_never_matches_and_is_warned_of() -> None:
    spec = {
        "rules": [
            {
                "from": [{"source": {"notPrincipals": ["a", "spiffe://td/ns/x/sa/y"]}}],
                "when": [{"key": "source.principal", "values": ["spiffe://td/ns/x/sa/z"]}],
            }
        ]
    }
    made, conditions = convert(policy(spec), "istio-system")
    assert made is not None
    assert [c.message for c in conditions[1:]] == [
        'spec.rules[0].from[0].source.notPrincipals[1]: "spiffe://td/ns/x/sa/y" never matches; did you mean '
        "td/ns/x/sa/y?",
        'spec.rules[0].when[0].values[0]: "spiffe://td/ns/x/sa/z" never matches; did you mean td/ns/x/sa/z?',
    ]
    assert {(c.type, c.status, c.reason) for c in conditions[1:]} == {("Warning", "True", "NeverMatches")}


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("*", ANY),
        ("*x", StringMatch(SUFFIX, "x")),
        ("x*", StringMatch(PREFIX, "x")),
        ("x", StringMatch(EXACT, "x")),
        ("*x*", StringMatch(SUFFIX, "x*")),
    ],
)
def test_string_match(value: str, match: StringMatch) -> None:
    assert string_match(value) == match
