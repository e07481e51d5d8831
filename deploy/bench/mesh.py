"""Our mesh on the benchmark's ground: the real controller, the real agent on each node with pods, two pairs of them.

    plain     in the nodes' cgroups, so that every hook is around them, but not enrolled
    ambient   its namespace carries istio.io/dataplane-mode: ambient

What a kubelet would do is done here: pod records for the agents, objects for the controller. Access logs are off, as
they are for Envoy.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.bench.fault import BenchError
from deploy.bench.ground import Ground, Pair, Pod
from deploy.bench.seat import Seat
from deploy.lab import agents, fabric
from deploy.lab.fabric import Machine
from deploy.lab.launch import in_netns
from deploy.lab.layout import NETNS

APP_PORT = 7000
VIP_PORT = 7001  # of the server, behind a Service's APP_PORT
_METRICS_PORT = 15020
_REFUSED = re.compile(r'gossamer_(?:kernel_)?refused_total\{reason="(\w+)"\} (\S+)$')
_DEADLINE_S = 90.0  # the first start on a machine compiles the programs of the kernel side
_LABELS: Mapping[str, dict[str, str]] = {"plain": {}, "ambient": {"istio.io/dataplane-mode": "ambient"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """A mesh that is up, its pods enrolled as their namespaces ask. `agents` are the agents' cgroups; `neighbours` are
    further enrolled pairs on the same nodes."""

    ground: Ground
    plain: Pair
    ambient: Pair
    neighbours: tuple[Pair, ...] = ()

    @property
    def vip(self) -> str:
        """The address of a Service that leads to the ambient server, where both pods are on one node."""
        return _vip(self.ground)

    @property
    def agents(self) -> tuple[Path, ...]:
        return tuple(self.ground.layout.node_cgroup(node.name) / "agent" for node in self.ground.inhabited)

    def connections(self) -> list[dict[str, Any]]:
        """What the client node's agent says of its live connections."""
        answer = agents.ask_socket(agents.admin_socket(self.ground.layout, self.ground.nodes[0].name), "/connections")
        return list((answer or {}).get("connections", ()))

    def refusals(self) -> str:
        """Why the agents have turned connections away so far, and how many; in words."""
        found = [f"{node.name}: {text}" for node in self.ground.inhabited if (text := _refusals(node))]
        return "refusals so far by the agents: " + ("; ".join(found) or "none")


def _refusals(node: Machine) -> str:
    metrics = http.client.HTTPConnection(node.address4, _METRICS_PORT, timeout=10)
    in_netns(NETNS / node.netns, metrics.connect)
    metrics.request("GET", "/metrics")
    lines = metrics.getresponse().read().decode().splitlines()
    counted = [_REFUSED.match(line) for line in lines]
    return ", ".join(f"{int(float(one[2]))} {one[1]}" for one in counted if one and float(one[2]))


def bring_up(
    ground: Ground, arguments: Sequence[str] = (), *, neighbours: int = 0, lifetime: int | None = None
) -> Mesh:
    """Start everything, the agents with more `arguments`, with so many `neighbours`, certificates valid for `lifetime`
    seconds, and wait until it is as the labels ask; removing the ground removes it."""
    layout = ground.layout
    labels = _LABELS | {f"neighbour{number}": _LABELS["ambient"] for number in range(neighbours)}
    for directory in (layout.cluster, layout.logs, layout.control):
        directory.mkdir(parents=True, exist_ok=True)
    for node in ground.inhabited:
        layout.pod_records(node.name).mkdir(parents=True, exist_ok=True)
        layout.node_dir(node.name).chmod(0o700)
        for child in ("agent", "kubelet", "host", "pods"):
            (layout.node_cgroup(node.name) / child).mkdir(parents=True, exist_ok=True)

    def place(node: Machine, pod: Pod) -> Path:
        group = layout.pod_cgroup(node.name, pod.namespace, pod.name, pod.uid)
        group.mkdir(parents=True, exist_ok=True)
        return group

    pairs = {namespace: ground.pair(place, namespace=namespace) for namespace in labels}
    _write_objects(ground, pairs, labels)
    _start(ground, arguments, lifetime)
    ambient = [namespace for namespace in labels if labels[namespace]]
    _until("the agents to be ready and the pods to be enrolled", lambda: _waits_for(ground, ambient))
    own, *others = (pairs[namespace] for namespace in ambient)
    return Mesh(ground=ground, plain=pairs["plain"], ambient=own, neighbours=tuple(others))


