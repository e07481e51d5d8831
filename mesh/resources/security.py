"""AuthorizationPolicy and PeerAuthentication (security.istio.io/v1, v1beta1).

What is refused here is what Istio's own validation refuses; what is understood but enforced elsewhere or never matches
is accepted, and the translation reports it as a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from mesh.resources import check
from mesh.resources.fault import Invalid
from mesh.resources.meta import ObjectMeta

ApiVersion = Literal["security.istio.io/v1", "security.istio.io/v1beta1"]
Mode = Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]

# Condition keys that istiod knows (istio-facts §3.2); the two with brackets are prefixes.
CONDITION_KEYS = (
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.serviceAccount",
    "source.trustDomain",
    "source.principal",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
)
CONDITION_KEY_PREFIXES = ("request.headers[", "request.auth.claims[", "experimental.envoy.filters.")


class WorkloadSelector(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    match_labels: Mapping[str, str] = {}


class TargetReference(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    kind: str
    name: str
    group: str = ""
    namespace: str = ""


class Source(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    request_principals: tuple[str, ...] = ()
    not_request_principals: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    not_service_accounts: tuple[str, ...] = ()
    ip_blocks: tuple[str, ...] = ()
    not_ip_blocks: tuple[str, ...] = ()
    remote_ip_blocks: tuple[str, ...] = ()
    not_remote_ip_blocks: tuple[str, ...] = ()
    trust_domains: tuple[str, ...] = ()
    not_trust_domains: tuple[str, ...] = ()


class Operation(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    not_ports: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    not_methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()


class From(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    source: Source


class To(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    operation: Operation


class When(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


class AuthorizationRule(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """None: not given, matches everything; given, it has at least one element."""

    from_: tuple[From, ...] | None = msgspec.field(name="from", default=None)
    to: tuple[To, ...] | None = None
    when: tuple[When, ...] | None = None


class Provider(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    name: str


class AuthorizationPolicySpec(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    selector: WorkloadSelector | None = None
    target_ref: TargetReference | None = None
    target_refs: tuple[TargetReference, ...] = ()
    rules: tuple[AuthorizationRule, ...] = ()
    action: Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"] = "ALLOW"
    provider: Provider | None = None

    @property
    def targets(self) -> tuple[TargetReference, ...]:
        return self.target_refs or ((self.target_ref,) if self.target_ref is not None else ())


class AuthorizationPolicy(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename="camel",
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="AuthorizationPolicy",
):
    api_version: ApiVersion
    metadata: ObjectMeta
    spec: AuthorizationPolicySpec = AuthorizationPolicySpec()
    status: Any = None


class MutualTls(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    mode: Mode = "UNSET"


class PeerAuthenticationSpec(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    selector: WorkloadSelector | None = None
    mtls: MutualTls = MutualTls()
    port_level_mtls: Mapping[int, MutualTls] = {}  # by the workload's port, not the service's


class PeerAuthentication(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename="camel",
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="PeerAuthentication",
):
    api_version: ApiVersion
    metadata: ObjectMeta
    spec: PeerAuthenticationSpec = PeerAuthenticationSpec()
    status: Any = None


def check_authorization_policy(policy: AuthorizationPolicy) -> None:
    spec = policy.spec
    if spec.selector is not None:
        _check_selector(spec.selector)
    if spec.target_ref is not None and spec.target_refs:
        raise Invalid("spec.targetRef", "both targetRef and targetRefs are given", "keep targetRefs")
    if spec.selector is not None and spec.targets:
        raise Invalid("spec.selector", "both selector and targetRefs are given", "keep one of them")
    if (spec.action == "CUSTOM") != (spec.provider is not None):
        raise Invalid("spec.provider", "it belongs to the action CUSTOM, and CUSTOM needs it", "give both or neither")
    for index, rule in enumerate(spec.rules):
        _check_rule(rule, f"spec.rules[{index}]")


def check_peer_authentication(authentication: PeerAuthentication) -> None:
    spec = authentication.spec
    if spec.selector is not None:
        _check_selector(spec.selector)
    if spec.port_level_mtls and (spec.selector is None or not spec.selector.match_labels):
        raise Invalid("spec.portLevelMtls", "there is no selector with labels", "port modes need the workloads' labels")
    for port in spec.port_level_mtls:
        check.port_reference(f"spec.portLevelMtls[{port}]", port)


def _check_selector(selector: WorkloadSelector) -> None:
    check.labels("spec.selector.matchLabels", selector.match_labels)


def _check_rule(rule: AuthorizationRule, path: str) -> None:
    for field, given in (("from", rule.from_), ("to", rule.to), ("when", rule.when)):
        if given is not None and not given:
            raise Invalid(f"{path}.{field}", "the list is empty", "leave it out to match everything")
    for index, origin in enumerate(rule.from_ or ()):
        _check_source(origin.source, f"{path}.from[{index}].source")
    for index, target in enumerate(rule.to or ()):
        at = f"{path}.to[{index}].operation"
        _check_given(target.operation, at)
        _check_each(f"{at}.ports", target.operation.ports, check.port_text)
        _check_each(f"{at}.notPorts", target.operation.not_ports, check.port_text)
    for index, condition in enumerate(rule.when or ()):
        _check_when(condition, f"{path}.when[{index}]")


def _check_source(source: Source, path: str) -> None:
    _check_given(source, path)
    for field in ("ip_blocks", "not_ip_blocks", "remote_ip_blocks", "not_remote_ip_blocks"):
        name = "".join(part.capitalize() for part in field.split("_"))
        _check_each(f"{path}.{name[0].lower()}{name[1:]}", getattr(source, field), check.cidr)
    _check_each(f"{path}.serviceAccounts", source.service_accounts, _check_service_account)
    _check_each(f"{path}.notServiceAccounts", source.not_service_accounts, _check_service_account)
    if (source.service_accounts or source.not_service_accounts) and (
        source.principals or source.not_principals or source.namespaces or source.not_namespaces
    ):
        raise Invalid(
            f"{path}.serviceAccounts", "it stands beside principals or namespaces", "use one way to name a workload"
        )


def _check_service_account(path: str, value: str) -> None:
    if value.count("/") > 1 or "*" in value or any(not part for part in value.split("/")):
        raise Invalid(path, f"{check.quoted(value)} is not a service account", "write NAME or NAMESPACE/NAME")


def _check_when(condition: When, path: str) -> None:
    key = condition.key
    prefixed = key.startswith(CONDITION_KEY_PREFIXES) and (key.endswith("]") or not key.startswith("request."))
    if key not in CONDITION_KEYS and not prefixed:
        cure = check.suggest(key, CONDITION_KEYS) or "see AuthorizationPolicy conditions for the known keys"
        raise Invalid(f"{path}.key", f"{check.quoted(key)} is not a condition key", cure)
    if not condition.values and not condition.not_values:
        raise Invalid(path, "neither values nor notValues", "give at least one value")
    checks: dict[str, Callable[[str, str], object]] = {
        "source.ip": check.cidr,
        "remote.ip": check.cidr,
        "destination.ip": check.cidr,
        "destination.port": check.port_text,
        "source.serviceAccount": _check_service_account,
    }
    for field, values in (("values", condition.values), ("notValues", condition.not_values)):
        _check_each(f"{path}.{field}", values, checks.get(key, _check_text))


def _check_text(path: str, value: str) -> None:
    if not value:
        raise Invalid(path, "the value is empty", "an empty value would never match; leave it out")


def _check_each(path: str, values: tuple[str, ...], one: Callable[[str, str], object]) -> None:
    for index, value in enumerate(values):
        one(f"{path}[{index}]", value)


def _check_given(part: Source | Operation, path: str) -> None:
    """At least one field, and no empty string in any list."""
    given = msgspec.to_builtins(part)
    if not given:
        raise Invalid(path, "it says nothing", "name at least one field")
    for field, values in given.items():
        _check_each(f"{path}.{field}", tuple(values), _check_text)
