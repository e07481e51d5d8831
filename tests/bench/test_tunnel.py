"""The benchmark as people run it, for seconds: bytes right, the answer whole, nothing left. No time is judged."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.bench import load, rounds
from deploy.bench.columns import APP_PORT, COLUMNS, Column, Lane, Setting
from deploy.bench.envoy import Endpoint
from deploy.bench.fault import BenchError
from deploy.bench.figures import METRICS, figures
from deploy.bench.rounds import Plan
from deploy.lab.layout import NETNS, RUNTIME, cgroup_root

TOP = Path(__file__).resolve().parents[2]
ALL = [column.name for column in COLUMNS]
TINY = ("--rounds", "1", "--seconds", "0.1", "--connections", "1,4", "--sizes", "100", "--held", "3")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "deploy.cli", "bench", "tunnel", *words]


def traces(number: int) -> list[str]:
    """What a benchmark with this pid has made: namespaces, cgroups, directories, mounts."""
    mine = re.compile(rf"\b(gsm-|gossamer-)?bench{number}\b")
    places = [directory for directory in (NETNS, cgroup_root(), RUNTIME) if directory.exists()]
    found = [str(entry) for directory in places for entry in directory.iterdir() if mine.match(entry.name)]
    return found + [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if mine.search(line)]


@pytest.fixture(scope="module")
def document() -> dict[str, object]:
    argv = command(*TINY, "-o", "json")
    with subprocess.Popen(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    assert traces(process.pid) == []
    found: dict[str, object] = json.loads(output)
    return found


def test_every_column_has_every_figure(document: dict) -> None:
    assert document["correct"] is True
    assert [column["name"] for column in document["columns"]] == ALL
    expected = {
        (figure.name, metric.name) for figure in figures([100], [1, 4], [1, 8], 4) for metric in METRICS[figure.command]
    }
    assert {(entry["figure"], entry["metric"]) for entry in document["figures"]} == expected
    for entry in document["figures"]:
        assert list(entry["columns"]) == ALL
        assert {"command", "unit", "better", "connections"} <= entry.keys()
        for name, one in entry["columns"].items():
            assert one.keys() == {"median", "ratio", "samples"}
            assert len(one["samples"]) == 1
            proxy_cpu_of_nothing = name == "none" and entry["metric"].startswith("cpu_proxies")
            # CPU of the whole machine is counted in hundredths of a second, and this run is short.
            if not entry["metric"].startswith("cpu_machine"):
                assert (one["median"] == 0) == proxy_cpu_of_nothing, (entry["figure"], entry["metric"], name)


def test_the_baselines_ratio_is_one(document: dict) -> None:
    assert document["baseline"] == "none"
    ratios = [entry["columns"]["none"]["ratio"] for entry in document["figures"] if entry["columns"]["none"]["median"]]
    assert ratios
    assert set(ratios) == {1.0}


def test_the_proxies_say_who_talked(document: dict) -> None:
    paths = {column["name"]: column["path"] for column in document["columns"]}
    assert paths["none"] == paths["unenrolled"] == {}
    assert paths["gossamer"] == {
        "source": "spiffe://cluster.local/ns/ambient/sa/client",
        "destination": "spiffe://cluster.local/ns/ambient/sa/server",
    }
    assert paths["envoy-tcp"]["cipher"].startswith("TLS_AES_")
    assert paths["envoy-hbone"]["cipher"].startswith("TLS_AES_")


def test_memory_is_of_proxies_only(document: dict) -> None:
    memory = document["memory"]
    assert list(memory) == ALL
    for name, found in memory.items():
        (held,) = found["held"]
        assert held["connections"] == 3
        for when in (found["idle"], held):
            assert (when["pss_mib"] == 0) == (name == "none")
            assert when["rss_mib"] >= when["pss_mib"]


def test_it_says_how_our_tunnel_stands_against_the_better_envoy(document: dict) -> None:
    found = {(one["figure"], one["metric"]): one for one in document["against_envoy"]}
    assert ("echo 100B ×1", "p50_us") in found and ("stream ×1", "gbit_per_s") in found
    assert all(one["ratio"] > 0 and one["against"].startswith("envoy-") for one in found.values())
    assert found["connects ×4", "connects_per_s"]["against"] == "envoy-hbone"


def test_a_table_for_people_and_only_the_columns_asked_for() -> None:
    argv = command(*TINY, "--columns", "none")
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    for text in ("nothing attached", "echo 100B ×4", "p99 µs", "stream ×1", "connects ×4", "Every byte was verified"):
        assert text in done.stdout
    assert "Envoy" not in done.stdout


# Copies bytes both ways between 127.0.0.1:9000 and the server, but for one bit of one byte.
_LIAR = """
import socket, threading
def copy(source, to, flip):
    while data := bytearray(source.recv(65536)):
        if flip and len(data) > 10: data[10] ^= 1
        to.sendall(data)
    to.shutdown(socket.SHUT_WR)
