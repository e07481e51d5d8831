"""The seam between deciding and moving bytes.

The engine (whatever implements `Engine`) owns sockets, TLS and HTTP/2 and knows nothing of policy. It reports facts;
the deciding side answers each Captured, Plaintext and Offered with exactly one order, given once per connection:
Refuse, RelayPlain or RelayTunnel. After that it is not asked again; it may Close what it allowed before. Ended is the
last fact about a connection, also about a refused one. Facts and orders are plain values: they can cross a queue in
batches.

With an order may come a Standing one, for all connections that are like this in everything but the client's port: the
engine does not ask about those. It tells of them when they are over, many together (Passed), or that they have Begun.

Ids are unique in the life of one engine. Bytes are counted as the application payload: `sent` from downstream (who
opened the connection) to upstream, `received` the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mesh.identity import SpiffeId
from mesh.model import Dialled, SocketAddress
from mesh.reason import Reason

# Facts: engine -> decider


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A pod's own connect() arrived at the outbound listener in its netns."""

    id: int
    pod: str
    client: SocketAddress
    destination: SocketAddress  # what the application asked for
    drawn: SocketAddress | None = None  # these two as in Dialled
    elsewhere: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plaintext:
    """A connection to the pod that came neither through a tunnel nor from the kubelet landed on 15006."""

    id: int
    pod: str
    client: SocketAddress
    destination: SocketAddress  # the pod's own address and port, as dialled


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """An HTTP/2 request on a tunnel connection to the pod, TLS verified against the roots and the trust domain."""

    id: int
    pod: str
    client: SocketAddress  # the peer of the tunnel connection
    local: SocketAddress  # the address the tunnel connection was made to
    peer: SpiffeId
    method: str
    authority: str
    headers: Sequence[tuple[str, str]]  # baggage, forwarded, traceparent…; pseudo headers left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The upstream side of an allowed connection is up (TCP connected, or the peer answered the CONNECT with 200)."""

    id: int
    peer: SpiffeId | None = None  # the identity that the upstream's certificate proved
    upstream: SocketAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Nothing of this connection is left."""

    id: int
    reason: Reason
    detail: str
    sent: int
    received: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deaf:
    """Of no connection: a listener of the pod is gone although nobody here closed it. What is open goes on; to hear
    again, the pod is removed (`listeners_only`) and added."""

    pod: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A connection under a standing order lives, or has failed. Opened, if it was, and Ended follow."""

    id: int
    pod: str
    under: object  # the `name` of the alternative that it goes by
    port: int  # the client's
    trace: str  # W3C traceparent that was sent or received; empty: none
    began_ns: int  # CLOCK_MONOTONIC


class Trip(NamedTuple):
    """One connection that is over. Times are CLOCK_MONOTONIC."""

    client: SocketAddress
    sent: int
    received: int
    opened_ns: int
    closed_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """Connections under a standing order, all by one alternative, that have opened and ended well since they were told
    of last. `each` takes the address that they came from."""

    under: object
    peer: SpiffeId | None  # as in Opened
    connections: int
    sent: int  # bytes, of all together
    received: int
    each: Callable[[str], Sequence[Trip]]


Fact = Captured | Plaintext | Offered | Opened | Ended | Deaf | Begun | Passed


# Orders: decider -> engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """RST to a captured or plaintext connection; `reason.http_status` to a tunnel request."""

    id: int
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayPlain:
    """Dial plain TCP from inside the pod's netns and relay. With `as_client`, this is the last hop to the application:
    the socket is bound to `bind` (the pod's own address), and the application is shown `as_client` as its peer."""

    id: int
    destination: SocketAddress
    bind: str | None = None
    as_client: SocketAddress | None = None
    response_headers: Sequence[tuple[str, str]] = ()  # with the 200 to an Offered


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelKey:
    """Connections share a tunnel only if all of this is equal: a reused address never meets an old tunnel."""

    pod: str  # the source pod instance: the netns it is dialled from
    source: SpiffeId
    expected: frozenset[SpiffeId]  # the peer's certificate must carry one of these as URI SAN
    workload: str  # destination: Workload.uid + "@" + Workload.instance
    address: SocketAddress  # podIP:15008


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayTunnel:
    """Relay through a stream of the tunnel named by `key`; dial it if there is none with room."""

    id: int
    key: TunnelKey
    authority: str
    headers: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """End an open connection with an error on both sides (RST, RST_STREAM): its permission is gone."""

    id: int
    reason: Reason
    detail: str = ""


Order = Refuse | RelayPlain | RelayTunnel | Close

