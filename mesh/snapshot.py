"""One frozen, versioned view of workloads, services and policies, with the indexes that decisions need.

`apply(delta)` gives the next snapshot and leaves this one as it is, so that a decision that holds a snapshot never
sees half a change. Indexes share what did not change: a delta copies the outer tables it touches (flat, so ten
thousand entries copy in well under a millisecond) and, of the inner ones, only those that hold a changed resource.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from mesh.model import NetworkMode, Policy, PolicyScope, Port, Resource, Service, Workload, WorkloadStatus, canonical_ip

K = TypeVar("K")
R = TypeVar("R", Workload, Service, Policy)

NetworkAddress = tuple[str, str]  # (network, canonical IP): the same IP may live in two networks


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What differs from one snapshot to the next. A removed key that is not there is ignored."""

    upserts: tuple[Resource, ...] = ()
    removes: tuple[str, ...] = ()  # `Resource.key`; carried out before the upserts
    trust_domain: str | None = None
    root_namespace: str | None = None


@dataclass(frozen=True, slots=True)
class Index(Generic[K, R]):
    """Resources by what they are looked up by. Several may share a key: the inner table is by the resource's name."""

    keys_of: Callable[[R], Iterable[K]]
    table: Mapping[K, Mapping[str, R]] = field(default_factory=dict)

    def at(self, key: K) -> Mapping[str, R]:
        return self.table.get(key) or {}

    def changed(self, old: Iterable[R], new: Iterable[R]) -> Index[K, R]:
        """Without `old`, with `new`; tables that neither touches are shared with this index."""
        touched: dict[K, dict[str, R]] = {}
        for resource in old:
            for key in self.keys_of(resource):
                inner = touched.get(key)
                if inner is None:
                    inner = touched[key] = dict(self.at(key))
                inner.pop(resource.key, None)
        for resource in new:
            for key in self.keys_of(resource):
                inner = touched.get(key)
                if inner is None:
                    inner = touched[key] = dict(self.at(key))
                inner[resource.key] = resource
        if not touched:
            return self
        table = {**self.table, **touched}
        for key, inner in touched.items():
            if not inner:
                del table[key]
        return Index(self.keys_of, table)


def _addresses(workload: Workload) -> Iterable[NetworkAddress]:
    if workload.network_mode is NetworkMode.HOST_NETWORK:
        return ()
    return [(workload.network, ip) for ip in workload.addresses]


def _instance(workload: Workload) -> Iterable[str]:
    return (workload.instance,) if workload.instance else ()


def _pod(workload: Workload) -> Iterable[str]:
    return (f"{workload.namespace}/{workload.name}",)


def _node(workload: Workload) -> Iterable[str]:
    return (workload.node,) if workload.node else ()


def _services(workload: Workload) -> Iterable[str]:
    return workload.services


def _vips(service: Service) -> Iterable[NetworkAddress]:
    return [(service.network, ip) for ip in service.addresses]


def _hostname(service: Service) -> Iterable[str]:
    return (service.hostname,)


