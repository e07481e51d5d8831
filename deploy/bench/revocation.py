"""How soon a policy that takes a permission away ends what is open: from the writing of its file to the last
connection's error in the client, idle ones and busy ones, on the direct path and through tunnels."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from deploy.bench import load
from deploy.bench.amount import whole
from deploy.bench.conduct import Sheet, Step, conduct, print_json
from deploy.bench.fault import BenchError
from deploy.bench.ground import ground
from deploy.bench.mesh import APP_PORT, Mesh, bring_up
from deploy.lab.file import replace

_CONNECTIONS = 32  # half of them busy
_DEADLINE_S = 60.0
_HEARD_S = 0.8  # the agent hears of direct connections twice a second
_PATHS = {"DIRECT": "direct, one node", "HBONE": "tunnelled, two nodes"}
_HALVES = ("idle", "busy")


def register(kinds: Any) -> None:
    """Add `revocation` to the kinds of benchmarks."""
    text = "how soon a policy that takes a permission away ends open connections"
    parser = kinds.add_parser("revocation", help=text, description=f"Measure {text}. Needs root.")
    add = parser.add_argument
    add("--tries", type=whole(1, 1000), default=20, metavar="N", help="on each path (20)")
    add("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    return conduct(
        "gossamer bench revocation",
        len(_PATHS) * (1 + arguments.tries),
        lambda step: measure(arguments.tries, os.getpid(), step),
        lambda found: print_json(document(found)) if arguments.output == "json" else sheet(found).show(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Seconds until the last of the idle, and of the busy connections had its error."""

    idle: float
    busy: float


def measure(tries: int, number: int, step: Step) -> dict[str, list[Ended]]:
    """By protocol (number: this process' pid)."""
    found: dict[str, list[Ended]] = {}
    program = load.compiled()
    for protocol in _PATHS:
        step(f"bringing up the mesh, {protocol}")
        with ground(number, together=protocol == "DIRECT") as site:
            mesh = bring_up(site, ("--direct", "on"))
            with load.serving(program, mesh.ambient.server, APP_PORT):
                for turn in range(tries):
                    step(f"{protocol}: try {turn + 1} of {tries}")
                    found.setdefault(protocol, []).append(_once(program, mesh, protocol))
    return found


def _once(program: Path, mesh: Mesh, protocol: str) -> Ended:
    host = mesh.ambient.server.address
    with _watching(program, mesh, host, protocol) as watch:
        file = mesh.ground.layout.cluster / "revoke.yaml"
        began = time.monotonic_ns()
        replace(file, json.dumps(_DENY))
        try:
            said = watch.told()
        finally:
            file.unlink()
    for half in _HALVES:
        if said[half]["errors"] != said[half]["connections"]:
            raise BenchError(f"connections that lost their permission ended as if all were well: {said}")
    return Ended(**{half: (said[half]["last_ns"] - began) / 1e9 for half in _HALVES})


@contextmanager
def _watching(program: Path, mesh: Mesh, host: str, protocol: str) -> Iterator[load.Held]:
    """All of them on the path that is meant. While the last try's policy is still in force they are refused, or go
    another way."""
    end = time.monotonic() + _DEADLINE_S
    while time.monotonic() < end:
        try:
            with load.Held(program, mesh.ambient.client, host, APP_PORT, _CONNECTIONS, command="watch") as watch:
                time.sleep(_HEARD_S)
                listed = mesh.connections()
                taken = [c["protocol"] for c in listed if c["destination"]["address"] == f"{host}:{APP_PORT}"]
                if taken.count(protocol) >= _CONNECTIONS:
                    yield watch
                    return
                raise load.Broken(f"they should be {protocol}; the agent lists {sorted(set(taken))}")
        except load.Broken as error:
            why = error
    raise BenchError(f"{_CONNECTIONS} connections: {why}")


_DENY = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"namespace": "ambient", "name": "revoke"},
    "spec": {
        "action": "DENY",
        "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/ambient/sa/client"]}}]}],
    },
}


def document(found: Mapping[str, list[Ended]]) -> dict[str, Any]:
    """Seconds, in the order of the tries. Keys are stable; see docs/benchmarks.md."""
    paths = {
        protocol: {half: [getattr(one, half) for one in tries] for half in _HALVES} for protocol, tries in found.items()
    }
    return {"bench": "revocation", "connections": _CONNECTIONS, "seconds": paths}


def sheet(found: Mapping[str, list[Ended]]) -> Sheet:
    """The table."""
    rows = []
    for protocol, tries in found.items():
        for half in _HALVES:
            seconds = [getattr(one, half) for one in tries]
            rows.append((f"{_PATHS[protocol]}, {half}", f"{median(seconds):.3f}", f"{max(seconds):.3f}"))
    return Sheet(
        title="gossamer bench revocation: seconds until the last of them has ended",
        columns=("p50", "max"),
        rows=tuple(rows),
        note=f"From the writing of a DENY policy to the error in the client; {_CONNECTIONS // 2} connections of each "
        "kind. 50 ms of it are the source's, which waits for a writer to finish.",
    )
