"""SPIFFE ids: what parses, what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity import SpiffeId, first_spiffe_id

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)


@given(NAMES, NAMES, NAMES)
def test_what_is_written_is_read_back(trust_domain: str, namespace: str, account: str) -> None:
    identity = SpiffeId(trust_domain, namespace, account)
    assert SpiffeId.parse(str(identity)) == identity
    assert identity.principal == f"{trust_domain}/ns/{namespace}/sa/{account}"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "spiffe://cluster.local",
        "spiffe://cluster.local/ns/a",
        "spiffe://cluster.local/ns/a/sa/",
        "spiffe://cluster.local/ns//sa/b",
        "spiffe://cluster.local/ns/a/sa/b/c",
        "spiffe://cluster.local/ns/a/sa/b?x",
        "spiffe://cluster.local/ns/a/sa/b\n",
        "spiffe://Cluster.Local/ns/a/sa/b",
        "spiffe://user@cluster.local/ns/a/sa/b",
        "https://cluster.local/ns/a/sa/b",
        "cluster.local/ns/a/sa/b",
    ],
)
def test_other_forms_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="is not spiffe://"):
        SpiffeId.parse(uri)


def test_the_first_uri_that_parses_is_the_peers_identity() -> None:
    mine = "spiffe://td/ns/a/sa/b"
    assert first_spiffe_id(("https://x", "spiffe://td/other/path", mine, "spiffe://td/ns/c/sa/d")) == SpiffeId.parse(
        mine
    )
    assert first_spiffe_id(("https://x",)) is None
    assert first_spiffe_id(()) is None
