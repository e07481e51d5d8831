"""SYNs made by hand, as a pod with NET_RAW or whoever owns a wire makes them."""

from __future__ import annotations

import ipaddress
import socket
import struct

SYN = 2


def syn(source: tuple[str, int], to: tuple[str, int], seq: int = 1000) -> bytes:
    """An IP packet of either family."""
    a, b = (ipaddress.ip_address(ip).packed for ip, _ in (source, to))
    tcp = struct.pack("!HHIIBBHHH", source[1], to[1], seq, 0, 5 << 4, SYN, 64240, 0, 0)
    v4 = len(a) == 4
    pseudo = a + b + (struct.pack("!BBH", 0, 6, len(tcp)) if v4 else struct.pack("!II", len(tcp), 6))
    tcp = tcp[:16] + _checksum(pseudo + tcp) + tcp[18:]
    if not v4:
        return struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + a + b + tcp
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + a + b
    return ip[:10] + _checksum(ip) + ip[12:] + tcp


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
