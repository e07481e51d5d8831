"""A place for a process: a network namespace and a cgroup. To the mesh, whoever sits there is the pod."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.launch import entry, in_netns

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """`address` is the pod's IPv4 address; processes started here die with the benchmark, however it ends."""

    netns: Path
    cgroup: Path
    address: str

    def run(self, argv: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """Run to the end (seconds); output is captured."""
        with self._door() as enter:
            return subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                preexec_fn=enter,
            )

    def start(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a process with pipes on all three ends."""
        pipe = subprocess.PIPE
        with self._door() as enter:
            return subprocess.Popen(  # preexec_fn: between fork and exec only system calls, no lock is taken
                argv,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                text=True,
                preexec_fn=enter,  # noqa: PLW1509
            )

    def start_logged(self, argv: Sequence[str], log: Path) -> subprocess.Popen[str]:
        """Start a process whose output goes to a file: nobody has to read it, so it never blocks."""
        with self._door() as enter, log.open("a") as output:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                preexec_fn=enter,  # noqa: PLW1509
            )

    def set(self, setting: str, value: str) -> None:
        """Write a sysctl of this namespace, e.g. net/ipv4/tcp_tw_reuse."""
        in_netns(self.netns, lambda: _write(Path("/proc/sys", setting), value))

    @contextmanager
    def _door(self) -> Iterator[Callable[[], None]]:
        self.cgroup.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.netns, os.O_RDONLY | os.O_CLOEXEC)
        move = entry(self.cgroup, [handle])

        def enter() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark; it ends the others in order
            move()

        try:
            yield enter
        finally:
            os.close(handle)


def _write(path: Path, value: str) -> None:
    path.write_text(value)
