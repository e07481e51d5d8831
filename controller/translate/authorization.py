"""AuthorizationPolicy -> Policy (istio-facts §3.2), with a condition that says what became of it."""

from __future__ import annotations

from collections.abc import Iterator

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
)
from mesh.resources import AuthorizationPolicy, Condition, check
from mesh.resources.security import AuthorizationRule, Operation, Source, When

DRY_RUN = "istio.io/dry-run"

_HTTP_OPERATION = ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
_HTTP_SOURCE = (
    "remoteIpBlocks",
    "notRemoteIpBlocks",
    "requestPrincipals",
    "notRequestPrincipals",
    "trustDomains",
    "notTrustDomains",
)
_L4_KEYS = ("source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port")

# Wording as istiod's, so that people find what they know.
_HTTP = (
    "ztunnel does not support HTTP attributes (found: {found}). "
    "In ambient mode you must use a waypoint proxy to enforce HTTP rules. {effect}"
)
_ALLOW_EFFECT = (
    "Within an ALLOW policy, rules matching HTTP attributes are omitted. This will be more restrictive than requested."
)
_DENY_EFFECT = (
    "DENY policy with HTTP attributes is enforced without the HTTP rules. This will be more restrictive than requested."
)
_DENY_NOTHING = (
    "After omitting unsupported HTTP attributes, this DENY policy has no enforceable rules at ztunnel and will have no "
    "effect. Deploy a waypoint proxy and use a targetRef to enforce this policy."
)


def convert(policy: AuthorizationPolicy, root_namespace: str) -> tuple[Policy | None, tuple[Condition, ...]]:
    """The policy as node agents enforce it, None if they do not; and why."""
    spec = policy.spec
    if spec.targets:
        message = "policies with targetRefs are enforced by waypoint proxies, not by node agents; no waypoint is bound"
        return None, (Condition(type="WaypointAccepted", status="False", reason="AncestorNotBound", message=message),)
    if spec.action not in ("ALLOW", "DENY"):
        message = f"ztunnel does not support the {spec.action} action"
        return None, (Condition(type="ZtunnelAccepted", status="False", reason="UnsupportedValue", message=message),)
    action = PolicyAction(spec.action)
    converted = [_rule(rule, action, policy.metadata.namespace) for rule in spec.rules]
    rules = tuple(rule for rule, _ in converted if rule is not None)
    found = sorted({name for _, names in converted for name in names})
    made = Policy(
        name=policy.metadata.name,
        namespace=policy.metadata.namespace,
        scope=_scope(policy, root_namespace),
        action=action,
        rules=rules,
        dry_run=_dry_run(policy),
    )
    return made, (_accepted(action, rules, found), *_warnings(policy))


def _scope(policy: AuthorizationPolicy, root_namespace: str) -> PolicyScope:
    if policy.spec.selector is not None:
        return PolicyScope.WORKLOAD_SELECTOR
    return PolicyScope.GLOBAL if policy.metadata.namespace == root_namespace else PolicyScope.NAMESPACE


def _dry_run(policy: AuthorizationPolicy) -> bool:
    return policy.metadata.annotations.get(DRY_RUN, "") in ("1", "t", "T", "true", "True", "TRUE")


def _rule(rule: AuthorizationRule, action: PolicyAction, namespace: str) -> tuple[Rule | None, set[str]]:
    """The L4 part of a rule, and the names of what is not L4. An ALLOW rule with any of those is dropped whole."""
    found: set[str] = set()
    clauses = []
    if rule.to is not None:
        found |= {name for to in rule.to for name in _given(to.operation, _HTTP_OPERATION)}
        clauses.append(Clause(tuple(_operation(to.operation) for to in rule.to)))
    if rule.from_ is not None:
        found |= {name for origin in rule.from_ for name in _given(origin.source, _HTTP_SOURCE)}
        clauses.append(Clause(tuple(_source(origin.source, namespace) for origin in rule.from_)))
    for when in rule.when or ():
        if when.key not in _L4_KEYS:
            found.add(when.key)
        clauses.append(Clause((_when(when),)))
    if found and action is PolicyAction.ALLOW:
        return None, found
    return Rule(tuple(clauses)), found


