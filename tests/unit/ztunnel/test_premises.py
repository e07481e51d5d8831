"""The run directory and the cgroup."""

from __future__ import annotations

import os
import resource
import select
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ztunnel.admin.listener import unix_listener
from ztunnel.premises import SNAPSHOT, forget_earlier_boot, hold, open_files_limit, prepare_run_directory, processes


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


def test_what_an_agent_held_before_a_reboot_is_dropped(tmp_path: Path) -> None:
    boot, snapshot = tmp_path / "boot_id", tmp_path / SNAPSHOT
    boot.write_text("first\n")
    snapshot.write_text("held\n")
    forget_earlier_boot(tmp_path, boot)
    assert snapshot.exists(), "of an agent that did not write down its boot, and runs perhaps"
    forget_earlier_boot(tmp_path, boot)
    assert snapshot.exists()
    boot.write_text("second\n")
    forget_earlier_boot(tmp_path, boot)
    assert not snapshot.exists()
    snapshot.write_text("anew\n")
    forget_earlier_boot(tmp_path, boot)
    assert snapshot.exists()
    (tmp_path / "boot").write_text("sec")  # killed while it wrote
    forget_earlier_boot(tmp_path, boot)
    assert not snapshot.exists()


def test_one_that_cannot_be_made_names_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"--run .*file/run cannot be made: .*; name a directory"):
        prepare_run_directory(tmp_path / "file" / "run")


def test_one_that_somebody_else_could_exchange_is_refused(tmp_path: Path) -> None:
    theirs, link = tmp_path / "theirs", tmp_path / "link"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, 65534, 65534)
    with pytest.raises(OSError, match="belongs to user 65534; name a directory of root's"):
        prepare_run_directory(theirs)
    link.symlink_to(theirs)
    with pytest.raises(OSError, match="is a symbolic link"):
        prepare_run_directory(link)
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o755


def test_one_whose_name_is_too_long_for_its_sockets_is_refused(tmp_path: Path) -> None:
    run = tmp_path / ("x" * (107 - len(bytes(tmp_path)) - len("//draining-4194304.sock")))
    prepare_run_directory(run)
    unix_listener(run / "draining-4194304.sock").close()
    with pytest.raises(OSError, match="is 1 bytes too long for the sockets in it; name a shorter one"):
        prepare_run_directory(Path(f"{run}x"))


def test_one_agent_at_a_time_begins(tmp_path: Path) -> None:
    first = hold(tmp_path)
    child = (
        "import sys, pathlib, ztunnel.premises as p; print('asks', flush=True); p.hold(pathlib.Path(sys.argv[1]));"
        "print('began', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", child, tmp_path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"asks\n"
        assert not select.select([other.stdout], [], [], 0.3)[0]
        os.close(first)
        assert other.stdout.readline() == b"began\n"
    os.close(hold(tmp_path))  # who died holds nothing


def test_as_many_descriptors_as_the_process_may_allow_itself() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
        assert open_files_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_processes_of_a_cgroup(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    assert processes(tmp_path) == [1, os.getpid()]
    assert processes(tmp_path / "none") == []
