"""`gossamer bench KIND`: read the options, run, report. Exit status: 0 done, 1 failed, 2 usage, 130 Ctrl-C."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from deploy.bench import enrolment, fairness, leak, memory, policy, report, revocation, rounds, scaling
from deploy.bench.columns import COLUMNS, DIRECT_COLUMNS, Column
from deploy.bench.conduct import conduct, print_json
from deploy.bench.fault import BenchError
from deploy.bench.figures import figures
from deploy.bench.rounds import Outcome, Plan

_NEEDS = "Needs root. Figures are ratios within this run: a shared machine shifts all columns."


def register(subparsers: Any) -> None:
    """Add `bench` to the command line; the parsed arguments' `run` takes them and returns the exit status."""
    bench = subparsers.add_parser("bench", help="measure what the mesh costs on this machine")
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="KIND")
    _kind(
        kinds.add_parser(
            "tunnel",
            help="cross-node traffic: nothing, our tunnel, Envoy",
            description="Cross-node TCP with nothing attached, beside and inside the mesh, through pairs of Envoys, "
            f"in interleaved rounds. {_NEEDS}",
        ),
        COLUMNS,
        together=False,
    )
    _kind(
        kinds.add_parser(
            "direct",
            help="same-node traffic: nothing, our direct path, Envoy",
            description="TCP between two pods of one node with nothing attached, beside and inside the mesh (socket to "
            f"socket, under policy), and through a pair of Envoys, in interleaved rounds. {_NEEDS}",
        ),
        DIRECT_COLUMNS,
        together=True,
    )
    for kind in (revocation, memory, policy, enrolment, fairness, scaling, leak):
        kind.register(kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What is run where the options do not say otherwise."""

    rounds: int
    seconds: float
    sizes: tuple[int, ...]
    connections: tuple[int, ...]
    streams: tuple[int, ...]
    held: tuple[int, ...]
    steady: float | None = None


QUICK = Extent(rounds=2, seconds=0.5, sizes=(100,), connections=(1, 16, 64), streams=(1,), held=(64,))
USUAL = Extent(rounds=3, seconds=0.7, sizes=(100, 4096), connections=(1, 16, 64), streams=(1, 8), held=(1000,))
ALL = Extent(
    rounds=5,
    seconds=2.0,
    sizes=(100, 4096, 65536),
    connections=(1, 16, 64, 256),
    streams=(1, 8),
    held=(5000, 10_000),
    steady=60.0,
)


def _kind(parser: argparse.ArgumentParser, columns: tuple[Column, ...], *, together: bool) -> None:
    names = [column.name for column in columns]
    add = parser.add_argument
    add("--columns", type=_columns(columns), default=columns, metavar="A,B,…", help=f"of {', '.join(names)}")
    add("--baseline", choices=names, help="column that ratios refer to (default: the first)")
    add("--rounds", type=_count, help=f"interleaved rounds ({USUAL.rounds})")
    add("--seconds", type=_seconds, help=f"per measurement ({USUAL.seconds})")
    add("--threads", type=_count, default=1, help="data-path threads of every proxy (1)")
    add("--connections", type=_counts, metavar="N,…", help=f"of the echo {_shown(USUAL.connections)}")
    add("--sizes", type=_counts, metavar="BYTES,…", help=f"of the echo's messages {_shown(USUAL.sizes)}")
    add("--streams", type=_counts, metavar="N,…", help=f"bulk streams at a time {_shown(USUAL.streams)}")
    add("--callers", type=_count, default=4, help="new connections under way at a time (4)")
    add("--blocking", action="store_true", help="the load's sockets block, a thread for each; else epoll")
    add("--awake", action="store_true", help="no CPU halts: loops of the idle class take what is left")
    add("--steady", type=_seconds, help="once more new connections, for so many seconds on end (none; 60 with --all)")
    add("--held", type=_counts, metavar="N,…", help=f"connections to read memory with {_shown(USUAL.held)}")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="a first impression in half a minute: 100 bytes only")
    extent.add_argument("--all", action="store_true", help="the whole table, in about twenty minutes")
    add("--agent", type=shlex.split, default=[], metavar="ARGUMENTS", help="more arguments of our agents, as one word")
    add("-o", "--output", choices=("table", "json"), default="table")
    if together:
        add("--pinned", action="store_true", help="client and server on one CPU: no time to wake another one")
        add("--acceleration", choices=("on", "off"), help="--direct-acceleration of the agent (its own default)")
    parser.set_defaults(run=run, together=together)


def _shown(counts: tuple[int, ...]) -> str:
    return f"({','.join(map(str, counts))})"


def run(arguments: argparse.Namespace) -> int:
    """Run a plan and print its outcome; progress goes to stderr."""
    errors = Console(stderr=True)
    try:
        plan = plan_of(arguments)
    except BenchError as error:
        errors.print(f"gossamer bench: {error}", markup=False, highlight=False)
        return 2
    if plan.baseline not in [column.name for column in plan.columns]:
        errors.print(f"gossamer bench: --baseline {plan.baseline} is not one of the columns that are run")
        return 2

    def show(outcome: Outcome) -> None:
        if arguments.output == "json":
            print_json(report.document(outcome))
        else:
            report.show(outcome)

    return conduct("gossamer bench", plan.steps, lambda step: rounds.measure(plan, os.getpid(), step), show)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan that the options ask for."""
    extent = QUICK if arguments.quick else ALL if arguments.all else USUAL
    found = figures(
        arguments.sizes or extent.sizes,
        arguments.connections or extent.connections,
        arguments.streams or extent.streams,
        arguments.callers,
        arguments.steady or extent.steady,
    )
    direct = ("--direct", "on") if arguments.together else ()
    pinned = arguments.together and arguments.pinned
    if arguments.together and arguments.acceleration is not None:
        direct = (*direct, "--direct-acceleration", arguments.acceleration)
    return Plan(
        columns=arguments.columns,
        figures=tuple(found),
        baseline=arguments.baseline or arguments.columns[0].name,
        rounds=arguments.rounds or extent.rounds,
        seconds=arguments.seconds or extent.seconds,
        threads=arguments.threads,
        held=arguments.held or extent.held,
        kind=arguments.kind,
        together=arguments.together,
        blocking=arguments.blocking,
        cpu=max(os.sched_getaffinity(0)) if pinned else None,
        awake=arguments.awake,
        agent=(*direct, *arguments.agent),
    )


def _columns(known: tuple[Column, ...]) -> Callable[[str], tuple[Column, ...]]:
    by_name = {column.name: column for column in known}

    def parse(text: str) -> tuple[Column, ...]:
        wanted = [word.strip() for word in text.split(",") if word.strip()]
        unknown = [word for word in wanted if word not in by_name]
        if unknown or not wanted:
            raise argparse.ArgumentTypeError(f"{text!r}: columns are {', '.join(by_name)}")
        return tuple(by_name[word] for word in dict.fromkeys(wanted))

    return parse


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_count(word) for word in text.split(",")))


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.01 to 600")
    return value
