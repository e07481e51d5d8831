"""A measurement as a command: exit status and what is printed, however it ends."""

from __future__ import annotations

import os
import signal

import pytest

from deploy.bench.conduct import Sheet, Step, conduct, print_json
from deploy.bench.fault import BenchError


def test_measured_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(step: Step) -> int:
        step("one")
        step("two")
        return 7

    sheet = Sheet(title="a bench", columns=("s",), rows=(("row", "1.5"),), note="a note")

    def show(found: int) -> None:
        assert found == 7
        sheet.show()
        print_json({"found": found})

    assert conduct("bench", 2, measure, show) == 0
    out = capsys.readouterr().out
    for text in ("a bench", "row", "1.5", "a note", '"found": 7'):
        assert text in out


def fail(step: Step) -> int:
    raise BenchError("the cause")


def terminated(step: Step) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return 0


@pytest.mark.parametrize(("measure", "status", "text"), [(fail, 1, "the cause"), (terminated, 130, "stopped")])
def test_how_it_ends(measure: object, status: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert conduct("bench", 1, measure, lambda found: pytest.fail("shown")) == status  # type: ignore[arg-type]
    assert text in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_what_was_made_is_removed_however_often_it_is_told_to_end(first: int, second: int) -> None:
    removed = []

    def impatient(step: Step) -> int:
        try:
            os.kill(os.getpid(), first)
            return 0
        finally:
            os.kill(os.getpid(), second)
            removed.append("all")

    before = signal.getsignal(signal.SIGINT)
    assert conduct("bench", 1, impatient, lambda found: pytest.fail("shown")) == 130
    assert removed == ["all"]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert conduct("bench", 1, fail, lambda found: None) == 2
    assert "needs root" in capsys.readouterr().err
