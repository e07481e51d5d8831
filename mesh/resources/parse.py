"""A plain object to a typed one, or ParseError that names the object, the field, the cause and the cure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from mesh.resources import check
from mesh.resources.cluster import ConfigMap, Namespace, Node, ServiceAccount, check_namespace, check_node
from mesh.resources.deployment import Deployment, ReplicaSet, check_deployment
from mesh.resources.fault import Invalid, ParseError
from mesh.resources.meta import ObjectKey
from mesh.resources.pod import Pod, check_pod
from mesh.resources.security import (
    AuthorizationPolicy,
    PeerAuthentication,
    check_authorization_policy,
    check_peer_authentication,
)
from mesh.resources.service import Service, check_service

Object = (
    Namespace
    | Node
    | ServiceAccount
    | ConfigMap
    | Pod
    | Deployment
    | ReplicaSet
    | Service
    | AuthorizationPolicy
    | PeerAuthentication
)
_O = TypeVar("_O", bound=Object)

MAX_DEPTH = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One accepted kind: its type, where it lives, under which API versions, and what its type cannot say."""

    type: type
    versions: tuple[str, ...]
    namespaced: bool
    check: Callable[[Any], None] | None


def _kind(of: type[_O], *versions: str, namespaced: bool = True, check: Callable[[_O], None] | None = None) -> Kind:
    return Kind(type=of, versions=versions, namespaced=namespaced, check=check)


_SECURITY = ("security.istio.io/v1", "security.istio.io/v1beta1")

KINDS: Mapping[str, Kind] = {
    "Namespace": _kind(Namespace, "v1", namespaced=False, check=check_namespace),
    "Node": _kind(Node, "v1", namespaced=False, check=check_node),
    "ServiceAccount": _kind(ServiceAccount, "v1"),
    "ConfigMap": _kind(ConfigMap, "v1"),
    "Pod": _kind(Pod, "v1", check=check_pod),
    "Deployment": _kind(Deployment, "apps/v1", check=check_deployment),
    "ReplicaSet": _kind(ReplicaSet, "apps/v1"),
    "Service": _kind(Service, "v1", check=check_service),
    "AuthorizationPolicy": _kind(AuthorizationPolicy, *_SECURITY, check=check_authorization_policy),
    "PeerAuthentication": _kind(PeerAuthentication, *_SECURITY, check=check_peer_authentication),
}


def parse(document: object, *, file: str) -> Object:
    """A typed, checked object of one of KINDS. A namespaced object without a namespace is in `default`.

    Raises ParseError and nothing else, whatever the document is. A null is an absent field, as for the API server.
    """
    if not isinstance(document, Mapping):
        raise ParseError(
            file=file, cause="a document is not an object", cure="each needs apiVersion, kind and metadata"
        )
    kind_name, namespace, name = _names(document)
    kind = KINDS.get(kind_name)
    if kind is None:
        raise _unknown_kind(document, file, namespace, name)
    if not kind.namespaced:
        namespace = ""
    try:
        parsed: Object = _convert(document, kind, namespace)
        metadata = parsed.metadata
        check.dns_subdomain("metadata.name", metadata.name)
        if kind.namespaced:
            check.dns_label("metadata.namespace", metadata.namespace)
        check.labels("metadata.labels", metadata.labels)
        if kind.check is not None:
            kind.check(parsed)
    except Invalid as fault:
        raise ParseError(
            file=file,
            kind=kind_name,
            namespace=namespace,
            name=name,
            path=fault.path,
            cause=fault.cause,
            cure=fault.cure,
        ) from None
    return parsed


def key_of(parsed: Object) -> ObjectKey:
    """What makes it the same object as another: kind, namespace, name."""
    return ObjectKey(type(parsed).__struct_config__.tag, parsed.metadata.namespace, parsed.metadata.name)  # type: ignore[arg-type]


