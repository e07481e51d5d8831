"""What the kernel tells of direct connections, one drain of its ring at a time, and what it adds up.

Most connections are short: they are over before anybody looks. Such ones get no records; all that are alike are counted
together, and logged together where each of them is wanted. The others are told one by one, in the order they came.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from bpf import DirectBarred, DirectClosed, DirectDrained, DirectOpened, DirectReady, DirectTally, Mismatch
from mesh.model import SocketAddress
from ztunnel.connections import Tally
from ztunnel.direct import Direct
from ztunnel.flows import Heard, Ledger

log = logging.getLogger(__name__)

_LOOK = 0.5  # seconds

Told = DirectOpened | DirectClosed | DirectReady | DirectDrained | DirectBarred  # one by one
Tiding = Told | Mismatch


class Kind(NamedTuple):
    """What connections have in common that one verdict and one set of labels hold for."""

    source: int  # netns cookies
    destination: int
    client: str  # IP address
    server: SocketAddress
    asked: SocketAddress


def part(events: Iterable[Tiding], known: Container[int]) -> tuple[dict[Kind, list[DirectClosed]], list[Tiding]]:
    """The ends of flows that nobody has heard of, by kind, and all other events in their order. `known` are the ids
    that have records."""
    begun: set[int] = set()
    kinds: dict[Kind, list[DirectClosed]] = {}
    rest: list[Tiding] = []
    for event in events:
        if type(event) is DirectClosed and event.id not in known and event.id not in begun:
            kind = Kind(event.source, event.destination, event.client.ip, event.server, event.asked)
            kinds.setdefault(kind, []).append(event)
            continue
        if type(event) is DirectOpened:
            begun.add(event.id)
        rest.append(event)
    return kinds, rest


@dataclass(slots=True, kw_only=True)
class Hearing:
    """Tells the direct path. `instance` names the pod with a netns cookie; empty: nobody knows. `each`: whether every
    end is to be told by itself."""

    direct: Direct
    ledger: Ledger
    instance: Callable[[int], str]
    each: Callable[[], bool]
    monotonic: Callable[[], float]  # seconds
    _looked: float = -inf

    def hear(self, events: Sequence[Tiding], drained: bool) -> None:
        """What there is to hear; twice a second, also what there is to see. One that cannot be told is not the end of
        all others. `drained`: there are no more events, for now."""
        kinds, rest = part(events, self.direct.flows.live)
        for ended in kinds.values():
            try:
                if not self.direct.passed(self._heard(ended[0]), ended):
                    rest += ended
            except Exception:
                log.exception("%d direct connections that are over, as %r", len(ended), ended[0])
        astray = []
        for event in rest:
            try:
                if isinstance(event, Mismatch):
                    astray.append(self._heard(event))
                else:
                    self._tell(event)
            except Exception:
                log.exception("event of the kernel side: %r", event)
        try:
            self.direct.mismatched(astray)
        except Exception:
            log.exception("%d direct connections that were astray", len(astray))
        if drained:
            self.direct.flows.drains += 1
        now = self.monotonic()
        if now - self._looked >= _LOOK:
            self._looked = now
            self._look()

    def _look(self) -> None:
        """What was opened, and what is over already."""
        self.direct.find()
        try:
            self.ledger.tell_each(self.each())
            tallies = self.ledger.turn() if self.direct.knows else ()
        except OSError as error:
            log.warning("direct connections that are over cannot be counted; again in %s s: %s", _LOOK, error)
            return
        for tally in tallies:
            try:
                self._count(tally)
            except Exception:
                log.exception("direct connections that are over: %r", tally)

    def _count(self, told: DirectTally) -> None:
        like = Heard(
            id=0,
            source=self.instance(told.source),
            destination=self.instance(told.destination),
            client=SocketAddress(told.client, 0),
            server=told.server,
            asked=told.asked,
        )
        self.direct.tallied(like, Tally(connections=told.flows, sent=told.sent, received=told.received))

    def _tell(self, event: Told) -> None:
        if isinstance(event, DirectDrained):
            self.direct.drained(event, self.instance(event.destination if event.at_client else event.source))
            return
        heard = self._heard(event)
        if isinstance(event, DirectOpened):
            self.direct.opened(heard)
        elif isinstance(event, DirectClosed):
            self.direct.closed(heard)
        elif isinstance(event, DirectReady):
            self.direct.ready(heard, event.destination)
        else:
            self.direct.barred(heard, event.destination)

    def _heard(self, event: Tiding) -> Heard:
        over = isinstance(event, DirectClosed)
        return Heard(
            id=event.id,
            source=self.instance(event.source),
            destination=self.instance(event.destination),
            client=event.client,
            server=event.server,
            asked=event.asked,
            sent=event.sent if over else 0,
            received=event.received if over else 0,
            opened_ns=event.opened_ns if isinstance(event, DirectOpened | DirectClosed) else 0,
            closed_ns=event.closed_ns if isinstance(event, DirectClosed) else 0,
        )
