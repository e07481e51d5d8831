"""Whether the kernel side can run here: capabilities, cgroups, bpffs, program types; before anything is loaded."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from bpf import btf, syscall
from bpf.artifact import LICENSE
from bpf.cgroup import Cgroup, mounts
from bpf.error import PreflightError
from bpf.programs import HOOKS, SEQUENCE_MARKERS, Place

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}  # SYS_ADMIN contains CAP_BPF and CAP_PERFMON
_WAKE_READERS = {"CAP_NET_RAW": 13}
_BY_TCP = "without it (--direct-acceleration off) everything works, by TCP"
_SINCE = {
    "connect4": "4.17",
    "connect6": "4.17",
    "getpeername4": "5.8",
    "getpeername6": "5.8",
    "getsockname4": "5.8",
    "getsockname6": "5.8",
    "sockops": "4.13",
    "message": "4.17",
    "lookup": "5.9",
}
_COOKIE = 122  # bpf_get_netns_cookie: 5.7, in sockops since 5.14


def check(
    pins: Path, cgroup: Path, agent_cgroup: Path, kubelet_cgroup: Path | None, *, effective: int | None = None
) -> tuple[Cgroup, tuple[int, int, int, int]]:
    """The node's cgroup, and the first four fields of `struct settings`; PreflightError names what is missing."""
    _capabilities(_effective() if effective is None else effective, _CAPABILITIES)
    node = Cgroup.find(cgroup, "the node's")
    agent = _inner(agent_cgroup, "the agent's")
    kubelet = None if kubelet_cgroup is None else _inner(kubelet_cgroup, "the kubelet's")
    _bpffs(pins)
    _features()
    return node, (agent.id, kubelet.id if kubelet else 0, agent.level, kubelet.level if kubelet else 0)


def runs_in(cgroup: Path) -> None:
    """PreflightError unless this process is in `cgroup` or below: else its sockets would be taken for a pod's."""
    pid = str(os.getpid())
    if any(pid in procs.read_text().split() for procs in cgroup.rglob("cgroup.procs")):
        return
    raise PreflightError(
        f"process {pid} does not run in the agent's cgroup {cgroup}",
        f"start it there (echo $$ > {cgroup}/cgroup.procs before exec), or name the cgroup that holds it",
    )


def can_accelerate(*, effective: int | None = None) -> None:
    """PreflightError unless readers that fell behind can be woken, and the kernel says where it keeps sequence numbers:
    acceleration needs them to keep bytes in order."""
    _capabilities(_effective() if effective is None else effective, _WAKE_READERS, f"; {_BY_TCP}")
    if btf.sequence_offsets(tuple(SEQUENCE_MARKERS)) is None:
        raise PreflightError(
            f"{btf.KERNEL} does not tell where struct tcp_sock has {', '.join(SEQUENCE_MARKERS)}",
            f"a kernel with CONFIG_DEBUG_INFO_BTF is needed for acceleration; {_BY_TCP}",
        )


def _capabilities(effective: int, wanted: Mapping[str, int], otherwise: str = "") -> None:
    missing = [name for name, bit in wanted.items() if not effective >> bit & 1]
    if missing:
        raise PreflightError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            f"run the agent as root, or add what is missing to its securityContext.capabilities{otherwise}",
        )


def _effective() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)


def _inner(path: Path, what: str) -> Cgroup:
    """In the root cgroup live all processes: it tells nobody apart."""
    cgroup = Cgroup.find(path, what)
    if cgroup.level == 0:
        raise PreflightError(
            f"{what} cgroup {path} is the root of the v2 hierarchy, so every process would pass for it",
            "start it in a cgroup of its own",
        )
    return cgroup


def _bpffs(pins: Path) -> None:
    real = pins.absolute()
    mount = next((m for m in (real, *real.parents) if m in mounts("bpf")), None)
    if mount is None:
        raise PreflightError(f"{pins} is not in a bpffs", "mount one: mount -t bpf bpf /sys/fs/bpf")
    if not real.parent.is_dir():
        raise PreflightError(f"{real.parent} does not exist", f"create it in the bpffs {mount}")
    if not os.access(pins if pins.exists() else real.parent, os.W_OK):
        raise PreflightError(f"{pins} is not writable", "mount the bpffs read-write, owned by the agent's user")


def _features() -> None:
    for hook in HOOKS:
        if hook.place in (Place.CGROUP, Place.MAP, Place.NETNS):
            helper = hook.place is not Place.NETNS and not hook.name.startswith("getsockname")
            _try(hook.name, hook.kind, hook.attach, helper)
    try:
        os.close(syscall.create_map(kind=syscall.RINGBUF, name="probe", key=0, value=0, entries=4096))
    except OSError as error:
        raise PreflightError(f"no BPF ring buffer here ({error.strerror})", "Linux 5.8 or newer is needed") from error


def _try(name: str, kind: int, attach: int, helper: bool) -> None:
    """Load `return 1`, with a call of the helper that names a netns where the program needs it."""
    code = (struct.pack("=BBhi", 0x85, 0, 0, _COOKIE) if helper else b"") + struct.pack(
        "=BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0
    )
    try:
        os.close(syscall.load_program(kind=kind, attach=attach, name="probe", instructions=code, license=LICENSE))
    except OSError as error:
        raise PreflightError(
            f"this kernel refuses {name} programs ({os.strerror(error.errno or 0)})",
            f"Linux {_SINCE[name]} or newer with CONFIG_CGROUP_BPF, CONFIG_BPF_SYSCALL and CONFIG_NET_SOCK_MSG is "
            "needed (and 5.14 for its helpers); nothing else may forbid bpf(2): seccomp, lockdown=confidentiality",
        ) from error
