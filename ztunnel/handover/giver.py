"""The old agent's side of a hand-over: answers whoever asks, gives all, and judges whether it was taken."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Protocol

from ztunnel.handover.channel import Channel, Gone, Stranger, close_all
from ztunnel.handover.message import VERSION, Answer, Ask, Estate, Outcome, PodEstate, Released, Taken, Withdrawn
from ztunnel.orders import Listeners

log = logging.getLogger(__name__)

_ASK_SECONDS = 5.0
_SEND_SECONDS = 20.0
_LAST_WORD_SECONDS = 1.0  # who has all that was sent has room for it; who has not will ask again
_ACCEPT_SECONDS = 1.0
# For the new agent to serve all pods. Meanwhile new connections wait in the listeners' backlog.
_PATIENCE_SECONDS = 30.0


class NotResumed(Exception):
    """Nobody has taken over, and this agent cannot go on: its pods are closed until it is started again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """An enrolled pod; the listeners stay the engine's."""

    estate: PodEstate
    listeners: Listeners


@dataclass(frozen=True, slots=True, kw_only=True)
class Legacy:
    """What there is to give; `sockets` are the descriptors that `estate.sockets` names."""

    estate: Estate
    sockets: Sequence[int]
    pods: Sequence[Pod]


class Holder(Protocol):
    """The agent that gives."""

    @property
    def ending(self) -> bool:
        """It stops already."""

    def stop(self) -> None: ...

    async def pause(self) -> Legacy:
        """Accept nothing, write nothing to the kernel, hear no controller; everything stays open."""

    async def resume(self) -> None:
        """As before `pause`, whatever another agent has done to the kernel side meanwhile; OSError."""

    def release(self) -> None:
        """It is another's. Drain."""


@dataclass(slots=True, kw_only=True)
class Giver:
    """Gives once. `listener` listens on the hand-over socket; non-blocking, closed by its owner."""

    holder: Holder
    listener: socket.socket
    patience_seconds: float = _PATIENCE_SECONDS
    _waiting: list[Channel] = field(default_factory=list)  # those who begin when this process has ended

    async def serve(self) -> None:
        """Until all is given, or cancelled, at the end of this agent. One asks at a time, the others wait.
        NotResumed."""
        try:
            while not await self._next():
                pass
        finally:
            for channel in self._waiting:
                channel.close()

    async def _next(self) -> bool:
        """Whether all was given to the next who asks."""
        try:
            connected, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        except OSError as error:  # out of descriptors: whoever asks waits, nobody else is hurt
            log.error("hand-over: accept: %s", error)
            await asyncio.sleep(_ACCEPT_SECONDS)
            return False
        try:
            channel = Channel(connected)
        except Stranger as error:
            log.error("hand-over refused: %s", error)
            return False
        given = False
        try:
            given = await self._answer(channel)
        except (Gone, TimeoutError, Stranger, OSError) as error:
            log.warning("hand-over to process %d: %s", channel.pid, _reason(error))
        except asyncio.CancelledError:
            channel.abort()  # a thread may wait in it
            raise
        if channel not in self._waiting:
            channel.close()
        return given

    async def _answer(self, channel: Channel) -> bool:
        ask, descriptors = await asyncio.to_thread(channel.receive, seconds=_ASK_SECONDS)
        close_all(descriptors)
        if not isinstance(ask, Ask):
            raise Stranger(f"said {type(ask).__name__}")
        if self.holder.ending or ask.version != VERSION:
            why = "it is stopping" if self.holder.ending else f"it hands over by version {VERSION}, not {ask.version}"
            log.warning("process %d is to take over when this agent has ended: %s", channel.pid, why)
            await self._send(channel, Answer(outcome=Outcome.END_FIRST, why=why))
            self._waiting.append(channel)
            self.holder.stop()
            return False
        await self._send(channel, Answer(outcome=Outcome.YOURS))
        log.info("handing over to process %d", channel.pid)
        try:
            await self._give(channel, await self.holder.pause())
        except Exception as error:
            why = _reason(error)
            log.error("process %d has not taken over, this agent goes on: %s", channel.pid, why)
            with suppress(Gone, OSError):  # TimeoutError too: it is dead, or will find the connection closed
                await self._send(channel, Withdrawn(why=why), seconds=_LAST_WORD_SECONDS)
            try:
                await self.holder.resume()
            except Exception as fault:
                raise NotResumed(f"this agent cannot go on after a hand-over that failed: {fault}") from fault
            return False
        self.holder.release()
        try:
            await self._send(channel, Released())
        except (Gone, TimeoutError):
            log.warning("process %d has died since it took over", channel.pid)
        return True

    async def _give(self, channel: Channel, legacy: Legacy) -> None:
        """All of it within `patience_seconds`: however slow the other one is, pods wait no longer."""
        clock = asyncio.get_running_loop().time
        end = clock() + self.patience_seconds
        await self._send(channel, legacy.estate, legacy.sockets, seconds=self.patience_seconds)
        for pod in legacy.pods:
            await self._send(channel, pod.estate, descriptors_of(pod.listeners), seconds=max(0.001, end - clock()))
        reply, _ = await asyncio.to_thread(channel.receive, seconds=max(0.001, end - clock()))
        if not isinstance(reply, Taken):
            raise Stranger(f"said {type(reply).__name__}")

    async def _send(
        self,
        channel: Channel,
        message: Answer | Estate | PodEstate | Released | Withdrawn,
        descriptors: Sequence[int] = (),
        seconds: float = _SEND_SECONDS,
    ) -> None:
        await asyncio.to_thread(channel.send, message, descriptors, seconds=seconds)


def descriptors_of(listeners: Listeners) -> list[int]:
    """Those that there are, in the order of the fields."""
    found = (getattr(listeners, field.name) for field in fields(listeners))
    return [fd for fd in found if fd is not None]


def presence_of(listeners: Listeners) -> tuple[bool, ...]:
    return tuple(getattr(listeners, field.name) is not None for field in fields(listeners))


def _reason(error: BaseException) -> str:
    if isinstance(error, Gone):
        return "it has died"
    if isinstance(error, TimeoutError):
        return "it took too long"
    return str(error) or type(error).__name__
