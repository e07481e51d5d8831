"""`gossamer bench scaling`: what a second thread gains, and what a connection costs as their number grows.

Threads: each number of them has a mesh of its own, one after the other; what is compared are the ratios to the traffic
without a mesh, which has its turn in the same rounds. Connections: while more and more are open and idle, what the
agents use for nothing but them, and what a message and a new connection cost beside them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.bench import load, rounds, usage
from deploy.bench.amount import positive, whole
from deploy.bench.columns import COLUMNS, Lane
from deploy.bench.conduct import Sheet, Step, conduct, print_json
from deploy.bench.figures import Figure, summarise
from deploy.bench.rounds import Plan

_THREADS = (1, 2)
_COUNTS = (0, 1000, 2500, 5000, 10_000)
_RATES: Mapping[str, tuple[Figure, str]] = {
    "messages/s": (
        Figure(name="echo 100B ×64", command="echo", options={"connections": 64, "size": 100, "threads": 2}),
        "messages_per_s",
    ),
    "Gbit/s": (Figure(name="stream ×8", command="stream", options={"connections": 8}), "gbit_per_s"),
    "connections/s": (
        Figure(name="connects ×16", command="connects", options={"connections": 16}),
        "connects_per_s",
    ),
}
_ECHO = Figure(name="echo", command="echo", options={"connections": 16, "size": 100})
_CONNECTS = Figure(name="connects", command="connects", options={"connections": 4})
_IDLE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowded:
    """With so many idle connections open: CPU of both agents in ms per second when nothing happens, memory in MiB
    (PSS), and the metrics of an echo and of new connections."""

    idle_ms_per_s: float
    pss_mib: float
    echo: Mapping[str, float]
    connects: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`threads`: rate by its unit, as (median, ratio to no mesh), by number of threads. `connections`: by their number;
    a text says why there is nothing."""

    threads: Mapping[int, Mapping[str, tuple[float, float]]]
    connections: Mapping[int, Crowded | str]


