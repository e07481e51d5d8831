"""`gossamer bench leak`: is anything left behind? Connections are opened and closed through the tunnel, while policies
change and certificates are renewed; what agents and controller hold afterwards is what they held before, or the exit
status is 1.

Who has never worked holds less than who rests: the first tenth warms up, and what is held after it is the measure.
"""

from __future__ import annotations

import argparse
import os
import shlex
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.bench import load, rounds, usage
from deploy.bench.amount import whole
from deploy.bench.conduct import Sheet, Step, conduct, print_json
from deploy.bench.fault import BenchError
from deploy.bench.ground import Pair, ground
from deploy.bench.mesh import APP_PORT, Mesh, bring_up
from deploy.lab import agents, cgroup
from deploy.lab.file import replace

_PARTS = 20  # of the whole, with a look after each
_WARM = 2  # of them
_AT_A_TIME = 16
_LIFETIME_S = 120  # of certificates: the shortest the controller gives, renewed every half minute or less
_CHANGE_S = 0.5  # between two changes of policy
_REST_S = 60.0  # until nothing is open any more
_MEMORY_MIB, _DESCRIPTORS = 4.0, 16  # growth of one process that is put down to chance: some sockets are made ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """By one process: MiB (PSS) and open descriptors."""

    pss_mib: float
    descriptors: int


Look = Mapping[str, Held]
"""What each process holds at one time, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`looks` by number of connections that had come and gone. How often `certificates` and `policies` changed."""

    connections: int
    seconds: float
    looks: Mapping[int, Look]
    certificates: int
    policies: int

    @property
    def before(self) -> Look:
        return list(self.looks.values())[_WARM - 1]

    @property
    def after(self) -> Look:
        return list(self.looks.values())[-1]

    def leaks(self) -> list[str]:
        """What has grown, in words."""
        found = []
        for name, after in self.after.items():
            before = self.before[name]
            if after.pss_mib > before.pss_mib + _MEMORY_MIB:
                found.append(f"{name}: memory from {before.pss_mib:.1f} to {after.pss_mib:.1f} MiB")
            if after.descriptors > before.descriptors + _DESCRIPTORS:
                found.append(f"{name}: descriptors from {before.descriptors} to {after.descriptors}")
        return found


def register(kinds: Any) -> None:
    """Add `leak` to the kinds of benchmarks."""
    text = "memory and descriptors while connections come and go, policies change, certificates are renewed"
    parser = kinds.add_parser("leak", help=text, description=f"Watch {text}. Exit status 1 if they grow. Needs root.")
    add = parser.add_argument
    add(
        "--connections",
        type=whole(_PARTS, 100_000_000),
        default=200_000,
        metavar="N",
        help="opened and closed (200000)",
    )
    add("--agent", type=shlex.split, default=[], metavar="ARGUMENTS", help="more arguments of our agents, as one word")
    add("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; 1 if something has grown."""
    leaks: list[str] = []

    def show(outcome: Outcome) -> None:
        leaks.extend(outcome.leaks())
        if arguments.output == "json":
            print_json(document(outcome))
        else:
            sheet(outcome).show()

    def measured(step: Step) -> Outcome:
        return measure(arguments.connections, arguments.agent, os.getpid(), step)

    return conduct("gossamer bench leak", _PARTS + 1, measured, show) or (1 if leaks else 0)


def measure(connections: int, more: Sequence[str], number: int, step: Step) -> Outcome:
    """BenchError: a connection failed, or does not go away."""
    program = load.compiled()
    step("preparing")
    with ground(number) as site:
        mesh = bring_up(site, more, lifetime=_LIFETIME_S)
        pair, looks, began, done = mesh.ambient, dict[int, Look](), time.monotonic(), 0
        first = serials = _serials(mesh)
        with load.serving(program, pair.server, APP_PORT), _changing(mesh) as changes:
            for part in range(1, _PARTS + 1):
                step(f"{done:,} of {connections:,} connections")
                count = connections * part // _PARTS - done
                _come_and_go(program, pair, count)
                done += count
                _wait_for_rest(mesh)
                looks[done] = _look(mesh)
                serials = serials | _serials(mesh)
        return Outcome(
            connections=connections,
            seconds=time.monotonic() - began,
            looks=looks,
            certificates=len(serials - first),
            policies=changes[0],
        )


def _come_and_go(program: Path, pair: Pair, count: int) -> None:
    options = {"connections": _AT_A_TIME, "count": count, "seconds": 3600}
    found = load.ask(program, pair.client, "connects", pair.server.address, APP_PORT, **options)
    if found["connects"] != count:
        raise BenchError(f"{found['connects']} connections instead of {count}")


@contextmanager
def _changing(mesh: Mesh) -> Iterator[list[int]]:
    """Meanwhile a policy changes, over and over; [how often]. The client is always permitted."""
    over, changes = threading.Event(), [0]
    path = mesh.ground.layout.cluster / "churn.yaml"

    def change() -> None:
        while not over.wait(_CHANGE_S):
            changes[0] += 1
            replace(path, yaml.safe_dump(_policy(changes[0])))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield changes
    finally:
        over.set()
        thread.join()


def _policy(number: int) -> dict[str, Any]:
    sources = ["cluster.local/ns/ambient/sa/client", f"cluster.local/ns/ambient/sa/other-{number}"]
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "ambient", "name": f"churn-{number % 7}"},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}},
            "rules": [{"from": [{"source": {"principals": sources}}]}],
        },
    }


