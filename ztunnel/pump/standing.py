"""Standing orders as the engine's Python side gives them, and takes them back."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.identity import SpiffeId
from mesh.model import SocketAddress
from ztunnel.orders import Alternative, Begun, Passed, RelayTunnel, Standing, Trip
from ztunnel.pump._pump import Pump
from ztunnel.pump.book import Given
from ztunnel.pump.pod import Pod
from ztunnel.pump.tunnel_key import packed

_TRIP = struct.Struct("=QQQQQ")  # port, sent, received, opened, closed


@dataclass(slots=True, kw_only=True)
class Fence:
    """All orders of these pods with numbers up to `last` have lapsed; so many threads have still to tell of what lives
    under them."""

    pods: Sequence[Pod]
    last: int
    threads: int


class StandingOrders:
    """Of one engine. Nobody waits for a thread here: it says by facts how far it has come."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._kinds: dict[int, bytes] = {}  # of connections that nobody has decided about
        self._last = 0
        self._fences: dict[int, Fence] = {}  # in their order: each thread comes by them in that order, too
        self._last_fence = 0
        self._moved = asyncio.Event()

    def asked(self, number: int, kind: bytes) -> None:
        """Of a connection that Python is asked about; empty: every one like it is to be asked about, too."""
        if kind:
            self._kinds[number] = kind

    def answered(self, number: int) -> None:
        """There will be none from this one."""
        self._kinds.pop(number, None)

    def wanted(self, number: int, pod: Pod) -> bool:
        kind = self._kinds.get(number)
        return kind is not None and kind not in pod.book.standing

    def give(self, standing: Standing, pod: Pod) -> None:
        """ValueError, and nothing stands."""
        kind = self._kinds.pop(standing.id, None)
        alternatives = standing.alternatives
        if kind is None or kind in pod.book.standing or not pod.listening:
            return
        first, upto, told = self._last + 1, 0, []
        for number, alternative in enumerate(alternatives, first):
            upto += alternative.weight
            told.append((number, upto, *_order(alternative, pod)))
        self._pump.stand(pod.number, kind, told)
        self._last += len(told)
        for recalled in pod.book.add(Given(kind=kind, first=first, names=[each.name for each in alternatives])):
            self._pump.recall(pod.number, recalled.kind)

    def lapse(self, number: int, pods: Sequence[Pod]) -> None:
        """`number` as for `Pump.lapse`; `pods` are those."""
        self._last_fence += 1
        self._pump.lapse(number, self._last_fence)
        for pod in pods:
            pod.book.lapse()
        self._fences[self._last_fence] = Fence(pods=pods, last=self._last, threads=self._pump.threads)

    def lapsed(self, number: int) -> None:
        """A thread has come by this fence."""
        fence = self._fences[number]
        fence.threads -= 1
        if fence.threads == 0:
            del self._fences[number]
            for pod in fence.pods:
                pod.book.lapsed(fence.last)
            self._moved.set()

    async def settled(self) -> None:
        """Until all threads have come by the fences there are now."""
        last = self._last_fence
        while self._fences and next(iter(self._fences)) <= last:
            self._moved.clear()
            await self._moved.wait()

    def end(self) -> None:
        """The threads have ended, and all was taken that they have told."""
        self._fences.clear()
        self._moved.set()


def begun(pod: Pod, number: int, alternative: int, port: int, trace: str, began_ns: int) -> Begun:
    under = pod.book.use(alternative)
    return Begun(id=number, pod=pod.name, under=under, port=port, trace=trace, began_ns=began_ns)


def passed(pod: Pod, alternative: int, peer: str, count: int, sent: int, received: int, each: bytes) -> Passed:
    def trips(ip: str) -> Sequence[Trip]:
        return [Trip(SocketAddress(ip, port), *numbers) for port, *numbers in _TRIP.iter_unpack(each)]

    return Passed(
        under=pod.book.use(alternative),
        peer=SpiffeId.parse(peer) if peer else None,
        connections=count,
        sent=sent,
        received=received,
        each=trips,
    )


def _order(alternative: Alternative, pod: Pod) -> tuple[object, ...]:
    """As `Pump.stand` wants it."""
    order = alternative.order
    if not isinstance(order, RelayTunnel):
        last_hop = order.as_client is not None
        if order.bind != (order.destination.ip if last_hop else None):
            raise ValueError(f"a last hop of pod {pod.title} to {order.destination} is bound to {order.bind}")
        return False, last_hop, *order.destination, order.response_headers
    key, source, expected = packed(order.key, pod.name)
    return True, False, *order.key.address, key, source, expected, order.authority.encode("latin-1"), order.headers
