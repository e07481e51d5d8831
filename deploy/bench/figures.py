"""What is measured, and what a run's numbers say: medians of ratios to a baseline. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from deploy.bench.usage import Cpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One kind of load. `options` are load.c's, in its words. With `seconds` it lasts so long, whatever the others do,
    and has its turn in the first round only."""

    name: str
    command: str
    options: Mapping[str, int]
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of a figure. `unit` is for people; `better` is "lower" or "higher"."""

    name: str
    unit: str
    better: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one column did in one round at one figure."""

    round: int
    figure: str
    column: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One metric of one figure in one column: median, all rounds' values in order, median of per-round ratios."""

    median: float
    samples: tuple[float, ...]
    ratio: float | None


_CPU_MESSAGES = (
    Metric(name="cpu_proxies_ms_per_10k", unit="ms", better="lower"),
    Metric(name="cpu_total_ms_per_10k", unit="ms", better="lower"),
    Metric(name="cpu_machine_ms_per_10k", unit="ms", better="lower"),
)
METRICS: dict[str, tuple[Metric, ...]] = {
    "echo": (
        Metric(name="p50_us", unit="µs", better="lower"),
        Metric(name="p99_us", unit="µs", better="lower"),
        Metric(name="messages_per_s", unit="1/s", better="higher"),
        *_CPU_MESSAGES,
    ),
    "stream": (
        Metric(name="gbit_per_s", unit="Gbit/s", better="higher"),
        Metric(name="cpu_proxies_s_per_gb", unit="s", better="lower"),
        Metric(name="cpu_total_s_per_gb", unit="s", better="lower"),
        Metric(name="cpu_machine_s_per_gb", unit="s", better="lower"),
    ),
    "connects": (
        Metric(name="connects_per_s", unit="1/s", better="higher"),
        Metric(name="p50_us", unit="µs", better="lower"),
        Metric(name="p99_us", unit="µs", better="lower"),
        *_CPU_MESSAGES,
    ),
}


def figures(
    sizes: Sequence[int], connections: Sequence[int], streams: Sequence[int], callers: int, steady: float | None = None
) -> list[Figure]:
    """Every message size with every number of connections, then the streams, then new connections by `callers`, and
    those once more for `steady` seconds on end: longer than a closed connection keeps its port."""
    found = [
        Figure(name=f"echo {bytes_text(size)} ×{count}", command="echo", options={"connections": count, "size": size})
        for size in sizes
        for count in connections
    ]
    found += [Figure(name=f"stream ×{count}", command="stream", options={"connections": count}) for count in streams]
    found.append(Figure(name=f"connects ×{callers}", command="connects", options={"connections": callers}))
    if steady:
        name = f"connects ×{callers} for {steady:g} s"
        found.append(Figure(name=name, command="connects", options={"connections": callers}, seconds=steady))
    return found


def bytes_text(size: int) -> str:
    """4096 → "4KB", 100 → "100B"."""
    return f"{size // 1024}KB" if size >= 1024 and size % 1024 == 0 else f"{size}B"


def turns(rounds: int, figures: Sequence[Figure], columns: Sequence[str]) -> Iterator[tuple[int, Figure, str]]:
    """(round, figure, column): the columns take turns within a figure, and another one begins in every round."""
    for number in range(rounds):
        shift = number % len(columns)
        for figure in figures:
            if number and figure.seconds:
                continue
            for column in (*columns[shift:], *columns[:shift]):
                yield number, figure, column


def values(answer: Mapping[str, Any], cpu: Cpu) -> dict[str, float]:
    """The metrics of one answer of load.c and the CPU that was used meanwhile."""
    if answer["figure"] == "stream":
        per = 1e9 / answer["bytes"]
        return {
            "gbit_per_s": answer["gbit_per_s"],
            "cpu_proxies_s_per_gb": cpu.proxies * per,
            "cpu_total_s_per_gb": cpu.total * per,
            "cpu_machine_s_per_gb": cpu.machine * per,
        }
    echo = answer["figure"] == "echo"
    per = 1e3 * 1e4 / answer["total_messages" if echo else "connects"]
    return {
        "p50_us": answer["latency_us"]["p50"],
        "p99_us": answer["latency_us"]["p99"],
        "messages_per_s" if echo else "connects_per_s": answer["rate"],
        "cpu_proxies_ms_per_10k": cpu.proxies * per,
        "cpu_total_ms_per_10k": cpu.total * per,
        "cpu_machine_ms_per_10k": cpu.machine * per,
    }


def summarise(samples: Iterable[Sample], figure: str, metric: str, baseline: str) -> dict[str, Summary]:
    """By column. A ratio is taken within each round, where both sides met the same machine; then the median of them.

    There is no ratio where the baseline has nothing to divide by (the proxies' CPU where there is no proxy).
    """
    by_column: dict[str, dict[int, float]] = {}
    for sample in samples:
        if sample.figure == figure:
            by_column.setdefault(sample.column, {})[sample.round] = sample.values[metric]
    base = by_column.get(baseline, {})
    found = {}
    for column, by_round in by_column.items():
        ratios = [value / base[number] for number, value in by_round.items() if base.get(number)]
        found[column] = Summary(
            median=median(by_round.values()),
            samples=tuple(by_round[number] for number in sorted(by_round)),
            ratio=median(ratios) if ratios else None,
        )
    return found
