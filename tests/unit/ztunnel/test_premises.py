"""The run directory and the cgroup."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ztunnel.admin.listener import unix_listener
from ztunnel.premises import prepare_run_directory, processes


def test_the_run_directory_is_for_nobody_else_and_free_of_what_killed_agents_left(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    prepare_run_directory(run)
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    unix_listener(run / "draining-1.sock").close()
    living = unix_listener(run / "draining-2.sock")
    unix_listener(run / "admin.sock").close()
    run.chmod(0o755)
    prepare_run_directory(run)
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert {path.name for path in run.iterdir()} == {"draining-2.sock", "admin.sock"}
    living.close()


def test_one_that_cannot_be_made_names_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"--run .*file/run cannot be made: .*; name a directory"):
        prepare_run_directory(tmp_path / "file" / "run")


def test_processes_of_a_cgroup(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    assert processes(tmp_path) == [1, os.getpid()]
    assert processes(tmp_path / "none") == []
