"""A node full of pods and policies: how long until a change is in force, and what it costs.

The way is the real one: a file is written, the controller's directory source reads it, translates it, sends a delta;
the agent plans, tells the kernel, ends what is not permitted, and acknowledges. The clock stops when the controller has
the acknowledgement. Pods are network namespaces without processes: to the agent they are pods.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from deploy.bench import usage
from deploy.bench.conduct import Sheet, Step, conduct, print_json
from deploy.bench.crowd import NAMESPACES, Crowd, Object, allow
from deploy.bench.fault import BenchError
from deploy.bench.ground import Ground, ground
from deploy.bench.usage import Memory
from deploy.lab import agents, fabric
from deploy.lab.fabric import Machine
from deploy.lab.file import replace
from deploy.lab.launch import in_netns
from deploy.lab.layout import NETNS

_DEADLINE_S = 300.0
_LOOK_S = 0.005
_METRICS_PORT = 15014
_SINGLE = 1  # permission that the last single change leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one change: seconds until it is in force, and of CPU in the agent and in the controller."""

    seconds: float
    agent: float
    controller: float


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
    add("--pods", type=int, default=250, choices=range(20, 251), metavar="N", help="on the node (250)")
    add(
        "--policies", type=int, default=2000, choices=range(1, 50_001), metavar="N", help="AuthorizationPolicies (2000)"
    )
    add("--tries", type=int, default=10, choices=range(1, 1001), metavar="N", help="single changes of each kind (10)")
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
        step(f"making {crowd.pods} pods")
        node.populate()
        step("starting controller and agent, enrolling")
        enrolment = node.enrol()
        changes: dict[str, list[Cost]] = {"all policies": []}
        step(f"{crowd.policies} policies")
        changes["all policies"].append(node.load())
        for turn in range(tries):
            step(f"single changes, {turn + 1} of {tries}")
            for kind, objects in node.single_changes(turn).items():
                changes.setdefault(kind, []).append(node.change("single.yaml", objects))
        return Outcome(
            crowd=crowd,
            enrolment=enrolment,
            changes={kind: tuple(costs) for kind, costs in changes.items()},
            maps=node.maps(),
            agent=usage.read_memory([node.agent]),
            controller=usage.read_memory([node.controller]),
        )


