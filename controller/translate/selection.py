"""Which selectors select a pod, without trying each one: an index by one of the selector's labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Selection(Generic[_T]):
    """Values filed under (namespace, match labels). Empty match labels select every pod of the namespace."""

    def __init__(self) -> None:
        self._by_label: dict[tuple[str, str, str], list[tuple[Mapping[str, str], _T]]] = {}
        self._everything: dict[str, list[_T]] = {}

    def add(self, namespace: str, labels: Mapping[str, str], value: _T) -> None:
        if not labels:
            self._everything.setdefault(namespace, []).append(value)
            return
        # The longest value is likely the rarest: `app: reviews` rather than `tier: web`.
        key = max(labels, key=lambda k: (len(labels[k]), k))
        self._by_label.setdefault((namespace, key, labels[key]), []).append((labels, value))

    def of(self, namespace: str, labels: Mapping[str, str]) -> Iterator[_T]:
        """All values whose selector selects a pod of this namespace with these labels."""
        yield from self._everything.get(namespace, ())
        for key, text in labels.items():
            for wanted, value in self._by_label.get((namespace, key, text), ()):
                if all(labels.get(k) == v for k, v in wanted.items()):
                    yield value
