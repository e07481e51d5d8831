"""Segments made by hand, as a pod with NET_RAW or whoever owns a wire makes them."""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

SYN, ACK = 2, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    source: tuple[str, int]
    to: tuple[str, int]
    seq: int
    flags: int


def syn(source: tuple[str, int], to: tuple[str, int], seq: int = 1000) -> bytes:
    """An IP packet of either family."""
    return segment(source, to, seq, 0, SYN)


def segment(source: tuple[str, int], to: tuple[str, int], seq: int, ack: int, flags: int) -> bytes:
    """Likewise, of any flags, without data."""
    a, b = (ipaddress.ip_address(ip).packed for ip, _ in (source, to))
    numbers = (seq % 2**32, ack % 2**32)
    tcp = struct.pack("!HHIIBBHHH", source[1], to[1], *numbers, 5 << 4, flags, 64240, 0, 0)
    v4 = len(a) == 4
    pseudo = a + b + (struct.pack("!BBH", 0, 6, len(tcp)) if v4 else struct.pack("!II", len(tcp), 6))
    tcp = tcp[:16] + _checksum(pseudo + tcp) + tcp[18:]
    if not v4:
        return struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + a + b + tcp
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + a + b
    return ip[:10] + _checksum(ip) + ip[12:] + tcp


def read(packet: bytes) -> Segment | None:
    """An IP packet of either family; None: it is not TCP, or has IPv6 extension headers."""
    v4 = packet[0] >> 4 == 4
    size = (packet[0] & 15) * 4 if v4 else 40
    if packet[9 if v4 else 6] != 6:
        return None
    addresses = packet[12:20] if v4 else packet[8:40]
    half = len(addresses) // 2
    here, there = (str(ipaddress.ip_address(part)) for part in (addresses[:half], addresses[half:]))
    source, to, seq, _, _, flags = struct.unpack_from("!HHIIBB", packet, size)
    return Segment(source=(here, source), to=(there, to), seq=seq, flags=flags)


def send(device: str, mac: str, packets: list[bytes]) -> None:
    """Out of a device of this netns, to whoever has this hardware address on the other end."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as s:
        for packet in packets:
            protocol = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
            s.sendto(packet, (device, protocol, 0, 0, bytes.fromhex(mac.replace(":", ""))))


def _checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
