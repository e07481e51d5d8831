"""The relay as a table of steps: two endpoints that are lists of bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from mesh.reason import Reason
from ztunnel.engine.endpoint import Lost
from ztunnel.engine.relay import Relay

RESET = Lost(Reason.RESET_BY_PEER, "reset")
END = b""


class Memory:
    """`incoming` holds bytes, END, or a Lost; `capacity` is what `write` may still take."""

    def __init__(self, *incoming: bytes | Lost, capacity: int = 1 << 30) -> None:
        self.incoming: deque[bytes | Lost] = deque(incoming)
        self.capacity = capacity
        self.written = bytearray()
        self.finished = self.held_back = False
        self.lost: Lost | None = next((item for item in incoming if isinstance(item, Lost)), None)
        self.on_change: Callable[[], None] = lambda: None

    @property
    def room(self) -> bool:
        return self.capacity > 0

    @property
    def flushed(self) -> bool:
        return self.finished and not self.held_back

    def read(self, limit: int) -> bytes | None:
        if not self.incoming:
            return None
        item = self.incoming.popleft()
        if isinstance(item, Lost):
            raise item
        if len(item) > limit:
            self.incoming.appendleft(item[limit:])
        return item[:limit]

    def write(self, data: bytes) -> None:
        if self.lost is not None:
            raise self.lost
        assert self.room
        self.written += data
        self.capacity -= len(data)

    def finish(self) -> None:
        assert not self.finished
        self.finished = True

    def abort(self) -> None:
        raise AssertionError("not the relay's business")

    def close(self) -> None:
        raise AssertionError("not the relay's business")

    def gets(self, *items: bytes | Lost) -> None:
        self.incoming += items
        self.lost = next((item for item in items if isinstance(item, Lost)), self.lost)
        self.on_change()


class Run:
    def __init__(self, downstream: Memory, upstream: Memory) -> None:
        self.down, self.up = downstream, upstream
        self.again: deque[Callable[[], None]] = deque()
        self.over: list[Lost | None] = []
        self.relay = Relay(downstream, upstream, self.again.append, self.over.append)
        self.relay.step()

    def settle(self) -> None:
        while self.again:
            self.again.popleft()()


def test_bytes_go_both_ways_and_are_counted() -> None:
    run = Run(Memory(b"question"), Memory(b"answer!"))
    assert (bytes(run.up.written), bytes(run.down.written)) == (b"question", b"answer!")
    assert (run.relay.forward.moved, run.relay.backward.moved) == (8, 7)
    assert run.over == []


def test_each_direction_ends_by_itself() -> None:
    run = Run(Memory(b"q", END), Memory())
    assert run.up.finished
    assert not run.down.finished
    run.up.gets(b"late answer")
    assert bytes(run.down.written) == b"late answer"
    assert run.over == []
    run.up.gets(END)
    assert run.over == [None]


def test_it_is_over_only_when_the_last_bytes_have_left() -> None:
    run = Run(Memory(b"q", END), Memory())
    run.down.held_back = True
    run.up.gets(b"a", END)
    assert run.over == []
    run.down.held_back = False
    run.down.on_change()
    assert run.over == [None]


def test_nothing_is_read_while_there_is_no_room() -> None:
    run = Run(Memory(b"a", b"b", b"c"), Memory(capacity=1))
    assert list(run.down.incoming) == [b"b", b"c"]
    run.up.capacity = 10
    run.up.on_change()
    assert bytes(run.up.written) == b"abc"


def test_a_step_is_bounded() -> None:
    run = Run(Memory(b"x" * (2 << 20)), Memory())
    assert 0 < len(run.up.written) < 2 << 20
    run.settle()
    assert len(run.up.written) == 2 << 20


@pytest.mark.parametrize("downstream_fails", [True, False])
def test_a_reset_comes_after_what_was_sent_before_it(downstream_fails: bool) -> None:
    failing, other = Memory(b"prefix", RESET), Memory(b"something")
    run = Run(failing, other) if downstream_fails else Run(other, failing)
    assert bytes(other.written) == b"prefix"
    assert not other.finished
    assert run.over == [RESET]


def test_a_reset_is_found_although_its_bytes_cannot_be_delivered() -> None:
    run = Run(Memory(b"a", b"b"), Memory(capacity=1))
    run.down.gets(RESET)
    assert run.over == [RESET]


def test_a_reset_after_its_own_end_is_found_too() -> None:
    run = Run(Memory(), Memory(b"bye", END))
    run.up.lost = RESET
    run.up.on_change()
    assert run.over == [RESET]


def test_a_failure_after_both_ends_is_no_news() -> None:
    run = Run(Memory(b"q", END), Memory(b"a", END))
    run.up.lost = RESET
    run.up.on_change()
    assert run.over == [None]


def test_a_fault_of_an_endpoint_ends_the_relay_as_internal() -> None:
    class Broken(Memory):
        def read(self, limit: int) -> bytes | None:
            raise ArithmeticError("ours")

    (lost,) = Run(Broken(), Memory()).over
    assert lost is not None
    assert lost.reason == Reason.INTERNAL


def test_a_stopped_relay_moves_nothing() -> None:
    run = Run(Memory(), Memory())
    run.relay.stop()
    run.down.gets(b"x", END)
    assert (bytes(run.up.written), run.over) == (b"", [])
