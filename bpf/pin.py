"""Names in a bpffs directory, and adopting what they name.

PIN/enrolled, steered, registry  kept across layouts
PIN/<layout>/map_<name>          the maps of one layout
PIN/<layout>/link_<program>      its links to the node's cgroup
PIN/<layout>/lookup_<slot>       the link of one pod's sk_lookup instance
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpf import load, syscall
from bpf.artifact import Artifact, MapDefinition
from bpf.maps import Map
from bpf.programs import SHARED_MAPS

SCRATCH = "selftest"  # of a process that has nothing to do with the layouts here


@contextmanager
def locked(pins: Path) -> Iterator[None]:
    """One process at a time opens, switches and unloads."""
    fd = os.open(pins, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def adopt_map(path: Path, definition: MapDefinition) -> Map:
    """The map pinned at `path`, or a new one, pinned there."""
    fd = syscall.open_pin(path)
    if fd is None:
        fd = load.new_map(definition)
        syscall.pin(fd, path)
    return Map(fd, definition)


def adopt_maps(pins: Path, artifact: Artifact) -> dict[str, Map]:
    folder = pins / artifact.layout
    folder.mkdir(mode=0o700, exist_ok=True)
    return {
        m.name: adopt_map(pins / m.name if m.name in SHARED_MAPS else folder / f"map_{m.name}", m)
        for m in artifact.maps
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFacts:
    """struct bpf_link_info: `target` is a cgroup id or a netns inode, 0 when that is gone."""

    id: int
    program: int
    target: int


def cgroup_link(fd: int) -> LinkFacts:
    _, id, program, target = struct.unpack_from("=IIIxxxxQ", syscall.info(fd, 32))
    return LinkFacts(id=id, program=program, target=target)


def netns_link(fd: int) -> LinkFacts:
    _, id, program, target = struct.unpack_from("=IIIxxxxI", syscall.info(fd, 32))
    return LinkFacts(id=id, program=program, target=target)


def program_name(id: int) -> str:
    fd = syscall.program_by_id(id)
    try:
        return syscall.info(fd, 80)[64:80].rstrip(b"\0").decode()
    finally:
        os.close(fd)


def link(path: Path, *, program: int, target: int, attach: int, same: int) -> None:
    """Have `program` attached to `target` through the link pinned at `path`. A link that is there and still names
    `same` (the cgroup id or netns inode of the target) is updated, without a moment in between; others are replaced."""
    read = netns_link if path.name.startswith("lookup_") else cgroup_link
    fd = syscall.open_pin(path)
    if fd is not None:
        try:
            if read(fd).target == same and syscall.update_link(fd, program):
                return
        finally:
            os.close(fd)
        path.unlink()
    fd = syscall.create_link(program, target, attach)
    try:
        syscall.pin(fd, path)
    finally:
        os.close(fd)


def unlink(path: Path) -> None:
    """Detach and forget the link pinned at `path`, if there is one."""
    fd = syscall.open_pin(path)
    if fd is None:
        return
    try:
        syscall.detach_link(fd)
    finally:
        os.close(fd)
    path.unlink()


def holds_connections(folder: Path) -> bool:
    """Whether sockets of this layout are open whose entries its programs must still remove or answer. The layout may
    be of another version: sizes are asked of the kernel."""
    for name in ("captured", "clients", "directs", "flows", "loops", "usage"):
        fd = syscall.open_pin(folder / f"map_{name}")
        if fd is None:
            continue
        _, _, key, value, entries = struct.unpack_from("=5I", syscall.info(fd, 20))
        map = Map(fd, MapDefinition(name=name, kind=syscall.HASH, key=key, value=value, entries=entries, flags=0))
        try:
            # `usage` keeps a count for each pod: zero when its last socket has closed
            if any(any(value) for _, value in map.items()) if name == "usage" else map.walk():
                return True
        finally:
            map.close()
    return False


@contextmanager
def same_maps(folder: Path, wanted: Sequence[MapDefinition]) -> Iterator[dict[str, Map]]:
    """These maps of another layout, as far as it has them with the same sizes; all of them, or none."""
    maps: dict[str, Map] = {}
    try:
        for definition in wanted:
            fd = syscall.open_pin(folder / f"map_{definition.name}")
            if fd is None:
                break
            maps[definition.name] = Map(fd, definition)
            if struct.unpack_from("=II", syscall.info(fd, 20), 8) != (definition.key, definition.value):
                break
        else:
            yield maps
            return
        yield {}
    finally:
        for map in maps.values():
            map.close()


def layouts(pins: Path) -> list[Path]:
    return [path for path in pins.iterdir() if path.is_dir() and path.name != SCRATCH]


def remove_layout(folder: Path) -> None:
    """Detach all programs of a layout, then drop its maps."""
    for path in sorted(folder.iterdir(), key=lambda p: p.name.startswith("map_")):
        if path.name.startswith("map_"):
            path.unlink()
        else:
            unlink(path)
    folder.rmdir()


def remove(pins: Path) -> None:
    """Un-enrol everything, detach every program of every layout, remove every pin; also where nothing else of the
    kernel side can be opened any more."""
    if not pins.exists():
        return
    with locked(pins):
        fd = syscall.open_pin(pins / "enrolled")
        if fd is not None:
            enrolled = Map(fd, MapDefinition(name="enrolled", kind=syscall.HASH, key=8, value=8, entries=4096, flags=1))
            for key in enrolled.walk():
                enrolled.delete(key)
            enrolled.close()
        for folder in layouts(pins):
            remove_layout(folder)
        mounted = pins.is_mount()
        for path in list(pins.iterdir()):
            if not (mounted and path.suffix == ".debug"):  # the kernel's own, in the root of every bpffs
                path.unlink()
        if not mounted:
            pins.rmdir()
