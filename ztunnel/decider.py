"""Facts in, one order each out: every decision takes one snapshot and is recorded beside its order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

from mesh.model import SocketAddress, Workload
from mesh.reason import Reason
from mesh.snapshot import Snapshot
from ztunnel import capture, inbound
from ztunnel.capture import Answer, Rng
from ztunnel.connections import Connection, Connections
from ztunnel.orders import Captured, Deaf, Ended, Fact, Offered, Opened, Order, Plaintext, Refuse, RelayTunnel

log = logging.getLogger(__name__)

WAIT_SECONDS = 5.0  # for a pod's own workload (istio-facts §1.6, §1.8)
MAX_WAITING = 2000  # connections; more are refused at once

Question = Captured | Offered | Plaintext


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
    tunnelled: Callable[[Connection], None] = lambda _: None  # told of each outbound one that goes through the tunnel
    drawable: Callable[[SocketAddress], Collection[SocketAddress]] = lambda _: ()  # a Service's, by the kernel side
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
                case Deaf():
                    self.deaf(fact.pod)
                case _:
                    assert_never(fact)

    def swapped(self) -> None:
        """There is a new snapshot: close what lost its permission, answer those who waited for their workload."""
        snapshot = self.snapshot()
        for close in self.connections.revoked(snapshot):
            log.info("connection %d is closed: %s", close.id, close.detail)
            self.order(close)
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
        if isinstance(answer.order, RelayTunnel):
            try:
                self.tunnelled(answer.connection)
            except Exception:  # it goes on, whatever comes of the next one like it
                log.exception("connection %d was not followed up", fact.id)

    def _answer(self, fact: Question) -> Answer:
        snapshot = self.snapshot()
        workload = self.workload(snapshot, fact.pod)
        match fact:
            case Captured():
                besides = self.drawable(fact.destination) if fact.elsewhere else ()
                return capture.answer(snapshot, workload, fact, self.rng, self.now(), besides)
            case Offered():
                return inbound.offered(snapshot, workload, fact, self.now())
            case Plaintext():
                return inbound.plaintext(snapshot, workload, fact, self.now())
            case _:
                assert_never(fact)
