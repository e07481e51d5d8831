"""A new agent takes over from one that lives: nothing is refused, streams drain, policy goes on, and each may die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from deploy.lab import agents, cgroup
from deploy.lab.cluster import Lab
from deploy.lab.fault import LabError
from deploy.lab.manifest import Key
from tests.lab.objects import namespace, node, pod
from tests.lab.talk import SERVER as TALKER
from tests.lab.talk import Talk, applied, ask, ip, live, reaches, talk, until
from ztunnel.handover.channel import Channel, close_all
from ztunnel.handover.giver import descriptors_of
from ztunnel.handover.heir import SOCKET, claim
from ztunnel.handover.message import Answer, Ask, Outcome

# Echoes each line; to "hash" it answers with the digest of all that came before.
ECHO = """
import asyncio, hashlib, socket
async def serve(reader, writer):
    digest = hashlib.sha256()
    try:
        while data := await reader.readline():
            if data == b"hash\\n":
                data = digest.hexdigest().encode() + b"\\n"
            else:
                digest.update(data)
            writer.write(data)
            await writer.drain()
        writer.close()
    except OSError:
        pass
async def main():
    listener = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    await (await asyncio.start_server(serve, sock=listener, limit=1 << 20)).serve_forever()
asyncio.run(main())
"""
# Short connections at a steady rate until stdin ends; then how many there were, and what failed.
LOAD = """
import json, socket, sys, threading, time
host, port, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
THREADS = 6
failures, counts, over = [], [0] * THREADS, threading.Event()
def work(number):
    due = time.monotonic() + number / rate
    while not over.is_set():
        time.sleep(max(0, due - time.monotonic()))
        due += THREADS / rate
        began = time.time()
        try:
            with socket.create_connection((host, port), timeout=30) as s:
                s.sendall(b"hello %d\\n" % number)
                answer = s.recv(100)
                if answer != b"hello %d\\n" % number: raise EOFError(answer)
        except Exception as error:
            failures.append(f"{began:.3f} +{time.time() - began:.3f} {type(error).__name__} {error}")
        counts[number] += 1
threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
for t in threads: t.start()
print("begun", flush=True)
sys.stdin.read()
over.set()
for t in threads: t.join()
print(json.dumps({"count": sum(counts), "failures": failures}), flush=True)
"""
# A stream of random lines for some seconds; whether all came back, and the server has the same digest.
STREAM = """
import hashlib, os, socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30)
file, digest, end = s.makefile("rwb"), hashlib.sha256(), time.monotonic() + float(sys.argv[3])
print("begun", flush=True)
lines = 0
while time.monotonic() < end:
    line = os.urandom(2000).hex().encode() + b"\\n"
    file.write(line); file.flush()
    assert file.readline() == line
    digest.update(line)
    lines += 1
