"""All objects -> all resources of the mesh, in one pass. Pure: the same objects give the same resources and hashes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, cast

from controller.translate import authorization, peer_authentication, service, workload
from controller.translate.selection import Selection
from controller.translate.settings import Settings
from mesh.control import Entry, entry
from mesh.identity import SpiffeId
from mesh.model import Locality, NetworkMode, Port, Resource
from mesh.resources import (
    AuthorizationPolicy,
    Condition,
    Namespace,
    Node,
    Object,
    ObjectKey,
    PeerAuthentication,
    Pod,
    Service,
    key_of,
)


class Place(NamedTuple):
    """Where a pod runs, and which instance of its name it is."""

    instance: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """`entries`: what nodes get, by resource key. `identities`: whom a node may ask certificates for, by node."""

    settings: Settings
    entries: Mapping[str, Entry] = field(default_factory=dict)
    origins: Mapping[str, ObjectKey] = field(default_factory=dict)  # resource key -> the object it was made of
    conditions: Mapping[ObjectKey, tuple[Condition, ...]] = field(default_factory=dict)
    identities: Mapping[str, frozenset[SpiffeId]] = field(default_factory=dict)
    pods: Mapping[str, Place] = field(default_factory=dict)  # by workload uid, hostNetwork ones excluded


@dataclass(slots=True)
class _Draft:
    settings: Settings
    previous: Mapping[str, Entry]
    entries: dict[str, Entry] = field(default_factory=dict)
    origins: dict[str, ObjectKey] = field(default_factory=dict)
    conditions: dict[ObjectKey, tuple[Condition, ...]] = field(default_factory=dict)

    def add(self, resource: Resource, origin: ObjectKey | None) -> None:
        """An unchanged resource keeps its entry, so that its hash is not computed again."""
        before = self.previous.get(resource.key)
        same = before is not None and before.resource == resource
        self.entries[resource.key] = before if same and before is not None else entry(resource)
        if origin is not None:
            self.origins[resource.key] = origin


def translate(
    objects: Mapping[ObjectKey, Object],
    *,
    enrolled: Collection[str],
    settings: Settings,
    previous: Translation | None = None,
) -> Translation:
    """`enrolled`: metadata.uid of the pods that their nodes' agents reported captured. `previous` only saves work."""
    draft = _Draft(settings, previous.entries if previous is not None else {})
    kinds = _by_kind(objects)
    policies = _policies(draft, kinds)
    services = _services(draft, kinds)
    peers = peer_authentication.resolve(_of(kinds, PeerAuthentication), settings.root_namespace)
    draft.conditions |= peers.conditions
    for policy in peers.policies:
        name = policy.name.removeprefix(peer_authentication.CONVERTED)
        made = name != policy.name
        draft.add(policy, ObjectKey("PeerAuthentication", policy.namespace, name) if made else None)
    identities, pods = _workloads(draft, kinds, enrolled, policies, services, peers)
    _conflicts(draft)
    return Translation(
        settings=settings,
        entries=draft.entries,
        origins=draft.origins,
        conditions=draft.conditions,
        identities=identities,
        pods=pods,
    )


_Kinds = Mapping[type, list[Object]]
_O = TypeVar("_O", bound=Object)


def _by_kind(objects: Mapping[ObjectKey, Object]) -> _Kinds:
    kinds: dict[type, list[Object]] = {}
    for key in sorted(objects):
        kinds.setdefault(type(objects[key]), []).append(objects[key])
    return kinds


def _of(kinds: _Kinds, kind: type[_O]) -> list[_O]:
    return cast("list[_O]", kinds.get(kind, []))


def _policies(draft: _Draft, kinds: _Kinds) -> Selection[str]:
    """Sends every AuthorizationPolicy; returns those with a selector, under "" if they select in all namespaces."""
    selecting: Selection[str] = Selection()
    root = draft.settings.root_namespace
    for policy in _of(kinds, AuthorizationPolicy):
        made, conditions = authorization.convert(policy, root)
        draft.conditions[key_of(policy)] = conditions
        if made is None:
            continue
        draft.add(made, key_of(policy))
        if policy.spec.selector is not None:
            everywhere = policy.metadata.namespace == root
            labels = policy.spec.selector.match_labels
            selecting.add("" if everywhere else policy.metadata.namespace, labels, made.namespaced_name)
    return selecting


