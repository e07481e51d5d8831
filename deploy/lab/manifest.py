"""Kubernetes YAML to objects: what the lab itself needs of an object is checked here, the rest is kept as it came.

An object stays the plain mapping that Kubernetes would store; only what names it (kind, namespace, name) becomes a
`Key`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml

from deploy.lab.fault import LabError

Object = dict[str, Any]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Groups of the policy kinds, which the lab stores and the controller judges.
POLICY_GROUPS = (
    "security.istio.io",
    "networking.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "gateway.networking.k8s.io",
)
CLUSTER_SCOPED = frozenset({"Namespace", "Node", "GatewayClass"})
_API = {
    "Namespace": "v1",
    "Node": "v1",
    "ServiceAccount": "v1",
    "Pod": "v1",
    "Service": "v1",
    "ConfigMap": "v1",
    "Deployment": "apps/v1",
}
CLUSTER_KINDS = frozenset(_API)  # what the lab itself plays; any other kind is policy
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class Key(NamedTuple):
    """What names an object. `namespace` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def key_of(item: Object) -> Key:
    meta = item["metadata"]
    kind = item["kind"]
    return Key(kind, "" if kind in CLUSTER_SCOPED else meta.get("namespace", "default"), meta["name"])


def parse(text: str, file: str) -> list[Object]:
    """All objects of a YAML stream, `List`s opened; LabError names file, object, field and cure."""
    try:
        documents = list(yaml.load_all(text, Loader=_LOADER))
    except yaml.YAMLError as error:
        raise LabError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    objects: list[Object] = []
    for number, document in enumerate(documents, 1):
        if document is None:
            continue
        where = f"{file}: document {number}"
        if not isinstance(document, dict):
            raise LabError(f"{where}: a Kubernetes object is a mapping, this is {_type(document)}")
        items = document.get("items") or [] if document.get("kind") == "List" else [document]
        objects.extend(_checked(item, file, where) for item in items)
    _check_unique(objects, file)
    return objects


def _check_unique(objects: Iterable[Object], file: str) -> None:
    seen: set[Key] = set()
    for item in objects:
        key = key_of(item)
        if key in seen:
            raise LabError(
                f"{file}: {key}: metadata.name: there are two of that name in this file; rename or remove one"
            )
        seen.add(key)


class _Fields:
    """Reads an object's fields; what is wrong is said with file, object and the field's path."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fault(self, path: str, message: str) -> LabError:
        return LabError(f"{self.where}: {path}: {message}")

    def get(self, owner: Any, path: str, kind: type | tuple[type, ...], required: bool = False) -> Any:
        """The last part of `path` in `owner`, of the given type; None if it is absent."""
        name = path.rpartition(".")[2]
        value = owner.get(name)
        if value is None:
            if required:
                raise self.fault(path, "is missing")
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            names = "/".join(_NAMES[k] for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise self.fault(path, f"must be {names}, not {_type(value)} ({value!r})")
        return value

    def strings(self, owner: Any, path: str) -> None:
        """A list of strings, if it is there."""
        for index, value in enumerate(self.get(owner, path, list) or []):
            if not isinstance(value, str):
                raise self.fault(f"{path}[{index}]", f"must be a string: write {str(value)!r} in quotes")

    def labels(self, owner: Any, path: str) -> None:
        """A mapping of strings to strings, if it is there."""
        for name, value in (self.get(owner, path, dict) or {}).items():
            if not isinstance(value, str):
                raise self.fault(f"{path}[{name}]", f'must be a string: write "{str(value).lower()}" in quotes')

    def each(self, owner: Any, path: str, required: bool = False) -> list[tuple[str, Object]]:
        """(path, mapping) of a list's elements."""
        found: list[tuple[str, Object]] = []
        for index, value in enumerate(self.get(owner, path, list, required) or []):
            if not isinstance(value, dict):
                raise self.fault(f"{path}[{index}]", f"must be a mapping, not {_type(value)}")
            found.append((f"{path}[{index}]", value))
        return found


_NAMES: dict[type, str] = {dict: "a mapping", list: "a list", str: "a string", int: "a number", bool: "true or false"}


