"""Who stands still is found, who rests is let alone: by the numbers, with an event loop that is held up, and with real
threads of the engine, one of them stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import time

import pytest

from tests.halting import halted
from tests.unit.ztunnel.pump.nodes import Memory
from ztunnel.pump import PumpEngine
from ztunnel.watchdog import EVENT_LOOP, LOOKS, Standstill, Watchdog

DEADLINE = 60.0


@pytest.mark.parametrize(
    ("pulses", "stuck"),
    [
        ([(4, False)] * 30, False),  # rests
        ([(5, True)] * 30, True),  # in a round that has no end
        ([(4, True)] * 30, True),  # something has come, and it does not wake up
        ([(number, True) for number in range(30)], False),  # busy
        ([(5, True)] * LOOKS, False),  # not for long enough
        ([(5, True)] * 30 + [(6, False)], False),  # goes on
        ([(4, True), (4, False)] * 15, False),  # each time it was done before the next look
    ],
)
def test_who_is_stuck(pulses: list[tuple[int, bool]], stuck: bool) -> None:
    standstill = Standstill()
    for pulse in pulses:
        standstill.look({"other": (0, False), "one": pulse})
    assert standstill.stuck(LOOKS) == (["one"] if stuck else [])


def test_a_thread_that_ended_is_not_stuck() -> None:
    standstill = Standstill()
    for _ in range(30):
        standstill.look({"one": (1, True)})
    standstill.look({})
    assert standstill.stuck(LOOKS) == []


def watched(pulses: object = dict) -> Watchdog:
    return Watchdog(pulses, seconds=0.1)  # type: ignore[arg-type]


async def until(true: object) -> None:
    end = time.monotonic() + DEADLINE
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.02)


def hold_up(dog: Watchdog) -> None:
    end = time.monotonic() + DEADLINE
    while not dog.stuck and time.monotonic() < end:
        time.sleep(0.02)


async def test_an_event_loop_that_is_held_up(caplog: pytest.LogCaptureFixture) -> None:
    dog = watched()
    dog.start()
    try:
        await asyncio.sleep(2)
        assert not dog.stuck
        hold_up(dog)
        assert dog.stuck == [EVENT_LOOP]
        await until(lambda: not dog.stuck)
    finally:
        dog.stop()
    said, after = caplog.messages
    assert "in hold_up" in said and "not decided" in said, "it says where"
    assert after == "thread event-loop goes on"


async def test_a_thread_of_the_pump_that_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    engine = PumpEngine(Memory(), lambda facts: None, threads=2)
    dog = watched(engine.pulses)
    dog.start()
    try:
        await asyncio.sleep(2)
        idle = engine.pulses()
        with halted(os.getpid(), "pump-1"):
            await asyncio.sleep(2)
            assert not dog.stuck, "it has nothing to do"
            engine._pump.retire(1)  # an order to all, of a pod that nobody knows
            await until(lambda: dog.stuck)
            assert dog.stuck == ["pump-1"]
            assert engine.pulses()["pump-0"][0] > idle["pump-0"][0]
        await until(lambda: not dog.stuck)
        assert [name for name, (_, busy) in engine.pulses().items() if busy] == []
    finally:
        dog.stop()
        await engine.drain(1)
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "thread pump-1 is stuck" in error.message and "/healthz/live" in error.message


async def test_an_idle_thread_is_not_woken() -> None:
    engine = PumpEngine(Memory(), lambda facts: None, threads=2)
    dog = watched(engine.pulses)
    dog.start()
    try:
        await until(lambda: not any(busy for _, busy in engine.pulses().values()))
        before = engine.pulses()
        await asyncio.sleep(1.0)
        assert engine.pulses() == before
    finally:
        dog.stop()
        await engine.drain(1)
