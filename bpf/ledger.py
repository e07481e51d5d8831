"""How ended flows are told: by themselves, or, of those that came and went before anybody looked, added up by what they
have in common.

A flow is told by itself if it had been found in the kernel's list by then, or if every end is wanted. So whoever lists
says first until when what was opened is found (`found_until`), and begins records of no younger ones: each flow is told
once, by itself or with others.

The ledger has two pages. Programs write to one, the reader takes the other and turns: what it takes was written before
the turn before, by programs that have ended long since. Nothing is lost, nothing counted twice, whoever reads next.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import NamedTuple

from bpf.layouts import ATTENTION, ENTRY, INDEX, OPENED_FLOWS, TALLY, unpack_asked, unpack_ip
from bpf.maps import Map
from mesh.model import SocketAddress


class DirectTally(NamedTuple):
    """Direct flows that have ended, all alike. `source` and `destination` are netns cookies; bytes are sums."""

    source: int
    destination: int
    client: str  # IP address
    server: SocketAddress
    asked: SocketAddress  # what was dialled: the server, or a Service
    flows: int
    sent: int
    received: int


class Ledger:
    """For one reader at a time. Everything may raise OSError."""

    __slots__ = ("_attention", "_counters", "_entries")

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._attention, self._counters, self._entries = maps["attention"], maps["counters"], maps["ledger"]

    def opened(self) -> int:
        """How many direct flows there have been in this layout. To be read before `found_until`."""
        values = self._counters.get(INDEX.pack(OPENED_FLOWS)) or b""
        return sum(int.from_bytes(values[i : i + 8], sys.byteorder) for i in range(0, len(values), 8))

    def tell_each(self, wanted: bool) -> None:
        """Whether every end is told by itself."""
        listed, page, each = self._read()
        if each != wanted:
            self._write(listed, page, int(wanted))

    def found_until(self, now_ns: int) -> None:
        """What was opened by then (CLOCK_MONOTONIC) is about to be listed; its end is told by itself."""
        _, page, each = self._read()
        self._write(now_ns, page, each)

    def turn(self) -> list[DirectTally]:
        """What ended before this was called last. To be called with some time between."""
        listed, page, each = self._read()
        found = []
        for key, value in self._entries.snapshot():
            source, destination, client, server, asked, port, asked_port, written = ENTRY.unpack(key)
            if written == page:
                continue
            self._entries.delete(key)
            address = SocketAddress(unpack_ip(server), port)
            dialled = unpack_asked(asked, asked_port, address)
            found.append(DirectTally(source, destination, unpack_ip(client), address, dialled, *TALLY.unpack(value)))
        self._write(listed, 1 - page, each)
        return found

    def _read(self) -> tuple[int, int, int]:
        listed, page, each = ATTENTION.unpack(self._attention.get(INDEX.pack(0)) or bytes(ATTENTION.size))
        return listed, page, each

    def _write(self, listed: int, page: int, each: int) -> None:
        self._attention.put(INDEX.pack(0), ATTENTION.pack(listed, page, each))
