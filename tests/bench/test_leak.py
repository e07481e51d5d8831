"""`gossamer bench leak` as people run it, with few connections."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.bench.test_tunnel import TOP, traces


def run(*words: str) -> tuple[int, dict]:
    argv = [sys.executable, "-m", "deploy.cli", "bench", "leak", *words, "-o", "json"]
    with subprocess.Popen(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, complaint = process.communicate(timeout=280)
    assert output, complaint
    assert traces(process.pid) == []
    return process.returncode, json.loads(output)


def test_nothing_is_left_of_connections_policies_and_certificates() -> None:
    status, found = run("--connections", "3000")
    assert found["leaks"] == []
    assert status == 0
    assert found["connections"] == 3000
    assert found["policies_changed"] > 0
    assert list(found["processes"]) == ["agent of node1", "agent of node2", "controller"]
    for looks in found["processes"].values():
        assert [look["connections"] for look in looks] == list(range(150, 3001, 150))
        assert all(look["pss_mib"] > 1 and look["descriptors"] > 3 for look in looks)
