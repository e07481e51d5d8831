"""What a run found: a table for people, one JSON document for programs."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.bench.figures import METRICS, Figure, Metric, Summary, summarise
from deploy.bench.rounds import Outcome
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
        "machine": dict(outcome.machine),
        "columns": [
            {"name": column.name, "title": column.title, "path": dict(outcome.paths[column.name])}
            for column in plan.columns
        ],
        "figures": [_figure(outcome, figure, metric) for figure in plan.figures for metric in METRICS[figure.command]],
        "memory": {
            name: {"idle": _memory(found.idle), "held": _memory(found.held), "held_connections": plan.held}
            for name, found in outcome.memory.items()
        },
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
    grid.add_row(Text("memory of proxies, PSS MiB", style="bold"))
    held = [outcome.memory[column.name] for column in plan.columns]
    grid.add_row("  idle", *(_memory_cell(one.idle) for one in held))
    grid.add_row(f"  {plan.held} connections", *(_memory_cell(one.held) for one in held))
    note = (
        f"{plan.rounds} interleaved rounds of {plan.seconds:g} s; medians; ×: median of the rounds' ratios to "
        f"“{plan.baseline}”; {plan.threads} thread{'s' * (plan.threads > 1)} per proxy; "
        f"{outcome.machine['cpus']} CPUs, Linux {outcome.machine['kernel']}. Every byte was verified. "
        "How to read this: docs/benchmarks.md"
    )
    return Group(grid, Text(note, style="dim"))


def _cell(found: Summary, metric: Metric, is_baseline: bool) -> Text:
    cell = Text(_number(found.median))
    if found.ratio is not None and not is_baseline:
        good = found.ratio <= 1.0 if metric.better == "lower" else found.ratio >= 1.0
        cell.append(f" ×{_ratio(found.ratio)}", style="green" if good else "dim")
    return cell


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _memory_cell(found: Memory) -> Text:
    return Text(f"{found.pss:.0f}" if found.pss else "–")


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
