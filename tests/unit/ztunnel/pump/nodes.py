"""Two engines on loopback with a decider made of dictionaries: no root, no kernel side, real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mesh.model import Dialled, SocketAddress
from tests.unit.ztunnel.pump.authority import CLIENT, SERVER, Authority, ControllerAuthority
from ztunnel.orders import (
    Captured,
    Ended,
    Fact,
    Listeners,
    Offered,
    Opened,
    Order,
    Plaintext,
    RelayPlain,
    RelayTunnel,
    Standing,
    TunnelKey,
)
from ztunnel.pump import Limits, Maps, PumpEngine
from ztunnel.pump.census import Tunnel

DEADLINE = 60.0  # seconds; nothing here takes that long, on a busy machine either


def port_of(fd: int) -> int:
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.getsockname()[1]


async def connect(address: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To a listener of this machine. The threads are fast: a connection may be reset again before asyncio would have
    noticed that it was made."""
    sock = socket.create_connection(address, timeout=DEADLINE)
    sock.setblocking(False)
    return await asyncio.open_connection(sock=sock)


async def eventually(true: Callable[[], object]) -> None:
    """Wait for what no fact tells."""
    for _ in range(int(DEADLINE * 100)):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


@dataclass
class Memory:
    """The kernel side: what was dialled, and whom the application shall see."""

    destination: SocketAddress | None = None
    drawn: SocketAddress | None = None
    elsewhere: bool = False
    announced: list[tuple[int, SocketAddress]] = field(default_factory=list)
    withdrawn: list[int] = field(default_factory=list)

    def original_destination(self, cookie: int, local: SocketAddress, peer: SocketAddress) -> Dialled | None:
        if self.destination is None:
            return None
        return Dialled(destination=self.destination, drawn=self.drawn, elsewhere=self.elsewhere)

    def announce(self, socket_cookie: int, client: SocketAddress) -> None:
        self.announced.append((socket_cookie, client))

    def withdraw(self, socket_cookie: int) -> None:
        self.withdrawn.append(socket_cookie)


class Node:
    """An engine with one pod, `pod`; `decide` answers the facts that want an order."""

    def __init__(
        self,
        pod: str,
        *,
        limits: Limits | None = None,
        trust_domain: str = "cluster.local",
        netns: str = "/proc/self/ns/net",
        addresses: Sequence[str] = ("127.0.0.1", "::1"),
        start: bool = True,
        listeners: Listeners | None = None,
        memory: Memory | None = None,
        threads: int = 1,
        maps: Maps | None = None,
    ) -> None:
        self.pod, self._netns, self._addresses = pod, netns, addresses
        self.memory = memory or Memory()
        self.facts: list[Fact] = []
        self.decide: Callable[[Captured | Plaintext | Offered], Order | None] = lambda fact: None
        self.stands: Callable[[Captured | Plaintext | Offered], Standing | None] = lambda fact: None
        self._news = asyncio.Event()
        self.engine = PumpEngine(self.memory, self._report, limits=limits, threads=threads, maps=maps)
        self.enrol(trust_domain, start=start, given=listeners)

    def _add(self, pod: str, trust_domain: str, given: Listeners | None) -> Listeners:
        netns = os.open(self._netns, os.O_RDONLY)
        try:
            return self.engine.add_pod(pod, netns, trust_domain, self._addresses, given)
        finally:
            os.close(netns)

    def enrol_another(self, pod: str) -> Listeners:
        """Another pod of the same engine."""
        listeners = self._add(pod, "cluster.local", None)
        self.engine.start_pod(pod)
        return listeners

    def enrol(self, trust_domain: str = "cluster.local", *, start: bool = True, given: Listeners | None = None) -> None:
        self.listeners: Listeners = self._add(self.pod, trust_domain, given)
        if start:
            self.engine.start_pod(self.pod)
        # As numbers, because the descriptors die with the listeners.
        names = ("outbound4", "outbound6", "plaintext4", "plaintext6", "tunnel4", "tunnel6")
        fds = {name: getattr(self.listeners, name) for name in names}
        self.ports = {name: port_of(fd) for name, fd in fds.items() if fd is not None}

    def _report(self, facts: Sequence[Fact]) -> None:
        self.facts += facts
        for fact in facts:
            if isinstance(fact, Captured | Plaintext | Offered):
                order = self.decide(fact)
                if order is not None:
                    self.engine.order(order)
                standing = self.stands(fact)
                if standing is not None:
                    self.engine.stand(standing)
        self._news.set()

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not true():
                self._news.clear()
                await self._news.wait()

    def of(self, kind: type) -> list:
        return [fact for fact in self.facts if isinstance(fact, kind)]

    async def ended(self, count: int = 1) -> list[Ended]:
        await self.until(lambda: len(self.of(Ended)) >= count)
        return self.of(Ended)

    async def opened(self, count: int = 1) -> list[Opened]:
        await self.until(lambda: len(self.of(Opened)) >= count)
        return self.of(Opened)

    def tunnels(self, *, server: bool = False) -> list[Tunnel]:
        """Those of the pool, or those the pod accepted."""
        return [tunnel for tunnel in self.engine.census().tunnels if tunnel.server == server]

    def address(self, listener: str) -> tuple[str, int]:
        return ("::1" if listener.endswith("6") else "127.0.0.1", self.ports[listener])


