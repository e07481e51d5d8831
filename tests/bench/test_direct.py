"""`gossamer bench direct` as people run it, for seconds: every path is the one that its column names."""

from __future__ import annotations

import json
import subprocess
import sys

from deploy.bench.columns import DIRECT_COLUMNS
from deploy.bench.figures import METRICS, figures
from tests.bench.test_tunnel import TOP, traces

TINY = ("--rounds", "1", "--seconds", "0.1", "--connections", "1,4", "--sizes", "100", "--streams", "1", "--held", "3")


def test_two_pods_of_one_node_in_every_column() -> None:
    argv = [sys.executable, "-m", "deploy.cli", "bench", "direct", *TINY, "-o", "json"]
    with subprocess.Popen(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    assert traces(process.pid) == []
    document = json.loads(output)
    names = [column.name for column in DIRECT_COLUMNS]
    assert document["bench"] == "direct"
    assert [column["name"] for column in document["columns"]] == names
    assert {(entry["figure"], entry["metric"]) for entry in document["figures"]} == {
        (figure.name, metric.name) for figure in figures([100], [1, 4], [1], 4) for metric in METRICS[figure.command]
    }
    assert all(list(entry["columns"]) == names for entry in document["figures"])
    paths = {column["name"]: column["path"] for column in document["columns"]}
    # Listed as DIRECT, under a policy that allows the client alone: else its column would not have been prepared.
    assert paths["direct"] == {
        "source": "spiffe://cluster.local/ns/ambient/sa/client",
        "destination": "spiffe://cluster.local/ns/ambient/sa/server",
    }
