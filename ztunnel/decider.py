"""Facts in, one order each out: every decision takes one snapshot and is recorded beside its order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, assert_never

from mesh.model import SocketAddress, Workload
from mesh.reason import Reason
from mesh.snapshot import Snapshot
from ztunnel import capture, inbound, standing
from ztunnel.capture import Answer, Rng
from ztunnel.connections import Connection, Connections, Tally
from ztunnel.orders import (
    Begun,
    Captured,
    Close,
    Deaf,
    Ended,
    Fact,
    Offered,
    Opened,
    Order,
    Passed,
    Plaintext,
    Refuse,
    RelayTunnel,
    Standing,
)
from ztunnel.standing import Template

log = logging.getLogger(__name__)

WAIT_SECONDS = 5.0  # for a pod's own workload (istio-facts §1.6, §1.8)
MAX_WAITING = 2000  # connections; more are refused at once

Question = Captured | Offered | Plaintext


class Stands(Protocol):
    """What of the engine concerns standing orders; see `ztunnel.orders.Engine`."""

    def stands(self, id_: int) -> bool: ...
    def stand(self, standing: Standing) -> None: ...
    def lapse(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class Decider:
    """Answers the engine. `workload` finds the workload of a pod by its instance in a snapshot; `deaf` is told of a pod
    (instance) whose listeners are gone."""

    snapshot: Callable[[], Snapshot]
    workload: Callable[[Snapshot, str], Workload | None]
    order: Callable[[Order], None]
    connections: Connections
    deaf: Callable[[str], None]
    rng: Rng
    now: Callable[[], datetime]
    tunnelled: Callable[[Connection], None] = lambda _: None  # told of outbound ones that go through the tunnel
    drawable: Callable[[SocketAddress], Collection[SocketAddress]] = lambda _: ()  # a Service's, by the kernel side
    stands: Stands | None = None  # None: every connection is asked about
    each: Callable[[], bool] = lambda: True  # whether those that have passed are to be told one by one
    monotonic_ns: Callable[[], int] = time.monotonic_ns
    blind: bool = False  # nobody can tell any more what is permitted: nothing goes on that is told of late
    _waiting: deque[tuple[float, Question]] = field(default_factory=deque)  # in the order of their deadlines
    _timer: asyncio.TimerHandle | None = None

    def facts(self, facts: Sequence[Fact]) -> None:
        """Called by the engine, on the loop's thread."""
        for fact in facts:
            match fact:
                case Captured() | Offered() | Plaintext():
                    self._question(fact)
                case Opened():
                    self.connections.opened(fact)
                case Ended():
                    self.connections.ended(fact)
                case Passed():
                    self._passed(fact)
                case Begun():
                    self._begun(fact)
                case Deaf():
                    self.deaf(fact.pod)
                case _:
                    assert_never(fact)

    def swapped(self) -> None:
        """There is a new snapshot: close what lost its permission, answer those who waited for their workload. Those
        under standing orders are judged as they are told of."""
        snapshot = self.snapshot()
        if self.stands is not None:
            self.stands.lapse()
        for close in self.connections.revoked(snapshot):
            self._close(close)
        for _ in range(len(self._waiting)):
            deadline, fact = self._waiting.popleft()
            if self.workload(snapshot, fact.pod) is None:
                self._waiting.append((deadline, fact))
            else:
                self._decide(fact)

    def _question(self, fact: Question) -> None:
        if self.workload(self.snapshot(), fact.pod) is None and len(self._waiting) < MAX_WAITING:
            loop = asyncio.get_running_loop()
            self._waiting.append((loop.time() + WAIT_SECONDS, fact))
            if self._timer is None:
                self._timer = loop.call_later(WAIT_SECONDS, self._expire)
        else:
            self._decide(fact)

    def _expire(self) -> None:
        """Decide without the workload about those that have waited long enough: they are refused."""
        loop = asyncio.get_running_loop()
        while self._waiting and self._waiting[0][0] <= loop.time() + 0.01:
            self._decide(self._waiting.popleft()[1])
        self._timer = loop.call_at(self._waiting[0][0], self._expire) if self._waiting else None

    def _decide(self, fact: Question) -> None:
        try:
            answer = self._answer(fact)
        except Exception:
            # A fault of ours refuses one connection; it neither opens it nor ends the agent.
            log.exception("no decision about %r", fact)
            self.order(Refuse(id=fact.id, reason=Reason.INTERNAL, detail="the decision failed"))
            return
        for note in answer.connection.notes:
            log.warning("connection %d to %s: %s", fact.id, fact.pod, note)
        self.connections.begin(answer.connection)
        self.order(answer.order)
        try:
            self._follow_up(fact, answer)
        except Exception:  # it goes on, whatever comes of the next one like it
            log.exception("connection %d was not followed up", fact.id)

    def _follow_up(self, fact: Question, answer: Answer) -> None:
        """What comes of the next one like it."""
        if isinstance(answer.order, RelayTunnel):
            self.tunnelled(answer.connection)
        if self.stands is None or not self.stands.stands(fact.id):
            return
        snapshot, order = self.snapshot(), None
        if not isinstance(fact, Captured):
            order = standing.inbound(snapshot, fact, answer)
        elif answer.connection.source is not None:
            order = standing.outbound(snapshot, answer.connection.source, fact, answer, self.rng, self._besides(fact))
        if order is not None:
            self.stands.stand(order)

    def _begun(self, fact: Begun) -> None:
        """Under a standing order: nobody was asked. Policy may have changed since."""
        assert isinstance(fact.under, Template)
        snapshot = self.snapshot()
        ago = timedelta(microseconds=(self.monotonic_ns() - fact.began_ns) / 1000)
        connection = fact.under.begun(fact, self.now() - ago)
        self.connections.begin(connection)
        if self.blind:
            self._close(Close(id=fact.id, reason=Reason.REVOKED, detail="the agent cannot learn what is permitted"))
        elif fact.under.snapshot is not snapshot:
            close = self.connections.judged(connection, snapshot)
            if close is not None:
                self._close(close)

    def _passed(self, fact: Passed) -> None:
        assert isinstance(fact.under, Template)
        common = fact.under.opened(fact.peer)
        if self.each():
            self.connections.passed(common, fact.each(common.client.ip))
        else:
            tally = Tally(connections=fact.connections, sent=fact.sent, received=fact.received)
            self.connections.tallied(common, tally)
        if common.hbone is not None and not common.inbound:
            self.tunnelled(common)

    def _close(self, close: Close) -> None:
        log.info("connection %d is closed: %s", close.id, close.detail)
        self.order(close)

    def _besides(self, fact: Captured) -> Collection[SocketAddress]:
        return self.drawable(fact.destination) if fact.elsewhere else ()

    def _answer(self, fact: Question) -> Answer:
        snapshot = self.snapshot()
        workload = self.workload(snapshot, fact.pod)
        match fact:
            case Captured():
                return capture.answer(snapshot, workload, fact, self.rng, self.now(), self._besides(fact))
            case Offered():
                return inbound.offered(snapshot, workload, fact, self.now())
            case Plaintext():
                return inbound.plaintext(snapshot, workload, fact, self.now())
            case _:
                assert_never(fact)