def _services(draft: _Draft, kinds: _Kinds) -> Selection[Service]:
    annotations = {n.metadata.name: n.metadata.annotations for n in _of(kinds, Namespace)}
    selecting: Selection[Service] = Selection()
    for given in _of(kinds, Service):
        made = service.convert(given, annotations.get(given.metadata.namespace, {}), draft.settings)
        if made is None:
            continue
        draft.add(made, key_of(given))
        if given.spec.selector:
            selecting.add(given.metadata.namespace, given.spec.selector, given)
    return selecting


def _workloads(
    draft: _Draft,
    kinds: _Kinds,
    enrolled: Collection[str],
    policies: Selection[str],
    services: Selection[Service],
    peers: peer_authentication.Effective,
) -> tuple[dict[str, frozenset[SpiffeId]], dict[str, Place]]:
    settings = draft.settings
    namespaces = {n.metadata.name: n.metadata.labels for n in _of(kinds, Namespace)}
    for given in (*_of(kinds, Namespace), *_of(kinds, Pod)):
        if wrong := tuple(workload.mislabelled(given.metadata.labels)):
            draft.conditions[key_of(given)] = wrong
    localities = {n.metadata.name: workload.locality(n) for n in _of(kinds, Node)}
    identities: dict[str, set[SpiffeId]] = {}
    pods: dict[str, Place] = {}
    for pod in _of(kinds, Pod):
        namespace, labels = pod.metadata.namespace, pod.metadata.labels
        if not pod.terminal and not pod.spec.host_network and pod.spec.node_name:
            account = SpiffeId(settings.trust_domain, namespace, pod.spec.identity_account)
            identities.setdefault(pod.spec.node_name, set()).add(account)
            pods[workload.uid(pod, settings)] = Place(pod.metadata.uid, pod.spec.node_name)
        captured = workload.asks_for_capture(pod, namespaces.get(namespace, {}))
        refusal = workload.capture_refusal(pod, settings) if captured else ""
        if refusal:
            captured = False
            condition = Condition(type="Captured", status="False", reason="NeverCaptured", message=refusal)
            draft.conditions[key_of(pod)] = (*draft.conditions.get(key_of(pod), ()), condition)
        if not workload.exists(pod):
            continue
        attached = {*policies.of(namespace, labels), *policies.of("", labels), *peers.attached(namespace, labels)}
        made = workload.convert(
            pod,
            captured=captured,
            enrolled=bool(pod.metadata.uid) and pod.metadata.uid in enrolled,
            services=_endpoints(pod, services, settings),
            policies=tuple(sorted(attached)),
            locality=localities.get(pod.spec.node_name, Locality()),
            settings=settings,
            namespace_labels=namespaces.get(namespace, {}),
        )
        draft.add(made, key_of(pod))
    return {node: frozenset(ids) for node, ids in identities.items()}, pods


def _conflicts(draft: _Draft) -> None:
    """Two of a kind with one address: which one gets the connections cannot be said, so both are told."""
    owners: dict[tuple[str, str], ObjectKey] = {}
    for key, made in draft.entries.items():
        resource = made.workload or made.service
        if resource is None or getattr(resource, "network_mode", None) is NetworkMode.HOST_NETWORK:
            continue
        origin = draft.origins[key]
        for address in resource.addresses:
            other = owners.setdefault((origin.kind, address), origin)
            if other != origin:
                for one, rival in ((origin, other), (other, origin)):
                    message = f"{address} is also the address of {rival}; remove one of them"
                    condition = Condition(type="AddressConflict", status="True", reason="Duplicate", message=message)
                    draft.conditions[one] = (*draft.conditions.get(one, ()), condition)


def _endpoints(pod: Pod, services: Selection[Service], settings: Settings) -> dict[str, tuple[Port, ...]]:
    return {
        f"{given.metadata.namespace}/{service.hostname(given, settings)}": service.endpoint_ports(given, pod)
        for given in services.of(pod.metadata.namespace, pod.metadata.labels)
        if given.spec.type != "ExternalName"
    }
