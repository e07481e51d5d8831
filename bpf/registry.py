"""Which pods are enrolled: a pinned map that outlives agents and layouts, instance -> JSON. For user space only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from bpf import syscall
from bpf.artifact import MapDefinition
from bpf.layouts import MAX_PODS
from bpf.maps import Map

_KEY, _VALUE = 64, 1024
DEFINITION = MapDefinition(
    name="registry", kind=syscall.HASH, key=_KEY, value=_VALUE, entries=MAX_PODS, flags=1
)  # flags: BPF_F_NO_PREALLOC


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSlot:
    """An enrolled pod. `slot` indexes its listeners, `cookie` names its network namespace."""

    instance: str
    slot: int
    cookie: int
    addresses: tuple[str, ...]


class Registry:
    """The enrolled pods, by instance."""

    __slots__ = ("_known", "_map")

    def __init__(self, map: Map) -> None:
        self._map = map
        self._known: dict[tuple[bytes, bytes], PodSlot] = {}  # by entry: every enrolment asks for all of them

    def pods(self) -> dict[str, PodSlot]:
        """As the map has it now: another agent may have written it."""
        entries = self._map.snapshot()
        known = self._known
        self._known = {entry: known.get(entry) or _decode(*entry) for entry in entries}
        return {pod.instance: pod for pod in self._known.values()}

    def put(self, pod: PodSlot) -> None:
        self._map.put(*_encode(pod))

    def remove(self, instance: str) -> None:
        self._map.delete(_key(instance))


def free_slot(pods: Iterable[PodSlot]) -> int:
    """The lowest slot that no pod has; ValueError if there is none."""
    taken = {pod.slot for pod in pods}
    slot = next((n for n in range(MAX_PODS) if n not in taken), None)
    if slot is None:
        raise ValueError(f"{MAX_PODS} pods are enrolled already, as many as the listeners' map holds")
    return slot


def _key(instance: str) -> bytes:
    key = instance.encode()
    if not 0 < len(key) <= _KEY or b"\0" in key:
        raise ValueError(f"pod instance {instance!r} is not 1 to {_KEY} bytes long; metadata.uid is expected")
    return key.ljust(_KEY, b"\0")


def _encode(pod: PodSlot) -> tuple[bytes, bytes]:
    text = {"slot": pod.slot, "cookie": pod.cookie, "addresses": pod.addresses}
    value = json.dumps(text, separators=(",", ":")).encode()
    if len(value) > _VALUE:
        raise ValueError(f"pod {pod.instance} has {len(pod.addresses)} addresses, more than can be recorded")
    return _key(pod.instance), value.ljust(_VALUE, b"\0")


def _decode(key: bytes, value: bytes) -> PodSlot:
    text = json.loads(value.rstrip(b"\0"))
    return PodSlot(
        instance=key.rstrip(b"\0").decode(),
        slot=text["slot"],
        cookie=text["cookie"],
        addresses=tuple(text["addresses"]),
    )
