"""A policy made ready for many questions: what it lists is looked up, not tried one by one.

Who may write a policy decides how long its lists are, and every pod of a node waits for the answer. So a field costs a
look-up for each length that its prefixes, suffixes or networks have, however many there are of them.
"""

from __future__ import annotations

import ipaddress
import weakref
from collections.abc import Container, Iterable
from typing import NamedTuple

from mesh.model import Clause, Match, MatchKind, Policy, Rule, StringMatch

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class About(NamedTuple):
    """What a policy may ask of a connection, in the order of `_FIELDS`."""

    namespace: str  # of the peer's identity; empty: it has none
    account: tuple[str, str] | None  # namespace and name
    principal: str | None
    source: IPAddress
    destination: IPAddress
    port: int


class Strings:
    """`value in` it: one of them matches. None and the empty string are absent: they match nothing, so that `*` means
    presence."""

    __slots__ = ("_any", "_exact", "_prefixes", "_suffixes")

    def __init__(self, wanted: Iterable[StringMatch]) -> None:
        self._any = False
        self._exact: set[str] = set()
        self._prefixes: dict[int, set[str]] = {}  # by their length
        self._suffixes: dict[int, set[str]] = {}
        for each in wanted:
            if each.kind is MatchKind.PRESENCE:
                self._any = True
            elif each.kind is MatchKind.EXACT:
                self._exact.add(each.value)
            else:
                by_length = self._prefixes if each.kind is MatchKind.PREFIX else self._suffixes
                by_length.setdefault(len(each.value), set()).add(each.value)

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, str) or not value:
            return False
        return (
            self._any
            or value in self._exact
            or any(value[:length] in found for length, found in self._prefixes.items())
            or any(value[max(0, len(value) - length) :] in found for length, found in self._suffixes.items())
        )


class Networks:
    """`address in` it: one of these CIDRs contains it. An IPv4 address is in no IPv6 network, nor the other way."""

    __slots__ = ("_by_length",)

    def __init__(self, cidrs: Iterable[str]) -> None:
        self._by_length: dict[tuple[int, int], set[int]] = {}  # (version, bits of the host part) -> network parts
        for cidr in cidrs:
            network = ipaddress.ip_network(cidr)
            host = network.max_prefixlen - network.prefixlen
            self._by_length.setdefault((network.version, host), set()).add(int(network.network_address) >> host)

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, IPAddress):
            return False
        version, number = address.version, int(address)
        return any(of == version and number >> host in found for (of, host), found in self._by_length.items())


class Test:
    """A Match. All fields empty never matches (istio-facts §3.1)."""

    __slots__ = ("_parts",)

    def __init__(self, match: Match) -> None:
        accounts, unwanted = (
            frozenset((a.namespace, a.service_account) for a in given) or None
            for given in (match.service_accounts, match.not_service_accounts)
        )
        fields: tuple[tuple[Container[object] | None, Container[object] | None], ...] = (
            (_strings(match.namespaces), _strings(match.not_namespaces)),
            (accounts, unwanted),
            (_strings(match.principals), _strings(match.not_principals)),
            (_networks(match.source_ips), _networks(match.not_source_ips)),
            (_networks(match.destination_ips), _networks(match.not_destination_ips)),
            (frozenset(match.destination_ports) or None, frozenset(match.not_destination_ports) or None),
        )
        self._parts = tuple((i, yes, no) for i, (yes, no) in enumerate(fields) if yes is not None or no is not None)

    def holds(self, about: About) -> bool:
        for index, wanted, unwanted in self._parts:
            value = about[index]
            if wanted is not None and value not in wanted:
                return False
            if unwanted is not None and value in unwanted:
                return False
        return bool(self._parts)


class Prepared:
    """`weight`: how many tests and rules it has, each of them about a microsecond's work."""

    __slots__ = ("_rules", "weight")

    def __init__(self, policy: Policy) -> None:
        self._rules = tuple(tuple(map(_clause, rule.clauses)) for rule in policy.rules)
        self.weight = 1 + sum(map(_weight, policy.rules))

    def matches(self, about: About) -> bool:
        """No rules never match; a rule without clauses, and a clause without tests, matches everything."""
        return any(all(_clause_holds(clause, about) for clause in rule) for rule in self._rules)


_prepared: dict[int, tuple[weakref.ref[Policy], Prepared]] = {}  # by id(): to compare long policies takes long


def prepared(policy: Policy) -> Prepared:
    """Made once, when it is first asked for; forgotten with the policy."""
    found = _prepared.get(id(policy))
    if found is None:
        key = id(policy)
        found = _prepared[key] = (weakref.ref(policy, lambda _: _prepared.pop(key, None)), Prepared(policy))
    return found[1]


def _clause_holds(tests: tuple[Test, ...], about: About) -> bool:
    for test in tests:
        if test.holds(about):
            return True
    return not tests


def _clause(clause: Clause) -> tuple[Test, ...]:
    return tuple(map(Test, clause.matches))


def _weight(rule: Rule) -> int:
    return 1 + sum(len(clause.matches) for clause in rule.clauses)


def _strings(wanted: tuple[StringMatch, ...]) -> Strings | None:
    return Strings(wanted) if wanted else None


def _networks(cidrs: tuple[str, ...]) -> Networks | None:
    return Networks(cidrs) if cidrs else None
