"""The last good state of every object, file by file."""

from __future__ import annotations

from controller.sources.files import Files
from mesh.resources import ObjectKey


def namespace(name: str, label: str = "x") -> str:
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{l: {label}}}}}\n"


def key(name: str) -> ObjectKey:
    return ObjectKey("Namespace", "", name)


def labels(files: Files) -> dict[str, str]:
    return {k.name: o.metadata.labels["l"] for k, o in files.objects().items()}


def said(files: Files) -> list[str]:
    return [str(error) for error in files.refusals()]


def test_any_number_of_objects_per_file() -> None:
    files = Files()
    assert files.put("a.yaml", namespace("one") + "---\n" + namespace("two"))
    assert labels(files) == {"one": "x", "two": "x"}
    assert files.owners() == {key("one"): "a.yaml", key("two"): "a.yaml"}
    assert said(files) == []


def test_a_bad_object_keeps_its_last_good_state_and_the_others_apply() -> None:
    files = Files()
    files.put("a.yaml", namespace("one") + "---\n" + namespace("two"))
    assert not files.put("a.yaml", namespace("one", "'*'") + "---\n" + namespace("two", "new"))
    assert labels(files) == {"one": "x", "two": "new"}
    assert said(files) == [
        'a.yaml: Namespace one: metadata.labels[l]: "*" is not a label value; '
        "a selector has no wildcards; list the labels"
    ]
    assert files.put("a.yaml", namespace("one", "good") + "---\n" + namespace("two", "new"))
    assert labels(files) == {"one": "good", "two": "new"}
    assert said(files) == []


def test_a_bad_object_that_was_never_good_is_not_there() -> None:
    files = Files()
    files.put("a.yaml", namespace("one", "'*'") + "---\n" + namespace("two"))
    assert labels(files) == {"two": "x"}


def test_a_syntax_error_keeps_the_whole_file() -> None:
    files = Files()
    files.put("a.yaml", namespace("one") + "---\n" + namespace("two"))
    files.put("a.yaml", namespace("one", "new") + "---\n{")
    assert labels(files) == {"one": "x", "two": "x"}
    assert "line" in said(files)[0]


def test_a_document_without_a_name_holds_removals_back() -> None:
    files = Files()
    files.put("a.yaml", namespace("one") + "---\n" + namespace("two"))
    files.put("a.yaml", namespace("one", "new") + "---\nkind: Namespace\n")
    assert labels(files) == {"one": "new", "two": "x"}
    files.put("a.yaml", namespace("one", "new"))
    assert labels(files) == {"one": "new"}


def test_what_is_removed_from_a_file_or_with_it_is_gone() -> None:
    files = Files()
    files.put("a.yaml", namespace("one") + "---\n" + namespace("two"))
    files.put("a.yaml", namespace("two"))
    assert labels(files) == {"two": "x"}
    files.drop("a.yaml")
    assert labels(files) == {}
    assert files.names() == ()


def test_an_object_in_two_files_belongs_to_the_one_that_had_it_first() -> None:
    files = Files()
    files.put("b.yaml", namespace("one", "first"))
    files.put("a.yaml", namespace("one", "second"))
    assert labels(files) == {"one": "first"}
    assert said(files) == [
        "a.yaml: Namespace one: it is also in b.yaml, which stays in force; remove it from b.yaml or from a.yaml"
    ]
    files.put("b.yaml", namespace("one", "changed"))
    assert labels(files) == {"one": "changed"}
    files.drop("b.yaml")
    assert labels(files) == {"one": "second"}
    assert said(files) == []


def test_an_object_twice_in_one_file() -> None:
    files = Files()
    files.put("a.yaml", namespace("one", "first") + "---\n" + namespace("one", "second"))
    assert labels(files) == {"one": "first"}
    assert said(files) == [
        "a.yaml: Namespace one: it stands twice in this file; the first one stays; remove one of the two"
    ]


def test_a_file_that_cannot_be_read_keeps_its_objects() -> None:
    files = Files()
    files.put("a.yaml", namespace("one"))
    files.refuse("a.yaml", "it cannot be read: Permission denied", "check its mode and owner")
    assert labels(files) == {"one": "x"}
    assert said(files) == ["a.yaml: it cannot be read: Permission denied; check its mode and owner"]
