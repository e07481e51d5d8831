"""Cgroups of the v2 hierarchy, as BPF programs name them: an id and the depth below the root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bpf.error import PreflightError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """A directory of the v2 hierarchy. `id` is what bpf_get_current_cgroup_id() says of processes in it."""

    path: Path
    id: int
    level: int  # 0: the root

    @classmethod
    def find(cls, path: Path, what: str) -> Cgroup:
        """`what` names its role in the error: "the agent's"."""
        real = path.resolve()
        mount = next((m for m in (real, *real.parents) if m in mounts("cgroup2")), None)
        if mount is None:
            raise PreflightError(
                f"{what} cgroup {path} is not in a cgroup v2 hierarchy",
                "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1) or name a directory under the cgroup2 mount",
            )
        if not real.is_dir():
            raise PreflightError(f"{what} cgroup {path} does not exist", "create it, or name the one that is used")
        root = mounts("cgroup2")[mount]
        if root.startswith("/.."):
            raise PreflightError(
                f"the cgroup2 mount {mount} begins outside of this cgroup namespace",
                "run the agent in the node's cgroup namespace (cgroupns: host)",
            )
        level = len(real.relative_to(mount).parts) + len(Path(root).parts) - 1
        return cls(path=real, id=real.stat().st_ino, level=level)


def mounts(kind: str) -> dict[Path, str]:
    """Mount points of a file system type -> what of it is mounted there (/ for the whole)."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if after.split()[0] == kind:
            found[Path(fields[4].encode().decode("unicode_escape"))] = fields[3]
    return found
