"""Agents come and go: closed while there is none, adopted and replaced without a gap, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpf import Kernel, compile, netns, pin, syscall
from bpf.artifact import Artifact
from bpf.layouts import SETTINGS, unpack_tuple
from bpf.maps import Map
from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.kernel.rig import NODE4, STRANGER4, STRANGER6, AgentListeners, Pod, Rig, Worker, enrol
from tests.kernel.test_capture import destination

HELD = ("captured", "clients", "flows", "loops", "announced", "legs", "consumed", "accelerated")


def fill(kernel: Kernel) -> dict[str, int | None]:
    return {m.name: m.entries for m in kernel.describe().maps if m.name in HELD}


def empty(kernel: Kernel) -> None:
    """Waits until no socket holds an entry any more."""
    deadline = time.monotonic() + 10
    while any(fill(kernel).values()):
        assert time.monotonic() < deadline, [
            (name, *unpack_tuple(key)) for name, n in fill(kernel).items() if n for key in kernel._maps[name].walk()
        ]
        time.sleep(0.01)


def until(condition: Any, seconds: float = 90) -> None:
    """More than a minute: if the last acknowledgement finds close() still at work, the kernel keeps the socket until
    tcp_fin_timeout has passed, where it mostly keeps no more than a TIME_WAIT."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def run_agent(sockets: Any, rig_pins: Path, cgroup: Path, pod: Pod) -> None:
    """A whole agent in this process: listeners that stay as long as it lives."""
    kernel = Kernel.open(rig_pins, cgroup=cgroup, agent_cgroup=cgroup / "agent", kubelet_cgroup=cgroup / "kubelet")
    sockets.listeners = AgentListeners(pod)
    enrol(kernel, pod, sockets.listeners)


def test_a_killed_agent_leaves_the_pod_closed_and_a_new_one_adopts_it(
    rig: Rig, pod: Pod, app: Worker, host: Worker
) -> None:
    first = rig.worker("agent", rig.node)
    first.call(run_agent, rig.pins, rig.cgroup, pod)
    server, port = app.listen("0.0.0.0")
    open_before = app.dial(STRANGER4, 80)
    first.kill()
    started = time.monotonic()
    for dialler, ip in ((app, STRANGER4), (app, STRANGER6), (host, pod.ip4), (host, pod.ip6)):
        for where in (port, 15008, 9):
            with pytest.raises(ConnectionRefusedError):
                dialler.dial(ip, where)
    assert time.monotonic() - started < 30, "refused, not timed out"
    assert app.names(app.dial(pod.ip4, port))[1] == (pod.ip4, port), "the pod still talks to itself"
    app.accept(server)
    with pytest.raises(ConnectionResetError):
        app.recv(open_before)

    kernel = rig.kernel()
    assert list(kernel.pods()) == [pod.name]
    assert kernel.counters()[Reason.AGENT_ABSENT] == 12
    slot = kernel.pods()[pod.name]
    assert (slot.cookie, slot.addresses) == (pod.cookie, (pod.ip4, pod.ip6))
    with pytest.raises(ConnectionRefusedError):
        app.dial(STRANGER4, 80)
    listeners = AgentListeners(pod)
    kernel.set_listeners(slot.slot, listeners)
    app.dial(STRANGER4, 80)
    accepted, _ = listeners.accept("outbound4")
    assert destination(kernel, pod, accepted) == (STRANGER4, 80)
    host.dial(pod.ip6, port)
    listeners.accept("plaintext6")[0].close()
    listeners.close()


