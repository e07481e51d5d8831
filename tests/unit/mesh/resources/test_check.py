"""CIDRs and their cures, names, ports."""

from __future__ import annotations

import pytest

from mesh.resources import check
from mesh.resources.fault import Invalid


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("fd00::1", "fd00::1/128"),
        ("FD00::/64", "fd00::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_a_cidr(given: str, meant: str) -> None:
    assert str(check.cidr("p", given)) == meant


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        ("10.0.0/8", "did you mean 10.0.0.0/8?"),
        ("10/8", "did you mean 10.0.0.0/8?"),
        ("010.1.2.3", "did you mean 10.1.2.3?"),
        (" 10.0.0.0/8 ", "did you mean 10.0.0.0/8?"),
        ("10.0.0.0/33", "the prefix length of IPv4 is 0 to 32"),
        ("fd00::/129", "the prefix length of IPv6 is 0 to 128"),
        ("300.0.0.0/8", "write an address or a network like 10.0.0.0/8 or fd00::/64"),
        ("*", "write an address or a network like 10.0.0.0/8 or fd00::/64"),
        ("", "write an address or a network like 10.0.0.0/8 or fd00::/64"),
    ],
)
def test_not_a_cidr(given: str, cure: str) -> None:
    with pytest.raises(Invalid) as caught:
        check.cidr("p", given)
    assert caught.value.cure == cure


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(Invalid) as caught:
        check.dns_label("p", "x" * 1_000_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("word", "says"), [("Servce", "did you mean Service?"), ("pod", "did you mean Pod?"), ("x", "")]
)
def test_suggest(word: str, says: str) -> None:
    assert check.suggest(word, ["Service", "Pod"]) == says


@pytest.mark.parametrize("value", ["http", "h", "a-b", "web8080", "x" * 15])
def test_a_port_name(value: str) -> None:
    check.port_name("p", value)


@pytest.mark.parametrize("value", ["", "8080", "-a", "a--b", "A", "x" * 16])
def test_not_a_port_name(value: str) -> None:
    with pytest.raises(Invalid):
        check.port_name("p", value)
