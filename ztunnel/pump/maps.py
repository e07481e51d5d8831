"""Two maps of the kernel side that the threads read and write by themselves, for each connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self


class Definition(Protocol):
    """Sizes in bytes."""

    @property
    def key(self) -> int: ...
    @property
    def value(self) -> int: ...


class Map(Protocol):
    """As `bpf.maps.Map`."""

    @property
    def fd(self) -> int: ...
    @property
    def definition(self) -> Definition: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """Descriptors, which stay whose they are: `captured` says what was dialled (struct tuple -> struct destination),
    `announced` whom the application shall see as its peer (socket cookie -> struct endpoint; bpf/src/layouts.h)."""

    captured: int
    announced: int
    sizes: tuple[int, int, int, int]  # of key and value of both

    @classmethod
    def of(cls, captured: Map, announced: Map) -> Self:
        sizes = (
            captured.definition.key,
            captured.definition.value,
            announced.definition.key,
            announced.definition.value,
        )
        return cls(captured=captured.fd, announced=announced.fd, sizes=sizes)