def dump(parsed: Object) -> dict[str, Any]:
    """The plain object again, as `kubectl get -o json` writes it; fields at their default are left out."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(parsed))
    return plain


def schema(kind: str) -> dict[str, Any]:
    """JSON schema (2020-12) of a kind, made from its type; KeyError if the kind is unknown."""
    made: dict[str, Any] = msgspec.json.schema(KINDS[kind].type)
    return made


def _names(document: Mapping[Any, Any]) -> tuple[str, str, str]:
    """Kind, namespace and name as far as they can be told, so that the error can name the object."""
    kind, metadata = document.get("kind"), document.get("metadata")
    given = metadata if isinstance(metadata, Mapping) else {}
    namespace, name = given.get("namespace"), given.get("name")
    return (
        kind if isinstance(kind, str) else "",
        namespace if isinstance(namespace, str) and namespace else "default",
        name if isinstance(name, str) else "",
    )


def _unknown_kind(document: Mapping[Any, Any], file: str, namespace: str, name: str) -> ParseError:
    given = document.get("kind")
    if not isinstance(given, str) or not given:
        return ParseError(file=file, path="kind", cause="it is missing", cure="each object needs apiVersion and kind")
    cure = check.suggest(given, KINDS) or f"known are {', '.join(KINDS)}"
    return ParseError(
        file=file,
        kind=given[:80],
        namespace=namespace,
        name=name,
        path="kind",
        cause=f"{check.quoted(given)} is not a kind this mesh knows",
        cure=cure,
    )


def _convert(document: Mapping[Any, Any], kind: Kind, namespace: str) -> Any:
    version = document.get("apiVersion")
    if version not in kind.versions:
        cause = f"{check.quoted(version)} does not have this kind" if isinstance(version, str) else "it is missing"
        raise Invalid("apiVersion", cause, f"write {' or '.join(kind.versions)}")
    plain = without_nulls(document)
    if not isinstance(plain.get("metadata"), dict) or not plain["metadata"].get("name"):
        raise Invalid("metadata.name", "it is missing", "every object has a name")
    plain["metadata"]["namespace"] = plain["metadata"].get("namespace") or namespace if kind.namespaced else ""
    try:
        return msgspec.convert(plain, kind.type, strict=True, str_keys=True)
    except msgspec.ValidationError as error:
        raise _explain(str(error), plain, kind.type) from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Invalid("", f"not an object of this kind: {error}"[:200]) from None


def without_nulls(value: Any, depth: int = 0) -> Any:
    """A copy in which null fields are absent. Bounded depth: Invalid for a document that contains itself."""
    if depth > MAX_DEPTH:
        raise Invalid("", f"nested deeper than {MAX_DEPTH} levels", "no object of this kind is")
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, str) else _key(key): without_nulls(item, depth + 1)
            for key, item in value.items()
            if item is not None
        }
    if isinstance(value, list | tuple):
        return [without_nulls(item, depth + 1) for item in value]
    return value


def _key(key: object) -> str:
    """Ports as keys are numbers in YAML and strings in JSON."""
    if isinstance(key, int) and not isinstance(key, bool) and abs(key) < 1 << 64:
        return str(key)
    raise Invalid("", f"a key is a {type(key).__name__}", "keys are strings; quote it")


_AT = re.compile(r"(?P<cause>.*?)(?: - at (?P<key>`key` in )?`\$\.?(?P<path>.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_WRONG_TYPE = re.compile(r"Expected `(?P<expected>.*)`, got `(?P<got>.*)`")
_ENUM = re.compile(r"Invalid enum value (?P<value>.*)", re.DOTALL)


def _explain(text: str, plain: Any, of: type) -> Invalid:
    """Turn msgspec's message into a path, a cause and a cure."""
    found = _AT.fullmatch(text)
    cause, path = (found["cause"], found["path"] or "") if found else (text, "")
    here, value, path = _follow(path, plain, of)
    if found and found["key"]:
        return Invalid(path, f"a key has the wrong form: {cause[0].lower()}{cause[1:]}"[:200])
    unknown = _UNKNOWN.fullmatch(cause)
    if unknown:
        known = [f.encode_name for f in here.fields] if isinstance(here, inspect.StructType) else []
        at = f"{path}.{unknown[1]}" if path else unknown[1]
        return Invalid(
            at[:300], "there is no such field", check.suggest(unknown[1], known) or f"known are {', '.join(known)}"
        )
    missing = _MISSING.fullmatch(cause)
    if missing:
        return Invalid(f"{path}.{missing[1]}" if path else missing[1], "it is missing", "this field is required")
    if _ENUM.fullmatch(cause):
        known = [str(v) for v in here.values] if isinstance(here, inspect.LiteralType) else []
        given = check.quoted(str(value))
        return Invalid(
            path, f"{given} is not one of {', '.join(k or '(empty)' for k in known)}", check.suggest(str(value), known)
        )
    wrong = _WRONG_TYPE.fullmatch(cause)
    if wrong and "str" in wrong["expected"].split(" | ") and isinstance(value, bool | int | float):
        return Invalid(path, f"expected a string, got {wrong['got']} {value}"[:200], f'quote it: "{str(value)[:80]}"')
    return Invalid(path, f"{cause[0].lower()}{cause[1:]}"[:300].replace("`", ""))


_STEP = re.compile(r"\[(?P<index>\d+)\]|\[\.\.\.\]|\.?(?P<field>[^.\[\]]+)")


def _follow(path: str, plain: Any, of: type) -> tuple[Any, Any, str]:
    """The type and the value at msgspec's path, and the path with the keys it leaves out (`labels[...]`) filled in."""
    here: Any = inspect.type_info(of)
    value = plain
    said = ""
    for step in _STEP.finditer(path):
        here = _given(here)
        if step["index"] is not None:
            here = here.item_types[0] if isinstance(here, inspect.TupleType) else getattr(here, "item_type", None)
            value = value[int(step["index"])]
            said += f"[{step['index']}]"
        elif step["field"] is not None:
            fields = here.fields if isinstance(here, inspect.StructType) else ()
            here = next((f.type for f in fields if f.encode_name == step["field"]), None)
            value = value.get(step["field"]) if isinstance(value, dict) else None
            said += f".{step['field']}" if said else step["field"]
        else:
            here = here.value_type if isinstance(here, inspect.DictType) else None
            key, value = _first_odd(value, here)
            said += f"[{key}]"
    return _given(here), value, said


def _given(here: Any) -> Any:
    """Without the `| None` of an optional field."""
    if isinstance(here, inspect.UnionType):
        return next((t for t in here.types if not isinstance(t, inspect.NoneType)), here)
    return here


def _first_odd(values: Any, of: Any) -> tuple[str, Any]:
    """The entry of a mapping that msgspec stopped at: the first that does not convert to the value type."""
    expected = of.cls if isinstance(of, inspect.StructType) else str
    for key, value in values.items() if isinstance(values, dict) else ():
        try:
            msgspec.convert(value, expected, strict=True, str_keys=True)
        except msgspec.ValidationError:
            return str(key)[:80], value
    return "...", None
