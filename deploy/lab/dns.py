"""The cluster's names, for a real DNS server (dnsmasq): its hosts file and its arguments. Pure.

Kubernetes' DNS specification: a service's name gives its cluster IPs, a headless service's name its ready pods, and a
pod with `hostname` and `subdomain` has a name of its own under its headless service. Anything else does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.lab.endpoints import addresses, serving
from deploy.lab.manifest import Key, Object

DOMAIN = "cluster.local"


def hosts(objects: Mapping[Key, Object], extra: Mapping[str, Sequence[str]]) -> str:
    """One `address name` line per record, in a stable order. `extra`: further names with their addresses."""
    pods = [item for key, item in objects.items() if key.kind == "Pod"]
    records = {(ip, name) for name, ips in extra.items() for ip in ips}
    for key, service in objects.items():
        if key.kind != "Service":
            continue
        name = f"{key.name}.{key.namespace}.svc.{DOMAIN}"
        ips = service["spec"].get("clusterIPs") or []
        if ips != ["None"]:
            records.update((ip, name) for ip in ips)
            continue
        families = {family == "IPv6" for family in service["spec"].get("ipFamilies") or ["IPv4"]}
        for pod in serving(service, pods):
            own = [ip for v6 in families for ip in addresses(pod, v6)]
            records.update((ip, name) for ip in own)
            spec = pod["spec"]
            if spec.get("subdomain") == key.name:
                records.update((ip, f"{spec.get('hostname') or pod['metadata']['name']}.{name}") for ip in own)
    return "".join(f"{ip} {name}\n" for ip, name in sorted(records))


def dnsmasq_argv(hosts_file: Path, pid_file: Path, listen: Sequence[str]) -> list[str]:
    """dnsmasq(8): authoritative for everything, so unknown names do not exist; SIGHUP reads the hosts file again."""
    return [
        "/usr/sbin/dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--no-poll",
        "--local=/#/",
        "--local-ttl=1",
        "--user=root",
        "--bind-interfaces",
        "--except-interface=none",
        f"--addn-hosts={hosts_file}",
        f"--pid-file={pid_file}",
        "--log-facility=-",
        *(f"--listen-address={address}" for address in listen),
    ]
