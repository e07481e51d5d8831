"""Finding agents, and asking one a question over its unix socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LABS = Path("/run/gossamer")  # <lab>/nodes/<node>/agent/admin.sock
TIMEOUT_SECONDS = 10.0


class AgentUnreachable(Exception):
    """No agent answered; the text names the socket and the cure."""


class Usage(Exception):
    """The command line asks for something that is not there; the text says what there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One node's agent. `node` is empty if only the socket was given."""

    node: str
    socket: Path

    def get(self, path: str, *, timeout: float = TIMEOUT_SECONDS) -> dict[str, Any]:
        """The JSON object at a path of the admin socket. AgentUnreachable if there is no good answer in `timeout` s."""
        connection = http.client.HTTPConnection("localhost", timeout=timeout)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(timeout)
            connection.sock.connect(str(self.socket))
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise AgentUnreachable(self._unreachable(error, timeout)) from error
        finally:
            connection.close()
        if response.status != 200:
            said = body.decode(errors="replace").strip()[:200]
            raise AgentUnreachable(f"{self.socket}: the agent answered GET {path} with {response.status}: {said}")
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise AgentUnreachable(f"{self.socket}: GET {path}: the answer is no JSON: {error}") from error
        if not isinstance(answer, dict):
            raise AgentUnreachable(f"{self.socket}: GET {path}: the answer is no JSON object")
        return answer

    def _unreachable(self, error: Exception, timeout: float) -> str:
        if isinstance(error, PermissionError):
            cure = "the socket belongs to root; run this with sudo"
        elif isinstance(error, TimeoutError):
            cure = f"it took longer than {timeout:g} s; is the agent stopped or overloaded?"
        else:
            of = f" of node {self.node}" if self.node else ""
            cure = f"is the agent{of} running? (`gossamer lab status` says; --socket names another socket)"
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        return f"no agent answers at {self.socket}: {cause}; {cure}"


def find_agents(
    *,
    socket_path: str | None,
    lab: str | None,
    node: str | None,
    environment: Mapping[str, str] = os.environ,
    labs: Path = LABS,
) -> list[Agent]:
    """The agents that the options mean: one socket, one node of a lab, or every node of a lab.

    Options win over the environment's GOSSAMER_SOCKET. Without a lab's name: the only one there is, else `lab`.
    Usage: options that contradict each other, or a node that the lab has not. AgentUnreachable: no such lab is up.
    """
    if socket_path is not None and (lab is not None or node is not None):
        raise Usage("--socket names one agent; --lab and --node find agents of a lab: give one or the other")
    if socket_path is None and lab is None and node is None:
        socket_path = environment.get("GOSSAMER_SOCKET") or None
    if socket_path is not None:
        return [Agent(node="", socket=Path(socket_path))]
    try:
        return _of_lab(labs, lab, node)
    except PermissionError as error:
        raise AgentUnreachable(f"{error.filename}: {error.strerror}; labs belong to root; run this with sudo") from None


def _of_lab(labs: Path, lab: str | None, node: str | None) -> list[Agent]:
    there = sorted(p.name for p in labs.iterdir() if (p / "nodes").is_dir()) if labs.is_dir() else []
    lab = lab or (there[0] if len(there) == 1 else "lab")
    if lab not in there:
        several = f" (there are {', '.join(there)}: choose one with --lab)" if there else ""
        raise AgentUnreachable(
            f"no lab named {lab!r} is up: {labs / lab / 'nodes'} does not exist{several}; "
            "bring one up with `make lab` or `gossamer lab up -f FILE`, or name an agent's socket with --socket"
        )
    nodes = sorted(p.name for p in (labs / lab / "nodes").iterdir() if p.is_dir())
    if node is not None and node not in nodes:
        raise Usage(f"lab {lab!r} has no node {node!r}; it has {', '.join(nodes) or 'none'}")
    chosen = [node] if node is not None else nodes
    return [Agent(node=n, socket=labs / lab / "nodes" / n / "agent" / "admin.sock") for n in chosen]
