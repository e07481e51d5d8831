"""cgroup v2 directories: make, ask, kill, remove."""

from __future__ import annotations

import os
import time
from pathlib import Path

from deploy.lab.fault import LabError


def processes(group: Path) -> list[int]:
    """Process ids in this group and below it; empty if there is no such group."""
    found: list[int] = []
    for directory, _, _ in os.walk(group):
        try:
            found.extend(int(line) for line in (Path(directory) / "cgroup.procs").read_text().split())
        except (FileNotFoundError, OSError):  # removed while we walked
            continue
    return found


def populated(group: Path) -> bool:
    """Whether a process lives in this group or below; zombies that wait for their parent count as gone."""
    try:
        return "populated 1" in (group / "cgroup.events").read_text()
    except OSError:
        return False


def kill(group: Path, deadline: float = 10.0) -> None:
    """SIGKILL everything in the group and below it, at once, and wait until it is empty (seconds)."""
    try:
        (group / "cgroup.kill").write_text("1")
    except FileNotFoundError:
        return
    end = time.monotonic() + deadline
    while populated(group):
        if time.monotonic() > end:
            raise LabError(
                f"{group}: processes {processes(group)} survive SIGKILL for {deadline:g} s (in uninterruptible sleep?)"
            )
        time.sleep(0.005)


def remove(group: Path) -> None:
    """Remove an empty group with all groups below it."""
    for directory, _, _ in os.walk(group, topdown=False):
        # A group can be busy for a moment after its last process is gone.
        for attempt in range(100):
            try:
                Path(directory).rmdir()
            except FileNotFoundError:
                break
            except OSError:
                if attempt == 99:
                    raise
                time.sleep(0.01)
            else:
                break
