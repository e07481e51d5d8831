"""A directory of YAML files, followed with inotify.

Files end in .yaml, .yml or .json and lie directly in the directory; names that start with a dot are ignored, so that a
writer can prepare `.x.tmp` and rename it. Writers that truncate and write in place are tolerated: what does not parse
changes nothing, and a file that is suddenly empty is believed only when it has been so for a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from watchfiles import awatch

from controller.sources.files import Files
from mesh.resources.document import MAX_BYTES

_log = logging.getLogger(__name__)

_SUFFIXES = (".yaml", ".yml", ".json")
_DEBOUNCE_MS = 50
_RETRY_S = 1.0
_TICK_MS = 200  # bounds how long stopping takes: the watching thread cannot be cancelled
_RESCAN_S = 2.0  # in case an event was lost, as when inotify's queue overflows
_EMPTY_GRACE_S = 1.0


class _Signature(NamedTuple):
    """Two equal ones: the file has not changed."""

    modified_ns: int
    size: int
    inode: int


class Directory:
    """Keeps `files` as the directory is. `keep`, if given, is a directory of texts that were good as a whole: they are
    read first, so that an object that is bad when the controller starts is in force as it last was."""

    def __init__(self, path: Path, files: Files, *, keep: Path | None = None) -> None:
        self.path = path
        self.files = files
        self._keep = keep
        self._seen: dict[str, _Signature] = {}

    def scan(self) -> bool:
        """Read what has changed since the last scan; True if anything did. Blocking."""
        try:
            present = {entry.name: entry for entry in self.path.iterdir() if _wanted(entry)}
        except OSError as error:
            _log.error("the source directory cannot be read; the last good state stays", extra={"cause": str(error)})
            return False
        if not self._seen and self._keep is not None and self._keep.is_dir():
            for kept in self._keep.iterdir():  # of files that went away while nobody watched
                if kept.stem not in present:
                    kept.unlink()
        changed = False
        for name in sorted(self._seen.keys() - present.keys()):
            self._forget(name)
            changed = True
        for name in sorted(present):
            changed = self._refresh(name, present[name]) or changed
        return changed

    async def follow(self, changed: Callable[[], None]) -> None:
        """Call `changed` after every change that `scan` found; never ends by itself."""
        said = ""
        while True:
            try:
                await self._watch(changed)
            except (OSError, RuntimeError) as error:
                if str(error) != said:  # once, not with every try
                    _log.error("the source directory cannot be watched; trying again", extra={"cause": str(error)})
                said = str(error)
            await asyncio.sleep(_RETRY_S)

    async def _watch(self, changed: Callable[[], None]) -> None:
        look_at = 0.0  # what changed before the watch began was not seen: look once without an event
        async for events in awatch(
            self.path,
            watch_filter=None,
            debounce=_DEBOUNCE_MS,
            step=_DEBOUNCE_MS // 2,
            rust_timeout=_TICK_MS,
            yield_on_timeout=True,
            recursive=False,
        ):
            now = time.monotonic()
            if not events and now < look_at:
                continue
            look_at = now + _RESCAN_S
            if await asyncio.to_thread(self.scan):
                changed()

    def _refresh(self, name: str, path: Path) -> bool:
        try:
            status = path.stat()
            signature = _Signature(status.st_mtime_ns, status.st_size, status.st_ino)
            if self._seen.get(name) == signature:
                return False
            emptied = status.st_size == 0 and self.files.count(name) > 0
            if emptied and time.time() - status.st_mtime < _EMPTY_GRACE_S:
                return False  # perhaps truncated by a writer that is about to write; the next scan looks again
            if status.st_size > MAX_BYTES:
                self.files.refuse(name, f"the file is larger than {MAX_BYTES} bytes", "split it")
            else:
                self._read(name, path.read_bytes())
        except FileNotFoundError:
            return False  # gone since it was listed; the next scan sees that
        except OSError as error:
            signature = _Signature(0, 0, 0)
            if self._seen.get(name) == signature:
                return False
            self.files.refuse(name, f"it cannot be read: {error.strerror}", "check its mode and owner")
        self._seen[name] = signature
        return True

    def _read(self, name: str, text: bytes) -> None:
        kept = self._keep / f"{name}.good" if self._keep is not None else None
        if kept is not None and name not in self._seen and kept.exists():
            self.files.put(name, kept.read_bytes())
        good = self.files.put(name, text)
        if good and kept is not None:
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            fresh = kept.with_suffix(".new")
            fresh.write_bytes(text)
            fresh.replace(kept)

    def _forget(self, name: str) -> None:
        del self._seen[name]
        self.files.drop(name)
        if self._keep is not None:
            (self._keep / f"{name}.good").unlink(missing_ok=True)


def _wanted(path: Path) -> bool:
    return path.suffix in _SUFFIXES and not path.name.startswith(".") and not path.is_dir()
