"""What the kernel side refused, in few words."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import pytest

from mesh.model import SocketAddress
from mesh.reason import Reason
from ztunnel import refusals
from ztunnel.refusals import follow, summary


@dataclass(frozen=True)
class Event:
    reason: Reason
    netns: int
    local: SocketAddress
    remote: SocketAddress


NOWHERE = SocketAddress("::", 0)


def event(reason: Reason, netns: int, port: int, remote: SocketAddress = NOWHERE) -> Event:
    return Event(reason, netns, SocketAddress("10.0.0.2", port), remote)


def test_one_line_per_pod_port_and_reason_the_most_frequent_first() -> None:
    client = SocketAddress("10.0.0.1", 4)
    lines = summary(
        [
            event(Reason.AGENT_ABSENT, 1, 80, client),
            *[event(Reason.RESERVED_PORT, 2, 15001)] * 3,
            event(Reason.AGENT_ABSENT, 1, 80, client),
        ],
        {1: "shop/db"},
    )
    assert lines == [
        f"netns 2: RESERVED_PORT 3x, last to 10.0.0.2:15001: {Reason.RESERVED_PORT.hint}",
        f"shop/db: AGENT_ABSENT 2x, last to 10.0.0.2:80 from 10.0.0.1:4: {Reason.AGENT_ABSENT.hint}",
    ]


def test_a_port_scan_does_not_fill_the_log() -> None:
    lines = summary([event(Reason.AGENT_ABSENT, 1, port) for port in range(1, 1001)], {})
    assert len(lines) == 21
    assert lines[-1] == "and 980 other kinds; see the counters"


def test_nothing() -> None:
    assert summary([], {}) == []


@dataclass
class Opened:
    id: int


@dataclass
class SmallRing:
    """A pipe: what is written with a wake-up makes `fd` readable."""

    waiting: list[object] = field(default_factory=list)

    def __enter__(self) -> SmallRing:
        self.fd, self._writer = os.pipe()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.fd)
        os.close(self._writer)

    def put(self, *events: object, wake: bool) -> None:
        self.waiting.extend(events)
        if wake:
            os.write(self._writer, b"x")

    def read(self) -> Iterator[object]:
        while self.waiting:
            yield self.waiting.pop(0)


@pytest.mark.parametrize("wake", [True, False], ids=["woken", "unwoken"])
async def test_refusals_go_to_the_log_and_all_else_is_told_in_one_batch(
    wake: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also those that the kernel side did not wake anybody for."""
    heard: list[list[object]] = []
    done = asyncio.Event()

    def tell(events: Sequence[object], drained: bool) -> None:
        heard.append(list(events))
        if drained and events:
            done.set()

    with SmallRing() as ring, caplog.at_level(logging.WARNING):
        task = asyncio.create_task(follow(ring, lambda: {1: "shop/db"}, Event, tell))
        ring.put(Opened(1), event(Reason.AGENT_ABSENT, 1, 80), Opened(2), wake=wake)
        async with asyncio.timeout(20):
            await done.wait()
            await asyncio.sleep(0)
        task.cancel()
    assert heard == [[Opened(1), Opened(2)]]
    assert "shop/db: AGENT_ABSENT 1x" in caplog.text


async def test_a_batch_that_is_not_all_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come last: of one who reads them, all else has been heard, however many of them there are."""
    monkeypatch.setattr(refusals, "_BATCH", 2)
    heard: list[tuple[list[object], bool]] = []
    done = asyncio.Event()

    def tell(events: Sequence[object], drained: bool) -> None:
        heard.append((list(events), drained))
        if drained:
            done.set()

    with SmallRing() as ring:
        ring.put(*map(Opened, range(4)), *[event(Reason.AGENT_ABSENT, 1, 80)] * 5, wake=True)
        task = asyncio.create_task(follow(ring, lambda: {1: "shop/db"}, Event, tell))
        async with asyncio.timeout(20):
            await done.wait()
        task.cancel()
    assert heard == [([Opened(0), Opened(1)], False), ([Opened(2), Opened(3)], False), ([], True)]
