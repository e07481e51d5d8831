"""Writes bpf/src/reason.h from mesh.reason: `python -m bpf.reasons`. A test holds the file to the enum."""

from __future__ import annotations

from pathlib import Path

from mesh.reason import Reason

HEADER = Path(__file__).parent / "src" / "reason.h"


def render() -> str:
    lines = [f"  {reason.name} = {reason.value}," for reason in Reason if reason.value < 32]
    return "\n".join(["/* Written by bpf/reasons.py from mesh/reason.py. */", "enum reason {", *lines, "};", ""])


if __name__ == "__main__":
    HEADER.write_text(render())