def _scope(policy: Policy) -> Iterable[str]:
    if policy.scope is PolicyScope.WORKLOAD_SELECTOR:
        return ()  # found by the names that workloads list
    return ("" if policy.scope is PolicyScope.GLOBAL else policy.namespace,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a decision may ask about. Equal contents give equal indexes, whatever deltas led there."""

    version: int = 0
    trust_domain: str = "cluster.local"
    root_namespace: str = "istio-system"
    workloads: Mapping[str, Workload] = field(default_factory=dict)  # by uid
    services: Mapping[str, Service] = field(default_factory=dict)  # by "<ns>/<hostname>"
    policies: Mapping[str, Policy] = field(default_factory=dict)  # by "<ns>/<name>"
    _by_address: Index[NetworkAddress, Workload] = Index(_addresses)
    _by_instance: Index[str, Workload] = Index(_instance)
    _by_pod: Index[str, Workload] = Index(_pod)
    _by_node: Index[str, Workload] = Index(_node)
    _by_service: Index[str, Workload] = Index(_services)
    _by_vip: Index[NetworkAddress, Service] = Index(_vips)
    _by_hostname: Index[str, Service] = Index(_hostname)
    _by_scope: Index[str, Policy] = Index(_scope)  # namespace, or "" for GLOBAL

    def workload_at(self, ip: str, network: str = "") -> Workload | None:
        """The workload that owns an address; never a host-network one, which shares its node's. If several claim it
        (a finished pod's address reused), a healthy one goes first."""
        return min(
            self._by_address.at((network, ip)).values(),
            key=lambda w: (w.status is not WorkloadStatus.HEALTHY, w.uid),
            default=None,
        )

    def workload_of_pod(self, instance: str, namespace: str, name: str) -> Workload | None:
        """The workload of a pod: by its metadata.uid; by name only where the controller knows no instance, because
        another instance of that name is another pod."""
        found = list(self._by_instance.at(instance).values())
        if not found:
            found = [w for w in self._by_pod.at(f"{namespace}/{name}").values() if not w.instance]
        return min(found, key=lambda w: w.uid, default=None)

    def service_at(self, ip: str, network: str = "", namespace: str = "") -> Service | None:
        """The service with this VIP: one of the client's namespace, else a canonical one, else any."""
        return _best(self._by_vip.at((network, ip)).values(), namespace)

    def services_at(self, ip: str, network: str = "") -> Collection[Service]:
        """All services with this VIP."""
        return self._by_vip.at((network, ip)).values()

    def service_named(self, hostname: str, namespace: str = "") -> Service | None:
        """The service with this hostname, with the same preference as `service_at`."""
        return _best(self._by_hostname.at(hostname).values(), namespace)

    def endpoints(self, service: Service) -> Iterable[Workload]:
        return self._by_service.at(service.namespaced_hostname).values()

    def on_node(self, node: str) -> Iterable[Workload]:
        return self._by_node.at(node).values()

    def policies_for(self, workload: Workload) -> tuple[tuple[Policy, ...], tuple[str, ...]]:
        """The policies considered for a destination: of its namespace, GLOBAL ones, those it lists; in the order of
        their names. Second: names it lists that are not known (istio-facts §3.1: skipped, with a warning)."""
        found = {p.namespaced_name: p for scope in ("", workload.namespace) for p in self._by_scope.at(scope).values()}
        missing = []
        for name in workload.authorization_policies:
            policy = self.policies.get(name)
            if policy is None:
                missing.append(name)
            else:
                found[name] = policy
        return tuple(found[name] for name in sorted(found)), tuple(missing)

    def apply(self, delta: Delta) -> Snapshot:
        """The next snapshot. Resources are taken as valid: see `check`."""
        latest = {r.key: r for r in delta.upserts}
        gone = {*delta.removes, *latest}
        workloads = [r for r in latest.values() if isinstance(r, Workload)]
        services = [r for r in latest.values() if isinstance(r, Service)]
        policies = [r for r in latest.values() if isinstance(r, Policy)]
        old_workloads = _held(self.workloads, "workload/", gone)
        old_services = _held(self.services, "service/", gone)
        old_policies = _held(self.policies, "policy/", gone)
        return replace(
            self,
            version=self.version + 1,
            trust_domain=self.trust_domain if delta.trust_domain is None else delta.trust_domain,
            root_namespace=self.root_namespace if delta.root_namespace is None else delta.root_namespace,
            workloads=_replaced(self.workloads, old_workloads, workloads),
            services=_replaced(self.services, old_services, services),
            policies=_replaced(self.policies, old_policies, policies),
            _by_address=self._by_address.changed(old_workloads, workloads),
            _by_instance=self._by_instance.changed(old_workloads, workloads),
            _by_pod=self._by_pod.changed(old_workloads, workloads),
            _by_node=self._by_node.changed(old_workloads, workloads),
            _by_service=self._by_service.changed(old_workloads, workloads),
            _by_vip=self._by_vip.changed(old_services, services),
            _by_hostname=self._by_hostname.changed(old_services, services),
            _by_scope=self._by_scope.changed(old_policies, policies),
        )


def _best(found: Iterable[Service], namespace: str) -> Service | None:
    """Client's namespace, then canonical, then by name (istio-facts §1.8)."""
    return min(found, key=lambda s: (s.namespace != namespace, not s.canonical, s.namespaced_hostname), default=None)


def _held(table: Mapping[str, R], kind: str, keys: Iterable[str]) -> list[R]:
    names = [key.removeprefix(kind) for key in keys if key.startswith(kind)]
    return [table[name] for name in names if name in table]


def _replaced(table: Mapping[str, R], old: list[R], new: list[R]) -> Mapping[str, R]:
    """The table by name, which is the resource's key without its kind."""
    if not old and not new:
        return table
    changed = dict(table)
    for resource in old:
        del changed[resource.key.partition("/")[2]]
    for resource in new:
        changed[resource.key.partition("/")[2]] = resource
    return changed


def check(resource: Resource) -> None:
    """What the wire's types cannot say: ValueError names the object, the field and the cause."""
    if isinstance(resource, Workload):
        _check_workload(resource)
    elif isinstance(resource, Service):
        _check_ips(resource.key, "addresses", resource.addresses)
        _check_ports(resource.key, "ports", resource.ports)
    else:
        _check_policy(resource)


def _check_workload(workload: Workload) -> None:
    if not workload.uid:
        raise ValueError(f"workload of pod {workload.namespace}/{workload.name}: uid is empty")
    try:
        type(workload.identity).parse(str(workload.identity))
    except ValueError as error:
        raise ValueError(f"{workload.key}: no SPIFFE identity can be made of it: {error}") from None
    _check_ips(workload.key, "addresses", workload.addresses)
    for name, ports in workload.services.items():
        _check_ports(workload.key, f"services[{name!r}]", ports)
    if workload.capacity < 0:
        raise ValueError(f"{workload.key}: capacity: {workload.capacity} is negative")


def _check_policy(policy: Policy) -> None:
    for r, rule in enumerate(policy.rules):
        for c, clause in enumerate(rule.clauses):
            for m, match in enumerate(clause.matches):
                where = f"rules[{r}].clauses[{c}].matches[{m}]"
                for name in ("source_ips", "not_source_ips", "destination_ips", "not_destination_ips"):
                    for text in getattr(match, name):
                        try:
                            ipaddress.ip_network(text)
                        except ValueError as error:
                            raise ValueError(f"{policy.key}: {where}.{name}: {error}") from None


def _check_ips(key: str, name: str, addresses: Iterable[str]) -> None:
    for address in addresses:
        try:
            canonical = canonical_ip(address)
        except ValueError as error:
            raise ValueError(f"{key}: {name}: {error}") from None
        if canonical != address:
            raise ValueError(f"{key}: {name}: {address!r} is not canonical; send {canonical!r}")


def _check_ports(key: str, name: str, ports: Iterable[Port]) -> None:
    for port in ports:
        if not 0 < port.service_port < 65536 or not 0 <= port.target_port < 65536:
            raise ValueError(f"{key}: {name}: {port.service_port} -> {port.target_port} are not TCP ports")
