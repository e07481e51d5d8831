"""Promotion of direct flows: both ends of a flow go into the sockhash, by a program that is run once for each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import IntEnum

from bpf import load, netns, syscall
from bpf.artifact import Artifact
from bpf.layouts import PROMOTION, pack_tuple
from mesh.model import SocketAddress


class Outcome(IntEnum):
    """What became of one end: enum promoted."""

    PROMOTED = 1
    NOT_THERE = 2  # it has closed
    NOT_FIT = 3  # it needs TCP, for good
    IN_DOUBT = 4  # it may have; the kernel asks again


class Promoter:
    """Owns the program's file descriptor."""

    __slots__ = ("_program",)

    def __init__(self, artifact: Artifact, maps: Mapping[str, int]) -> None:
        self._program = load.new_program(artifact, "promote", maps)

    def close(self) -> None:
        os.close(self._program)

    def promote(
        self, destination: int, client: SocketAddress, server: SocketAddress, *, at_source: int, at_destination: int
    ) -> Outcome:
        """`destination` is the cookie of its netns; `at_source` and `at_destination` are file descriptors of both. The
        first outcome that is not PROMOTED. An end that is promoted alone stays with TCP. OSError."""
        flow = pack_tuple(destination, server, client)
        for place, is_client in ((at_source, 1), (at_destination, 0)):
            with netns.entered(place):
                outcome = Outcome(syscall.test_run(self._program, PROMOTION.pack(flow, is_client, 0)))
            if outcome is not Outcome.PROMOTED:
                return outcome
        return Outcome.PROMOTED
