"""Every name, path and address of a lab, derived from its name and its slot. Pure.

The slot (0–59) is a number no other lab on this machine has at the same time, so that addresses of two labs never
overlap either, although they could not meet: each lab has a fabric of its own.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.fault import LabError

RUNTIME = Path("/run/gossamer")
NETNS = Path("/run/netns")
SLOTS = 60
RESERVED_NODES = frozenset({"fabric", "control", "dns"})
NODE_LIMIT = 200
POD_LIMIT = 250  # of one node: what its /24 holds

_LAB = re.compile(r"[a-z][a-z0-9]{0,14}")


def cgroup_root() -> Path:
    """Where cgroup v2 is mounted: systemd's hybrid place, or the whole of /sys/fs/cgroup."""
    hybrid = Path("/sys/fs/cgroup/unified")
    root = hybrid if (hybrid / "cgroup.controllers").exists() else Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists():
        raise LabError(
            "no cgroup v2 hierarchy at /sys/fs/cgroup/unified or /sys/fs/cgroup; mount one with mount -t cgroup2"
        )
    return root


def check_lab_name(name: str) -> str:
    """The name if it can be a lab's. No dashes: what lab `a` made must never look like something of lab `a-b`."""
    if not _LAB.fullmatch(name):
        raise LabError(f"lab name {name!r}: must be 1 to 15 of a-z and 0-9, starting with a letter (no dashes)")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Names, paths and addresses of one lab."""

    name: str
    slot: int = 0

    # --- files ------------------------------------------------------------------------------------
    @property
    def run(self) -> Path:
        return RUNTIME / self.name

    @property
    def lock(self) -> Path:
        """Beside the runtime directory, so that it outlives `down` and a waiting `up` locks the same file."""
        return RUNTIME / f".{self.name}.lock"

    @property
    def cluster(self) -> Path:
        """One YAML file per object; the controller's source directory."""
        return self.run / "cluster"

    @property
    def logs(self) -> Path:
        return self.run / "logs"

    @property
    def control(self) -> Path:
        """Files of the controller, clusterd and dnsmasq."""
        return self.run / "control"

    def node_dir(self, node: str) -> Path:
        return self.run / "nodes" / node

    def pod_records(self, node: str) -> Path:
        """What the agent follows: `<metadata.uid>.json` per pod."""
        return self.node_dir(node) / "pods"

    def pod_manifests(self, node: str) -> Path:
        """What the kubelet follows: the bound pods of this node, whole, as JSON."""
        return self.node_dir(node) / "manifests"

    def agent_dir(self, node: str) -> Path:
        return self.node_dir(node) / "agent"

    def bpf(self, node: str) -> Path:
        return self.node_dir(node) / "bpf"

    def container_log(self, namespace: str, pod: str, container: str) -> Path:
        return self.logs / f"{namespace}_{pod}_{container}.log"

    # --- namespaces -------------------------------------------------------------------------------
    @property
    def netns_prefix(self) -> str:
        return f"gsm-{self.name}-"

    @property
    def fabric_netns(self) -> str:
        return f"{self.netns_prefix}fabric"

    @property
    def control_netns(self) -> str:
        return f"{self.netns_prefix}control"

    @property
    def dns_netns(self) -> str:
        return f"{self.netns_prefix}dns"

    def node_netns(self, node: str) -> str:
        return f"{self.netns_prefix}{node}"

    def pod_netns(self, namespace: str, pod: str) -> str:
        """A namespace's name has no dot, so the last dot separates."""
        return f"{self.netns_prefix}pod-{pod}.{namespace}"

    # --- cgroups ----------------------------------------------------------------------------------
    @property
    def cgroup(self) -> Path:
        return cgroup_root() / f"gossamer-{self.name}"

    def node_cgroup(self, node: str) -> Path:
        return self.cgroup / node

    def service_cgroup(self, service: str) -> Path:
        """Of a process that serves the whole lab: controller, clusterd, dns."""
        return self.cgroup / "control" / service

    def pod_cgroup(self, node: str, namespace: str, pod: str, uid: str) -> Path:
        return self.node_cgroup(node) / "pods" / f"{namespace}_{pod}_{uid}"

    # --- addresses --------------------------------------------------------------------------------
    @property
    def pods4(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network(f"10.{10 + self.slot}.0.0/16")

    @property
    def services4(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network(f"10.{70 + self.slot}.0.0/16")

    @property
    def fabric4(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network(f"10.{130 + self.slot}.0.0/16")

    @property
    def pods6(self) -> ipaddress.IPv6Network:
        """A /56 holds every node's /64."""
        return ipaddress.IPv6Network(f"fd67:6d00:{self.slot:x}::/56")

    @property
    def services6(self) -> ipaddress.IPv6Network:
        return ipaddress.IPv6Network(f"fd67:6d00:{self.slot:x}:fe00::/112")

    @property
    def fabric6(self) -> ipaddress.IPv6Network:
        return ipaddress.IPv6Network(f"fd67:6d00:{self.slot:x}:ff00::/64")

    def node_pods4(self, index: int) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network((int(self.pods4[0]) + (index << 8), 24))

    def node_pods6(self, index: int) -> ipaddress.IPv6Network:
        return ipaddress.IPv6Network((int(self.pods6[0]) + (index << 64), 64))

    def node_addresses(self, index: int) -> tuple[str, str]:
        """(IPv4, IPv6) of a node on the fabric; index counts from 0."""
        return str(self.fabric4[10 + index]), str(self.fabric6[10 + index])

    @property
    def control_addresses(self) -> tuple[str, str]:
        return str(self.fabric4[2]), str(self.fabric6[2])

    @property
    def dns_addresses(self) -> tuple[str, str]:
        """Of dnsmasq's namespace on the fabric; pods know it by `cluster_dns`."""
        return str(self.fabric4[3]), str(self.fabric6[3])

    @property
    def cluster_dns(self) -> tuple[str, str]:
        return str(self.services4[10]), str(self.services6[10])


def short_name(prefix: str, *parts: str) -> str:
    """An interface name (at most 15 bytes) for something with a longer name."""
    digest = hashlib.sha256("/".join(parts).encode()).hexdigest()
    return f"{prefix}{digest[: 15 - len(prefix)]}"
