"""Loops of the idle class: one for each CPU, in a cgroup of their own, gone afterwards."""

from __future__ import annotations

import os
import time
from pathlib import Path

from deploy.bench.awake import awake
from deploy.lab import cgroup
from deploy.lab.layout import cgroup_root


def test_every_cpu_has_a_loop_of_the_idle_class() -> None:
    group = cgroup_root() / f"gossamer-awake{os.getpid()}"
    try:
        with awake(group):
            loops = _settled(group)
            assert all(os.sched_getscheduler(pid) == os.SCHED_IDLE for pid in loops)
            assert sorted(os.sched_getaffinity(pid).pop() for pid in loops) == sorted(os.sched_getaffinity(0))
        assert not cgroup.populated(group)
    finally:
        cgroup.kill(group)
        cgroup.remove(group)


def _settled(group: Path) -> list[int]:
    """The processes, when each has become its loop: taskset, then chrt, then that."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = cgroup.processes(group)
        if all(os.sched_getscheduler(pid) == os.SCHED_IDLE for pid in found):
            return found
        time.sleep(0.01)
    raise AssertionError("no loop of the idle class")
