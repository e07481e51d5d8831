"""The pods of this node, as the runtime records them: one `<metadata.uid>.json` per pod in a directory, followed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
from watchfiles import awatch

log = logging.getLogger(__name__)

_RESCAN_MS = 1000  # also without a notification: the directory may have been replaced, or a queue overrun
_MAX_RECORD_BYTES = 64 << 10


class PodRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`instance` is metadata.uid, `netns` the path of a bind mount of the pod's network namespace."""

    instance: str
    namespace: str
    name: str
    netns: str


def read(
    directory: Path, known: Mapping[str, PodRecord], faults: dict[Path, str] | None = None
) -> dict[str, PodRecord]:
    """All records by instance; OSError if the directory cannot be read. Of a pod whose record cannot be understood the
    one that is `known` stays: a slip of the writer does not un-enrol a pod. It is logged, unless it is one of the
    `faults`, which are changed to those of now."""
    found: dict[str, PodRecord] = {}
    before, faults = dict(faults or {}), {} if faults is None else faults
    faults.clear()
    for path in directory.iterdir():
        if path.suffix != ".json" or path.name.startswith("."):
            continue
        instance = path.name.removesuffix(".json")
        try:
            found[instance] = _parse(path, instance)
        except FileNotFoundError:
            continue  # removed since the listing
        except (OSError, ValueError) as error:
            faults[path] = str(error)
            if before.get(path) != str(error):
                log.warning("pod record %s: %s", path, error)
            if instance in known:
                found[instance] = known[instance]
    return found


def _parse(path: Path, instance: str) -> PodRecord:
    with path.open("rb") as file:
        data = file.read(_MAX_RECORD_BYTES + 1)
    if len(data) > _MAX_RECORD_BYTES:
        raise ValueError(f"longer than {_MAX_RECORD_BYTES} bytes")
    record = msgspec.json.decode(data, type=PodRecord)
    if record.instance != instance:
        raise ValueError(f"instance: {record.instance!r} is not the file's name")
    if not (record.namespace and record.name and record.netns.startswith("/")):
        raise ValueError("namespace and name must not be empty, netns must be an absolute path")
    return record


async def follow(directory: Path) -> AsyncIterator[dict[str, PodRecord]]:
    """The records now, and again after each change; never ends. While the directory cannot be read, nothing changes."""
    known: dict[str, PodRecord] | None = None
    said, faults = "", dict[Path, str]()
    async for _ in _looks(directory):
        try:
            found = read(directory, known or {}, faults)
        except OSError as error:
            cause = error.strerror or str(error)
            if cause != said:  # once, not with every look
                log.error("--pods %s cannot be read: %s; the pods stay as they are until it can", directory, cause)
            said = cause
            continue
        said = ""
        if found != known:
            known = found
            yield found


async def _looks(directory: Path) -> AsyncIterator[None]:
    """When to look: now, after each change, and from time to time."""
    yield None
    while True:
        # Not there (yet), or no inotify watch to be had: then only from time to time.
        with contextlib.suppress(OSError, RuntimeError):
            async for _ in awatch(
                directory, recursive=False, debounce=100, step=10, rust_timeout=_RESCAN_MS, yield_on_timeout=True
            ):
                yield None
        await asyncio.sleep(_RESCAN_MS / 1000)
        yield None
