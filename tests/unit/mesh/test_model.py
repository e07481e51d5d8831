"""The domain's nouns: what they derive and what they refuse."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.model import SocketAddress, canonical_ip

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(lambda ip: canonical_ip(str(ip)))


@given(ADDRESSES, st.integers(1, 65535))
def test_a_socket_address_is_read_back_as_written(ip: str, port: int) -> None:
    address = SocketAddress(ip, port)
    assert SocketAddress.parse(str(address)) == address


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_the_ipv4_address(ip: ipaddress.IPv4Address) -> None:
    assert canonical_ip(f"::ffff:{ip}") == str(ip)


@pytest.mark.parametrize(
    "text",
    ["", ":", "1.2.3.4", "1.2.3.4:", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:+80", "1.2.3.4:８０", "1.2.3:80",
     "::1:80", "[::1]", "[::1]80", "[1.2.3.4]:80", "host:80", "1.2.3.4:080000", "[::1%eth0]x:80"],
)  # fmt: skip
def test_what_is_no_socket_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        SocketAddress.parse(text)