def register(kinds: Any) -> None:
    """Add `scaling` to the kinds of benchmarks."""
    text = "what a second thread gains, and what connections cost as their number grows"
    parser = kinds.add_parser("scaling", help=text, description=f"Measure {text}. Needs root.")
    add = parser.add_argument
    add("--rounds", type=whole(1, 100), default=3, metavar="N", help="rounds (3)")
    add("--seconds", type=positive, default=1.0, metavar="S", help="of each measurement (1)")
    add(
        "--most",
        type=whole(1, _COUNTS[-1]),
        default=_COUNTS[-1],
        metavar="N",
        help=f"connections that are open at most ({_COUNTS[-1]})",
    )
    add("--agent", type=shlex.split, default=[], metavar="ARGUMENTS", help="more arguments of our agents, as one word")
    add("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""

    def show(outcome: Outcome) -> None:
        if arguments.output == "json":
            print_json(document(outcome))
        else:
            for one in sheets(outcome):
                one.show()

    steps = len(_THREADS) * (2 + 2 * arguments.rounds * len(_RATES)) + 1 + len(_COUNTS)
    return conduct("gossamer bench scaling", steps, lambda step: measure(arguments, os.getpid(), step), show)


def measure(arguments: argparse.Namespace, number: int, step: Step) -> Outcome:
    """BenchError: bytes went wrong; what the engine refuses is part of the outcome."""
    threads = {count: _with_threads(arguments, count, number, step) for count in _THREADS}
    return Outcome(threads=threads, connections=_with_connections(arguments, number, step))


def _plan(arguments: argparse.Namespace, threads: int, columns: tuple[str, ...], **more: Any) -> Plan:
    return Plan(
        columns=tuple(column for column in COLUMNS if column.name in columns),
        baseline=columns[0],
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        threads=threads,
        kind="scaling",
        agent=tuple(arguments.agent),
        **more,
    )


def _with_threads(
    arguments: argparse.Namespace, threads: int, number: int, step: Step
) -> Mapping[str, tuple[float, float]]:
    figures = tuple(figure for figure, _ in _RATES.values())
    plan = _plan(arguments, threads, ("none", "gossamer"), figures=figures, held=())
    samples = rounds.measure(plan, number, step).samples
    found = {}
    for words, (figure, metric) in _RATES.items():
        ours = summarise(samples, figure.name, metric, "none")["gossamer"]
        found[words] = (ours.median, ours.ratio or 0.0)
    return found


def _with_connections(arguments: argparse.Namespace, number: int, step: Step) -> Mapping[int, Crowded | str]:
    counts = [count for count in _COUNTS if count <= arguments.most]
    plan = _plan(arguments, 1, ("gossamer",), figures=(), held=(max(counts),))
    found: dict[int, Crowded | str] = {}
    with rounds.prepared(plan, number, step) as (program, lanes):
        lane = lanes["gossamer"]
        lane.check_path(program)
        for count in counts:
            step(f"{count} connections")
            try:
                with rounds.held_open(program, lane, count) if count else nullcontext():
                    found[count] = _crowded(program, lane, plan)
            except load.Broken as error:
                found[count] = str(error)
    return found


def _crowded(program: Path, lane: Lane, plan: Plan) -> Crowded:
    before = usage.read_cpu(lane.proxies, ())
    time.sleep(_IDLE_S)
    idle = usage.read_cpu(lane.proxies, ()).since(before).proxies
    return Crowded(
        idle_ms_per_s=1e3 * idle / _IDLE_S,
        pss_mib=usage.read_memory(lane.proxies).pss,
        echo=rounds.once(program, lane, _ECHO, plan),
        connects=rounds.once(program, lane, _CONNECTS, plan),
    )


def document(outcome: Outcome) -> dict[str, Any]:
    """For programs."""
    return {
        "bench": "scaling",
        "machine": rounds.machine(),
        "threads": [{"threads": count, "rates": _rates(found)} for count, found in outcome.threads.items()],
        "connections": [
            {"connections": count, **({"refused": found} if isinstance(found, str) else _costs(found))}
            for count, found in outcome.connections.items()
        ],
    }


def _rates(found: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    return {words: {"median": value, "ratio": ratio} for words, (value, ratio) in found.items()}


def _costs(found: Crowded) -> dict[str, Any]:
    return {
        "idle_cpu_ms_per_s": found.idle_ms_per_s,
        "pss_mib": found.pss_mib,
        "echo": dict(found.echo),
        "connects": dict(found.connects),
    }


def sheets(outcome: Outcome) -> tuple[Sheet, Sheet]:
    """For people."""
    refused = [text for text in outcome.connections.values() if isinstance(text, str)]
    threads = tuple((words, *(_rate(outcome.threads[count], words) for count in outcome.threads)) for words in _RATES)
    first = outcome.connections.get(0)
    bare = first.pss_mib if isinstance(first, Crowded) else 0.0
    return (
        Sheet(
            title="gossamer bench scaling: threads of the data path",
            columns=tuple(f"{count} thread{'s' * (count > 1)}" for count in outcome.threads),
            rows=threads,
            note="medians; ×: median of the rounds' ratios to no mesh, which is what to compare",
        ),
        Sheet(
            title="gossamer bench scaling: connections that are open meanwhile",
            columns=tuple(f"{count:,}" for count in outcome.connections),
            rows=_crowded_rows(outcome.connections, bare),
            note="; ".join(f"refused: {text}" for text in dict.fromkeys(refused)) or "Every byte was verified.",
        ),
    )


def _rate(found: Mapping[str, tuple[float, float]], words: str) -> str:
    value, ratio = found[words]
    return f"{value:,.3g} ×{ratio:.3f}" if value < 1000 else f"{value:,.0f} ×{ratio:.3f}"


def _crowded_rows(found: Mapping[int, Crowded | str], bare: float) -> tuple[tuple[str, ...], ...]:
    def row(words: str, cell: Any) -> tuple[str, ...]:
        shown = ("refused" if isinstance(one, str) else cell(count, one) for count, one in found.items())
        return (words, *shown)

    return (
        row("agents idle, CPU ms/s", lambda count, one: f"{one.idle_ms_per_s:.1f}"),
        row("memory, PSS MiB", lambda count, one: f"{one.pss_mib:.0f}"),
        row("KiB for each", lambda count, one: f"{(one.pss_mib - bare) * 1024 / count:.1f}" if count else "–"),
        row("echo ×16: p50 µs", lambda count, one: f"{one.echo['p50_us']:,.0f}"),
        row("CPU ms/10k messages", lambda count, one: f"{one.echo['cpu_proxies_ms_per_10k']:,.0f}"),
        row("new connections/s", lambda count, one: f"{one.connects['connects_per_s']:,.0f}"),
        row("CPU ms/10k connections", lambda count, one: f"{one.connects['cpu_proxies_ms_per_10k']:,.0f}"),
    )
