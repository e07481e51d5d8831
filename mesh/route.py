"""Where does a connection go? Decided once, on one snapshot (istio-facts §1.8).

A Service VIP is balanced over its endpoints; a workload's address is that workload; anything else passes as it is.
Enrolled destinations are reached through the tunnel, on the same node too; others by plain TCP.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from mesh.identity import SpiffeId
from mesh.model import (
    BalancingMode,
    Flow,
    HealthPolicy,
    IpFamilies,
    Port,
    Scope,
    Service,
    SocketAddress,
    TunnelProtocol,
    Workload,
    WorkloadStatus,
)
from mesh.reason import Reason
from mesh.snapshot import Snapshot

OUTBOUND_PORT = 15001
PLAINTEXT_PORT = 15006
TUNNEL_PORT = 15008
ILLEGAL_PORTS = frozenset({OUTBOUND_PORT, PLAINTEXT_PORT, TUNNEL_PORT})


class Rng(Protocol):
    """What is needed of random.Random."""

    def random(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """Through the tunnel at `address` (podIP:15008) to `authority` (podIP:targetPort)."""

    workload: Workload
    address: SocketAddress
    authority: SocketAddress
    service: Service | None = None

    @property
    def expected(self) -> frozenset[SpiffeId]:
        """Identities of which the peer must prove one: the workload's, and those the service names (§1.3)."""
        named = []
        for name in self.service.subject_alt_names if self.service is not None else ():
            try:
                named.append(SpiffeId.parse(name))
            except ValueError:
                continue  # a ServiceEntry may also list DNS names
        return frozenset((self.workload.identity, *named))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """Plain TCP to `destination`; `workload` is None where nobody in the mesh is known to own it."""

    destination: SocketAddress
    workload: Workload | None = None
    service: Service | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    reason: Reason
    detail: str
    service: Service | None = None


Route = Tunnel | Plain | Refuse
Candidate = tuple[Workload, int]  # an endpoint and the port of it that a Service's leads to


def pick(
    snapshot: Snapshot,
    flow: Flow,
    rng: Rng,
    *,
    drawn: SocketAddress | None = None,
    besides: Collection[SocketAddress] = (),
) -> Route:
    """Choose for one connection. If it is to a Service: its endpoint `drawn`, if it still is one; else one that is not
    in `besides`, if there is one."""
    found = _options(snapshot, flow, drawn, besides)
    if not isinstance(found, _Options):
        return found
    return _to_candidate(found.service, flow, _weighted(found.candidates, rng))


def odds(
    snapshot: Snapshot,
    flow: Flow,
    *,
    drawn: SocketAddress | None = None,
    besides: Collection[SocketAddress] = (),
) -> list[tuple[int, Route]]:
    """All that `pick` chooses from, and the weight of each."""
    found = _options(snapshot, flow, drawn, besides)
    if not isinstance(found, _Options):
        return [(1, found)]
    weighed = zip(weights(found.candidates), found.candidates, strict=True)
    return [(weight, _to_candidate(found.service, flow, candidate)) for weight, candidate in weighed if weight]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    service: Service
    candidates: list[Candidate]


def _options(
    snapshot: Snapshot, flow: Flow, drawn: SocketAddress | None, besides: Collection[SocketAddress]
) -> Route | _Options:
    source, wanted = flow.source, flow.destination
    if wanted.port in ILLEGAL_PORTS and ipaddress.ip_address(wanted.ip).is_loopback:
        return Refuse(reason=Reason.ILLEGAL_PORT, detail=f"{wanted} is the agent's own")
    service = snapshot.service_at(wanted.ip, source.network, source.namespace)
    if service is not None:
        return _to_service(snapshot, flow, service, drawn, besides)
    workload = snapshot.workload_at(wanted.ip, source.network)
    if workload is None:
        return Plain(destination=wanted)
    return _to_workload(workload, wanted, None)


def _to_workload(workload: Workload, destination: SocketAddress, service: Service | None) -> Route:
    if workload.tunnel_protocol is TunnelProtocol.HBONE:
        address = SocketAddress(destination.ip, TUNNEL_PORT)
        return Tunnel(workload=workload, address=address, authority=destination, service=service)
    return Plain(destination=destination, workload=workload, service=service)


def _to_service(
    snapshot: Snapshot,
    flow: Flow,
    service: Service,
    drawn: SocketAddress | None,
    besides: Collection[SocketAddress],
) -> Route | _Options:
    if service.load_balancing.mode is BalancingMode.PASSTHROUGH:
        return Plain(destination=flow.destination, service=service)
    port = flow.destination.port
    if not any(p.service_port == port for p in service.ports):
        ports = ", ".join(str(p.service_port) for p in service.ports) or "none"
        detail = f"service {service.namespaced_hostname} has no port {port}; it has {ports}"
        return Refuse(reason=Reason.NO_SERVICE_PORT, detail=detail, service=service)
    found = candidates(snapshot, service, flow.source, port)
    if not found:
        return Refuse(reason=Reason.NO_ENDPOINT, detail=_why_none(snapshot, service, port), service=service)
    if drawn is not None or besides:
        at = [address_of(w, p, service, flow.destination.ip) for w, p in found]
        rest = [c for c, address in zip(found, at, strict=True) if address not in besides]
        found = [found[at.index(drawn)]] if drawn in at else rest or found
    return _Options(service=service, candidates=found)


def _to_candidate(service: Service, flow: Flow, candidate: Candidate) -> Route:
    workload, target = candidate
    return _to_workload(workload, address_of(workload, target, service, flow.destination.ip), service)


