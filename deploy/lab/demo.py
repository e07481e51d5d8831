"""The guided tour: bring up bookinfo, send real requests through it, show what is on the wire between nodes."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from deploy.lab import status
from deploy.lab.cluster import Lab
from deploy.lab.progress import progress
from deploy.lab.wire import TUNNEL_PORT, Wire, capture
from ztunnel.cli.tables import show

BOOKINFO = Path(__file__).with_name("bookinfo.yaml")
_REQUESTS = 12
_WORDS = (b"HTTP/1.1", b"Shakespeare", b"reviewer")  # what a reader of plain text would see


def run(name: str, timeout: float) -> int:
    """Everything, in order; 0 if it was as it should be, 1 if requests failed or plain text was seen."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    began = time.monotonic()
    with progress(f"lab {name}") as say:
        lab = Lab(name, say=say)
        lab.up({str(BOOKINFO): BOOKINFO.read_text()}, timeout=timeout)
    show(status.tables(status.collect(lab)), sys.stdout)
    console.print(f"\nready in {time.monotonic() - began:.1f} s. {_REQUESTS} requests from each client:\n")
    with capture(lab, exclude=["outsider"]) as wire:
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
            seen[json.loads(body)["reviews"]["version"]] += 1
            slowest = max(slowest, float(took))
        else:
            seen["failed"] += 1
            seen[f"failed: {(done.stderr or body).strip()[:120]}"] += 1
    return seen, slowest


def _report(console: Console, who: str, seen: Counter[str]) -> None:
    versions = {what: count for what, count in sorted(seen.items()) if not what.startswith("failed")}
    failures = [f"{what} {count}×" for what, count in sorted(seen.items()) if what.startswith("failed: ")]
    answered = sum(versions.values())
    by = ", ".join(f"{version} {count}×" for version, count in versions.items())
    detail = "; ".join([*([f"reviews {by}"] if by else []), *failures])
    colour = "red" if seen["failed"] else "green"
    console.print(f"  [{colour}]{answered} of {_REQUESTS} answered[/] ({who}): {detail}", highlight=False)


def _report_wire(console: Console, wire: Wire, slowest: float) -> bool:
    tunnel = wire.by_port[TUNNEL_PORT]
    other = {port: size for port, size in wire.by_port.items() if port != TUNNEL_PORT}
    payload = wire.payload
    words = [word.decode() for word in _WORDS if word in payload]
    good = tunnel > 0 and not other and not words
    others = ", ".join(f"{port}: {size:,} bytes" for port, size in sorted(other.items())) or "none"
    console.print("\nBetween the nodes, while the client in the mesh asked (tcpdump on the fabric):")
    console.print(f"  port {TUNNEL_PORT}: {tunnel:,} bytes in {wire.tls_records} segments that begin a TLS record")
    console.print(f"  other ports: {others}")
    console.print(f"  plain words ({', '.join(w.decode() for w in _WORDS)}): {', '.join(words) or 'none'}")
    verdict = "[green]encrypted, every byte[/]" if good else "[red]not as it should be: gossamer lab logs node/n1[/]"
    console.print(f"  {verdict}; slowest answer {slowest * 1000:.0f} ms\n", highlight=False)
    return good


def _suggest(console: Console, lab: Lab) -> None:
    us = program(sys.argv[0])
    option = "" if lab.name == "lab" else f" --name {lab.name}"
    looking = option.replace("--name", "--lab")
    for command, what in (
        (f"{us} lab exec{option} client -- curl -s productpage:9080/productpage", "a page through the mesh"),
        (f"{us} connections{looking}", "what goes through the agents now"),
        (
            f"{us} lab label{option} namespace/default istio.io/dataplane-mode-",
            "out of the mesh, nothing restarts",
        ),
        (f"{us} lab kill-agent{option} n1", "its own pods go on, all else fails closed; restart-agent heals it"),
        (f"{us} lab down{option}", "remove every trace"),
    ):
        console.print(f"  [bold]{command}[/]\n      {what}", highlight=False, soft_wrap=True)


def program(called: str, path: str | None = None) -> str:
    """What people have to type for us: where `path` (default: PATH) does not lead to us, what we were called by."""
    return called if Path(called).name == "gossamer" and shutil.which("gossamer", path=path) is None else "gossamer"
