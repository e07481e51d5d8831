"""Answers that are replaced without a pause while pods dial: one entry's memory becomes another's under the eyes of the
programs, and nobody gets a permission that was meant for somebody else."""

from __future__ import annotations

import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bpf import Kernel, Mode, Target, VerdictEntry
from tests.kernel.rig import Pod, Rig, enrol

SECONDS = 4.0  # at least,
ENOUGH = 20  # and until so many connections got through; on no machine that takes longer than
DEADLINE = 60.0


def _dial_on(sockets: Any, ip: str, port: int, until_file: str, enough_file: str) -> int:
    """Connect without pause; how often it succeeded."""
    done = 0
    while not Path(until_file).exists():
        try:
            socket.create_connection((ip, port), timeout=5).close()
            done += 1
        except OSError:
            continue
        if done == ENOUGH:
            Path(enough_file).touch()
    return done


def _accept_on(sockets: Any, number: int, until_file: str) -> dict[str, int]:
    """Peers by address."""
    listener, seen = sockets.sockets[number], Counter[str]()
    listener.settimeout(0.1)
    while not Path(until_file).exists():
        try:
            connected, peer = listener.accept()
        except TimeoutError:
            continue
        connected.close()
        seen[peer[0].removeprefix("::ffff:")] += 1
    return dict(seen)


def test_nobody_gets_the_permission_of_another(rig: Rig) -> None:
    kernel = rig.kernel(direct=True)
    permitted, refused, server = (rig.add_pod() for _ in range(3))
    crowd = [rig.add_pod() for _ in range(6)]
    for each in (permitted, refused, server, *crowd):
        enrol(kernel, each)
    stop, enough = rig.folder / "stop", rig.folder / "enough"
    serving = rig.worker("pods", server)
    listener, port = serving.listen("0.0.0.0")
    diallers = [rig.worker("pods", each) for each in (permitted, refused, refused)]
    serving.start("call", _accept_on, listener, str(stop))
    for dialler in diallers:
        dialler.start("call", _dial_on, server.ip4, port, str(stop), str(enough))
    try:
        _flap(kernel, permitted, refused, server, crowd, port, enough)
    finally:
        stop.touch()
        reached = [dialler.finish() for dialler in diallers]
        seen = serving.finish()
    assert reached[0] >= ENOUGH, "who is permitted gets through now and then"
    assert reached[1:] == [0, 0]
    assert set(seen) == {permitted.ip4}


def _flap(kernel: Kernel, permitted: Pod, refused: Pod, server: Pod, crowd: list[Pod], port: int, enough: Path) -> None:
    """The server stays LISTED, for one source or for none; around it targets and answers come, go, and are open."""
    began, turn = time.monotonic(), 0
    while (took := time.monotonic() - began) < SECONDS or (not enough.exists() and took < DEADLINE):
        turn += 1
        some = crowd[turn % len(crowd) :]
        targets = {each.name: Target(mode=Mode.OPEN) for each in (permitted, refused, *some)}
        targets[server.name] = Target(mode=Mode.LISTED)
        answers = [(each, other) for each in some for other in some]
        if turn % 3:
            answers.insert(turn % (len(answers) + 1), (permitted, server))
        entries = [
            VerdictEntry(source=source.name, destination=destination.name, port=port, allow=True)
            for source, destination in answers
        ]
        if turn % 2:
            kernel.switch(targets, entries)
        else:
            kernel.bump()
            kernel.set_targets(targets)
            kernel.put_verdicts(entries)
