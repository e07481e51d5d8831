"""Ratios are of the same round, where both met the same machine."""

from __future__ import annotations

from deploy.bench.fairness import Sample, document, sheet


def sample(column: str, alone: tuple[float, float], beside: tuple[float, float]) -> Sample:
    return Sample(column=column, alone=alone, beside=beside, gbit_per_s=2.5, connects_per_s=480.0)


SAMPLES = [
    sample("none", (10, 20), (20, 60)),
    sample("gossamer", (100, 200), (300, 400)),
    sample("gossamer", (50, 100), (50, 300)),
    sample("gossamer", (10, 50), (60, 500)),
]


def test_medians_and_medians_of_ratios() -> None:
    ours = document(SAMPLES, 1.0)["columns"]["gossamer"]
    assert ours["p50_us"] == {"alone": 50, "beside": 60, "times": 3, "samples": [(100, 300), (50, 50), (10, 60)]}
    assert (ours["p99_us"]["alone"], ours["p99_us"]["beside"], ours["p99_us"]["times"]) == (100, 400, 3)
    assert ours["neighbour_gbit_per_s"] == 2.5


def test_what_the_neighbour_got_is_shown_beside() -> None:
    rows = {first: cells for first, *cells in sheet(document(SAMPLES, 1.0)).rows}
    assert rows["p99 µs, beside"] == ["60 ×3.00", "400 ×3.00"]
    assert rows["neighbour, connections/s"] == ["480", "480"]
