"""Lists of a policy: what they contain, and what it costs to ask."""

from __future__ import annotations

import gc
import ipaddress
import weakref
from itertools import product

import pytest

from mesh import prepared as module
from mesh.model import Clause, Match, MatchKind, Policy, PolicyAction, PolicyScope, Rule, StringMatch
from mesh.prepared import About, Networks, Strings, prepared

EXACT, PREFIX, SUFFIX, PRESENCE = MatchKind.EXACT, MatchKind.PREFIX, MatchKind.SUFFIX, MatchKind.PRESENCE
ABOUT = About(
    namespace="web",
    account=("web", "client"),
    principal="cluster.local/ns/web/sa/client",
    source=ipaddress.ip_address("10.0.0.1"),
    destination=ipaddress.ip_address("10.0.0.9"),
    port=8080,
)


@pytest.mark.parametrize(
    ("wanted", "inside", "outside"),
    [
        ((StringMatch(EXACT, "web"),), ["web"], ["we", "webs", "Web", "", None]),
        ((StringMatch(PREFIX, "we"),), ["we", "web"], ["w", "awe", "", None]),
        ((StringMatch(SUFFIX, "eb"),), ["eb", "web"], ["b", "ebb", "", None]),
        ((StringMatch(PRESENCE),), ["x"], ["", None]),
        ((StringMatch(PREFIX, ""),), ["x"], ["", None]),
        ((StringMatch(SUFFIX, ""),), ["x"], ["", None]),
        (
            (StringMatch(PREFIX, "a-"), StringMatch(PREFIX, "bc-"), StringMatch(SUFFIX, "-z"), StringMatch(EXACT, "q")),
            ["a-1", "bc-1", "1-z", "q"],
            ["b-1", "bc", "z", "qq"],
        ),
    ],
)
def test_strings(wanted: tuple[StringMatch, ...], inside: list[str], outside: list[str | None]) -> None:
    table = Strings(wanted)
    assert [value for value in inside if value not in table] == []
    assert [value for value in outside if value in table] == []


CIDRS = ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.1/32", "10.0.1.0/24", "10.0.0.128/25", "::/0", "fd00::/8", "fd00::1/128",
         "::ffff:0:0/96", "a00::/8")  # fmt: skip
ADDRESSES = ("0.0.0.0", "10.0.0.1", "10.0.0.200", "10.0.1.255", "11.0.0.0", "255.255.255.255", "::", "fd00::1",
             "fe00::1", "::ffff:10.0.0.1", "a00::1")  # fmt: skip


@pytest.mark.parametrize(("first", "second"), list(product(CIDRS, CIDRS)))
def test_networks_are_those_of_the_standard_library(first: str, second: str) -> None:
    table = Networks((first, second))
    for text in ADDRESSES:
        address = ipaddress.ip_address(text)
        assert (address in table) == any(address in ipaddress.ip_network(cidr) for cidr in (first, second)), text


def made(*matches: Match) -> Policy:
    rules = tuple(Rule((Clause((match,)),)) for match in matches)
    return Policy(name="p", namespace="n", scope=PolicyScope.NAMESPACE, action=PolicyAction.DENY, rules=rules)


def test_a_long_list_costs_a_look_up_for_each_length() -> None:
    """And not one for each of its values: a tenant may list tens of thousands."""
    cidrs = [f"11.{i >> 8}.{i & 255}.0/24" for i in range(20000)]
    names = [StringMatch(SUFFIX, f"/sa/{i:05}") for i in range(20000)]
    for table, looked_up in ((Networks(cidrs)._by_length, cidrs), (Strings(names)._suffixes, names)):
        assert len(table) == 1
        assert len(next(iter(table.values()))) == len(looked_up)


def test_it_is_made_once_and_forgotten_with_the_policy() -> None:
    policy = made(Match(destination_ports=(8080,)))
    first = prepared(policy)
    assert first.matches(ABOUT)
    assert prepared(policy) is first
    equal = made(Match(destination_ports=(8080,)))
    assert prepared(equal) is not first
    key, gone = id(policy), weakref.ref(policy)
    del policy
    gc.collect()
    assert gone() is None
    assert key not in module._prepared


def test_its_weight_is_what_has_to_be_tried() -> None:
    assert prepared(made()).weight == 1
    assert prepared(made(Match(), Match())).weight == 5
