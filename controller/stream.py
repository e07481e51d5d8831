"""One node's stream. `Session` decides what to send, without I/O; `serve` moves the messages.

One update is in flight at a time; what changes meanwhile is coalesced, because the next update is the difference
between what the node holds and the newest translation, nothing else. A resource that a node refused is not sent again
until it changes or the node reconnects.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec

from controller.state import NodeState, State
from controller.translate.snapshot import Translation
from mesh.control import MAX_MESSAGE_BYTES, Ack, Entry, Hello, Nack, PodStatus, Update, decode_from_node, encode

_log = logging.getLogger(__name__)

ACK_TIMEOUT_S = 60.0
SEND_TIMEOUT_S = 30.0
HELLO_TIMEOUT_S = 10.0
MAX_UPDATE_BYTES = MAX_MESSAGE_BYTES // 4
CLOSED = "closed by the node"
_GONE = ""  # the "hash" of a removal
_ORDER = {"policy": 0, "service": 1, "workload": 2}  # who is sent in pieces learns of denials first
_RATE, _BURST = 500.0, 5_000.0  # messages per second from a node; a faster one is read later


class Socket(Protocol):
    """What a stream needs of a WebSocket. Iteration ends when the peer is gone."""

    def __aiter__(self) -> AsyncIterator[str | bytes]: ...
    async def send(self, data: bytes) -> None: ...


class ProtocolError(ValueError):
    """The node broke the protocol; the stream ends."""


class Session:
    """What one node holds, and what it must get. Pure."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self._held: dict[str, str] = dict(known)
        self._refused: dict[str, tuple[str, str]] = {}  # key -> (hash, why)
        self._in_flight: dict[str, str] | None = None  # key -> hash
        self._nonce = 0

    @property
    def refused(self) -> dict[str, str]:
        return {key: why for key, (_, why) in self._refused.items()}

    def next_update(self, translation: Translation, limit: int = MAX_UPDATE_BYTES) -> Update | None:
        """The difference to the newest translation, at most about `limit` bytes of it; None if there is none.

        The first one is sent even if it is empty: the node then knows that it is up to date, and its mesh's names.
        """
        if self._in_flight is not None:
            raise RuntimeError("one update in flight at a time")
        for key, (hashed, _) in list(self._refused.items()):
            wanted = translation.entries[key].hash if key in translation.entries else _GONE
            if wanted != hashed:
                del self._refused[key]  # it changed: another chance
        changed = [
            (key, entry)
            for key, entry in translation.entries.items()
            if self._held.get(key) != entry.hash and self._refused.get(key, (None,))[0] != entry.hash
        ]
        gone = [
            key for key in self._held if key not in translation.entries and self._refused.get(key, (None,))[0] != _GONE
        ]
        whole, taken = _cut(changed, limit)
        removes = tuple(gone) if whole else ()  # removals loosen as often as they tighten: last
        if not taken and not removes and self._nonce:
            return None
        self._nonce += 1
        self._in_flight = {key: entry.hash for key, entry in taken} | dict.fromkeys(removes, _GONE)
        return Update(
            nonce=self._nonce,
            upserts=tuple(entry for _, entry in taken),
            removes=removes,
            trust_domain=translation.settings.trust_domain,
            root_namespace=translation.settings.root_namespace,
        )

    def answered(self, nonce: int, errors: Mapping[str, str]) -> None:
        """Ack (no errors) or nack. ProtocolError if it answers nothing that was asked."""
        if self._in_flight is None or nonce != self._nonce:
            raise ProtocolError(f"an answer to nonce {nonce}, which is not in flight")
        for key, hashed in self._in_flight.items():
            if key in errors:
                self._refused[key] = (hashed, errors[key][:500])
                continue
            self._refused.pop(key, None)
            if hashed == _GONE:
                self._held.pop(key, None)
            else:
                self._held[key] = hashed
        self._in_flight = None


