"""Numbers on a command line: what is not one, or out of bounds, is said with the bounds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole(least: int, most: int) -> Callable[[str], int]:
    """For argparse's `type`: a whole number from `least` to `most`. (`choices` would print every one of them.)"""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return read


def positive(text: str) -> float:
    """For argparse's `type`: seconds or minutes, more than none and an end to them."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
