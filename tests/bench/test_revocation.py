"""`gossamer bench revocation` as people run it, twice: the path is the one meant, the end an error."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.bench.test_tunnel import TOP, traces


def test_one_try_of_each() -> None:
    argv = [sys.executable, "-m", "deploy.cli", "bench", "revocation", "--tries", "2", "-o", "json"]
    with subprocess.Popen(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, complaint = process.communicate(timeout=400)
    assert process.returncode == 0, complaint
    assert traces(process.pid) == []
    seconds = json.loads(output)["seconds"]
    assert {path: {half: len(tries) for half, tries in halves.items()} for path, halves in seconds.items()} == {
        "DIRECT": {"idle": 2, "busy": 2},
        "HBONE": {"idle": 2, "busy": 2},
    }
    assert all(0 < one < 60 for halves in seconds.values() for tries in halves.values() for one in tries)