file.write(b"hash\\n"); file.flush()
print("whole" if file.readline().decode().strip() == digest.hexdigest() else "broken", lines, flush=True)
"""
CLUSTER = (
    namespace("mesh", ambient=True)
    + namespace("plain")
    + node("n1")
    + node("n2")
    + pod("client", "mesh", "n1")
    + pod("local", "mesh", "n1", ECHO)
    + pod("remote", "mesh", "n2", ECHO)
    + pod("talker", "mesh", "n2", TALKER)
    + pod("outsider", "plain", "n2")
)
PORT = 9000
RATE = 60.0  # connections per second and direction
SHORT = ("--drain", "4", "--direct", "on")
LONG = ("--drain", "60", "--direct", "on")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(CLUSTER)
    for name in ("n1", "n2"):
        made.restart_agent(name, arguments=SHORT)
    return made


def running(lab: Lab, name: str) -> list[int]:
    return cgroup.processes(lab.layout.node_cgroup(name) / "agent")


def current(lab: Lab, name: str) -> int:
    """The process that serves."""
    return int(ask(lab, name, "/status")["pid"])


def end_of(lab: Lab, name: str, pid: int) -> None:
    until(lambda: pid not in running(lab, name), seconds=90)


@contextmanager
def load(lab: Lab, source: str, space: str, to: str, rate: float = RATE) -> Iterator[dict]:
    """Short connections all the while; afterwards the dictionary has `count` and `failures`."""
    process = lab.popen(
        source, ["/usr/bin/python3", "-S", "-u", "-c", LOAD, to, str(PORT), str(rate)], namespace=space, pipe_input=True
    )
    result: dict = {}
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield result
        out, err = process.communicate("", timeout=120)
        assert process.returncode == 0, err
        result |= json.loads(out)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def stream(lab: Lab, seconds: float) -> Iterator[subprocess.Popen[str]]:
    to = ip(lab, "remote")
    process = lab.popen(
        "client", ["/usr/bin/python3", "-S", "-u", "-c", STREAM, to, str(PORT), str(seconds)], namespace="mesh"
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def talking(lab: Lab) -> AbstractContextManager[Talk]:
    return talk(lab, "client", to=ip(lab, "talker"), port=PORT)


def test_no_connection_is_refused_while_both_agents_are_replaced_again_and_again(lab: Lab) -> None:
    remote, local = ip(lab, "remote"), ip(lab, "local")
    with (
        load(lab, "client", "mesh", remote) as outgoing,
        load(lab, "remote", "mesh", local) as incoming,
        load(lab, "client", "mesh", local) as direct,
        load(lab, "outsider", "plain", local) as plaintext,
    ):
        for _ in range(4):
            for name in ("n1", "n2"):
                before = current(lab, name)
                lab.restart_agent(name, arguments=SHORT)
                assert current(lab, name) != before
    print({"out": outgoing["count"], "in": incoming["count"], "direct": direct["count"], "plain": plaintext["count"]})
    for kind, result in {
        "tunnelled out": outgoing,
        "tunnelled in": incoming,
        "direct": direct,
        "plaintext": plaintext,
    }.items():
        assert result["failures"] == [], f"{kind}: {len(result['failures'])} of {result['count']}"
        assert result["count"] > 100, kind


def test_streams_that_end_before_the_deadline_are_whole_and_others_end_at_it(lab: Lab) -> None:
    for name in ("n1", "n2"):
        lab.restart_agent(name, arguments=("--drain", "15", "--direct", "on"))
    with stream(lab, 2.5) as short, talking(lab) as long:
        old, began = {name: current(lab, name) for name in ("n1", "n2")}, time.monotonic()
        for name in ("n1", "n2"):
            lab.restart_agent(name, arguments=SHORT)
        assert long.says("still") == "got still"
        assert short.stdout is not None
        verdict, lines = short.stdout.readline().split()
        assert verdict == "whole" and int(lines) > 10
        assert long.heard().startswith("end ")
        assert time.monotonic() - began >= 15, "the drain deadline was not waited for"
        for name, pid in old.items():
            end_of(lab, name, pid)


def test_an_agent_that_was_replaced_can_be_looked_at_and_leaves_nothing(lab: Lab) -> None:
    lab.restart_agent("n1", arguments=LONG)
    with talking(lab) as long:
        old = current(lab, "n1")
        lab.restart_agent("n1", arguments=SHORT)
        aside = lab.layout.agent_dir("n1") / f"draining-{old}.sock"
        until(aside.exists)
        listed = agents.ask_socket(aside, "/connections")["connections"]
        assert [c["source"]["pod"] for c in listed] == ["client"]
        assert live(lab, "n1", "client") == []
        assert long.says("still") == "got still"
    end_of(lab, "n1", old)
    assert not aside.exists()
    left = {path.name for path in lab.layout.agent_dir("n1").iterdir()}
    assert left == {"admin.sock", SOCKET, "boot", "snapshot.jsonl"}


def test_for_a_supervisor_that_starts_again_what_exits_a_replaced_agent_waits(lab: Lab) -> None:
    lab.restart_agent("n1", arguments=("--drain", "0", "--replaced", "wait"))
    old = current(lab, "n1")
    lab.restart_agent("n1", arguments=SHORT)
    until(lambda: "stopping: " in lab.logs("node/n1").read_text().rpartition("handing over")[2])
    time.sleep(1)
    assert old in running(lab, "n1")
    os.kill(old, signal.SIGTERM)
    end_of(lab, "n1", old)
    assert reaches(lab, "client", to=ip(lab, "talker"), port=PORT)


def test_policy_that_is_tightened_while_an_agent_drains_ends_its_streams(lab: Lab) -> None:
    lab.restart_agent("n2", arguments=LONG)
    policy = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: mesh}
spec:
  selector: {matchLabels: {app: talker}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]}]
"""
    with talking(lab) as long:
        old = current(lab, "n2")
        lab.restart_agent("n2", arguments=SHORT)
        assert long.says("still") == "got still"
        began = time.monotonic()
        with applied(lab, policy, Key("AuthorizationPolicy", "mesh", "closed")):
            assert long.heard().startswith("end ")
            assert time.monotonic() - began < 30, "it ended with the drain deadline, not with its permission"
    end_of(lab, "n2", old)


