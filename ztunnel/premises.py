"""Where the agent lives: its run directory, and the cgroup that it shares with an agent that it replaces."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import stat
from contextlib import suppress
from pathlib import Path

from ztunnel.admin.listener import is_listening

log = logging.getLogger(__name__)

SNAPSHOT = "snapshot.jsonl"  # see ztunnel.journal
ASIDE = "draining-"  # and the process id: the admin socket of an agent that was replaced
_LONGEST = f"{ASIDE}4194304.sock"
_SOCKET_BYTES = 107  # unix(7): sun_path, less its end


def processes(cgroup: Path) -> list[int]:
    """Process ids in a cgroup; empty if it cannot be read."""
    try:
        return [int(line) for line in (cgroup / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def open_files_limit() -> int:
    """How many descriptors this process may have: as many as it may allow itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with suppress(OSError, ValueError):  # a hard limit without a number is above the kernel's own (fs.nr_open)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def prepare_run_directory(path: Path) -> None:
    """The agent's own directory, for nobody else; OSError names it and the cure."""
    if (over := len(os.fsencode(path / _LONGEST)) - _SOCKET_BYTES) > 0:
        raise OSError(f"--run {path} is {over} bytes too long for the sockets in it; name a shorter one")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--run {path} cannot be made: {error.strerror}; name a directory on a writable disk") from error
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise OSError(f"--run {path} is a symbolic link; name the directory itself")
    if facts.st_uid not in (0, os.geteuid()):  # whoever owns it can exchange all that is in it
        raise OSError(f"--run {path} belongs to user {facts.st_uid}; name a directory of root's, or one to be made")
    with suppress(PermissionError):
        path.chmod(0o700)
    for left in path.glob(f"{ASIDE}*.sock"):
        if not is_listening(left):
            left.unlink(missing_ok=True)


def forget_earlier_boot(run: Path, boot_id: Path = Path("/proc/sys/kernel/random/boot_id")) -> None:
    """What an agent held before the machine began anew must not decide: it may be days old, and nothing that lives was
    decided by it. Enrolled pods are closed until the controller answers, as on a new node. Called by who holds the
    directory; OSError if it cannot be dropped."""
    boot, known = boot_id.read_text(), run / "boot"
    snapshot = run / SNAPSHOT
    if known.exists() and known.read_text() == boot:
        return
    if known.exists() and snapshot.exists():
        snapshot.unlink()  # first: if this agent is killed here, the next one does not take it for this boot's
        log.info("%s is of before the machine began anew, and was dropped", snapshot)
    try:
        known.write_text(boot)
    except OSError as error:  # a full disk: the next agent begins with nothing, this one works
        log.warning("%s cannot be written: %s", known, error)


def hold(run: Path) -> int:
    """Wait until no other agent begins with this run directory: of two at once, each would take the other for dead.
    A file descriptor; whoever closes it, or dies, lets the next one begin."""
    fd = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another agent begins with --run %s; this one waits until it has", run)
            fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd
