"""What agents and kernel hold when nothing is open: descriptors, memory, entries of maps that belong to connections."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.lab import agents, cgroup
from deploy.lab.cluster import Lab

# Maps with entries of single connections; those of pods and policies are none of our business here.
_MAPS = ("directs", "captured", "flows", "loops", "clients", "legs", "consumed", "accelerated")
_MORE_DESCRIPTORS, _MORE_MIB = 16, 24.0  # than once before: pools keep sockets, heaps keep pages
_DEADLINE_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Of one node's agent and its kernel side."""

    descriptors: int
    memory_mib: float  # PSS
    entries: dict[str, int]  # by map


def held(lab: Lab, node: str) -> Held:
    """Now."""
    pids = cgroup.processes(lab.layout.node_cgroup(node) / "agent")
    described = ask(lab, node, "/bpf") or {"maps": []}
    return Held(
        descriptors=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
        memory_mib=sum(_pss(pid) for pid in pids),
        entries={one["name"]: one["entries"] for one in described["maps"] if one["name"] in _MAPS and one["entries"]},
    )


def grown(before: Held, after: Held) -> list[str]:
    """What has grown, in words."""
    found = [
        f"map {name}: {before.entries.get(name, 0)} entries before, {count} after"
        for name, count in after.entries.items()
        if count > before.entries.get(name, 0)
    ]
    if after.descriptors > before.descriptors + _MORE_DESCRIPTORS:
        found.append(f"descriptors: {before.descriptors} before, {after.descriptors} after")
    if after.memory_mib > before.memory_mib + _MORE_MIB:
        found.append(f"memory: {before.memory_mib:.0f} MiB before, {after.memory_mib:.0f} MiB after")
    return found


def idle(lab: Lab, node: str, before: Held | None) -> Held:
    """When no connection is listed any more, and nothing has grown, or after a while all the same."""
    end = time.monotonic() + _DEADLINE_S
    while True:
        listed: Any = ask(lab, node, "/connections")
        found = held(lab, node)
        is_idle = listed is not None and not listed["connections"] and not found.entries
        if (is_idle and (before is None or not grown(before, found))) or time.monotonic() > end:
            return found
        time.sleep(0.5)


def ask(lab: Lab, node: str, target: str) -> Any:
    """What a node's agent says; None if it does not answer."""
    return agents.ask_socket(agents.admin_socket(lab.layout, node), target)


def _pss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
