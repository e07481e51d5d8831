"""The delta stream from the controller: Hello with what is held, Update applied, Ack or Nack, PodStatus.

Tightening goes before loosening by construction: an Update becomes one snapshot, `apply` swaps it in whole and closes
what lost its permission before anything else runs on the loop. No decision ever sees half of an Update, so no order of
its parts can open what the whole forbids. It is acknowledged when nothing is left that nobody has judged by it; whoever
holds that up, a thread that is stuck, holds up nothing else.

While the controller is away the last snapshot goes on serving, and the journal carries it over a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import aiohttp

from mesh.control import Ack, Hello, Nack, PodStatus, decode_update, encode
from mesh.route import Rng
from ztunnel.holdings import Holdings
from ztunnel.journal import Journal, Reader
from ztunnel.uplink import Refusal, Uplink

log = logging.getLogger(__name__)

_BACKOFF_FIRST = 0.2
_BACKOFF_LIMIT = 15.0
_STABLE = 10.0  # seconds; a stream that lasted as long was no failure
_TIDY_INTERVAL = 1.0
_TIDY_AGAIN = 10.0  # the disk may be full
_OBEY_INTERVAL = 0.05
_OBEY_FAILURES = 40  # in a row: two seconds without knowing what is permitted
VERSION = "1"


class Gibberish(Exception):
    """The controller said something that is no message of mesh.control; the stream is begun anew."""


@dataclass(slots=True, kw_only=True)
class Sync:
    """One node's end of the stream. `apply` gets each new Holdings, `settled` ends when all that is open was judged by
    them, `joined` is called after each Hello."""

    uplink: Uplink
    journal: Journal
    apply: Callable[[Holdings], None]
    settled: Callable[[], Awaitable[object]]
    joined: Callable[[], None]
    rng: Rng
    holdings: Holdings = field(default_factory=Holdings)
    connected: bool = False
    synced: bool = False  # a first Update has been applied since the agent started
    error: str = ""
    updates: int = 0  # received since the agent started
    terminations: int = 0  # streams that were up and ended
    _statuses: dict[str, PodStatus] = field(default_factory=dict)  # by instance: the latest of each
    _unsent: dict[str, PodStatus] = field(default_factory=dict)
    _outgoing: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self) -> str:
        return self.uplink.address

    def restore(self) -> bool:
        """Begin with what the last agent held, if that is on disk."""
        found = self.journal.restore()
        if found is None:
            return False
        self.holdings = found
        self.apply(found)
        return True

    def inherit(self, holdings: Holdings, *, synced: bool) -> None:
        """Begin with what a living agent has handed over; it writes no journal any more."""
        found = self.journal.restore()
        if found is None or found.hashes != holdings.hashes:  # what is added to another's state would make a third one
            log.warning("%s is written anew: it is not what the agent before held", self.journal.path)
            self.journal.close()
            self._changed.set()
        self.holdings, self.synced = holdings, synced
        self.apply(holdings)

    async def obey(self, lost: Callable[[], None]) -> None:
        """Instead of `run`, after a hand-over: follow what the successor is told, until cancelled. `lost`, called once:
        nobody can tell what is permitted any more."""
        reader, failures = Reader(path=self.journal.path), 0
        while True:
            try:
                if reader.read():
                    self.holdings = reader.holdings
                    self.apply(self.holdings)
                failures = 0
            except (OSError, ValueError) as error:
                failures += 1
                if failures == _OBEY_FAILURES:
                    log.error("%s cannot be followed any more: %s", reader.path, error)
                    lost()
                    return
            await asyncio.sleep(_OBEY_INTERVAL)

    def report(self, status: PodStatus) -> None:
        """Tell the controller of a pod now, and again after each reconnection."""
        if self._statuses.get(status.instance) == status:
            return
        self._statuses[status.instance] = self._unsent[status.instance] = status
        self._outgoing.set()

    def forget(self, instance: str) -> None:
        """The pod is gone; the controller hears it from the pod's own source."""
        self._statuses.pop(instance, None)
        self._unsent.pop(instance, None)

    async def run(self) -> None:
        """Stay connected until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tidy(), name="journal")
            attempt, clock = 0, asyncio.get_running_loop().time
            while True:
                began = clock()
                try:
                    await self._converse()
                except* (OSError, aiohttp.ClientError, TimeoutError, Refusal, Gibberish) as group:
                    self.error = "; ".join(f"{type(e).__name__}: {e}" for e in _leaves(group))
                self.terminations += self.connected
                self.connected = False
                attempt = 1 if clock() - began > _STABLE else attempt + 1
                seconds = backoff(attempt, self.rng)
                log.warning("controller %s: %s; again in %.1f s", self.address, self.error or "closed", seconds)
                await asyncio.sleep(seconds)

    async def _converse(self) -> None:
        async with self.uplink.stream() as socket:
            hello = Hello(node=self.uplink.node, version=VERSION, known=self.holdings.hashes)
            await socket.send_bytes(encode(hello))
            self.connected, self.error = True, ""
            log.info("controller %s: connected, %d resources held", self.address, len(hello.known))
            self._unsent = dict(self._statuses)
            self._outgoing.set()
            self.joined()
            async with asyncio.TaskGroup() as tasks:
                answers: asyncio.Queue[Ack | Nack] = asyncio.Queue()
                sending = tasks.create_task(self._send_statuses(socket), name="pod statuses")
                answering = tasks.create_task(self._send_answers(socket, answers), name="answers")
                await self._receive(socket, answers)
                sending.cancel()
                answering.cancel()

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse, answers: asyncio.Queue[Ack | Nack]) -> None:
        async for message in socket:
            if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                break
            answers.put_nowait(self._answer(message.data))
        failure = socket.exception()
        self.error = str(failure) if failure is not None else f"closed by the controller ({socket.close_code})"

    def _answer(self, data: bytes | str) -> Ack | Nack:
        try:
            update, undecodable = decode_update(data)
        except ValueError as error:
            raise Gibberish(f"no Update: {error}") from None
        self.updates += 1
        self.journal.add(data, to=self.holdings)
        self.holdings, invalid = self.holdings.after(update)
        self.apply(self.holdings)
        self.synced = True
        self._changed.set()
        errors = {**undecodable, **invalid}
        if not errors:
            return Ack(nonce=update.nonce)
        for key, why in errors.items():
            log.error("%s was not applied, its last good state stays: %s", key, why)
        return Nack(nonce=update.nonce, errors=errors)

    async def _send_answers(self, socket: aiohttp.ClientWebSocketResponse, answers: asyncio.Queue[Ack | Nack]) -> None:
        while True:
            answer = await answers.get()
            await self.settled()
            await socket.send_bytes(encode(answer))

    async def _send_statuses(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._outgoing.wait()
            self._outgoing.clear()
            while self._unsent:
                status = self._unsent.pop(next(iter(self._unsent)))
                await socket.send_bytes(encode(status))

    async def _tidy(self) -> None:
        """At most once a second."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if await self.journal.tidy(self.holdings):
                await asyncio.sleep(_TIDY_INTERVAL)
            else:
                await asyncio.sleep(_TIDY_AGAIN)
                self._changed.set()


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def backoff(attempt: int, rng: Rng) -> float:
    """Seconds before the next attempt: doubling from 0.2 to 15, half of it random, so that a thousand nodes do not come
    back at once."""
    seconds: float = min(_BACKOFF_LIMIT, _BACKOFF_FIRST * 2.0 ** min(attempt - 1, 10))
    return seconds * (0.5 + 0.5 * rng.random())
