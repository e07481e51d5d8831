"""Peers that policies name are found, and where none are named, it may be anybody."""

from __future__ import annotations

import pytest

from mesh.callers import by_principal, callers
from mesh.model import (
    Clause,
    Match,
    MatchKind,
    Policy,
    PolicyAction,
    PolicyScope,
    Rule,
    StringMatch,
    Workload,
)

PODS = {
    name: Workload(uid=name, name=name, namespace="shop", service_account=account)
    for name, account in (("web-1", "web"), ("web-2", "web"), ("db", "db"), ("evil", "evil"))
}


def names(*accounts: str, kind: MatchKind = MatchKind.EXACT, ports: tuple[int, ...] = ()) -> Match:
    principals = tuple(StringMatch(kind, f"cluster.local/ns/shop/sa/{account}") for account in accounts)
    return Match(principals=principals, destination_ports=ports)


def policy(*rules: Rule, action: PolicyAction = PolicyAction.ALLOW, dry_run: bool = False) -> Policy:
    return Policy(name="p", namespace="shop", scope=PolicyScope.NAMESPACE, action=action, rules=rules, dry_run=dry_run)


WEB, DB = Rule((Clause((names("web"),)),)), Rule((Clause((names("db"),)),))
PORT = Clause((Match(destination_ports=(80,)),))


@pytest.mark.parametrize(
    ("policies", "found"),
    [
        ([], None),
        ([policy(WEB)], ["web-1", "web-2"]),
        ([policy(WEB), policy(DB, WEB)], ["web-1", "web-2", "db"]),
        ([policy(Rule((PORT, Clause((names("db", "nobody"),)))))], ["db"]),
        ([policy(Rule((Clause((names("db"), names("web", ports=(80,)))),)))], ["db", "web-1", "web-2"]),
        ([policy(WEB), policy(Rule((PORT,)))], None),
        ([policy(WEB, Rule(()))], None),
        ([policy(Rule((Clause((names("w", kind=MatchKind.PREFIX),)),)))], None),
        ([policy(Rule((Clause((names("web"), Match(destination_ports=(80,)))),)))], None),
        ([policy(WEB), policy(DB, action=PolicyAction.DENY), policy(DB, dry_run=True)], ["web-1", "web-2"]),
        ([policy(WEB, action=PolicyAction.DENY)], None),
        ([policy()], []),
    ],
)
def test_who_is_named(policies: list[Policy], found: list[str] | None) -> None:
    assert callers(policies, by_principal(PODS)) == found