def test_maps_are_empty_once_sockets_are_closed(
    kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker, agent: Worker, kubelet: Worker
) -> None:
    server, port = app.listen("::", 8080, dual=True)
    for round in range(20):
        clients, others = [], []
        for ip, kind in ((STRANGER4, "outbound4"), (STRANGER6, "outbound6")):
            clients.append(app.dial(ip, 80))
            others.append(listeners.accept(kind)[0])
        for ip in (pod.ip4, pod.ip6):
            clients.append(app.dial(ip, port))
            clients.append(app.accept(server)[0])
        probe = kubelet.dial(pod.ip4, port)
        clients.append(app.accept(server)[0])
        hop = agent.socket_in(str(pod.netns), socket.AF_INET, bind=(pod.ip4, 0))
        kernel.announce(agent.cookie(hop), SocketAddress("198.51.100.1", 1))
        agent.connect(hop, pod.ip4, port)
        clients.append(app.accept(server)[0])
        held = fill(kernel)
        assert (held["captured"], held["flows"], held["loops"], held["announced"], held["clients"]) == (2, 2, 1, 0, 0)
        if round % 2:  # either side first; every fourth by reset
            for s in others:
                if round % 4 == 1:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                s.close()
        for client in clients:
            app.close(client)
        agent.close(hop)
        kubelet.close(probe)
        for s in others:
            s.close()
        empty(kernel)
    assert next(kernel._maps["usage"].items())[1] == bytes(4)


def test_refused_and_failed_connections_leave_nothing(kernel: Kernel, pod: Pod, app: Worker, kubelet: Worker) -> None:
    enrol(kernel, pod)
    for ip in (STRANGER4, STRANGER6):
        with pytest.raises(ConnectionRefusedError):
            app.dial(ip, 80)
    for dialler in (app, kubelet):
        with pytest.raises(ConnectionRefusedError):
            dialler.dial(pod.ip6, 9)
    empty(kernel)


def test_unenrolment_frees_the_pod_and_names_outlive_it(
    kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker, agent: Worker, host: Worker
) -> None:
    server, port = app.listen("0.0.0.0")
    client = app.dial(STRANGER4, 80)
    accepted, _ = listeners.accept("outbound4")
    hop = agent.socket_in(str(pod.netns), socket.AF_INET, bind=(pod.ip4, 0))
    kernel.announce(agent.cookie(hop), SocketAddress("198.51.100.1", 7))
    agent.connect(hop, pod.ip4, port)
    served, _ = app.accept(server)
    kernel.unenrol(pod.name)
    kernel.unenrol(pod.name)
    assert app.names(client) == ((pod.ip4, app.names(client)[0][1]), (STRANGER4, 80))
    assert app.names(served)[1] == ("198.51.100.1", 7)
    assert destination(kernel, pod, accepted) == (STRANGER4, 80)
    app.send(client, b"still here")
    assert accepted.recv(20) == b"still here"
    free, node_port = host.listen(NODE4)
    late = app.dial(NODE4, node_port)
    assert host.accept(free)[1] == app.names(late)[0]
    host.dial(pod.ip4, port)
    assert app.accept(server)[1][0] == NODE4
    assert kernel.pods() == {}
    assert [p.name for p in kernel.describe().programs if p.attach == "netns"] == []
    accepted.close()
    app.close(client)
    agent.close(hop)
    app.close(served)
    empty(kernel)
    kernel._enrolment.forget_usage()
    left = {m.name: m.entries for m in kernel.describe().maps if m.name in ("pods", "addresses", "usage", "enrolled")}
    assert left == {"pods": 0, "addresses": 0, "usage": 0, "enrolled": 0}


def test_enrolment_again(kernel: Kernel, rig: Rig, pod: Pod, listeners: AgentListeners, app: Worker) -> None:
    before = kernel.pods()[pod.name]
    assert enrol(kernel, pod) == before, "the same pod keeps its slot"
    other = rig.add_pod()
    with pytest.raises(ValueError, match=pod.name):
        enrol(kernel, pod, instance="twin")
    with pytest.raises(ValueError, match="host-network"):
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            kernel.enrol("node", fd, ["10.0.0.1"])
        finally:
            os.close(fd)
    with pytest.raises(ValueError, match="not an IP address"), other.opened() as fd:
        kernel.enrol("other", fd, ["10.0.0.300"])
    with pytest.raises(OSError, match="could not be entered"), open("/dev/null") as file:  # noqa: PTH123
        kernel.enrol("other", file.fileno(), ["10.0.0.1"])
    assert list(kernel.pods()) == [pod.name]
    assert enrol(kernel, other).slot != before.slot
    with other.opened() as fd:
        moved = kernel.enrol(other.name, fd, [other.ip4])
    assert moved.addresses == (other.ip4,)
    assert next(m.entries for m in kernel.describe().maps if m.name == "addresses") == 3
    kernel.unenrol(pod.name)
    assert enrol(kernel, pod, listeners).slot == before.slot
    app.dial(STRANGER4, 80)
    listeners.accept("outbound4")[0].close()


