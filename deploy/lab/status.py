"""What there is in a lab, as data (`-o json`) and as tables."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from deploy.lab import agents, cgroup, fabric
from deploy.lab.cluster import Lab
from deploy.lab.endpoints import is_ready
from deploy.lab.manifest import Object
from mesh.identity import SpiffeId

Json = dict[str, Any]


def collect(lab: Lab) -> Json:
    """The lab's state. `enrolled` is null where no agent says; shapes are stable, fields are only added."""
    layout, nodes = lab.layout, lab.nodes()
    cut = fabric.partitioned(layout, nodes)
    answers = {node.name: agents.ask_socket(agents.admin_socket(layout, node.name), "/status") for node in nodes}
    said: dict[str, Json] = {}
    for answer in answers.values():
        said |= {pod["instance"]: pod for pod in (answer or {}).get("pods") or []}
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
    """Objects that the controller (or a node) does not accept, each with its conditions that are not true."""
    answer = agents.ask_socket(agents.controller_socket(lab.layout), "/status") or {}
    found = []
    for item in answer.get("objects") or []:
        wrong = [condition for condition in item["conditions"] if condition["status"] != "True"]
        if wrong:
            found.append({name: item[name] for name in ("kind", "namespace", "name")} | {"conditions": wrong})
    return found


def _state(running: bool) -> str:
    return "running" if running else "stopped"


def _pod(lab: Lab, pod: Object, said: dict[str, Json]) -> Json:
    meta, spec, status = pod["metadata"], pod["spec"], pod["status"]
    account = spec.get("serviceAccountName", "default")
    known = said.get(meta["uid"])
    return {
        "namespace": meta["namespace"],
        "name": meta["name"],
        "uid": meta["uid"],
        "ip": status["podIP"],
        "ips": [entry["ip"] for entry in status["podIPs"]],
        "node": spec["nodeName"],
        "netns": str(lab.netns(pod)),
        "identity": str(SpiffeId("cluster.local", meta["namespace"], account)),
        "enrolled": known["state"] == "enabled" if known else (False if lab.has_agents and said else None),
        "ready": is_ready(pod),
        "phase": status["phase"],
        "restarts": sum(entry["restartCount"] for entry in status.get("containerStatuses") or []),
    }


def tables(state: Json) -> RenderableType:
    nodes = Table(
        title=f"lab {state['name']}: nodes", title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for column in ("node", "address", "pods", "kubelet", "agent", "fabric"):
        nodes.add_column(column)
    for node in state["nodes"]:
        agent = "-" if node["agent"] is None else node["agent"]
        if node["agent"] == "running":
            agent = "ready" if node["agent_ready"] else "[yellow]not ready[/]"
        nodes.add_row(
            node["name"],
            node["addresses"][0],
            node["pod_cidrs"][0],
            _coloured(node["kubelet"]),
            _coloured(agent),
            "[red]partitioned[/]" if node["partitioned"] else "connected",
        )
    pods = Table(title="pods", title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("namespace", "name", "ip", "node", "identity", "enrolled", "ready", "restarts"):
        long = column in ("name", "identity")  # only these give way on a narrow terminal
        justify = "right" if column == "restarts" else "left"
        pods.add_column(column, no_wrap=not long, overflow="fold", justify=justify)
    for pod in state["pods"]:
        pods.add_row(
            pod["namespace"],
            pod["name"],
            pod["ip"],
            pod["node"],
            pod["identity"].removeprefix("spiffe://cluster.local/"),
            {True: "[green]yes[/]", False: "no", None: "-"}[pod["enrolled"]],
            "[green]yes[/]" if pod["ready"] else f"[yellow]no ({pod['phase']})[/]",
            str(pod["restarts"]),
        )
    return Group(nodes, pods, *_attention(state))


def _attention(state: Json) -> list[RenderableType]:
    if not state["refused"]:
        return []
    table = Table(
        title="objects that are not in force",
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("object", "condition", "why"):
        table.add_column(column)
    for item in state["refused"]:
        name = "/".join(filter(None, (item["namespace"], item["name"])))
        for condition in item["conditions"]:
            table.add_row(f"{item['kind']} {name}", condition["type"], escape(condition.get("message") or ""))
    return [table]


def _coloured(state: str) -> str:
    return f"[red]{state}[/]" if state == "stopped" else state
