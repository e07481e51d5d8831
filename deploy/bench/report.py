"""What a run found: a table for people, one JSON document for programs."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.bench.figures import METRICS, Figure, Metric, Summary, summarise
from deploy.bench.rounds import Outcome
from deploy.bench.usage import Memory

_WORDS = {
    "p50_us": "p50",
    "p99_us": "p99",
    "messages_per_s": "messages",
    "connects_per_s": "connections",
    "gbit_per_s": "throughput",
    "cpu_proxies_ms_per_10k": "CPU proxies / 10k",
    "cpu_total_ms_per_10k": "CPU total / 10k",
    "cpu_proxies_s_per_gb": "CPU proxies / GB",
    "cpu_total_s_per_gb": "CPU total / GB",
}


def document(outcome: Outcome) -> dict[str, Any]:
    """Everything, rounds' samples included. Keys are stable; see docs/benchmarks.md."""
    plan = outcome.plan
    return {
        "bench": "tunnel",
        "correct": True,
        "baseline": plan.baseline,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "threads": plan.threads,
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
    """Medians, and in brackets the median of ratios to the baseline. The whole machine's CPU is in JSON only."""
    plan = outcome.plan
    grid = Table(title="gossamer bench tunnel", header_style="bold", pad_edge=False)
    grid.add_column("figure")
    grid.add_column("")
    for column in plan.columns:
        grid.add_column(column.title, justify="right")
    for figure in plan.figures:
        metrics = [metric for metric in METRICS[figure.command] if metric.name in _WORDS]
        for index, metric in enumerate(metrics):
            found = summarise(outcome.samples, figure.name, metric.name, plan.baseline)
            cells = [_cell(found[column.name], metric, column.name == plan.baseline) for column in plan.columns]
            last = index == len(metrics) - 1
            grid.add_row(
                figure.name if index == 0 else "", f"{_WORDS[metric.name]}, {metric.unit}", *cells, end_section=last
            )
    for words, pick in (("idle", lambda one: one.idle), (f"{plan.held} connections", lambda one: one.held)):
        cells = [_memory_cell(pick(outcome.memory[column.name])) for column in plan.columns]
        grid.add_row("memory of proxies", f"{words}, PSS MiB", *cells)
    note = (
        f"{plan.rounds} interleaved rounds of {plan.seconds:g} s; medians; (×: median of the rounds' ratios to "
        f"“{plan.baseline}”); {plan.threads} thread{'s' * (plan.threads > 1)} per proxy; "
        f"{outcome.machine['cpus']} CPUs, Linux {outcome.machine['kernel']}. Every byte was verified."
        " How to read this: docs/benchmarks.md"
    )
    return Group(grid, Text(note, style="dim"))


def _cell(found: Summary, metric: Metric, is_baseline: bool) -> Text:
    cell = Text(_number(found.median))
    if found.ratio is not None and not is_baseline:
        good = found.ratio <= 1.0 if metric.better == "lower" else found.ratio >= 1.0
        cell.append(f" (×{found.ratio:.2f})", style="green" if good else "dim")
    return cell


def _memory_cell(found: Memory) -> Text:
    return Text(f"{found.pss:.0f}" if found.pss else "–")


def _number(value: float) -> str:
    if value == 0:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(outcome: Outcome, console: Console) -> None:
    console.print(table(outcome))