def _given(part: Source | Operation, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        field = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
        if getattr(part, field):
            yield name


def _operation(operation: Operation) -> Match:
    return Match(destination_ports=_ports(operation.ports), not_destination_ports=_ports(operation.not_ports))


def _source(source: Source, namespace: str) -> Match:
    return Match(
        source_ips=_networks(source.ip_blocks),
        not_source_ips=_networks(source.not_ip_blocks),
        namespaces=_strings(source.namespaces),
        not_namespaces=_strings(source.not_namespaces),
        service_accounts=_accounts(source.service_accounts, namespace),
        not_service_accounts=_accounts(source.not_service_accounts, namespace),
        principals=_strings(source.principals),
        not_principals=_strings(source.not_principals),
    )


def _when(when: When) -> Match:
    """One `when` is one clause of one match; an attribute that is not L4 leaves it empty, and it never matches."""
    yes, no = when.values, when.not_values
    if when.key == "source.ip":
        return Match(source_ips=_networks(yes), not_source_ips=_networks(no))
    if when.key == "source.namespace":
        return Match(namespaces=_strings(yes), not_namespaces=_strings(no))
    if when.key == "source.principal":
        return Match(principals=_strings(yes), not_principals=_strings(no))
    if when.key == "destination.ip":
        return Match(destination_ips=_networks(yes), not_destination_ips=_networks(no))
    if when.key == "destination.port":
        return Match(destination_ports=_ports(yes), not_destination_ports=_ports(no))
    return Match()


def string_match(value: str) -> StringMatch:
    """`*` any value at all, `*x` suffix, `x*` prefix, else exact."""
    if value == "*":
        return StringMatch(MatchKind.PRESENCE)
    if value.startswith("*"):
        return StringMatch(MatchKind.SUFFIX, value[1:])
    if value.endswith("*"):
        return StringMatch(MatchKind.PREFIX, value[:-1])
    return StringMatch(MatchKind.EXACT, value)


def _strings(values: tuple[str, ...]) -> tuple[StringMatch, ...]:
    return tuple(string_match(value) for value in values)


def _ports(values: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(check.cidr("", value)) for value in values)


def _accounts(values: tuple[str, ...], namespace: str) -> tuple[ServiceAccountMatch, ...]:
    """`ns/sa`, or `sa` in the policy's own namespace."""
    split = (value.rpartition("/") for value in values)
    return tuple(ServiceAccountMatch(given or namespace, account) for given, _, account in split)


def _accepted(action: PolicyAction, rules: tuple[Rule, ...], found: list[str]) -> Condition:
    if not found:
        return Condition(type="ZtunnelAccepted", status="True", reason="Accepted", message="attached to ztunnel")
    effect = _ALLOW_EFFECT
    if action is PolicyAction.DENY:
        effect = _DENY_EFFECT if any(_can_match(rule) for rule in rules) else _DENY_NOTHING
    message = _HTTP.format(found=", ".join(found), effect=effect)
    return Condition(type="ZtunnelAccepted", status="True", reason="UnsupportedValue", message=message)


def _can_match(rule: Rule) -> bool:
    return all(any(match != Match() for match in clause.matches) for clause in rule.clauses)


def _warnings(policy: AuthorizationPolicy) -> Iterator[Condition]:
    """A principal written as an id never matches: values are compared without the scheme."""
    for path, value in _principals(policy):
        if value.startswith("spiffe://"):
            cure = value.removeprefix("spiffe://")
            message = f"{path}: {check.quoted(value)} never matches; did you mean {cure[:253]}?"
            yield Condition(type="Warning", status="True", reason="NeverMatches", message=message)


def _principals(policy: AuthorizationPolicy) -> Iterator[tuple[str, str]]:
    for number, rule in enumerate(policy.spec.rules):
        for index, origin in enumerate(rule.from_ or ()):
            path = f"spec.rules[{number}].from[{index}].source"
            yield from ((f"{path}.principals[{i}]", v) for i, v in enumerate(origin.source.principals))
            yield from ((f"{path}.notPrincipals[{i}]", v) for i, v in enumerate(origin.source.not_principals))
        for index, when in enumerate(rule.when or ()):
            if when.key == "source.principal":
                path = f"spec.rules[{number}].when[{index}]"
                yield from ((f"{path}.values[{i}]", v) for i, v in enumerate(when.values))
                yield from ((f"{path}.notValues[{i}]", v) for i, v in enumerate(when.not_values))
