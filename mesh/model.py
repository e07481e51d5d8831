"""The nouns of the mesh as frozen values, in the shape the controller sends them.

Field names and meaning follow Istio's workload API (istio.workload.Workload, .Service, istio.security.Authorization).
An IP address is its canonical text (`str(ipaddress.ip_address(...))`, an IPv4-mapped IPv6 address as IPv4), so that
values compare, hash and encode as what they are; `canonical_ip` makes one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from mesh.identity import SpiffeId

_LONGEST_IP = 45  # characters; what is longer is not remembered


def canonical_ip(text: str) -> str:
    """Canonical text of an IP address; ValueError if it is none. `::ffff:10.0.0.1` becomes `10.0.0.1`."""
    return _canonical(text) if len(text) <= _LONGEST_IP else _canonical.__wrapped__(text)


@lru_cache(maxsize=4096)  # the same few are asked for with every connection, and parsing one takes ten microseconds
def _canonical(text: str) -> str:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


class SocketAddress(NamedTuple):
    """An IP address (canonical text) and a TCP port (host order)."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> SocketAddress:
        """Parse `ip:port` or `[v6]:port` (RFC 3986 authority of an IP literal); ValueError otherwise."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or not (port.isascii() and port.isdigit() and len(port) <= 5) or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is not ip:port")
        if (":" in host) != bracketed:
            raise ValueError(f"{text!r}: an IPv6 address stands in brackets, an IPv4 address does not")
        return cls(canonical_ip(host[1:-1] if bracketed else host), int(port))


class TunnelProtocol(StrEnum):
    NONE = "NONE"
    HBONE = "HBONE"


class NetworkMode(StrEnum):
    STANDARD = "STANDARD"
    HOST_NETWORK = "HOST_NETWORK"


class WorkloadStatus(StrEnum):
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"


class AppProtocol(StrEnum):
    UNKNOWN = "UNKNOWN"
    HTTP11 = "HTTP11"
    HTTP2 = "HTTP2"
    GRPC = "GRPC"
    TCP = "TCP"
    TLS = "TLS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    region: str = ""
    zone: str = ""
    subzone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A service port. `target_port` 0 means: a named port, use the endpoint's own mapping."""

    service_port: int
    target_port: int
    app_protocol: AppProtocol = AppProtocol.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One pod. `uid` is Istio's (`<cluster>//Pod/<ns>/<name>`); `instance` is the pod's metadata.uid, new for a new pod
    of the same name: what is remembered about one instance never serves another."""

    uid: str
    name: str
    namespace: str
    instance: str = ""
    addresses: tuple[str, ...] = ()
    node: str = ""
    network: str = ""
    trust_domain: str = "cluster.local"
    service_account: str = "default"
    tunnel_protocol: TunnelProtocol = TunnelProtocol.NONE  # HBONE once the node's agent has enrolled it
    capture: bool = False  # the labels ask for enrolment; the node's agent makes it true
    network_mode: NetworkMode = NetworkMode.STANDARD
    status: WorkloadStatus = WorkloadStatus.HEALTHY
    workload_type: str = "pod"  # deployment | pod | job | cronjob
    workload_name: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    cluster_id: str = "Kubernetes"
    locality: Locality = Locality()
    services: Mapping[str, tuple[Port, ...]] = field(default_factory=dict)  # "<ns>/<hostname>" -> this endpoint's ports
    authorization_policies: tuple[str, ...] = ()  # "<ns>/<name>": selector-scoped ones that select this workload
    capacity: int = 1
    direct: bool = True  # pods of its node may reach it, and it them, from socket to socket; False: by the tunnel
    acceleration: bool = True  # bytes of its direct connections may go past TCP

    @property
    def identity(self) -> SpiffeId:
        return SpiffeId(self.trust_domain, self.namespace, self.service_account)

    @property
    def key(self) -> str:
        """The name of this resource on the wire."""
        return f"workload/{self.uid}"


class Scope(StrEnum):
    REGION = "REGION"
    ZONE = "ZONE"
    SUBZONE = "SUBZONE"
    NODE = "NODE"
    CLUSTER = "CLUSTER"
    NETWORK = "NETWORK"


class BalancingMode(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    STRICT = "STRICT"
    FAILOVER = "FAILOVER"
    PASSTHROUGH = "PASSTHROUGH"


class HealthPolicy(StrEnum):
    ONLY_HEALTHY = "ONLY_HEALTHY"
    ALLOW_ALL = "ALLOW_ALL"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancing:
    routing_preference: tuple[Scope, ...] = ()
    mode: BalancingMode = BalancingMode.UNSPECIFIED
    health_policy: HealthPolicy = HealthPolicy.ONLY_HEALTHY


class IpFamilies(StrEnum):
    AUTOMATIC = "AUTOMATIC"
    IPV4_ONLY = "IPV4_ONLY"
    IPV6_ONLY = "IPV6_ONLY"
    DUAL = "DUAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    name: str
    namespace: str
    hostname: str
    addresses: tuple[str, ...] = ()  # cluster IPs; empty for a headless service
    ports: tuple[Port, ...] = ()
    ip_families: IpFamilies = IpFamilies.AUTOMATIC
    load_balancing: LoadBalancing = LoadBalancing()
    subject_alt_names: tuple[str, ...] = ()
    canonical: bool = True
    network: str = ""

    @property
    def namespaced_hostname(self) -> str:
        return f"{self.namespace}/{self.hostname}"

    @property
    def key(self) -> str:
        return f"service/{self.namespaced_hostname}"


class PolicyScope(StrEnum):
    GLOBAL = "GLOBAL"
    NAMESPACE = "NAMESPACE"
    WORKLOAD_SELECTOR = "WORKLOAD_SELECTOR"


class PolicyAction(StrEnum):
    ALLOW = "ALLOW"
    DENY = "DENY"


class MatchKind(StrEnum):
    EXACT = "EXACT"
    PREFIX = "PREFIX"
    SUFFIX = "SUFFIX"
    PRESENCE = "PRESENCE"


@dataclass(frozen=True, slots=True)
class StringMatch:
    kind: MatchKind
    value: str = ""


@dataclass(frozen=True, slots=True)
class ServiceAccountMatch:
    namespace: str
    service_account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """AND over the fields that are not empty, OR over the values of one; `not_` means none may match.
    All fields empty never matches (istio-facts §3.1)."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    service_accounts: tuple[ServiceAccountMatch, ...] = ()
    not_service_accounts: tuple[ServiceAccountMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    source_ips: tuple[str, ...] = ()  # CIDRs
    not_source_ips: tuple[str, ...] = ()
    destination_ips: tuple[str, ...] = ()
    not_destination_ips: tuple[str, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Clause:
    """OR of matches; no matches at all: matches everything."""

    matches: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """AND of clauses; no clauses at all: matches everything."""

    clauses: tuple[Clause, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Policy:
    """An L4 authorization policy (istio.security.Authorization): OR of rules; no rules never matches."""

    name: str
    namespace: str
    scope: PolicyScope
    action: PolicyAction
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False

    @property
    def namespaced_name(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def key(self) -> str:
        return f"policy/{self.namespaced_name}"


Resource = Workload | Service | Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialled:
    """What an application dialled. Of a Service, the kernel side may have drawn an endpoint: `drawn`, or `elsewhere`,
    none of those that it draws from itself (mesh.balance)."""

    destination: SocketAddress
    drawn: SocketAddress | None = None
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Flow:
    """What an application asked for: the owner of the netns it lives in, and the address it dialled."""

    source: Workload
    destination: SocketAddress
