"""What a run found: a table for people, one JSON document for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.bench.figures import METRICS, Figure, Metric, Summary, summarise
from deploy.bench.rounds import Holding, Outcome
from deploy.bench.targets import Standing, standings
from deploy.bench.usage import Memory

_WORDS = {
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "messages_per_s": "messages/s",
    "connects_per_s": "connections/s",
    "gbit_per_s": "Gbit/s",
    "cpu_proxies_ms_per_10k": "CPU proxies ms/10k",
    "cpu_total_ms_per_10k": "CPU total ms/10k",
    "cpu_proxies_s_per_gb": "CPU proxies s/GB",
    "cpu_total_s_per_gb": "CPU total s/GB",
}
_UNWATCHED_WIDTH = 120  # of a table that goes to a file


def document(outcome: Outcome) -> dict[str, Any]:
    """Everything, rounds' samples included. Keys are stable; see docs/benchmarks.md."""
    plan = outcome.plan
    return {
        "bench": plan.kind,
        "correct": True,
        "baseline": plan.baseline,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "threads": plan.threads,
        "blocking": plan.blocking,
        "pinned": plan.cpu is not None,
        "awake": plan.awake,
        "machine": dict(outcome.machine),
        "columns": [
            {"name": column.name, "title": column.title, "path": dict(outcome.paths[column.name])}
            for column in plan.columns
        ],
        "figures": [_figure(outcome, figure, metric) for figure in plan.figures for metric in METRICS[figure.command]],
        "memory": {
            name: {"idle": _memory(found.idle), "held": [_held(found, count) for count in found.held]}
            for name, found in outcome.memory.items()
        },
        "against_envoy": [_standing(one) for one in standings(outcome.samples, plan.figures)],
    }


def _figure(outcome: Outcome, figure: Figure, metric: Metric) -> dict[str, Any]:
    found = summarise(outcome.samples, figure.name, metric.name, outcome.plan.baseline)
    return {
        "figure": figure.name,
        "command": figure.command,
        **figure.options,
        "metric": metric.name,
        "unit": metric.unit,
        "better": metric.better,
        "columns": {
            name: {"median": one.median, "ratio": one.ratio, "samples": list(one.samples)}
            for name, one in found.items()
        },
    }


def _held(found: Holding, count: int) -> dict[str, Any]:
    held = found.held[count]
    return {"connections": count, **({"refused": held} if isinstance(held, str) else _memory(held))}


def _standing(one: Standing) -> dict[str, Any]:
    return {
        "figure": one.figure,
        "metric": one.metric,
        "against": one.against,
        "ratio": one.ratio,
        "wanted": one.wanted,
        "reached": one.reached,
    }


def _memory(found: Memory) -> dict[str, float]:
    return {"pss_mib": round(found.pss, 2), "rss_mib": round(found.rss, 2)}


def table(outcome: Outcome) -> RenderableType:
    """Medians, and beside them the median of ratios to the baseline. The whole machine's CPU is in JSON only."""
    plan = outcome.plan
    grid = Table(title=f"gossamer bench {outcome.plan.kind}", header_style="bold", pad_edge=False, box=box.SIMPLE_HEAD)
    grid.add_column("", no_wrap=True)
    for column in plan.columns:
        grid.add_column(column.title, justify="right")
    for figure in plan.figures:
        grid.add_row(Text(figure.name, style="bold"))
        for metric in METRICS[figure.command]:
            if metric.name in _WORDS:
                found = summarise(outcome.samples, figure.name, metric.name, plan.baseline)
                cells = [_cell(found[column.name], metric, column.name == plan.baseline) for column in plan.columns]
                grid.add_row(f"  {_WORDS[metric.name]}", *cells)
        grid.add_section()
    grid.add_row(Text("memory, PSS MiB (KiB each)", style="bold"))
    memory = [outcome.memory[column.name] for column in plan.columns]
    grid.add_row("  idle", *(_memory_cell(one, 0) for one in memory))
    for count in plan.held:
        grid.add_row(f"  {count:,} connections", *(_memory_cell(one, count) for one in memory))
    refused = [
        f"{column.title}, {count:,} connections: {found}"
        for column in plan.columns
        for count, found in outcome.memory[column.name].held.items()
        if isinstance(found, str)
    ]
    note = (
        f"{plan.rounds} interleaved rounds of {plan.seconds:g} s; medians; ×: median of the rounds' ratios to "
        f"“{plan.baseline}”; {plan.threads} thread{'s' * (plan.threads > 1)} per proxy; "
        f"{'' if plan.cpu is None else f'load on CPU {plan.cpu} alone; '}"
        f"{'no CPU halts; ' if plan.awake else ''}"
        f"{outcome.machine['cpus']} CPUs, Linux {outcome.machine['kernel']}, "
        f"TCP {outcome.machine['congestion_control']}. Every byte was verified. "
        "How to read this: docs/benchmarks.md"
    )
    parts: list[RenderableType] = [grid]
    if found := standings(outcome.samples, plan.figures):
        parts.append(_against_envoy(found))
    return Group(*parts, *(Text(f"refused: {line}", style="yellow") for line in refused), Text(note, style="dim"))


def _against_envoy(found: Sequence[Standing]) -> Table:
    grid = Table(title="our tunnel against the better Envoy", header_style="bold", pad_edge=False, box=box.SIMPLE_HEAD)
    for heading, justify in (("", "left"), ("", "left"), ("of", "left"), ("ratio", "right"), ("wanted", "right")):
        grid.add_column(heading, justify=justify, no_wrap=True)
    for one in found:
        sign = "≤" if one.better == "lower" else "≥"
        ratio = Text(f"×{_ratio(one.ratio)}", style="green" if one.reached else "red")
        grid.add_row(one.figure, _WORDS[one.metric], one.against, ratio, f"{sign} {one.wanted:g}")
    return grid


def _cell(found: Summary, metric: Metric, is_baseline: bool) -> Text:
    cell = Text(_number(found.median))
    if found.ratio is not None and not is_baseline:
        good = found.ratio <= 1.0 if metric.better == "lower" else found.ratio >= 1.0
        cell.append(f" ×{_ratio(found.ratio)}", style="green" if good else "dim")
    return cell


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _memory_cell(holding: Holding, count: int) -> Text:
    found = holding.held.get(count) if count else holding.idle
    if isinstance(found, str):
        return Text("refused", style="yellow")
    if found is None or not found.pss:
        return Text("–")
    each = f" ({(found.pss - holding.idle.pss) * 1024 / count:.1f})" if count else ""
    return Text(f"{found.pss:.0f}{each}")


def _number(value: float) -> str:
    if value == 0:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(outcome: Outcome) -> None:
    """Print the table to stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_UNWATCHED_WIDTH)
    console.print(table(outcome))
