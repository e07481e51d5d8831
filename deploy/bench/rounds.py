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
from deploy.bench.awake import awake
from deploy.bench.columns import Column, Lane, Setting
from deploy.bench.fault import BenchError
from deploy.bench.figures import Figure, Sample
from deploy.bench.ground import ground
from deploy.bench.mesh import APP_PORT, bring_up
from deploy.bench.usage import Memory

_HELD_BY_A_POD = 2500  # connections; for more there are more pods


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run. `seconds` is per measurement; `held` the numbers of connections that memory is read with."""

    columns: tuple[Column, ...]
    figures: tuple[Figure, ...]
    baseline: str
    rounds: int
    seconds: float
    threads: int
    held: tuple[int, ...]
    kind: str = "tunnel"
    together: bool = False  # client and server on one node
    agent: tuple[str, ...] = ()  # more arguments of our agents
    blocking: bool = False  # the load's sockets block, and each has a thread
    cpu: int | None = None  # the load's, both ends of it
    awake: bool = False  # no CPU halts meanwhile
    pairs: int = 1  # enrolled pairs of pods, at least

    @property
    def style(self) -> dict[str, str]:
        """Options of the load's server, and of clients that are measured."""
        pinned = {} if self.cpu is None else {"cpu": str(self.cpu)}
        return {"blocking": "yes" if self.blocking else "no", **pinned}

    @property
    def turns(self) -> tuple[tuple[int, Figure, str], ...]:
        """(round, figure, column), in their order."""
        return tuple(figures.turns(self.rounds, self.figures, [column.name for column in self.columns]))

    @property
    def steps(self) -> int:
        """Measurements and preparations, for a progress bar."""
        return len(self.turns) + sum(1 + len(self.held_by(column)) for column in self.columns)

    @property
    def neighbours(self) -> int:
        """Enrolled pairs beside the first that it takes to hold so many connections."""
        return max(self.pairs, -(-max(self.held, default=0) // _HELD_BY_A_POD)) - 1

    def held_by(self, column: Column) -> tuple[int, ...]:
        """Those of `held` that this column's processes have descriptors for."""
        return tuple(count for count in self.held if count <= column.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Memory of a column's proxies (both ends together): before any load, then with open connections, by their number;
    or why there were not so many."""

    idle: Memory
    held: Mapping[int, Memory | str]


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
    with prepared(plan, number, step) as (program, lanes):
        idle: dict[str, Memory] = {}
        paths: dict[str, Mapping[str, str]] = {}
        memory: dict[str, Holding] = {}
        samples: list[Sample] = []
        for name, lane in lanes.items():
            idle[name] = usage.read_memory(lane.proxies)
            with about(name):
                paths[name] = lane.check_path(program)
        for column in plan.columns:  # before the rounds: what they leave behind in a heap is no connection's
            held: dict[int, Memory | str] = {}
            for count in plan.held_by(column):
                step(f"memory with {count} connections: {column.name}")
                with about(column.name):
                    held[count] = holding(program, lanes[column.name], count)
            memory[column.name] = Holding(idle=idle[column.name], held=held)
        for turn, figure, name in plan.turns:
            step(f"round {turn + 1} of {plan.rounds}: {figure.name}, {name}")
            with about(name):
                values = once(program, lanes[name], figure, plan)
            samples.append(Sample(round=turn, figure=figure.name, column=name, values=values))
    return Outcome(plan=plan, samples=tuple(samples), memory=memory, paths=paths, machine=machine())


@contextmanager
def prepared(plan: Plan, number: int, step: Step) -> Iterator[tuple[Path, dict[str, Lane]]]:
    """The load program, and every column of the plan, ready to be measured; all of it gone afterwards."""
    program = load.compiled()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gossamer-bench-")))
        site = stack.enter_context(ground(number, together=plan.together))
        bare = site.pair()
        if plan.awake:
            stack.enter_context(awake(site.layout.cgroup / "awake"))
        arguments = ("--threads", str(plan.threads), *plan.agent)
        mesh = functools.cache(lambda: bring_up(site, arguments, neighbours=plan.neighbours))
        setting = Setting(
            ground=site,
            bare=bare,
            program=program,
            directory=directory,
            threads=plan.threads,
            mesh=mesh,
            style=plan.style,
        )
        stack.enter_context(load.serving(program, bare.server, APP_PORT, **plan.style))
        lanes = {}
        for column in plan.columns:
            step(f"preparing {column.name}")
            with about(column.name):
                lanes[column.name] = column.prepare(setting, stack)
        yield program, lanes


def once(program: Path, lane: Lane, figure: Figure, plan: Plan) -> dict[str, float]:
    """One measurement: the metrics of the figure."""
    seconds = figure.seconds or plan.seconds
    options = {**figure.options, "seconds": seconds, **plan.style}
    before = usage.read_cpu(lane.proxies, lane.everything)
    answer = load.ask(program, lane.pair.client, figure.command, lane.dial.host, lane.dial.port, **options)
    return figures.values(answer, usage.read_cpu(lane.proxies, lane.everything).since(before))


def holding(program: Path, lane: Lane, connections: int) -> Memory | str:
    """Memory of the proxies with so many connections open; or why they were refused."""
    try:
        with held_open(program, lane, connections):
            return usage.read_memory(lane.proxies)
    except load.Broken as error:
        return str(error)


@contextmanager
def held_open(program: Path, lane: Lane, connections: int) -> Iterator[None]:
    """Meanwhile so many connections are open, evenly from all callers that it takes. load.Broken if they are not, with
    what the proxies say."""
    callers = lane.callers[: max(1, -(-connections // _HELD_BY_A_POD))]
    with ExitStack() as stack:
        for index, caller in enumerate(callers):
            share = connections * (index + 1) // len(callers) - connections * index // len(callers)
            held = load.Held(program, caller.seat, caller.dial.host, caller.dial.port, share)
            try:
                stack.enter_context(held)
            except load.Broken as error:
                raise load.Broken("; ".join(filter(None, (str(error), lane.refusals())))) from error
        yield


@contextmanager
def about(column: str) -> Iterator[None]:
    """Errors say which column they are about."""
    try:
        yield
    except BenchError as error:
        raise BenchError(f"{column}: {error}") from error


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    cpus = Path("/proc/cpuinfo").read_text().split("model name", 1)[-1].splitlines()[0].lstrip("\t: ")
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return {
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": cpus,
        "congestion_control": congestion,
    }