def _start(ground: Ground, arguments: Sequence[str], lifetime: int | None) -> None:
    layout = ground.layout
    v4, v6 = layout.control_addresses
    control = Machine(name="control", netns=layout.control_netns, address4=v4, address6=v6)
    fabric.make_machine(layout, control)
    fabric.set_routes(layout, control, ground.nodes)
    valid = () if lifetime is None else ("--certificate-lifetime", str(lifetime))
    agents.start_controller(layout, [node.name for node in ground.inhabited], arguments=valid)
    root = layout.control / "state" / "ca.crt"
    _until("the controller", lambda: "" if root.exists() else _tail(layout.logs / "controller.log"))
    for node in ground.inhabited:
        agents.start_agent(layout, node, arguments=("--log-level", "warn", *arguments))


def _waits_for(ground: Ground, ambient: Sequence[str]) -> str:
    """What is not as it should be, in words; empty if all is."""
    expected = {Pod(namespace=namespace, name=name).uid for namespace in ambient for name in ("client", "server")}
    enrolled: set[str] = set()
    tunnels: list[str] = []
    for node in ground.inhabited:
        admin = agents.admin_socket(ground.layout, node.name)
        status = agents.ask_socket(admin, "/status")
        if not status or not status["ready"]:
            pending = f"pending: {status['pending']}" if status else "it does not answer"
            return f"agent of {node.name}: {pending}\n{_tail(agents.agent_log(ground.layout, node.name))}"
        enrolled |= {pod["instance"] for pod in status["pods"] if pod["state"] == "enabled"}
        known = agents.ask_socket(admin, "/workloads") or {"workloads": []}
        tunnels += [one["namespace"] for one in known["workloads"] if one["protocol"] == "HBONE"]
    if enrolled != expected:
        return f"enrolled are {sorted(enrolled)}, should be {sorted(expected)}"
    every = 2 * len(ground.inhabited)  # each node knows both pods of each
    if sorted(tunnels) == sorted(every * list(ambient)):
        return ""
    return f"workloads that take tunnels, by node: {tunnels}"


def _until(what: str, waits_for: Callable[[], str]) -> None:
    end = time.monotonic() + _DEADLINE_S
    while reason := waits_for():
        if time.monotonic() > end:
            raise BenchError(f"waited {_DEADLINE_S:g} s for {what}:\n{reason}")
        time.sleep(0.05)


def _tail(log: Path) -> str:
    lines = log.read_text().splitlines()[-15:] if log.exists() else []
    return "\n".join(lines) or f"(nothing in {log.name} yet)"


def _write_objects(ground: Ground, pairs: Mapping[str, Pair], labels: Mapping[str, Mapping[str, str]]) -> None:
    layout = ground.layout
    objects: list[dict[str, Any]] = [_node(node) for node in ground.nodes]
    for namespace, pair in pairs.items():
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": namespace, "labels": dict(labels[namespace])},
            }
        )
        for node, name, seat in zip(ground.homes, ("client", "server"), (pair.client, pair.server), strict=True):
            pod = Pod(namespace=namespace, name=name)
            meta = {"namespace": namespace, "name": name}
            objects.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
            objects.append(_pod(pod, seat, node))
            netns = str(NETNS / layout.pod_netns(namespace, name))
            record = {"instance": pod.uid, "namespace": namespace, "name": name, "netns": netns}
            (layout.pod_records(node.name) / f"{pod.uid}.json").write_text(json.dumps(record))
    if ground.together:
        objects += _policy(_vip(ground))
    (layout.cluster / "bench.yaml").write_text(yaml.safe_dump_all(objects))


def _vip(ground: Ground) -> str:
    return str(ground.layout.services4[100])


def _service(name: str, address: str, target: int) -> dict[str, Any]:
    ports = [{"port": APP_PORT, "targetPort": target}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "ambient", "name": name},
        "spec": {"clusterIP": address, "clusterIPs": [address], "selector": {"app": "server"}, "ports": ports},
    }


def _policy(vip: str) -> list[dict[str, Any]]:
    """Only the client may reach the server. Services lead to its ports, so that this is decided ahead."""
    principal = "cluster.local/ns/ambient/sa/client"
    return [
        _service("server", "None", APP_PORT),
        _service("server-vip", vip, VIP_PORT),
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"namespace": "ambient", "name": "client-only"},
            "spec": {
                "selector": {"matchLabels": {"app": "server"}},
                "action": "ALLOW",
                "rules": [{"from": [{"source": {"principals": [principal]}}]}],
            },
        },
    ]


def _node(node: Machine) -> dict[str, Any]:
    addresses = [{"type": "InternalIP", "address": address} for address in (node.address4, node.address6)]
    status = {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}, "status": status}


def _pod(pod: Pod, seat: Seat, node: Machine) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": pod.namespace,
            "name": pod.name,
            "uid": pod.uid,
            "labels": {"app": pod.name},
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "nodeName": node.name,
            "serviceAccountName": pod.name,
            "containers": [{"name": "load", "image": "load"}],
        },
        "status": {
            "phase": "Running",
            "hostIP": node.address4,
            "podIP": seat.address,
            "podIPs": [{"ip": seat.address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
