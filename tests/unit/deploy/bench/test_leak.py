"""What counts as a leak, and what as chance."""

from __future__ import annotations

import pytest

from deploy.bench.leak import Held, Outcome, document, sheet


def outcome(*looks: tuple[float, int]) -> Outcome:
    """One process, looked at after every ten connections; the second look is what the last is compared with."""
    found = {10 * number: {"agent": Held(pss_mib=mib, descriptors=fds)} for number, (mib, fds) in enumerate(looks, 1)}
    return Outcome(connections=10 * len(looks), seconds=1.0, looks=found, certificates=2, policies=3)


@pytest.mark.parametrize(
    ("looks", "leaks"),
    [
        ([(30, 20), (40, 50), (41, 50)], []),  # warming up is no leak
        ([(30, 20), (40, 50), (60, 90), (43.9, 66)], []),  # what was given back is none either
        ([(30, 20), (40, 50), (44.1, 50)], ["agent: memory from 40.0 to 44.1 MiB"]),
        ([(30, 20), (40, 50), (40, 67)], ["agent: descriptors from 50 to 67"]),
        ([(30, 20), (40, 50), (50, 70)], ["agent: memory from 40.0 to 50.0 MiB", "agent: descriptors from 50 to 70"]),
    ],
)
def test_what_is_left_after_the_last_beside_what_was_left_when_warm(
    looks: list[tuple[float, int]], leaks: list[str]
) -> None:
    found = outcome(*looks)
    assert found.leaks() == leaks
    assert document(found)["leaks"] == leaks
    assert ("Nothing has grown." in sheet(found).note) == (leaks == [])
