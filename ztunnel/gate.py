"""A gate that many pass, one step at a time, and that can be closed: then nobody is inside, nor gets in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Open at first. For one event loop."""

    __slots__ = ("_empty", "_inside", "_open")

    def __init__(self) -> None:
        self._inside = 0
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        """Wait until it is open, and be inside for the length of the block."""
        await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def close(self) -> None:
        """And wait until everybody has left."""
        self._open.clear()
        await self._empty.wait()

    def open(self) -> None:
        self._open.set()
