"""Keep every CPU from halting while something is measured.

A CPU that halts has to be woken by an interrupt, on a virtual machine by its host, and one connection's round trip is
mostly that. Here each CPU runs a loop of the idle class (sched(7), SCHED_IDLE): whatever else is runnable takes its
place at once, and it uses what nobody wants. All columns are measured so, or none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy.bench.seat import Seat

_LOOP = ("/bin/sh", "-c", "while :; do :; done")


@contextmanager
def awake(group: Path) -> Iterator[None]:
    """Meanwhile no CPU that this process may use halts. `group`: a cgroup to be made for the loops, which no column
    is charged for; who removes it ends what is left in it."""
    seat = Seat(netns=Path("/proc/self/ns/net"), cgroup=group, address="")
    with ExitStack() as stack:
        for cpu in sorted(os.sched_getaffinity(0)):
            argv = ["/usr/bin/taskset", "--cpu-list", str(cpu), "/usr/bin/chrt", "--idle", "0", *_LOOP]
            loop = stack.enter_context(seat.start_logged(argv, Path(os.devnull)))
            stack.callback(loop.kill)
        idle = group / "cpu.idle"  # there where a parent distributes CPU by weights: the class counts within a group
        if idle.exists():
            idle.write_text("1")
        yield
