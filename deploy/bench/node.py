"""A full node under test: its pods, its agent, and the controller. Pods are network namespaces without processes; to
the agent they are pods."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.bench import usage
from deploy.bench.crowd import Crowd, Object
from deploy.bench.fault import BenchError
from deploy.bench.ground import Ground
from deploy.bench.seat import Seat
from deploy.lab import agents, fabric
from deploy.lab.fabric import Machine
from deploy.lab.file import replace
from deploy.lab.layout import NETNS

_DEADLINE_S = 300.0
_LOOK_S = 0.005
_ARGUMENTS = ("--log-level", "warn", "--direct", "on")  # of the agent


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one event: seconds until it is in force, and of CPU in the agent and in the controller."""

    seconds: float
    agent: float
    controller: float


class Node:
    """The first node of the ground."""

    def __init__(self, site: Ground, crowd: Crowd) -> None:
        self.layout, self.crowd = site.layout, crowd
        self._site, self._machine = site, site.nodes[0]
        self._group = self.layout.node_cgroup(self._machine.name)
        self.agent = self._group / "agent"
        self.controller = self.layout.service_cgroup("controller")

    @property
    def pins(self) -> Path:
        """The bpf filesystem of its agent."""
        return self.layout.bpf(self._machine.name)

    def populate(self) -> None:
        """Namespaces, devices and records of every pod, and its objects for the controller."""
        layout, node = self.layout, self._machine
        for directory in (layout.cluster, layout.logs, layout.control, layout.pod_records(node.name)):
            directory.mkdir(parents=True, exist_ok=True)
        layout.node_dir(node.name).chmod(0o700)
        for child in ("agent", "kubelet", "host", "pods"):
            (self._group / child).mkdir(parents=True, exist_ok=True)
        objects: list[Object] = [*self.crowd.namespaces()]
        for pod in range(self.crowd.pods):
            seat, namespace, name = self.seat(pod), self.crowd.namespace(pod), f"pod-{pod}"
            uid = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.{namespace}.bench"))
            fabric.make_pod(layout, namespace, name, node, (seat.address, str(layout.node_pods6(0)[2 + pod])))
            record = {"instance": uid, "namespace": namespace, "name": name, "netns": str(seat.netns)}
            (layout.pod_records(node.name) / f"{uid}.json").write_text(json.dumps(record))
            objects += self.crowd.neighbourhood(
                pod, uid=uid, node=node.name, node_ip=node.address4, address=seat.address
            )
        self.put("pods.yaml", objects)

    def seat(self, pod: int) -> Seat:
        """Where a process is in this pod."""
        name = f"pod-{pod}"
        return Seat(
            netns=NETNS / self.layout.pod_netns(self.crowd.namespace(pod), name),
            cgroup=self._group / "pods" / name,
            address=str(self.layout.node_pods4(0)[2 + pod]),
        )

    def start_controller(self) -> None:
        """And wait until it serves."""
        layout = self.layout
        v4, v6 = layout.control_addresses
        control = Machine(name="control", netns=layout.control_netns, address4=v4, address6=v6)
        fabric.make_machine(layout, control)
        fabric.set_routes(layout, control, self._site.nodes)
        agents.start_controller(layout, [self._machine.name])
        until("the controller's root", (layout.control / "state" / "ca.crt").exists)

    def start_agent(self) -> None:
        """One that enrols all pods, or adopts them if an earlier one was killed; until it serves them."""
        agents.start_agent(self.layout, self._machine, arguments=_ARGUMENTS)
        self._await_all()

    def kill_agent(self) -> None:
        agents.stop_agent(self.layout, self._machine.name, kill=True)

    def replace_agent(self) -> None:
        """By one that takes over all pods; until it serves them."""
        agents.replace_agent(self.layout, self._machine, arguments=_ARGUMENTS)
        self._await_all()

    def costs(self, act: Callable[[], object]) -> Cost:
        """Of what is done by `act`, which returns when it is in force."""
        agent, controller = usage.group_seconds(self.agent), usage.group_seconds(self.controller)
        began = time.monotonic()
        act()
        return Cost(
            seconds=time.monotonic() - began,
            agent=usage.group_seconds(self.agent) - agent,
            controller=usage.group_seconds(self.controller) - controller,
        )

    def settle(self) -> None:
        """Until neither has used CPU for a moment, so that what is counted is what was done for this change."""
        quiet, last = 0, -1.0
        while quiet < 3:
            now = usage.group_seconds(self.agent) + usage.group_seconds(self.controller)
            quiet = quiet + 1 if now - last < 0.02 else 0
            last = now
            time.sleep(0.15)

    def ask(self, target: str) -> Any:
        """GET from the agent; None if it does not answer."""
        return agents.ask_socket(agents.admin_socket(self.layout, self._machine.name), target)

    def put(self, name: str, objects: Iterable[Object]) -> None:
        """A file of the cluster's state."""
        replace(self.layout.cluster / name, "---\n".join(json.dumps(one) + "\n" for one in objects))

    def _await_all(self) -> None:
        until("all pods to be enrolled", self._all_enrolled, every=0.1)

    def _all_enrolled(self) -> bool:
        status = self.ask("/status")
        return bool(status) and status["ready"] and status["pods_enrolled"] == self.crowd.pods


def until(what: str, is_so: Callable[[], bool], every: float = _LOOK_S) -> None:
    """BenchError if it is not so in time. `every`: seconds between two looks."""
    end = time.monotonic() + _DEADLINE_S
    while not is_so():
        if time.monotonic() > end:
            raise BenchError(f"waited {_DEADLINE_S:g} s for {what}")
        time.sleep(every)
