"""`gossamer bench fairness`: what a pod's latency is beside a neighbour that does all it can.

One pod exchanges one message at a time over one connection. Its neighbour, on the same nodes and through the same
agents, sends eight bulk streams and opens 500 connections per second. The same without a mesh says what the machine
alone makes of it: both share its CPUs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from deploy.bench import load, rounds
from deploy.bench.amount import positive, whole
from deploy.bench.columns import COLUMNS, Caller, Lane
from deploy.bench.conduct import Sheet, Step, conduct, print_json
from deploy.bench.envoy import Endpoint
from deploy.bench.mesh import APP_PORT
from deploy.bench.rounds import Plan

_COLUMNS = ("none", "gossamer")
_STREAMS, _CONNECTS_PER_S, _AT_A_TIME = 8, 500, 16
_START_S = 0.5  # for the neighbour to be at full speed
_MESSAGE = 100  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One column in one round. Latencies of the echo in µs: (p50, p99) `alone` and `beside` its neighbour; what the
    neighbour got meanwhile."""

    column: str
    alone: tuple[float, float]
    beside: tuple[float, float]
    gbit_per_s: float
    connects_per_s: float


def register(kinds: Any) -> None:
    """Add `fairness` to the kinds of benchmarks."""
    text = "a pod's latency beside a neighbour with bulk streams and a storm of connections"
    parser = kinds.add_parser("fairness", help=text, description=f"Measure {text}. Needs root.")
    add = parser.add_argument
    add("--rounds", type=whole(1, 100), default=3, metavar="N", help="rounds (3)")
    add("--seconds", type=positive, default=3.0, metavar="S", help="of each measurement (3)")
    add("--threads", type=whole(1, 64), default=1, metavar="N", help="data-path threads of the agents (1)")
    add("--agent", type=shlex.split, default=[], metavar="ARGUMENTS", help="more arguments of our agents, as one word")
    add("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""

    def show(samples: list[Sample]) -> None:
        found = document(samples, arguments.seconds)
        if arguments.output == "json":
            print_json(found)
        else:
            sheet(found).show()

    def measured(step: Step) -> list[Sample]:
        return measure(arguments, os.getpid(), step)

    steps = len(_COLUMNS) * (2 * arguments.rounds + 1)
    return conduct("gossamer bench fairness", steps, measured, show)


def measure(arguments: argparse.Namespace, number: int, step: Step) -> list[Sample]:
    """BenchError: bytes went wrong."""
    plan = Plan(
        columns=tuple(column for column in COLUMNS if column.name in _COLUMNS),
        figures=(),
        baseline="none",
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        threads=arguments.threads,
        held=(),
        kind="fairness",
        pairs=2,
        agent=tuple(arguments.agent),
    )
    samples = []
    with rounds.prepared(plan, number, step) as (program, lanes), ExitStack() as stack:
        neighbours = {name: _neighbour(program, lane, stack) for name, lane in lanes.items()}
        for lane in lanes.values():
            lane.check_path(program)
        for turn in range(plan.rounds):
            for name in _COLUMNS if turn % 2 else reversed(_COLUMNS):
                with rounds.about(name):
                    samples.append(_sample(program, name, lanes[name], neighbours[name], plan.seconds, step))
    return samples


def _neighbour(program: Path, lane: Lane, stack: ExitStack) -> Caller:
    """Another enrolled pair; without a mesh another server in the same pod, which comes to the same."""
    if lane.neighbours:
        return lane.neighbours[0]
    port = APP_PORT + 1
    stack.enter_context(load.serving(program, lane.pair.server, port))
    return Caller(seat=lane.pair.client, dial=Endpoint(host=lane.pair.server.address, port=port))


def _sample(program: Path, name: str, lane: Lane, neighbour: Caller, seconds: float, step: Step) -> Sample:
    step(f"{name}: alone")
    alone = _echo(program, lane, seconds)
    step(f"{name}: beside its neighbour")
    with _noise(program, neighbour, 1.1 * seconds + 2 * _START_S) as (streams, connects):
        time.sleep(_START_S)
        beside = _echo(program, lane, seconds)
    return Sample(
        column=name,
        alone=alone,
        beside=beside,
        gbit_per_s=streams.found["gbit_per_s"],
        connects_per_s=connects.found["rate"],
    )


def _echo(program: Path, lane: Lane, seconds: float) -> tuple[float, float]:
    options = {"connections": 1, "size": _MESSAGE, "seconds": seconds}
    found = load.ask(program, lane.pair.client, "echo", lane.dial.host, lane.dial.port, **options)
    return found["latency_us"]["p50"], found["latency_us"]["p99"]


@contextmanager
def _noise(program: Path, caller: Caller, seconds: float) -> Iterator[tuple[load.Answer, load.Answer]]:
    seat, dial = caller.seat, caller.dial
    bulk = {"connections": _STREAMS, "seconds": seconds}
    storm = {"connections": _AT_A_TIME, "rate": _CONNECTS_PER_S, "seconds": seconds}
    with (
        load.beside(program, seat, "stream", dial.host, dial.port, **bulk) as streams,
        load.beside(program, seat, "connects", dial.host, dial.port, **storm) as connects,
    ):
        yield streams, connects


def document(samples: list[Sample], seconds: float) -> dict[str, Any]:
    """For programs: medians over the rounds, and the samples. `times` are medians of the rounds' ratios."""
    return {
        "bench": "fairness",
        "seconds": seconds,
        "machine": rounds.machine(),
        "neighbour": {"streams": _STREAMS, "connects_per_s": _CONNECTS_PER_S},
        "columns": {name: _column([one for one in samples if one.column == name]) for name in _COLUMNS},
    }


def _column(samples: list[Sample]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index, quantile in enumerate(("p50_us", "p99_us")):
        found[quantile] = {
            "alone": median(one.alone[index] for one in samples),
            "beside": median(one.beside[index] for one in samples),
            "times": median(one.beside[index] / one.alone[index] for one in samples),
            "samples": [(one.alone[index], one.beside[index]) for one in samples],
        }
    found["neighbour_gbit_per_s"] = median(one.gbit_per_s for one in samples)
    found["neighbour_connects_per_s"] = median(one.connects_per_s for one in samples)
    return found


def sheet(found: Mapping[str, Any]) -> Sheet:
    """For people."""
    rows = []
    for quantile, words in (("p50_us", "p50"), ("p99_us", "p99")):
        for when in ("alone", "beside"):
            cells = [found["columns"][name][quantile] for name in _COLUMNS]
            times = [f" ×{cell['times']:.2f}" if when == "beside" else "" for cell in cells]
            shown = (f"{cell[when]:,.0f}{more}" for cell, more in zip(cells, times, strict=True))
            rows.append((f"{words} µs, {when}", *shown))
    for key, words in (("gbit_per_s", "neighbour, Gbit/s"), ("connects_per_s", "neighbour, connections/s")):
        rows.append((words, *(f"{found['columns'][name][f'neighbour_{key}']:,.3g}" for name in _COLUMNS)))
    return Sheet(
        title="gossamer bench fairness: an echo of one connection beside a greedy neighbour",
        columns=("nothing attached", "gossamer"),
        rows=tuple(rows),
        note=f"neighbour: {_STREAMS} bulk streams and {_CONNECTS_PER_S} connections per second asked for; medians of "
        "rounds; ×: median of the rounds' ratios to the echo alone. Every byte was verified.",
    )
