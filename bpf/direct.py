"""The direct path as user space sees it: which pods are reached directly, the verdicts, and the flows there are.

Order of a change of policy: `switch`, then `flows`, and end those that lost their permission. What only loosens may be
added to the generation in force, by `set_targets` and `put_verdicts`. A target that is narrowed (open -> listed) or
removed that way still holds for a connect() that is under way.

Targets and verdicts are of a generation: all entries of the next are written while one is in force, then the number is
raised, so whoever looks finds one of the two, whole. Nobody is let in by what an agent wrote that was killed halfway:
whoever writes the next generation removes first what is there of it, and `bump`, which removes nothing before, passes
it over. No number is used twice, but after 2^32 changes.

`sources` has no generation. What is taken away from it goes before the targets of the next generation are written, what
is added comes when the former is gone: in between a pod that changes asks the agent.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from bpf.layouts import (
    COOKIE,
    DIRECT,
    DIRECT_ESTABLISHED,
    INDEX,
    METER,
    PAIR,
    PLACE,
    SETTINGS,
    TARGET,
    TARGET_LISTED,
    TARGET_OPEN,
    pack_ip,
    unpack_asked,
    unpack_tuple,
)
from bpf.maps import Map
from bpf.registry import PodSlot
from mesh.model import SocketAddress
from mesh.reason import Reason


class Mode(IntEnum):
    """OPEN: any pod that is a target itself may dial, any port. LISTED: there must be a verdict."""

    OPEN = TARGET_OPEN
    LISTED = TARGET_LISTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An enrolled pod of this node that takes the direct path, both ways."""

    mode: Mode
    accelerate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictEntry:
    """`source` and `destination` are instances; `reason` says why, unless it is allowed."""

    source: str
    destination: str
    port: int
    allow: bool
    reason: Reason = Reason.POLICY_NO_ALLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectFlow:
    """A direct flow that is open. `source` and `destination` are instances, "" where the pod is not enrolled
    any more.

    `id` is the cookie of the source's socket. Bytes count when the other application has received them, or its kernel
    where its receives are not counted. `generation` is that by which it was allowed in connect().
    """

    id: int
    source: str
    destination: str
    client: SocketAddress
    server: SocketAddress
    asked: SocketAddress  # what was dialled: the server, or a Service
    sent: int
    received: int
    generation: int
    accelerated: bool  # bytes went from socket to socket
    established: bool  # False: the SYN is on its way
    opened_ns: int  # CLOCK_MONOTONIC


