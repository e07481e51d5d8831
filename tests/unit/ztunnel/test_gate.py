"""Many pass, nobody is inside once it is closed."""

from __future__ import annotations

import asyncio

from ztunnel.gate import Gate


async def test_closing_waits_for_those_inside_and_keeps_others_out() -> None:
    gate, inside, leave = Gate(), [], asyncio.Event()

    async def step(name: str) -> None:
        async with gate.passed():
            inside.append(name)
            await leave.wait()
            inside.remove(name)

    first = [asyncio.create_task(step(name)) for name in "ab"]
    await asyncio.sleep(0)
    assert inside == ["a", "b"]
    closing = asyncio.create_task(gate.close())
    await asyncio.sleep(0)
    late = asyncio.create_task(step("late"))
    await asyncio.sleep(0.01)
    assert not closing.done()
    assert inside == ["a", "b"]
    leave.set()
    await asyncio.wait_for(closing, 10)
    assert inside == []
    assert not late.done()
    await asyncio.gather(*first)
    gate.open()
    await asyncio.wait_for(late, 10)


async def test_who_fails_inside_has_left() -> None:
    gate = Gate()

    async def fail() -> None:
        async with gate.passed():
            raise ValueError

    await asyncio.gather(fail(), return_exceptions=True)
    await asyncio.wait_for(gate.close(), 10)
