"""bpf/src/reason.h is what mesh.reason says."""

from __future__ import annotations

import re

from bpf import reasons
from mesh.reason import Reason


def test_the_header_is_up_to_date() -> None:
    assert reasons.HEADER.read_text() == reasons.render(), "run: python -m bpf.reasons"


def test_the_header_holds_what_the_kernel_owns() -> None:
    assert [int(n) for n in re.findall(r"= (\d+),", reasons.render())] == [r.value for r in Reason if r.value < 32]
