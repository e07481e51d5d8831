"""A node full of pods and policies: how long until a change is in force, and what it costs.

The way is the real one: a file is written, the controller's directory source reads it, translates it, sends a delta;
the agent plans, tells the kernel, ends what is not permitted, and acknowledges. The clock stops when the controller has
the acknowledgement. Pods are network namespaces without processes: to the agent they are pods.
"""

from __future__ import annotations

import argparse
import http.client
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from deploy.bench import usage
from deploy.bench.amount import whole
from deploy.bench.conduct import Sheet, Step, conduct, print_json
from deploy.bench.crowd import NAMESPACES, Crowd, Object, allow
from deploy.bench.fault import BenchError
from deploy.bench.ground import ground
from deploy.bench.node import Cost, Node, until
from deploy.bench.usage import Memory
from deploy.lab.launch import in_netns
from deploy.lab.layout import NETNS

_METRICS_PORT = 15014
_SINGLE = 1  # permission that the last single change leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`changes` are costs by kind of change, in the order they were made; `maps` the kernel's, by name: (entries,
    bytes)."""

    crowd: Crowd
    enrolment: Cost
    changes: Mapping[str, tuple[Cost, ...]]
    maps: Mapping[str, tuple[int, int]]
    agent: Memory
    controller: Memory


def register(kinds: Any) -> None:
    """Add `policy` to the kinds of benchmarks."""
    text = "many pods and policies on one node: time until a change is in force, CPU, memory"
    parser = kinds.add_parser("policy", help=text, description=f"Measure {text}. Needs root.")
    add = parser.add_argument
    add("--pods", type=whole(20, 250), default=250, metavar="N", help="on the node (250)")
    add("--policies", type=whole(1, 50_000), default=2000, metavar="N", help="AuthorizationPolicies (2000)")
    add("--tries", type=whole(1, 1000), default=10, metavar="N", help="single changes of each kind (10)")
    add("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    crowd = Crowd(pods=arguments.pods, policies=arguments.policies)
    return conduct(
        "gossamer bench policy",
        3 + arguments.tries,
        lambda step: measure(crowd, arguments.tries, os.getpid(), step),
        lambda outcome: print_json(document(outcome)) if arguments.output == "json" else sheet(outcome).show(),
    )


def measure(crowd: Crowd, tries: int, number: int, step: Step) -> Outcome:
    """Run it (number: this process' pid)."""
    with ground(number, together=True) as site:
        node = Node(site, crowd)
        under_test = Site(node)
        step(f"making {crowd.pods} pods")
        node.populate()
        step("starting controller and agent, enrolling")
        enrolment = under_test.enrol()
        changes: dict[str, list[Cost]] = {"all policies": []}
        step(f"{crowd.policies} policies")
        changes["all policies"].append(under_test.load())
        for turn in range(tries):
            step(f"single changes, {turn + 1} of {tries}")
            for kind, objects in under_test.single_changes(turn).items():
                changes.setdefault(kind, []).append(under_test.change("single.yaml", objects))
        return Outcome(
            crowd=crowd,
            enrolment=enrolment,
            changes={kind: tuple(costs) for kind, costs in changes.items()},
            maps=under_test.maps(),
            agent=usage.read_memory([node.agent]),
            controller=usage.read_memory([node.controller]),
        )


class Site:
    """The node under test, and changes of policy there."""

    def __init__(self, node: Node) -> None:
        self._node, self._crowd = node, node.crowd

    def enrol(self) -> Cost:
        """All pods, controller and agent being started."""

        def start() -> None:
            self._node.start_controller()
            self._node.start_agent()

        cost = self._node.costs(start)
        layout = self._node.layout
        self._metrics = Metrics(NETNS / layout.control_netns, layout.control_addresses[0])
        return cost

    def load(self) -> Cost:
        """All policies at once, a file for each namespace."""
        files: dict[str, list[Object]] = {f"policies-{number}.yaml": [] for number in range(NAMESPACES)}
        for number in range(self._crowd.policies):
            files[f"policies-{number % NAMESPACES}.yaml"].append(self._crowd.policy(number))

        def loaded() -> bool:
            status = self._node.ask("/status")
            return bool(status) and status["snapshot"]["policies"] == self._crowd.policies

        return self._timed(lambda: [self._node.put(name, objects) for name, objects in files.items()], loaded)

    def single_changes(self, turn: int) -> dict[str, list[Object]]:
        """Kind of change -> what the file of one policy says then. The first loosens, the second tightens."""
        pod = turn * 7 % self._crowd.pods
        namespace = self._crowd.namespace(pod)
        wide = [self._crowd.principal(pod - 1), self._crowd.principal(pod - 2)]
        return {
            "one policy allows more": [allow("single", namespace, pod, wide)],
            "one policy allows less": [allow("single", namespace, pod, wide[:1])],
        }

    def change(self, name: str, objects: Iterable[Object]) -> Cost:
        return self._timed(lambda: self._node.put(name, objects), lambda: True)

    def maps(self) -> dict[str, tuple[int, int]]:
        """The kernel's maps by name: entries, bytes."""
        described = self._node.ask("/bpf") or {"maps": []}
        entries = {one["name"]: one["entries"] or 0 for one in described["maps"]}
        return {name: (entries.get(name, 0), size) for name, size in usage.map_bytes(self._node.pins).items()}

    def _timed(self, act: Callable[[], object], done: Callable[[], bool]) -> Cost:
        self._node.settle()
        before = self._metrics.acknowledged()
        taken: list[float] = []

        def change() -> None:
            began = time.monotonic()
            act()
            until("the node to acknowledge", lambda: self._metrics.acknowledged() > before)
            taken.append(time.monotonic() - began)
            if not done():
                until("all of it to be there", done)
                taken.append(time.monotonic() - began)
            self._node.settle()

        return replace(self._node.costs(change), seconds=taken[-1])


def document(outcome: Outcome) -> dict[str, Any]:
    """Everything. Keys are stable; see docs/benchmarks.md. Seconds, bytes, MiB."""
    crowd = outcome.crowd
    return {
        "bench": "policy",
        "pods": crowd.pods,
        "policies": crowd.policies,
        "enrolment": asdict(outcome.enrolment),
        "changes": {kind: [asdict(cost) for cost in costs] for kind, costs in outcome.changes.items()},
        "answers": {"permitted": crowd.permitted + _SINGLE, "ahead": outcome.maps.get("verdicts", (0, 0))[0]},
        "maps": {name: {"entries": entries, "bytes": size} for name, (entries, size) in outcome.maps.items()},
        "memory": {"agent": asdict(outcome.agent), "controller": asdict(outcome.controller)},
    }


def sheet(outcome: Outcome) -> Sheet:
    """The table."""
    crowd = outcome.crowd
    entries, _ = outcome.maps.get("verdicts", (0, 0))
    costs = {f"{crowd.pods} pods enrolled": (outcome.enrolment,), **outcome.changes}
    size = sum(size for _, size in outcome.maps.values()) / 2**20
    note = (
        f"{crowd.pods} pods and {crowd.policies} policies on one node. In force: from the file's writing to the node's "
        "acknowledgement at the controller; its source waits 50 ms for a writer to finish. Kernel maps: "
        f"{size:.1f} MiB; {entries} of {crowd.permitted + _SINGLE} permissions are answered ahead, the others when "
        f"first asked. Memory: agent {outcome.agent.pss:.0f} MiB, controller {outcome.controller.pss:.0f} MiB (PSS)."
    )
    return Sheet(
        title="gossamer bench policy",
        columns=("in force, s", "worst", "CPU agent, s", "CPU controller, s"),
        rows=tuple((kind, *_cells(found)) for kind, found in costs.items()),
        note=note,
    )


def _cells(costs: Sequence[Cost]) -> tuple[str, ...]:
    seconds = [cost.seconds for cost in costs]
    found = (median(seconds), max(seconds), median(c.agent for c in costs), median(c.controller for c in costs))
    return tuple(f"{value:.3g}" for value in found)


class Metrics:
    """The controller's own count of acknowledgements, asked over one connection made in its network namespace."""

    def __init__(self, netns: Path, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, _METRICS_PORT, timeout=60)
        in_netns(netns, self._connection.connect)

    def acknowledged(self) -> int:
        self._connection.request("GET", "/metrics")
        text = self._connection.getresponse().read().decode()
        for line in text.splitlines():
            if line.startswith("gossamer_controller_acks_total "):
                return int(float(line.split()[1]))
        raise BenchError("the controller does not say how many updates were acknowledged")
