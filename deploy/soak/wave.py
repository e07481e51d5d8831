"""What is asked of the connections of one wave, and whether what came of them is right. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any

from deploy.soak import peer

Spec = dict[str, Any]
Line = Mapping[str, Any]

DIRECT, TUNNELLED = "direct", "tunnelled"
_SIZES = (0, 1, 1000, 16 << 10, 64 << 10, 300 << 10)


class Disturbance(Enum):
    """What happens during a wave; one after the other."""

    NONE = "nothing"
    POLICIES = "policies of others flap"
    REVOKED = "permission taken away"
    KILLED = "agent killed and back"

    def may_cut(self, path: str) -> bool:
        """Whether connections on this path may end in an error, or be refused."""
        return (self, path) in {(Disturbance.REVOKED, DIRECT), (Disturbance.KILLED, TUNNELLED)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """Connections by seed, those to the pod beside the client and those to the one on another node."""

    disturbance: Disturbance
    specs: Mapping[int, Spec]
    paths: Mapping[int, str]

    @property
    def endless(self) -> set[int]:
        """Those that end when they lose their permission, and not before."""
        return {seed for seed, spec in self.specs.items() if spec["up"] == peer.ENDLESS}

    def fault(self, line: Line | None, seed: int) -> str:
        """What is wrong with what a client told last of a connection; empty: nothing."""
        spec, path = self.specs[seed], self.paths[seed]
        if line is None:
            return "it never ended"
        if line["event"] == "refused":
            return "" if self.disturbance.may_cut(path) else f"it was refused: {line['errors']}"
        if not line["exact"]:
            return f"wrong bytes after {line['got']}"
        if spec.get("reset"):
            return ""
        if spec["up"] == peer.ENDLESS:
            return "" if line["errors"] else "it lost its permission and ended as if all were well"
        due = spec["down"] + (peer.SUMMARY.size if spec["mode"] == "X" else 0)
        if line["eof"] and not line["errors"] and line["got"] == due:
            return ""
        if line["errors"]:
            return "" if self.disturbance.may_cut(path) else f"{line['errors']} after {line['got']} of {due} bytes"
        return f"an end in order after {line['got']} of {due} bytes"

    def is_whole(self, line: Line, seed: int) -> bool:
        """Whether it ended as it began: not refused, not in an error, not by a RST of its own."""
        return line["event"] == "ended" and not line["errors"] and not self.specs[seed].get("reset")


def wave(
    disturbance: Disturbance, rng: Random, seeds: Iterator[int], near: Sequence[str], far: Sequence[str], *, each: int
) -> Wave:
    """`each` connections on either path, to any of the addresses `near` and `far`; of those that are to lose their
    permission some have no end."""
    specs: dict[int, Spec] = {}
    paths: dict[int, str] = {}
    for path, addresses in ((DIRECT, near), (TUNNELLED, far)):
        for number in range(each):
            seed = next(seeds)
            spec = _spec(rng) | {"seed": seed, "to": rng.choice(addresses)}
            if disturbance is Disturbance.REVOKED and path == DIRECT and number < 8:
                spec = {"seed": seed, "to": spec["to"], "mode": "X", "up": peer.ENDLESS, "down": peer.ENDLESS}
            specs[seed], paths[seed] = spec, path
    return Wave(disturbance=disturbance, specs=specs, paths=paths)


def _spec(rng: Random) -> Spec:
    """A random connection: both ways at once, or the server ends first; some slow, some held up, some reset."""
    spec: Spec = {"mode": rng.choice("XF"), "up": _size(rng), "down": _size(rng)}
    kind = rng.random()
    if kind < 0.10:
        spec |= {"pause": 0.005, "down": rng.randrange(100 << 10)}
    elif kind < 0.15:
        spec |= {"hold": True, "down": 2 << 20}
    elif kind < 0.20:
        spec |= {"reset": True}
    return spec


def _size(rng: Random) -> int:
    return rng.choice((*_SIZES, rng.randrange(64 << 10)))
