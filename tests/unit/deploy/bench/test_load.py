"""The load program against its own server, and against servers that lie to it."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.bench.load import compiled, words

WRONG_BYTES, USAGE, BROKEN, TOO_SLOW = 1, 2, 3, 4


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=["no", "yes"], ids=["epoll", "blocking"])
def blocking(request: pytest.FixtureRequest) -> str:
    """Both ends of the load in either style."""
    style: str = request.param
    return style


@pytest.fixture
def port(program: Path, blocking: str) -> Iterator[int]:
    """A load server's."""
    argv = [program, *words("server", port=0, blocking=blocking)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())["listening"]
        server.kill()


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)


def answer(program: Path, command: str, port: int, **options: str | float) -> dict[str, Any]:
    done = run(program, *words(command, port=port, **options))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(program: Path, command: str, port: int, **options: str | float) -> tuple[dict[str, Any], float]:
    """In a moment, or in a longer one where the machine is so busy that nothing came in the first; and its seconds."""
    for seconds in (0.2, 2.0):
        done = run(program, *words(command, port=port, seconds=seconds, **options))
        if done.returncode == 0:
            return json.loads(done.stdout), seconds
        assert done.returncode == TOO_SLOW, done.stderr
    return answer(program, command, port, seconds=20.0, **options), 20.0


def test_compiled_once(tmp_path: Path) -> None:
    first = compiled(tmp_path)
    stamp = first.stat().st_mtime_ns
    assert compiled(tmp_path) == first
    assert first.stat().st_mtime_ns == stamp
    assert list(tmp_path.iterdir()) == [first]


