"""Both sides of a hand-over, against each other: who serves afterwards, whoever dies and whenever."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.ztunnel.pump.nodes import eventually
from ztunnel.admin.listener import unix_listener
from ztunnel.handover import giver, heir
from ztunnel.handover.channel import Channel, close_all
from ztunnel.handover.giver import Giver, Legacy, NotResumed, Pod, descriptors_of, presence_of
from ztunnel.handover.heir import SOCKET, Inheritance, NotTaken, claim
from ztunnel.handover.message import VERSION, Answer, Ask, Estate, Outcome, PodEstate, Released, Taken, Withdrawn
from ztunnel.orders import Listeners

SECONDS = 20.0


def listening(family: int = socket.AF_INET) -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@dataclass
class SmallHolder:
    """An agent with one pod, IPv4 alone, and one socket; `did` is what it was told to do, in order."""

    ending: bool = False
    fault: Exception | None = None  # of `pause`
    stuck: OSError | None = None  # of `resume`
    pods: int = 1
    did: list[str] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=lambda: [listening() for _ in range(4)])

    def stop(self) -> None:
        self.did.append("stop")
        self.ending = True

    async def pause(self) -> Legacy:
        self.did.append("pause")
        if self.fault is not None:
            raise self.fault
        node, *pod = self.sockets
        fds = [each.fileno() for each in pod]
        listeners = Listeners(
            outbound4=fds[0], outbound6=None, plaintext4=fds[1], plaintext6=None, tunnel4=fds[2], tunnel6=None
        )
        return Legacy(
            estate=Estate(
                layout="l",
                holdings=b"",
                synced=True,
                certificates=(),
                direct=None,
                sockets=("metrics",),
                pods=self.pods,
            ),
            sockets=[node.fileno()],
            pods=[
                Pod(
                    estate=PodEstate(instance="i", present=presence_of(listeners), reuse="2", older=()),
                    listeners=listeners,
                )
            ]
            * self.pods,
        )

    async def resume(self) -> None:
        self.did.append("resume")
        if self.stuck is not None:
            raise self.stuck

    def release(self) -> None:
        self.did.append("release")


@dataclass
class Old:
    holder: SmallHolder
    run: Path
    serving: asyncio.Task[None]

    def connected(self) -> Channel:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(SECONDS)
        sock.connect(str(self.run / SOCKET))
        return Channel(sock)

    async def given(self) -> None:
        await asyncio.wait_for(asyncio.shield(self.serving), SECONDS)

    async def did(self, *what: str) -> None:
        await eventually(lambda: self.holder.did == list(what))


@asynccontextmanager
async def old(run: Path, *, patience: float = SECONDS) -> AsyncIterator[Old]:
    listener = unix_listener(run / SOCKET)
    holder = SmallHolder()
    serving = asyncio.create_task(Giver(holder=holder, listener=listener, patience_seconds=patience).serve())
    try:
        yield Old(holder, run, serving)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()
        for each in holder.sockets:
            each.close()


async def claimed(run: Path) -> Inheritance:
    found = await asyncio.wait_for(asyncio.to_thread(claim, run), SECONDS)
    assert found is not None
    return found


def discard(inheritance: Inheritance) -> None:
    inheritance.channel.close()
    close_all(list(inheritance.sockets.values()))
    for pod in inheritance.pods.values():
        close_all(descriptors_of(pod.listeners))


def port(fd: int) -> int:
    with socket.socket(fileno=os.dup(fd)) as sock:
        return int(sock.getsockname()[1])


def test_nobody_is_there(tmp_path: Path) -> None:
    assert claim(tmp_path) is None
    unix_listener(tmp_path / SOCKET).close()  # as a killed agent leaves it
    assert claim(tmp_path) is None


async def test_all_is_taken_and_released(tmp_path: Path) -> None:
    async with old(tmp_path) as agent:
        found = await claimed(tmp_path)
        assert agent.holder.did == ["pause"]
        ports = [port(found.sockets["metrics"]), *map(port, descriptors_of(found.pods["i"].listeners))]
        assert ports == [each.getsockname()[1] for each in agent.holder.sockets]
        assert found.pods["i"].listeners.outbound6 is None
        assert found.pods["i"].estate.reuse == "2"
        await asyncio.to_thread(found.confirm)
        await agent.given()
        assert agent.holder.did == ["pause", "release"]
        discard(found)


@pytest.mark.parametrize("how", ["at once", "after the answer", "with all in hand"])
async def test_an_heir_that_dies_leaves_the_old_one_serving(tmp_path: Path, how: str) -> None:
    async with old(tmp_path) as agent:
        channel = await asyncio.to_thread(agent.connected)
        done: list[str] = []
        if how != "at once":
            await asyncio.to_thread(channel.send, Ask(version=VERSION), seconds=SECONDS)
            await asyncio.to_thread(channel.receive, seconds=SECONDS)
            done = ["pause", "resume"]
        if how == "with all in hand":
            for _ in range(2):
                _, descriptors = await asyncio.to_thread(channel.receive, seconds=SECONDS)
                close_all(descriptors)
        channel.close()
        await agent.did(*done)
        found = await claimed(tmp_path)  # the next one gets it
        await asyncio.to_thread(found.confirm)
        await agent.did(*done, "pause", "release")
        discard(found)


async def test_an_heir_that_takes_too_long_is_told_so(tmp_path: Path) -> None:
    async with old(tmp_path, patience=0.05) as agent:
        found = await claimed(tmp_path)
        await agent.did("pause", "resume")
        with pytest.raises(NotTaken, match="the agent that runs goes on: it took too long"):
            await asyncio.to_thread(found.confirm)
        assert not agent.serving.done()
        discard(found)


async def test_an_old_agent_that_dies_after_it_gave_has_given(tmp_path: Path) -> None:
    async with old(tmp_path) as agent:
        found = await claimed(tmp_path)
        agent.serving.cancel()  # a stop in the middle of it does the same
        await asyncio.gather(agent.serving, return_exceptions=True)
        await asyncio.to_thread(found.confirm)
        assert agent.holder.did == ["pause"]
        discard(found)


async def test_one_that_cannot_pause_goes_on(tmp_path: Path) -> None:
    async with old(tmp_path) as agent:
        agent.holder.fault = OSError("no more descriptors")
        with pytest.raises(NotTaken, match="goes on: no more descriptors"):
            await asyncio.wait_for(asyncio.to_thread(claim, tmp_path), SECONDS)
        await agent.did("pause", "resume")
        assert not agent.serving.done()


async def test_one_that_cannot_go_on_ends_instead_of_staying_paused(tmp_path: Path) -> None:
    async with old(tmp_path, patience=0.05) as agent:
        agent.holder.stuck = OSError("no memory for the kernel side")
        found = await claimed(tmp_path)
        with pytest.raises(NotResumed, match="no memory for the kernel side"):
            await agent.given()
        discard(found)


async def test_an_heir_that_takes_pod_after_pod_slowly_keeps_nobody_waiting(tmp_path: Path) -> None:
    async with old(tmp_path, patience=0.5) as agent:
        agent.holder.pods = 100_000  # more than the socket's buffer holds
        channel = await asyncio.to_thread(agent.connected)
        await asyncio.to_thread(channel.send, Ask(version=VERSION), seconds=SECONDS)
        await agent.did("pause", "resume")
        channel.close()


async def test_without_descriptors_whoever_asks_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giver, "_ACCEPT_SECONDS", 0.01)
    loop = asyncio.get_running_loop()
    accept, refused = loop.sock_accept, 3

    async def scarce(listener: socket.socket) -> tuple[socket.socket, object]:
        nonlocal refused
        if refused:
            refused -= 1
            raise OSError(24, "Too many open files")
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", scarce)
    async with old(tmp_path) as agent:
        found = await claimed(tmp_path)
        await asyncio.to_thread(found.confirm)
        await agent.given()
        assert refused == 0
        discard(found)


async def test_what_came_before_the_old_one_died_is_let_go(tmp_path: Path) -> None:
    listener = unix_listener(tmp_path / SOCKET)
    listener.setblocking(True)
    here, there = socket.socketpair()

    def play() -> None:
        channel = Channel(listener.accept()[0])
        channel.receive(seconds=SECONDS)
        channel.send(Answer(outcome=Outcome.YOURS), seconds=SECONDS)
        estate = Estate(layout="", holdings=b"", synced=True, certificates=(), direct=None, sockets=("a",), pods=1)
        channel.send(estate, [there.fileno()], seconds=SECONDS)
        there.close()
        listener.close()  # as if killed: nobody answers the next attempt
        channel.close()

    playing = asyncio.create_task(asyncio.to_thread(play))
    assert await asyncio.to_thread(claim, tmp_path) is None
    await playing
    with here:
        here.settimeout(SECONDS)
        assert here.recv(1) == b""  # nobody holds the other end


@pytest.mark.parametrize("why", ["version", "ending"])
async def test_otherwise_the_old_one_ends_first(tmp_path: Path, why: str) -> None:
    async with old(tmp_path) as agent:
        agent.holder.ending = why == "ending"
        channel = await asyncio.to_thread(agent.connected)
        said = Ask(version="0-another" if why == "version" else VERSION)
        await asyncio.to_thread(channel.send, said, seconds=SECONDS)
        answer, _ = await asyncio.to_thread(channel.receive, seconds=SECONDS)
        assert isinstance(answer, Answer)
        assert answer.outcome is Outcome.END_FIRST
        assert ("0-another" if why == "version" else "it is stopping") in answer.why
        await agent.did("stop")
        with pytest.raises(TimeoutError):  # it has not ended yet
            await asyncio.to_thread(channel.receive, seconds=0.05)
        channel.close()


async def test_the_heir_waits_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heir, "VERSION", "0-another")
    async with old(tmp_path) as agent:
        waiting = asyncio.create_task(asyncio.to_thread(claim, tmp_path))
        await agent.did("stop")
        await asyncio.sleep(0.05)
        assert not waiting.done()
        agent.serving.cancel()
        await asyncio.gather(agent.serving, return_exceptions=True)
        assert await asyncio.wait_for(waiting, SECONDS) is None


Scene = Callable[[Channel], None]


def says_what_no_agent_would(channel: Channel) -> None:
    channel.receive(seconds=SECONDS)
    channel.send(Taken(), seconds=SECONDS)


def sends_no_descriptors(channel: Channel) -> None:
    channel.receive(seconds=SECONDS)
    channel.send(Answer(outcome=Outcome.YOURS), seconds=SECONDS)
    estate = Estate(layout="", holdings=b"", synced=True, certificates=(), direct=None, sockets=("a",), pods=0)
    channel.send(estate, seconds=SECONDS)


def answers_confirmation_with(last: Released | Withdrawn | Ask) -> Scene:
    def scene(channel: Channel) -> None:
        channel.receive(seconds=SECONDS)
        channel.send(Answer(outcome=Outcome.YOURS), seconds=SECONDS)
        estate = Estate(layout="", holdings=b"", synced=True, certificates=(), direct=None, sockets=(), pods=0)
        channel.send(estate, seconds=SECONDS)
        channel.receive(seconds=SECONDS)
        channel.send(last, seconds=SECONDS)

    return scene


@pytest.mark.parametrize(
    ("scene", "error"),
    [
        (says_what_no_agent_would, "answered Taken"),
        (sends_no_descriptors, "a descriptor for each"),
        (answers_confirmation_with(Released()), ""),
        (answers_confirmation_with(Withdrawn(why="a fault")), "goes on: a fault"),
        (answers_confirmation_with(Ask(version="")), "Ask"),
    ],
)
async def test_what_the_heir_makes_of_it(tmp_path: Path, scene: Scene, error: str) -> None:
    listener = unix_listener(tmp_path / SOCKET)
    listener.setblocking(True)

    def play() -> None:
        connected, _ = listener.accept()
        channel = Channel(connected)
        scene(channel)
        channel.close()

    playing = asyncio.create_task(asyncio.to_thread(play))

    def take() -> None:
        found = claim(tmp_path)
        assert found is not None
        found.confirm()

    if error:
        with pytest.raises(NotTaken, match=error):
            await asyncio.to_thread(take)
    else:
        await asyncio.to_thread(take)
    await playing
    listener.close()
