"""What connections between two pods of one node cost in memory, beside nothing attached: idle ones, and ones whose
reader never reads.

The kernel's part of full connections is what TCP accounts to their sockets, and the descriptors of messages between
sockets; of idle ones it is the growth of the machine's slabs, as nothing accounts those to anybody here, with whatever
else the machine does meanwhile. Each figure is a difference over many connections, in rounds, and the median of them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from deploy.bench import load, rounds, usage
from deploy.bench.amount import whole
from deploy.bench.columns import DIRECT_COLUMNS, Lane
from deploy.bench.conduct import Sheet, Step, conduct, print_json
from deploy.bench.rounds import Plan, about

_COLUMNS = tuple(column for column in DIRECT_COLUMNS if column.name in ("none", "direct"))
# Size of writes -> connections to readers that never read: a byte at a time, millions of writes fill few of them.
_SIZES = {1: 4, 100: 32, 4096: 32}
_SETTLE_S = 0.5  # sockets that were reset give their memory back a little later


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Bytes per connection, by column, each round's. `stuffed` also by the size of the writes; `queued` is what the
    writer got rid of. `idle` is the kernel's memory, `agent` the agents', of so many `connections`."""

    connections: int
    stuffed: Mapping[int, Mapping[str, tuple[float, ...]]]
    queued: Mapping[int, Mapping[str, tuple[float, ...]]]
    idle: Mapping[str, tuple[float, ...]]
    agent: Mapping[str, tuple[float, ...]]


def register(kinds: Any) -> None:
    """Add `memory` to the kinds of benchmarks."""
    text = "memory of same-node connections: idle ones, and ones whose reader never reads"
    parser = kinds.add_parser("memory", help=text, description=f"Measure {text}. Needs root.")
    add = parser.add_argument
    add("--connections", type=whole(1, 20_000), default=10_000, metavar="N", help="idle ones (10000)")
    add("--rounds", type=whole(1, 100), default=3, metavar="N", help="interleaved rounds (3)")
    add("--acceleration", choices=("on", "off"), help="--direct-acceleration of the agent (its own default)")
    add("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    chosen = () if arguments.acceleration is None else ("--direct-acceleration", arguments.acceleration)
    plan = Plan(
        columns=_COLUMNS,
        figures=(),
        baseline="none",
        rounds=arguments.rounds,
        seconds=1.0,
        threads=1,
        held=(arguments.connections,),
        kind="memory",
        together=True,
        agent=("--direct", "on", *chosen),
    )
    return conduct(
        "gossamer bench memory",
        len(_COLUMNS) * (1 + plan.rounds * (len(_SIZES) + 1)),
        lambda step: measure(plan, os.getpid(), step),
        lambda outcome: print_json(document(outcome)) if arguments.output == "json" else sheet(outcome).show(),
    )


def measure(plan: Plan, number: int, step: Step) -> Outcome:
    """Run it (number: this process' pid)."""
    stuffed: dict[int, dict[str, list[float]]] = {size: {c.name: [] for c in plan.columns} for size in _SIZES}
    queued: dict[int, dict[str, list[float]]] = {size: {c.name: [] for c in plan.columns} for size in _SIZES}
    idle: dict[str, list[float]] = {column.name: [] for column in plan.columns}
    agent: dict[str, list[float]] = {column.name: [] for column in plan.columns}
    (connections,) = plan.held
    with rounds.prepared(plan, number, step) as (program, lanes):
        for name, lane in lanes.items():
            with about(name):
                lane.check_path(program)
        for turn in range(plan.rounds):
            for name, lane in lanes.items():
                with about(name):
                    for size in _SIZES:
                        step(f"round {turn + 1} of {plan.rounds}: {size}-byte writes to who never reads, {name}")
                        kernel, taken = _stuff(program, lane, size)
                        stuffed[size][name].append(kernel)
                        queued[size][name].append(taken)
                    step(f"round {turn + 1} of {plan.rounds}: {connections} idle connections, {name}")
                    kernel, proxies = _hold(program, lane, connections)
                    idle[name].append(kernel)
                    agent[name].append(proxies)
    return Outcome(
        connections=connections,
        stuffed={size: _frozen(found) for size, found in stuffed.items()},
        queued={size: _frozen(found) for size, found in queued.items()},
        idle=_frozen(idle),
        agent=_frozen(agent),
    )


def _stuff(program: Path, lane: Lane, size: int) -> tuple[float, float]:
    """(kernel memory, bytes queued) per connection."""
    time.sleep(_SETTLE_S)
    before = _queued(lane)
    dial, count = lane.dial, _SIZES[size]
    with load.Held(program, lane.pair.client, dial.host, dial.port, count, command="stuff", size=size) as held:
        kernel = _queued(lane) - before
    return kernel / count, held.answer["bytes"] / count


def _queued(lane: Lane) -> int:
    """Bytes, of both pods' sockets."""
    pods = (lane.pair.client, lane.pair.server)
    listings = [pod.run(["ss", "-Htmn", "state", "established"], timeout=10).stdout for pod in pods]
    return usage.message_memory() + sum(map(usage.queued_memory, listings))


def _hold(program: Path, lane: Lane, connections: int) -> tuple[float, float]:
    """(kernel memory, the agents' memory) per connection."""
    time.sleep(_SETTLE_S)
    before, proxies = usage.slab_memory(), usage.read_memory(lane.proxies)
    with rounds.held_open(program, lane, connections):
        time.sleep(2 * _SETTLE_S)  # the agent hears of them twice a second
        kernel = usage.slab_memory() - before
        grown = usage.read_memory(lane.proxies).pss - proxies.pss
    return kernel / connections, grown * 2**20 / connections


def _frozen(found: Mapping[str, list[float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(values) for name, values in found.items()}


def document(outcome: Outcome) -> dict[str, Any]:
    """Everything, in bytes per connection. Keys are stable; see docs/benchmarks.md."""
    return {
        "bench": "memory",
        "stuffed": [
            {"size": size, "kernel": outcome.stuffed[size], "queued": outcome.queued[size]} for size in outcome.stuffed
        ],
        "idle": {"connections": outcome.connections, "kernel": outcome.idle, "agent": outcome.agent},
    }


def sheet(outcome: Outcome) -> Sheet:
    """The table: medians, and the ratio to nothing attached."""
    rows = [(f"reader never reads, {size}-byte writes, KiB", *_cells(found)) for size, found in outcome.stuffed.items()]
    rows += [(f"  queued, {size}-byte writes, KiB", *_cells(found)) for size, found in outcome.queued.items()]
    rows.append((f"{outcome.connections} idle, kernel, KiB", *_cells(outcome.idle)))
    # What a heap has grown by once, it keeps: the round that says most.
    most = {name: (max(values),) for name, values in outcome.agent.items()}
    rows.append((f"{outcome.connections} idle, agents, KiB", *_cells(most)))
    return Sheet(
        title="gossamer bench memory: per connection",
        columns=tuple(column.title for column in _COLUMNS),
        rows=tuple(rows),
        note="Medians of rounds; ×: of the rounds' ratios. Both ends together. Idle, kernel: the machine's slabs, "
        "other work on it too.",
    )


def _cells(found: Mapping[str, tuple[float, ...]]) -> tuple[str, ...]:
    base = found[_COLUMNS[0].name]
    cells = []
    for column in _COLUMNS:
        values = found[column.name]
        cell = f"{median(values) / 1024:,.1f}"
        ratios = [value / other for value, other in zip(values, base, strict=True) if other > 0]
        cells.append(cell if values is base or not ratios else f"{cell} ×{median(ratios):.2f}")
    return tuple(cells)
