"""The machines and the network: namespaces, links, addresses and routes, as a routed CNI would make them.

    pod eth0 (/32, /128) -- veth -- node eth0 -- veth -- bridge in the fabric's namespace -- … other nodes, control, dns

A pod's gateway is the link-local 169.254.1.1 / fe80::1 behind a permanent neighbour entry; the node has one host route
per pod, and one route per other node's pod range. No address is on the machine's own network.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute, netns

from deploy.lab.fault import LabError
from deploy.lab.launch import in_netns
from deploy.lab.layout import NETNS, Layout, short_name

GATEWAY4 = "169.254.1.1"
GATEWAY6 = "fe80::1"
_GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"  # of every node-side end of a pod's veth, so that one neighbour entry fits all
_MTU = 1500

_COMMON = {
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}
_NODE = _COMMON | {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    # A thousand short connections a second must not fill the connection tracking table with ended ones.
    "net/netfilter/nf_conntrack_tcp_timeout_time_wait": "30",
}
# As containerd gives pods: low ports and ping without capabilities.
_POD = _COMMON | {"net/ipv4/ip_unprivileged_port_start": "0", "net/ipv4/ping_group_range": "0 2147483647"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Something with one address of each family on the fabric: a node, the controller, the DNS server."""

    name: str
    netns: str
    address4: str
    address6: str
    pods4: str = ""
    pods6: str = ""

    @property
    def port(self) -> str:
        """Its port on the fabric's bridge."""
        return self.name if len(self.name) <= 15 else short_name("n", self.name)


def exists(name: str) -> bool:
    return (NETNS / name).exists()


def made(layout: Layout, name: str) -> bool:
    """Whether a machine's namespace is there with all that belongs in it: its maker may have been killed half-way."""
    return exists(name) and _mark(layout, name).exists()


def _mark(layout: Layout, name: str) -> Path:
    return layout.run / "made" / name


def _discard_half(layout: Layout, name: str) -> None:
    """What is left of an attempt that was killed, and the mark of an earlier namespace of this name."""
    _mark(layout, name).unlink(missing_ok=True)
    remove(name)


def _finish(layout: Layout, name: str) -> None:
    _mark(layout, name).parent.mkdir(parents=True, exist_ok=True)
    _mark(layout, name).touch()


def make_fabric(layout: Layout) -> None:
    """The bridge, and behind it a router that answers 'unreachable' for whatever is not in the lab."""

    def wire(ipr: IPRoute) -> None:
        ipr.link("add", ifname="br0", kind="bridge", br_stp_state=0, br_mcast_snooping=0)
        index = _index(ipr, "br0")
        ipr.addr("add", index=index, address=str(layout.fabric4[1]), prefixlen=layout.fabric4.prefixlen)
        ipr.addr("add", index=index, address=str(layout.fabric6[1]), prefixlen=layout.fabric6.prefixlen, flags=_NODAD)
        ipr.link("set", index=index, state="up")
        ipr.route("add", dst="0.0.0.0/0", type="unreachable")
        ipr.route("add", dst="::/0", type="unreachable", family=socket.AF_INET6)

    _discard_half(layout, layout.fabric_netns)
    _create(layout.fabric_netns, _NODE, wire)
    _finish(layout, layout.fabric_netns)


_NODAD = 0x02  # IFA_F_NODAD


def make_machine(layout: Layout, machine: Machine, extra_addresses: Iterable[str] = ()) -> None:
    """A namespace with eth0 on the fabric; extra addresses go to its loopback device."""
    _discard_half(layout, machine.netns)
    _create(machine.netns, _NODE, lambda ipr: None)
    with _opened(machine.netns) as handle:

        def plug(ipr: IPRoute) -> None:
            peer = {"ifname": "eth0", "net_ns_fd": handle, "mtu": _MTU}
            for left in ipr.link_lookup(ifname=machine.port):  # a namespace goes later than its name
                ipr.link("del", index=left)
            ipr.link("add", ifname=machine.port, kind="veth", peer=peer, mtu=_MTU)
            index = _index(ipr, machine.port)
            ipr.link("set", index=index, master=_index(ipr, "br0"), state="up")

        _within(layout.fabric_netns, plug)

    def wire(ipr: IPRoute) -> None:
        index = _index(ipr, "eth0")
        ipr.addr("add", index=index, address=machine.address4, prefixlen=layout.fabric4.prefixlen)
        ipr.addr("add", index=index, address=machine.address6, prefixlen=layout.fabric6.prefixlen, flags=_NODAD)
        ipr.link("set", index=index, state="up")
        loopback = _index(ipr, "lo")
        for address in extra_addresses:
            ipr.addr("add", index=loopback, address=address, prefixlen=128 if ":" in address else 32)
        ipr.route("add", dst="0.0.0.0/0", gateway=str(layout.fabric4[1]), oif=index)
        ipr.route("add", dst="::/0", gateway=str(layout.fabric6[1]), oif=index, family=socket.AF_INET6)

    _within(machine.netns, wire)
    _finish(layout, machine.netns)


def set_routes(layout: Layout, machine: Machine, others: Iterable[Machine]) -> None:
    """Routes of a machine (or the fabric's router) to the others' pods and to the cluster's DNS. Repeatable."""

    def wire(ipr: IPRoute) -> None:
        index = _index(ipr, "br0" if machine.netns == layout.fabric_netns else "eth0")
        for other in others:
            if other.pods4 and other.name != machine.name:
                _route(ipr, other.pods4, other.address4, index)
                _route(ipr, other.pods6, other.address6, index)
        if machine.netns != layout.dns_netns:
            for address, gateway in zip(layout.cluster_dns, layout.dns_addresses, strict=True):
                _route(ipr, f"{address}/{128 if ':' in address else 32}", gateway, index)

    _within(machine.netns, wire)


