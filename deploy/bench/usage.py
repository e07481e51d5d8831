"""What processes used: CPU from their cgroups, which count exactly and keep what ended; memory per process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bpf import syscall
from deploy.lab.cgroup import processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """Seconds of CPU since some start: of the proxies, of everything the benchmark runs, of the whole machine."""

    proxies: float
    total: float
    machine: float

    def since(self, start: Cpu) -> Cpu:
        return Cpu(
            proxies=self.proxies - start.proxies, total=self.total - start.total, machine=self.machine - start.machine
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """MiB, summed over processes. PSS splits a page among all who map it; RSS counts it for each."""

    pss: float
    rss: float


def read_cpu(proxies: Iterable[Path], everything: Iterable[Path]) -> Cpu:
    """CPU so far, by cgroup; a group that nothing has run in yet counts as zero."""
    return Cpu(
        proxies=sum(map(group_seconds, proxies)), total=sum(map(group_seconds, everything)), machine=machine_seconds()
    )


def group_seconds(group: Path) -> float:
    """User and system time of a cgroup and those below it."""
    try:
        text = (group / "cpu.stat").read_text()
    except FileNotFoundError:
        return 0.0
    return int(_fields(text)["usage_usec"]) / 1e6


def machine_seconds() -> float:
    """Time that any CPU of this machine was busy (all but idle and iowait), whoever it worked for."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, _steal = ticks
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def read_memory(groups: Iterable[Path]) -> Memory:
    """Memory of all processes in these cgroups now."""
    pss = rss = 0
    for group in groups:
        for pid in processes(group):
            try:
                fields = _fields(Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n", 1)[1].replace(":", ""))
            except (FileNotFoundError, ProcessLookupError):  # ended while we looked
                continue
            pss += int(fields["Pss"])
            rss += int(fields["Rss"])
    return Memory(pss=pss / 1024, rss=rss / 1024)


def queued_memory(listing: str) -> int:
    """Bytes that TCP accounts to the sockets that `ss -tm` lists: what each has queued to be read and to be sent, and
    what it has reserved. (The machine's sum, in /proc/net/sockstat, is off by up to a MiB for each CPU.)"""
    held = re.findall(r"skmem:\(r(\d+),rb\d+,t\d+,tb\d+,f(\d+),w(\d+)", listing)
    return sum(int(size) for each in held for size in each)


def message_memory() -> int:
    """Bytes of the whole machine that hold the descriptors of messages from socket to socket, which TCP does not
    account: a KiB of slab each."""
    slabs = re.findall(r"^kmalloc-(?:rnd-\d+-)?1k +(\d+)", Path("/proc/slabinfo").read_text(), re.MULTILINE)
    return 1024 * sum(map(int, slabs))


def slab_memory() -> int:
    """Bytes of the kernel's own objects, sockets and what is kept about them among these; no caches of files."""
    return 1024 * int(_fields(Path("/proc/meminfo").read_text().replace(":", ""))["SUnreclaim"])


def map_bytes(folder: Path) -> dict[str, int]:
    """Bytes that each map pinned below a bpf filesystem holds, by name, as the kernel accounts them (memlock)."""
    found: dict[str, int] = {}
    for path in sorted(folder.rglob("map_*")):
        fd = syscall.open_pin(path)
        if fd is None:
            continue
        try:
            fields = _fields(Path(f"/proc/self/fdinfo/{fd}").read_text().replace(":", ""))
        finally:
            os.close(fd)
        found[path.name.removeprefix("map_")] = int(fields["memlock"])
    return found


def _fields(text: str) -> dict[str, str]:
    return {words[0]: words[1] for line in text.splitlines() if len(words := line.split()) >= 2}
