"""Make the measurements: prepare the columns, check their paths, then round after round, one column after the other."""

from __future__ import annotations

import functools
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.bench import figures, load, usage
from deploy.bench.columns import Column, Lane, Setting
from deploy.bench.fault import BenchError
from deploy.bench.figures import Figure, Sample
from deploy.bench.ground import ground
from deploy.bench.mesh import APP_PORT, bring_up
from deploy.bench.usage import Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run. `seconds` is per measurement; `held` the connections that memory is read with."""

    columns: tuple[Column, ...]
    figures: tuple[Figure, ...]
    baseline: str
    rounds: int
    seconds: float
    threads: int
    held: int
    kind: str = "tunnel"
    together: bool = False  # client and server on one node
    agent: tuple[str, ...] = ()  # more arguments of our agents
    blocking: bool = False  # the load's sockets block, and each has a thread

    @property
    def steps(self) -> int:
        """Measurements and preparations, for a progress bar."""
        return len(self.columns) * (self.rounds * len(self.figures) + 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Memory of a column's proxies (both ends together): before any load, and with open connections after it."""

    idle: Memory
    held: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All that a run found; `paths` is what each column's proxies said about the connections that were checked."""

    plan: Plan
    samples: tuple[Sample, ...]
    memory: Mapping[str, Holding]
    paths: Mapping[str, Mapping[str, str]]
    machine: Mapping[str, str | int]


Step = Callable[[str], None]


def measure(plan: Plan, number: int, step: Step) -> Outcome:
    """Run the whole plan (number: this process' pid); `step` is called before each measurement with what it is."""
    with _prepared(plan, number, step) as (program, lanes):
        idle: dict[str, Memory] = {}
        paths: dict[str, Mapping[str, str]] = {}
        memory: dict[str, Holding] = {}
        samples: list[Sample] = []
        for name, lane in lanes.items():
            idle[name] = usage.read_memory(lane.proxies)
            with _about(name):
                paths[name] = lane.check_path(program)
        for turn, figure, name in figures.turns(plan.rounds, plan.figures, tuple(lanes)):
            step(f"round {turn + 1} of {plan.rounds}: {figure.name}, {name}")
            with _about(name):
                values = _once(program, lanes[name], figure, plan)
            samples.append(Sample(round=turn, figure=figure.name, column=name, values=values))
        for name, lane in lanes.items():
            step(f"memory with {plan.held} connections: {name}")
            with _about(name):
                memory[name] = Holding(idle=idle[name], held=_holding(program, lane, plan.held))
    return Outcome(plan=plan, samples=tuple(samples), memory=memory, paths=paths, machine=_machine())


@contextmanager
def _prepared(plan: Plan, number: int, step: Step) -> Iterator[tuple[Path, dict[str, Lane]]]:
    program = load.compiled()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gossamer-bench-")))
        site = stack.enter_context(ground(number, together=plan.together))
        bare = site.pair()
        mesh = functools.cache(lambda: bring_up(site, plan.agent))
        setting = Setting(
            ground=site,
            bare=bare,
            program=program,
            directory=directory,
            threads=plan.threads,
            mesh=mesh,
            blocking=plan.blocking,
        )
        stack.enter_context(load.serving(program, bare.server, APP_PORT, **setting.style))
        lanes = {}
        for column in plan.columns:
            step(f"preparing {column.name}")
            with _about(column.name):
                lanes[column.name] = column.prepare(setting, stack)
        yield program, lanes


def _once(program: Path, lane: Lane, figure: Figure, plan: Plan) -> dict[str, float]:
    options = {**figure.options, "seconds": plan.seconds, "blocking": "yes" if plan.blocking else "no"}
    before = usage.read_cpu(lane.proxies, lane.everything)
    answer = load.ask(program, lane.pair.client, figure.command, lane.dial.host, lane.dial.port, **options)
    return figures.values(answer, usage.read_cpu(lane.proxies, lane.everything).since(before))


def _holding(program: Path, lane: Lane, connections: int) -> Memory:
    with load.Held(program, lane.pair.client, lane.dial.host, lane.dial.port, connections):
        return usage.read_memory(lane.proxies)


@contextmanager
def _about(column: str) -> Iterator[None]:
    """Errors say which column they are about."""
    try:
        yield
    except BenchError as error:
        raise BenchError(f"{column}: {error}") from error


def _machine() -> dict[str, str | int]:
    cpus = Path("/proc/cpuinfo").read_text().split("model name", 1)[-1].splitlines()[0].lstrip("\t: ")
    return {"kernel": platform.release(), "cpus": len(os.sched_getaffinity(0)), "cpu": cpus}
