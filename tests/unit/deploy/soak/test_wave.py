"""What is right and what is wrong of a connection that is over, by what happened meanwhile."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from deploy.soak import peer
from deploy.soak.wave import DIRECT, TUNNELLED, Disturbance, Wave, wave

NONE, POLICIES, REVOKED, KILLED = Disturbance
EXCHANGE = {"mode": "X", "up": 10, "down": 100}
SUM = 100 + peer.SUMMARY.size


def over(got: int = SUM, *, exact: bool = True, eof: bool = True, errors: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"event": "ended", "got": got, "exact": exact, "eof": eof, "errors": list(errors)}


REFUSED = {"event": "refused", "errors": ["ECONNREFUSED"]}
RESET = ("ECONNRESET",)


@pytest.mark.parametrize(
    ("kind", "path", "spec", "line", "fault"),
    [
        (NONE, DIRECT, EXCHANGE, over(), ""),
        (NONE, DIRECT, EXCHANGE, None, "it never ended"),
        (NONE, DIRECT, EXCHANGE, over(SUM - 1), "in order after"),
        (NONE, DIRECT, EXCHANGE, over(50, exact=False), "wrong bytes"),
        (NONE, DIRECT, EXCHANGE, over(50, eof=False, errors=RESET), "ECONNRESET"),
        (NONE, TUNNELLED, EXCHANGE, REFUSED, "refused"),
        (NONE, DIRECT, {**EXCHANGE, "mode": "F"}, over(100), ""),
        (NONE, DIRECT, {**EXCHANGE, "reset": True}, over(0, eof=False), ""),
        (POLICIES, DIRECT, EXCHANGE, over(50, eof=False, errors=RESET), "ECONNRESET"),
        (REVOKED, DIRECT, EXCHANGE, over(50, eof=False, errors=RESET), ""),
        (REVOKED, DIRECT, EXCHANGE, over(), ""),
        (REVOKED, DIRECT, EXCHANGE, REFUSED, ""),
        (REVOKED, DIRECT, EXCHANGE, over(50), "in order after"),
        (REVOKED, DIRECT, EXCHANGE, over(50, exact=False, errors=RESET), "wrong bytes"),
        (REVOKED, TUNNELLED, EXCHANGE, over(50, eof=False, errors=RESET), "ECONNRESET"),
        (REVOKED, DIRECT, {**EXCHANGE, "up": peer.ENDLESS}, over(50, errors=RESET), ""),
        (REVOKED, DIRECT, {**EXCHANGE, "up": peer.ENDLESS}, over(50), "as if all were well"),
        (KILLED, TUNNELLED, EXCHANGE, over(50, eof=False, errors=RESET), ""),
        (KILLED, TUNNELLED, EXCHANGE, over(50), "in order after"),
        (KILLED, DIRECT, EXCHANGE, over(50, eof=False, errors=RESET), "ECONNRESET"),
        (KILLED, DIRECT, EXCHANGE, REFUSED, "refused"),
    ],
)
def test_faults(kind: Disturbance, path: str, spec: dict[str, Any], line: dict[str, Any] | None, fault: str) -> None:
    made = Wave(disturbance=kind, specs={1: spec}, paths={1: path})
    found = made.fault(line, 1)
    assert (fault in found) if fault else not found


@pytest.mark.parametrize("kind", Disturbance)
def test_a_wave_has_as_many_of_either_path_and_each_its_own_seed(kind: Disturbance) -> None:
    seeds = itertools.count(5)
    made = wave(kind, random.Random(1), seeds, ["a", "aa"], ["b"], each=50)
    assert [*made.specs] == [*made.paths] == [*range(5, 105)]
    for seed, spec in made.specs.items():
        assert spec["seed"] == seed
        assert spec["to"] in (("a", "aa") if made.paths[seed] == DIRECT else ("b",))
    endless = [spec for spec in made.specs.values() if spec["up"] == peer.ENDLESS]
    assert len(endless) == (8 if kind is REVOKED else 0)
    assert made.specs == wave(kind, random.Random(1), itertools.count(5), ["a", "aa"], ["b"], each=50).specs


def test_every_kind_of_connection_comes_up() -> None:
    specs = wave(NONE, random.Random(1), itertools.count(), ["a"], ["b"], each=200).specs.values()
    for what in ("pause", "hold", "reset"):
        assert 0 < sum(what in spec for spec in specs) < 100
    assert {spec["mode"] for spec in specs} == {"X", "F"}


def test_the_endless_ones_are_direct_and_only_where_permission_is_taken_away() -> None:
    for kind in Disturbance:
        made = wave(kind, random.Random(1), itertools.count(1), ["10.0.0.1"], ["10.0.0.2"], each=20)
        assert {made.paths[seed] for seed in made.endless} == ({DIRECT} if kind is REVOKED else set())
