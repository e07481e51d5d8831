"""Cython's cimports obey the layering that import-linter checks for Python's imports (pyproject.toml)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["importlinter"]
ROOTS = tuple(SETTINGS["root_packages"])

_FROM = re.compile(r"^\s*from\s+([.\w]+)\s+c?import\b\s*(.*)")
_PLAIN = re.compile(r"^\s*c?import\s+(.+)")


def forbidden() -> set[tuple[str, str]]:
    """(package, package it must not import), both roots, out of import-linter's contracts."""
    pairs = set()
    for contract in SETTINGS["contracts"]:
        if contract["type"] == "independence":
            pairs |= {(a, b) for a in contract["modules"] for b in contract["modules"] if a != b}
        elif contract["type"] == "forbidden":
            pairs |= {(a, b) for a in contract["source_modules"] for b in contract["forbidden_modules"]}
        else:
            raise AssertionError(
                f"contract {contract['name']!r} has a type this test does not know: {contract['type']}"
            )
    return pairs


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line number, absolute module) of every import and cimport; `package` is where relative ones start."""
    for number, line in enumerate(source.splitlines(), 1):
        if found := _FROM.match(line):
            yield number, _absolute(found[1], package)
        elif found := _PLAIN.match(line):
            for part in found[1].split("#")[0].split(","):
                yield number, part.split(" as ")[0].strip()


def _absolute(module: str, package: str) -> str:
    dots = len(module) - len(module.lstrip("."))
    if not dots:
        return module
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - dots + 1], module.lstrip(".")]).rstrip(".")


def violations(source: str, module: str) -> list[str]:
    """What in a Cython file of this dotted name (without the suffix) breaks the rule."""
    rules = forbidden()
    package = module.rpartition(".")[0]
    root = module.split(".")[0]
    return [
        f"{module}, line {number}: {root} must not import {target.split('.')[0]} ({target})"
        for number, target in imported(source, package)
        if (root, target.split(".")[0]) in rules
    ]


def cython_files() -> list[Path]:
    return sorted(file for root in ROOTS for file in (TOP / root).rglob("*") if file.suffix in (".pyx", ".pxd", ".pxi"))


def test_cimports_obey_the_layering():
    files = cython_files()
    assert TOP / "mesh/http2/_session.pyx" in files
    wrong = []
    for file in files:
        module = ".".join(file.relative_to(TOP).with_suffix("").parts)
        wrong += violations(file.read_text(), module)
    assert not wrong, "\n".join(wrong)


def test_the_checker_sees_each_form_of_a_forbidden_import():
    bad = [
        "from ztunnel.pump cimport loop",
        "cimport ztunnel.pump.loop",
        "cimport cython, ztunnel.pump as pump  # why not",
        "    from bpf import maps",
        "from ...controller cimport x",
        "from controller.serve import (",
        "cimport socket",
    ]
    for line in bad:
        assert len(violations(line, "mesh.http2._session")) == 1, line
    assert violations("from waypoint cimport x", "ztunnel.pump.loop")
    assert violations("import deploy.lab", "ztunnel.pump.loop")


def test_the_checker_lets_allowed_imports_pass():
    good = "from mesh.http2._stream cimport Stream\nfrom libc.stdint cimport int32_t\nfrom . cimport _session"
    assert violations(good, "mesh.http2._connection") == []
    assert violations("from mesh.http2._session cimport Session\nfrom bpf import maps", "ztunnel.pump.loop") == []


def test_relative_cimports_are_resolved():
    assert list(imported("from ..identity cimport x\nfrom . cimport y", "mesh.http2")) == [
        (1, "mesh.identity"),
        (2, "mesh.http2"),
    ]