def test_killing_the_old_agent_ends_its_own_streams_alone(lab: Lab) -> None:
    lab.restart_agent("n1", arguments=LONG)
    with talking(lab) as old_stream:
        old = current(lab, "n1")
        lab.restart_agent("n1", arguments=SHORT)
        with talking(lab) as new_stream, load(lab, "client", "mesh", ip(lab, "remote")) as result:
            os.kill(old, signal.SIGKILL)
            assert old_stream.heard().startswith("end ")
            assert new_stream.says("still") == "got still"
        assert result["failures"] == []


def has_taken_over(lab: Lab, old: int) -> bool:
    """Whether `old` drains or has ended; it takes a moment to show."""
    time.sleep(1)
    return old not in running(lab, "n1") or (lab.layout.agent_dir("n1") / f"draining-{old}.sock").exists()


def test_killing_the_new_agent_while_it_prepares_changes_nothing(lab: Lab) -> None:
    before = current(lab, "n1")
    with talking(lab) as conversation, load(lab, "client", "mesh", ip(lab, "remote")) as result:
        for delay in (0.0, 0.3, 0.6, 0.9):
            agents.start_agent(lab.layout, lab.node("n1"), arguments=SHORT, beside=True)
            time.sleep(delay)  # somewhere on its way
            (new,) = set(running(lab, "n1")) - {before}
            os.kill(new, signal.SIGSTOP)
            if has_taken_over(lab, before):
                os.kill(new, signal.SIGCONT)
                break  # the machine was fast
            os.kill(new, signal.SIGKILL)
            until(lambda: (ask(lab, "n1", "/status") or {}).get("pid") == before)
        assert conversation.says("still") == "got still"
    assert result["failures"] == []


def test_an_heir_that_dies_with_all_in_hand_leaves_the_old_agent_serving(lab: Lab) -> None:
    before = current(lab, "n2")
    with (
        talking(lab) as conversation,
        load(lab, "client", "mesh", ip(lab, "remote")) as tunnelled,
        load(lab, "outsider", "plain", ip(lab, "remote")) as plaintext,
    ):
        for _ in range(3):
            inherited = claim(lab.layout.agent_dir("n2"))
            assert inherited is not None
            assert {one.estate.instance for one in inherited.pods.values()} == {
                lab.pod(name, "mesh")["metadata"]["uid"] for name in ("remote", "talker")
            }
            inherited.channel.close()
            for one in inherited.pods.values():
                close_all(descriptors_of(one.listeners))
            close_all(list(inherited.sockets.values()))
            until(lambda: ask(lab, "n2", "/status") is not None)
        assert conversation.says("still") == "got still"
    assert current(lab, "n2") == before
    assert tunnelled["failures"] == plaintext["failures"] == []
    until(lambda: ask(lab, "n2", "/status")["controller"]["state"] == "connected")
    assert ask(lab, "n2", "/status")["ready"]


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "given up"])
def test_an_agent_that_is_stopped_while_it_hands_over_first_learns_whose_all_is(lab: Lab, taken: bool) -> None:
    lab.restart_agent("n2", arguments=LONG)
    old, aside = current(lab, "n2"), lab.layout.agent_dir("n2") / f"draining-{current(lab, 'n2')}.sock"

    def stopping() -> bool:
        return "stopping: " in lab.logs("node/n2").read_text().rpartition("handing over")[2]

    with talking(lab) as conversation:
        inherited = claim(lab.layout.agent_dir("n2"))
        assert inherited is not None
        os.kill(old, signal.SIGTERM)
        time.sleep(1)
        assert not stopping()
        if taken:
            inherited.confirm()
            until(aside.exists)  # it obeys its successor meanwhile
        else:
            inherited.channel.close()
            until(stopping)
        assert conversation.says("still") == "got still"
        for one in inherited.pods.values():
            close_all(descriptors_of(one.listeners))
        close_all(list(inherited.sockets.values()))
    end_of(lab, "n2", old)
    assert not aside.exists()
    lab.restart_agent("n2", arguments=SHORT)
    assert reaches(lab, "client", to=ip(lab, "talker"), port=PORT)


