"""The commands as people and scripts run them: a process of its own against a served agent."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpf.facts import Description, MapFacts, ProgramFacts
from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.unit.ztunnel.served import Served, served
from tests.unit.ztunnel.small_agent import (
    PRODUCTPAGE,
    SmallAgent,
    SmallController,
    SmallOlder,
    certificate,
    inbound,
    outbound,
)

PROGRAM = """
import argparse, sys
from ztunnel.cli import register
parser = argparse.ArgumentParser(prog="gossamer")
register(parser.add_subparsers(required=True))
options = parser.parse_args()
sys.exit(options.run(options))
"""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


async def gossamer(*arguments: str | Path, **environment: str) -> Ran:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[4])} | environment,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


def busy_agent() -> SmallAgent:
    agent = SmallAgent(
        held=[certificate(PRODUCTPAGE.identity, days=0.5)],
        before=[
            SmallOlder(
                pod="uid-productpage",
                inbound=True,
                local=SocketAddress("10.10.0.2", 9080),
                remote=SocketAddress("10.10.9.9", 50000),
            )
        ],
        counters={Reason.AGENT_ABSENT: 7, Reason.MAP_FULL: 0},
        described=Description(
            layout="0123456789abcdef",
            programs=(
                ProgramFacts(name="connect4", id=11, tag="00112233445566aa", attach="cgroup", target=77, link=5),
            ),
            maps=(MapFacts(name="flows", type="hash", entries=50, max=200),),
        ),
    )
    agent.open(outbound(1))
    agent.open(inbound(2, source=None, source_identity=None, hbone=None))
    agent.moved.update({1: (1536, 5 << 20), 2: (12, 0)})
    return agent


@pytest.fixture
async def at(tmp_path: Path):
    async with served(tmp_path, busy_agent()) as at:
        yield at


async def test_status(at: Served) -> None:
    ran = await gossamer("status", "--socket", at.socket)
    assert ran.code == 0, ran.err
    assert ran.lines[0].split() == [
        "NODE", "READY", "CONTROLLER", "SNAPSHOT", "ENROLLED", "CERTIFICATES", "IN", "OUT", "OLDER", "UP", "VERSION",
    ]  # fmt: skip
    row = ran.lines[1].split()
    assert row[:9] == ["node1", "yes", "connected", "1", "1/1", "1/1", "1", "1", "1"]
    assert row[-1] == "1.2.3"
    assert any(line.split()[:4] == ["node1", "default", "productpage-v1-0", "enabled"] for line in ran.lines)


@pytest.mark.parametrize("trouble", ["pending", "controller"])
async def test_status_says_3_when_something_is_wrong_and_what(at: Served, trouble: str) -> None:
    if trouble == "pending":
        at.agent.waits_for, said = ["bpf programs"], "node1: bpf programs"
    else:
        at.agent.controller = SmallController(connected=False, error="timed out")
        said = "node1: controller 10.130.0.2:15012: disconnected: timed out; the last state it sent stays in force"
    ran = await gossamer("status", "--socket", at.socket)
    assert ran.code == 3
    assert said in ran.lines
    as_json = await gossamer("status", "--socket", at.socket, "-o", "json")
    assert as_json.code == 3
    assert json.loads(as_json.out)[0]["node"] == "node1"


async def test_workloads(at: Served) -> None:
    ran = await gossamer("workloads", "--socket", at.socket, "--namespace", "default")
    assert ran.code == 0, ran.err
    assert len(ran.lines) == 3
    identity = "cluster.local/ns/default/sa/bookinfo-productpage"
    assert ran.lines[1].split() == [
        "node1", "default", "productpage-v1-0", "10.10.0.2,fd00::2", "node1", "HBONE", "HEALTHY", identity, "-",
    ]  # fmt: skip
    as_json = json.loads((await gossamer("workloads", "--socket", at.socket, "-o", "json", "--pod", "old-0")).out)
    assert [(w["agent"], w["name"], w["protocol"], w["status"]) for w in as_json] == [
        ("node1", "old-0", "NONE", "UNHEALTHY")
    ]


async def test_services(at: Served) -> None:
    ran = await gossamer("services", "--socket", at.socket)
    assert ran.lines[1].split() == [
        "node1", "default", "reviews", "10.70.0.20", "9080→8080", "1/2", "reviews.default.svc.cluster.local",
    ]  # fmt: skip
    assert (await gossamer("services", "--socket", at.socket, "-n", "nowhere")).out == "no services\n"
    assert json.loads((await gossamer("services", "--socket", at.socket, "-n", "nowhere", "-o", "json")).out) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("connections", "--pod", "nope"), "gossamer connections: no agent knows pod 'nope'; "),
        (("workloads", "--pod", "old-0", "-n", "nope"), "no agent knows pod 'old-0' in namespace 'nope'; "),
        (("status", "-n", "nope", "-o", "json"), "no agent knows namespace 'nope'; "),
        (("certificates", "--pod", "old-0"), ""),  # known, and has none
        (("connections", "--pod", "productpage-v1-0"), ""),
    ],
)
async def test_a_filter_for_what_no_agent_knows_is_said(at: Served, arguments: tuple[str, ...], said: str) -> None:
    ran = await gossamer(*arguments, "--socket", at.socket)
    assert ran.code == 0 and said in ran.err and bool(said) == bool(ran.err)


async def test_certificates(at: Served) -> None:
    ran = await gossamer("certificates", "--socket", at.socket)
    row = ran.lines[1].split()
    assert row[:3] == ["node1", "cluster.local/ns/default/sa/bookinfo-productpage", "valid"]
    assert row[3].startswith("11h")
    assert "KEY" not in ran.out.upper()
    assert (await gossamer("certificates", "--socket", at.socket, "-n", "legacy")).out == "no certificates\n"
    assert len((await gossamer("certificates", "--socket", at.socket, "--pod", "productpage-v1-0")).lines) == 2


async def test_connections(at: Served) -> None:
    ran = await gossamer("connections", "--socket", at.socket)
    assert ran.code == 0, ran.err
    header, first, second, _, title, _, older = ran.lines
    columns = [column.strip() for column in header.split("  ") if column.strip()]
    assert columns == [
        "NODE", "DIRECTION", "SOURCE", "DESTINATION", "SERVICE", "PROTOCOL", "SENT", "RECEIVED", "AGE",
        "SOURCE IDENTITY", "DESTINATION IDENTITY",
    ]  # fmt: skip
    assert "default/productpage-v1-0 10.10.0.2:40000" in first
    assert "1.5 KiB" in first
    assert "5.0 MiB" in first
    assert "cluster.local/ns/default/sa/bookinfo-productpage" in first
    for column in ("SERVICE", "PROTOCOL"):  # aligned: a cell begins where its column's title does
        assert first[header.index(column) - 1] == second[header.index(column) - 1] == " "
        assert first[header.index(column)] != " "
    assert second[header.index("PROTOCOL") :].startswith("TCP")
    assert title == "Older than the pod's enrolment: outside the mesh"
    assert older.split() == ["node1", "default", "productpage-v1-0", "inbound", "10.10.0.2:9080", "10.10.9.9:50000"]


async def test_connections_of_a_pod_are_those_with_it_at_either_end(at: Served) -> None:
    for pod, expected in (("productpage-v1-0", [1]), ("reviews-v2-0", [1, 2]), ("other", [])):
        ran = await gossamer("connections", "--socket", at.socket, "--pod", pod, "-n", "default", "-o", "json")
        (answer,) = json.loads(ran.out)
        assert [c["id"] for c in answer["connections"]] == expected, pod


async def test_bpf(at: Served) -> None:
    ran = await gossamer("bpf", "--socket", at.socket)
    rows = [line.split() for line in ran.lines]
    assert ["node1", "connect4", "11", "cgroup", "77", "5", "00112233445566aa"] in rows
    assert ["node1", "flows", "hash", "50", "200", "25%"] in rows
    assert any(row[:3] == ["node1", "AGENT_ABSENT", "7"] for row in rows)
    assert "MAP_FULL" not in ran.out, "a counter that never counted is noise in a table"
    (answer,) = json.loads((await gossamer("bpf", "--socket", at.socket, "-o", "json")).out)
    assert {c["reason"]: c["count"] for c in answer["counters"]} == {"AGENT_ABSENT": 7, "MAP_FULL": 0}


async def test_the_environment_names_a_socket(at: Served) -> None:
    assert (await gossamer("status", GOSSAMER_SOCKET=str(at.socket))).code == 0


async def test_no_agent_is_1_and_names_socket_and_cure(tmp_path: Path) -> None:
    ran = await gossamer("workloads", "--socket", tmp_path / "admin.sock")
    assert (ran.code, ran.out) == (1, "")
    assert f"no agent answers at {tmp_path / 'admin.sock'}: No such file or directory; is the agent running?" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--socket", "/x", "--node", "node1"],
        ["status", "-o", "xml"],
        ["connections", "-w", "0"],
        ["connections", "-w", "often"],
        ["services", "--pod", "p"],
        ["nonsense"],
        [],
    ],
)
async def test_wrong_usage_is_2(arguments: list[str]) -> None:
    ran = await gossamer(*arguments)
    assert ran.code == 2
    assert ran.err


@pytest.mark.parametrize("command", ["status", "workloads", "services", "certificates", "connections", "bpf"])
async def test_help_has_examples_and_exit_codes(command: str) -> None:
    ran = await gossamer(command, "--help")
    assert ran.code == 0
    assert f"  gossamer {command}" in ran.out
    assert "exit codes: 0 " in ran.out


async def test_watch_shows_again_until_interrupted(at: Served) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, "connections", "--socket", str(at.socket), "-w", "0.1", "-o", "json",
        stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": str(Path(__file__).parents[4])},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            before = json.loads(await process.stdout.readline())
            at.agent.moved[1] = (4096, 0)
            while json.loads(await process.stdout.readline())[0]["connections"][0]["bytes_sent"] != 4096:
                pass
        assert before[0]["connections"][0]["bytes_sent"] == 1536
        process.send_signal(2)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_starts_without_the_server_side() -> None:
    """The first line must be on the screen at once."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys, ztunnel.cli; print(*sorted(sys.modules))", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    loaded = set(out.decode().split())
    assert "ztunnel.cli.commands" in loaded
    assert not loaded & {"aiohttp", "asyncio", "prometheus_client", "cryptography", "rich", "msgspec"}
