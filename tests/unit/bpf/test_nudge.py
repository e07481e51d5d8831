"""The segment that wakes a reader: well formed, and nothing in it that TCP would act upon."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from bpf.nudge import segment
from mesh.model import SocketAddress


@pytest.mark.parametrize(("sender", "reader"), [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00:1::2")])
@pytest.mark.parametrize(("sequence", "acknowledged"), [(1, 1000), (0xFFFFFFFF, 0), (0, 0x80000000)])
def test_it_is_well_formed(sender: str, reader: str, sequence: int, acknowledged: int) -> None:
    made = segment(
        SocketAddress(sender, 40000), SocketAddress(reader, 80), sequence=sequence, acknowledged=acknowledged
    )
    source, destination, at, ack, flags, _, _, urgent = struct.unpack_from("!HHIIHHHH", made)
    assert (source, destination, at, urgent) == (40000, 80, sequence, 0)
    assert (ack + 1) % 2**32 == acknowledged, "acknowledged already: the window is not looked at"
    assert flags >> 12 == len(made) // 4, "no bytes"
    assert flags & 0x3F == 0x10, "ACK alone"
    assert made[20:] == b"\xfd\x04Go"
    addresses = b"".join(ipaddress.ip_address(ip).packed for ip in (sender, reader))
    whole = addresses + struct.pack("!II", len(made), 6) + made
    total = sum(whole[i] << 8 | whole[i + 1] for i in range(0, len(whole), 2))
    assert total % 0xFFFF == 0, "checksum"
