"""One thread of a process, stopped for real: by ptrace(2), from a process of its own, which a thread cannot stop."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The tracer's end lets the thread go on, however that comes about.
_TRACER = """
import ctypes, os, sys
SEIZE, INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000
thread, libc = int(sys.argv[1]), ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long
for request in (SEIZE, INTERRUPT):
    if libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
os.waitpid(thread, WALL)
print("halted", flush=True)
sys.stdin.read()
"""


def threads(pid: int) -> dict[str, int]:
    """Ids of the threads of a process, by name."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found[(task / "comm").read_text().strip()] = int(task.name)
    return found


@contextmanager
def halted(pid: int, thread: str) -> Iterator[None]:
    """Meanwhile the thread of that name stands still."""
    command = [sys.executable, "-c", _TRACER, str(threads(pid)[thread])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tracer:
        assert tracer.stdin is not None and tracer.stdout is not None
        try:
            assert tracer.stdout.readline() == "halted\n"
            yield
        finally:
            tracer.stdin.close()
            tracer.wait(60)
