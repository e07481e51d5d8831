"""The index gives what trying every selector would."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.translate.selection import Selection

labels = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy"), max_size=3)
filed = st.tuples(st.sampled_from(["n", "m"]), labels)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(filed, max_size=12), filed)
def test_selection_is_trying_all(selectors: list[tuple[str, dict[str, str]]], pod: tuple[str, dict[str, str]]) -> None:
    selection: Selection[int] = Selection()
    for number, (namespace, wanted) in enumerate(selectors):
        selection.add(namespace, wanted, number)
    space, carried = pod
    expected = [
        n for n, (namespace, wanted) in enumerate(selectors) if namespace == space and wanted.items() <= carried.items()
    ]
    assert sorted(selection.of(space, carried)) == expected
