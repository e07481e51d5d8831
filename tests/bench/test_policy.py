"""`gossamer bench policy` as people run it, small: every change is in force, and paid for."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.bench.test_tunnel import TOP, traces


def test_a_small_crowd() -> None:
    options = ("--pods", "20", "--policies", "60", "--tries", "2", "-o", "json")
    argv = [sys.executable, "-m", "deploy.cli", "bench", "policy", *options]
    with subprocess.Popen(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    assert traces(process.pid) == []
    document = json.loads(output)
    assert (document["bench"], document["pods"], document["policies"]) == ("policy", 20, 60)
    tries = {kind: len(costs) for kind, costs in document["changes"].items()}
    assert tries == {"all policies": 1, "one policy allows more": 2, "one policy allows less": 2}
    for cost in (document["enrolment"], *(cost for costs in document["changes"].values() for cost in costs)):
        assert all(value > 0 for value in cost.values()), cost
    # The kernel was told of every permission, and holds no other.
    assert document["answers"] == {"permitted": 121, "ahead": 121}
    assert all(one["bytes"] > 0 for name, one in document["maps"].items() if name != "bypass")
