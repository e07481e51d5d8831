"""How connections to Services are spread, as far as the kernel side can do it itself.

`plan` says of every address and port of a Service that has direct targets among its endpoints which those are, and how
much weight all its other endpoints have together. Drawn from that, an endpoint is as likely as `mesh.route.pick` makes
it: a draw that falls to the others is left to the agent, which then picks among them. Left out, so that the agent
decides alone, is what depends on more than the node that is dialled from: an address that several Services share, and
preferences that come out differently for different pods of the node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mesh.model import BalancingMode, Locality, Service, SocketAddress, Workload
from mesh.route import ILLEGAL_PORTS, Candidate, address_of, candidates, weights
from mesh.snapshot import Snapshot

ENDPOINTS = 64  # of one Service that the kernel side draws; more of them count as others
WORK = 65536  # endpoints that one plan looks at, give or take a Service; those that are left ask the agent
MAX_WEIGHT = 1 << 48  # beyond, a 64-bit random number would not be even enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A direct target behind a Service: a pod's instance, its address of the Service's family, its own port."""

    instance: str
    address: SocketAddress
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """`elsewhere` is the weight of all endpoints that are not listed."""

    endpoints: tuple[Endpoint, ...]
    elsewhere: int


Viewpoint = tuple[str, str, str, Locality]  # what a locality preference compares: network, node, cluster, locality


@dataclass(frozen=True, slots=True, kw_only=True)
class _Basis:
    """All that the balances of one Service rest on."""

    service: Service
    addresses: tuple[str, ...]
    endpoints: tuple[Workload, ...]
    local: frozenset[str]
    viewpoints: tuple[Viewpoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balances:
    """By address and port of the Service."""

    spread: Mapping[SocketAddress, Balance] = field(default_factory=dict)
    made: Mapping[str, tuple[_Basis, Mapping[SocketAddress, Balance]]] = field(default_factory=dict)  # by Service
    complete: bool = True  # False: there are Services that the next plan will get to


def plan(
    snapshot: Snapshot, sources: Mapping[str, Workload], targets: Collection[str], *, before: Balances | None = None
) -> Balances:
    """`sources`: the pods of a node that may dial directly, by instance; `targets`: those of them that are reached so.
    What `before` has is not made again if nothing has changed that it rests on."""
    seen_by = {(w.network, w.node, w.cluster_id, w.locality): w for w in sources.values()}
    names = {name for instance in targets for name in sources[instance].services}
    known = before.made if before is not None else {}
    made, work = {}, 0
    for name in sorted(names & snapshot.services.keys()):
        basis = _basis(snapshot, snapshot.services[name], targets, tuple(seen_by))
        if name in known and known[name][0] == basis:
            made[name] = known[name]
        elif work <= WORK:
            work += len(basis.endpoints) * len(basis.service.ports) * len(seen_by)
            made[name] = basis, dict(_balances(snapshot, basis, list(seen_by.values())))
    spread = {at: balance for _, balances in made.values() for at, balance in balances.items()}
    return Balances(spread=spread, made=made, complete=work <= WORK)


def _basis(snapshot: Snapshot, service: Service, targets: Collection[str], viewpoints: tuple[Viewpoint, ...]) -> _Basis:
    endpoints = tuple(snapshot.endpoints(service))
    return _Basis(
        service=service,
        addresses=tuple(
            ip for ip in service.addresses if all(len(snapshot.services_at(ip, v[0])) == 1 for v in viewpoints)
        ),
        endpoints=endpoints,
        local=frozenset(w.instance for w in endpoints if w.instance in targets),
        viewpoints=viewpoints,
    )


def _balances(
    snapshot: Snapshot, basis: _Basis, sources: Sequence[Workload]
) -> Iterator[tuple[SocketAddress, Balance]]:
    service = basis.service
    if service.load_balancing.mode is BalancingMode.PASSTHROUGH:
        return
    for port in {p.service_port for p in service.ports}:
        found, *others = [candidates(snapshot, service, source, port) for source in sources]
        if any(other != found for other in others):
            continue
        for ip in basis.addresses:
            balance = _balance(basis, ip, found)
            if balance.endpoints and balance.elsewhere < MAX_WEIGHT:
                yield SocketAddress(ip, port), balance


def _balance(basis: _Basis, ip: str, found: list[Candidate]) -> Balance:
    here, total = [], 0
    for (workload, target), weight in zip(found, weights(found), strict=True):
        total += weight
        address = address_of(workload, target, basis.service, ip)
        same_family = (":" in address.ip) == (":" in ip)  # a socket is of one
        if weight and workload.instance in basis.local and same_family and target not in ILLEGAL_PORTS:
            here.append(Endpoint(instance=workload.instance, address=address, weight=weight))
    listed = tuple(sorted(here, key=lambda e: e.address)[:ENDPOINTS])
    return Balance(endpoints=listed, elsewhere=total - sum(e.weight for e in listed))
