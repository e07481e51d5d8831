"""The guided tour: bring up bookinfo, send real requests through it, show what is on the wire between nodes.

The wire is looked at where nobody can pretend: with tcpdump on the fabric's bridge, in the fabric's own namespace.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from deploy.lab import launch, status
from deploy.lab.cluster import Lab
from deploy.lab.fault import LabError
from deploy.lab.layout import NETNS
from deploy.lab.progress import progress

BOOKINFO = Path(__file__).with_name("bookinfo.yaml")
_REQUESTS = 12
_WORDS = (b"HTTP/1.1", b"Shakespeare", b"reviewer")  # what a reader of plain text would see
_TUNNEL_PORT = 15008


@dataclass(slots=True, kw_only=True)
class Wire:
    """TCP payload seen between nodes' pods: bytes by the lower-numbered service port, and plain words found in it."""

    by_port: Counter[int] = field(default_factory=Counter)
    words: set[str] = field(default_factory=set)
    tls_records: int = 0


def run(name: str, timeout: float) -> int:
    """Everything, in order; 0 if it was as it should be, 1 if requests failed or plain text was seen."""
    console = Console()
    began = time.monotonic()
    with progress(f"lab {name}") as say:
        lab = Lab(name, say=say)
        lab.up({str(BOOKINFO): BOOKINFO.read_text()}, timeout=timeout)
    console.print(status.tables(status.collect(lab)))
    console.print(f"\nready in {time.monotonic() - began:.1f} s. {_REQUESTS} requests from each client:\n")
    with capture(lab, exclude="outsider") as wire:
        inside, slowest = _requests(lab, "client")
    outside, _ = _requests(lab, "outsider")
    _report(console, "client, in the mesh", inside)
    _report(console, "outsider, plain text", outside)
    good = _report_wire(console, wire, slowest)
    _suggest(console, lab)
    return 0 if good and not (inside["failed"] or outside["failed"]) else 1


def _requests(lab: Lab, pod: str) -> tuple[Counter[str], float]:
    """Ask for the product page; how often each version of `reviews` answered (or `failed`), and the slowest answer."""
    seen: Counter[str] = Counter()
    slowest = 0.0
    url = "http://productpage:9080/api/v1/products/0"
    for _ in range(_REQUESTS):
        done = lab.exec(pod, ["curl", "-sS", "-m", "10", "-w", "\n%{http_code} %{time_total}", url])
        body, _, line = done.stdout.rpartition("\n")
        code, _, took = line.partition(" ")
        if done.returncode == 0 and code == "200":
            seen[f"reviews {json.loads(body)['reviews']['version']}"] += 1
            slowest = max(slowest, float(took))
        else:
            seen["failed"] += 1
            seen[f"failed: {(done.stderr or body).strip()[:120]}"] += 1
    return seen, slowest


def _report(console: Console, who: str, seen: Counter[str]) -> None:
    answered = sum(count for what, count in seen.items() if not what.startswith("failed"))
    detail = ", ".join(f"{what} {count}×" for what, count in sorted(seen.items()) if what != "failed")
    colour = "red" if seen["failed"] else "green"
    console.print(f"  [{colour}]{answered} of {_REQUESTS} answered[/] ({who}): {detail}", highlight=False)


def _report_wire(console: Console, wire: Wire, slowest: float) -> bool:
    tunnel = wire.by_port[_TUNNEL_PORT]
    other = {port: size for port, size in wire.by_port.items() if port != _TUNNEL_PORT}
    good = tunnel > 0 and not other and not wire.words
    console.print("\nBetween the nodes, while the client in the mesh asked (tcpdump on the fabric):")
    console.print(f"  port {_TUNNEL_PORT}: {tunnel:,} bytes in {wire.tls_records} segments that begin a TLS record")
    console.print(
        f"  other ports: {', '.join(f'{port}: {size:,} bytes' for port, size in sorted(other.items())) or 'none'}"
    )
    console.print(f"  plain words ({', '.join(w.decode() for w in _WORDS)}): {', '.join(sorted(wire.words)) or 'none'}")
    verdict = "[green]encrypted, every byte[/]" if good else "[red]not as it should be: gossamer lab logs node/n1[/]"
    console.print(f"  {verdict}; slowest answer {slowest * 1000:.0f} ms\n", highlight=False)
    return good


