"""The structs of bpf/src/layouts.h as `struct` formats, and addresses as the 16 bytes that they hold.

A test compiles the header with the C compiler and compares every size and offset. All values are in this machine's byte
order but addresses, which are in network order; an IPv4 address stands as ::ffff:a.b.c.d.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass
from functools import lru_cache
from mmap import mmap
from typing import NamedTuple

from mesh.model import SocketAddress
from mesh.reason import Reason

COOKIE = struct.Struct("=Q")
INDEX = struct.Struct("=I")
TUPLE = struct.Struct("=Q16s16sHHI")  # netns, local, remote, local port, remote port, pad
ENDPOINT = struct.Struct("=16sI")  # ip, port
DRAWN = struct.Struct("=16sHH")  # ip, port, what
DESTINATION = struct.Struct("=Q16sI20s")  # holder, ip, port, drawn
POD = struct.Struct("=II16s16s")  # slot, pad, source4, source6
PLACE = struct.Struct("=Q16s")  # netns, ip
PREFIX = struct.Struct("=I16s")  # bits, ip
SETTINGS = struct.Struct(
    "=QQIIIIII"
)  # agent, kubelet, agent level, kubelet level, quota, accelerate, generation, direct
# key…, ip, source, port, kind, holds, generation, accelerate, drawn, pad
ASKED = struct.Struct("=Q16s16sHHI16s16sIHHII20sI")
BACKEND = struct.Struct("=QQ16sII")  # netns, upto, ip, port, pad
SERVICE = struct.Struct("=QQQII2560sQ")  # version, total, here, count, pad, backends, end
TARGET = struct.Struct("=QIHH")  # netns, pad, mode, accelerate
PAIR = struct.Struct("=QQII")  # source, destination, port, generation
# holder, source, opened, sent, received, client, server, admitted, generation, state, accelerate, asked, its port, pad
DIRECT = struct.Struct("=QQQQQQQQIHH16sII")
# as EVENT, then source, id, opened, at, sent, received, generation, what, accelerated, asked, asked port, pad
HAPPENING = struct.Struct("=Q16s16sHHIQQQQQQIHH16sII")
ATTENTION = struct.Struct("=QII")  # listed, page, each
ENTRY = struct.Struct("=QQ16s16s16sHHI")  # source, destination, client, server, asked, port, asked port, page
TALLY = struct.Struct("=QQQ")  # flows, sent, received
LANE = struct.Struct("=QQQQQQQIIII")  # own, peer, reader, charged, before, mark, sent, by_tcp, after, state, overruns
METER = struct.Struct("=48sQQQIIIIII")  # flow, own, bytes, moved, first, receives, native, doubts, behind, by_tcp
PROMOTION = struct.Struct("=48sII")  # flow, client, last
EVENT = struct.Struct("=Q16s16sHHI")  # netns, local, remote, local port, remote port, reason

# struct name in C -> (format, field names in order; arrays count as one)
STRUCTS: dict[str, tuple[struct.Struct, tuple[str, ...]]] = {
    "tuple": (TUPLE, ("netns", "local", "remote", "local_port", "remote_port", "pad")),
    "endpoint": (ENDPOINT, ("ip", "port")),
    "drawn": (DRAWN, ("ip", "port", "what")),
    "destination": (DESTINATION, ("holder", "ip", "port", "drawn")),
    "pod": (POD, ("slot", "pad", "source4", "source6")),
    "place": (PLACE, ("netns", "ip")),
    "prefix": (PREFIX, ("bits", "ip")),
    "settings": (
        SETTINGS,
        ("agent", "kubelet", "agent_level", "kubelet_level", "quota", "accelerate", "generation", "direct"),
    ),
    "lane": (
        LANE,
        (
            "own",
            "peer",
            "reader",
            "charged",
            "before",
            "mark",
            "sent",
            "by_tcp",
            "after",
            "state",
            "overruns",
        ),
    ),
    "meter": (METER, ("flow", "own", "bytes", "moved", "first", "receives", "native", "doubts", "behind", "by_tcp")),
    "promotion": (PROMOTION, ("flow", "client", "last")),
    "target": (TARGET, ("netns", "pad", "mode", "accelerate")),
    "pair": (PAIR, ("source", "destination", "port", "generation")),
    "backend": (BACKEND, ("netns", "upto", "ip", "port", "pad")),
    "service": (SERVICE, ("version", "total", "here", "count", "pad", "backends", "end")),
    "direct": (
        DIRECT,
        (
            "holder",
            "source",
            "opened",
            "sent",
            "received",
            "client",
            "server",
            "admitted",
            "generation",
            "state",
            "accelerate",
            "asked",
            "asked_port",
            "pad",
        ),
    ),
    "happening": (
        HAPPENING,
        (
            "netns",
            "local",
            "remote",
            "local_port",
            "remote_port",
            "reason",
            "source",
            "id",
            "opened",
            "at",
            "sent",
            "received",
            "generation",
            "what",
            "accelerated",
            "asked",
            "asked_port",
            "pad",
        ),
    ),
    "attention": (ATTENTION, ("listed", "page", "each")),
    "entry": (ENTRY, ("source", "destination", "client", "server", "asked", "port", "asked_port", "page")),
    "tally": (TALLY, ("flows", "sent", "received")),
    "event": (EVENT, ("netns", "local", "remote", "local_port", "remote_port", "reason")),
}

KINDS = 6  # listeners per pod: enum listener
OUTBOUND4, OUTBOUND6, PLAINTEXT4, PLAINTEXT6, TUNNEL4, TUNNEL6 = range(KINDS)
MAX_PODS = 1024
TARGET_OPEN, TARGET_LISTED = 1, 2
BACKENDS = 64  # endpoints of a Service on this node that are drawn by the kernel side
DRAWN_ENDPOINT, DRAWN_ELSEWHERE = 1, 2
DIRECT_ESTABLISHED = 2
HAPPENED_OPENED, HAPPENED_CLOSED, HAPPENED_MISMATCH, HAPPENED_READY, HAPPENED_DRAINED = 1, 2, 3, 4, 5
HAPPENED_BARRED = 6
REASONS = 64
OPENED_FLOWS = 63  # of the counters

NOWHERE = bytes(16)
_MAPPED = bytes(10) + b"\xff\xff"


def pack_ip(ip: str) -> bytes:
    """16 bytes of an IP address; ValueError if it is none."""
    try:
        return socket.inet_pton(socket.AF_INET6, ip) if ":" in ip else _MAPPED + socket.inet_pton(socket.AF_INET, ip)
    except OSError as error:
        raise ValueError(f"{ip!r} is not an IP address") from error


@lru_cache(maxsize=4096)  # one node's pods, over and over
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


def unpack_drawn(data: bytes) -> tuple[SocketAddress | None, bool]:
    """The endpoint that was drawn, if one was; whether the draw fell to none of the backends."""
    ip, port, what = DRAWN.unpack(data)
    return SocketAddress(unpack_ip(ip), port) if what == DRAWN_ENDPOINT else None, what == DRAWN_ELSEWHERE


def unpack_asked(ip: bytes, port: int, server: SocketAddress) -> SocketAddress:
    """What a direct flow's source dialled: a Service, unless the port is 0, or the server itself."""
    return SocketAddress(unpack_ip(ip), port) if port else server


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A connection that the kernel side refused. In the connect hook `remote` is not known yet: [::]:0."""

    reason: Reason
    netns: int  # cookie of the pod's network namespace
    local: SocketAddress  # what was dialled
    remote: SocketAddress  # who dialled


class DirectOpened(NamedTuple):
    """A direct flow is established, attested on both ends, and policy has changed since its SYN was judged; all others
    are found by looking. `id` is the cookie of the source's socket; `source` and `destination` are netns cookies; times
    are CLOCK_MONOTONIC."""

    id: int
    source: int
    destination: int
    client: SocketAddress
    server: SocketAddress
    asked: SocketAddress  # what was dialled: the server, or a Service
    generation: int
    opened_ns: int


class DirectClosed(NamedTuple):
    """It has ended: one that had been found, or any if every one is to be told (`bpf.ledger`)."""

    id: int
    source: int
    destination: int
    client: SocketAddress
    server: SocketAddress
    asked: SocketAddress
    generation: int
    opened_ns: int
    sent: int  # bytes, source to destination
    received: int
    accelerated: bool  # bytes went from socket to socket
    closed_ns: int


class Mismatch(NamedTuple):
    """A pod's address was answered by somebody else. The source's socket is off the wire, bound to lo, with nothing
    but a SYN sent; it is to be ended with SOCK_DESTROY in the source's netns (its idiag_if is 1, as a dump shows)."""

    id: int
    source: int
    destination: int
    client: SocketAddress
    server: SocketAddress
    asked: SocketAddress


