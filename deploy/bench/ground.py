"""Where the benchmark runs: two nodes on a fabric, pods behind them, made by the very functions that make a lab's.

    client pod – node1 – fabric – node2 – server pod          namespaces gsm-bench<pid>-…, cgroups gossamer-bench<pid>/…

There is no kubelet, no kube-proxy and no DNS here: they would cost every column the same and tell nothing. A ground is
named after the benchmark's pid, so that one that was killed is recognised, and removed, by the next.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.bench.seat import Seat
from deploy.lab import agents, cgroup, fabric
from deploy.lab.fabric import Machine
from deploy.lab.layout import NETNS, RUNTIME, Layout, cgroup_root

NODES = ("node1", "node2")
_NAME = re.compile(r"(?:(?:gsm|gossamer)-)?bench(\d+)(?:-.*)?")
# Thousands of short connections from one address to one port: ports wait a second for reuse instead of a minute.
_SETTINGS = {"net/ipv4/tcp_tw_reuse": "1", "net/ipv4/ip_local_port_range": "16384 65000"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A client pod on the first node, a server pod on the second, or on the first as well."""

    client: Seat
    server: Seat


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod's names; `uid` is its metadata.uid."""

    namespace: str
    name: str

    @property
    def uid(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.name}.{self.namespace}.bench"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Two nodes that are up; pairs of pods are added to them. `together`: both pods of a pair on the first."""

    layout: Layout
    nodes: tuple[Machine, Machine]
    together: bool = False

    @property
    def homes(self) -> tuple[Machine, Machine]:
        """Where the client and the server of a pair live."""
        return (self.nodes[0], self.nodes[0]) if self.together else self.nodes

    @property
    def inhabited(self) -> tuple[Machine, ...]:
        """The nodes that have pods, and need an agent: what one has on every receive of the machine, two have twice."""
        return tuple(dict.fromkeys(self.homes))

    def pair(self, place: Callable[[Machine, Pod], Path] | None = None, *, namespace: str = "bare") -> Pair:
        """Make the pods `client` and `server` of a namespace. `place` names the cgroup of each; without it they sit
        outside the nodes' cgroups, where nothing is attached."""
        return Pair(
            client=self._pod(0, Pod(namespace=namespace, name="client"), place),
            server=self._pod(0 if self.together else 1, Pod(namespace=namespace, name="server"), place),
        )

    def _pod(self, index: int, pod: Pod, place: Callable[[Machine, Pod], Path] | None) -> Seat:
        node, layout = self.nodes[index], self.layout
        number = 2 + sum(1 for name in fabric.leftovers(layout) if name.startswith(layout.pod_netns("", pod.name)[:-1]))
        if self.together and pod.name == "server":
            number += 100
        addresses = str(layout.node_pods4(index)[number]), str(layout.node_pods6(index)[number])
        fabric.make_pod(layout, pod.namespace, pod.name, node, addresses)
        seat = Seat(
            netns=NETNS / layout.pod_netns(pod.namespace, pod.name),
            cgroup=place(node, pod) if place else layout.cgroup / "outside" / pod.name,
            address=addresses[0],
        )
        for setting, value in _SETTINGS.items():
            seat.set(setting, value)
        return seat


@contextmanager
def ground(number: int, *, together: bool = False) -> Iterator[Ground]:
    """Make the ground (number: this process' pid), and leave nothing of it, nor of earlier ones that were killed."""
    for dead in sorted(_left_behind()):
        remove(Layout(name=f"bench{dead}"))
    layout = Layout(name=f"bench{number}", slot=59)
    try:
        layout.cgroup.mkdir()
        fabric.make_fabric(layout)
        nodes = tuple(_node(layout, index, name) for index, name in enumerate(NODES))
        for node in nodes:
            fabric.make_machine(layout, node)
        for node in nodes:
            fabric.set_routes(layout, node, nodes)
        yield Ground(layout=layout, nodes=(nodes[0], nodes[1]), together=together)
    finally:
        remove(layout)


def _node(layout: Layout, index: int, name: str) -> Machine:
    v4, v6 = layout.node_addresses(index)
    return Machine(
        name=name,
        netns=layout.node_netns(name),
        address4=v4,
        address6=v6,
        pods4=str(layout.node_pods4(index)),
        pods6=str(layout.node_pods6(index)),
    )


def remove(layout: Layout) -> None:
    """End every process of a ground and remove its cgroups, pins, files and namespaces; repeatable."""
    cgroup.kill(layout.cgroup)
    agents.unmount_below(layout.run)
    shutil.rmtree(layout.run, ignore_errors=True)
    cgroup.remove(layout.cgroup)
    for name in fabric.leftovers(layout):
        fabric.remove(name)


def _left_behind() -> set[int]:
    """Numbers of grounds whose benchmark no longer lives."""
    names = [
        entry.name
        for directory in (NETNS, cgroup_root(), RUNTIME)
        if directory.exists()
        for entry in directory.iterdir()
    ]
    numbers = {int(found[1]) for name in names if (found := _NAME.fullmatch(name))}
    return {number for number in numbers if not Path(f"/proc/{number}").exists()}
