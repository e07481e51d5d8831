"""What is loaded and how full it is, for people: `gossamer bpf`."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpf import pin, syscall
from bpf.layouts import INDEX, KINDS
from bpf.maps import Map

_TYPES = {1: "hash", 2: "array", 3: "prog_array", 6: "percpu_array", 11: "lpm_trie", 15: "sockmap", 18: "sockhash",
          24: "sk_storage", 27: "ringbuf"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramFacts:
    name: str
    id: int
    tag: str  # 16 hex digits: hash of the instructions, as bpftool shows it
    attach: str  # "cgroup", "netns" or "tracepoint"
    target: int  # cgroup id or netns inode; 0 for a tracepoint, or where the target is gone
    link: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFacts:
    name: str
    type: str
    entries: int | None  # now; None where that cannot be told (socket storage, ring buffer)
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    layout: str
    programs: tuple[ProgramFacts, ...]
    maps: tuple[MapFacts, ...]


def describe(folder: Path, maps: Mapping[str, Map], slots: Sequence[int]) -> Description:
    links = sorted(path for path in folder.iterdir() if not path.name.startswith("map_"))
    programs = [facts for path in links if (facts := _program(path)) is not None]
    return Description(
        layout=folder.name, programs=tuple(programs), maps=tuple(_map(m, slots) for _, m in sorted(maps.items()))
    )


def _program(path: Path) -> ProgramFacts | None:
    fd = syscall.open_pin(path)
    if fd is None:
        return None
    try:
        netns = path.name.startswith("lookup_")
        link = (pin.netns_link if netns else pin.cgroup_link)(fd)
        traced = path.name == "link_received"
    finally:
        os.close(fd)
    program = syscall.program_by_id(link.program)
    try:
        info = syscall.info(program, 80)
    finally:
        os.close(program)
    return ProgramFacts(
        name="lookup" if netns else info[64:80].rstrip(b"\0").decode(),  # its name in the kernel has its hash in it
        id=struct.unpack_from("=I", info, 4)[0],
        tag=info[8:16].hex(),
        attach="netns" if netns else "tracepoint" if traced else "cgroup",
        target=0 if traced else link.target,
        link=link.id,
    )


def _map(map: Map, slots: Sequence[int]) -> MapFacts:
    kind = map.definition.kind
    entries: int | None
    if kind in (syscall.SK_STORAGE, syscall.RINGBUF):
        entries = None
    elif kind == syscall.SOCKMAP:
        entries = sum(map.get(INDEX.pack(slot * KINDS + k)) is not None for slot in slots for k in range(KINDS))
    elif kind in (syscall.HASH, syscall.LPM_TRIE, syscall.SOCKHASH):
        entries = map.fill()
    else:
        entries = map.definition.entries
    return MapFacts(
        name=map.definition.name, type=_TYPES.get(kind, str(kind)), entries=entries, max=map.definition.entries
    )
