"""Standing orders as the engine's Python side knows them: which kinds of a pod's connections have one, and what its
alternatives are called."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from mesh.identity import SpiffeId
from mesh.model import SocketAddress
from ztunnel.orders import Alternative, Begun, Passed, RelayTunnel, Standing, Trip
from ztunnel.pump._pump import Pump
from ztunnel.pump.pod import Pod
from ztunnel.pump.tunnel_key import packed

MOST = 1024  # alternatives of a pod: some 2 MiB here, and as much on each thread
_TRIP = struct.Struct("=QQQQQ")  # port, sent, received, opened, closed


class StandingOrders:
    """Of one engine. `full` is called for a pod that has no room for more: all of its orders are to lapse soon."""

    def __init__(self, pump: Pump, full: Callable[[Pod], None]) -> None:
        self._pump, self._full = pump, full
        self._kinds: dict[int, bytes] = {}  # of connections that nobody has decided about
        self._last = 0

    def asked(self, number: int, kind: bytes) -> None:
        """Of a connection that Python is asked about; empty: every one like it is to be asked about, too."""
        if kind:
            self._kinds[number] = kind

    def answered(self, number: int) -> None:
        """There will be none from this one."""
        self._kinds.pop(number, None)

    def wanted(self, number: int, pod: Pod) -> bool:
        kind = self._kinds.get(number)
        return kind is not None and kind not in pod.kinds

    def give(self, standing: Standing, pod: Pod) -> None:
        """ValueError, and nothing stands."""
        kind = self._kinds.pop(standing.id, None)
        alternatives = standing.alternatives
        if kind is None or kind in pod.kinds or not pod.listening:
            return
        if len(pod.alternatives) + len(alternatives) > MOST:
            self._full(pod)
            return
        first, upto, told = self._last + 1, 0, []
        for number, alternative in enumerate(alternatives, first):
            upto += alternative.weight
            told.append((number, upto, *_order(alternative, pod)))
        self._pump.stand(pod.number, kind, told)
        self._last += len(told)
        pod.kinds.add(kind)
        pod.alternatives.update((number, a.name) for number, a in enumerate(alternatives, first))

    def lapsed(self, pods: Sequence[Pod]) -> int:
        """No order of these pods stands any more; for `forget`."""
        for pod in pods:
            pod.kinds.clear()
        return self._last

    def forget(self, pods: Sequence[Pod], last: int, take_facts: Callable[[], None]) -> None:
        """What had lapsed, once all was taken that was told about connections under it."""
        take_facts()
        for pod in pods:
            pod.alternatives = {number: name for number, name in pod.alternatives.items() if number > last}


def begun(pod: Pod, number: int, alternative: int, port: int, trace: str, began_ns: int) -> Begun:
    under = pod.alternatives[alternative]
    return Begun(id=number, pod=pod.name, under=under, port=port, trace=trace, began_ns=began_ns)


def passed(pod: Pod, alternative: int, peer: str, count: int, sent: int, received: int, each: bytes) -> Passed:
    def trips(ip: str) -> Sequence[Trip]:
        return [Trip(SocketAddress(ip, port), *numbers) for port, *numbers in _TRIP.iter_unpack(each)]

    return Passed(
        under=pod.alternatives[alternative],
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
