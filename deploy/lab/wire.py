"""What is on the wire between nodes: tcpdump on the fabric's bridge, in the fabric's own namespace.

That is the place where nobody can pretend: a byte that reached another node was there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import signal
import struct
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deploy.lab import launch
from deploy.lab.cluster import Lab
from deploy.lab.fault import LabError
from deploy.lab.layout import NETNS

TUNNEL_PORT = 15008
_SETTLE = 0.3  # seconds for what was sent last to come through tcpdump


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One TCP segment that carried payload."""

    source: str
    source_port: int
    target: str
    target_port: int
    payload: bytes


@dataclass(slots=True, kw_only=True)
class Wire:
    """TCP segments with payload between pods of different nodes, in order; `pcap` is the capture file they are from."""

    segments: list[Segment] = field(default_factory=list)
    pcap: bytes = b""

    @property
    def payload(self) -> bytes:
        """Everything, one after the other."""
        return b"".join(segment.payload for segment in self.segments)

    @property
    def by_port(self) -> Counter[int]:
        """Payload bytes by the service's port: the tunnel's if it is one of the two, else the lower one."""
        sizes: Counter[int] = Counter()
        for segment in self.segments:
            ports = (segment.source_port, segment.target_port)
            sizes[TUNNEL_PORT if TUNNEL_PORT in ports else min(ports)] += len(segment.payload)
        return sizes

    @property
    def tls_records(self) -> int:
        """How many segments begin like a TLS record (RFC 8446 §5.1: content type 20 to 23, version 3.1 or 3.3)."""
        return sum(s.payload[0] in range(20, 24) and s.payload[1:2] == b"\x03" for s in self.segments)


@contextlib.contextmanager
def capture(lab: Lab, *, exclude: Iterable[str] = ()) -> Iterator[Wire]:
    """Watch what pods of different nodes send each other by TCP during the block; `exclude` names pods of no interest.

    The result is there after the block. Probes and other traffic of the nodes themselves is left out.
    """
    wire = Wire()
    unwanted = [entry["ip"] for name in exclude for entry in lab.pod(name)["status"]["podIPs"]]
    unwanted += [address for node in lab.nodes() for address in (node.address4, node.address6)]
    pods = f"(net {lab.layout.pods4} or net {lab.layout.pods6})"
    rule = " and ".join(["tcp", pods, *(f"not host {address}" for address in unwanted)])
    with tempfile.NamedTemporaryFile(dir=lab.layout.run, suffix=".pcap") as file:
        options = ["-i", "br0", "-U", "--immediate-mode", "-s", "0", "-B", "32768", "-Z", "root"]
        process = _start(lab, ["tcpdump", *options, "-w", file.name, rule])
        try:
            yield wire
            time.sleep(_SETTLE)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=10)
        wire.pcap = Path(file.name).read_bytes()
        wire.segments = list(segments(wire.pcap))


def _start(lab: Lab, argv: list[str]) -> subprocess.Popen[bytes]:
    started: list[subprocess.Popen[bytes]] = []
    group = lab.layout.service_cgroup("capture")
    group.mkdir(exist_ok=True)
    enter = launch.entry(group)
    launch.in_netns(
        NETNS / lab.layout.fabric_netns,
        lambda: started.append(subprocess.Popen(argv, stderr=subprocess.PIPE, preexec_fn=enter)),  # noqa: PLW1509
    )
    errors = started[0].stderr
    assert errors is not None
    # It says "listening on" when it does; what is sent before that is lost.
    said = b""
    while b"listening on" not in said:
        ready, _, _ = select.select([errors], [], [], 10)
        line = errors.readline() if ready else b""
        said += line
        if not line:
            started[0].kill()
            raise LabError(f"tcpdump does not start: {said.decode(errors='replace').strip()}")
    return started[0]


def segments(pcap: bytes) -> Iterator[Segment]:
    """The TCP segments with payload of a capture file (little-endian pcap, Ethernet)."""
    at = 24
    while at + 16 <= len(pcap):
        size = struct.unpack_from("<I", pcap, at + 8)[0]
        frame = memoryview(pcap)[at + 16 : at + 16 + size]
        at += 16 + size
        found = _tcp(frame)
        if found is not None and found.payload:
            yield found


def _tcp(frame: memoryview) -> Segment | None:
    kind = int.from_bytes(frame[12:14])
    packet = frame[14:]
    if kind == 0x0800 and packet[9] == 6:
        source, target = packet[12:16], packet[16:20]
        tcp = packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4])]
    elif kind == 0x86DD and packet[6] == 6:
        source, target = packet[8:24], packet[24:40]
        tcp = packet[40 : 40 + int.from_bytes(packet[4:6])]
    else:
        return None
    return Segment(
        source=str(ipaddress.ip_address(bytes(source))),
        source_port=int.from_bytes(tcp[0:2]),
        target=str(ipaddress.ip_address(bytes(target))),
        target_port=int.from_bytes(tcp[2:4]),
        payload=bytes(tcp[(tcp[12] >> 4) * 4 :]),
    )