listener = socket.create_server(("127.0.0.1", 9000))
print("ready", flush=True)
while True:
    client, _ = listener.accept()
    server = socket.create_connection(("ADDRESS", 7000))
    for pair in ((client, server, True), (server, client, False)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


def _liar(setting: Setting, stack: ExitStack) -> Lane:
    address = setting.bare.server.address
    liar = stack.enter_context(setting.bare.client.start([sys.executable, "-c", _LIAR.replace("ADDRESS", address)]))
    stack.callback(liar.kill)
    assert liar.stdout is not None
    assert liar.stdout.readline() == "ready\n"
    return Lane(pair=setting.bare, dial=Endpoint(host="127.0.0.1", port=9000), crosses=APP_PORT)


def _astray(setting: Setting, stack: ExitStack) -> Lane:
    """Says that its bytes go to a tunnel, and they do not."""
    address = setting.bare.server.address
    return Lane(pair=setting.bare, dial=Endpoint(host=address, port=APP_PORT), crosses=15008)


@pytest.mark.parametrize(
    ("prepare", "text"),
    [(_liar, "came back changed"), (_astray, r"should go to .* port 15008, but open are: \[7000\]")],
)
def test_a_run_that_cannot_be_trusted_fails(prepare: object, text: str) -> None:
    plan = Plan(
        columns=(Column(name="odd", title="odd", prepare=prepare),),
        figures=tuple(figures([100], [1], [], 1)),
        baseline="odd",
        rounds=1,
        seconds=0.1,
        threads=1,
        held=(1,),
    )
    with pytest.raises(BenchError, match=f"^odd: .*{text}"):
        rounds.measure(plan, os.getpid(), lambda what: None)
    assert traces(os.getpid()) == []


@pytest.fixture
def running() -> Iterator[subprocess.Popen[bytes]]:
    """A long benchmark of all columns, whose agents and Envoys are up."""
    argv = command("--rounds", "1000", "--seconds", "5")
    with subprocess.Popen(argv, cwd=TOP, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            _until_measuring(process)
            yield process
        finally:
            process.kill()


def _until_measuring(process: subprocess.Popen[bytes]) -> None:
    """Its load clients are children named after their program; the first echo follows all preparation."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        for pid in children.read_text().split():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if words[1:2] == [b"echo"]:
                return
    pytest.fail(f"it ended early: {process.stderr.read().decode() if process.stderr else ''}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(running: subprocess.Popen[bytes], number: signal.Signals) -> None:
    assert traces(running.pid)
    running.send_signal(number)
    assert running.wait(timeout=60) == 130
    assert traces(running.pid) == []


def test_what_a_killed_one_left_is_removed_by_the_next(running: subprocess.Popen[bytes]) -> None:
    running.kill()
    running.wait(timeout=60)
    assert traces(running.pid)
    argv = command(*TINY, "--columns", "none")
    subprocess.run(argv, cwd=TOP, capture_output=True, check=True, timeout=120)
    assert traces(running.pid) == []


def test_the_load_program_is_compiled_where_the_command_looks_for_it() -> None:
    assert os.access(load.compiled(), os.X_OK)
