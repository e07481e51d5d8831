"""Every byte arrives, once, in order, or the application hears of an error: under load, beside slow readers, through
cuts of every kind."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.lab.cluster import Lab
from deploy.soak import peer
from tests.lab.objects import PORT, namespace, node, pod

PROGRAM = Path(peer.__file__).read_text()
EXCHANGE, FIRST, STUFF, DIE = "X", "F", "S", "D"
FLOWING, ENDED = "flowing", "ended"
SUMMARY = peer.SUMMARY.size


def python(*arguments: str) -> list[str]:
    return ["/usr/bin/python3", "-S", "-u", "-c", PROGRAM, *arguments]


SERVE = python("serve", str(PORT))
CLUSTER = (
    namespace("mesh", ambient=True, direct=False)
    + namespace("plain")
    + "".join(node(name) for name in ("n1", "n2", "n3", "n4"))
    + pod("client", "mesh", "n1", command=SERVE)
    + pod("server", "mesh", "n2", command=SERVE)
    + pod("neighbour", "mesh", "n2", command=SERVE)
    + pod("legacy", "plain", "n2", command=SERVE)
    + pod("outsider", "plain", "n1", command=SERVE)
    + pod("near", "mesh", "n3", command=SERVE)
    + pod("far", "mesh", "n4", command=SERVE)
)
NAMESPACES = {"legacy": "plain", "outsider": "plain"}
numbers = iter(range(1, 1 << 30))


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(CLUSTER)


def addresses(lab: Lab, name: str) -> list[str]:
    """IPv4 and IPv6."""
    return [entry["ip"] for entry in lab.pod(name, NAMESPACES.get(name, "mesh"))["status"]["podIPs"]]


class Talks:
    """Connections of one process in a pod; `result` has a connection's last line by its seed."""

    def __init__(self, lab: Lab, source: str, specs: list[dict[str, Any]]) -> None:
        command = python("talk", json.dumps(specs))
        self.specs = {spec["seed"]: spec for spec in specs}
        self.result: dict[int, dict[str, Any]] = {}
        self.seen: dict[str, set[int]] = {FLOWING: set(), ENDED: set(), "refused": set()}
        namespace = NAMESPACES.get(source, "mesh")
        self.process: subprocess.Popen[str] = lab.popen(source, command, namespace=namespace, pipe_input=True)

    def until(self, event: str, seeds: set[int] | None = None) -> None:
        """That it has happened to these connections, or to all."""
        wanted = set(self.specs) if seeds is None else seeds
        assert self.process.stdout is not None
        while not wanted <= self.seen[event]:
            line = self.process.stdout.readline()
            assert line, f"the client died: {self.process.communicate()[1]}"
            told = json.loads(line)
            self.result[told["seed"]] = told
            self.seen[told["event"]].add(told["seed"])
            assert not self.seen["refused"], told

    def release(self) -> None:
        """Those that `hold` read from now on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def check_whole(self, seeds: set[int] | None = None) -> None:
        self.until(ENDED, seeds)
        for seed in self.specs if seeds is None else seeds:
            spec, got = self.specs[seed], self.result[seed]
            size = spec.get("down", 0) + (SUMMARY if spec["mode"] == EXCHANGE else 0)
            assert got == {"event": ENDED, "seed": seed, "got": size, "exact": True, "eof": True, "errors": []}, spec

    def check_cut(self) -> None:
        """Each one ended in an error, after an exact prefix."""
        self.until(ENDED)
        for seed, spec in self.specs.items():
            got = self.result[seed]
            assert got["exact"], (got, spec)
            assert got["errors"], (got, spec)
            assert set(got["errors"]) <= {"ECONNRESET", "EPIPE"}, (got, spec)
            # The kernel tells an error once: a thread that reads after one that wrote has met it sees the end of file.
            assert not got["eof"] or spec["up"] == peer.ENDLESS, (got, spec)


@contextmanager
def talking(lab: Lab, source: str, specs: list[dict[str, Any]]) -> Iterator[Talks]:
    talks = Talks(lab, source, specs)
    try:
        yield talks
    finally:
        talks.process.kill()
        talks.process.communicate()


def to(ip: str, mode: str = EXCHANGE, **settings: object) -> dict[str, Any]:
    return {"seed": next(numbers), "to": ip, "port": PORT, "mode": mode, **settings}


def of_every_kind(lab: Lab, name: str) -> list[dict[str, Any]]:
    """Busy both ways; half-closed by the client, by the server; with nothing to say. Over IPv4 and IPv6."""
    kinds: list[dict[str, Any]] = [
        {"up": peer.ENDLESS, "down": peer.ENDLESS},
        {"up": 1000, "down": peer.ENDLESS},
        {"mode": FIRST, "up": peer.ENDLESS, "down": 1000},
        {"up": 1000, "down": 1000, "finish": False},
    ]
    return [to(ip, **kind) for ip in addresses(lab, name) for kind in kinds]


def served(lab: Lab, name: str, seeds: set[int]) -> dict[int, dict[str, Any]]:
    """What a server has told so far of its connections that ended."""
    text = lab.logs(name, namespace=NAMESPACES.get(name, "mesh")).read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('{"event": "served"')]
    return {line["seed"]: line for line in lines if line["seed"] in seeds}


def check_server_saw_cuts(lab: Lab, name: str, talks: Talks, until: Callable[..., None], seconds: float = 20) -> None:
    until(lambda: len(served(lab, name, set(talks.specs))) == len(talks.specs), seconds)
    for seed, got in served(lab, name, set(talks.specs)).items():
        spec = talks.specs[seed]
        assert got["exact"], (got, spec)
        assert got["errors"], (got, spec)
        ended = got["got"] == spec["up"] and spec.get("finish", True)
        assert not got["eof"] or ended or spec["down"] == peer.ENDLESS, (got, spec)


@pytest.fixture(scope="module", autouse=True)
def cut_off(lab: Lab) -> Iterator[Talks]:
    """Connections from `near` to `far`, whose node is cut off right away: it takes the agents their time to be sure,
    and other tests need not wait for that."""
    with talking(lab, "near", of_every_kind(lab, "far")) as talks:
        talks.until(FLOWING)
        lab.partition("n4")
        yield talks
    lab.partition("n4", healed=True)


@pytest.mark.parametrize("source", ["client", "neighbour"], ids=["cross-node", "same-node"])
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_64_connections_at_once_are_byte_exact(lab: Lab, source: str, family: int) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    ip = addresses(lab, "server")[family]

    def size() -> int:
        return rng.choice([0, 1, 16 << 10, 1 << 20, rng.randrange(64 << 10), rng.randrange(512 << 10)])

    specs = [to(ip, EXCHANGE if number % 2 else FIRST, up=size(), down=size()) for number in range(64)]
    with talking(lab, source, specs) as talks:
        talks.check_whole()
    for spec in specs:
        got = served(lab, "server", {spec["seed"]})[spec["seed"]]
        assert got["exact"] and got["eof"] and not got["errors"] and got["got"] == spec["up"], (got, spec)


@pytest.mark.parametrize("source", ["client", "neighbour"], ids=["cross-node", "same-node"])
def test_who_does_not_read_stalls_nobody_else(lab: Lab, source: str) -> None:
    ips = addresses(lab, "server")
    unread = [to(ip, down=24 << 20, hold=True) for ip in ips for _ in range(2)]
    slow = [to(ip, down=300 << 10, pause=0.01) for ip in ips]
    quick = [to(ip, mode, up=100_000, down=200_000) for ip in ips for mode in (EXCHANGE, FIRST) for _ in range(4)]
    with talking(lab, source, unread + slow) as stalled:
        stalled.until(FLOWING, {spec["seed"] for spec in slow})
        with talking(lab, source, quick) as talks:
            talks.check_whole()
        assert not stalled.seen[ENDED], "the slow readers were not slow: the test shows nothing"
        stalled.check_whole({spec["seed"] for spec in slow})
        assert stalled.seen[ENDED] == {spec["seed"] for spec in slow}
        stalled.release()
        stalled.check_whole()


@pytest.mark.parametrize(
    ("end", "victim", "pairs"),
    [
        # The source's agent; `legacy` is not in the mesh.
        (Lab.kill_agent, "n1", [("client", "server"), ("client", "legacy")]),
        # The destination's, or both; `outsider` is not in the mesh.
        (Lab.kill_agent, "n2", [("client", "server"), ("neighbour", "server"), ("outsider", "server")]),
        # The drain deadline passes while they are open.
        (Lab.restart_agent, "n2", [("client", "server"), ("neighbour", "server"), ("outsider", "server")]),
    ],
    ids=["source-killed", "destination-killed", "destination-stopped"],
)
def test_without_the_agent_connections_end_in_an_error_at_both_ends(
    lab: Lab, until: Callable[..., None], end: Callable[[Lab, str], None], victim: str, pairs: list[tuple[str, str]]
) -> None:
    with ExitStack() as stack:
        stack.callback(lab.restart_agent, victim)
        open_ = [
            (target, stack.enter_context(talking(lab, source, of_every_kind(lab, target)))) for source, target in pairs
        ]
        for _, talks in open_:
            talks.until(FLOWING)
        end(lab, victim)
        for target, talks in open_:
            talks.check_cut()
            check_server_saw_cuts(lab, target, talks, until)


@contextmanager
def serving(lab: Lab, name: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """A second server in a pod, which may die."""
    process = lab.popen(name, python("serve", str(port)), namespace="mesh")
    try:
        assert process.stdout is not None
        assert "serving" in process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("source", ["client", "neighbour"], ids=["cross-node", "same-node"])
def test_a_killed_application_is_the_error_it_would_be_without_a_mesh(lab: Lab, source: str) -> None:
    """With bytes that it has not read, its kernel sends RST."""
    specs = [
        to(ip, STUFF, up=up, down=100_000, finish=finish) | {"port": 9001}
        for ip in addresses(lab, "server")
        for up, finish in ((100_000, True), (100_000, False), (peer.ENDLESS, False))
    ]
    with serving(lab, "server", 9001) as server, talking(lab, source, specs) as talks:
        talks.until(FLOWING)
        with talking(lab, source, [to(addresses(lab, "server")[0], DIE) | {"port": 9001}]):
            server.wait(20)
        talks.check_cut()


def test_a_node_that_is_cut_off_is_an_error_at_both_ends(lab: Lab, cut_off: Talks, until: Callable[..., None]) -> None:
    cut_off.check_cut()
    check_server_saw_cuts(lab, "far", cut_off, until, 40)


def test_nobody_stumbled(lab: Lab) -> None:
    """After all of the above."""
    for target in ("node/n1", "node/n2", "node/n3", "node/n4"):
        text = lab.logs(target).read_text()
        assert "Traceback" not in text, text
        assert "INTERNAL" not in text