def _type(value: object) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def _checked(item: Any, file: str, where: str) -> Object:
    if not isinstance(item, dict):
        raise LabError(f"{where}: a Kubernetes object is a mapping, this is {_type(item)}")
    fields = _Fields(where)
    kind = fields.get(item, "kind", str, required=True)
    api = fields.get(item, "apiVersion", str, required=True)
    meta = fields.get(item, "metadata", dict, required=True)
    name = fields.get(meta, "metadata.name", str, required=True)
    fields.where = f"{file}: {kind} {name}"
    if kind in _API:
        if api != _API[kind]:
            raise fields.fault(
                "apiVersion", f"{api!r} is not the version of {kind} that the lab knows; use {_API[kind]!r}"
            )
    elif api.partition("/")[0] not in POLICY_GROUPS:
        known = ", ".join(sorted(_API))
        raise fields.fault(
            "kind", f"{kind!r} ({api}) is unknown to the lab; it knows {known} and kinds of {', '.join(POLICY_GROUPS)}"
        )
    namespace = fields.get(meta, "metadata.namespace", str)
    if kind in CLUSTER_SCOPED:
        if namespace is not None:
            raise fields.fault("metadata.namespace", f"a {kind} belongs to no namespace; remove the field")
    else:
        namespace = namespace or "default"
        fields.where = f"{file}: {kind} {namespace}/{name}"
        item = item | {"metadata": meta | {"namespace": namespace}}
    _check_name(fields, "metadata.name", name, _LABEL if kind in {"Namespace", "Service"} else _SUBDOMAIN)
    fields.labels(meta, "metadata.labels")
    fields.labels(meta, "metadata.annotations")
    check = {"Pod": _pod, "Deployment": _deployment, "Service": _service}.get(kind)
    if check is not None:
        check(fields, item)
    return item


def _check_name(fields: _Fields, path: str, name: str, form: re.Pattern[str]) -> None:
    if not form.fullmatch(name):
        raise fields.fault(
            path, f"{name!r} is not a DNS name: a-z, 0-9 and '-', starting and ending with a letter or digit"
        )


def _pod(fields: _Fields, item: Object) -> None:
    _pod_spec(fields, fields.get(item, "spec", dict, required=True), "spec")


def _deployment(fields: _Fields, item: Object) -> None:
    spec = fields.get(item, "spec", dict, required=True)
    replicas = fields.get(spec, "spec.replicas", int)
    if replicas is not None and replicas < 0:
        raise fields.fault("spec.replicas", f"{replicas} is negative")
    selector = fields.get(spec, "spec.selector", dict, required=True)
    fields.labels(selector, "spec.selector.matchLabels")
    wanted = selector.get("matchLabels") or {}
    template = fields.get(spec, "spec.template", dict, required=True)
    meta = fields.get(template, "spec.template.metadata", dict) or {}
    fields.labels(meta, "spec.template.metadata.labels")
    labels = meta.get("labels") or {}
    missing = {k: v for k, v in wanted.items() if labels.get(k) != v}
    if missing or not wanted:
        raise fields.fault(
            "spec.selector.matchLabels",
            f"{missing or 'an empty selector'} does not select the template's labels {labels}; make them agree",
        )
    _pod_spec(fields, fields.get(template, "spec.template.spec", dict, required=True), "spec.template.spec")


def _pod_spec(fields: _Fields, spec: Object, path: str) -> None:
    for name in ("nodeName", "serviceAccountName", "restartPolicy", "hostname", "subdomain"):
        fields.get(spec, f"{path}.{name}", str)
    fields.get(spec, f"{path}.hostNetwork", bool)
    if spec.get("restartPolicy", "Always") not in ("Always", "OnFailure", "Never"):
        raise fields.fault(f"{path}.restartPolicy", f"{spec['restartPolicy']!r} is none of Always, OnFailure, Never")
    containers = fields.each(spec, f"{path}.containers", required=True)
    if not containers:
        raise fields.fault(f"{path}.containers", "is empty; a pod needs a container")
    volumes = set()
    for where, volume in fields.each(spec, f"{path}.volumes"):
        volumes.add(fields.get(volume, f"{where}.name", str, required=True))
        if not ({"emptyDir", "configMap"} & volume.keys()):
            source = ", ".join(sorted(volume.keys() - {"name"})) or "nothing"
            raise fields.fault(where, f"{source}: the lab knows emptyDir and configMap volumes only")
    names: set[str] = set()
    for where, container in [*containers, *fields.each(spec, f"{path}.initContainers")]:
        _container(fields, container, where, volumes, names)


