"""PeerAuthentication -> DENY policies and who lists them (istio-facts §3.3)."""

from __future__ import annotations

from typing import Any

import pytest

from controller.translate.peer_authentication import resolve, static_strict
from mesh.model import Clause, Match, MatchKind, PolicyAction, PolicyScope, Rule, StringMatch
from mesh.resources import PeerAuthentication, parse

ROOT = "istio-system"
STRICT = f"{ROOT}/istio_converted_static_strict"
PORTS = "shop/converted_peer_authentication_w"
NOBODY = (StringMatch(MatchKind.PRESENCE),)


def authentication(
    name: str,
    namespace: str,
    mode: str = "",
    *,
    app: str = "",
    ports: dict[int, str] | None = None,
    created: int = 2024,
) -> PeerAuthentication:
    spec: dict[str, Any] = {"portLevelMtls": {port: {"mode": m} for port, m in (ports or {}).items()}}
    if mode:
        spec["mtls"] = {"mode": mode}
    if app:
        spec["selector"] = {"matchLabels": {"app": app}}
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": f"{created}-01-01T00:00:00Z"}
    document = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": metadata, "spec": spec}
    made = parse(document, file="f")
    assert isinstance(made, PeerAuthentication)
    return made


def mesh(mode: str) -> PeerAuthentication:
    return authentication("m", ROOT, mode)


def namespace(mode: str) -> PeerAuthentication:
    return authentication("n", "shop", mode)


def workload(mode: str, **ports: str) -> PeerAuthentication:
    return authentication("w", "shop", mode, app="a", ports={int(p[1:]): m for p, m in ports.items()})


ATTACHED: list[tuple[list[PeerAuthentication], tuple[str, ...]]] = [
    ([], ()),
    ([mesh("PERMISSIVE")], ()),
    ([mesh("DISABLE")], ()),
    ([mesh("UNSET")], ()),
    ([mesh("STRICT")], (STRICT,)),
    ([namespace("STRICT")], (STRICT,)),
    ([workload("STRICT")], (STRICT,)),
    ([mesh("STRICT"), namespace("PERMISSIVE")], ()),
    ([mesh("STRICT"), namespace("UNSET")], (STRICT,)),
    ([mesh("STRICT"), namespace("")], (STRICT,)),
    ([mesh("STRICT"), workload("DISABLE")], ()),
    ([mesh("PERMISSIVE"), namespace("STRICT"), workload("UNSET")], (STRICT,)),
    ([mesh("STRICT"), namespace("PERMISSIVE"), workload("STRICT")], (STRICT,)),
    ([workload("STRICT", p80="STRICT")], (STRICT,)),
    ([workload("PERMISSIVE", p80="DISABLE")], ()),
    ([workload("UNSET", p80="UNSET"), namespace("STRICT")], (STRICT,)),
    ([workload("PERMISSIVE", p80="STRICT")], (PORTS,)),
    ([workload("STRICT", p80="PERMISSIVE")], (PORTS,)),
    ([workload("STRICT", p80="DISABLE", p81="STRICT")], (PORTS,)),
    ([workload("UNSET", p80="DISABLE"), mesh("STRICT")], (PORTS,)),
    ([workload("UNSET", p80="PERMISSIVE"), mesh("STRICT"), namespace("UNSET")], (PORTS,)),
    ([workload("UNSET", p80="PERMISSIVE"), namespace("PERMISSIVE"), mesh("STRICT")], ()),
    ([workload("UNSET", p80="STRICT")], (PORTS,)),
    ([authentication("w", ROOT, "STRICT", app="a")], ()),
    ([authentication("o", "other", "STRICT")], ()),
    ([authentication("x", "shop", "STRICT", app="b")], ()),
]


@pytest.mark.parametrize(("given", "names"), ATTACHED)
def test_what_a_workload_lists(given: list[PeerAuthentication], names: tuple[str, ...]) -> None:
    effective = resolve(given, ROOT)
    assert effective.attached("shop", {"app": "a"}) == names
    assert set(names) <= {p.namespaced_name for p in effective.policies}, "what is listed is sent"


def test_the_static_policy_is_sent_once_there_is_any_peer_authentication() -> None:
    assert resolve([], ROOT).policies == ()
    assert resolve([mesh("PERMISSIVE")], ROOT).policies == (static_strict(ROOT),)
    static = static_strict(ROOT)
    assert (static.scope, static.action) == (PolicyScope.WORKLOAD_SELECTOR, PolicyAction.DENY)
    assert static.rules == (Rule((Clause((Match(not_principals=NOBODY),)),)),)


def ports_of(*given: PeerAuthentication) -> tuple[Rule, ...]:
    (_, policy) = resolve(given, ROOT).policies
    assert (policy.name, policy.action) == ("converted_peer_authentication_w", PolicyAction.DENY)
    return policy.rules


def test_strict_ports_on_an_open_base_are_a_rule_each() -> None:
    assert ports_of(workload("PERMISSIVE", p81="STRICT", p80="STRICT", p82="DISABLE")) == (
        Rule((Clause((Match(not_principals=NOBODY, destination_ports=(80,)),)),)),
        Rule((Clause((Match(not_principals=NOBODY, destination_ports=(81,)),)),)),
    )


@pytest.mark.parametrize(
    "given",
    [
        [workload("STRICT", p80="PERMISSIVE", p81="DISABLE", p82="STRICT")],
        [mesh("STRICT"), workload("UNSET", p80="PERMISSIVE", p81="DISABLE")],
    ],
)
def test_open_ports_on_a_strict_base_are_one_rule_of_anded_clauses(given: list[PeerAuthentication]) -> None:
    """As two rules they would deny every other port to everybody, mutual TLS too (istio-facts §7.1)."""
    assert ports_of(*given) == (
        Rule(
            (
                Clause((Match(not_principals=NOBODY),)),
                Clause((Match(not_destination_ports=(80,)),)),
                Clause((Match(not_destination_ports=(81,)),)),
            )
        ),
    )


@pytest.mark.parametrize("place", [(ROOT, ""), ("shop", ""), ("shop", "a")])
def test_the_oldest_of_a_level_wins_and_the_others_are_told(place: tuple[str, str]) -> None:
    space, app = place
    young = authentication("young", space, "STRICT", app=app, created=2025)
    old = authentication("old", space, "PERMISSIVE", app=app, created=2020)
    effective = resolve([young, old], ROOT)
    assert effective.attached("shop", {"app": "a"}) == ()
    if not app:  # of selecting ones, several may well be in use, each for other workloads
        messages = {key.name: c[0].message for key, c in effective.conditions.items()}
        assert messages["young"] == "old of the same namespace is older and wins; keep one of them"


def test_an_unset_policy_that_is_oldest_still_wins_its_level() -> None:
    unset = authentication("unset", "shop", "UNSET", created=2020)
    effective = resolve([unset, authentication("open", "shop", "PERMISSIVE"), mesh("STRICT")], ROOT)
    assert effective.attached("shop", {}) == (STRICT,)


def test_one_with_a_selector_in_the_root_namespace_is_ignored_and_told() -> None:
    effective = resolve([authentication("w", ROOT, "STRICT", app="a")], ROOT)
    (conditions,) = effective.conditions.values()
    assert conditions[0].status == "False"
    assert "move it to the namespace of the workloads" in conditions[0].message