def _cut(changed: list[tuple[str, Entry]], limit: int) -> tuple[bool, list[tuple[str, Entry]]]:
    """(all of it?, what fits). Cutting is for the first update of a huge mesh, in an order that denies first."""
    changed.sort(key=lambda pair: _ORDER[pair[0].partition("/")[0]])
    size = 0
    for index, (_, entry) in enumerate(changed):
        size += len(msgspec.json.encode(entry)) + 1
        if size > limit and index:
            return False, changed[:index]
    return True, changed


class Pace:
    """A token bucket that delays its user."""

    def __init__(self, rate: float = _RATE, burst: float = _BURST) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, time.monotonic()

    async def one(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - 1
        self._at = now
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._rate)


async def serve(socket: Socket, node: str, state: State) -> str:
    """Serve one stream until it ends; returns why it did. Never raises because of the peer."""
    messages = aiter(socket)
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello = decode_from_node(await anext(messages))
    except (TimeoutError, StopAsyncIteration):
        return "no hello"
    except ValueError as error:
        return f"not a hello: {error}"[:200]
    if not isinstance(hello, Hello) or hello.node != node:
        return "the first message is not this node's hello"
    known = state.node(node)
    known.connected, known.version, known.since = True, hello.version[:64], time.time()
    known.sent = known.acknowledged = 0
    known.rejected = {}
    session = Session(hello.known)
    answered = asyncio.Event()
    why = CLOSED
    try:
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(_read(messages, session, node, state, known, answered))
            writer = tasks.create_task(_write(socket, session, state, known, answered))
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            reader.cancel()
            writer.cancel()
    except* (ProtocolError, TimeoutError, OSError) as group:
        why = "; ".join(str(e) or type(e).__name__ for e in group.exceptions)[:300]
    return why


async def _read(
    messages: AsyncIterator[str | bytes],
    session: Session,
    node: str,
    state: State,
    known: NodeState,
    answered: asyncio.Event,
) -> None:
    pace = Pace()
    async for data in messages:
        await pace.one()
        try:
            message = decode_from_node(data)
        except ValueError as error:
            raise ProtocolError(f"a message that is not of the protocol: {error}"[:200]) from None
        if isinstance(message, PodStatus):
            ignored = state.report(node, message)
            level = logging.WARNING if ignored or message.error else logging.INFO
            facts = {"node": node, "pod": message.uid[:300], "redirection": message.redirection.value}
            _log.log(level, "pod status", extra=facts | {"error": message.error[:300], "ignored": ignored})
        elif isinstance(message, Hello):
            raise ProtocolError("a second hello")
        else:
            _answer(message, session, known, state)
            answered.set()


def _answer(message: Ack | Nack, session: Session, known: NodeState, state: State) -> None:
    errors = message.errors if isinstance(message, Nack) else {}
    session.answered(message.nonce, errors)
    known.acknowledged = message.nonce
    known.rejected = session.refused
    if isinstance(message, Ack):
        state.metrics.acks.inc()
        return
    state.metrics.nacks.inc()
    for key, why in list(errors.items())[:20]:
        _log.warning("a node refused a resource", extra={"node": known.name, "resource": key[:300], "why": why[:300]})


async def _write(socket: Socket, session: Session, state: State, known: NodeState, answered: asyncio.Event) -> None:
    version = 0
    while True:
        version = await state.newer_than(version)
        while (update := session.next_update(state.translation)) is not None:
            known.rejected = session.refused
            answered.clear()
            known.sent = update.nonce
            async with _within(SEND_TIMEOUT_S, "the node does not read"):
                await socket.send(encode(update))
            state.metrics.pushes.inc()
            async with _within(ACK_TIMEOUT_S, "the node does not answer"):
                await answered.wait()


@asynccontextmanager
async def _within(seconds: float, text: str) -> AsyncIterator[None]:
    """asyncio.timeout whose error says what was waited for."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TimeoutError(text) from None
