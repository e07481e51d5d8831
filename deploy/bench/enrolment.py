"""A node full of pods and its agent: how long until all pods are enrolled, adopted by another agent after the first was
killed, and taken over in a planned restart; and what a pod's new connections notice of the latter.

While the agent is replaced, a client in one of the pods makes connections to the other node, outside the mesh: the
agent relays each of them. One that is refused or ends early fails the run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from deploy.bench import load
from deploy.bench.amount import whole
from deploy.bench.conduct import Sheet, Step, conduct, print_json
from deploy.bench.crowd import Crowd
from deploy.bench.fault import BenchError
from deploy.bench.ground import Ground, ground
from deploy.bench.node import Cost, Node
from deploy.bench.seat import Seat
from deploy.lab.layout import NETNS

_PORT = 7000
_CALLERS, _RATE = 4, 100.0  # connections at a time, and per second
_BEFORE_S = 1.0  # connections are made as long before, and some time after, the agent is replaced
_WHILE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`costs` by event, in the order of the turns. `worst` is of each planned restart: milliseconds from connect() to
    the answer, of the connection that waited longest; `made` is how many connections were made meanwhile."""

    pods: int
    costs: Mapping[str, tuple[Cost, ...]]
    worst: tuple[float, ...]
    made: int


def register(kinds: Any) -> None:
    """Add `enrolment` to the kinds of benchmarks."""
    text = "many pods on one node: time to enrol them, to adopt them after a kill, to hand them over"
    parser = kinds.add_parser("enrolment", help=text, description=f"Measure {text}. Needs root.")
    add = parser.add_argument
    add("--pods", type=whole(20, 250), default=250, metavar="N", help="on the node (250)")
    add("--tries", type=whole(1, 100), default=3, metavar="N", help="kills, and planned restarts (3)")
    add("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    return conduct(
        "gossamer bench enrolment",
        2 + 2 * arguments.tries,
        lambda step: measure(arguments.pods, arguments.tries, os.getpid(), step),
        lambda outcome: print_json(document(outcome)) if arguments.output == "json" else sheet(outcome).show(),
    )


def measure(pods: int, tries: int, number: int, step: Step) -> Outcome:
    """Run it (number: this process' pid)."""
    program = load.compiled()
    with ground(number) as site:
        node, server = Node(site, Crowd(pods=pods)), _outside(site)
        step(f"making {pods} pods")
        node.populate()
        node.start_controller()
        step("enrolling")
        costs = {"enrolled": [node.costs(node.start_agent)], "adopted after a kill": [], "taken over": []}
        made, worst = 0, []
        with load.serving(program, server, _PORT):
            for turn in range(tries):
                step(f"killing the agent, {turn + 1} of {tries}")
                node.settle()
                node.kill_agent()
                costs["adopted after a kill"].append(node.costs(node.start_agent))
                step(f"replacing the agent, {turn + 1} of {tries}")
                node.settle()
                options = {"connections": _CALLERS, "rate": _RATE, "seconds": _WHILE_S}
                with load.beside(program, node.seat(0), "connects", server.address, _PORT, **options) as calls:
                    time.sleep(_BEFORE_S)
                    costs["taken over"].append(node.costs(node.replace_agent))
                if costs["taken over"][-1].seconds > _WHILE_S - _BEFORE_S:
                    raise BenchError(f"the agent took longer to replace than the {_WHILE_S:g} s that were watched")
                made += calls.found["connects"]
                worst.append(calls.found["latency_us"]["max"] / 1000)
        return Outcome(
            pods=pods, costs={event: tuple(found) for event, found in costs.items()}, worst=tuple(worst), made=made
        )


def _outside(site: Ground) -> Seat:
    """On the other node, in nobody's pod."""
    machine = site.nodes[1]
    return Seat(netns=NETNS / machine.netns, cgroup=site.layout.cgroup / "outside", address=machine.address4)


def document(outcome: Outcome) -> dict[str, Any]:
    """Everything. Keys are stable; see docs/benchmarks.md. Seconds; `waited_ms` milliseconds."""
    return {
        "bench": "enrolment",
        "pods": outcome.pods,
        "costs": {event: [asdict(cost) for cost in costs] for event, costs in outcome.costs.items()},
        "meanwhile": {"connections": outcome.made, "refused": 0, "waited_ms": outcome.worst},
    }


def sheet(outcome: Outcome) -> Sheet:
    """The table."""
    rows = []
    for event, costs in outcome.costs.items():
        seconds = [cost.seconds for cost in costs]
        agent, controller = median(cost.agent for cost in costs), median(cost.controller for cost in costs)
        rows.append((event, *(f"{value:.3g}" for value in (median(seconds), max(seconds), agent, controller))))
    return Sheet(
        title=f"gossamer bench enrolment: {outcome.pods} pods",
        columns=("seconds", "worst", "CPU agent, s", "CPU controller, s"),
        rows=tuple(rows),
        note="From the start of the agent's process, its self-test included, until it serves every pod. While it was "
        f"taken over, {outcome.made} connections were made through the agent and none was refused; the one that waited "
        f"longest had its answer after {max(outcome.worst):.0f} ms.",
    )
