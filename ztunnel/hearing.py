"""What the kernel tells of direct connections, one drain of its ring at a time.

A storm is of short connections: most are over before the agent hears that they began. Such ones get no records; all
that are alike are counted, and logged, together. The others are told one by one, in the order they came.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bpf import DirectBarred, DirectClosed, DirectDrained, DirectOpened, DirectReady, Mismatch
from mesh.model import SocketAddress
from ztunnel.direct import Direct
from ztunnel.flows import Heard

log = logging.getLogger(__name__)

Tiding = DirectOpened | DirectClosed | DirectReady | DirectDrained | DirectBarred | Mismatch


class Kind(NamedTuple):
    """What connections have in common that one verdict and one set of labels hold for."""

    source: int  # netns cookies
    destination: int
    client: str  # IP address
    server: SocketAddress
    asked: SocketAddress


def part(events: Iterable[Tiding], known: Container[int]) -> tuple[dict[Kind, list[DirectClosed]], list[Tiding]]:
    """Those that were opened and closed among `events`, by kind, and all other events in their order. `known` are the
    ids that have records already."""
    open_: set[int] = set()
    over: set[int] = set()
    kinds: dict[Kind, list[DirectClosed]] = {}
    events = tuple(events)
    for event in events:
        if type(event) is DirectOpened:
            open_.add(event.id)
        elif type(event) is DirectClosed and event.id in open_ and event.id not in known:
            over.add(event.id)
            kind = Kind(event.source, event.destination, event.client.ip, event.server, event.asked)
            kinds.setdefault(kind, []).append(event)
    return kinds, [event for event in events if event.id not in over]


@dataclass(slots=True, kw_only=True)
class Hearing:
    """Tells the direct path. `instance` names the pod with a netns cookie; empty: nobody knows."""

    direct: Direct
    instance: Callable[[int], str]

    def hear(self, events: Sequence[Tiding], drained: bool) -> None:
        """One that cannot be told is not the end of all others. `drained`: there are no more, for now."""
        kinds, rest = part(events, self.direct.flows.live)
        for ended in kinds.values():
            try:
                if not self.direct.passed(self._heard(ended[0]), ended):
                    rest += ended
            except Exception:
                log.exception("%d direct connections that are over, as %r", len(ended), ended[0])
        for event in rest:
            try:
                self._tell(event)
            except Exception:
                log.exception("event of the kernel side: %r", event)
        if drained:
            self.direct.flows.drains += 1

    def _tell(self, event: Tiding) -> None:
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
        elif isinstance(event, DirectBarred):
            self.direct.barred(heard, event.destination)
        else:
            self.direct.mismatched(heard)

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
        )
