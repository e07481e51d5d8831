"""Numbers on a command line, and what is said of those that will not do."""

from __future__ import annotations

import argparse

import pytest

from deploy.bench.amount import positive, whole


def test_within_the_bounds() -> None:
    assert [whole(20, 250)(text) for text in ("20", "250")] == [20, 250]
    assert [positive(text) for text in ("0.5", "10", "1e3")] == [0.5, 10.0, 1000.0]


@pytest.mark.parametrize("text", ["19", "251", "-20", "20.0", "many", ""])
def test_a_whole_number_out_of_bounds_is_told_the_bounds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a whole number from 20 to 250"):
        whole(20, 250)(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_time_is_above_nothing_and_ends(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a number above 0"):
        positive(text)
