"""PeerAuthentication -> DENY policies against plaintext (istio-facts §3.3).

A node agent knows one thing: deny a peer without an identity. STRICT is one static policy that workloads list; port
exceptions are a policy of their own, listed instead of or beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from controller.translate.selection import Selection
from mesh.model import Clause, Match, MatchKind, Policy, PolicyAction, PolicyScope, Rule, StringMatch
from mesh.resources import Condition, ObjectKey, PeerAuthentication, key_of

STATIC_STRICT = "istio_converted_static_strict"  # underscores: no object of Kubernetes can have this name
CONVERTED = "converted_peer_authentication_"

_UNAUTHENTICATED = Match(not_principals=(StringMatch(MatchKind.PRESENCE),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """All PeerAuthentications of a mesh, resolved: the oldest of each level, and the policies made of them."""

    root_namespace: str
    mesh_strict: bool
    namespace_mode: Mapping[str, str]
    workloads: Selection[PeerAuthentication]
    policies: tuple[Policy, ...]
    converted: frozenset[str]  # namespaced names of policies made of a workload-level PeerAuthentication
    conditions: Mapping[ObjectKey, tuple[Condition, ...]]

    def attached(self, namespace: str, labels: Mapping[str, str]) -> tuple[str, ...]:
        """Namespaced names of the policies that a workload lists because of its effective mode."""
        selecting = sorted(self.workloads.of(namespace, labels), key=_age)
        strict = _strict(self.namespace_mode.get(namespace, "UNSET"), inherited=self.mesh_strict)
        if selecting:
            oldest = selecting[0]
            name = _converted_name(oldest)
            strict = _strict(oldest.spec.mtls.mode, inherited=strict)
            if name in self.converted:
                return (name,)  # carries the strictness of the other ports, too
        return (f"{self.root_namespace}/{STATIC_STRICT}",) if strict else ()


def resolve(authentications: Iterable[PeerAuthentication], root_namespace: str) -> Effective:
    """What is in force once mesh, namespace and workload are merged (istio-facts §3.3), the oldest of equals winning,
    and a condition for each object."""
    everything = sorted(authentications, key=_age)
    conditions: dict[ObjectKey, tuple[Condition, ...]] = {}
    modes: dict[str, str] = {}
    levels: dict[str, PeerAuthentication] = {}
    selecting = [a for a in everything if _selects(a)]
    for authentication in everything:
        conditions[key_of(authentication)] = (_ACCEPTED,)
        if _selects(authentication):
            continue
        namespace = authentication.metadata.namespace
        winner = levels.setdefault(namespace, authentication)
        modes.setdefault(namespace, authentication.spec.mtls.mode)
        if winner is not authentication:
            conditions[key_of(authentication)] = (_overruled(winner),)
    mesh_strict = modes.pop(root_namespace, "UNSET") == "STRICT"
    policies: list[Policy] = [static_strict(root_namespace)] if everything else []
    workloads: Selection[PeerAuthentication] = Selection()
    for authentication in selecting:
        namespace = authentication.metadata.namespace
        if namespace == root_namespace:
            conditions[key_of(authentication)] = (_IN_ROOT,)
            continue
        assert authentication.spec.selector is not None
        workloads.add(namespace, authentication.spec.selector.match_labels, authentication)
        inherited = _strict(modes.get(namespace, "UNSET"), inherited=mesh_strict)
        policy = _ports(authentication, strict=_strict(authentication.spec.mtls.mode, inherited=inherited))
        if policy is not None:
            policies.append(policy)
    return Effective(
        root_namespace=root_namespace,
        mesh_strict=mesh_strict,
        namespace_mode=modes,
        workloads=workloads,
        policies=tuple(policies),
        converted=frozenset(p.namespaced_name for p in policies if p.name != STATIC_STRICT),
        conditions=conditions,
    )


def static_strict(root_namespace: str) -> Policy:
    """DENY whoever has no identity."""
    return Policy(
        name=STATIC_STRICT,
        namespace=root_namespace,
        scope=PolicyScope.WORKLOAD_SELECTOR,
        action=PolicyAction.DENY,
        rules=(Rule((Clause((_UNAUTHENTICATED,)),)),),
    )


def _ports(authentication: PeerAuthentication, *, strict: bool) -> Policy | None:
    """The policy for port exceptions; None if the ports make no difference.

    Strict base: one rule whose clauses are ANDed, no identity AND none of the open ports. As several rules (ORed) it
    would deny every other port to everybody. Open base: one rule per strict port.
    """
    modes = {port: tls.mode for port, tls in sorted(authentication.spec.port_level_mtls.items()) if tls.mode != "UNSET"}
    odd = tuple(port for port, mode in modes.items() if (mode == "STRICT") != strict)
    if not odd:
        return None
    if strict:
        exceptions = (Clause((Match(not_destination_ports=(port,)),)) for port in odd)
        rules: tuple[Rule, ...] = (Rule((Clause((_UNAUTHENTICATED,)), *exceptions)),)
    else:
        matches = (Match(not_principals=_UNAUTHENTICATED.not_principals, destination_ports=(port,)) for port in odd)
        rules = tuple(Rule((Clause((match,)),)) for match in matches)
    return Policy(
        name=f"{CONVERTED}{authentication.metadata.name}",
        namespace=authentication.metadata.namespace,
        scope=PolicyScope.WORKLOAD_SELECTOR,
        action=PolicyAction.DENY,
        rules=rules,
    )


def _strict(mode: str, *, inherited: bool) -> bool:
    return inherited if mode == "UNSET" else mode == "STRICT"


def _selects(authentication: PeerAuthentication) -> bool:
    selector = authentication.spec.selector
    return selector is not None and bool(selector.match_labels)


def _age(authentication: PeerAuthentication) -> tuple[datetime, str, str]:
    return authentication.metadata.age_key


def _converted_name(authentication: PeerAuthentication) -> str:
    return f"{authentication.metadata.namespace}/{CONVERTED}{authentication.metadata.name}"


_ACCEPTED = Condition(type="ZtunnelAccepted", status="True", reason="Accepted", message="attached to ztunnel")
_IN_ROOT = Condition(
    type="ZtunnelAccepted",
    status="False",
    reason="UnsupportedValue",
    message="spec.selector: in the root namespace a PeerAuthentication with a selector is ignored; move it to the "
    "namespace of the workloads",
)


def _overruled(winner: PeerAuthentication) -> Condition:
    message = f"{winner.metadata.name} of the same namespace is older and wins; keep one of them"
    return Condition(type="ZtunnelAccepted", status="False", reason="Conflicted", message=message)
