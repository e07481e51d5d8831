"""Labs for tests: brought up from YAML text, always taken down, also those a killed test run has left.

    def test_x(make_lab):
        lab = make_lab(YAML)                      # with agents; agent=False without
        lab.exec("client", ["curl", "-sS", "http://web"], check=True).stdout

`lab` is a `deploy.lab.cluster.Lab`. Names carry the test run's process id, so that runs side by side, and a lab that is
up, never meet. `bookinfo` is one lab for the whole session: leave it as you found it.
"""

from __future__ import annotations

import itertools
import os
import re
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.lab import slot
from deploy.lab.cluster import Lab
from deploy.lab.demo import BOOKINFO
from deploy.lab.layout import cgroup_root

MakeLab = Callable[..., Lab]

_OURS = re.compile(r"t(\d+)[a-z]")
_letters = itertools.cycle(string.ascii_lowercase)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session", autouse=True)
def _no_labs_of_dead_runs() -> None:
    """A test run that was killed could not take its labs down."""
    found = {path.name.removeprefix("gossamer-") for path in cgroup_root().glob("gossamer-t*")} | set(slot.names())
    for name in found:
        match = _OURS.fullmatch(name)
        if match and not Path(f"/proc/{match[1]}").exists():
            Lab(name).down()


def lab_name() -> str:
    """A name no other test run and no lab of a person has."""
    return f"t{os.getpid()}{next(_letters)}"


@pytest.fixture(scope="module")
def make_lab() -> Iterator[MakeLab]:
    """Brings up labs for one test file: `make_lab(yaml_text, agent=True, timeout=…)`; they go when the file is done."""
    made: list[Lab] = []

    def make(text: str, *, agent: bool = True, timeout: float = 120.0) -> Lab:
        lab = Lab(lab_name())
        made.append(lab)
        lab.up({"test.yaml": text}, agent=agent, timeout=timeout)
        return lab

    try:
        yield make
    finally:
        for lab in made:
            lab.down()


@pytest.fixture(scope="session")
def bookinfo() -> Iterator[Lab]:
    """The bookinfo lab with agents, for all test files."""
    lab = Lab(lab_name())
    try:
        lab.up({BOOKINFO.name: BOOKINFO.read_text()})
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """`until(what)` waits until `what()` is true; a test whose wait is over (90 s, or `seconds`) fails."""

    def wait(what: Callable[[], object], seconds: float = 90.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"it did not happen within {seconds:g} s"
            time.sleep(0.05)

    return wait
