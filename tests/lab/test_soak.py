"""`gossamer soak` as people run it, for seconds: every disturbance once, nothing wrong, nothing left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from deploy.lab import slot
from deploy.soak.wave import Disturbance

TOP = Path(__file__).resolve().parents[2]


def test_a_short_soak() -> None:
    argv = [sys.executable, "-m", "deploy.cli", "soak", "--minutes", "0.05", "--connections", "60", "-o", "json"]
    with subprocess.Popen(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, complaint = process.communicate(timeout=600)
    assert process.returncode == 0, output + complaint
    assert f"soak{process.pid}" not in slot.names()
    document = json.loads(output)
    assert document["soak"] is True
    assert document["faults"] == []
    counted = {(one["disturbance"], one["path"], one["how"]): one["connections"] for one in document["ended"]}
    waves = len(Disturbance) + 1
    assert sum(counted.values()) == 60 * waves
    assert {kind.name for kind in Disturbance} == {disturbance for disturbance, _, _ in counted}
    assert counted["REVOKED", "direct", "cut"] >= 8  # those without an end
    assert not [key for key in counted if key[2] == "faulty"]
