"""Socket addresses as the threads tell them."""

from __future__ import annotations

from mesh.model import SocketAddress, canonical_ip

Told = tuple[str, int]


def address(ip: str, port: int) -> SocketAddress:
    return SocketAddress(canonical_ip(ip) if ":" in ip else ip, port)
