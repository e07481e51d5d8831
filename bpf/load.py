"""Artifact -> kernel: create the maps, load the programs. Milliseconds, no compiler."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping

from bpf import btf, syscall
from bpf.artifact import LICENSE, Artifact, MapDefinition, Program, patched, resolved
from bpf.programs import FAST_OPEN_MARKERS, LAYOUT_MARKER, NETNS_MARKER, SEQUENCE_MARKERS, hook


def new_map(definition: MapDefinition) -> int:
    """File descriptor of a new map."""
    types, blob = (0, 0, 0), -1
    if definition.kind == syscall.SK_STORAGE:
        blob = syscall.load_btf(btf.storage(definition.value))
        types = (blob, btf.KEY, btf.VALUE)
    try:
        return syscall.create_map(
            kind=definition.kind,
            name=definition.name,
            key=definition.key,
            value=definition.value,
            entries=definition.entries,
            flags=definition.flags,
            btf=types,
        )
    finally:
        if blob >= 0:
            os.close(blob)


def new_program(artifact: Artifact, name: str, maps: Mapping[str, int], netns: int = 0, title: str = "") -> int:
    """File descriptor of a loaded program; `netns` is the cookie that a per-pod instance serves, `title` its name in
    the kernel if that is not `name`."""
    code = resolved(_program(artifact, name), maps)
    constants = _constants(artifact) | {NETNS_MARKER: netns}
    where = hook(name)
    return syscall.load_program(
        kind=where.kind,
        attach=where.attach,
        name=title or name,
        instructions=patched(code, constants),
        license=LICENSE,
    )


def essence(artifact: Artifact, name: str, maps: Mapping[str, int]) -> bytes:
    """What a loaded program is made of, its netns left out: if it is equal, the programs are equal and work on the same
    maps (by their ids, which the kernel does not use again)."""
    program = _program(artifact, name)
    ids = [struct.unpack_from("=I", syscall.info(maps[each], 8), 4)[0] for each in program.maps]
    return hashlib.blake2b(repr((program, sorted(_constants(artifact).items()), ids)).encode()).digest()


def _program(artifact: Artifact, name: str) -> Program:
    return next(p for p in artifact.programs if p.name == name)


def _constants(artifact: Artifact) -> dict[int, int]:
    offsets = btf.sequence_offsets(tuple(SEQUENCE_MARKERS)) or {}
    constants = {marker: offsets.get(member, 0) for member, marker in SEQUENCE_MARKERS.items()}
    constants |= dict(zip(FAST_OPEN_MARKERS, btf.fast_open() or (0, 0), strict=True))
    return constants | {LAYOUT_MARKER: artifact.layout_id}
