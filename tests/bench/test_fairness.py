"""`gossamer bench fairness` as people run it, for seconds. No time is judged: bytes, both columns, what is left."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.bench.test_tunnel import TOP, traces


def test_an_echo_alone_and_beside_a_greedy_neighbour() -> None:
    argv = [sys.executable, "-m", "deploy.cli", "bench", "fairness", "--rounds", "1", "--seconds", "0.3", "-o", "json"]
    with subprocess.Popen(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    assert traces(process.pid) == []
    document = json.loads(output)
    assert list(document["columns"]) == ["none", "gossamer"]
    for found in document["columns"].values():
        for quantile in ("p50_us", "p99_us"):
            assert found[quantile]["alone"] > 0 and found[quantile]["beside"] > 0
            assert found[quantile]["times"] == found[quantile]["beside"] / found[quantile]["alone"]
        assert found["neighbour_gbit_per_s"] > 0, "its neighbour was not greedy"
        assert found["neighbour_connects_per_s"] > 0