class DirectReady(NamedTuple):
    """Neither end of a direct flow waits in its receives: it may be promoted to socket to socket."""

    id: int
    source: int
    destination: int
    client: SocketAddress
    server: SocketAddress
    asked: SocketAddress


class DirectBarred(NamedTuple):
    """An end of a direct flow that may be promoted needs TCP: it waits in a receive, or falls behind again and again.
    The flow is to be demoted once what was redirected has been read."""

    id: int
    source: int
    destination: int
    client: SocketAddress
    server: SocketAddress
    asked: SocketAddress


class DirectDrained(NamedTuple):
    """A reader of a direct flow has had what was redirected to it, and there was more by TCP before it had. One that
    takes a short receive for the end of what is there may wait now, and is to be woken."""

    id: int
    source: int
    destination: int
    client: SocketAddress
    server: SocketAddress
    at_client: bool  # the reader is the client
    next: int  # the reader's TCP expects this sequence number
    acknowledged: int  # of what it has sent itself


Happening = DirectOpened | DirectClosed | DirectReady | DirectDrained | DirectBarred | Mismatch


def unpack_event(data: bytes | mmap, offset: int, size: int) -> Event | Happening:
    """The `size` bytes at `offset`. Ring records are told apart by their size."""
    return _refusal(data, offset) if size < HAPPENING.size else _happening(data, offset)


