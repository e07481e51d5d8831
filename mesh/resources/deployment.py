"""Deployment, and ReplicaSet as the owner of pods (k8s.io/api apps/v1)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mesh.resources import check
from mesh.resources.fault import Invalid
from mesh.resources.meta import LabelSelector, ObjectMeta
from mesh.resources.pod import PodSpec, check_pod_spec


class PodTemplate(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec


class DeploymentSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    selector: LabelSelector
    template: PodTemplate
    replicas: Annotated[int, Meta(ge=0)] = 1


class Deployment(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, tag_field="kind", tag="Deployment"
):
    api_version: Literal["apps/v1"]
    metadata: ObjectMeta
    spec: DeploymentSpec


class ReplicaSetSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    replicas: Annotated[int, Meta(ge=0)] = 1
    selector: LabelSelector = LabelSelector()


class ReplicaSet(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, tag_field="kind", tag="ReplicaSet"
):
    api_version: Literal["apps/v1"]
    metadata: ObjectMeta
    spec: ReplicaSetSpec = ReplicaSetSpec()


def check_deployment(deployment: Deployment) -> None:
    spec = deployment.spec
    check_pod_spec(spec.template.spec, "spec.template.spec")
    check.labels("spec.template.metadata.labels", spec.template.metadata.labels)
    check.labels("spec.selector.matchLabels", spec.selector.match_labels)
    if spec.selector == LabelSelector():
        raise Invalid("spec.selector", "it selects nothing", "name labels that the template carries")
    if not spec.selector.selects(spec.template.metadata.labels):
        raise Invalid("spec.selector", "it does not select the template's own labels", "make the two agree")
