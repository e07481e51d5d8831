"""The better Envoy is the one to beat, whichever it is."""

from __future__ import annotations

import pytest

from deploy.bench.figures import Figure, Sample
from deploy.bench.targets import TARGETS, Standing, standings

ECHO = Figure(name="echo", command="echo", options={"connections": 16, "size": 100})
CONNECTS = Figure(name="connects", command="connects", options={"connections": 4})


def echo(number: int, column: str, rate: float, cpu: float) -> Sample:
    values = {"messages_per_s": rate, "cpu_proxies_ms_per_10k": cpu, "p50_us": 1.0}
    return Sample(round=number, figure="echo", column=column, values=values)


def connects(column: str, rate: float) -> Sample:
    return Sample(round=0, figure="connects", column=column, values={"connects_per_s": rate})


def test_each_metric_has_its_own_better_one_and_ratios_are_taken_within_rounds() -> None:
    samples = [
        *(echo(0, *one) for one in (("gossamer", 40, 100), ("envoy-tcp", 10, 400), ("envoy-hbone", 20, 500))),
        *(echo(1, *one) for one in (("gossamer", 10, 300), ("envoy-tcp", 4, 400), ("envoy-hbone", 5, 500))),
        *(echo(2, *one) for one in (("gossamer", 30, 200), ("envoy-tcp", 8, 400), ("envoy-hbone", 10, 500))),
    ]
    rate, cpu = standings(samples, [ECHO])  # p50 is judged with one connection
    assert (rate.metric, rate.against, rate.ratio, rate.reached) == ("messages_per_s", "envoy-hbone", 2.0, True)
    assert (cpu.metric, cpu.against, cpu.ratio, cpu.reached) == ("cpu_proxies_ms_per_10k", "envoy-tcp", 0.5, True)


def test_connections_are_compared_with_the_hbone_pair_even_if_the_other_is_better() -> None:
    samples = [connects("gossamer", 150), connects("envoy-tcp", 300), connects("envoy-hbone", 100)]
    (found,) = standings(samples, [CONNECTS])
    assert (found.against, found.ratio, found.wanted, found.reached) == ("envoy-hbone", 1.5, 2.0, False)


@pytest.mark.parametrize("columns", [["gossamer"], ["envoy-tcp", "envoy-hbone"], ["gossamer", "none"]])
def test_without_both_sides_there_is_nothing_to_say(columns: list[str]) -> None:
    assert standings([echo(0, column, 1, 1) for column in columns], [ECHO]) == []
    assert standings([connects(column, 1) for column in (*columns, "envoy-tcp")], [CONNECTS]) == []


@pytest.mark.parametrize(("ratio", "better", "reached"), [(0.7, "lower", True), (0.71, "lower", False),
                                                          (2.0, "higher", True), (1.99, "higher", False)])  # fmt: skip
def test_reached(ratio: float, better: str, reached: bool) -> None:
    wanted = 0.7 if better == "lower" else 2.0
    one = Standing(figure="f", metric="m", against="a", ratio=ratio, better=better, wanted=wanted)
    assert one.reached is reached


def test_latency_is_judged_with_one_connection_and_rates_with_many() -> None:
    def judged(connections: int) -> set[str]:
        figure = Figure(name="x", command="echo", options={"connections": connections, "size": 1})
        return {target.metric for target in TARGETS if target.command == "echo" and target.applies(figure)}

    assert judged(1) == {"p50_us", "cpu_proxies_ms_per_10k"}
    assert judged(16) == judged(64) == {"messages_per_s", "cpu_proxies_ms_per_10k"}
    assert judged(256) == {"cpu_proxies_ms_per_10k"}
