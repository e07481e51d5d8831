"""Reading captures."""

from __future__ import annotations

import ipaddress
import struct

from deploy.lab.wire import Segment, Wire, segments


def frame(source: str, target: str, ports: tuple[int, int], payload: bytes, padding: bytes = b"") -> bytes:
    tcp = struct.pack(">HHIIBBHHH", *ports, 0, 0, 0x50, 0x18, 0, 0, 0) + payload
    a, b = ipaddress.ip_address(source).packed, ipaddress.ip_address(target).packed
    if len(a) == 4:
        packet = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + a + b + tcp
        return bytes(12) + b"\x08\x00" + packet + padding
    return bytes(12) + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64) + a + b + tcp + padding


def pcap(*frames: bytes) -> bytes:
    return bytes(24) + b"".join(struct.pack("<IIII", 0, 0, len(f), len(f)) + f for f in frames)


def test_segments_of_both_families_and_nothing_else() -> None:
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    found = list(
        segments(
            pcap(
                frame("10.0.0.1", "10.0.0.2", (40000, 15008), b"\x17\x03\x03abc"),
                arp,
                frame("10.0.0.1", "10.0.0.2", (40000, 80), b"", padding=bytes(6)),  # Ethernet pads small frames
                frame("fd00::1", "fd00::2", (9080, 50000), b"HTTP/1.1 200"),
            )
        )
    )
    assert found == [
        Segment(source="10.0.0.1", source_port=40000, target="10.0.0.2", target_port=15008, payload=b"\x17\x03\x03abc"),
        Segment(source="fd00::1", source_port=9080, target="fd00::2", target_port=50000, payload=b"HTTP/1.1 200"),
    ]
    wire = Wire(segments=found)
    assert wire.by_port == {15008: 6, 9080: 12} and wire.tls_records == 1
    assert wire.payload == b"\x17\x03\x03abcHTTP/1.1 200"


def test_a_capture_that_was_cut_off() -> None:
    whole = pcap(frame("10.0.0.1", "10.0.0.2", (1, 2), b"x"))
    assert list(segments(whole[:-80])) == [] and list(segments(b"")) == []