def _happening(data: bytes | mmap, offset: int) -> Happening:
    fields = HAPPENING.unpack_from(data, offset)
    destination, local, remote, local_port, remote_port, _, source, id, opened, at, sent, received, *rest = fields
    generation, what, accelerated, service, service_port, _ = rest
    client, server = SocketAddress(unpack_ip(remote), remote_port), SocketAddress(unpack_ip(local), local_port)
    asked = unpack_asked(service, service_port, server)
    if what == HAPPENED_MISMATCH:
        return Mismatch(id, source, destination, client, server, asked)
    if what == HAPPENED_READY:
        return DirectReady(id, source, destination, client, server, asked)
    if what == HAPPENED_BARRED:
        return DirectBarred(id, source, destination, client, server, asked)
    if what == HAPPENED_DRAINED:
        return DirectDrained(id, source, destination, client, server, bool(accelerated), sent, received)
    if what == HAPPENED_OPENED:
        return DirectOpened(id, source, destination, client, server, asked, generation, opened)
    return DirectClosed(
        id,
        source,
        destination,
        client,
        server,
        asked,
        generation,
        opened,
        sent,
        received,
        accelerated=bool(accelerated),
        closed_ns=at,
    )


def _refusal(data: bytes | mmap, offset: int) -> Event:
    netns, local, remote, local_port, remote_port, reason = EVENT.unpack_from(data, offset)
    return Event(
        reason=Reason(reason),
        netns=netns,
        local=SocketAddress(unpack_ip(local), local_port),
        remote=SocketAddress(unpack_ip(remote), remote_port),
    )
