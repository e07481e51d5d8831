"""A TCP segment that changes nothing but to wake who waits for the socket that it reaches: it carries no bytes, an old
acknowledgement and an option that only our socket programs know (bpf/src/flows.c)."""

from __future__ import annotations

import ipaddress
import socket
import struct

from bpf import netns
from mesh.model import SocketAddress

# Kind 253 is for experiments, which name themselves in two bytes (RFC 4727, RFC 6994).
_OPTION = b"\xfd\x04Go"
_ACK = 0x10


def segment(sender: SocketAddress, reader: SocketAddress, *, sequence: int, acknowledged: int) -> bytes:
    """TCP header with checksum (RFC 9293). `sequence` is what the reader expects next; one before what it knows as
    acknowledged is acknowledged, so that its window is left alone."""
    words = (sender.port, reader.port, sequence % 2**32, (acknowledged - 1) % 2**32, 6 << 12 | _ACK, 0, 0, 0)
    header = struct.pack("!HHIIHHHH", *words) + _OPTION
    source, destination = (ipaddress.ip_address(address.ip).packed for address in (sender, reader))
    pseudo = source + destination + struct.pack("!II", len(header), socket.IPPROTO_TCP)
    total = sum(struct.unpack(f"!{(len(pseudo) + len(header)) // 2}H", pseudo + header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:16] + struct.pack("!H", ~total & 0xFFFF) + header[18:]


def send(
    sender: SocketAddress, reader: SocketAddress, *, sequence: int, acknowledged: int, at_sender: int
) -> None:  # fmt: skip
    """From the sender's network namespace (a file descriptor). OSError; needs CAP_NET_RAW."""
    family = socket.AF_INET6 if ":" in sender.ip else socket.AF_INET
    with netns.entered(at_sender):
        raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with raw:
        raw.bind((sender.ip, 0))
        raw.sendto(segment(sender, reader, sequence=sequence, acknowledged=acknowledged), (reader.ip, 0))
