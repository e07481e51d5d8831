"""Compiled programs and map definitions as one file that loads without a compiler.

Instructions name maps by index into the program's own list of names, where the compiler left file descriptors;
constants that are only known at load time stand as 64-bit markers. Format: JSON, instructions in base64.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass

FORMAT = 1
LICENSE = "Dual MIT/GPL"  # of the programs in the kernel's eyes; the sources are Apache-2.0 like the rest

_LD_IMM64 = 0x18  # BPF_LD | BPF_DW | BPF_IMM, two instructions wide
_PSEUDO_MAP_FD = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MapDefinition:
    """`kind` is enum bpf_map_type; sizes in bytes; `entries` of a ring buffer is its size in bytes."""

    name: str
    kind: int
    key: int
    value: int
    entries: int
    flags: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    name: str
    instructions: bytes
    maps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What a compiler made of bpf/src: everything that loading needs."""

    maps: tuple[MapDefinition, ...]
    programs: tuple[Program, ...]
    layout: str  # 16 hex digits: equal layouts can share maps
    sources: str  # hash of what it was compiled from

    @property
    def layout_id(self) -> int:
        return int(self.layout, 16)

    def encode(self) -> bytes:
        text = asdict(self)
        for program in text["programs"]:
            program["instructions"] = base64.b64encode(program["instructions"]).decode()
        return json.dumps({"format": FORMAT, **text}, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes) -> Artifact:
        """ValueError if this is not a whole artifact of this format."""
        try:
            text = json.loads(data)
            if text.pop("format") != FORMAT:
                raise ValueError("another format")
            return cls(
                maps=tuple(MapDefinition(**m) for m in text["maps"]),
                programs=tuple(
                    Program(
                        name=p["name"],
                        instructions=base64.b64decode(p["instructions"], validate=True),
                        maps=tuple(p["maps"]),
                    )
                    for p in text["programs"]
                ),
                layout=text["layout"],
                sources=text["sources"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a BPF artifact of format {FORMAT}: {error!r}") from error


def layout_hash(maps: tuple[MapDefinition, ...], layouts_source: str) -> str:
    """16 hex digits of what programs and maps must agree on: the map definitions and the shared structs."""
    words = " ".join(layouts_source.split())
    text = json.dumps([sorted(asdict(m).items()) for m in sorted(maps, key=lambda m: m.name)])
    return hashlib.sha256(f"{FORMAT}\n{text}\n{words}".encode()).hexdigest()[:16]


def symbolic(name: str, instructions: bytes, names: Mapping[int, str]) -> Program:
    """Replace map file descriptors (`names`: fd -> map name) by indexes."""
    code, maps = bytearray(instructions), list[str]()
    for at, fd in _map_references(code):
        if fd not in names:
            raise ValueError(f"program {name}: instruction {at // 8} refers to map {fd}, which is not in the table")
        if names[fd] not in maps:
            maps.append(names[fd])
        struct.pack_into("=i", code, at + 4, maps.index(names[fd]))
    return Program(name=name, instructions=bytes(code), maps=tuple(maps))


def resolved(program: Program, fds: Mapping[str, int]) -> bytes:
    """The instructions with real map file descriptors."""
    code = bytearray(program.instructions)
    for at, index in _map_references(code):
        struct.pack_into("=i", code, at + 4, fds[program.maps[index]])
    return bytes(code)


def patched(instructions: bytes, constants: Mapping[int, int]) -> bytes:
    """Replace 64-bit marker constants (marker -> value)."""
    code = bytearray(instructions)
    for at in _wide_loads(code):
        low, high = struct.unpack_from("=I", code, at + 4)[0], struct.unpack_from("=I", code, at + 12)[0]
        value = constants.get(high << 32 | low)
        if value is not None and code[at + 1] >> 4 == 0:
            struct.pack_into("=I", code, at + 4, value & 0xFFFFFFFF)
            struct.pack_into("=I", code, at + 12, value >> 32)
    return bytes(code)


def marked(instructions: bytes, marker: int) -> int:
    """How many wide loads carry the marker."""
    return sum(
        struct.unpack_from("=I", instructions, at + 4)[0] | struct.unpack_from("=I", instructions, at + 12)[0] << 32
        == marker
        for at in _wide_loads(instructions)
    )


def _wide_loads(code: bytes | bytearray) -> list[int]:
    """Byte offsets of the 16-byte loads of a 64-bit constant."""
    found, at = [], 0
    while at < len(code):
        if code[at] == _LD_IMM64:
            found.append(at)
            at += 8
        at += 8
    return found


def _map_references(code: bytes | bytearray) -> list[tuple[int, int]]:
    return [
        (at, struct.unpack_from("=i", code, at + 4)[0])
        for at in _wide_loads(code)
        if code[at + 1] >> 4 == _PSEUDO_MAP_FD
    ]