def make_pod(layout: Layout, namespace: str, pod: str, node: Machine, addresses: tuple[str, str]) -> None:
    """A pod's namespace, its veth into the node's namespace, and the routes on both sides."""
    name = layout.pod_netns(namespace, pod)
    _create(name, _POD, lambda ipr: None)
    outside = short_name("veth", namespace, pod)
    v4, v6 = addresses
    mac = "0a:58:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(v4).packed)
    with _opened(name) as handle:

        def plug(ipr: IPRoute) -> None:
            peer = {"ifname": "eth0", "net_ns_fd": handle, "address": mac, "mtu": _MTU}
            ipr.link("add", ifname=outside, kind="veth", peer=peer, address=_GATEWAY_MAC, mtu=_MTU)
            index = _index(ipr, outside)
            ipr.addr("add", index=index, address=GATEWAY6, prefixlen=64, flags=_NODAD)
            ipr.link("set", index=index, state="up")
            for address, family, source in ((v4, socket.AF_INET, node.address4), (v6, socket.AF_INET6, node.address6)):
                ipr.neigh("replace", dst=address, lladdr=mac, ifindex=index, state="permanent", family=family)
                length = 32 if family == socket.AF_INET else 128
                ipr.route("replace", dst=f"{address}/{length}", oif=index, prefsrc=source, family=family, scope="link")

        _within(node.netns, plug)

    def wire(ipr: IPRoute) -> None:
        index = _index(ipr, "eth0")
        ipr.link("set", index=index, state="up")
        ipr.addr("add", index=index, address=v4, prefixlen=32)
        ipr.addr("add", index=index, address=v6, prefixlen=128, flags=_NODAD)
        for gateway, family in ((GATEWAY4, socket.AF_INET), (GATEWAY6, socket.AF_INET6)):
            ipr.neigh("replace", dst=gateway, lladdr=_GATEWAY_MAC, ifindex=index, state="permanent", family=family)
        ipr.route("add", dst=f"{GATEWAY4}/32", oif=index, scope="link")
        ipr.route("add", dst="0.0.0.0/0", gateway=GATEWAY4, oif=index)
        ipr.route("add", dst="::/0", gateway=GATEWAY6, oif=index, family=socket.AF_INET6)

    _within(name, wire)


def remove_pod(layout: Layout, namespace: str, pod: str, node: Machine) -> None:
    """Unplug a pod and remove its namespace. Somebody may hold the namespace for a while (an agent that still ends
    connections in it); its address and its device's name are free at once."""

    def unplug(ipr: IPRoute) -> None:
        for index in ipr.link_lookup(ifname=short_name("veth", namespace, pod)):
            ipr.link("del", index=index)

    if exists(node.netns):
        _within(node.netns, unplug)
    remove(layout.pod_netns(namespace, pod))


def partition(layout: Layout, node: Machine, healed: bool) -> None:
    """Cut a node's port off the fabric, or plug it in again. The carrier stays: packets vanish, as in real life."""
    # pyroute2 takes a bridge port's "state" for the link's and would set it down.
    argv = ["bridge", "-n", layout.fabric_netns, "link", "set", "dev", node.port, "state", "3" if healed else "0"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"node {node.name}: cannot change its port {node.port} on the fabric: {done.stderr.strip()}")


def partitioned(layout: Layout, nodes: Iterable[Machine]) -> frozenset[str]:
    """Names of the nodes that are cut off."""
    argv = ["bridge", "-n", layout.fabric_netns, "-j", "link", "show"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    ports = {port["ifname"] for port in json.loads(done.stdout or "[]") if port.get("state") == "disabled"}
    return frozenset(node.name for node in nodes if node.port in ports)


def remove(name: str) -> None:
    """Remove a namespace by name; links in it go with it. Nothing happens if there is none."""
    if exists(name):
        netns.remove(name)


def leftovers(layout: Layout) -> list[str]:
    """Names of all namespaces of this lab. A lab's name has no dash, so the prefix is nobody else's."""
    try:
        return sorted(entry.name for entry in NETNS.iterdir() if entry.name.startswith(layout.netns_prefix))
    except FileNotFoundError:
        return []


class _opened:
    """An open file of a namespace."""

    def __init__(self, name: str) -> None:
        self.path = NETNS / name

    def __enter__(self) -> int:
        self.handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self.handle

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)


def _create(name: str, settings: dict[str, str], wire: Callable[[IPRoute], None]) -> None:
    if exists(name):
        raise LabError(f"network namespace {name} is there already (left by a crash?); gossamer lab down removes it")
    netns.create(name)

    def prepare(ipr: IPRoute) -> None:
        for setting, value in settings.items():
            path = Path("/proc/sys", setting)
            if path.exists() or "netfilter" not in setting:  # a module may come later
                path.write_text(value)
        ipr.link("set", index=1, state="up")
        wire(ipr)

    _within(name, prepare)


def _within(name: str, work: Callable[[IPRoute], None]) -> None:
    def run() -> None:
        with IPRoute() as ipr:
            work(ipr)

    in_netns(NETNS / name, run)


def _index(ipr: IPRoute, name: str) -> int:
    found = ipr.link_lookup(ifname=name)
    if not found:
        raise LabError(f"network device {name} is missing; take the lab down and up again")
    return found[0]


def _route(ipr: IPRoute, destination: str, gateway: str, index: int) -> None:
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    ipr.route("replace", dst=destination, gateway=gateway, oif=index, family=family)
