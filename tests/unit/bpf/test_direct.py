"""A change of policy as the kernel sees it, write by write: whoever looks in between is answered by one generation,
whole; also if writing fails, or if an agent before was killed halfway."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf import Mode, PodSlot, Target, VerdictEntry
from bpf.direct import DirectPath
from bpf.layouts import COOKIE, INDEX, PAIR, PLACE, SETTINGS, TARGET, pack_ip

PODS = {f"p{n}": PodSlot(instance=f"p{n}", slot=n, cookie=100 + n, addresses=(f"10.0.0.{n}",)) for n in range(3)}
FLOWS = [(source, destination) for source in PODS for destination in PODS]
PORT = 80


class Killed(BaseException):
    """The agent's end, wherever it was."""


@dataclass(kw_only=True)
class SmallMap:
    """Written entry by entry; after each, `written` is told."""

    name: str
    written: Callable[[str, str], None]
    entries: dict[bytes, bytes] = field(default_factory=dict)

    def get(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        return list(self.entries.items())

    def put(self, key: bytes, value: bytes) -> None:
        self.written(self.name, "put")
        self.entries[key] = value

    def delete(self, key: bytes) -> None:
        self.written(self.name, "delete")
        self.entries.pop(key, None)

    def put_all(self, entries: Mapping[bytes, bytes]) -> None:
        for key, value in entries.items():
            self.put(key, value)

    def delete_all(self, keys: Collection[bytes]) -> None:
        for key in keys:
            self.delete(key)

    def clear(self) -> None:
        self.delete_all(list(self.entries))


@dataclass(frozen=True, kw_only=True)
class Plan:
    targets: Mapping[str, Target] = field(default_factory=dict)
    entries: frozenset[tuple[str, str]] = frozenset()

    def permits(self, source: str, destination: str) -> bool:
        target = self.targets.get(destination)
        if target is None or source not in self.targets:
            return False
        return target.mode is Mode.OPEN or (source, destination) in self.entries

    def accelerates(self, source: str, destination: str) -> bool:
        return self.targets[source].accelerate and self.targets[destination].accelerate


class Node:
    """The maps; `plans` says what each generation that was ever in force stands for. Before each write `fault` may
    raise, and whoever looks then is answered rightly."""

    def __init__(self) -> None:
        self.maps = {name: SmallMap(name=name, written=self._written) for name in ("settings", "sources", "targets")}
        self.maps["verdicts"] = SmallMap(name="verdicts", written=self._written)
        self.maps["settings"].entries[INDEX.pack(0)] = SETTINGS.pack(0, 0, 0, 0, 0, 0, 1, 1)
        self.path = DirectPath(self.maps)  # type: ignore[arg-type]
        self.plans = {1: Plan()}
        self.former = self.next = Plan()
        self.fault: Callable[[int], None] = lambda number: None
        self.log: list[str] = []
        self.gap = False  # whether something may be a miss that is permitted

    def switch(self, plan: Plan, *, gap: bool = False) -> int:
        self.former, self.next, self.log, self.gap = self.plans[self.path.generation], plan, [], gap
        entries = [VerdictEntry(source=s, destination=d, port=PORT, allow=True) for s, d in sorted(plan.entries)]
        left_out = self.path.switch(PODS, plan.targets, entries)
        self.look()
        return left_out

    def settle(self, plan: Plan) -> None:
        """As the agent does it: what fails is a miss until it has been told once more."""
        try:
            self.switch(plan)
        except OSError:
            self.gap = True
            self.path.bump()
            self.look()
            assert not any(self.admits(*flow) for flow in FLOWS)
            self.switch(plan, gap=True)

    def _written(self, name: str, what: str) -> None:
        self.look()
        entry = f"{name} {what}"
        if self.log[-1:] != [entry]:
            self.log.append(entry)
        self.fault(len(self.log))

    def look(self) -> None:
        now = self.path.generation
        if now not in self.plans:
            self.plans[now] = self.next
        for flow in FLOWS:
            for generation, plan in self.plans.items():
                found = self.judged(*flow, generation)
                assert found is None or plan.permits(*flow)
                assert not found or plan.accelerates(*flow)
            if not self.gap and self.former.permits(*flow) and self.next.permits(*flow):
                assert self.admits(*flow), flow

    def judged(self, source: str, destination: str, generation: int) -> bool | None:
        """As bpf/src/direct.c does it: whether it is accelerated; None: a miss."""
        origin, goal = PODS[source], PODS[destination]
        target = self.maps["targets"].get(PLACE.pack(generation, pack_ip(goal.addresses[0])))
        mine = self.maps["sources"].get(COOKIE.pack(origin.cookie))
        if target is None or mine is None:
            return None
        cookie, _, mode, accelerate = TARGET.unpack(target)
        pair = PAIR.pack(origin.cookie, cookie, PORT, generation)
        if mode != Mode.OPEN and self.maps["verdicts"].get(pair) != INDEX.pack(0):
            return None
        return bool(accelerate) and mine == INDEX.pack(1)

    def admits(self, source: str, destination: str) -> bool:
        return self.judged(source, destination, self.path.generation) is not None

    def is_at(self, plan: Plan) -> bool:
        """In force, and nothing else is there."""
        held = (len(self.maps["targets"].entries), len(self.maps["verdicts"].entries))
        right = all(self.admits(*flow) == plan.permits(*flow) for flow in FLOWS)
        return right and held == (len(plan.targets), len(plan.entries))


targets = st.builds(Target, mode=st.sampled_from(list(Mode)), accelerate=st.booleans())
plans = st.builds(
    Plan,
    targets=st.dictionaries(st.sampled_from(sorted(PODS)), targets),
    entries=st.frozensets(st.sampled_from(FLOWS)),
)


@given(st.lists(plans, min_size=2, max_size=4))
@settings(deadline=None, max_examples=60)
def test_who_is_permitted_before_and_after_is_so_meanwhile_and_nobody_is_by_neither(changes: list[Plan]) -> None:
    node = Node()
    for plan in changes:
        assert node.switch(plan) == 0
        assert node.is_at(plan)


@given(plans, plans, st.integers(1, 12), st.sampled_from([errno.ENOMEM, errno.E2BIG, errno.EPERM]))
@settings(deadline=None, max_examples=60)
def test_what_fails_is_a_miss_until_it_is_told_again(before: Plan, after: Plan, when: int, code: int) -> None:
    node, failed = Node(), False

    def fault(number: int) -> None:
        nonlocal failed
        if number >= when and not failed:
            failed = node.gap = True
            raise OSError(code, os.strerror(code))

    node.switch(before)
    node.fault = fault
    node.settle(after)
    assert node.is_at(after)


@given(plans, plans, plans, st.integers(1, 8), st.booleans())
@settings(deadline=None, max_examples=60)
def test_what_a_killed_agent_wrote_halfway_is_never_in_force(
    before: Plan, half: Plan, after: Plan, when: int, blind: bool
) -> None:
    node = Node()

    def fault(number: int) -> None:
        if number >= when:
            raise Killed

    node.switch(before)
    node.fault = fault
    with suppress(Killed):
        node.switch(half)
    node.look()
    node.fault, node.next, node.gap = lambda number: None, after, True
    if blind:  # the next one cannot plan anything yet
        node.path.bump()
        node.look()
        assert not any(node.admits(*flow) for flow in FLOWS)
    node.switch(after, gap=True)  # sources that were narrowed wait for the next generation
    assert node.is_at(after)


OPEN, LISTED = Target(mode=Mode.OPEN), Target(mode=Mode.LISTED)
WAS = Plan(targets={"p0": OPEN, "p1": LISTED}, entries=frozenset({("p0", "p1")}))
BECOMES = Plan(targets={"p1": LISTED, "p2": OPEN}, entries=frozenset({("p2", "p1")}))
WHOLE = [
    "sources delete",
    "targets put",
    "verdicts put",
    "settings put",
    "targets delete",
    "verdicts delete",
    "sources put",
]
AGAIN = ["settings put", "targets delete", "verdicts delete", "sources put", "targets put", "verdicts put"]


@pytest.mark.parametrize(
    ("fails", "order"),
    [
        ("", WHOLE),
        ("targets put", [*WHOLE[:2], *AGAIN]),
        ("verdicts put", [*WHOLE[:3], *AGAIN]),
    ],
)
def test_the_order(fails: str, order: list[str]) -> None:
    """Where there is no room for two generations, the former goes first."""
    node = Node()
    node.switch(WAS)

    def fault(number: int) -> None:
        nonlocal fails
        if node.log[-1] == fails:
            fails, node.gap = "", True
            raise OSError(errno.E2BIG, "full")

    node.fault = fault
    assert node.switch(BECOMES) == 0
    assert node.log == order
    assert node.is_at(BECOMES)


def test_what_no_room_is_for_is_counted_and_a_miss() -> None:
    node = Node()
    node.switch(WAS)

    def fault(number: int) -> None:
        if node.log[-1] == "verdicts put":
            node.gap = True
            raise OSError(errno.E2BIG, "full")

    node.fault = fault
    assert node.switch(BECOMES) == 1
    assert not node.admits("p2", "p1")
    assert node.admits("p1", "p2")


def test_generations_wrap_and_none_is_zero() -> None:
    node = Node()
    node.maps["settings"].entries[INDEX.pack(0)] = SETTINGS.pack(0, 0, 0, 0, 0, 0, 2**32 - 2, 1)
    node.plans = {2**32 - 2: Plan()}
    for plan in (WAS, BECOMES, WAS):
        node.switch(plan)
        assert node.is_at(plan)
    assert node.path.generation == 2
    node.maps["settings"].entries[INDEX.pack(0)] = SETTINGS.pack(0, 0, 0, 0, 0, 0, 2**32 - 1, 1)
    node.path.bump()
    assert node.path.generation == 2