class Node:
    """The node under test, its agent and its controller."""

    def __init__(self, site: Ground, crowd: Crowd) -> None:
        self._site, self._crowd, self._layout = site, crowd, site.layout
        self._machine = site.nodes[0]
        self.agent = self._layout.node_cgroup(self._machine.name) / "agent"
        self.controller = self._layout.service_cgroup("controller")

    def populate(self) -> None:
        """Namespaces, devices and records of every pod, and its objects for the controller."""
        layout, node = self._layout, self._machine
        for directory in (layout.cluster, layout.logs, layout.control, layout.pod_records(node.name)):
            directory.mkdir(parents=True, exist_ok=True)
        layout.node_dir(node.name).chmod(0o700)
        for child in ("agent", "kubelet", "host", "pods"):
            (layout.node_cgroup(node.name) / child).mkdir(parents=True, exist_ok=True)
        objects: list[Object] = [*self._crowd.namespaces()]
        for pod in range(self._crowd.pods):
            namespace, name = self._crowd.namespace(pod), f"pod-{pod}"
            uid = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.{namespace}.bench"))
            addresses = str(layout.node_pods4(0)[2 + pod]), str(layout.node_pods6(0)[2 + pod])
            fabric.make_pod(layout, namespace, name, node, addresses)
            netns = str(NETNS / layout.pod_netns(namespace, name))
            record = {"instance": uid, "namespace": namespace, "name": name, "netns": netns}
            (layout.pod_records(node.name) / f"{uid}.json").write_text(json.dumps(record))
            objects += self._crowd.neighbourhood(
                pod, uid=uid, node=node.name, node_ip=node.address4, address=addresses[0]
            )
        self._write("pods.yaml", objects)

    def enrol(self) -> Cost:
        layout = self._layout
        v4, v6 = layout.control_addresses
        control = Machine(name="control", netns=layout.control_netns, address4=v4, address6=v6)
        fabric.make_machine(layout, control)
        fabric.set_routes(layout, control, self._site.nodes)
        began = time.monotonic()
        agents.start_controller(layout, [self._machine.name])
        root = layout.control / "state" / "ca.crt"
        _until("the controller's root", root.exists)
        agents.start_agent(layout, self._machine, arguments=("--log-level", "warn", "--direct", "on"))
        _until("all pods to be enrolled", self._all_enrolled, every=0.2)
        self._metrics = Metrics(NETNS / layout.control_netns, v4)
        return Cost(
            seconds=time.monotonic() - began,
            agent=usage.group_seconds(self.agent),
            controller=usage.group_seconds(self.controller),
        )

    def load(self) -> Cost:
        """All policies at once, a file for each namespace."""
        self._settle()
        files: dict[str, list[Object]] = {f"policies-{number}.yaml": [] for number in range(NAMESPACES)}
        for number in range(self._crowd.policies):
            files[f"policies-{number % NAMESPACES}.yaml"].append(self._crowd.policy(number))
        texts = {name: _text(objects) for name, objects in files.items()}

        def loaded() -> bool:
            status = self._ask("/status")
            return bool(status) and status["snapshot"]["policies"] == self._crowd.policies

        return self._timed(lambda: [self._put(name, text) for name, text in texts.items()], loaded)

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
        self._settle()
        text = _text(objects)
        return self._timed(lambda: self._put(name, text), lambda: True)

    def maps(self) -> dict[str, tuple[int, int]]:
        """The kernel's maps by name: entries, bytes."""
        described = self._ask("/bpf") or {"maps": []}
        entries = {one["name"]: one["entries"] or 0 for one in described["maps"]}
        sizes = usage.map_bytes(self._layout.bpf(self._machine.name))
        return {name: (entries.get(name, 0), size) for name, size in sizes.items()}

    def _timed(self, act: Callable[[], object], done: Callable[[], bool]) -> Cost:
        before = self._metrics.acknowledged()
        agent, controller = usage.group_seconds(self.agent), usage.group_seconds(self.controller)
        began = time.monotonic()
        act()
        _until("the node to acknowledge", lambda: self._metrics.acknowledged() > before)
        seconds = time.monotonic() - began
        if not done():
            _until("all of it to be there", done)
            seconds = time.monotonic() - began
        self._settle()
        return Cost(
            seconds=seconds,
            agent=usage.group_seconds(self.agent) - agent,
            controller=usage.group_seconds(self.controller) - controller,
        )

    def _settle(self) -> None:
        """Until neither has used CPU for a moment, so that what is counted is what was done for this change."""
        quiet, last = 0, -1.0
        while quiet < 3:
            now = usage.group_seconds(self.agent) + usage.group_seconds(self.controller)
            quiet = quiet + 1 if now - last < 0.02 else 0
            last = now
            time.sleep(0.15)

    def _all_enrolled(self) -> bool:
        status = self._ask("/status")
        return bool(status) and status["ready"] and status["pods_enrolled"] == self._crowd.pods

    def _ask(self, target: str) -> Any:
        return agents.ask_socket(agents.admin_socket(self._layout, self._machine.name), target)

    def _write(self, name: str, objects: Iterable[Object]) -> None:
        self._put(name, _text(objects))

    def _put(self, name: str, text: str) -> None:
        replace(self._layout.cluster / name, text)


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


def _text(objects: Iterable[Object]) -> str:
    return "---\n".join(json.dumps(one) + "\n" for one in objects)


def _until(what: str, is_so: Callable[[], bool], every: float = _LOOK_S) -> None:
    end = time.monotonic() + _DEADLINE_S
    while not is_so():
        if time.monotonic() > end:
            raise BenchError(f"waited {_DEADLINE_S:g} s for {what}")
        time.sleep(every)
