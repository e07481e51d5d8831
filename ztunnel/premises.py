"""Where the agent lives: its run directory, and the cgroup that it shares with an agent that it replaces."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ztunnel.admin.listener import is_listening

ASIDE = "draining-"  # and the process id: the admin socket of an agent that was replaced


def processes(cgroup: Path) -> list[int]:
    """Process ids in a cgroup; empty if it cannot be read."""
    try:
        return [int(line) for line in (cgroup / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def prepare_run_directory(path: Path) -> None:
    """The agent's own directory, for nobody else; OSError names it and the cure."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--run {path} cannot be made: {error.strerror}; name a directory on a writable disk") from error
    with suppress(PermissionError):
        path.chmod(0o700)
    for left in path.glob(f"{ASIDE}*.sock"):
        if not is_listening(left):
            left.unlink(missing_ok=True)