class DirectPath:
    """The maps of the direct path. `pods` are the enrolled ones."""

    __slots__ = ("_maps",)

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._maps = maps

    @property
    def generation(self) -> int:
        return int(SETTINGS.unpack(self._settings())[6])

    def switch(
        self, pods: Mapping[str, PodSlot], targets: Mapping[str, Target], entries: Iterable[VerdictEntry]
    ) -> int:
        """From the targets and verdicts in force to these, at once; how many verdicts found no room. Where the maps
        have none for two generations, everything is a miss until the new one is written. OSError: `bump` is due."""
        entries = tuple(entries)
        try:
            self._switch(pods, targets, entries)
        except OSError as error:
            if error.errno not in (errno.E2BIG, errno.ENOMEM):
                raise
        else:
            return 0
        self.bump()
        self.set_targets(pods, targets)
        return self.put_verdicts(pods, entries)

    def _switch(
        self, pods: Mapping[str, PodSlot], targets: Mapping[str, Target], entries: Iterable[VerdictEntry]
    ) -> None:
        maps, former = self._maps, self.generation
        held = [key for key, _ in maps["targets"].snapshot()], [key for key, _ in maps["verdicts"].snapshot()]
        over = (
            [key for key in held[0] if key.startswith(COOKIE.pack(former))],
            [key for key in held[1] if key.endswith(INDEX.pack(former))],
        )
        maps["targets"].delete_all(set(held[0]).difference(over[0]))
        maps["verdicts"].delete_all(set(held[1]).difference(over[1]))
        sources = _sources(pods, targets)
        _narrow(maps["sources"], sources)
        maps["targets"].put_all(_places(pods, targets, _after(former)))
        maps["verdicts"].put_all(dict(_pairs(pods, entries, _after(former))))
        self._raise(_after(former))
        maps["targets"].delete_all(over[0])
        maps["verdicts"].delete_all(over[1])
        _replace(maps["sources"], sources)

    def bump(self) -> int:
        """Every target and verdict is a miss from now on; the new generation."""
        generation = _after(_after(self.generation))
        self._raise(generation)
        self._maps["targets"].clear()
        self._maps["verdicts"].clear()
        return generation

    def set_targets(self, pods: Mapping[str, PodSlot], targets: Mapping[str, Target]) -> None:
        _replace(self._maps["sources"], _sources(pods, targets))
        _replace(self._maps["targets"], _places(pods, targets, self.generation))

    def put_verdicts(self, pods: Mapping[str, PodSlot], entries: Iterable[VerdictEntry]) -> int:
        """How many found no room; they stay misses."""
        left_out = 0
        for key, value in _pairs(pods, entries, self.generation):
            try:
                self._maps["verdicts"].put(key, value)
            except OSError:
                left_out += 1
        return left_out

    def forget(self, pod: PodSlot, addresses: Iterable[str]) -> None:
        """The pod is no target at these addresses any more; other pods at them stay."""
        generation = self.generation
        for address in addresses:
            key = PLACE.pack(generation, pack_ip(address))
            found = self._maps["targets"].get(key)
            if found is not None and TARGET.unpack(found)[0] == pod.cookie:
                self._maps["targets"].delete(key)

    def leave(self, pod: PodSlot) -> None:
        """It is un-enrolled."""
        self.forget(pod, pod.addresses)
        for name in ("sources", "splicers"):
            self._maps[name].delete(COOKIE.pack(pod.cookie))

    def flows(
        self, pods: Mapping[str, PodSlot], known: Container[int] = (), most: int | None = None
    ) -> list[DirectFlow]:
        """Every flow that is there all the while that this takes, unless its id is known; no more than `most`."""
        names = {pod.cookie: pod.instance for pod in pods.values()}
        found = self._maps["directs"].snapshot()
        if known:
            found = [(key, value) for key, value in found if int.from_bytes(value[:8], sys.byteorder) not in known]
        return [self._flow(key, value, names) for key, value in found[:most]]

    def _flow(self, key: bytes, value: bytes, names: Mapping[int, str]) -> DirectFlow:
        destination, server, client = unpack_tuple(key)
        holder, source, opened, sent, received, near, far, _, generation, state, _, service, service_port, _ = (
            DIRECT.unpack(value)
        )
        got_out, moved_out = self._read(far)
        got_in, moved_in = self._read(near)
        return DirectFlow(
            id=holder,
            source=names.get(source, ""),
            destination=names.get(destination, ""),
            client=client,
            server=server,
            asked=unpack_asked(service, service_port, server),
            sent=max(sent, got_out),
            received=max(received, got_in),
            generation=generation,
            accelerated=bool(moved_in or moved_out),
            established=bool(state & DIRECT_ESTABLISHED),
            opened_ns=opened,
        )

    def _read(self, socket: int) -> tuple[int, int]:
        """What the application has received from the socket at this address, and how much was redirected to it."""
        meter = self._maps["consumed"].get(COOKIE.pack(socket)) if socket else None
        return METER.unpack(meter)[2:4] if meter is not None else (0, 0)

    def _raise(self, generation: int) -> None:
        fields = list(SETTINGS.unpack(self._settings()))
        fields[6] = generation
        self._maps["settings"].put(INDEX.pack(0), SETTINGS.pack(*fields))

    def _settings(self) -> bytes:
        return self._maps["settings"].get(INDEX.pack(0)) or bytes(SETTINGS.size)


def _after(generation: int) -> int:
    """0 is none."""
    return generation % 0xFFFFFFFF + 1


def _sources(pods: Mapping[str, PodSlot], targets: Mapping[str, Target]) -> dict[bytes, bytes]:
    return {COOKIE.pack(pods[i].cookie): INDEX.pack(int(t.accelerate)) for i, t in targets.items() if i in pods}


def _places(pods: Mapping[str, PodSlot], targets: Mapping[str, Target], generation: int) -> dict[bytes, bytes]:
    return {
        PLACE.pack(generation, pack_ip(ip)): TARGET.pack(pods[i].cookie, 0, target.mode, int(target.accelerate))
        for i, target in targets.items()
        if i in pods
        for ip in pods[i].addresses
    }


def _pairs(
    pods: Mapping[str, PodSlot], entries: Iterable[VerdictEntry], generation: int
) -> Iterator[tuple[bytes, bytes]]:
    for entry in entries:
        source, destination = pods.get(entry.source), pods.get(entry.destination)
        if source is not None and destination is not None:
            reason = 0 if entry.allow else entry.reason or Reason.POLICY_NO_ALLOW
            yield PAIR.pack(source.cookie, destination.cookie, entry.port, generation), INDEX.pack(reason)


def _narrow(map: Map, wanted: Mapping[bytes, bytes]) -> None:
    """To what is held and wanted; of two values the lesser."""
    for key, value in map.snapshot():
        if key not in wanted:
            map.delete(key)
        elif wanted[key] < value:
            map.put(key, wanted[key])


def _replace(map: Map, wanted: Mapping[bytes, bytes]) -> None:
    held = dict(map.snapshot())
    for key in held.keys() - wanted.keys():
        map.delete(key)
    for key, value in wanted.items():
        if held.get(key) != value:
            map.put(key, value)
