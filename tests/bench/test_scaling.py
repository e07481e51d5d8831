"""`gossamer bench scaling` as people run it, for seconds: every number of threads and connections, or why not."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.bench.test_tunnel import TOP, traces


def test_threads_and_connections() -> None:
    argv = [sys.executable, "-m", "deploy.cli", "bench", "scaling"]
    argv += ["--rounds", "1", "--seconds", "0.1", "--most", "1000", "-o", "json"]
    with subprocess.Popen(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    assert traces(process.pid) == []
    document = json.loads(output)
    one, two = document["threads"]
    assert (one["threads"], two["threads"]) == (1, 2)
    for found in (one, two):
        assert list(found["rates"]) == ["messages/s", "Gbit/s", "connections/s"]
        assert all(rate["median"] > 0 and rate["ratio"] > 0 for rate in found["rates"].values())
    assert [found["connections"] for found in document["connections"]] == [0, 1000]
    for found in document["connections"]:
        assert found["pss_mib"] > 0 and found["idle_cpu_ms_per_s"] >= 0
        assert found["echo"]["p50_us"] > 0 and found["connects"]["connects_per_s"] > 0
