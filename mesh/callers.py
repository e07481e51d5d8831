"""Which peers a workload's policies have in mind: those worth an answer before they ask.

A guess that costs nothing when it is wrong: who is left out asks later, who is in without need is refused by the
policies themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mesh.model import Match, MatchKind, Policy, PolicyAction, Rule, Workload


def by_principal(workloads: Mapping[str, Workload]) -> dict[str, list[str]]:
    """Principal (`<trust domain>/ns/<namespace>/sa/<service account>`) -> keys of the workloads that run as it."""
    found: dict[str, list[str]] = {}
    for key, workload in workloads.items():
        found.setdefault(workload.identity.principal, []).append(key)
    return found


def callers(policies: Iterable[Policy], named: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Keys out of `named` (see `by_principal`) that ALLOW policies name; None: not by name, so it may be anybody."""
    allowing = [p for p in policies if p.action is PolicyAction.ALLOW and not p.dry_run]
    if not allowing:
        return None
    found: dict[str, None] = {}  # in order, once
    for rule in (rule for policy in allowing for rule in policy.rules):
        principals = _principals(rule)
        if principals is None:
            return None
        found.update((key, None) for principal in principals for key in named.get(principal, ()))
    return list(found)


def _principals(rule: Rule) -> list[str] | None:
    """Of the first clause that demands one of them; None: the rule demands none by its whole name."""
    for clause in rule.clauses:
        if clause.matches and all(map(_names, clause.matches)):
            return [principal.value for match in clause.matches for principal in match.principals]
    return None


def _names(match: Match) -> bool:
    return bool(match.principals) and all(principal.kind is MatchKind.EXACT for principal in match.principals)