def test_a_load_that_is_pinned_stays_on_its_cpu(program: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    with subprocess.Popen([program, *words("server", port=0, cpu=cpu)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert json.loads(server.stdout.readline())["listening"]
        assert os.sched_getaffinity(server.pid) == {cpu}
        server.kill()


def test_there_is_no_such_cpu(program: Path) -> None:
    cpu = max(os.sched_getaffinity(0)) + 512
    done = run(program, *words("server", port=0, cpu=cpu))
    assert (done.returncode, f"--cpu {cpu}" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "options",
    [
        {"connections": 1, "size": 1},
        {"connections": 3, "size": 100},
        {"connections": 2, "size": 1_000_000},  # larger than socket buffers: both ends have bytes that must wait
        {"connections": 8, "size": 4096, "threads": 3},
    ],
    ids=str,
)
def test_echo(program: Path, port: int, blocking: str, options: dict[str, int]) -> None:
    found, seconds = measured(program, "echo", port, blocking=blocking, **options)
    assert 0 < found["messages"] <= found["total_messages"]
    latency = found["latency_us"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p999"] <= latency["max"] * 1.01
    assert found["rate"] == pytest.approx(found["messages"] / seconds, rel=0.01)


def test_stream_counts_what_the_receiver_confirmed(program: Path, port: int, blocking: str) -> None:
    found, _ = measured(program, "stream", port, connections=2, blocking=blocking)
    assert found["bytes"] > 1_000_000
    assert found["gbit_per_s"] == pytest.approx(found["bytes"] * 8 / found["seconds"] / 1e9, rel=0.01)


def test_connects(program: Path, port: int, blocking: str) -> None:
    found, _ = measured(program, "connects", port, connections=2, blocking=blocking)
    assert found["connects"] > 0
    assert found["latency_us"]["p50"] > 0


@pytest.mark.parametrize("first", ["client", "server"])
def test_connects_are_counted_and_paced(program: Path, port: int, blocking: str, first: str) -> None:
    options = {"connections": 4, "first": first, "blocking": blocking}
    found = answer(program, "connects", port, seconds=30, count=101, rate=500, **options)
    assert found["connects"] == 101
    assert found["seconds"] >= 0.2
    found = answer(program, "connects", port, seconds=0.2, rate=100, **options)
    assert found["connects"] <= 20


def test_hold_keeps_connections_until_stdin_ends(program: Path, port: int) -> None:
    argv = [program, *words("hold", port=port, connections=5)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdin is not None
        assert held.stdout is not None
        assert json.loads(held.stdout.readline()) == {"ready": 5}
        assert held.poll() is None
        held.stdin.close()
        assert json.loads(held.stdout.readline())["figure"] == "hold"
        assert held.wait(timeout=30) == 0


@pytest.mark.parametrize("size", [1, 4096])
def test_stuff_fills_a_reader_that_never_reads(program: Path, port: int, size: int) -> None:
    argv = [program, *words("stuff", port=port, connections=2, size=size)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        found = json.loads(writer.stdout.readline())
        assert found["ready"] == 2
        assert found["bytes"] > 65536
        assert writer.poll() is None
        writer.stdin.close()
        assert writer.wait(timeout=30) == 0


def test_watched_connections_say_when_and_how_they_were_ended(program: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        argv = [program, *words("watch", port=number, connections=4)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watch:
            assert watch.stdout is not None
            served = []
            for _ in range(4):
                client, _ = listener.accept()
                client.sendall(_read(client, 100))
                served.append(client)
            assert json.loads(watch.stdout.readline()) == {"ready": 4}
            for busy in (served[1], served[3]):
                busy.sendall(_read(busy, 100))
                assert len(_read(busy, 100)) == 100
            before = time.monotonic_ns()
            served[0].close()  # in order
            for other in served[1:]:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                other.close()
            said = json.loads(watch.stdout.readline())
            assert watch.wait(timeout=30) == 0
    assert (said["idle"]["connections"], said["idle"]["errors"]) == (2, 1)
    assert (said["busy"]["connections"], said["busy"]["errors"]) == (2, 2)
    assert all(before < said[half]["last_ns"] < time.monotonic_ns() for half in said)


def _read(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


def _flip(client: socket.socket) -> None:
    data = bytearray(_read(client, 100))
    data[57] ^= 1
    client.sendall(data)


def _flip_early(client: socket.socket) -> None:
    data = bytearray(_read(client, 16))
    data[7] ^= 1
    client.sendall(data)


def _swap_messages(client: socket.socket) -> None:
    first = _read(client, 100)
    client.sendall(first)
    _read(client, 100)
    client.sendall(first)


def _too_much(client: socket.socket) -> None:
    client.sendall(_read(client, 100))
    client.sendall(_read(client, 100) + b"x")


def _cut(client: socket.socket) -> None:
    client.sendall(_read(client, 100)[:40])


def _cut_short(client: socket.socket) -> None:
    client.sendall(_read(client, 16)[:4])


def _summary(count_off: int, bad: int) -> Callable[[socket.socket], None]:
    def lie(client: socket.socket) -> None:
        count = 0
        while more := client.recv(1 << 20):
            count += len(more)
        client.sendall((count + count_off).to_bytes(8, "little") + bad.to_bytes(8, "little"))

    return lie


LIARS = [
    ("echo", _flip, WRONG_BYTES, "came back changed"),
    ("echo", _swap_messages, WRONG_BYTES, "wrong bytes"),
    ("echo", _too_much, WRONG_BYTES, "wrong bytes"),
    ("echo", _cut, BROKEN, "ended 60 bytes early"),
    ("connects", _cut_short, BROKEN, "ended 12 bytes early"),
    ("connects", _flip_early, WRONG_BYTES, "came back changed"),
    ("stream", _summary(-1, 0), WRONG_BYTES, "arrived"),
    ("stream", _summary(0, 4097), WRONG_BYTES, "offset 4096"),
]


@pytest.mark.parametrize(("command", "lie", "status", "text"), LIARS, ids=[f"{c}-{t}" for c, _, _, t in LIARS])
def test_a_server_that_lies_is_found_out(
    program: Path, blocking: str, command: str, lie: Callable[[socket.socket], None], status: int, text: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                lie(client)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 20):
                    continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        done = run(
            program, *words(command, port=listener.getsockname()[1], connections=1, seconds=0.2, blocking=blocking)
        )
        thread.join(timeout=30)
    assert (done.returncode, done.stdout) == (status, "")
    assert text in done.stderr


def test_the_server_finds_bytes_that_moved_in_a_stream(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"S" + bytes(999))  # not the pattern
        client.shutdown(socket.SHUT_WR)
        summary = _read(client, 16)
    assert int.from_bytes(summary[:8], "little") == 1000
    assert 0 < int.from_bytes(summary[8:], "little") <= 3


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("dance", "--port", "1"),
        ("echo",),
        ("echo", "--port", "0"),
        ("echo", "--port", "7", "--seconds", "nan"),
        ("echo", "--port", "7", "--host", "nowhere"),
    ],
    ids=str,
)
def test_wrong_usage(program: Path, arguments: tuple[str, ...]) -> None:
    done = run(program, *arguments)
    assert done.returncode == USAGE
    assert done.stderr.startswith("load")
