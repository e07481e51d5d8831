"""The ring buffers of direct flows and of refusals. Layout (https://docs.kernel.org/bpf/ringbuf.html): a page with the
consumer's position, a page with the producer's, then the data, mapped twice so that a record is never broken."""

from __future__ import annotations

import ctypes
import mmap
import select
import struct
from collections.abc import Iterator, Sequence

from bpf.layouts import EVENT, Event, Happening, unpack_event

_BUSY, _DISCARDED = 1 << 31, 1 << 30
_PAGE = mmap.PAGESIZE


class Ring:
    """Readable (poll, epoll, add_reader) on `fd` when there are events. The map's owner closes `fd`."""

    __slots__ = ("_consumer", "_data", "_position", "_size", "fd")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self._size = size
        self._consumer = mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._position = ctypes.c_uint64.from_buffer(self._consumer)
        self._data = mmap.mmap(fd, _PAGE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE)

    def close(self) -> None:
        del self._position
        self._consumer.close()
        self._data.close()

    def read(self) -> Iterator[Event | Happening]:
        """Events that are there now; never waits."""
        while True:
            at = self._position.value
            if at >= struct.unpack_from("=Q", self._data)[0]:
                return
            start = _PAGE + at % self._size
            (head,) = struct.unpack_from("=I", self._data, start)
            if head & _BUSY:
                return
            length = head & ~_DISCARDED
            if not head & _DISCARDED and length >= EVENT.size:
                yield unpack_event(self._data, start + 8, length)
            self._position.value = at + (8 + length + 7) // 8 * 8


class Rings:
    """Several as one: of the first ones all is read before anything of those that follow. Readable on `fd` likewise."""

    __slots__ = ("_poll", "_rings")

    def __init__(self, rings: Sequence[Ring]) -> None:
        self._rings = rings
        self._poll = select.epoll()
        for ring in rings:
            self._poll.register(ring.fd, select.EPOLLIN)

    @property
    def fd(self) -> int:
        return self._poll.fileno()

    def close(self) -> None:
        self._poll.close()
        for ring in self._rings:
            ring.close()

    def read(self) -> Iterator[Event | Happening]:
        """Events that are there now; never waits. Ends of direct flows do not wake who waits for `fd`: read twice a
        second. What a ring had no room for is counted: `Kernel.lost_events`."""
        for ring in self._rings:
            yield from ring.read()