def test_a_pod_made_again_in_a_new_netns(kernel: Kernel, rig: Rig, pod: Pod, listeners: AgentListeners) -> None:
    again = rig.add_pod()
    with again.opened() as fd:
        slot = kernel.enrol(pod.name, fd, [again.ip4])
    assert slot.cookie == again.cookie
    assert netns.cookie() not in {p.cookie for p in kernel.pods().values()}
    assert next(m.entries for m in kernel.describe().maps if m.name == "enrolled") == 1


def _dial_on(sockets: Any, ip: str, port: int, until_file: str) -> tuple[int, list[str]]:
    """Connect without pause until told to stop."""
    done, failures = 0, []
    while not Path(until_file).exists():
        try:
            with socket.create_connection((ip, port), timeout=5) as s:
                if s.getpeername() != (ip, port):
                    failures.append(f"peer {s.getpeername()}")
                done += 1
        except OSError as error:
            failures.append(repr(error))
    return done, failures


def _intrude_on(sockets: Any, ip: str, port: int, until_file: str) -> tuple[int, list[str]]:
    """An application's answer says who let us in."""
    done, failures = 0, []
    while not Path(until_file).exists():
        with socket.create_connection((ip, port), timeout=5) as s:
            if s.recv(1) != b"p":
                failures.append("reached the application")
            done += 1
    return done, failures


def _answer(listener: socket.socket, stop: Path) -> None:
    listener.settimeout(0.2)
    while not stop.exists():
        try:
            s, _ = listener.accept()
        except TimeoutError:
            continue
        with contextlib.suppress(OSError):
            s.sendall(b"p")
        s.close()