def candidates(snapshot: Snapshot, service: Service, source: Workload, port: int) -> list[Candidate]:
    """Endpoints that a connection from the source to this port of the Service may go to: healthy, and where the
    Service's locality preference wants them."""
    found = [c for c in _usable(snapshot, service, port) if _healthy(service, c[0])]
    return _preferred(service, source, found)


def weights(found: Iterable[Candidate]) -> list[int]:
    """The odds of each: its capacity; evenly where all capacities are 0."""
    capacities = [w.capacity for w, _ in found]
    return capacities if any(capacities) else [1] * len(capacities)


def address_of(workload: Workload, target: int, service: Service, wanted: str) -> SocketAddress:
    """Where a candidate is dialled by who dialled the Service at the address `wanted`."""
    return SocketAddress(_choose_ip(workload, service, wanted), target)


def _usable(snapshot: Snapshot, service: Service, port: int) -> list[Candidate]:
    return [(w, p) for w in snapshot.endpoints(service) if w.addresses and (p := target_port(service, w, port))]


def target_port(service: Service, workload: Workload, port: int) -> int:
    """The workload's port behind a service port: the endpoint's own mapping goes before the service's; 0: none."""
    for ports in (workload.services.get(service.namespaced_hostname, ()), service.ports):
        for mapping in ports:
            if mapping.service_port == port and mapping.target_port:
                return mapping.target_port
    return 0


def _healthy(service: Service, workload: Workload) -> bool:
    return workload.status is WorkloadStatus.HEALTHY or service.load_balancing.health_policy is HealthPolicy.ALLOW_ALL


def _why_none(snapshot: Snapshot, service: Service, port: int) -> str:
    name, total = service.namespaced_hostname, len(list(snapshot.endpoints(service)))
    usable = _usable(snapshot, service, port)
    if not total:
        return f"service {name} selects no pods"
    if not usable:
        return f"none of the {total} endpoints of service {name} maps port {port} and has an address"
    if not any(_healthy(service, w) for w, _ in usable):
        return f"none of the {total} endpoints of service {name} is ready"
    return f"no endpoint of service {name} is where its traffic policy requires it to be"


def _preferred(service: Service, source: Workload, found: list[Candidate]) -> list[Candidate]:
    """Those that the service's locality preference leaves over."""
    balancing = service.load_balancing
    if balancing.mode not in (BalancingMode.STRICT, BalancingMode.FAILOVER) or not found:
        return found
    ranked = [(_rank(balancing.routing_preference, source, w), w, p) for w, p in found]
    if balancing.mode is BalancingMode.STRICT:
        return [(w, p) for _, w, p in ranked if all(_same(s, source, w) for s in balancing.routing_preference)]
    best = max(rank for rank, _, _ in ranked)
    return [(w, p) for rank, w, p in ranked if rank == best]


def _rank(preference: tuple[Scope, ...], source: Workload, workload: Workload) -> tuple[bool, int]:
    """How many scopes match in order, until the first that does not. A leading NETWORK does not stop the count; a match
    of it outranks all the others."""
    near = True
    if preference and preference[0] is Scope.NETWORK:
        near, preference = _same(Scope.NETWORK, source, workload), preference[1:]
    count = 0
    for scope in preference:
        if not _same(scope, source, workload):
            break
        count += 1
    return near, count


def _same(scope: Scope, a: Workload, b: Workload) -> bool:
    match scope:
        case Scope.REGION:
            return a.locality.region == b.locality.region
        case Scope.ZONE:
            return a.locality.zone == b.locality.zone
        case Scope.SUBZONE:
            return a.locality.subzone == b.locality.subzone
        case Scope.NODE:
            return a.node == b.node
        case Scope.CLUSTER:
            return a.cluster_id == b.cluster_id
        case Scope.NETWORK:
            return a.network == b.network


def _weighted(found: list[Candidate], rng: Rng) -> Candidate:
    upto = list(accumulate(weights(found)))
    point = rng.random() * upto[-1]
    return next(c for c, reached in zip(found, upto, strict=True) if point < reached)


_FAMILIES = {
    IpFamilies.IPV4_ONLY: (4,),
    IpFamilies.IPV6_ONLY: (6,),
    IpFamilies.DUAL: (4, 6),
}


def _choose_ip(workload: Workload, service: Service, wanted: str) -> str:
    """The exact address asked for, else one the service's families admit, of the request's own family if it can be."""
    if wanted in workload.addresses:
        return wanted
    asked = _version(wanted)
    accepted = _FAMILIES.get(service.ip_families, (asked,))
    return min(workload.addresses, key=lambda ip: (_version(ip) not in accepted, _version(ip) != asked))


def _version(ip: str) -> int:
    return 6 if ":" in ip else 4


def service_of(snapshot: Snapshot, workload: Workload, port: int, hostname: str = "") -> Service | None:
    """Which service to attribute an arrived connection to: the one the peer says was dialled, if the workload belongs
    to it; else one of the workload's that leads to this port (istio-facts §1.5, `forwarded`)."""
    found = [s for name in sorted(workload.services) if (s := snapshot.services.get(name)) is not None]
    for service in found:
        if hostname and service.hostname == hostname:
            return service
    return next((s for s in found if port in _targets(s, workload)), None)


def _targets(service: Service, workload: Workload) -> Iterable[int]:
    ports: tuple[Port, ...] = service.ports
    return [target_port(service, workload, p.service_port) for p in ports]
