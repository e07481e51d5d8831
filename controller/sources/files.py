"""What a set of YAML files says, object by object: a bad one is refused and its last good state stays in force.

- A file with a syntax error keeps all of its objects as they were.
- A bad object keeps its own last good state; the other objects of the file apply.
- While a document cannot even be named, no object of its file is removed: it may be the one that was edited.
- An object that stands in two files belongs to the one that had it first; the other is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mesh.resources import Object, ObjectKey, ParseError, key_of, load, parse


@dataclass(slots=True)
class _File:
    objects: dict[ObjectKey, Object] = field(default_factory=dict)
    refusals: list[ParseError] = field(default_factory=list)


class Files:
    """Not thread-safe: one caller at a time."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._claims: dict[ObjectKey, list[str]] = {}  # the files that have the object, the first one owns it

    def put(self, file: str, text: str | bytes) -> bool:
        """Read a new text of a file; True if it was good as a whole."""
        old = self._files.get(file, _File())
        new = _read(file, text, old)
        for key in old.objects.keys() - new.objects.keys():
            self._unclaim(key, file)
        for key in new.objects:
            claims = self._claims.setdefault(key, [])
            if file not in claims:
                claims.append(file)
        self._files[file] = new
        return not new.refusals

    def refuse(self, file: str, cause: str, cure: str = "") -> None:
        """The file cannot be read: all its objects stay."""
        self._files.setdefault(file, _File()).refusals = [ParseError(file=file, cause=cause, cure=cure)]

    def drop(self, file: str) -> None:
        """The file is gone, and its objects with it."""
        for key in self._files.pop(file, _File()).objects:
            self._unclaim(key, file)

    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def count(self, file: str) -> int:
        """How many objects of this file are in force or waiting behind another file."""
        return len(self._files[file].objects) if file in self._files else 0

    def objects(self) -> dict[ObjectKey, Object]:
        """Everything in force."""
        return {key: self._files[claims[0]].objects[key] for key, claims in self._claims.items()}

    def owners(self) -> Mapping[ObjectKey, str]:
        return {key: claims[0] for key, claims in self._claims.items()}

    def refusals(self) -> Iterator[ParseError]:
        """Everything refused, files in the order they came; duplicates across files last."""
        for name in self._files:
            yield from self._files[name].refusals
        for key, (first, *others) in self._claims.items():
            for other in others:
                yield ParseError(
                    file=other,
                    kind=key.kind,
                    namespace=key.namespace,
                    name=key.name,
                    cause=f"it is also in {first}, which stays in force",
                    cure=f"remove it from {first} or from {other}",
                )

    def _unclaim(self, key: ObjectKey, file: str) -> None:
        claims = self._claims[key]
        claims.remove(file)
        if not claims:
            del self._claims[key]


def _read(file: str, text: str | bytes, old: _File) -> _File:
    try:
        documents = load(text, file=file)
    except ParseError as error:
        return _File(old.objects, [error])
    new = _File()
    unnamed = False
    for document in documents:
        try:
            parsed = parse(document, file=file)
        except ParseError as error:
            new.refusals.append(error)
            unnamed = unnamed or not (error.kind and error.name)
            continue
        key = key_of(parsed)
        if key in new.objects:
            cause, cure = "it stands twice in this file; the first one stays", "remove one of the two"
            new.refusals.append(
                ParseError(file=file, kind=key.kind, namespace=key.namespace, name=key.name, cause=cause, cure=cure)
            )
            continue
        new.objects[key] = parsed
    for refusal in new.refusals:
        key = ObjectKey(refusal.kind, refusal.namespace, refusal.name)
        if key in old.objects:
            new.objects.setdefault(key, old.objects[key])
    if unnamed:
        for key, parsed in old.objects.items():
            new.objects.setdefault(key, parsed)
    return new
