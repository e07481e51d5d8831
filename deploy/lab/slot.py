"""Which numbers are taken by which labs, and the lock that makes one command at a time change a lab."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.lab.fault import LabError
from deploy.lab.file import replace
from deploy.lab.layout import RUNTIME, SLOTS


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file for the time of the block. Who holds it may remove the file."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # the directory was removed in between
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is(path, handle):
                yield
                return
        finally:
            os.close(handle)


def _is(path: Path, handle: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def _taken() -> dict[str, int]:
    try:
        return json.loads((RUNTIME / ".slots.json").read_text())
    except FileNotFoundError:
        return {}


def _write(slots: dict[str, int]) -> None:
    replace(RUNTIME / ".slots.json", json.dumps(slots))


def find(name: str) -> int | None:
    """The slot of a lab that is up (or crashed); None if there is none."""
    return _taken().get(name)


def take(name: str) -> int:
    """The lab's slot; a free one if it has none yet."""
    with locked(RUNTIME / ".slots.lock"):
        slots = _taken()
        if name not in slots:
            free = set(range(SLOTS)) - set(slots.values())
            if not free:
                raise LabError(f"{SLOTS} labs are up: take one down first (gossamer lab down --name NAME)")
            slots[name] = min(free)
            _write(slots)
        return slots[name]


def give_back(name: str) -> None:
    with locked(RUNTIME / ".slots.lock"):
        slots = _taken()
        if slots.pop(name, None) is not None:
            _write(slots)
        if not slots:  # the last lab on the machine leaves nothing
            (RUNTIME / ".slots.json").unlink(missing_ok=True)
            (RUNTIME / ".slots.lock").unlink(missing_ok=True)


def names() -> tuple[str, ...]:
    """Labs that have a slot."""
    return tuple(sorted(_taken()))
