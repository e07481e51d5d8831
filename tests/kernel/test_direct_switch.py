"""From one generation of targets and verdicts to the next while pods dial: who is permitted by both is never refused,
who is not is never let in once the change is made, and what a killed agent wrote halfway is never in force."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bpf import Kernel, Mode, Target, VerdictEntry
from bpf.maps import Map
from mesh.reason import Reason
from tests.kernel.rig import AgentListeners, Pod, Rig, Worker, enrol
from tests.kernel.test_direct import _begin, _decided, drained
from tests.kernel.test_life import until

SECONDS = 3.0  # at least,
DIALLED, CHANGES = 200, 50  # and until there were so many; on no machine that takes longer than
DEADLINE = 60.0


def _dial_on(sockets: Any, ip: str, port: int, stop: str, enough: str) -> tuple[int, list[str]]:
    """Connect without pause: how often it succeeded, how it failed."""
    done, failed = 0, list[str]()
    while not Path(stop).exists():
        s = socket.socket()
        s.settimeout(30)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        try:
            s.connect((ip, port))
            done += 1
        except OSError as error:
            failed.append(errno.errorcode.get(error.errno or 0, str(error)))
        s.close()
        if done == DIALLED:
            Path(enough).touch()
    return done, failed


def _accept_on(sockets: Any, number: int, stop: str) -> None:
    listener = sockets.sockets[number]
    listener.settimeout(0.1)
    while not Path(stop).exists():
        try:
            listener.accept()[0].close()
        except OSError:
            continue


def switch(kernel: Kernel, modes: Mapping[Pod, Mode], *permitted: tuple[Pod, Pod], port: int) -> None:
    entries = [VerdictEntry(source=s.name, destination=d.name, port=port, allow=True) for s, d in permitted]
    assert kernel.switch({p.name: Target(mode=mode, accelerate=False) for p, mode in modes.items()}, entries) == 0


@pytest.mark.parametrize("mode", Mode)
def test_a_change_that_concerns_others_refuses_nobody(mode: Mode, rig: Rig) -> None:
    kernel = rig.kernel(direct=True)
    app, server, other, *crowd = (rig.add_pod() for _ in range(6))
    agent = AgentListeners(app)
    enrol(kernel, app, agent)
    for each in (server, other, *crowd):
        enrol(kernel, each)  # closed, where the kernel is not told: a miss is a refusal
    dialler, serving, outsider = (rig.worker("pods", each) for each in (app, server, other))
    listener, port = serving.listen("0.0.0.0")
    switch(kernel, {app: Mode.OPEN, server: mode}, (app, server), port=port)
    stop, enough = rig.folder / "stop", rig.folder / "enough"
    serving.start("call", _accept_on, listener, str(stop))
    dialler.start("call", _dial_on, server.ip4, port, str(stop), str(enough))
    try:
        changes = _change_on(kernel, app, server, other, crowd, outsider, mode, port, enough)
    finally:
        stop.touch()
        done, failed = dialler.finish()
        serving.finish()
        agent.close()
    assert changes >= CHANGES
    assert done >= DIALLED
    assert failed == []
    assert kernel.counters()[Reason.STALE_VERDICT] == 0


def _change_on(
    kernel: Kernel, app: Pod, server: Pod, other: Pod, crowd: list[Pod], outsider: Worker, mode: Mode, port: int,
    enough: Path,
) -> int:  # fmt: skip
    """Targets and answers of others come and go around the two; how often. Who was permitted now and then tries each
    time that it is not."""
    began, turn = time.monotonic(), 0
    while (took := time.monotonic() - began) < SECONDS or ((not enough.exists() or turn < CHANGES) and took < DEADLINE):
        turn += 1
        some = crowd[turn % len(crowd) :]
        modes = {app: Mode.OPEN, server: mode, **dict.fromkeys(some, Mode.OPEN)}
        permitted = [(app, server), *((a, b) for a in some for b in some)]
        if turn % 10 == 0:
            modes[other] = Mode.OPEN
            permitted.append((other, server))
        switch(kernel, modes, *permitted, port=port)
        if turn % 10 == 0:
            outsider.close(outsider.dial(server.ip4, port))
        elif turn % 10 == 1:
            with pytest.raises(ConnectionRefusedError):
                outsider.dial(server.ip4, port)
    return turn


@pytest.mark.parametrize("still", [True, False])
def test_a_syn_that_is_on_its_way_is_judged_by_the_next_generation(still: bool, rig: Rig) -> None:
    kernel = rig.kernel(direct=True)
    app, server = rig.add_pod(), rig.add_pod()
    for each in (app, server):
        enrol(kernel, each)
    dialler, serving = rig.worker("pods", app), rig.worker("pods", server)
    _, port = serving.listen("0.0.0.0")
    modes = {app: Mode.OPEN, server: Mode.LISTED}
    switch(kernel, modes, (app, server), port=port)
    neighbour = f"-n {rig.node.name} neigh replace {server.ip4} dev {server.veth} nud permanent lladdr".split()
    rig.ip(*neighbour, "02:00:00:00:00:99")
    number = dialler.socket()
    dialler.call(_begin, number, server.ip4, port)
    until(lambda: [f.established for f in kernel.flows()] == [False])
    switch(kernel, modes, *([(app, server)] if still else []), port=port)
    rig.ip(*neighbour, server.mac)
    assert dialler.call(_decided, number) == (0 if still else errno.ECONNREFUSED)
    assert kernel.counters()[Reason.STALE_VERDICT] == (0 if still else 1)
    dialler.close(number)
    drained(kernel)


class Killed(BaseException):
    """The agent's end, in the middle of a change."""


@pytest.mark.parametrize("knows", [True, False])
def test_what_was_written_by_an_agent_that_was_killed_halfway_is_never_in_force(
    knows: bool, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`knows`: the next agent has another plan; else it only knows that nothing may be direct."""
    kernel = rig.kernel(direct=True)
    app, server, other = (rig.add_pod() for _ in range(3))
    for each in (app, server, other):
        enrol(kernel, each)
    dialler, serving = rig.worker("pods", app), rig.worker("pods", server)
    _, port = serving.listen("0.0.0.0")
    modes = {app: Mode.OPEN, server: Mode.LISTED, other: Mode.OPEN}
    switch(kernel, modes, (other, server), port=port)
    written = Map.put_all

    def half(self: Map, entries: Mapping[bytes, bytes]) -> None:
        written(self, entries)
        if self.definition.name == "verdicts":
            raise Killed

    monkeypatch.setattr(Map, "put_all", half)
    with pytest.raises(Killed):
        switch(kernel, modes, (app, server), port=port)
    monkeypatch.undo()
    kernel.close()
    heir = rig.kernel(direct=True)
    assert len(heir._maps["verdicts"].snapshot()) == 2
    with pytest.raises(ConnectionRefusedError):
        dialler.dial(server.ip4, port)
    for _ in range(3):
        if knows:
            switch(heir, modes, (other, server), port=port)
        else:
            heir.bump()
        with pytest.raises(ConnectionRefusedError):
            dialler.dial(server.ip4, port)
    assert len(heir._maps["verdicts"].snapshot()) == (1 if knows else 0)
    switch(heir, modes, (app, server), port=port)
    dialler.close(dialler.dial(server.ip4, port))
