"""The mesh in the lab: the real agent on each node and the real controller, started as they are started anywhere."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deploy.lab import cgroup, launch
from deploy.lab.fabric import Machine
from deploy.lab.fault import LabError
from deploy.lab.file import replace, tail
from deploy.lab.layout import NETNS, Layout
from ztunnel.cli.client import Agent, AgentUnreachable

CONTROLLER_PORT = 15012
REPOSITORY = Path(__file__).resolve().parents[2]
_DRAIN = 20.0  # seconds an agent gets to end its connections
_TAKE_OVER = 60.0  # seconds an agent gets to start and take over

_ANSWER = 3.0  # seconds that a process has to answer a question
_libc = ctypes.CDLL(None, use_errno=True)


def python_env() -> dict[str, str]:
    """The environment of the lab's own Python processes."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "HOME", "BCC_KERNEL_SOURCE", "GOSSAMER_HEADERS")
        if name in os.environ
    }
    return kept | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8"}


def start_controller(layout: Layout, nodes: Iterable[str], *, arguments: Iterable[str] = ()) -> None:
    """Write a credential for each node and start the controller, with more arguments, if it does not run."""
    write_tokens(layout, nodes)
    group = layout.service_cgroup("controller")
    if cgroup.populated(group):
        return
    (layout.control / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
    (layout.control / "state").mkdir(mode=0o700, parents=True, exist_ok=True)
    ip4, _ = layout.control_addresses
    argv = [
        sys.executable, "-m", "controller",
        "--source", str(layout.cluster),
        "--state", str(layout.control / "state"),
        "--listen", f"{ip4}:{CONTROLLER_PORT}",
        "--tokens", str(layout.control / "tokens.json"),
        "--run", str(layout.control / "run"),
        "--dns-name", "istiod.istio-system.svc",
        "--dns-name", "istiod.istio-system.svc.cluster.local",
        "--dns-name", ip4,
        *arguments,
    ]  # fmt: skip
    launch.daemon(
        argv, cgroup=group, log=layout.logs / "controller.log", netns=NETNS / layout.control_netns, env=python_env()
    )


def write_tokens(layout: Layout, nodes: Iterable[str]) -> None:
    """A random bootstrap credential per node, for its agent alone; the controller gets the digests."""
    digests: dict[str, str] = {}
    for node in nodes:
        path = layout.node_dir(node) / "token"
        if not path.exists():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
        digests[node] = hashlib.sha256(path.read_bytes()).hexdigest()
    path = layout.control / "tokens.json"
    text = json.dumps(digests)
    if not path.exists() or path.read_text() != text:
        replace(path, text)


def start_agent(layout: Layout, node: Machine, *, arguments: Iterable[str] = (), beside: bool = False) -> None:
    """Start a node's agent if it does not run, with more arguments than those every agent gets. `beside`: also if one
    runs; it takes over from that one."""
    group = layout.node_cgroup(node.name) / "agent"
    if cgroup.populated(group) and not beside:
        return
    layout.agent_dir(node.name).mkdir(mode=0o700, parents=True, exist_ok=True)
    mount_bpf(layout.bpf(node.name))
    ip4, _ = layout.control_addresses
    argv = [
        sys.executable, "-m", "ztunnel",
        "--node", node.name,
        "--node-ip", node.address4,
        "--pods", str(layout.pod_records(node.name)),
        "--run", str(layout.agent_dir(node.name)),
        "--bpf", str(layout.bpf(node.name)),
        "--cgroup", str(layout.node_cgroup(node.name)),
        "--controller", f"{ip4}:{CONTROLLER_PORT}",
        "--root", str(layout.control / "state" / "ca.crt"),
        "--token", str(layout.node_dir(node.name) / "token"),
        *arguments,
    ]  # fmt: skip
    launch.daemon(argv, cgroup=group, log=agent_log(layout, node.name), netns=NETNS / node.netns, env=python_env())


def agent_log(layout: Layout, node: str) -> Path:
    return layout.node_dir(node) / "agent.log"


def mount_bpf(path: Path) -> None:
    """A bpf filesystem for one node's pins, in the machine's mount namespace; pods have another."""
    if os.path.ismount(path):
        return
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _libc.mount(b"bpf", os.fsencode(path), b"bpf", 0, b"mode=0700") != 0:
        raise LabError(f"cannot mount a bpf filesystem at {path}: {os.strerror(ctypes.get_errno())}")


def unmount_below(path: Path) -> None:
    """Unmount everything mounted below a directory, the deepest first."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((m for m in mounts if Path(m).is_relative_to(path)), key=len, reverse=True):
        if _libc.umount2(os.fsencode(mount), 2) != 0:  # MNT_DETACH
            raise LabError(f"cannot unmount {mount}: {os.strerror(ctypes.get_errno())}")


def replace_agent(layout: Layout, node: Machine, *, arguments: Iterable[str] = ()) -> None:
    """Start an agent that takes over from the one that runs, and wait until it has; LabError if it could not."""
    group = layout.node_cgroup(node.name) / "agent"
    before = set(cgroup.processes(group))
    start_agent(layout, node, arguments=arguments, beside=True)
    end = time.monotonic() + _TAKE_OVER
    while True:
        status = ask_socket(admin_socket(layout, node.name), "/status")
        if status is not None and status["pid"] not in before:
            return
        if not set(cgroup.processes(group)) - before or time.monotonic() > end:
            log = agent_log(layout, node.name)
            raise LabError(f"the new agent of {node.name} has not taken over; the end of its log:\n{tail(log)}")
        time.sleep(0.02)


def stop_agent(layout: Layout, node: str, *, kill: bool) -> bool:
    """End a node's agent: SIGTERM and time to drain, or SIGKILL. False if none ran."""
    group = layout.node_cgroup(node) / "agent"
    running = cgroup.processes(group)
    if not kill:
        for pid in running:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        end = time.monotonic() + _DRAIN
        while cgroup.populated(group) and time.monotonic() < end:
            time.sleep(0.02)
    cgroup.kill(group)
    return bool(running)


def ask_socket(path: Path, target: str) -> Any:
    """GET a JSON object from a process of the mesh over its unix socket; None if it does not answer."""
    try:
        return Agent(node="", socket=path).get(target, timeout=_ANSWER)
    except AgentUnreachable:
        return None


def admin_socket(layout: Layout, node: str) -> Path:
    return layout.agent_dir(node) / "admin.sock"


def controller_socket(layout: Layout) -> Path:
    return layout.control / "run" / "admin.sock"
