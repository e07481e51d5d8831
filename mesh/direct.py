"""Which connections between pods of one node may go from socket to socket, compiled to exact-match entries.

`plan` says of every enrolled pod of a node how it may be reached directly: OPEN, one entry for everybody, where no
policy can refuse an authenticated peer; LISTED, an entry per source and port, where one can. Entries are answers of
`mesh.policy.decide`, never of anything else; what has no entry asks the agent. Only permissions are entries: a refusal
goes through the agent, which names the policy in its log and metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

from mesh import balance
from mesh.balance import Balances
from mesh.callers import by_principal, callers
from mesh.model import Clause, Match, MatchKind, Policy, PolicyAction, Rule, StringMatch, TunnelProtocol, Workload
from mesh.policy import Arrival, decide
from mesh.prepared import prepared
from mesh.reason import Reason
from mesh.route import ILLEGAL_PORTS, target_port
from mesh.snapshot import Snapshot

AHEAD = 4096  # questions that are answered before anybody asked them
LIMIT = 8192  # entries; beyond them, a connection asks the agent each time
WORK = (
    262144  # weight of policies that one plan asks, about a third of a second; what is left unanswered asks the agent
)


class Mode(IntEnum):
    """The numbers are those of the kernel side's `enum target_mode`."""

    OPEN = 1
    LISTED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How a pod may be reached. `accelerate`: bytes may go from socket to socket, past its TCP."""

    mode: Mode
    accelerate: bool = True


class Key(NamedTuple):
    """Instances of two pods of a node, and the port of the second."""

    source: str
    destination: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictEntry:
    source: str
    destination: str
    port: int
    allow: bool = True
    reason: Reason = Reason.OK

    @property
    def key(self) -> Key:
        return Key(self.source, self.destination, self.port)


Basis = tuple[Workload, tuple[Policy, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the kernel is told: `targets` by instance, `entries` of the LISTED ones. `sources` are the pods that may go
    directly; `basis` is what the answers about a target rest on."""

    sources: Mapping[str, Workload] = field(default_factory=dict)
    targets: Mapping[str, Target] = field(default_factory=dict)
    entries: dict[Key, VerdictEntry] = field(default_factory=dict)  # grows as pods ask
    basis: Mapping[str, Basis] = field(default_factory=dict)
    ahead: frozenset[Key] = frozenset()  # answered; those without an entry were refused
    services: Balances = field(default_factory=Balances)  # of which targets are endpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """From one plan to the next. `revoking`: something that was permitted is not any more, or not surely, so all cached
    answers are to be replaced at once, and `entries` are all; else they are the ones to be added."""

    revoking: bool
    targets: bool
    services: bool
    entries: tuple[VerdictEntry, ...]


def plan(snapshot: Snapshot, pods: Mapping[str, Workload], *, before: Plan | None = None) -> Plan:
    """`pods`: enrolled pods of a node, by instance. Of `before` every entry stays that is still permitted; it is not
    judged again if nothing has changed that it rests on."""
    sources = {i: w for i, w in pods.items() if w.direct and w.capture}
    basis = {i: (w, snapshot.policies_for(w)[0]) for i, w in sources.items() if _reachable(snapshot, w)}
    targets = {i: Target(mode=_mode(policies), accelerate=w.acceleration) for i, (w, policies) in basis.items()}
    listed = {i for i, target in targets.items() if target.mode is Mode.LISTED}
    same = {i for i in listed if before is not None and before.basis.get(i) == basis[i]}
    still = {i for i, w in sources.items() if before is not None and before.sources.get(i) == w}
    entries: dict[Key, VerdictEntry] = {}
    kept = before.entries if before is not None else {}
    asked = frozenset(islice(_ahead(snapshot, sources, {i: basis[i][1] for i in listed}), AHEAD))
    answered = asked & before.ahead if before is not None else frozenset()
    ahead, work = set(), 0
    for key in (*kept, *sorted(asked - kept.keys())):
        if len(entries) >= LIMIT:
            break
        if key.destination not in listed or key.source not in sources:
            continue
        unchanged = key.destination in same and key.source in still
        if unchanged and key in kept:
            entries[key] = kept[key]
        elif unchanged and key in answered:
            ahead.add(key)
        elif work < WORK:
            workload, policies = basis[key.destination]
            work += 1 + sum(prepared(policy).weight for policy in policies)
            ahead.add(key)
            if permitted(snapshot, sources[key.source], workload, key.port):
                entries[key] = VerdictEntry(source=key.source, destination=key.destination, port=key.port)
    services = balance.plan(snapshot, sources, targets.keys(), before=before.services if before is not None else None)
    return Plan(
        sources=sources, targets=targets, entries=entries, basis=basis, ahead=frozenset(ahead), services=services
    )


def ask(snapshot: Snapshot, made: Plan, key: Key) -> VerdictEntry | None:
    """The entry to add to a plan of this snapshot because of a connection that had none; None: there is to be none."""
    target = made.targets.get(key.destination)
    if target is None or target.mode is not Mode.LISTED or key.source not in made.sources:
        return None
    if key in made.entries or len(made.entries) >= LIMIT:
        return None
    if not permitted(snapshot, made.sources[key.source], made.basis[key.destination][0], key.port):
        return None
    return VerdictEntry(source=key.source, destination=key.destination, port=key.port)


def change(before: Plan | None, after: Plan) -> Change:
    """How to get from one to the other. Before None: nobody knows what the kernel was told."""
    if before is None:
        return Change(revoking=True, targets=True, services=True, entries=tuple(after.entries.values()))
    revoking = (
        any(not _as_open(after.targets.get(i), target) for i, target in before.targets.items())
        or any(before.basis[i][0].addresses != w.addresses for i, (w, _) in after.basis.items() if i in before.basis)
        or any(i not in after.sources for i in before.sources)
        or any(key not in after.entries for key in before.entries if after.targets[key.destination].mode is Mode.LISTED)
    )
    fresh = tuple(e for key, e in after.entries.items() if revoking or key not in before.entries)
    return Change(
        revoking=revoking,
        targets=revoking or before.targets != after.targets,
        services=before.services.spread != after.services.spread,
        entries=fresh,
    )


def permitted(snapshot: Snapshot, source: Workload, destination: Workload, port: int) -> bool:
    """Whether the answer to every address the two could use is a permission. (One entry stands for all of them.)"""
    if port in ILLEGAL_PORTS:
        return False
    pairs = [
        (mine, theirs)
        for mine in source.addresses
        for theirs in destination.addresses
        if (":" in mine) == (":" in theirs)
    ]
    return bool(pairs) and all(
        decide(snapshot, arrival(source, destination, mine, theirs, port)).allow for mine, theirs in pairs
    )


def arrival(source: Workload, destination: Workload, source_ip: str, destination_ip: str, port: int) -> Arrival:
    """A direct connection is authenticated: its source is the owner of the netns it was made in."""
    return Arrival(
        source_ip=source_ip,
        identity=source.identity,
        destination=destination,
        destination_ip=destination_ip,
        destination_port=port,
    )


def _reachable(snapshot: Snapshot, workload: Workload) -> bool:
    """Its addresses lead to it and to nothing else, and others reach it as a member of the mesh."""
    return (
        workload.tunnel_protocol is TunnelProtocol.HBONE
        and bool(workload.addresses)
        and all(snapshot.workload_at(ip, workload.network) == workload for ip in workload.addresses)
        and not any(snapshot.service_at(ip, workload.network) for ip in workload.addresses)
    )


def _ahead(
    snapshot: Snapshot, sources: Mapping[str, Workload], listed: Mapping[str, tuple[Policy, ...]]
) -> Iterator[Key]:
    """Every source that the policies have in mind to every port that a service leads to; its own service too."""
    named = by_principal(sources)
    for destination in sorted(listed):
        workload, likely = sources[destination], callers(listed[destination], named)
        services = [s for name in workload.services if (s := snapshot.services.get(name)) is not None]
        ports = {target_port(s, workload, p.service_port) for s in services for p in s.ports} - {0}
        for port in sorted(ports):
            yield from (Key(source, destination, port) for source in (sources if likely is None else likely))


def _as_open(after: Target | None, before: Target) -> bool:
    return after is not None and (after.mode is Mode.OPEN or before.mode is Mode.LISTED)


# Whether a policy can make a difference to a peer that has an identity. Both are on the safe side: a policy may count
# as able to match although nothing would, and as unsure to match although everything would.


def _mode(policies: Iterable[Policy]) -> Mode:
    enforced = [p for p in policies if not p.dry_run]
    allowing = [p for p in enforced if p.action is PolicyAction.ALLOW]
    refusable = any(p.action is PolicyAction.DENY and _can_match(p) for p in enforced)
    return Mode.LISTED if refusable or (allowing and not any(map(_always_matches, allowing))) else Mode.OPEN


def _can_match(policy: Policy) -> bool:
    return any(all(_clause_can(clause) for clause in rule.clauses) for rule in policy.rules)


def _clause_can(clause: Clause) -> bool:
    return not clause.matches or any(map(_match_can, clause.matches))


def _match_can(match: Match) -> bool:
    """What excludes everybody with an identity (converted STRICT), or has no field at all, matches nobody here."""
    excluded = (*match.not_principals, *match.not_namespaces)
    return match != _EMPTY and not any(map(_is_presence, excluded))


def _is_presence(match: StringMatch) -> bool:
    return match.kind is MatchKind.PRESENCE


def _always_matches(policy: Policy) -> bool:
    return any(map(_rule_always, policy.rules))


def _rule_always(rule: Rule) -> bool:
    return not any(clause.matches for clause in rule.clauses)


_EMPTY = Match()
