"""Start a process in a cgroup and in namespaces: between fork and exec, nothing else."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.lab.fault import LabError

CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000

_libc = ctypes.CDLL(None, use_errno=True)


def setns(handle: int) -> None:
    """Join the namespace that an open /proc/PID/ns or /run/netns file stands for (this thread)."""
    if _libc.setns(handle, 0) != 0:
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")


def entry(cgroup: Path, namespaces: Sequence[int] = ()) -> Callable[[], None]:
    """What a child does before exec: join the cgroup first (its cgroup namespace starts there), then the namespaces."""
    procs = os.fsencode(cgroup / "cgroup.procs")

    def enter() -> None:
        handle = os.open(procs, os.O_WRONLY)
        os.write(handle, b"0")
        os.close(handle)
        for namespace in namespaces:
            setns(namespace)

    return enter


def pod_namespaces(hostname: str) -> tuple[int, int]:
    """New UTS and IPC namespaces, shared by a pod's containers, as open file descriptors.

    unshare(2) acts on the calling thread, so a thread made for the purpose and thrown away does it without a process.
    """
    result: list[int] = []
    failure: list[OSError] = []

    def make() -> None:
        try:
            name = hostname.encode()
            if _libc.unshare(CLONE_NEWUTS | CLONE_NEWIPC) != 0 or _libc.sethostname(name, len(name)) != 0:
                raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUTS | CLONE_NEWIPC)")
            result.extend(
                os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("uts", "ipc")
            )
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0], result[1]


def in_netns(netns: Path, work: Callable[[], None]) -> None:
    """Run something in a network namespace, in a thread of its own; what it raises is raised here."""
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            handle = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(handle)
            finally:
                os.close(handle)
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def daemon(
    argv: Sequence[str], *, cgroup: Path, log: Path, netns: Path | None = None, env: Mapping[str, str] | None = None
) -> None:
    """Start a long-lived process of the lab; its output goes to the end of the log.

    It is nobody's child, so that it leaves no zombie in the process that started it. What it is, its cgroup tells.
    """
    handles: list[int] = []
    try:
        if netns is not None:
            handles.append(os.open(netns, os.O_RDONLY | os.O_CLOEXEC))
        cgroup.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            subprocess.run(
                ["/usr/bin/setsid", "--fork", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=dict(env) if env is not None else None,
                preexec_fn=entry(cgroup, handles),
                check=True,
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"cannot start {argv[0]} in {cgroup}: {error}") from error
    finally:
        for handle in handles:
            os.close(handle)
