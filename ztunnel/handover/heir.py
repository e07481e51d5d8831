"""The new agent's side of a hand-over: ask, take, confirm. Blocks; what is taken serves once it is confirmed."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from ztunnel.handover.channel import Channel, Gone, Stranger, close_all
from ztunnel.handover.message import VERSION, Answer, Ask, Estate, Outcome, PodEstate, Released, Taken, Withdrawn
from ztunnel.orders import Listeners

log = logging.getLogger(__name__)

SOCKET = "handover.sock"  # in the run directory
_ATTEMPTS = 5
_ANSWER_SECONDS = 30.0  # the agent before may be giving to somebody else just now
_ESTATE_SECONDS = 60.0
_VERDICT_SECONDS = 60.0  # longer than the giver's patience: it is the one to judge


class NotTaken(Exception):
    """The agent that runs goes on; the text says why. Whoever gets this ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodInheritance:
    """The descriptors are the holder's to close, or to give to an engine."""

    estate: PodEstate
    listeners: Listeners


@dataclass(frozen=True, slots=True, kw_only=True)
class Inheritance:
    """What a living agent has given, still as its own until `confirm`. `sockets`: listeners by name; `pods` by
    instance."""

    channel: Channel
    estate: Estate
    sockets: Mapping[str, int]
    pods: Mapping[str, PodInheritance]

    def confirm(self) -> None:
        """All of it is served. NotTaken if it was withdrawn meanwhile. If the agent before has died, it is ours."""
        try:
            with suppress(Gone):  # its last word may be there to be read
                self.channel.send(Taken(), seconds=_ANSWER_SECONDS)
            verdict, _ = self.channel.receive(seconds=_VERDICT_SECONDS)
        except Gone:
            log.warning("the agent before has died while it handed over")
            return
        finally:
            self.channel.close()
        if isinstance(verdict, Withdrawn):
            raise NotTaken(f"the agent that runs goes on: {verdict.why}")
        if not isinstance(verdict, Released):
            raise NotTaken(f"the agent that runs said {verdict!r}")


def claim(run: Path) -> Inheritance | None:
    """Ask the agent that runs with this directory, if one does, and wait for all it has; None: nobody is there (any
    more). NotTaken names the socket and the cure."""
    path = run / SOCKET
    try:
        for _ in range(_ATTEMPTS):
            channel = _connected(path)
            if channel is None:
                return None
            try:
                return _taken(channel)
            except Gone:  # it has given to another meanwhile, or has died
                channel.close()
            except BaseException:
                channel.close()
                raise
    except (TimeoutError, Stranger) as error:
        why = str(error) or "no answer"
        raise NotTaken(f"{path}: {why}; is the agent that runs stuck? End it, then start this one again") from error
    raise NotTaken(f"{path}: closed {_ATTEMPTS} times without an answer; the log of the agent that runs says why")


def _connected(path: Path) -> Channel | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(_ANSWER_SECONDS)
        sock.connect(str(path))
        return Channel(sock)
    except (FileNotFoundError, ConnectionRefusedError):  # never was; left by one that was killed
        sock.close()
        return None


def _taken(channel: Channel) -> Inheritance | None:
    channel.send(Ask(version=VERSION), seconds=_ANSWER_SECONDS)
    answer, _ = channel.receive(seconds=_ANSWER_SECONDS)
    if not isinstance(answer, Answer):
        raise Stranger(f"answered {type(answer).__name__}")
    if answer.outcome is Outcome.END_FIRST:
        log.warning("the agent that runs ends first, its pods are closed meanwhile: %s", answer.why)
        channel.await_end()
        channel.close()
        return None
    held: list[int] = []
    try:
        return _estate(channel, held)
    except BaseException:
        close_all(held)  # else pods' connections would wait in listeners that nobody serves
        raise


def _estate(channel: Channel, held: list[int]) -> Inheritance:
    """`held` gets all descriptors as they come."""
    estate, listening = channel.receive(seconds=_ESTATE_SECONDS)
    held += listening
    if isinstance(estate, Withdrawn):
        raise NotTaken(f"the agent that runs goes on: {estate.why}")
    if not isinstance(estate, Estate) or len(listening) != len(estate.sockets):
        raise Stranger("an estate was expected, with a descriptor for each of its sockets")
    pods = {}
    for _ in range(estate.pods):
        pod, descriptors = channel.receive(seconds=_ESTATE_SECONDS)
        held += descriptors
        if not isinstance(pod, PodEstate) or len(descriptors) != sum(pod.present):
            raise Stranger("a pod was expected, with a descriptor for each of its listeners")
        pods[pod.instance] = PodInheritance(estate=pod, listeners=_listeners(pod.present, iter(descriptors)))
    sockets = dict(zip(estate.sockets, listening, strict=True))
    return Inheritance(channel=channel, estate=estate, sockets=sockets, pods=pods)


def _listeners(present: tuple[bool, ...], descriptors: Iterator[int]) -> Listeners:
    names = (field.name for field in fields(Listeners))
    return Listeners(**{name: next(descriptors) if there else None for name, there in zip(names, present, strict=True)})
