"""CPU and memory of real processes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from pathlib import Path

import pytest

from deploy.bench import usage
from deploy.bench.usage import Cpu


def test_a_group_that_nothing_ran_in_has_used_nothing(tmp_path: Path) -> None:
    assert usage.group_seconds(tmp_path / "absent") == 0.0


def test_group_seconds(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n")
    assert usage.group_seconds(tmp_path) == 2.5


def test_the_machine_is_at_least_as_busy_as_this_process() -> None:
    before, mine = usage.machine_seconds(), os.times()
    while os.times().user - mine.user < 0.2:
        sum(range(1000))
    assert usage.machine_seconds() - before >= 0.15


def test_memory_is_of_the_processes_in_the_groups(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    found = usage.read_memory([tmp_path])
    assert 1 < found.pss <= found.rss < 4096
    assert usage.read_memory([]).rss == 0


def test_since() -> None:
    start, end = Cpu(proxies=1, total=2, machine=3), Cpu(proxies=2, total=4, machine=6)
    assert end.since(start) == Cpu(proxies=1, total=2, machine=pytest.approx(3))


def test_what_sockets_queue_is_seen() -> None:
    """All that nobody reads, at whichever end it waits, and not twice as much."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, sent = listener.getsockname()[1], 0
        command = ["ss", "-Htmn", "state", "established", f"( sport = {port} or dport = {port} )"]
        with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0]:
            assert _queued(command) < 65536
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += client.send(bytes(65536))
            assert 0 < sent <= _queued(command) < 2 * sent
        assert usage.queued_memory("") == 0


def _queued(command: list[str]) -> int:
    return usage.queued_memory(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_descriptors_of_messages_are_whole_ones() -> None:
    assert usage.message_memory() % 1024 == 0 < usage.message_memory()


def test_the_kernels_own_objects() -> None:
    assert 1 << 20 < usage.slab_memory() < 1 << 36