PORT, TRACE = "\0", "\1"  # in headers of a standing order: the client's port, a fresh traceparent


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """What a standing order may come to. Of `as_client` it only counts that there is one: every connection's own."""

    weight: int
    order: RelayPlain | RelayTunnel
    name: object  # by which facts refer to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """For every connection of the kind of this one, until it lapses. Alternatives are drawn by weight."""

    id: int
    alternatives: Sequence[Alternative]


# What the engine is built with


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a pod proves and whom it trusts. DER; keys never touch a disk."""

    identity: SpiffeId
    chain: tuple[bytes, ...]  # leaf first
    key: bytes  # PKCS#8
    roots: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """File descriptors of the agent's listeners in one pod's netns, for the kernel's sk_lookup program to steer to.
    Bound to arbitrary ports: the program assigns by slot, whatever ports those are. None: family not available."""

    outbound4: int
    outbound6: int | None
    plaintext4: int
    plaintext6: int | None
    tunnel4: int
    tunnel6: int | None


class Steering(Protocol):
    """What the engine needs of the kernel side per connection (implemented by `bpf`)."""

    def original_destination(self, cookie: int, local: SocketAddress, peer: SocketAddress) -> Dialled | None:
        """What was dialled, for a connection accepted by an outbound listener of the netns with this cookie.
        `local` and `peer` as the accepted socket reports them. None: nobody recorded it, refuse."""

    def announce(self, socket_cookie: int, client: SocketAddress) -> None:
        """Before connect(): the application shall see `client` as the peer of this last-hop socket."""

    def withdraw(self, socket_cookie: int) -> None:
        """The announced socket failed before it was connected."""


class Engine(Protocol):
    """Moves bytes. All methods are called on the event loop's thread and do not block; those about pods wait for the
    threads to do their part. For one that is stuck they wait two seconds, once; it does its part when it goes on."""

    @property
    def refused(self) -> Mapping[Reason, int]:
        """Connections turned away before they had an id, since the start: failed handshakes, limits, stray captures."""

    def add_pod(
        self,
        pod: str,
        netns: int,
        trust_domain: str,
        addresses: Sequence[str],
        listeners: Listeners | None = None,
        *,
        title: str = "",
    ) -> Listeners:
        """Make the listeners of a pod in its netns (a file descriptor, duplicated); not accepting yet. `listeners`:
        those of another agent's engine, to go on with; the descriptors belong to this engine from now on, also if it
        raises. `title`: what log lines call the pod. Returns the listeners as they are; the descriptors stay the
        engine's."""

    def start_pod(self, pod: str) -> None:
        """Accept from now on, also after `pause`."""

    def pause(self) -> None:
        """Accept nothing more, of any pod, until `start_pod`. The listeners stay open, and new connections wait in them
        for whoever accepts next: this engine, or another that was given the descriptors. To go for good afterwards is
        `drain`: it must close() listeners, never shutdown() them."""

    def set_credentials(self, pod: str, credentials: Credentials) -> None:
        """Certificate for new handshakes, both directions; open connections keep theirs. Without any, tunnel handshakes
        to the pod are refused and RelayTunnel from it ends with NO_CERTIFICATE."""

    def remove_pod(self, pod: str, *, listeners_only: bool = False) -> None:
        """Close the listeners and, unless `listeners_only`, every connection of the pod with POD_GONE."""

    def order(self, order: Order) -> None:
        """Carry out an order; an unknown or ended id is ignored (it may have ended meanwhile)."""

    def stands(self, id_: int) -> bool:
        """Whether a standing order for connections like this one, which was asked about, would be of use."""

    def stand(self, standing: Standing) -> None:
        """Go by it until `lapse`; at the engine's discretion, which may ask again at any time."""

    def lapse(self) -> None:
        """No order stands any more: no connection begins under one that was given until now. `report` will be told of
        every connection that lives under one; see `settled`."""

    async def settled(self) -> None:
        """Until `report` was told of every connection that lives under an order that has lapsed. As long as it takes:
        not before a thread that is stuck goes on."""

    def counts(self) -> Mapping[int, tuple[int, int]]:
        """Live connections that `report` was told of: id -> (sent, received)."""

    def pulses(self) -> Mapping[str, tuple[int, bool]]:
        """Of each thread that moves bytes, by name: a number that changes while it goes on, and whether it has
        something to do. Nobody is woken for it, nor waited for; from any thread."""

    async def drain(self, deadline: float) -> None:
        """Close listeners, GOAWAY on every tunnel, wait up to `deadline` seconds for open streams, then close."""


EngineFactory = Callable[[Steering, Callable[[Sequence[Fact]], None]], Engine]
