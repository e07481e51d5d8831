"""May this peer reach this workload? L4 authorization exactly as Istio's ztunnel decides it (istio-facts §3.1).

    policy = OR of rules · rule = AND of clauses · clause = OR of matches · match = AND over its fields ·
    field = OR of its values, and `not_` means none of them may match

The traps, all of them tested: a policy without rules never matches; a rule without clauses and a clause without
matches match everything; a match whose fields are all empty never matches.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from mesh.identity import SpiffeId
from mesh.model import Clause, Match, MatchKind, Policy, PolicyAction, Rule, StringMatch, Workload
from mesh.reason import Reason
from mesh.snapshot import Snapshot

# Names under which the controller sends PeerAuthentication, as istiod does (istio-facts §3.3).
STATIC_STRICT = "istio_converted_static_strict"
CONVERTED_PREFIX = "converted_peer_authentication_"

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A connection that asks for a workload, as its node sees it."""

    source_ip: str
    identity: SpiffeId | None  # what the peer's certificate proved; None: plaintext
    destination: Workload
    destination_ip: str
    destination_port: int  # the workload's port, after service-port resolution


class Trial(NamedTuple):
    """What a policy under dry run (`istio.io/dry-run`) would have done to a connection."""

    policy: str  # "<ns>/<name>"
    outcome: str  # deny | allow | not allow

    def __str__(self) -> str:
        return f"dry-run: {self.policy} would {self.outcome}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A permission or a refusal, and what it rests on."""

    allow: bool
    policy: str = ""  # "<ns>/<name>" of the policy that decided; empty: none did
    reason: Reason = Reason.OK
    trials: tuple[Trial, ...] = ()  # of the policies under dry run that were come to
    unknown: tuple[str, ...] = ()  # names of policies that are listed on the workload but not there; skipped

    @property
    def notes(self) -> tuple[str, ...]:
        """For the log."""
        unknown = (f"policy {name} is listed on the workload but not known; skipped" for name in self.unknown)
        return (*unknown, *map(str, self.trials))

    @property
    def detail(self) -> str:
        """For logs and the operator: the policy's name, or what was missing."""
        if self.reason is Reason.POLICY_NO_ALLOW:
            return "allow policies exist, but none allowed"
        return f"denied by {self.policy}" if not self.allow else self.policy


def decide(snapshot: Snapshot, arrival: Arrival) -> Verdict:
    """Dry-run DENY tried, DENY, dry-run ALLOW tried, no ALLOW policies: allow, any ALLOW matches: allow, else deny."""
    policies, missing = snapshot.policies_for(arrival.destination)
    source, destination = _address(arrival.source_ip), _address(arrival.destination_ip)
    facts = _Facts(arrival, source, destination)
    trials: list[Trial] = []

    def verdict(*, allow: bool, policy: str = "", reason: Reason = Reason.OK) -> Verdict:
        return Verdict(allow=allow, policy=policy, reason=reason, trials=tuple(trials), unknown=tuple(missing))

    for policy in _of(policies, PolicyAction.DENY, dry_run=True):
        if facts.match(policy):
            trials.append(Trial(policy.namespaced_name, "deny"))
    for policy in _of(policies, PolicyAction.DENY, dry_run=False):
        if facts.match(policy):
            return verdict(allow=False, policy=policy.namespaced_name, reason=_deny_reason(policy, arrival))
    for policy in _of(policies, PolicyAction.ALLOW, dry_run=True):
        trials.append(Trial(policy.namespaced_name, "allow" if facts.match(policy) else "not allow"))
    allowing = list(_of(policies, PolicyAction.ALLOW, dry_run=False))
    if not allowing:
        return verdict(allow=True)
    for policy in allowing:
        if facts.match(policy):
            return verdict(allow=True, policy=policy.namespaced_name)
    return verdict(allow=False, reason=Reason.POLICY_NO_ALLOW)


def _of(policies: Iterable[Policy], action: PolicyAction, *, dry_run: bool) -> Iterable[Policy]:
    return (p for p in policies if p.action is action and p.dry_run is dry_run)


def _deny_reason(policy: Policy, arrival: Arrival) -> Reason:
    converted = policy.name == STATIC_STRICT or policy.name.startswith(CONVERTED_PREFIX)
    return Reason.STRICT_PLAINTEXT if converted and arrival.identity is None else Reason.POLICY_DENY


@dataclass(frozen=True, slots=True)
class _Facts:
    arrival: Arrival
    source: IPAddress
    destination: IPAddress

    def match(self, policy: Policy) -> bool:
        return any(self._rule(rule) for rule in policy.rules)

    def _rule(self, rule: Rule) -> bool:
        return all(self._clause(clause) for clause in rule.clauses)

    def _clause(self, clause: Clause) -> bool:
        return not clause.matches or any(self._match(match) for match in clause.matches)

    def _match(self, match: Match) -> bool:
        if match == _EMPTY:
            return False
        return (
            self._namespaces(match)
            and self._service_accounts(match)
            and self._principals(match)
            and self._field(match.source_ips, match.not_source_ips, self.source)
            and self._field(match.destination_ips, match.not_destination_ips, self.destination)
            and self._ports(match)
        )

    def _namespaces(self, match: Match) -> bool:
        # Istio: a peer without identity has the namespace "", which `presence` and `not` judge as it stands.
        namespace = self.arrival.identity.namespace if self.arrival.identity is not None else ""
        return _strings(match.namespaces, match.not_namespaces, namespace)

    def _principals(self, match: Match) -> bool:
        principal = self.arrival.identity.principal if self.arrival.identity is not None else None
        return _strings(match.principals, match.not_principals, principal)

    def _service_accounts(self, match: Match) -> bool:
        identity = self.arrival.identity
        name = (identity.namespace, identity.service_account) if identity is not None else None
        wanted = [(a.namespace, a.service_account) for a in match.service_accounts]
        unwanted = [(a.namespace, a.service_account) for a in match.not_service_accounts]
        return (not wanted or name in wanted) and name not in unwanted

    def _field(self, wanted: tuple[str, ...], unwanted: tuple[str, ...], address: IPAddress) -> bool:
        return (not wanted or any(_contains(c, address) for c in wanted)) and not any(
            _contains(c, address) for c in unwanted
        )

    def _ports(self, match: Match) -> bool:
        port = self.arrival.destination_port
        return (not match.destination_ports or port in match.destination_ports) and (
            port not in match.not_destination_ports
        )


_EMPTY = Match()


def _strings(wanted: tuple[StringMatch, ...], unwanted: tuple[StringMatch, ...], value: str | None) -> bool:
    return (not wanted or any(_string(m, value) for m in wanted)) and not any(_string(m, value) for m in unwanted)


def _string(match: StringMatch, value: str | None) -> bool:
    """None and the empty string are absent: they match nothing, so that `*` means presence."""
    if not value:
        return False
    if match.kind is MatchKind.EXACT:
        return value == match.value
    if match.kind is MatchKind.PREFIX:
        return value.startswith(match.value)
    if match.kind is MatchKind.SUFFIX:
        return value.endswith(match.value)
    return True


def _address(text: str) -> IPAddress:
    return ipaddress.ip_address(text)


@lru_cache(maxsize=65536)
def _network(cidr: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(cidr)


def _contains(cidr: str, address: IPAddress) -> bool:
    return address in _network(cidr)
