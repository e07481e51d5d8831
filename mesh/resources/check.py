"""Small validators: each returns nothing or raises Invalid with the path, the cause and the cure."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping

from mesh.resources.fault import Invalid

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` if one of `known` is close to `word`, else empty."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower()[:64], names, n=1, cutoff=0.6)
    return f"did you mean {names[close[0]]}?" if close else ""


def quoted(value: str) -> str:
    """The value as it stands in the message, cut so that a hostile one does not fill a log."""
    return '"' + (value if len(value) <= 80 else value[:77] + "...") + '"'


def dns_label(path: str, value: str) -> None:
    """RFC 1123 label: names of namespaces, services, container ports' owners."""
    if len(value) > 63 or not _LABEL.fullmatch(value):
        raise Invalid(path, f"{quoted(value)} is not a DNS label", _name_cure(value, 63))


def dns_subdomain(path: str, value: str) -> None:
    """RFC 1123 subdomain: names of most objects."""
    if len(value) > 253 or not _SUBDOMAIN.fullmatch(value):
        raise Invalid(path, f"{quoted(value)} is not a DNS subdomain", _name_cure(value, 253))


def _name_cure(value: str, limit: int) -> str:
    fixed = re.sub(r"[^a-z0-9.-]+", "-", value.lower())[:limit].strip("-.")
    rule = f"use lower case letters, digits and '-', at most {limit}"
    return f"did you mean {fixed}?" if fixed and fixed != value and _SUBDOMAIN.fullmatch(fixed) else rule


def labels(path: str, values: Mapping[str, str]) -> None:
    """Label keys `[prefix/]name` and values, as the API server checks them."""
    for key, value in values.items():
        prefix, slash, name = key.rpartition("/")
        if slash and (len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix)):
            raise Invalid(f"{path}[{key[:80]}]", f"{quoted(prefix)} is not a DNS subdomain", "fix the label's prefix")
        if len(name) > 63 or not _QUALIFIED.fullmatch(name):
            raise Invalid(f"{path}[{key[:80]}]", f"{quoted(key)} is not a label key", "at most 63 of [A-Za-z0-9_.-]")
        if value and (len(value) > 63 or not _QUALIFIED.fullmatch(value)):
            cure = "a selector has no wildcards; list the labels" if "*" in value else "at most 63 of [A-Za-z0-9_.-]"
            raise Invalid(f"{path}[{key}]", f"{quoted(value)} is not a label value", cure)


def address(path: str, value: str) -> Address:
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        raise Invalid(path, f"{quoted(value)} is not an IP address", _address_cure(value)) from None


def cidr(path: str, value: str) -> Network:
    """An address or a network; host bits are ignored, an IPv4-mapped IPv6 network becomes IPv4."""
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise Invalid(path, f"{quoted(value)} is not a CIDR", _cidr_cure(value)) from None
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:
        return ipaddress.IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network


def _address_cure(value: str) -> str:
    bare = value.partition("/")[0].strip().strip("[]")
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return "write an IPv4 or IPv6 address"
    return f"did you mean {bare}?"


def _cidr_cure(value: str) -> str:
    """10.0.0/8 -> 10.0.0.0/8; 010.1.2.3 -> 10.1.2.3; 10.0.0.0/33 -> the limit."""
    text, slash, length = value.strip().partition("/")
    parts = text.split(".")
    if ":" not in text and 1 <= len(parts) <= 4 and all(p.isascii() and p.isdigit() and len(p) <= 3 for p in parts):
        if slash and not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= 32):
            return "the prefix length of IPv4 is 0 to 32"
        fixed = ".".join(str(int(p)) for p in [*parts, "0", "0", "0"][:4]) + slash + length
        try:
            ipaddress.ip_network(fixed, strict=False)
        except ValueError:
            return "write an address or a network like 10.0.0.0/8 or fd00::/64"
        return f"did you mean {fixed}?"
    if ":" in text and slash and length.isascii() and length.isdigit() and len(length) <= 9 and int(length) > 128:
        return "the prefix length of IPv6 is 0 to 128"
    return "write an address or a network like 10.0.0.0/8 or fd00::/64"


def port_text(path: str, value: str) -> int:
    """A port written as a string, as AuthorizationPolicy does."""
    if value.isascii() and value.isdigit() and len(value) <= 5 and 0 < int(value) < 65536:
        return int(value)
    cure = "list the ports one by one" if re.fullmatch(r"\d+\s*[-:]\s*\d+", value) else "a port is 1 to 65535"
    raise Invalid(path, f"{quoted(value)} is not a port", cure)


def port_name(path: str, value: str) -> None:
    """IANA service name (RFC 6335 §5.1), as Kubernetes checks named ports."""
    if len(value) > 15 or not _PORT_NAME.fullmatch(value):
        raise Invalid(path, f"{quoted(value)} is not a port name", "at most 15 of [a-z0-9-] with at least one letter")


def port_reference(path: str, value: int | str) -> None:
    """A port number or the name of a container's port."""
    if isinstance(value, str):
        port_name(path, value)
    elif not 0 < value < 65536:
        raise Invalid(path, f"{value} is not a port", "a port is 1 to 65535")


def unique(path: str, values: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value in seen:
            raise Invalid(
                path.replace("[*]", f"[{index}]"), f"the {what} {quoted(value)} is taken", "give each its own"
            )
        seen.add(value)
