"""Which agents the options mean, and what is said if there are none."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from ztunnel.cli.client import Agent, AgentUnreachable, Usage, find_agents


def labs(top: Path, **nodes: list[str]) -> Path:
    for lab, names in nodes.items():
        (top / lab / "nodes").mkdir(parents=True)
        for name in names:
            (top / lab / "nodes" / name).mkdir()
    (top / ".lab.lock").touch()
    return top


def found(top: Path, socket_path: str | None = None, lab: str | None = None, node: str | None = None,
          **environment: str) -> list[tuple[str, str]]:  # fmt: skip
    agents = find_agents(socket_path=socket_path, lab=lab, node=node, environment=environment, labs=top)
    return [(a.node, str(a.socket).removeprefix(f"{top}/")) for a in agents]


def test_the_only_lab_is_meant_with_all_its_nodes(tmp_path: Path) -> None:
    assert found(labs(tmp_path, mine=["node2", "node1"])) == [
        ("node1", "mine/nodes/node1/agent/admin.sock"),
        ("node2", "mine/nodes/node2/agent/admin.sock"),
    ]


def test_of_several_labs_the_one_named_lab_is_meant(tmp_path: Path) -> None:
    top = labs(tmp_path, other=["a"], lab=["b"])
    assert [node for node, _ in found(top)] == ["b"]
    assert [node for node, _ in found(top, lab="other")] == ["a"]


def test_options_win_over_the_environment(tmp_path: Path) -> None:
    top = labs(tmp_path, lab=["node1"])
    assert found(top, GOSSAMER_SOCKET="/a") == [("", "/a")]
    assert found(top, socket_path="/b", GOSSAMER_SOCKET="/a") == [("", "/b")]
    assert [node for node, _ in found(top, node="node1", GOSSAMER_SOCKET="/a")] == ["node1"]
    assert [node for node, _ in found(top, GOSSAMER_SOCKET="")] == ["node1"]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"socket_path": "/a", "lab": "lab"}, Usage, "give one or the other"),
        ({"lab": "nope"}, AgentUnreachable, "no lab named 'nope' is up: .*there are a, b: choose one with --lab"),
        ({"lab": "a", "node": "n9"}, Usage, "lab 'a' has no node 'n9'; it has n1"),
        ({}, AgentUnreachable, "there are a, b: choose one with --lab"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(tmp_path: Path, options: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        found(labs(tmp_path, a=["n1"], b=["n1"]), **options)


def test_who_may_not_look_is_told_so(tmp_path: Path) -> None:
    labs = tmp_path / "labs"
    (labs / "lab" / "nodes").mkdir(parents=True)
    (labs / "lab").chmod(0o700)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | 0o011)
    os.seteuid(65534)
    try:
        with pytest.raises(AgentUnreachable, match=r"labs/lab/nodes: Permission denied; .* run this with sudo"):
            find_agents(socket_path=None, lab=None, node=None, environment={}, labs=labs)
    finally:
        os.seteuid(0)


def test_without_any_lab_the_cure_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentUnreachable, match="bring one up with `make lab`"):
        found(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "no agent answers at .*Remote end closed"),
        (b"garbage\r\n\r\n", "no agent answers at"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nboom", "answered GET /status with 500: boom"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nboom", "the answer is no JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "no JSON object"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", "no agent answers at"),
    ],
)
def test_an_answer_that_is_none(tmp_path: Path, answer: bytes, said: str) -> None:
    with pytest.raises(AgentUnreachable, match=said):
        _ask(tmp_path, answer)


def test_a_good_answer(tmp_path: Path) -> None:
    body = json.dumps({"ready": True}).encode()
    assert _ask(tmp_path, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) == {"ready": True}


def _ask(tmp_path: Path, answer: bytes) -> dict:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return Agent(node="node1", socket=path).get("/status")
        finally:
            thread.join(20)
