"""The order of measurements, what a number means, and medians of ratios."""

from __future__ import annotations

import pytest

from deploy.bench.figures import METRICS, Figure, Sample, figures, summarise, turns, values
from deploy.bench.usage import Cpu

ECHO = Figure(name="echo", command="echo", options={})
STREAM = Figure(name="stream", command="stream", options={})


def test_columns_take_turns_within_a_figure_and_another_begins_each_round() -> None:
    order = [(number, figure.name, column) for number, figure, column in turns(2, [ECHO, STREAM], ["a", "b", "c"])]
    assert order == [
        (0, "echo", "a"), (0, "echo", "b"), (0, "echo", "c"),
        (0, "stream", "a"), (0, "stream", "b"), (0, "stream", "c"),
        (1, "echo", "b"), (1, "echo", "c"), (1, "echo", "a"),
        (1, "stream", "b"), (1, "stream", "c"), (1, "stream", "a"),
    ]  # fmt: skip


def test_every_size_meets_every_number_of_connections() -> None:
    found = [(f.name, dict(f.options)) for f in figures([100, 4096], [1, 16], [1, 8], 4)]
    assert found == [
        ("echo 100B ×1", {"connections": 1, "size": 100}),
        ("echo 100B ×16", {"connections": 16, "size": 100}),
        ("echo 4KB ×1", {"connections": 1, "size": 4096}),
        ("echo 4KB ×16", {"connections": 16, "size": 4096}),
        ("stream ×1", {"connections": 1}),
        ("stream ×8", {"connections": 8}),
        ("connects ×4", {"connections": 4}),
    ]


def test_what_lasts_long_has_its_turn_once() -> None:
    *_, steady = figures([100], [1], [1], 4, steady=60)
    assert (steady.name, steady.seconds) == ("connects ×4 for 60 s", 60)
    order = [(number, figure.name) for number, figure, _ in turns(2, [ECHO, steady], ["a"])]
    assert order == [(0, "echo"), (0, steady.name), (1, "echo")]


CPU = Cpu(proxies=0.5, total=2.0, machine=3.0)
LATENCY = {"p50": 10.0, "p90": 11.0, "p99": 20.0}
ANSWERS = [
    # CPU per 10,000 messages counts all messages, those of the warm-up too: they used it.
    (
        {"figure": "echo", "latency_us": LATENCY, "rate": 900.0, "messages": 18_000, "total_messages": 20_000},
        {
            "p50_us": 10.0,
            "p99_us": 20.0,
            "messages_per_s": 900.0,
            "cpu_proxies_ms_per_10k": 250.0,
            "cpu_total_ms_per_10k": 1000.0,
            "cpu_machine_ms_per_10k": 1500.0,
        },
    ),
    (
        {"figure": "stream", "bytes": 4_000_000_000, "gbit_per_s": 16.0},
        {
            "gbit_per_s": 16.0,
            "cpu_proxies_s_per_gb": 0.125,
            "cpu_total_s_per_gb": 0.5,
            "cpu_machine_s_per_gb": 0.75,
        },
    ),
    (
        {"figure": "connects", "latency_us": LATENCY, "rate": 500.0, "connects": 1000},
        {
            "p50_us": 10.0,
            "p99_us": 20.0,
            "connects_per_s": 500.0,
            "cpu_proxies_ms_per_10k": 5000.0,
            "cpu_total_ms_per_10k": 20000.0,
            "cpu_machine_ms_per_10k": 30000.0,
        },
    ),
]


@pytest.mark.parametrize(("answer", "expected"), ANSWERS, ids=[str(answer["figure"]) for answer, _ in ANSWERS])
def test_values(answer: dict[str, object], expected: dict[str, float]) -> None:
    found = values(answer, CPU)
    assert found == pytest.approx(expected)
    assert set(found) == {metric.name for metric in METRICS[str(answer["figure"])]}


def samples(column: str, *numbers: float, figure: str = "echo") -> list[Sample]:
    return [Sample(round=n, figure=figure, column=column, values={"x": v}) for n, v in enumerate(numbers)]


def test_the_ratio_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    # The machine became three times slower after the first round; both columns met that.
    found = summarise([*samples("base", 10, 30, 30), *samples("ours", 20, 60, 45)], "echo", "x", "base")
    assert found["ours"].ratio == 2.0
    assert found["ours"].median == 45
    assert found["ours"].samples == (20, 60, 45)
    assert found["base"].ratio == 1.0


def test_there_is_no_ratio_to_nothing() -> None:
    found = summarise([*samples("base", 0, 0), *samples("ours", 1, 2)], "echo", "x", "base")
    assert found["ours"].ratio is None
    assert found["ours"].median == 1.5
    assert summarise(samples("ours", 1), "echo", "x", "absent")["ours"].ratio is None


def test_other_figures_samples_are_not_counted() -> None:
    found = summarise([*samples("a", 1), *samples("a", 99, figure="stream")], "echo", "x", "a")
    assert found["a"].samples == (1,)
