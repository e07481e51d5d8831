"""The cache of compiled programs: what is used stays, what nobody needs any more goes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bpf import compile


def test_the_artifacts_used_last_are_kept(tmp_path: Path) -> None:
    for age in range(12):
        path = tmp_path / f"{age:024x}.json"
        path.touch()
        os.utime(path, (time.time() - age * 60,) * 2)
    for name, age in ((".a.json.killed", 7200), (".b.json.compiling", 5)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / "other").touch()
    compile.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".b.json.compiling",
        *(f"{age:024x}.json" for age in range(8)),
        "other",
    ]
    compile.prune(tmp_path / "none")
