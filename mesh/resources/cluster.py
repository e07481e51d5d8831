"""Namespace, Node, ServiceAccount, ConfigMap (k8s.io/api core/v1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from mesh.resources import check
from mesh.resources.meta import ObjectMeta


class Namespace(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, tag_field="kind", tag="Namespace"
):
    api_version: Literal["v1"]
    metadata: ObjectMeta


class NodeAddress(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    type: str
    address: str


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    addresses: tuple[NodeAddress, ...] = ()


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    pod_cidr: str = msgspec.field(name="podCIDR", default="")
    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs", default=())
    unschedulable: bool = False


class Node(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, tag_field="kind", tag="Node"):
    api_version: Literal["v1"]
    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def labels(self) -> Mapping[str, str]:
        return self.metadata.labels


class ServiceAccount(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename="camel",
    omit_defaults=True,
    tag_field="kind",
    tag="ServiceAccount",
):
    api_version: Literal["v1"]
    metadata: ObjectMeta


class ConfigMap(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, tag_field="kind", tag="ConfigMap"
):
    """Files and variables for pods, by key. `binary_data` is base64."""

    api_version: Literal["v1"]
    metadata: ObjectMeta
    data: Mapping[str, str] = {}
    binary_data: Mapping[str, str] = {}
    immutable: bool = False


def check_namespace(namespace: Namespace) -> None:
    check.dns_label("metadata.name", namespace.metadata.name)


def check_node(node: Node) -> None:
    for index, given in enumerate(node.status.addresses):
        if given.type in ("InternalIP", "ExternalIP"):
            check.address(f"status.addresses[{index}].address", given.address)
    for index, cidr in enumerate(node.spec.pod_cidrs):
        check.cidr(f"spec.podCIDRs[{index}]", cidr)
