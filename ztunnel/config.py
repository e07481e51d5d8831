"""The agent's settings: arguments of `python -m ztunnel`, and the few that Kubernetes gives through the environment."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.model import canonical_ip

_DRAIN_SECONDS = 5.0
_MOST_THREADS = 64
SWITCH = ("on", "off")
REPLACED = ("exit", "wait")
LEVELS = ("debug", "info", "warn", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings, checked; `drain_seconds` is how long open connections may go on after SIGTERM, and after another
    agent has taken over; `replaced` what comes then."""

    node: str
    node_ip: str
    pods: Path
    run: Path
    bpf: Path
    cgroup: Path
    controller: str
    root: Path
    token: Path
    log_level: str = "info"
    drain_seconds: float = _DRAIN_SECONDS
    threads: int = 1
    direct: str = "on"
    direct_acceleration: str = "on"
    stay_awake: str = "on"
    replaced: str = "exit"
    unload: bool = False

    @property
    def accelerate(self) -> bool:
        """Wanted: of direct connections, and between application and agent."""
        return self.direct == "on" and self.direct_acceleration == "on"

    @property
    def agent_cgroup(self) -> Path:
        return self.cgroup / "agent"

    @property
    def kubelet_cgroup(self) -> Path:
        return self.cgroup / "kubelet"


def parse(arguments: Sequence[str], environment: Mapping[str, str], *, prog: str = "python -m ztunnel") -> Config:
    """Exits with a usage message if the arguments are wrong."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="The node agent: captures the connections of this node's enrolled pods and carries them through "
        "mutual-TLS tunnels. Runs in the node's network namespace, as root, in the cgroup CGROUP/agent.",
    )
    add = parser.add_argument
    add("--node", required=True, help="name of this node, as in spec.nodeName")
    add("--node-ip", required=True, type=_ip, help="address of this node")
    add("--pods", required=True, type=Path, help="directory with one <metadata.uid>.json per pod of this node")
    add("--run", required=True, type=Path, help="directory of this agent, and of one that runs and is to be replaced")
    add("--bpf", required=True, type=Path, help="directory on a bpf filesystem, for pins")
    add("--cgroup", required=True, type=Path, help="cgroup v2 directory with the children agent, kubelet, pods")
    add("--controller", required=True, type=_host_port, help="HOST:PORT of the controller")
    add("--root", required=True, type=Path, help="PEM file of the controller's root certificate")
    add("--token", required=True, type=Path, help="file with this node's bootstrap token")
    add("--log-level", default="info", choices=LEVELS, help="default: %(default)s")
    add(
        "--threads",
        type=_threads,
        default=default_threads(len(os.sched_getaffinity(0))),
        metavar="N",
        help="threads that carry the bytes of tunnels; a busy pod uses several (default: one per core that the agent "
        "may use, at most 4: %(default)s here)",
    )
    add(
        "--stay-awake",
        default="on",
        choices=SWITCH,
        help="let a thread whose next bytes come within microseconds look for them, as long as nobody else wants its "
        "core, instead of sleeping; off: for an agent with a CPU limit, where that time counts (default: %(default)s)",
    )
    add(
        "--direct",
        default="on",
        choices=SWITCH,
        help="let enrolled pods of this node talk from socket to socket, without tunnel, where policy permits it "
        "(default: %(default)s)",
    )
    add(
        "--direct-acceleration",
        default="on",
        choices=SWITCH,
        help="hand bytes past TCP where applications never wait in a receive: of direct connections, and between "
        "application and agent; see docs/direct.md (default: %(default)s)",
    )
    add(
        "--drain",
        type=_drain,
        metavar="SECONDS",
        help="how long open connections may go on when this agent is stopped or replaced (default: environment "
        f"CONNECTION_TERMINATION_DEADLINE, else TERMINATION_GRACE_PERIOD_SECONDS less 5, else {_DRAIN_SECONDS:g})",
    )
    add(
        "--replaced",
        default="exit",
        choices=REPLACED,
        help="when another agent with the same --run has taken over and connections have drained: exit, or wait for "
        "SIGTERM, for supervisors that start again what exits, as Kubernetes does (default: %(default)s)",
    )
    add("--unload", action="store_true", help="un-enrol all pods, detach and remove everything from the kernel, exit")
    settings = vars(parser.parse_args(arguments))
    drain = settings.pop("drain")
    try:
        default = drain_seconds(environment)
    except ValueError as error:
        parser.error(str(error))
    return Config(**settings, drain_seconds=default if drain is None else drain)


def default_threads(cores: int) -> int:
    """For so many cores: the applications need some too, and each pod's tunnels are as many as its threads."""
    return max(1, min(4, cores))


def drain_seconds(environment: Mapping[str, str]) -> float:
    """How long open connections may go on after SIGTERM (istio-facts §1.10): CONNECTION_TERMINATION_DEADLINE, else
    TERMINATION_GRACE_PERIOD_SECONDS minus 5 (minus 1 if it is 10 or less), else 5. ValueError names the variable."""
    explicit = _seconds(environment, "CONNECTION_TERMINATION_DEADLINE")
    if explicit is not None:
        return explicit
    grace = _seconds(environment, "TERMINATION_GRACE_PERIOD_SECONDS")
    if grace is None:
        return _DRAIN_SECONDS
    return max(0.0, grace - (1.0 if grace <= 10 else 5.0))


def _seconds(environment: Mapping[str, str], name: str) -> float | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    try:
        return _drain(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"environment variable {name}: {error}") from None


def _drain(text: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to a day")
    return seconds


def _threads(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads from 1 to {_MOST_THREADS}")
    return int(text)


def _ip(text: str) -> str:
    try:
        return canonical_ip(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _host_port(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise argparse.ArgumentTypeError(f"{text!r}: an IPv6 address stands in brackets: [{host}]:{port}")
    return text
