"""Text of a YAML file to plain objects: the JSON subset of YAML, as the API server understands it.

Built from libyaml's events rather than with a loader class: loaders recurse in C (a deeply nested file overflows the
stack), expand merge keys exponentially and keep the last of two equal keys. Here depth, size and the expanded weight of
aliases are bounded, and a key that stands twice is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import yaml

from mesh.resources.fault import ParseError

MAX_BYTES = 64 << 20
MAX_DEPTH = 64
MAX_ALIASED = 200_000

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]

_WORDS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_WORDS |= {word: True for base in ("true", "yes", "on") for word in (base, base.capitalize(), base.upper())}
_WORDS |= {word: False for base in ("false", "no", "off") for word in (base, base.capitalize(), base.upper())}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_OCTAL = re.compile(r"[-+]?0o?([0-7]{1,21})")
_HEXADECIMAL = re.compile(r"[-+]?0x([0-9a-fA-F]{1,16})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,3})?")
_TEXT_TAGS = (None, "!", "tag:yaml.org,2002:str")


def load(text: str | bytes, *, file: str, max_bytes: int = MAX_BYTES) -> list[Plain]:
    """The objects of a file in order; empty documents are left out, `kind: List` is taken apart.

    ParseError names the line. The whole file is refused, since what follows a syntax error cannot be trusted.
    """
    if len(text) > max_bytes:
        raise ParseError(file=file, cause=f"the file is larger than {max_bytes} bytes", cure="split it")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ParseError(file=file, cause=f"not UTF-8: {error.reason} at byte {error.start}") from None
    documents: list[Plain] = []
    try:
        for document in _documents(text):
            documents += _items(document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        cause, _, cure = (error.problem or "not YAML").partition("; ")
        raise ParseError(file=file, path=where, cause=cause, cure=cure) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ParseError(file=file, cause=f"not YAML: {' '.join(str(error).split())[:200]}") from None
    return documents


def _items(document: Plain) -> list[Plain]:
    if document is None:
        return []
    if isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list):
        return [item for item in document["items"] if item is not None]  # type: ignore[union-attr]
    return [document]


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been seen."""

    value: list[Plain] | dict[str, Plain]
    anchor: str | None
    nodes_before: int
    key: str | None = None
    awaits_key: bool = True


@dataclass(slots=True)
class _Builder:
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, tuple[Plain, int]] = field(default_factory=dict)  # name -> value, weight
    nodes: int = 0  # of this document, aliases expanded
    aliased: int = 0  # of the whole file: what aliases added
    document: Plain = None


def _documents(text: str) -> list[Plain]:
    documents: list[Plain] = []
    builder = _Builder()
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
            builder.nodes += 1
            _place(builder, event, value)
            if event.anchor:
                builder.anchors[event.anchor] = (value, 1)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            _open(builder, event)
        elif isinstance(event, yaml.CollectionEndEvent):
            done = builder.stack.pop()
            _place(builder, event, done.value)
            if done.anchor:
                builder.anchors[done.anchor] = (done.value, builder.nodes - done.nodes_before)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in builder.anchors:
                raise _error(event, f"the alias *{event.anchor} names no finished anchor; define it before")
            value, weight = builder.anchors[event.anchor]
            builder.aliased += weight
            if builder.aliased > MAX_ALIASED:
                raise _error(event, f"aliases expand to more than {MAX_ALIASED} values; write them out")
            builder.nodes += weight
            _place(builder, event, value)
        elif isinstance(event, yaml.DocumentEndEvent):
            documents.append(builder.document)
            builder = _Builder(aliased=builder.aliased)
    return documents


def _open(builder: _Builder, event: yaml.CollectionStartEvent) -> None:
    mapping = isinstance(event, yaml.MappingStartEvent)
    if event.tag not in (None, "!", f"tag:yaml.org,2002:{'map' if mapping else 'seq'}"):
        raise _error(event, f"the tag {event.tag} is not allowed; write plain values")
    if len(builder.stack) >= MAX_DEPTH:
        raise _error(event, f"nested deeper than {MAX_DEPTH} levels")
    if builder.stack and isinstance(builder.stack[-1].value, dict) and builder.stack[-1].awaits_key:
        raise _error(event, "a key is not a plain value; keys are strings")
    builder.nodes += 1
    builder.stack.append(_Open({} if mapping else [], event.anchor, builder.nodes - 1))


def _place(builder: _Builder, event: yaml.Event, value: Plain) -> None:
    """Put a finished value where it belongs: the document, a list, a key or the value of a key."""
    if not builder.stack:
        builder.document = value
        return
    top = builder.stack[-1]
    if isinstance(top.value, list):
        top.value.append(value)
    elif top.awaits_key:
        top.key = _key(event, value)
        if top.key in top.value:
            raise _error(event, f'the key "{top.key[:80]}" stands twice; remove one')
        top.awaits_key = False
    else:
        top.value[top.key or ""] = value
        top.awaits_key = True


def _key(event: yaml.Event, value: Plain) -> str:
    if isinstance(event, yaml.ScalarEvent):
        if event.value == "<<" and event.implicit[0]:
            raise _error(event, "merge keys (<<) are not supported; write the fields out")
        return str(event.value)
    if isinstance(value, str):
        return value
    raise _error(event, "a key is not a plain value; keys are strings")


def _scalar(event: yaml.ScalarEvent) -> Plain:
    text: str = event.value
    if not event.implicit[0] or event.tag is not None:
        if event.tag not in _TEXT_TAGS:
            raise _error(event, f"the tag {event.tag} is not allowed; write plain values")
        return text
    return plain(text)


def plain(text: str) -> Plain:
    """What an unquoted word means (YAML 1.1 core without timestamps and sexagesimals, as Kubernetes reads it)."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "-+.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    for pattern, radix in ((_OCTAL, 8), (_HEXADECIMAL, 16)):
        found = pattern.fullmatch(text)
        if found is not None:
            return -int(found[1], radix) if text[0] == "-" else int(found[1], radix)
    return float(text) if _FLOAT.fullmatch(text) else text


def _error(event: yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]
