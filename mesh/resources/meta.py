"""What every object carries: its name, labels and owners (k8s.io/apimachinery meta/v1)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import msgspec


class ObjectKey(NamedTuple):
    """What makes an object the same object: kind, namespace (empty for cluster-wide kinds) and name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.namespace})" if self.namespace else f"{self.kind} {self.name}"


class OwnerReference(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    api_version: str = ""
    kind: str
    name: str
    uid: str = ""
    controller: bool = False


class ObjectMeta(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True
):
    """meta/v1 ObjectMeta. Unknown fields are refused for every kind: a typing error in `labels` must not be silent."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    deletion_grace_period_seconds: int | None = None
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()
    managed_fields: tuple[Any, ...] = ()
    self_link: str = ""

    @property
    def age_key(self) -> tuple[datetime, str, str]:
        """Sorts oldest first; an object without a creation time is younger than all others. Ties go by name."""
        created = self.creation_timestamp
        if created is None:
            created = datetime.max.replace(tzinfo=UTC)
        elif created.tzinfo is None:
            created = created.replace(tzinfo=UTC)
        return created, self.namespace, self.name


class LabelSelectorRequirement(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        if self.operator == "In":
            return labels.get(self.key) in self.values
        if self.operator == "NotIn":
            return labels.get(self.key) not in self.values
        return (self.key in labels) == (self.operator == "Exists")


class LabelSelector(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """meta/v1 LabelSelector: all must hold; an empty one selects everything."""

    match_labels: Mapping[str, str] = {}
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            requirement.selects(labels) for requirement in self.match_expressions
        )


class Condition(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """meta/v1 Condition, as we report it for an object."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
