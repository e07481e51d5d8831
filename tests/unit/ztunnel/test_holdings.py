"""What a node holds."""

from __future__ import annotations

from dataclasses import replace

from mesh.control import Update, decode_update, encode, entry
from mesh.model import Policy, PolicyAction, PolicyScope, Service, Workload
from ztunnel.holdings import Holdings

A = Workload(uid="u/a", name="a", namespace="shop", addresses=("10.0.0.1",))
S = Service(name="s", namespace="shop", hostname="s.shop.svc.cluster.local")
P = Policy(name="p", namespace="shop", scope=PolicyScope.NAMESPACE, action=PolicyAction.DENY)
FIRST = Update(nonce=1, upserts=(entry(A), entry(S), entry(P)), trust_domain="td", root_namespace="root")


def test_an_update_is_applied_and_its_hashes_kept() -> None:
    held, errors = Holdings().after(FIRST)
    assert errors == {}
    assert held.snapshot.workload_at("10.0.0.1") == A
    assert (held.snapshot.trust_domain, held.snapshot.root_namespace) == ("td", "root")
    assert held.hashes == {r.key: entry(r).hash for r in (A, S, P)}
    after, _ = held.after(Update(nonce=2, removes=(A.key,)))
    assert set(after.hashes) == {S.key, P.key}
    assert after.snapshot.workloads == {}


def test_of_a_bad_resource_the_last_good_state_stays_and_the_rest_is_applied() -> None:
    held, _ = Holdings().after(FIRST)
    bad = replace(A, addresses=("10.0.0",))
    new = replace(S, addresses=("10.9.0.1",))
    after, errors = held.after(Update(nonce=2, upserts=(entry(bad), entry(new))))
    assert list(errors) == [A.key]
    assert "10.0.0" in errors[A.key]
    assert after.snapshot.workloads[A.uid] == A
    assert after.hashes[A.key] == entry(A).hash
    assert after.snapshot.service_at("10.9.0.1") == new


def test_a_resource_that_does_not_decode_keeps_only_itself_out() -> None:
    text = encode(FIRST).replace(b'"DENY"', b'"PERHAPS"')
    update, errors = decode_update(text)
    assert [e.resource for e in update.upserts] == [A, S]
    assert list(errors) == ["upserts[2]"]
    assert "PERHAPS" in errors["upserts[2]"]
