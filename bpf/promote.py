"""Promotion of direct flows: both ends of a flow go into the sockhash, by a program that is run once for each; and back
to TCP."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import IntEnum

from bpf import load, netns, syscall
from bpf.artifact import Artifact
from bpf.layouts import PROMOTION, pack_tuple
from mesh.model import SocketAddress


class Outcome(IntEnum):
    """What became of one end: enum outcome."""

    PROMOTED = 1
    NOT_THERE = 2  # it has closed
    NOT_FIT = 3  # it needs TCP, for good
    IN_DOUBT = 4  # it may have; the kernel asks again
    DEMOTED = 5
    UNREAD = 6  # not yet: redirected bytes are, or may be, unread


class Promoter:
    """Owns the programs' file descriptors. Flows are named by the cookie of the destination's netns and by their
    addresses; `at_source` and `at_destination` are file descriptors of the two netns. Everything may raise OSError."""

    __slots__ = ("_demote", "_promote")

    def __init__(self, artifact: Artifact, maps: Mapping[str, int]) -> None:
        self._promote = load.new_program(artifact, "promote", maps)
        try:
            self._demote = load.new_program(artifact, "demote", maps)
        except BaseException:
            os.close(self._promote)
            raise

    def close(self) -> None:
        os.close(self._promote)
        os.close(self._demote)

    def promote(
        self, destination: int, client: SocketAddress, server: SocketAddress, *, at_source: int, at_destination: int
    ) -> Outcome:
        """The first outcome that is not PROMOTED. An end that is promoted alone goes on by TCP."""
        flow = pack_tuple(destination, server, client)
        for place, is_client in ((at_source, 1), (at_destination, 0)):
            with netns.entered(place):
                outcome = Outcome(syscall.test_run(self._promote, PROMOTION.pack(flow, is_client, 0)))
            if outcome is not Outcome.PROMOTED:
                return outcome
        return Outcome.PROMOTED

    def close_lanes(self, destination: int, client: SocketAddress, server: SocketAddress) -> None:
        """Bytes go by TCP from now on, in both directions, for good."""
        self._out(destination, client, server, last=0)

    def demote(self, destination: int, client: SocketAddress, server: SocketAddress) -> Outcome:
        """At least 0.1 s after `close_lanes`: UNREAD if that is to be tried again for either end."""
        return Outcome.UNREAD if Outcome.UNREAD in self._out(destination, client, server, last=1) else Outcome.DEMOTED

    def _out(self, destination: int, client: SocketAddress, server: SocketAddress, *, last: int) -> list[Outcome]:
        flow = pack_tuple(destination, server, client)
        packets = (PROMOTION.pack(flow, is_client, last) for is_client in (1, 0))
        return [Outcome(syscall.test_run(self._demote, packet)) for packet in packets]
