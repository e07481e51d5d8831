"""Text to plain objects: what YAML means here, and what is bounded."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.resources import ParseError, load


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("", []),
        ("---\n---\n", []),
        ("a: 1\n---\nb: 2", [{"a": 1}, {"b": 2}]),
        (
            "[~, null, '', yes, Off, 'yes', 010, 0x1F, -7, 1.5, 1e3, .5]",
            [[None, None, "", True, False, "yes", 8, 31, -7, 1.5, 1000.0, 0.5]],
        ),
        (
            "[2024-01-02T03:04:05Z, 2024-01-02, 12:30:45, 1_000, .inf, 1.2.3]",
            [["2024-01-02T03:04:05Z", "2024-01-02", "12:30:45", "1_000", ".inf", "1.2.3"]],
        ),
        ("8080: a\ntrue: b", [{"8080": "a", "true": "b"}]),
        ("a: &x {b: [1]}\nc: *x\nd: &y z\ne: *y", [{"a": {"b": [1]}, "c": {"b": [1]}, "d": "z", "e": "z"}]),
        ("a: !!str 1\nb: ! 2", [{"a": "1", "b": "2"}]),
        ("{kind: List, apiVersion: v1, items: [{a: 1}, {b: 2}]}\n---\nc: 3", [{"a": 1}, {"b": 2}, {"c": 3}]),
        ('{"a": ["b", 1, true, null]}', [{"a": ["b", 1, True, None]}]),
        ("a: |\n  x\n  y\n", [{"a": "x\ny\n"}]),
        ("123456789012345678901234567890", [1.2345678901234568e29]),  # too large for an integer: a float, as in Go
    ],
)
def test_what_yaml_means(text: str, documents: list[object]) -> None:
    assert load(text, file="f") == documents
    assert load(text.encode(), file="f") == documents


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "line 2, column 1"),
        ("a: 1\nb: 2\na: 3", 'line 3, column 1: the key "a" stands twice'),
        ("<<: {a: 1}", "merge keys (<<) are not supported; write the fields out"),
        ("a: &a [*a]", "the alias *a names no finished anchor"),
        ("a: *b", "the alias *b names no finished anchor"),
        ("a: 1\n---\nb: *x", "line 3"),
        ("a: !!python/object:os.system x", "is not allowed"),
        ("a: !!binary aGk=", "is not allowed"),
        ("? [a]\n: b", "a key is not a plain value"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("- " * 100_000, "nested deeper than 64 levels"),
        ("{a: " * 100_000, "nested deeper than 64 levels"),
        (BOMB, "aliases expand to more than 200000 values"),
        ("\0", "not YAML"),
        ("a: \x1b[31m", "not YAML"),
        ("%YAML 9.9\n---\na: 1", "incompatible YAML"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(ParseError) as caught:
        load(text, file="x.yaml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("x.yaml: ")


def test_bytes_that_are_not_utf8_and_a_file_too_large() -> None:
    with pytest.raises(ParseError, match="not UTF-8"):
        load(b"a: \xff", file="f")
    with pytest.raises(ParseError, match="larger than 10 bytes"):
        load("a: 1 # comment", file="f", max_bytes=10)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)  # the machine may be busy
@given(json_values)
@example({"<<": "x"})
def test_json_is_read_as_json(value: object) -> None:
    expected = [] if value is None else [value]
    assert load(json.dumps(value), file="f") == expected


@settings(deadline=None)  # the machine may be busy
@given(st.text(alphabet="ab1:-[]{},&*!#|>'\"\n \t?%<~", max_size=60) | st.binary(max_size=60))
def test_random_text_raises_nothing_but_parse_errors(text: str | bytes) -> None:
    try:
        documents = load(text, file="f")
    except ParseError as error:
        assert error.file == "f"
    else:
        json.dumps(documents)