def test_an_agent_that_cannot_start_leaves_the_old_one_serving(lab: Lab) -> None:
    before = current(lab, "n1")
    with pytest.raises(LabError, match="has not taken over"):
        lab.restart_agent("n1", arguments=("--drain", "for ever"))
    assert current(lab, "n1") == before
    assert reaches(lab, "client", to=ip(lab, "talker"), port=PORT)


def test_an_agent_of_another_version_makes_the_old_one_end_first(lab: Lab) -> None:
    old = current(lab, "n1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(lab.layout.agent_dir("n1") / SOCKET))
        channel = Channel(sock)
        channel.send(Ask(version="another"), seconds=10)
        answer, _ = channel.receive(seconds=30)
        assert isinstance(answer, Answer) and answer.outcome is Outcome.END_FIRST
        assert "another" in answer.why
        channel.await_end()
    end_of(lab, "n1", old)
    assert running(lab, "n1") == []
    lab.restart_agent("n1", arguments=SHORT)
    assert reaches(lab, "client", to=ip(lab, "talker"), port=PORT)


def test_what_the_kernel_may_do_without_asking_survives(lab: Lab) -> None:
    """An answer made because a pod asked is neither lost nor made anew: the generation stays."""
    policy = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: some, namespace: mesh}
spec:
  selector: {matchLabels: {app: local}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]}]
"""
    to = ip(lab, "local")

    def verdicts() -> int:
        return next(m["entries"] for m in ask(lab, "n1", "/bpf")["maps"] if m["name"] == "verdicts")

    def connects() -> None:
        command = ["/usr/bin/python3", "-c", f"import socket; socket.create_connection(('{to}', {PORT}), 20)"]
        lab.exec("client", command, namespace="mesh", check=True)

    with applied(lab, policy, Key("AuthorizationPolicy", "mesh", "some")):
        until(lambda: ask(lab, "n1", "/status")["snapshot"]["policies"] == 1)
        until(lambda: (connects(), verdicts())[1] == 1)
        lab.restart_agent("n1", arguments=SHORT)
        assert verdicts() == 1


def test_ten_replacements_cost_no_descriptor_and_no_memory(lab: Lab) -> None:
    def held() -> tuple[int, int]:
        pid = current(lab, "n1")
        status = Path(f"/proc/{pid}/status").read_text()
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
        return len(list(Path(f"/proc/{pid}/fd").iterdir())), int(kilobytes)

    def replaced() -> tuple[int, int]:
        old = current(lab, "n1")
        lab.restart_agent("n1", arguments=SHORT)
        assert reaches(lab, "client", to=ip(lab, "talker"), port=PORT)
        end_of(lab, "n1", old)
        until(lambda: ask(lab, "n1", "/connections")["connections"] == [])
        return held()

    first, *_, last = [replaced() for _ in range(10)]
    assert last[0] <= first[0] + 4, f"descriptors: {first[0]}, then {last[0]}"
    assert last[1] <= first[1] * 1.1, f"memory: {first[1]} kB, then {last[1]} kB"


def test_nobody_stumbled(lab: Lab) -> None:
    for name in ("n1", "n2"):
        text = lab.logs(f"node/{name}").read_text()
        assert "Traceback" not in text, text
        assert "INTERNAL" not in text
