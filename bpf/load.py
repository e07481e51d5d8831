"""Artifact -> kernel: create the maps, load the programs. Milliseconds, no compiler."""

from __future__ import annotations

import os
from collections.abc import Mapping

from bpf import btf, syscall
from bpf.artifact import LICENSE, Artifact, MapDefinition, patched, resolved
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


def new_program(artifact: Artifact, name: str, maps: Mapping[str, int], netns: int = 0) -> int:
    """File descriptor of a loaded program; `netns` is the cookie that a per-pod instance serves."""
    program = next(p for p in artifact.programs if p.name == name)
    offsets = btf.sequence_offsets(tuple(SEQUENCE_MARKERS)) or {}
    constants = {marker: offsets.get(member, 0) for member, marker in SEQUENCE_MARKERS.items()}
    constants |= dict(zip(FAST_OPEN_MARKERS, btf.fast_open() or (0, 0), strict=True))
    constants |= {LAYOUT_MARKER: artifact.layout_id, NETNS_MARKER: netns}
    code = resolved(program, maps)
    where = hook(name)
    return syscall.load_program(
        kind=where.kind, attach=where.attach, name=name, instructions=patched(code, constants), license=LICENSE
    )
