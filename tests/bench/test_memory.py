"""`gossamer bench memory` as people run it, small."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.bench.test_tunnel import TOP, traces


def test_a_few_connections() -> None:
    options = ("--connections", "200", "--rounds", "1", "-o", "json")
    argv = [sys.executable, "-m", "deploy.cli", "bench", "memory", *options]
    with subprocess.Popen(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, complaint = process.communicate(timeout=400)
    assert process.returncode == 0, complaint
    assert traces(process.pid) == []
    document = json.loads(output)
    assert [one["size"] for one in document["stuffed"]] == [1, 100, 4096]
    for one in document["stuffed"]:
        assert list(one["queued"]) == list(one["kernel"]) == ["none", "direct"]
        assert all(taken > 65536 for values in one["queued"].values() for taken in values), one
    assert document["idle"]["connections"] == 200
    assert [len(values) for values in document["idle"]["kernel"].values()] == [1, 1]
