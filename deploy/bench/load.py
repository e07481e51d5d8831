"""The load program: compile it when needed, run it, read its answer."""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.bench.fault import BenchError
from deploy.bench.seat import Seat

SOURCE = Path(__file__).with_name("load.c")
CACHE = Path("/var/cache/gossamer/bench")
_HELD_S = 120.0  # for thousands of connections to be opened, one after the other
_FLAGS = ("-O2", "-Wall", "-Wextra", "-pthread")
_BROKEN = 3  # exit status of load.c: a connection failed
_SLACK_S = 60.0  # load.c gives up 30 s after its time; this is for one that cannot even do that


class Broken(BenchError):
    """A connection could not be opened, or ended, although all bytes that came were right."""


def compiled(cache: Path = CACHE) -> Path:
    """The executable, compiled on first use; its name carries the hash of sources and flags."""
    parts = [path.read_bytes() for path in (SOURCE, *sorted(SOURCE.parent.glob("load_*.h")))]
    digest = hashlib.sha256(b"".join(parts) + " ".join(_FLAGS).encode()).hexdigest()[:16]
    program = cache / f"load-{digest}"
    if program.exists():
        return program
    cache.mkdir(parents=True, exist_ok=True)
    fresh = cache / f".{program.name}.{os.getpid()}"
    try:
        done = subprocess.run(["gcc", *_FLAGS, "-o", fresh, SOURCE], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BenchError(
            "gcc is missing: the load program is compiled on first use; apt-get install gcc libc6-dev"
        ) from error
    if done.returncode != 0:
        raise BenchError(f"gcc refused {SOURCE.name}:\n{done.stderr.strip()}")
    fresh.replace(program)
    return program


def ask(program: Path, seat: Seat, command: str, host: str, port: int, **options: float | str) -> dict[str, Any]:
    """Run one client to its end and return its JSON; BenchError for wrong bytes, a broken or a stuck connection."""
    argv = [str(program), *words(command, host=host, port=port, **options)]
    try:
        done = seat.run(argv, timeout=float(options.get("seconds", 1)) * 1.2 + _SLACK_S)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(argv)}: no end after {error.timeout:g} s") from error
    if done.returncode != 0:
        kind = "wrong bytes" if done.returncode == 1 else f"failed (exit status {done.returncode})"
        raise BenchError(f"{kind}: {done.stderr.strip()} [{' '.join(argv[1:])}]")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@contextmanager
def serving(program: Path, seat: Seat, port: int, **options: str) -> Iterator[None]:
    """A server in a pod, listening, for as long as the block runs."""
    with seat.start([str(program), *words("server", port=port, **options)]) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""
            if not line.startswith('{"listening"'):
                raise BenchError(f"the load server did not start: {server.communicate(timeout=5)[1].strip()}")
            yield
        finally:
            server.kill()


@contextmanager
def beside(program: Path, caller: Seat, command: str, host: str, port: int, **options: float | str) -> Iterator[Answer]:
    """A client that runs while the block does; its JSON is in `found` after the block. Its `seconds` decide its end."""
    argv = [str(program), *words(command, host=host, port=port, **options)]
    answer = Answer()
    with caller.start(argv) as client:
        try:
            yield answer
            output, complaint = client.communicate(timeout=float(options.get("seconds", 1)) * 1.2 + _SLACK_S)
        finally:
            client.kill()
    if client.returncode != 0:
        raise BenchError(f"failed (exit status {client.returncode}): {complaint.strip()} [{' '.join(argv[1:])}]")
    answer.found = json.loads(output)


@dataclass(slots=True)
class Answer:
    """JSON of a client, once it has ended."""

    found: dict[str, Any] = field(default_factory=dict)


class Held:
    """Connections that are open, one message behind each, while the block runs; verified once more at its end. Broken
    if they cannot be opened. Other commands of load.c that print a line when they are `ready` hold theirs in their way;
    `answer` is that line."""

    def __init__(
        self,
        program: Path,
        seat: Seat,
        host: str,
        port: int,
        connections: int,
        *,
        command: str = "hold",
        **options: float,
    ) -> None:
        self.answer: dict[str, Any] = {}
        self._argv = [str(program), *words(command, host=host, port=port, connections=connections, **options)]
        self._seat = seat

    def __enter__(self) -> Held:
        self._process = self._seat.start(self._argv)
        line = self._line(_HELD_S)
        if line is not None and line.startswith('{"ready"'):
            self.answer = json.loads(line)
            return self
        if line is None:
            self._process.kill()
        complaint = self._process.communicate(timeout=5)[1].strip() or f"not all are open after {_HELD_S:g} s"
        broken = line is None or self._process.returncode == _BROKEN
        raise (Broken if broken else BenchError)(f"cannot hold connections: {complaint}")

    def told(self) -> dict[str, Any]:
        """What the program says next, of its own accord."""
        line = self._line(_SLACK_S)
        if not line:
            raise BenchError(f"nothing was heard for {_SLACK_S:g} s [{' '.join(self._argv[1:])}]")
        found: dict[str, Any] = json.loads(line)
        return found

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None:
            self._process.kill()
        try:
            _, complaint = self._process.communicate(timeout=_SLACK_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            complaint = f"stuck for {_SLACK_S:g} s"
        if self._process.returncode != 0 and kind is None:
            raise BenchError(f"held connections: {complaint.strip()}")

    def _line(self, seconds: float) -> str | None:
        """None: there is none in time."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None


def words(command: str, **options: str | float) -> list[str]:
    """The command line of load.c."""
    return [command, *(word for name, value in options.items() for word in (f"--{name}", f"{value}"))]
