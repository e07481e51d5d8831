"""Age and selection."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mesh.resources import LabelSelector, ObjectMeta
from mesh.resources.meta import LabelSelectorRequirement as Requirement


def test_the_oldest_is_first_and_an_object_without_age_is_last() -> None:
    old = ObjectMeta(name="z", creation_timestamp=datetime(2020, 1, 1, tzinfo=UTC))
    young = ObjectMeta(name="a", creation_timestamp=datetime(2024, 1, 1))  # noqa: DTZ001 - a source may leave the zone out
    unborn = ObjectMeta(name="a")
    assert sorted([unborn, young, old], key=lambda m: m.age_key) == [old, young, unborn]


@pytest.mark.parametrize(
    ("selector", "selects"),
    [
        (LabelSelector(), True),
        (LabelSelector(match_labels={"a": "1"}), True),
        (LabelSelector(match_labels={"a": "2"}), False),
        (LabelSelector(match_labels={"a": "1", "b": ""}), False),
        (LabelSelector(match_expressions=(Requirement(key="a", operator="In", values=("1", "2")),)), True),
        (LabelSelector(match_expressions=(Requirement(key="a", operator="NotIn", values=("1",)),)), False),
        (LabelSelector(match_expressions=(Requirement(key="z", operator="NotIn", values=("1",)),)), True),
        (LabelSelector(match_expressions=(Requirement(key="a", operator="Exists"),)), True),
        (LabelSelector(match_expressions=(Requirement(key="a", operator="DoesNotExist"),)), False),
    ],
)
def test_a_selector(selector: LabelSelector, selects: bool) -> None:
    assert selector.selects({"a": "1"}) is selects
