"""`gossamer soak`: a lab of its own, waves of connections, each with its disturbance; a table, and an exit status."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

from deploy.bench.amount import positive, whole
from deploy.bench.conduct import Sheet, Step, conduct, print_json
from deploy.bench.fault import BenchError
from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key
from deploy.soak import leak, peer
from deploy.soak.leak import Held
from deploy.soak.wave import DIRECT, TUNNELLED, Disturbance, Line, Wave, wave

_PORT = 9000
_PROGRAM = Path(peer.__file__).read_text()
_NODES = ("n1", "n2")
_PODS = {"client": "n1", "server": "n1", "far": "n2"}
_AGENT = ("--direct", "on", "--log-level", "warn")  # and what --agent says
_WAVE_S = 150.0  # in which every connection has ended, or never will
_DEADLINE_S = 60.0


def register(subparsers: Any) -> None:
    """Add `soak` to the command line; the parsed arguments' `run` takes them and returns the exit status."""
    text = "connections of every kind, byte for byte, while policies flap and agents die"
    parser = subparsers.add_parser("soak", help=text, description=f"In a lab of its own: {text}. Needs root.")
    add = parser.add_argument
    add("--minutes", type=positive, default=10.0, metavar="N", help="at least; the wave under way is finished (10)")
    add(
        "--connections",
        type=whole(2, 10_000),
        default=200,
        metavar="N",
        help="at a time, half of them direct, half tunnelled (200)",
    )
    add("--seed", type=int, metavar="N", help="of what is random (another one each time; it is printed)")
    add("--agent", type=shlex.split, default=[], metavar="ARGUMENTS", help="more arguments of the agents, as one word")
    add("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0: all was right; 1: something was not, or could not be done; 130: Ctrl-C."""
    seed = SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    findings: list[Findings] = []

    def show(found: Findings) -> None:
        findings.append(found)
        print_json(document(found)) if arguments.output == "json" else sheet(found).show()

    seconds, agent = 60 * arguments.minutes, (*_AGENT, *arguments.agent)
    status = conduct(
        "gossamer soak",
        int(seconds / 10) + 2,
        lambda step: soak(seed, seconds, arguments.connections, step, agent=agent),
        show,
    )
    return status or int(any(found.faults for found in findings))


@dataclass(slots=True, kw_only=True)
class Findings:
    """Connections by disturbance, path and how they ended; `faults` in words."""

    seed: int
    ended: Counter[tuple[Disturbance, str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    before: dict[str, Held] = field(default_factory=dict)
    after: dict[str, Held] = field(default_factory=dict)


def soak(seed: int, seconds: float, connections: int, step: Step, *, agent: Sequence[str] = _AGENT) -> Findings:
    """Make the lab, and waves until the time is up, at least one with each disturbance. `agent`: its arguments."""
    found, rng, seeds = Findings(seed=seed), Random(seed), itertools.count(1)
    lab = Lab(f"soak{os.getpid()}")
    try:
        step("bringing up a lab")
        lab.up({"soak.yaml": _cluster()})
        for node in _NODES:
            lab.restart_agent(node, arguments=agent)
        near, far = _addresses(lab, "server"), _addresses(lab, "far")
        # The first wave fills pools and heaps; what is held after it is what is held when idle.
        kinds = itertools.chain((Disturbance.NONE,), itertools.cycle(Disturbance))
        end = time.monotonic() + seconds
        for number, kind in enumerate(kinds):
            if number > len(Disturbance) and time.monotonic() > end:
                break
            step(f"seed {seed}, wave {number}: {connections} connections, {kind.value}; {len(found.faults)} faults")
            _until("the direct path to be open", lambda: _is_direct(lab, near[0], next(seeds)))
            _run(lab, wave(kind, rng, seeds, near, far, each=connections // 2), found, agent)
            if number == 0 or kind is Disturbance.KILLED:  # another process, from now on
                found.before = {node: leak.idle(lab, node, None) for node in _NODES}
        step("looking for what is left")
        found.after = {node: leak.idle(lab, node, found.before[node]) for node in _NODES}
        for node in _NODES:
            found.faults += [f"agent of {node}: {what}" for what in leak.grown(found.before[node], found.after[node])]
            if "Traceback" in lab.logs(f"node/{node}").read_text():
                found.faults.append(f"agent of {node}: a traceback in its log")
    finally:
        lab.down()
    return found


def _run(lab: Lab, made: Wave, found: Findings, agent: Sequence[str]) -> None:
    """One wave, and its disturbance meanwhile."""
    marks = {name: lab.logs(name, namespace="soak").stat().st_size for name in ("server", "far")}
    clients = Clients(lab, made)
    try:
        clients.start()
        _disturb(lab, made, clients, agent)
        clients.release()
        clients.join(_WAVE_S)
    finally:
        clients.close()
    for seed, path in made.paths.items():
        line = clients.last.get(seed)
        fault = made.fault(line, seed)
        if fault:
            found.faults.append(f"{path}, {made.disturbance.value}: {fault} {made.specs[seed]}")
        whole = line is not None and made.is_whole(line, seed)
        how = "faulty" if fault else "whole" if whole else "reset" if made.specs[seed].get("reset") else "cut"
        found.ended[made.disturbance, path, how] += 1
    for name, mark in marks.items():
        for line in _served(lab, name, mark):
            if not line["exact"]:
                found.faults.append(f"{name} got wrong bytes, {made.disturbance.value}: {line}")


class Clients:
    """The client process of a wave; `last` is what it told last of each connection that is over, `flowing` are those
    whose first bytes have come."""

    def __init__(self, lab: Lab, made: Wave) -> None:
        self.last: dict[int, Line] = {}
        self.flowing: set[int] = set()
        specs = [spec | {"port": _PORT} for spec in made.specs.values()]
        self._count = len(specs)
        self._process: subprocess.Popen[str] = lab.popen(
            "client", _python("talk", json.dumps(specs)), namespace="soak", pipe_input=True
        )
        self._begun = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        """Returns when bytes flow."""
        self._reader.start()
        self._begun.wait(_DEADLINE_S)

    def release(self) -> None:
        """Those that hold back begin to read."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # all are over, and nobody held back
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def join(self, seconds: float) -> None:
        """Until all are over, or the time is."""
        self._reader.join(seconds)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line = json.loads(text)
            self._begun.set()
            if line["event"] == "flowing":
                self.flowing.add(line["seed"])
            else:
                self.last[line["seed"]] = line
            if len(self.last) == self._count:
                return


def _disturb(lab: Lab, made: Wave, clients: Clients, agent: Sequence[str]) -> None:
    kind = made.disturbance
    if kind is Disturbance.POLICIES:
        for _ in range(5):
            lab.apply({"policy.yaml": _deny("nobody")})
            lab.delete([_POLICY])
    elif kind is Disturbance.REVOKED:
        # By what the clients say: the agent hears of direct connections twice a second, and lists none before.
        _until("endless connections to flow", lambda: made.endless <= clients.flowing | clients.last.keys())
        lab.apply({"policy.yaml": _deny("client")})
        _until("direct connections to be ended", lambda: made.endless <= clients.last.keys())
        lab.delete([_POLICY])
    elif kind is Disturbance.KILLED:
        lab.kill_agent("n1")
        lab.restart_agent("n1", arguments=agent)


def _is_direct(lab: Lab, ip: str, seed: int) -> bool:
    """Whether a new connection is; by what the agent lists."""
    specs = [{"seed": seed, "to": ip, "port": _PORT, "mode": "X", "up": peer.ENDLESS, "down": peer.ENDLESS}]
    process = lab.popen("client", _python("talk", json.dumps(specs)), namespace="soak", pipe_input=True)
    try:
        assert process.stdout is not None
        if json.loads(process.stdout.readline())["event"] != "flowing":
            return False
        end = time.monotonic() + 2.0
        while not (listed := _listed(lab, "DIRECT")) and time.monotonic() < end:
            time.sleep(0.1)
        return bool(listed)
    finally:
        process.kill()
        process.communicate()


def _listed(lab: Lab, protocol: str) -> list[dict[str, Any]]:
    answer = leak.ask(lab, "n1", "/connections") or {"connections": []}
    return [one for one in answer["connections"] if one["protocol"] == protocol]


def _served(lab: Lab, name: str, mark: int) -> Iterator[Line]:
    """What a server has told of connections that ended since its log was `mark` bytes long."""
    with lab.logs(name, namespace="soak").open() as log:
        log.seek(mark)
        for text in log:
            if text.startswith('{"event": "served"') and text.endswith("\n"):
                yield json.loads(text)


def _addresses(lab: Lab, name: str) -> list[str]:
    return [entry["ip"] for entry in lab.pod(name, "soak")["status"]["podIPs"]]


def _python(*arguments: str) -> list[str]:
    return ["/usr/bin/python3", "-S", "-u", "-c", _PROGRAM, *arguments]


def _until(what: str, is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + _DEADLINE_S
    while not is_so():
        if time.monotonic() > end:
            raise BenchError(f"waited {_DEADLINE_S:g} s for {what}")
        time.sleep(0.1)


# What the lab is made of


_POLICY = Key("AuthorizationPolicy", "soak", "soak")


def _cluster() -> str:
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in _NODES
    ]
    labels = {"istio.io/dataplane-mode": "ambient"}
    objects.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "soak", "labels": labels}})
    for name, node in _PODS.items():
        meta = {"namespace": "soak", "name": name}
        container = {"name": "main", "command": _python("serve", str(_PORT))}
        container["readinessProbe"] = {"tcpSocket": {"port": _PORT}, "periodSeconds": 1}
        spec = {"nodeName": node, "serviceAccountName": name, "containers": [container]}
        objects.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
        objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": meta | {"labels": {"app": name}}, "spec": spec})
    return "".join(f"---\n{json.dumps(one)}\n" for one in objects)


def _deny(account: str) -> str:
    """A policy that keeps a service account from the pod beside the client."""
    rule = {"from": [{"source": {"principals": [f"cluster.local/ns/soak/sa/{account}"]}}]}
    return json.dumps(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"namespace": "soak", "name": "soak"},
            "spec": {"selector": {"matchLabels": {"app": "server"}}, "action": "DENY", "rules": [rule]},
        }
    )


# What is shown


def document(found: Findings) -> dict[str, Any]:
    """Everything. Keys are stable."""
    ended = [
        {"disturbance": kind.name, "path": path, "how": how, "connections": count}
        for (kind, path, how), count in found.ended.items()
    ]
    return {"soak": not found.faults, "seed": found.seed, "ended": ended, "faults": found.faults}


def sheet(found: Findings) -> Sheet:
    """The table."""
    hows = ("whole", "cut", "reset", "faulty")
    rows = [
        (f"{path}, {kind.value}", *(f"{found.ended[kind, path, how]:,}" for how in hows))
        for kind in Disturbance
        for path in (DIRECT, TUNNELLED)
    ]
    faults = "\n".join(found.faults[:20]) or "Every byte that arrived was right, and nothing is left behind."
    return Sheet(title="gossamer soak", columns=hows, rows=tuple(rows), note=f"Seed {found.seed}. {faults}")
