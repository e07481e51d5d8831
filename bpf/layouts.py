"""The structs of bpf/src/layouts.h as `struct` formats, and addresses as the 16 bytes that they hold.

A test compiles the header with the C compiler and compares every size and offset. All values are in this machine's byte
order but addresses, which are in network order; an IPv4 address stands as ::ffff:a.b.c.d.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

from mesh.model import SocketAddress
from mesh.reason import Reason

COOKIE = struct.Struct("=Q")
INDEX = struct.Struct("=I")
TUPLE = struct.Struct("=Q16s16sHHI")  # netns, local, remote, local port, remote port, pad
ENDPOINT = struct.Struct("=16sI")  # ip, port
DESTINATION = struct.Struct("=Q16sII")  # holder, ip, port, pad
POD = struct.Struct("=II16s16s")  # slot, pad, source4, source6
PLACE = struct.Struct("=Q16s")  # netns, ip
PREFIX = struct.Struct("=I16s")  # bits, ip
SETTINGS = struct.Struct("=QQIIII")  # agent, kubelet, agent level, kubelet level, quota, accelerate
ASKED = struct.Struct("=Q16s16sHHI16s16sIHH")  # key…, ip, source, port, kind, holds
LANE = struct.Struct("=QQQQII")  # reader, charged, messages, sent, state, direction
METER = struct.Struct("=Q")  # bytes
EVENT = struct.Struct("=Q16s16sHHI")  # netns, local, remote, local port, remote port, reason

# struct name in C -> (format, field names in order; arrays count as one)
STRUCTS: dict[str, tuple[struct.Struct, tuple[str, ...]]] = {
    "tuple": (TUPLE, ("netns", "local", "remote", "local_port", "remote_port", "pad")),
    "endpoint": (ENDPOINT, ("ip", "port")),
    "destination": (DESTINATION, ("holder", "ip", "port", "pad")),
    "pod": (POD, ("slot", "pad", "source4", "source6")),
    "place": (PLACE, ("netns", "ip")),
    "prefix": (PREFIX, ("bits", "ip")),
    "settings": (SETTINGS, ("agent", "kubelet", "agent_level", "kubelet_level", "quota", "accelerate")),
    "lane": (LANE, ("reader", "charged", "messages", "sent", "state", "direction")),
    "meter": (METER, ("bytes",)),
    "event": (EVENT, ("netns", "local", "remote", "local_port", "remote_port", "reason")),
}

KINDS = 6  # listeners per pod: enum listener
OUTBOUND4, OUTBOUND6, PLAINTEXT4, PLAINTEXT6, TUNNEL4, TUNNEL6 = range(KINDS)
MAX_PODS = 1024
ACCELERATE_TO_AGENT, ACCELERATE_TO_APPLICATION = 1, 2

NOWHERE = bytes(16)
_MAPPED = bytes(10) + b"\xff\xff"


def pack_ip(ip: str) -> bytes:
    """16 bytes of an IP address; ValueError if it is none."""
    try:
        return socket.inet_pton(socket.AF_INET6, ip) if ":" in ip else _MAPPED + socket.inet_pton(socket.AF_INET, ip)
    except OSError as error:
        raise ValueError(f"{ip!r} is not an IP address") from error


def unpack_ip(data: bytes) -> str:
    """Canonical text of 16 bytes."""
    if is_v4(data):
        return socket.inet_ntop(socket.AF_INET, data[12:])
    return socket.inet_ntop(socket.AF_INET6, data)


def is_v4(data: bytes) -> bool:
    return data[:12] == _MAPPED


def pack_cidr(cidr: str) -> bytes:
    """Key of the bypass trie; ValueError names what is wrong with the CIDR."""
    network = ipaddress.ip_network(cidr)
    bits = network.prefixlen + (96 if network.version == 4 else 0)
    return PREFIX.pack(bits, pack_ip(str(network.network_address)))


def pack_tuple(cookie: int, local: SocketAddress, remote: SocketAddress) -> bytes:
    """Key of a connection, from the side that is connected to."""
    return TUPLE.pack(cookie, pack_ip(local.ip), pack_ip(remote.ip), local.port, remote.port, 0)


def unpack_tuple(data: bytes) -> tuple[int, SocketAddress, SocketAddress]:
    """Netns cookie, local, remote."""
    cookie, local, remote, local_port, remote_port, _ = TUPLE.unpack(data)
    return cookie, SocketAddress(unpack_ip(local), local_port), SocketAddress(unpack_ip(remote), remote_port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A connection that the kernel side refused. In the connect hook `remote` is not known yet: [::]:0."""

    reason: Reason
    netns: int  # cookie of the pod's network namespace
    local: SocketAddress  # what was dialled
    remote: SocketAddress  # who dialled


def unpack_event(data: bytes) -> Event:
    netns, local, remote, local_port, remote_port, reason = EVENT.unpack_from(data)
    return Event(
        reason=Reason(reason),
        netns=netns,
        local=SocketAddress(unpack_ip(local), local_port),
        remote=SocketAddress(unpack_ip(remote), remote_port),
    )
