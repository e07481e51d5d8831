"""The direct path as user space sees it: which pods are reached directly, the verdicts, and the flows there are.

Order of a change of policy: `bump` (every verdict is a miss now), `set_targets`, `put_verdicts`, then `flows`, and end
those that lost their permission. What only loosens may leave out `bump`. A target that is narrowed (open -> listed) or
removed without `bump` still holds for a connect() that is under way.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable, Mapping
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

    def bump(self) -> int:
        """Every target and verdict is a miss from now on; the new generation."""
        fields = list(SETTINGS.unpack(self._settings()))
        fields[6] = fields[6] % 0xFFFFFFFF + 1
        self._maps["settings"].put(INDEX.pack(0), SETTINGS.pack(*fields))
        self._maps["verdicts"].clear()
        return int(fields[6])

    def set_targets(self, pods: Mapping[str, PodSlot], targets: Mapping[str, Target]) -> None:
        chosen = [(pods[instance], target) for instance, target in targets.items() if instance in pods]
        sources = {COOKIE.pack(pod.cookie): INDEX.pack(int(target.accelerate)) for pod, target in chosen}
        generation = self.generation
        wanted = {
            PLACE.pack(generation, pack_ip(ip)): TARGET.pack(pod.cookie, 0, target.mode, int(target.accelerate))
            for pod, target in chosen
            for ip in pod.addresses
        }
        _replace(self._maps["sources"], sources)
        _replace(self._maps["targets"], wanted)

    def put_verdicts(self, pods: Mapping[str, PodSlot], entries: Iterable[VerdictEntry]) -> int:
        """How many found no room; they stay misses."""
        generation, left_out = self.generation, 0
        for entry in entries:
            source, destination = pods.get(entry.source), pods.get(entry.destination)
            if source is None or destination is None:
                continue
            key = PAIR.pack(source.cookie, destination.cookie, entry.port, generation)
            reason = 0 if entry.allow else entry.reason or Reason.POLICY_NO_ALLOW
            try:
                self._maps["verdicts"].put(key, INDEX.pack(reason))
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

    def _settings(self) -> bytes:
        return self._maps["settings"].get(INDEX.pack(0)) or bytes(SETTINGS.size)


def _replace(map: Map, wanted: Mapping[bytes, bytes]) -> None:
    held = dict(map.snapshot())
    for key in held.keys() - wanted.keys():
        map.delete(key)
    for key, value in wanted.items():
        if held.get(key) != value:
            map.put(key, value)
