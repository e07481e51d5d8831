"""The tree is the map: tests mirror sources, packages say what they are, files keep to one noun."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PACKAGES = ["mesh", "bpf", "ztunnel", "waypoint", "controller", "deploy"]
SOURCES = sorted(path for package in PACKAGES for path in (TOP / package).rglob("*.py"))
MIRRORED = sorted((TOP / "tests" / "unit").rglob("*/test_*.py"))


@pytest.mark.parametrize("test", MIRRORED, ids=lambda p: str(p.relative_to(TOP)))
def test_a_unit_test_stands_where_its_source_stands(test: Path) -> None:
    package = test.parent.relative_to(TOP / "tests" / "unit")
    noun = test.stem.removeprefix("test_")
    folder = TOP / package
    assert folder.is_dir(), f"{test.relative_to(TOP)} mirrors no folder: {package} does not exist"
    nouns = {
        path.stem.lstrip("_")
        for path in folder.iterdir()
        if path.suffix in {".py", ".pyx", ".pxi", ".c", ".h", ".sh"} or path.is_dir()
    }
    assert any(noun == n or noun.startswith(n + "_") for n in nouns) or noun.split("_")[0] == folder.name, (
        f"{test.relative_to(TOP)}: no {noun} in {package}/"
    )


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(TOP)))
def test_every_module_says_what_it_is(source: Path) -> None:
    assert ast.get_docstring(ast.parse(source.read_text())), f"{source.relative_to(TOP)} has no docstring"


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(TOP)))
def test_a_file_has_one_noun(source: Path) -> None:
    lines = len(source.read_text().splitlines())
    assert lines <= 420, f"{source.relative_to(TOP)} has {lines} lines: it has outgrown its noun"


TARGETS = ["certificate", "client", "handshake", "server"]


def test_every_fuzz_target_has_a_corpus_and_no_corpus_is_forgotten() -> None:
    fuzz = TOP / "tests" / "fuzz"
    assert sorted(path.name for path in (fuzz / "corpus").iterdir()) == TARGETS
    (listed,) = re.findall(r"^targets=\((.+)\)$", (TOP / "deploy" / "setup" / "fuzz.sh").read_text(), re.MULTILINE)
    assert sorted(listed.split()) == TARGETS


@pytest.mark.parametrize(
    "part",
    sorted(path for folder in ("ztunnel/pump", "tests/fuzz") for path in (TOP / folder).glob("*.pxi")),
    ids=lambda p: str(p.relative_to(TOP)),
)
def test_a_compiled_part_says_what_it_is_and_is_included_once(part: Path) -> None:
    assert part.read_text().startswith("# ")
    included = [path for path in part.parent.glob("*.pyx") if f'include "{part.name}"' in path.read_text()]
    assert len(included) == 1, f"{part.relative_to(TOP)} is included {len(included)} times"
