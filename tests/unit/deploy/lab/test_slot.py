"""Numbers of labs, and the lock."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deploy.lab import slot
from deploy.lab.fault import LabError


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(slot, "RUNTIME", tmp_path / "run")
    return tmp_path / "run"


def test_labs_have_different_numbers_and_keep_them(runtime: Path) -> None:
    assert [slot.take(name) for name in ("a", "b", "a")] == [0, 1, 0]
    assert slot.find("b") == 1 and slot.find("c") is None and slot.names() == ("a", "b")
    slot.give_back("a")
    assert slot.take("c") == 0
    for name in ("b", "c", "never"):
        slot.give_back(name)
    assert list(runtime.iterdir()) == [], "the last lab leaves nothing"


def test_they_run_out_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "SLOTS", 1)
    slot.take("a")
    with pytest.raises(LabError, match="1 labs are up"):
        slot.take("b")


def test_a_lock_whose_file_is_removed_still_excludes(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "lock", [], []

    def work() -> None:
        for _ in range(50):
            with slot.locked(path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                path.unlink(missing_ok=True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) == 200
