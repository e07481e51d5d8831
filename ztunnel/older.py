"""Connections that a pod had before it was enrolled: neither steered nor encrypted, and so listed.

They are found and ended through the kernel's sock_diag (sock_diag(7)), which acts in the network namespace of its own
netlink socket. Inbound ones are judged like any plaintext peer; outbound ones where they arrive.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bpf.netns import open_socket
from mesh.model import SocketAddress, Workload, canonical_ip
from mesh.policy import Arrival, decide
from mesh.snapshot import Snapshot

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_LISTEN = 10
# All states but TIME_WAIT, CLOSE and NEW_SYN_RECV (include/net/tcp_states.h): in those no byte can move any more.
_STATES = 0xFFF & ~(1 << 6) & ~(1 << 7)

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST_BODY = struct.Struct("=BBBBI48s")  # inet_diag_req_v2
_MESSAGE = struct.Struct("=BBBB48sIIIII")  # inet_diag_msg
_NAME = slice(4, 40)  # of inet_diag_msg: ports and addresses
_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OlderConnection:
    """`pod` is the instance; `id` names the socket to the kernel (inet_diag_sockid: addresses and cookie)."""

    pod: str
    inbound: bool
    local: SocketAddress
    remote: SocketAddress
    family: int
    id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Socket:
    family: int
    state: int
    local: SocketAddress
    remote: SocketAddress
    id: bytes
    inode: int


def find(pod: str, netns: int, agents: Iterable[int] = ()) -> list[OlderConnection]:
    """The pod's TCP connections with others, those of this process and of other `agents` (process ids) left out;
    OSError. Blocks for some milliseconds."""
    sockets = list(_dump(netns))
    listening = {s.local.port for s in sockets if s.state == _LISTEN}
    found = [s for s in sockets if s.state != _LISTEN and not _stays_inside(s)]
    # Descriptors are many, and most pods have no such connection.
    mine = {inode for pid in (os.getpid(), *agents) for inode in _inodes(pid)} if found else set()
    return [
        OlderConnection(
            pod=pod, inbound=s.local.port in listening, local=s.local, remote=s.remote, family=s.family, id=s.id
        )
        for s in found
        if s.inode not in mine
    ]


def forbidden(
    snapshot: Snapshot, workload: Workload, connections: Iterable[OlderConnection]
) -> list[tuple[OlderConnection, str]]:
    """Those that policy does not permit, and why: inbound ones, as plaintext from where they come."""
    found = []
    for connection in connections:
        if not connection.inbound:
            continue
        arrival = Arrival(
            source_ip=connection.remote.ip,
            identity=None,
            destination=workload,
            destination_ip=connection.local.ip,
            destination_port=connection.local.port,
        )
        verdict = decide(snapshot, arrival)
        if not verdict.allow:
            found.append((connection, verdict.detail))
    return found


def still_open(known: Sequence[OlderConnection], netns: int) -> list[OlderConnection]:
    """Those of `known` that have not ended; OSError. Blocks."""
    present = {s.id for s in _dump(netns)}
    return [c for c in known if c.id in present]


def destroy(netns: int, connections: Iterable[OlderConnection]) -> None:
    """End these: RST to both ends. One that is gone already is no error; OSError otherwise. Blocks."""
    with _diag(netns) as diag:
        for connection in connections:
            _destroy(diag, connection.family, connection.id)


def end(netns: int, ends: Collection[tuple[SocketAddress, SocketAddress]]) -> None:
    """End the connections with these (local, remote) addresses, whoever has them; OSError. Blocks.

    Each is found first and then named by its cookie: an address alone could mean a listener that is left. The others
    are only walked over: a pod may have any number.
    """
    wanted = {name for local, remote in ends for name in _names(local, remote)}
    found = [s for s in _dump(netns, wanted) if s.state != _LISTEN]
    if not found:
        return
    with _diag(netns) as diag:
        for s in found:
            _destroy(diag, s.family, s.id)


def _destroy(diag: socket.socket, family: int, id_: bytes) -> None:
    body = _REQUEST_BODY.pack(family, socket.IPPROTO_TCP, 0, 0, _STATES, id_)
    _send(diag, _SOCK_DESTROY, _REQUEST | _ACK, body)
    for _ in _replies(diag, missing_ok=True):
        pass


def _stays_inside(s: _Socket) -> bool:
    local, remote = ipaddress.ip_address(s.local.ip), ipaddress.ip_address(s.remote.ip)
    return local == remote or local.is_loopback or remote.is_loopback


def _inodes(process: int) -> set[int]:
    """Of a process' sockets."""
    inodes, descriptors = set(), f"/proc/{process}/fd"
    try:
        names = os.listdir(descriptors)  # noqa: PTH208 - thousands of names, a Path for each would cost more than asking
    except OSError:
        return inodes  # the process is gone
    for name in names:
        try:
            target = os.readlink(f"{descriptors}/{name}")  # noqa: PTH115
        except OSError:
            continue  # closed since the listing
        if target.startswith("socket:["):
            inodes.add(int(target[8:-1]))
    return inodes


def _names(local: SocketAddress, remote: SocketAddress) -> Iterator[bytes]:
    """How sock_diag may call the ends of a connection: an IPv4 one by IPv6 too."""
    for family in (socket.AF_INET, socket.AF_INET6):
        addresses = [_packed(address.ip, family) for address in (local, remote)]
        yield struct.pack("!HH", local.port, remote.port) + b"".join(addresses)


def _packed(ip: str, family: int) -> bytes:
    address = ipaddress.ip_address(ip)
    if address.version == 6:
        return address.packed
    return address.packed + bytes(12) if family == socket.AF_INET else bytes(10) + b"\xff\xff" + address.packed


def _dump(netns: int, only: Collection[bytes] | None = None) -> Iterator[_Socket]:
    """All, or `only` those with these names."""
    with _diag(netns) as diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _REQUEST_BODY.pack(family, socket.IPPROTO_TCP, 0, 0, _STATES, bytes(48))
            _send(diag, _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, body)
            for message in _replies(diag):
                if only is None or message[_NAME] in only:
                    yield _parse(message)


def _parse(message: bytes) -> _Socket:
    family, state, _, _, id_, _, _, _, _, inode = _MESSAGE.unpack_from(message)
    width = 4 if family == socket.AF_INET else 16
    local_port, remote_port = struct.unpack_from("!HH", id_)
    local = canonical_ip(socket.inet_ntop(family, id_[4 : 4 + width]))
    remote = canonical_ip(socket.inet_ntop(family, id_[20 : 20 + width]))
    return _Socket(
        family=family,
        state=state,
        local=SocketAddress(local, local_port),
        remote=SocketAddress(remote, remote_port),
        id=id_,
        inode=inode,
    )


def _diag(netns: int) -> socket.socket:
    diag = open_socket(netns, socket.AF_NETLINK, kind=socket.SOCK_RAW, protocol=_NETLINK_SOCK_DIAG)
    diag.settimeout(_TIMEOUT_SECONDS)
    return diag


def _send(diag: socket.socket, kind: int, flags: int, body: bytes) -> None:
    diag.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)


def _replies(diag: socket.socket, *, missing_ok: bool = False) -> Iterator[bytes]:
    """Bodies until the end of the dump or the acknowledgement."""
    while True:
        data, at = diag.recv(1 << 16), 0
        while len(data) - at >= _HEADER.size:
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", data, at + _HEADER.size)
                if code and not (missing_ok and -code == errno.ENOENT):
                    raise OSError(-code, f"sock_diag: {os.strerror(-code)}")
                return
            yield data[at + _HEADER.size : at + length]
            at += (length + 3) & ~3
