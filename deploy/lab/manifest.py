"""Kubernetes YAML to objects: `mesh.resources` reads and judges them; here is only what the lab does not play.

An object stays the plain mapping that Kubernetes would store; what names it (kind, namespace, name) is its `Key`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deploy.lab.fault import LabError
from mesh import resources
from mesh.resources import KINDS, Deployment, Invalid, ParseError, Pod, Service, check
from mesh.resources import ObjectKey as Key
from mesh.resources.pod import Container, PodSpec, Probe

__all__ = ["CLUSTER_KINDS", "CLUSTER_SCOPED", "Key", "Object", "key_of", "parse"]

Object = dict[str, Any]

# What the lab itself plays; the other kinds are policy, which it stores for the controller.
CLUSTER_KINDS = frozenset({"Namespace", "Node", "ServiceAccount", "ConfigMap", "Pod", "Deployment", "Service"})
CLUSTER_SCOPED = frozenset(name for name, kind in KINDS.items() if not kind.namespaced)


def key_of(item: Object) -> Key:
    """The key of an object that was parsed here."""
    meta, kind = item["metadata"], item["kind"]
    return Key(kind, "" if kind in CLUSTER_SCOPED else meta.get("namespace", "default"), meta["name"])


def parse(text: str, file: str) -> list[Object]:
    """All objects of a YAML stream, `List`s opened, nulls left out. LabError names file, object, field and cure, in a
    line for each object that is wrong."""
    objects: list[Object] = []
    faults: list[str] = []
    try:
        documents = resources.load(text, file=file)
    except ParseError as error:
        raise LabError(str(error)) from None
    for document in documents:
        try:
            objects.append(_checked(document, file))
        except ParseError as error:
            faults.append(str(error))
    if faults:
        raise LabError("\n".join(faults))
    try:
        _check_unique(objects, file)
    except ParseError as error:
        raise LabError(str(error)) from None
    return objects


def _check_unique(objects: Iterable[Object], file: str) -> None:
    seen: set[Key] = set()
    for item in objects:
        key = key_of(item)
        if key in seen:
            raise _refused(
                key, file, Invalid("metadata.name", "there are two of that name in this file", "rename or remove one")
            )
        seen.add(key)


def _refused(key: Key, file: str, fault: Invalid) -> ParseError:
    return ParseError(
        file=file,
        kind=key.kind,
        namespace=key.namespace,
        name=key.name,
        path=fault.path,
        cause=fault.cause,
        cure=fault.cure,
    )


def _checked(document: object, file: str) -> Object:
    parsed = resources.parse(document, file=file)
    item: Object = resources.without_nulls(document)
    try:
        _check_playable(parsed, item)
    except Invalid as fault:
        raise _refused(resources.key_of(parsed), file, fault) from None
    if parsed.metadata.namespace:
        item["metadata"]["namespace"] = parsed.metadata.namespace
    return item


# --- what the lab does not play ---------------------------------------------------------------------
def _check_playable(parsed: resources.Object, item: Object) -> None:
    if item["kind"] in CLUSTER_SCOPED and "namespace" in item["metadata"]:
        raise Invalid("metadata.namespace", f"a {item['kind']} belongs to no namespace", "remove the field")
    if isinstance(parsed, Pod):
        _check_pod(parsed.spec, "spec")
    elif isinstance(parsed, Deployment):
        _check_pod(parsed.spec.template.spec, "spec.template.spec")
    elif isinstance(parsed, Service):
        _check_service(parsed)
    elif item["kind"] == "ReplicaSet":
        raise Invalid("kind", "the lab has no controller of ReplicaSets", "write a Deployment")


def _check_pod(spec: PodSpec, path: str) -> None:
    for index, volume in enumerate(spec.volumes):
        if volume.empty_dir is None and volume.config_map is None:
            at = f"{path}.volumes[{index}]"
            raise Invalid(at, "the lab knows emptyDir and configMap volumes only", "use one of these or none")
    for field, group in (("containers", spec.containers), ("initContainers", spec.init_containers)):
        for index, container in enumerate(group):
            _check_container(container, f"{path}.{field}[{index}]")


def _check_container(container: Container, path: str) -> None:
    if not container.command:
        cure = "the lab runs host programs and has no image whose entry point it could use"
        raise Invalid(f"{path}.command", "it is missing", cure)
    if container.env_from:
        raise Invalid(f"{path}.envFrom", "the lab does not know it", "list the variables under env")
    for index, variable in enumerate(container.env):
        source = variable.value_from
        if source is not None and source.field_ref is None and source.config_map_key_ref is None:
            at = f"{path}.env[{index}].valueFrom"
            raise Invalid(at, "the lab knows fieldRef and configMapKeyRef only", "use one of these or value")
    for field, probe in container.probes:
        _check_probe(probe, container, f"{path}.{field}")


def _check_probe(probe: Probe, container: Container, path: str) -> None:
    if probe.grpc is not None:
        raise Invalid(f"{path}.grpc", "the lab does not know it", "use httpGet, tcpSocket or exec")
    for field, action in (("httpGet", probe.http_get), ("tcpSocket", probe.tcp_socket)):
        names = [port.name for port in container.ports if port.name]
        if action is not None and isinstance(action.port, str) and action.port not in names:
            cure = check.suggest(action.port, names) or "name one of ports[]"
            cause = f"{check.quoted(action.port)} is none of the container's named ports"
            raise Invalid(f"{path}.{field}.port", cause, cure)


def _check_service(service: Service) -> None:
    spec = service.spec
    if spec.type != "ClusterIP":
        cause = f"{check.quoted(spec.type)}: there is nothing outside the lab to expose a port to"
        raise Invalid("spec.type", cause, "use ClusterIP (headless too)")
    for index, port in enumerate(spec.ports):
        if port.protocol not in ("TCP", "UDP"):
            cause = f"{check.quoted(port.protocol)}: the lab knows TCP and UDP"
            raise Invalid(f"spec.ports[{index}].protocol", cause, "use one of them")