@pytest.mark.parametrize("change", ["another version", "another layout"])
def test_programs_are_replaced_without_a_gap_under_load(
    change: str, rig: Rig, pod: Pod, app: Worker, host: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every connection, in and out, is steered all the while that agents replace each other's programs."""
    stop, silent = rig.folder / "stop", rig.folder / "silent"
    kernel = rig.kernel()
    listeners = AgentListeners(pod)
    enrol(kernel, pod, listeners)
    server, port = app.listen("0.0.0.0")
    answering = [listeners.sockets["outbound4"], listeners.sockets["plaintext4"]]
    threads = [threading.Thread(target=_answer, args=(s, silent)) for s in answering]
    for thread in threads:
        thread.start()
    second = rig.worker("pods", pod)
    second.start("call", _dial_on, STRANGER4, 80, str(stop))
    host.start("call", _intrude_on, pod.ip4, port, str(stop))
    try:
        for round in range(12):
            made = (another_layout if change == "another layout" else another_version)(artifact, round)
            monkeypatch.setattr(compile, "build", lambda cache, made=made: made)
            kernel = rig.kernel()
            enrol(kernel, pod, listeners)
    finally:
        stop.touch()
        results = [second.finish(), host.finish()]
        silent.touch()
        for thread in threads:
            thread.join()
    for done, failures in results:
        assert failures == []
        assert done > 50
    with pytest.raises(TimeoutError):
        app.accept(server, timeout=0.1)
    listeners.close()  # and with them what waits to be accepted
    empty(kernel)
    kernel._collect()
    assert sorted(p.name for p in rig.pins.iterdir()) == sorted(
        ["enrolled", "registry", "steered", kernel._artifact.layout]
    )
    listeners.close()


artifact = compile.build()


def another_layout(artifact: Artifact, round: int) -> Artifact:
    """The same programs as if they had been compiled for other structs."""
    return replace(artifact, layout=f"{int(artifact.layout, 16) ^ (round + 1):016x}")


_NOTHING = b"\x05" + bytes(7)  # a jump to the next instruction


def another_version(artifact: Artifact, round: int) -> Artifact:
    """Programs that are others, and do the same, for the same maps."""
    programs = (replace(p, instructions=_NOTHING * (round + 1) + p.instructions) for p in artifact.programs)
    return replace(artifact, programs=tuple(programs))


def test_what_is_attached_to_a_pod_already_is_not_loaded_again(
    rig: Rig, kernel: Kernel, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attached(kernel: Kernel) -> list[int]:
        return [p.id for p in kernel.describe().programs if p.name == "lookup"]

    enrol(kernel, pod)
    before = attached(kernel)
    assert len(before) == 1
    enrol(kernel, pod)
    assert attached(kernel) == before
    again = rig.kernel()
    enrol(again, pod)
    assert attached(again) == before
    monkeypatch.setattr(compile, "build", lambda cache: another_version(artifact, 1))
    newer = rig.kernel()
    replaced = attached(newer)
    assert len(replaced) == 1
    assert replaced != before
    enrol(newer, pod)
    assert attached(newer) == replaced


def test_nothing_is_left_after_unload(
    rig: Rig, kernel: Kernel, pod: Pod, listeners: AgentListeners, app: Worker, host: Worker
) -> None:
    ids = {p.id for p in kernel.describe().programs}
    assert len(ids) == 8
    client = app.dial(STRANGER4, 80)
    listeners.accept("outbound4")[0].close()
    kernel.unload()
    assert not rig.pins.exists()
    assert {path.suffix for path in rig.bpffs.iterdir()} == {".debug"}, "only what the kernel puts there"
    server, port = host.listen(NODE4)
    app.close(client)
    late = app.dial(NODE4, port)
    assert host.accept(server)[1] == app.names(late)[0]
    app.close(late)

    def gone() -> bool:
        for id in ids:
            try:
                os.close(syscall.program_by_id(id))
                return False
            except FileNotFoundError:
                pass
        return True

    until(gone)


def test_the_compiler_is_not_needed_again(rig: Rig, tmp_path: Path) -> None:
    """The first start compiles into the cache; a second takes milliseconds and needs no LLVM; a bad file is remade."""
    rig.kernel(cache=tmp_path / "cache").close()
    (path,) = (tmp_path / "cache").iterdir()
    assert path.stat().st_mode & 0o777 == 0o644
    made = path.stat().st_ino
    code = (
        "import sys, pathlib; from bpf import compile; "
        f"compile.build(pathlib.Path({str(tmp_path / 'cache')!r})); "
        "assert 'bcc' not in sys.modules; "
        "assert 'libbcc' not in open('/proc/self/maps').read()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=compile.SOURCE.parents[1])
    assert path.stat().st_ino == made
    path.write_text("{")
    rig.kernel(cache=tmp_path / "cache").close()
    assert Artifact.decode(path.read_bytes()).layout == artifact.layout


def test_a_netns_that_is_gone_is_unenrolled_without_fuss(kernel: Kernel, rig: Rig) -> None:
    pod = rig.add_pod()
    enrol(kernel, pod)
    rig.ip("netns", "del", pod.name)
    rig.pods.remove(pod)
    kernel = rig.kernel()
    assert list(kernel.pods()) == [pod.name]
    kernel.unenrol(pod.name)
    assert kernel.pods() == {}


def test_sigkill_while_opening_leaves_something_that_opens(rig: Rig) -> None:
    for delay in (0.005, 0.02, 0.05, 0.1):
        worker = rig.worker("agent", rig.node)
        worker.start("call", _open_and_stay, rig.pins, rig.cgroup)
        time.sleep(delay)
        os.kill(worker.pid, signal.SIGKILL)
        worker.kill()
    kernel = rig.kernel()
    assert len(kernel.describe().programs) == 7


def _open_and_stay(sockets: Any, pins: Path, cgroup: Path) -> None:
    Kernel.open(pins, cgroup=cgroup, agent_cgroup=cgroup / "agent", kubelet_cgroup=None)


def test_pins_are_removed_without_opening(rig: Rig, kernel: Kernel, pod: Pod, listeners: AgentListeners) -> None:
    """As after a crash that took the agent's cgroup with it."""
    kernel.close()
    pin.remove(rig.pins)
    assert not rig.pins.exists()
    pin.remove(rig.pins)
    host = rig.worker("host", rig.node)
    with pytest.raises(ConnectionRefusedError):
        host.dial(pod.ip4, 9)
    assert listeners.waiting() == set()


def test_the_pins_may_be_a_whole_bpffs(rig: Rig, pod: Pod) -> None:
    rig.pins = rig.bpffs
    kernel = rig.kernel()
    enrol(kernel, pod)
    kernel.unload()
    assert {path.suffix for path in rig.bpffs.iterdir()} == {".debug"}


def test_hooks_follow_the_nodes_cgroup(rig: Rig) -> None:
    """A cgroup that was made again under the same name is another one; so is one that the agent is now told of."""
    second = rig.cgroup / "second"

    def targets(kernel: Kernel) -> set[int]:
        return {p.target for p in kernel.describe().programs}

    for _ in range(2):
        second.mkdir()
        try:
            assert targets(rig.kernel(cgroup=second)) == {second.stat().st_ino}
        finally:
            second.rmdir()
    assert targets(rig.kernel()) == {rig.cgroup.stat().st_ino}
    assert len(rig.kernel().describe().programs) == 7


def test_a_connection_that_waited_while_another_layout_took_over_is_known(
    rig: Rig, pod: Pod, app: Worker, listeners: AgentListeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener is handed over with what waits in it; who dialled what is in the old layout's maps."""
    enrol(rig.kernel(), pod, listeners)
    app.dial(STRANGER4, 80)
    monkeypatch.setattr(compile, "build", lambda cache: another_layout(artifact, 0))
    heir = rig.kernel(succeeding=True)
    enrol(heir, pod, listeners)
    accepted, _ = listeners.accept("outbound4")
    assert destination(heir, pod, accepted) == SocketAddress(STRANGER4, 80)
    app.dial(STRANGER4, 81)
    younger, _ = listeners.accept("outbound4")
    assert destination(heir, pod, younger) == SocketAddress(STRANGER4, 81)
    for sock in (accepted, younger):
        sock.close()


@pytest.mark.parametrize("change", ["same layout", "another layout"])
def test_an_agent_whose_heir_has_failed_puts_the_kernel_side_back(
    change: str, rig: Rig, pod: Pod, app: Worker, listeners: AgentListeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = rig.kernel(direct=True)
    enrol(kernel, pod, listeners)
    generation = kernel.bump()
    if change == "another layout":
        monkeypatch.setattr(compile, "build", lambda cache: another_layout(artifact, 0))
    heir = rig.kernel(succeeding=True)
    theirs = AgentListeners(pod)
    enrol(heir, pod, theirs)
    heir.close()
    theirs.close()
    kernel.reassert()
    enrol(kernel, pod, listeners)
    app.dial(STRANGER4, 80)
    accepted, _ = listeners.accept("outbound4")
    assert destination(kernel, pod, accepted) == SocketAddress(STRANGER4, 80)
    accepted.close()
    assert kernel.generation == generation


def test_a_listener_that_is_there_already_is_left_alone_and_leaves_when_it_is_closed(
    rig: Rig, pod: Pod, host: Worker
) -> None:
    kernel = rig.kernel()
    listeners = AgentListeners(pod)
    for _ in range(3):
        enrol(kernel, pod, listeners)
    assert sum(value is not None for value in slots(kernel)) == 6
    listeners.close()
    until(lambda: slots(kernel) == [None] * 6)


def slots(kernel: Kernel) -> list[bytes | None]:
    """What the listeners' map has of the first pod."""
    return [kernel._maps["listeners"].get(kind.to_bytes(4, "little")) for kind in range(6)]


def test_acceleration_that_goes_on_is_not_interrupted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is new is switched on when everything is attached."""
    seen: list[int] = []
    put = Map.put

    def recorded(self: Map, key: bytes, value: bytes, flags: int = syscall.ANY) -> bool:
        if self.definition.name == "settings":
            seen.append(SETTINGS.unpack(value)[5])
        return put(self, key, value, flags)

    monkeypatch.setattr(Map, "put", recorded)
    for wanted in (True, True, False, True):
        rig.kernel(accelerate=wanted, direct=True)
    assert seen == [0, 1, 1, 1, 0, 0, 0, 1]
