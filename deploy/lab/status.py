"""What there is in a lab, as data (`-o json`) and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deploy.lab import agents, cgroup, fabric
from deploy.lab.cluster import Lab
from deploy.lab.endpoints import is_ready
from deploy.lab.manifest import Key, Object
from mesh.identity import SpiffeId
from ztunnel.cli.tables import Column, Table, table, text

Json = dict[str, Any]


def collect(lab: Lab) -> Json:
    """The lab's state. `enrolled` is null where no agent says; shapes are stable, fields are only added."""
    layout, nodes = lab.layout, lab.nodes()
    cut = fabric.partitioned(layout, nodes)
    answers = {node.name: agents.ask_socket(agents.admin_socket(layout, node.name), "/status") for node in nodes}
    said = {
        node: {pod["instance"]: pod["state"] for pod in answer.get("pods") or []}
        for node, answer in answers.items()
        if answer is not None
    }
    listed = [
        {
            "name": node.name,
            "addresses": [node.address4, node.address6],
            "pod_cidrs": [node.pods4, node.pods6],
            "netns": node.netns,
            "kubelet": _state(cgroup.populated(layout.node_cgroup(node.name) / "kubelet")),
            "agent": _state(cgroup.populated(layout.node_cgroup(node.name) / "agent")) if lab.has_agents else None,
            "agent_ready": bool((answers[node.name] or {}).get("ready")) if lab.has_agents else None,
            "partitioned": node.name in cut,
        }
        for node in nodes
    ]
    controller = _state(cgroup.populated(layout.service_cgroup("controller"))) if lab.has_agents else None
    return {
        "name": lab.name,
        "controller": controller,
        "nodes": listed,
        "pods": [_pod(lab, pod, said) for pod in lab.pods()],
        "refused": refused(lab) if lab.has_agents else [],
    }


def refused(lab: Lab) -> list[Json]:
    """Objects that are not in force as they are written, each with the conditions that say why."""
    return not_in_force(controlled(lab))


def controlled(lab: Lab) -> list[Json]:
    """The objects that the controller has seen, each with its conditions; none if it does not answer."""
    answer = agents.ask_socket(agents.controller_socket(lab.layout), "/status") or {}
    return list(answer.get("objects") or [])


def not_in_force(objects: Iterable[Json]) -> list[Json]:
    """Of the controller's objects those that it or a node does not accept, or takes only in part: then a condition is
    true for another reason than acceptance (Istio's `UnsupportedValue`, a principal that never matches)."""
    found = []
    for item in objects:
        wrong = [c for c in item["conditions"] if c["status"] != "True" or c["reason"] != "Accepted"]
        if wrong:
            found.append({name: item[name] for name in ("kind", "namespace", "name")} | {"conditions": wrong})
    return found


def _state(running: bool) -> str:
    return "running" if running else "stopped"


def _pod(lab: Lab, pod: Object, said: Mapping[str, Mapping[str, str]]) -> Json:
    """`said`: by node, the state of each pod that its agent knows; a node whose agent says nothing is not in it."""
    meta, spec, status = pod["metadata"], pod["spec"], pod["status"]
    account = spec.get("serviceAccountName", "default")
    known = said.get(spec["nodeName"])
    return {
        "namespace": meta["namespace"],
        "name": meta["name"],
        "uid": meta["uid"],
        "ip": status["podIP"],
        "ips": [entry["ip"] for entry in status["podIPs"]],
        "node": spec["nodeName"],
        "netns": str(lab.netns(pod)),
        "identity": str(SpiffeId("cluster.local", meta["namespace"], account)),
        "enrolled": None if known is None else known.get(meta["uid"]) == "enabled",
        "ready": is_ready(pod),
        "phase": status["phase"],
        "restarts": sum(entry["restartCount"] for entry in status.get("containerStatuses") or []),
    }


def tables(state: Json) -> list[Table]:
    """What `collect` found, for people."""
    refused = [
        {"object": str(Key(item["kind"], item["namespace"], item["name"]))} | condition
        for item in state["refused"]
        for condition in item["conditions"]
    ]
    return [
        table(_NODES, state["nodes"], title=f"lab {state['name']}: nodes"),
        table(_PODS, state["pods"], title="pods", note="none"),
        table(_REFUSED, refused, title="objects that are not in force as written"),
    ]


def _agent(node: Json) -> str:
    if node["agent"] == "running":
        return "ready" if node["agent_ready"] else "not ready"
    return node["agent"] or "-"


_NODES = (
    Column("NODE", text("name")),
    Column("ADDRESS", lambda node: node["addresses"][0]),
    Column("PODS", lambda node: node["pod_cidrs"][0], spare=1),
    Column("KUBELET", text("kubelet")),
    Column("AGENT", _agent),
    Column("FABRIC", lambda node: "partitioned" if node["partitioned"] else "connected"),
)
_PODS = (
    Column("NAMESPACE", text("namespace"), spare=1),  # the identity has it
    Column("NAME", text("name"), folds=True),
    Column("IP", text("ip"), spare=2),
    Column("NODE", text("node")),
    Column("IDENTITY", lambda pod: pod["identity"].removeprefix("spiffe://cluster.local/")),
    Column("ENROLLED", lambda pod: {True: "yes", False: "no", None: "-"}[pod["enrolled"]], colourless=True),
    Column("READY", lambda pod: "yes" if pod["ready"] else f"no ({pod['phase']})"),
    Column("RESTARTS", text("restarts"), right=True, spare=3),
)
_REFUSED = (
    Column("OBJECT", text("object"), folds=True),
    Column("CONDITION", text("type")),
    Column("WHY", text("message"), folds=True),
)
