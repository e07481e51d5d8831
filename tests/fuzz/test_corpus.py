"""Every input of the corpus once more: transcripts, violations, and whatever once went wrong."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TARGETS = sorted(folder.name for folder in (HERE / "corpus").iterdir())


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    _fuzz("build")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_costs_nothing(target: str) -> None:
    inputs = {str(path) for path in (HERE / "corpus" / target).iterdir()}
    assert inputs
    told = _fuzz("replay", target)
    assert set(re.findall(r"^Executed (.+) in \d+ ms$", told, re.MULTILINE)) == inputs


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("spoilt", "verdict"), [(1, "fuzz: a descriptor is left open"), (2, "AddressSanitizer: use-after-poison")]
)
def test_the_judges_are_awake(spoilt: int, verdict: str) -> None:
    transcript = HERE / "corpus" / "server" / "request"
    done = _run("replay", "server", str(transcript), spoilt=spoilt)
    assert done.returncode != 0
    assert verdict in done.stderr


def _fuzz(*arguments: str) -> str:
    done = _run(*arguments)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stderr


def _run(*arguments: str, spoilt: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HERE.parents[1] / "deploy" / "setup" / "fuzz.sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"GOSSAMER_FUZZ_SPOILT": str(spoilt)},
    )
