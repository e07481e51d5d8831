"""Service addresses in a node's namespace, as kube-proxy's nftables mode does it: one table, replaced as a whole. Pure.

Connections from the node's processes (output) and from its pods (prerouting) to a cluster IP are sent to a random
ready endpoint; what is for a cluster IP and found none is rejected at once; a pod that reaches itself through its own
service is masqueraded, or it would drop its own packet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deploy.lab.endpoints import ServicePort

TABLE = "kube-proxy"
_FAMILIES = (("ip", "ipv4_addr", False), ("ip6", "ipv6_addr", True))


def ruleset(ports: Iterable[ServicePort], *, services: Sequence[str], dns: Sequence[str]) -> str:
    """nft(8) text that replaces the table. `services`: the cluster IP ranges; `dns`: routed addresses in them."""
    every = sorted(ports)
    lines = [f"add table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    chains: list[str] = []
    for family, kind, v6 in _FAMILIES:
        own = [port for port in every if (":" in port.cluster_ip) == v6 and port.endpoints]
        elements = []
        for port in own:
            chain = f"{family}-{port.namespace}/{port.service}/{port.protocol}/{port.port}"
            elements.append(f"{port.cluster_ip} . {port.protocol} . {port.port} : goto {chain}")
            chains.append(_endpoint_chain(chain, family, port))
        lines += _map(f"{family}-services", f"{kind} . inet_proto . inet_service : verdict", elements)
        hairpins = sorted({ip for port in own for ip, _ in port.endpoints})
        lines += _set(f"{family}-hairpins", f"{kind} . {kind}", [f"{ip} . {ip}" for ip in hairpins])
    lines += chains
    lines += _dispatch(services, dns)
    lines.append("}")
    return "\n".join(lines) + "\n"


def _map(name: str, kind: str, elements: list[str]) -> list[str]:
    body = [f"    elements = {{ {', '.join(elements)} }}"] if elements else []
    return [f"  map {name} {{", f"    type {kind}", *body, "  }"]


def _set(name: str, kind: str, elements: list[str]) -> list[str]:
    body = [f"    elements = {{ {', '.join(elements)} }}"] if elements else []
    return [f"  set {name} {{", f"    type {kind}", *body, "  }"]


def _endpoint_chain(chain: str, family: str, port: ServicePort) -> str:
    choices = ", ".join(f"{index} : {ip} . {number}" for index, (ip, number) in enumerate(port.endpoints))
    pick = f"numgen random mod {len(port.endpoints)} map {{ {choices} }}"
    return f"  chain {chain} {{\n    meta l4proto {port.protocol} dnat {family} to {pick}\n  }}"


def _dispatch(services: Sequence[str], dns: Sequence[str]) -> list[str]:
    lookups = [f"    {family} daddr . meta l4proto . th dport vmap @{family}-services" for family, _, _ in _FAMILIES]
    hairpins = [
        f"    ct status dnat {family} saddr . {family} daddr @{family}-hairpins masquerade"
        for family, _, _ in _FAMILIES
    ]
    unmatched = []
    for network in services:
        family = "ip6" if ":" in network else "ip"
        routed = ", ".join(ip for ip in dns if (":" in ip) == (":" in network))
        unmatched.append(f"    {family} daddr {network} {family} daddr != {{ {routed} }} jump refuse")
    return [
        "  chain prerouting {\n    type nat hook prerouting priority dstnat", *lookups, "  }",
        "  chain output {\n    type nat hook output priority -100", *lookups, "  }",
        "  chain postrouting {\n    type nat hook postrouting priority srcnat", *hairpins, "  }",
        "  chain refuse {", "    meta l4proto tcp reject with tcp reset", "    reject", "  }",
        "  chain filter-forward {\n    type filter hook forward priority filter", *unmatched, "  }",
        "  chain filter-output {\n    type filter hook output priority filter", *unmatched, "  }",
    ]  # fmt: skip
