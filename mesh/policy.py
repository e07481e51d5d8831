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
from typing import NamedTuple

from mesh.identity import SpiffeId
from mesh.model import Policy, PolicyAction, Workload
from mesh.prepared import About, prepared
from mesh.reason import Reason
from mesh.snapshot import Snapshot

# Names under which the controller sends PeerAuthentication, as istiod does (istio-facts §3.3).
STATIC_STRICT = "istio_converted_static_strict"
CONVERTED_PREFIX = "converted_peer_authentication_"


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
    about = _about(arrival)
    trials: list[Trial] = []

    def verdict(*, allow: bool, policy: str = "", reason: Reason = Reason.OK) -> Verdict:
        return Verdict(allow=allow, policy=policy, reason=reason, trials=tuple(trials), unknown=tuple(missing))

    for policy in _of(policies, PolicyAction.DENY, dry_run=True):
        if prepared(policy).matches(about):
            trials.append(Trial(policy.namespaced_name, "deny"))
    for policy in _of(policies, PolicyAction.DENY, dry_run=False):
        if prepared(policy).matches(about):
            return verdict(allow=False, policy=policy.namespaced_name, reason=_deny_reason(policy, arrival))
    for policy in _of(policies, PolicyAction.ALLOW, dry_run=True):
        trials.append(Trial(policy.namespaced_name, "allow" if prepared(policy).matches(about) else "not allow"))
    allowing = list(_of(policies, PolicyAction.ALLOW, dry_run=False))
    if not allowing:
        return verdict(allow=True)
    for policy in allowing:
        if prepared(policy).matches(about):
            return verdict(allow=True, policy=policy.namespaced_name)
    return verdict(allow=False, reason=Reason.POLICY_NO_ALLOW)


def _of(policies: Iterable[Policy], action: PolicyAction, *, dry_run: bool) -> Iterable[Policy]:
    return (p for p in policies if p.action is action and p.dry_run is dry_run)


def _deny_reason(policy: Policy, arrival: Arrival) -> Reason:
    converted = policy.name == STATIC_STRICT or policy.name.startswith(CONVERTED_PREFIX)
    return Reason.STRICT_PLAINTEXT if converted and arrival.identity is None else Reason.POLICY_DENY


def _about(arrival: Arrival) -> About:
    """Istio: a peer without identity has the namespace "", which `presence` and `not` judge as it stands."""
    identity = arrival.identity
    return About(
        namespace=identity.namespace if identity is not None else "",
        account=(identity.namespace, identity.service_account) if identity is not None else None,
        principal=identity.principal if identity is not None else None,
        source=ipaddress.ip_address(arrival.source_ip),
        destination=ipaddress.ip_address(arrival.destination_ip),
        port=arrival.destination_port,
    )
