"""What a lab still waits for, in words: pods, services and names, agents, enrolment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deploy.lab import agents, cgroup, clusterd
from deploy.lab.endpoints import is_alive, is_ready
from deploy.lab.fault import LabError
from deploy.lab.file import tail
from deploy.lab.layout import Layout
from deploy.lab.manifest import Key, Object


def waiting_for(layout: Layout, objects: Mapping[Key, Object], *, mesh: bool, agents_down: bool = False) -> str:
    """Empty if everything is as the objects say. `mesh`: agents are part of it; `agents_down`: one may be missing (it
    was killed on purpose), its pods are then not waited for. LabError if a process is dead that nobody will start."""
    nodes = [key.name for key in objects if key.kind == "Node"]
    for node in nodes:
        _check(layout.node_cgroup(node) / "kubelet", f"kubelet of {node}", layout.logs / f"kubelet-{node}.log")
    _check(layout.service_cgroup("clusterd"), "clusterd", layout.logs / "clusterd.log")
    pods = [item for key, item in sorted(objects.items()) if key.kind == "Pod"]
    unready = [pod for pod in pods if not is_ready(pod) and pod["status"]["phase"] not in ("Succeeded", "Failed")]
    if unready:
        return f"{len(unready)} of {len(pods)} pods: {_first(why_unready(pod) for pod in unready)}"
    applied = clusterd.digest(clusterd.table(layout, objects), clusterd.names(layout, objects), nodes)
    path = layout.control / "applied"
    if not path.exists() or path.read_text() != applied:
        return "service addresses and names"
    return _mesh_waits_for(layout, objects, nodes, agents_down) if mesh else ""


def _check(group: Path, name: str, log: Path) -> None:
    if not cgroup.populated(group):
        raise LabError(f"{name} is not running (gossamer lab up starts it again); the end of its log:\n{tail(log)}")


def _mesh_waits_for(layout: Layout, objects: Mapping[Key, Object], nodes: Sequence[str], agents_down: bool) -> str:
    enrolled: dict[str, bool] = {}
    away: set[str] = set()
    for node in nodes:
        group = layout.node_cgroup(node) / "agent"
        if agents_down and not cgroup.populated(group):
            away.add(node)
            continue
        _check(group, f"agent of {node}", agents.agent_log(layout, node))
        answer = agents.ask_socket(agents.admin_socket(layout, node), "/status")
        if answer is None or not answer.get("ready"):
            pending = ", ".join((answer or {}).get("pending") or [])
            return f"agent of {node}{': ' + pending if pending else ''}"
        enrolled |= {pod["instance"]: pod["state"] == "enabled" for pod in answer["pods"]}
    alive = [(key, pod) for key, pod in sorted(objects.items()) if key.kind == "Pod" and is_alive(pod)]
    asked = [(key, pod) for key, pod in alive if pod["spec"]["nodeName"] not in away]
    wrong = [key for key, pod in asked if wants_mesh(pod, objects) != enrolled.get(pod["metadata"]["uid"], False)]
    return f"enrolment of {len(wrong)} pod{'s' * (len(wrong) > 1)}: {_first(map(str, wrong))}" if wrong else ""


def wants_mesh(pod: Object, objects: Mapping[Key, Object]) -> bool:
    """Whether the labels ask for enrolment (Istio's rule: the pod's label wins over its namespace's)."""
    label = "istio.io/dataplane-mode"
    meta = pod["metadata"]
    own = (meta.get("labels") or {}).get(label)
    namespace = objects.get(Key("Namespace", "", meta["namespace"]), {}).get("metadata", {})
    inherited = (namespace.get("labels") or {}).get(label)
    return not pod["spec"].get("hostNetwork") and (own or inherited) == "ambient"


def why_unready(pod: Object) -> str:
    """A pod's name, and the reason its containers give."""
    meta, status = pod["metadata"], pod["status"]
    name = f"{meta['namespace']}/{meta['name']}"
    states = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for entry in states:
        for kind, detail in entry["state"].items():
            reason = detail.get("message") or detail.get("reason")
            if kind != "running" and reason and entry["state"] != {"terminated": {"exitCode": 0}}:
                return f"{name} (container {entry['name']}: {reason})"
    return f"{name} (not ready)" if states else f"{name} (not started)"


def _first(texts: Iterable[str]) -> str:
    found = list(texts)
    return ", ".join(found[:3]) + (f", and {len(found) - 3} more" if len(found) > 3 else "")
