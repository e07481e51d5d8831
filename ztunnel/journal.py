"""The copy on disk of what the controller has brought, with which a restarted agent begins, controller or not.

Each Update is written before it is applied, so whatever a killed agent acted on, the next one knows: a stale copy would
end connections that are permitted, and permit what a policy has forbidden since. An agent that drains after a hand-over
reads on in it (`Reader`), so that its connections obey what its successor is told. Each line is a JSON text of
mesh.control, the first from nothing; they are written anew as one when that has doubled. No secrets are in it; it is
readable by the agent alone.

What was written survives the agent, not the machine, whose connections and kernel state do not survive either: on a
disk that does, it is dropped (ztunnel.premises).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mesh.control import decode_update
from ztunnel.holdings import Holdings

log = logging.getLogger(__name__)

_GROWTH = 1 << 20  # bytes of Updates that are not worth writing anew for


@dataclass(slots=True, kw_only=True)
class Journal:
    """Called from one loop. Errors of the disk are logged, and cost a restart without controller, nothing else."""

    path: Path
    _file: int = -1  # -1: what is on disk, if anything, is not what is held
    _size: int = 0
    _base: int = 0  # of the first line
    _since: list[bytes] | None = None  # lines that came while it was being written anew
    _attempts: int = 0  # to write it anew

    def restore(self) -> Holdings | None:
        """What the last agent held; None if there is nothing that can be read."""
        try:
            lines = _whole_lines(self.path.read_bytes())  # the writer of half a line was killed before it acted on it
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be read, the controller will send everything: %s", self.path, error)
            return None
        finally:
            self._sweep()
        try:
            holdings, problems = _after(Holdings(), lines)
        except ValueError as error:
            log.warning("%s cannot be read, the controller will send everything: %s", self.path, error)
            return None
        for key, why in problems.items():
            log.warning("%s: %s left out: %s", self.path, key, why)
        if not lines:
            return None
        with self._on_disk():
            self._base, self._size = len(lines[0]), sum(map(len, lines))
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.ftruncate(self._file, self._size)
        return holdings

    def add(self, update: bytes | str, *, to: Holdings) -> None:
        """An Update, as it came, that is about to be applied to what is held."""
        text = update.encode() if isinstance(update, str) else update
        line = text.replace(b"\n", b" ") + b"\n"  # in JSON a newline stands between tokens only
        if self._since is not None:
            self._since.append(line)
        with self._on_disk():
            if self._file < 0 and not to.entries:
                self._file, self._size, self._base = _create(self.path), 0, len(line)
            if self._file >= 0:
                _write(self._file, line)
                self._size += len(line)

    async def tidy(self, holdings: Holdings) -> bool:
        """Write it anew if it has grown, or was lost; `holdings` are those that all Updates so far have made. False: it
        could not be done; a copy that was good still is."""
        if self._file >= 0 and self._size < 2 * self._base + _GROWTH:
            return True
        # Of an attempt that was cancelled, the thread may still write: each has a file of its own.
        self._attempts += 1
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}.{self._attempts}.new")
        self._since = []
        try:
            await self._write_anew(scratch, holdings)
        except OSError as error:
            log.error("%s could not be written anew: %s", self.path, error)
            with contextlib.suppress(OSError):
                scratch.unlink()
            return False
        finally:
            self._since = None
        return True

    async def _write_anew(self, scratch: Path, holdings: Holdings) -> None:
        base = await asyncio.to_thread(_begin, scratch, holdings)
        since = self._since or []
        fresh = os.open(scratch, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            for line in since:
                _write(fresh, line)
            scratch.replace(self.path)
        except OSError:
            os.close(fresh)
            raise
        self._base, self._size = base, base + sum(map(len, since))
        self._file, old = fresh, self._file
        if old >= 0:
            os.close(old)

    def _sweep(self) -> None:
        """What an agent that was killed had begun to write anew. No other writes: one that hands over has paused."""
        for left in self.path.parent.glob(f".{self.path.name}.*.new"):
            with contextlib.suppress(OSError):
                left.unlink()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """A copy that lacks something is worse than none."""
        try:
            yield
        except OSError as error:
            log.error("%s: what the controller sent could not be stored: %s", self.path, error)
            self.close()
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


@dataclass(slots=True, kw_only=True)
class Reader:
    """Follows the journal that another agent writes."""

    path: Path
    holdings: Holdings = field(default_factory=Holdings)
    _inode: int = -1
    _offset: int = 0

    def read(self) -> bool:
        """Whether `holdings` are new. OSError or ValueError: the journal is gone or cannot be read, and what is held
        may no longer be true."""
        with self.path.open("rb") as file:
            facts = os.fstat(file.fileno())
            begun_anew = facts.st_ino != self._inode or facts.st_size < self._offset
            if not begun_anew and facts.st_size == self._offset:
                return False
            file.seek(0 if begun_anew else self._offset)
            data = file.read()
        lines = _whole_lines(data)
        if not lines:
            return False
        self.holdings, _ = _after(Holdings() if begun_anew else self.holdings, lines)
        self._inode, self._offset = facts.st_ino, sum(map(len, lines)) + (0 if begun_anew else self._offset)
        return True


def _after(holdings: Holdings, lines: Iterable[bytes]) -> tuple[Holdings, dict[str, str]]:
    """With these Updates applied, and what of them could not be. ValueError: one is no Update."""
    problems: dict[str, str] = {}
    for line in lines:
        update, undecodable = decode_update(line)
        holdings, invalid = holdings.after(update)
        problems |= {**undecodable, **invalid}
    return holdings, problems


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _write(file: int, line: bytes) -> None:
    while line:
        line = line[os.write(file, line) :]


def _whole_lines(data: bytes) -> list[bytes]:
    """Up to the last newline. Not splitlines(): to JSON a carriage return is space like any other."""
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


def _begin(scratch: Path, holdings: Holdings) -> int:
    """For a thread: the size of a new file that holds all."""
    line = holdings.encoded() + b"\n"
    file = _create(scratch)
    try:
        _write(file, line)
        os.fsync(file)
    finally:
        os.close(file)
    return len(line)