def _suggest(console: Console, lab: Lab) -> None:
    option = "" if lab.name == "lab" else f" --name {lab.name}"
    for command, what in (
        (f"gossamer lab exec{option} client -- curl -s productpage:9080/productpage", "a page through the mesh"),
        ("gossamer connections", "what goes through the agents now"),
        (f"gossamer lab label{option} namespace/default istio.io/dataplane-mode-", "out of the mesh, nothing restarts"),
        (f"gossamer lab kill-agent{option} n1", "fails closed; restart-agent heals it"),
        (f"gossamer lab down{option}", "remove every trace"),
    ):
        console.print(f"  [bold]{command:<78}[/] {what}", highlight=False)


# --- the wire ---------------------------------------------------------------------------------------------------------
_HEAD = re.compile(r"^\S+ IP6? (?P<source>\S+)\.(?P<from>\d+) > (?P<target>\S+)\.(?P<to>\d+): .*length (?P<length>\d+)")
_HEX = re.compile(r"^\s+0x[0-9a-f]+:\s+((?:[0-9a-f]{2,4} ?)+)")


@contextlib.contextmanager
def capture(lab: Lab, *, exclude: str = "") -> Iterator[Wire]:
    """Watch what pods of different nodes send each other during the block; `exclude` names a pod of no interest.

    The result is complete after the block.
    """
    wire = Wire()
    pods = f"net {lab.layout.pods4} or net {lab.layout.pods6}"
    unwanted = (
        "".join(f" and not host {entry['ip']}" for entry in lab.pod(exclude)["status"]["podIPs"]) if exclude else ""
    )
    nodes = " and ".join(f"not host {address}" for node in lab.nodes() for address in (node.address4, node.address6))
    argv = [
        "tcpdump",
        "-i",
        "br0",
        "-nn",
        "-tt",
        "-l",
        "-X",
        "-s",
        "0",
        "-Z",
        "root",
        f"tcp and ({pods}) and {nodes}{unwanted}",
    ]
    process = _start(lab, argv)
    try:
        yield wire
        time.sleep(0.3)  # what was sent last is still on its way through tcpdump's buffer
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=10)
    for packet in _packets(out.decode(errors="replace")):
        _count(wire, *packet)


def _start(lab: Lab, argv: list[str]) -> subprocess.Popen[bytes]:
    process: list[subprocess.Popen[bytes]] = []
    group = lab.layout.service_cgroup("capture")
    group.mkdir(exist_ok=True)

    def start() -> None:
        process.append(
            subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=launch.entry(group))  # noqa: PLW1509
        )

    launch.in_netns(NETNS / lab.layout.fabric_netns, start)
    errors = process[0].stderr
    assert errors is not None
    # It says "listening on" when it does; what is sent before that is lost.
    ready, _, _ = select.select([errors], [], [], 10)
    said = errors.readline() if ready else b""
    while ready and said and b"listening on" not in said:
        said = errors.readline()
    if b"listening on" not in said:
        raise LabError("tcpdump does not start; is the Debian package tcpdump installed?")
    return process[0]


def _packets(text: str) -> Iterator[tuple[int, int, int, bytes]]:
    """(source port, destination port, payload length, the packet's bytes from the IP header on)."""
    head: re.Match[str] | None = None
    data = bytearray()
    for line in text.splitlines():
        if found := _HEX.match(line):
            data += bytes.fromhex(found[1].replace(" ", ""))
            continue
        if head is not None:
            yield int(head["from"]), int(head["to"]), int(head["length"]), bytes(data)
        head, data = _HEAD.match(line), bytearray()
    if head is not None:
        yield int(head["from"]), int(head["to"]), int(head["length"]), bytes(data)


def _count(wire: Wire, source: int, target: int, length: int, packet: bytes) -> None:
    if not length:
        return
    payload = packet[-length:]
    port = _TUNNEL_PORT if _TUNNEL_PORT in (source, target) else min(source, target)
    wire.by_port[port] += length
    wire.words |= {word.decode() for word in _WORDS if word in payload}
    # RFC 8446 §5.1: content type 20 to 23, legacy version 3.1 or 3.3.
    wire.tls_records += payload[0] in range(20, 24) and payload[1:2] == b"\x03"
