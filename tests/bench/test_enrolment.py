"""`gossamer bench enrolment` as people run it, small: all pods are served after each event, and nobody is refused."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.bench.test_tunnel import TOP, traces


def test_a_small_node() -> None:
    argv = [sys.executable, "-m", "deploy.cli", "bench", "enrolment", "--pods", "20", "--tries", "1", "-o", "json"]
    with subprocess.Popen(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    assert traces(process.pid) == []
    document = json.loads(output)
    assert (document["bench"], document["pods"]) == ("enrolment", 20)
    assert {event: len(costs) for event, costs in document["costs"].items()} == {
        "enrolled": 1,
        "adopted after a kill": 1,
        "taken over": 1,
    }
    assert all(cost["seconds"] > 0 and cost["agent"] > 0 for costs in document["costs"].values() for cost in costs)
    assert document["meanwhile"]["connections"] > 1000
    assert document["meanwhile"]["refused"] == 0