class Pair:
    """`client` captures and tunnels to `server`, which relays to `application`."""

    def __init__(
        self,
        client_limits: Limits | None,
        server_limits: Limits | None,
        family: int,
        authority: Authority | ControllerAuthority,
        threads: int,
        maps: Maps | None,
    ) -> None:
        self.authority = authority
        self.family = family
        self.client = Node("client-pod", limits=client_limits, threads=threads, maps=maps)
        self.server = Node("server-pod", limits=server_limits, threads=threads, maps=maps)
        self.client.engine.set_credentials("client-pod", authority.issue(CLIENT))
        self.server.engine.set_credentials("server-pod", authority.issue(SERVER))
        self.loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        self.suffix = "6" if family == socket.AF_INET6 else "4"
        self.application = SocketAddress(self.loopback, 1)
        self.client.memory.destination = SocketAddress("10.0.0.2" if self.suffix == "4" else "fd00::2", 8080)
        self.client.decide = lambda fact: self.tunnel(fact.id)
        self.server.decide = self.last_hop

    def key(self, **changes: object) -> TunnelKey:
        fields: dict = {
            "pod": "client-pod",
            "source": CLIENT,
            "expected": frozenset({SERVER}),
            "workload": "cluster//Pod/default/server@1",
            "address": SocketAddress(*self.server.address("tunnel" + self.suffix)),
        }
        return TunnelKey(**{**fields, **changes})

    def tunnel(self, number: int, **changes: object) -> RelayTunnel:
        authority = str(self.client.memory.destination)
        return RelayTunnel(id=number, key=self.key(**changes), authority=authority, headers=[("baggage", "a=b")])

    def last_hop(self, fact: Captured | Plaintext | Offered) -> RelayPlain:
        return RelayPlain(
            id=fact.id,
            destination=self.application,
            bind=self.loopback,
            as_client=fact.client,
            response_headers=[("baggage", "c=d")],
        )

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As an application of the client pod whose connect() was captured."""
        return await connect(self.client.address("outbound" + self.suffix))


@asynccontextmanager
async def pair(
    *,
    client_limits: Limits | None = None,
    server_limits: Limits | None = None,
    family: int = socket.AF_INET,
    authority: Authority | ControllerAuthority | None = None,
    threads: int = 1,
    maps: Maps | None = None,
) -> AsyncIterator[Pair]:
    """`maps`: of both nodes."""
    made = Pair(client_limits, server_limits, family, authority or Authority.new(), threads, maps)
    try:
        yield made
    finally:
        await made.client.engine.drain(0)
        await made.server.engine.drain(0)


@asynccontextmanager
async def application(
    made: Pair, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]
) -> AsyncIterator[asyncio.Server]:
    """A server that `made.server` relays to."""
    server = await asyncio.start_server(serve, made.loopback, 0)
    made.application = SocketAddress(made.loopback, server.sockets[0].getsockname()[1])
    try:
        yield server
    finally:
        server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes, half-closes after the other side did."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except ConnectionError:
        pass
    finally:
        writer.close()