def _wait_for_rest(mesh: Mesh) -> None:
    end = time.monotonic() + _REST_S
    while time.monotonic() < end:
        if not any(_ask(mesh, node.name, "/connections")["connections"] for node in mesh.ground.nodes):
            return
        time.sleep(0.05)
    raise BenchError(f"connections are still listed {_REST_S:g} s after the last was closed")


def _ask(mesh: Mesh, node: str, target: str) -> Any:
    answer = agents.ask_socket(agents.admin_socket(mesh.ground.layout, node), target)
    if answer is None:
        raise BenchError(f"the agent of {node} does not answer")
    return answer


def _serials(mesh: Mesh) -> set[str]:
    found = (_ask(mesh, node.name, "/certificates")["certificates"] for node in mesh.ground.nodes)
    return {str(one["serial"]) for certificates in found for one in certificates}


def _look(mesh: Mesh) -> Look:
    layout = mesh.ground.layout
    groups = {f"agent of {node.name}": layout.node_cgroup(node.name) / "agent" for node in mesh.ground.nodes}
    groups["controller"] = layout.service_cgroup("controller")
    return {name: _held(group) for name, group in groups.items()}


def _held(group: Path) -> Held:
    descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in cgroup.processes(group))
    return Held(pss_mib=usage.read_memory([group]).pss, descriptors=descriptors)


def document(outcome: Outcome) -> dict[str, Any]:
    """For programs."""
    return {
        "bench": "leak",
        "connections": outcome.connections,
        "seconds": outcome.seconds,
        "certificates_renewed": outcome.certificates,
        "policies_changed": outcome.policies,
        "leaks": outcome.leaks(),
        "machine": rounds.machine(),
        "processes": {
            name: [
                {"connections": count, "pss_mib": look[name].pss_mib, "descriptors": look[name].descriptors}
                for count, look in outcome.looks.items()
            ]
            for name in outcome.after
        },
    }


def sheet(outcome: Outcome) -> Sheet:
    """For people: a few of the looks, each process' memory and descriptors."""
    counts = list(outcome.looks)
    shown = sorted({counts[_WARM - 1], counts[len(counts) // 2], counts[-1]})
    rows = []
    for name in outcome.after:
        rows.append((f"{name}, MiB", *(f"{outcome.looks[count][name].pss_mib:.1f}" for count in shown)))
        rows.append(("  descriptors", *(f"{outcome.looks[count][name].descriptors}" for count in shown)))
    leaks = outcome.leaks()
    return Sheet(
        title="gossamer bench leak",
        columns=tuple(f"after {count:,}" for count in shown),
        rows=tuple(rows),
        note=f"{outcome.connections:,} connections in {outcome.seconds:.0f} s, {outcome.certificates} certificates "
        f"renewed, {outcome.policies} changes of policy. " + ("; ".join(leaks) or "Nothing has grown."),
    )
