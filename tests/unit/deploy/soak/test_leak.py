"""What counts as grown."""

from __future__ import annotations

import pytest

from deploy.soak.leak import Held, grown

BEFORE = Held(descriptors=100, memory_mib=50.0, entries={"legs": 2})


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (BEFORE, []),
        (Held(descriptors=90, memory_mib=40.0, entries={}), []),
        (Held(descriptors=110, memory_mib=60.0, entries={"legs": 1}), []),
        (Held(descriptors=200, memory_mib=60.0, entries={}), ["descriptors: 100 before, 200 after"]),
        (Held(descriptors=100, memory_mib=90.0, entries={}), ["memory: 50 MiB before, 90 MiB after"]),
        (
            Held(descriptors=100, memory_mib=50.0, entries={"legs": 3, "directs": 1}),
            ["map legs: 2 entries before, 3 after", "map directs: 0 entries before, 1 after"],
        ),
    ],
)
def test_grown(after: Held, words: list[str]) -> None:
    assert grown(BEFORE, after) == words
