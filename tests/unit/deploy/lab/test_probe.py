"""Probes: parameters, thresholds, and how an answer is judged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from deploy.lab.probe import Exec, HttpGet, Probe, TcpSocket, Verdict, ask, observe, parse

CONTAINER = {"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}


def test_parameters_and_their_defaults() -> None:
    probe = parse({"httpGet": {"port": "web"}}, CONTAINER, "10.0.0.2")
    assert probe == Probe(action=HttpGet(host="10.0.0.2", port=8080))
    assert (probe.period, probe.timeout, probe.success_threshold, probe.failure_threshold) == (10, 1, 1, 3)
    probe = parse(
        {
            "httpGet": {
                "port": 1,
                "path": "/h",
                "scheme": "HTTPS",
                "host": "h",
                "httpHeaders": [{"name": "A", "value": "b"}],
            },
            "periodSeconds": 2,
            "timeoutSeconds": 3,
            "initialDelaySeconds": 4,
            "successThreshold": 5,
            "failureThreshold": 6,
        },
        CONTAINER,
        "x",
    )
    action = HttpGet(host="h", port=1, path="/h", tls=True, headers=(("A", "b"),))
    assert probe == Probe(action=action, period=2, timeout=3, initial_delay=4, success_threshold=5, failure_threshold=6)
    tcp, command = (
        parse({"tcpSocket": {"port": 5}}, CONTAINER, "ip"),
        parse({"exec": {"command": ["a"]}}, CONTAINER, "ip"),
    )
    assert tcp and tcp.action == TcpSocket(host="ip", port=5)
    assert command and command.action == Exec(command=("a",))
    assert parse(None, CONTAINER, "ip") is None


# (success threshold, failure threshold, answers, verdict after each)
TABLE = [
    (1, 3, "", ""),
    (1, 3, "o", "+"),
    (1, 3, "xxx", "??-"),
    (1, 3, "oxxo", "++++"),
    (1, 3, "oxxxxo", "+++--+"),
    (2, 1, "oxoo", "?--+"),
    (3, 2, "xoxxooo", "???---+"),
]


@pytest.mark.parametrize(("success", "failure", "answers", "wanted"), TABLE)
def test_thresholds(success: int, failure: int, answers: str, wanted: str) -> None:
    probe = Probe(action=Exec(command=("x",)), success_threshold=success, failure_threshold=failure)
    verdict, seen = Verdict(), ""
    for answer in answers:
        verdict = observe(verdict, answer == "o", probe)
        seen += {True: "+", False: "-", None: "?"}[verdict.passed]
    assert seen == wanted


@pytest.fixture
async def server() -> AsyncIterator[tuple[int, dict[str, bytes]]]:
    """A port that answers what the test puts into `answer`, and keeps the request."""
    said = {"answer": b"", "request": b""}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said["request"] = await reader.readuntil(b"\r\n\r\n")
        writer.write(said["answer"])
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1], said


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.0 302 Found\r\n\r\n", ""),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP status 404"),
        (b"HTTP/1.1 503 Unavailable\r\n\r\n", "HTTP status 503"),
        (b"SSH-2.0-x\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 xyz\r\n", "not an HTTP answer"),
        (b"", "not an HTTP answer"),
        (b"x" * 100_000, "not an HTTP answer"),
    ],
)
async def test_http_answers(server: tuple[int, dict[str, bytes]], answer: bytes, why: str) -> None:
    port, said = server
    said["answer"] = answer
    found = await ask(HttpGet(host="127.0.0.1", port=port, path="/h", headers=(("Host", "me"), ("X", "y"))))
    assert found.endswith(why) and bool(found) == bool(why)
    assert said["request"].startswith(b"GET /h HTTP/1.1\r\nHost: me\r\nUser-Agent: kube-probe/")
    assert b"\r\nX: y\r\n" in said["request"]


async def test_connections(server: tuple[int, dict[str, bytes]]) -> None:
    port, _ = server
    assert await ask(TcpSocket(host="127.0.0.1", port=port)) == ""
    assert "refused" in (await ask(TcpSocket(host="127.0.0.1", port=1))).lower()