def _container(fields: _Fields, container: Object, where: str, volumes: set[str], names: set[str]) -> None:
    name = fields.get(container, f"{where}.name", str, required=True)
    _check_name(fields, f"{where}.name", name, _LABEL)
    if name in names:
        raise fields.fault(f"{where}.name", f"{name!r} is taken by another container of this pod")
    names.add(name)
    fields.strings(container, f"{where}.command")
    fields.strings(container, f"{where}.args")
    if not container.get("command"):
        raise fields.fault(
            f"{where}.command", "is missing; the lab runs host programs and has no image whose entry point it could use"
        )
    if container.get("envFrom"):
        raise fields.fault(f"{where}.envFrom", "the lab does not know it; list the variables under env")
    for at, variable in fields.each(container, f"{where}.env"):
        fields.get(variable, f"{at}.name", str, required=True)
        if "value" in variable and not isinstance(variable["value"], str):
            raise fields.fault(f"{at}.value", f'must be a string: write "{variable["value"]}" in quotes')
        source = fields.get(variable, f"{at}.valueFrom", dict)
        if source is not None and not ({"fieldRef", "configMapKeyRef"} & source.keys()):
            raise fields.fault(
                f"{at}.valueFrom", f"{', '.join(source)}: the lab knows fieldRef and configMapKeyRef only"
            )
    for at, mount in fields.each(container, f"{where}.volumeMounts"):
        fields.get(mount, f"{at}.mountPath", str, required=True)
        if fields.get(mount, f"{at}.name", str, required=True) not in volumes:
            raise fields.fault(
                f"{at}.name",
                f"{mount['name']!r} is none of spec.volumes ({', '.join(sorted(volumes)) or 'there are none'})",
            )
    for at, port in fields.each(container, f"{where}.ports"):
        _port(fields, port, f"{at}.containerPort", required=True)
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        _probe(fields, container, f"{where}.{probe}")


def _probe(fields: _Fields, container: Object, path: str) -> None:
    probe = fields.get(container, path, dict)
    if probe is None:
        return
    actions = {"httpGet", "tcpSocket", "exec"} & probe.keys()
    if len(actions) != 1:
        raise fields.fault(path, "needs exactly one of httpGet, tcpSocket, exec (the lab knows these)")
    action = actions.pop()
    detail = fields.get(probe, f"{path}.{action}", dict, required=True)
    if action == "exec":
        fields.strings(detail, f"{path}.exec.command")
        if not detail.get("command"):
            raise fields.fault(f"{path}.exec.command", "is missing")
        return
    port = fields.get(detail, f"{path}.{action}.port", (int, str), required=True)
    if isinstance(port, int):
        _port(fields, detail, f"{path}.{action}.port", required=True)
    elif port not in {p.get("name") for p in container.get("ports") or []}:
        raise fields.fault(
            f"{path}.{action}.port", f"{port!r} is none of the container's named ports; name one of ports[]"
        )


def _port(fields: _Fields, owner: Object, path: str, required: bool = False) -> None:
    port = fields.get(owner, path, int, required)
    if port is not None and not 0 < port < 65536:
        raise fields.fault(path, f"{port} is no port; 1 to 65535")


def _service(fields: _Fields, item: Object) -> None:
    spec = fields.get(item, "spec", dict, required=True)
    kind = fields.get(spec, "spec.type", str) or "ClusterIP"
    if kind != "ClusterIP":
        raise fields.fault(
            "spec.type",
            f"{kind!r}: the lab knows ClusterIP (headless too); there is nothing outside it to expose a port to",
        )
    fields.labels(spec, "spec.selector")
    fields.get(spec, "spec.clusterIP", str)
    fields.strings(spec, "spec.ipFamilies")
    for index, family in enumerate(spec.get("ipFamilies") or []):
        if family not in ("IPv4", "IPv6"):
            raise fields.fault(f"spec.ipFamilies[{index}]", f"{family!r} is neither IPv4 nor IPv6")
    policy = fields.get(spec, "spec.ipFamilyPolicy", str) or "SingleStack"
    if policy not in ("SingleStack", "PreferDualStack", "RequireDualStack"):
        raise fields.fault(
            "spec.ipFamilyPolicy", f"{policy!r} is none of SingleStack, PreferDualStack, RequireDualStack"
        )
    ports = fields.each(spec, "spec.ports")
    if not ports and spec.get("clusterIP") != "None":
        raise fields.fault("spec.ports", "is missing; only a headless service (clusterIP: None) may have none")
    seen: set[tuple[str, int]] = set()
    for where, port in ports:
        _port(fields, port, f"{where}.port", required=True)
        target = fields.get(port, f"{where}.targetPort", (int, str))
        if isinstance(target, int):
            _port(fields, port, f"{where}.targetPort")
        protocol = fields.get(port, f"{where}.protocol", str) or "TCP"
        if protocol not in ("TCP", "UDP"):
            raise fields.fault(f"{where}.protocol", f"{protocol!r} is neither TCP nor UDP")
        if len(ports) > 1 and not port.get("name"):
            raise fields.fault(f"{where}.name", "is missing; a service with several ports names each")
        if (protocol, port["port"]) in seen:
            raise fields.fault(f"{where}.port", f"{port['port']}/{protocol} is there twice")
        seen.add((protocol, port["port"]))
