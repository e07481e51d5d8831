"""Client side tunnels, shared by connections whose TunnelKey is equal.

One connection per key is being made at a time; everybody else waits for it. A tunnel that is full or busy is passed
over for another; one whose peer is going away, or whose certificate was renewed since, gets no new streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from mesh.identity import SpiffeId
from mesh.reason import Reason
from ztunnel.engine.endpoint import Lost
from ztunnel.engine.pod import Pod
from ztunnel.engine.runtime import Runtime
from ztunnel.engine.stream import Stream
from ztunnel.engine.tcp import Dial, TcpEndpoint, family_of, tune_tunnel
from ztunnel.engine.tls import Session, expect_peer
from ztunnel.engine.tunnel import Tunnel
from ztunnel.orders import TunnelKey

Assigned = Callable[[Tunnel | Lost], None]
Cancel = Callable[[], None]


class Pool:
    """All client tunnels of one engine. `emptied`: the last one of a key is gone."""

    __slots__ = ("_emptied", "_groups", "_runtime")

    def __init__(self, runtime: Runtime, emptied: Callable[[], None]) -> None:
        self._runtime, self._emptied = runtime, emptied
        self._groups: dict[TunnelKey, Group] = {}

    def assign(self, pod: Pod, key: TunnelKey, assigned: Assigned) -> Cancel:
        """Find or make a tunnel with room; `assigned` gets it, once and never from within this call, and opens its
        stream there and then. The returned function withdraws the request. ValueError: the key is another pod's."""
        if key.pod != pod.name:
            raise ValueError(f"a connection of pod {pod.name} was sent to a tunnel of {key.pod}")
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(self._runtime, pod, key, self._discard)
        return group.request(assigned)

    def retire(self, pod: str) -> None:
        """The pod has a new certificate: new connections prove the new one."""
        for group in self._of(pod):
            group.retire()

    def drop(self, pod: str, reason: Reason, detail: str) -> None:
        """End the pod's tunnels and requests with an error."""
        for group in self._of(pod):
            group.drop(reason, detail)

    def tunnels(self) -> Sequence[Tunnel]:
        return [tunnel for group in self._groups.values() for tunnel in group.tunnels]

    def _of(self, pod: str) -> list[Group]:
        return [group for key, group in self._groups.items() if key.pod == pod]

    def _discard(self, group: Group) -> None:
        if self._groups.get(group.key) is group:
            del self._groups[group.key]
            self._emptied()


class Group:
    """The tunnels of one key, and who waits for one."""

    __slots__ = ("_dial", "_discard", "_fresh", "_idle", "_pod", "_runtime", "_serving", "_waiting", "key", "tunnels")

    def __init__(self, runtime: Runtime, pod: Pod, key: TunnelKey, discard: Callable[[Group], None]) -> None:
        self._runtime, self._pod, self.key, self._discard = runtime, pod, key, discard
        self.tunnels: list[Tunnel] = []
        self._waiting: dict[object, Assigned] = {}
        self._dial: Dial | None = None
        self._fresh: Tunnel | None = None  # in its handshake
        self._idle: dict[Tunnel, asyncio.Handle] = {}
        self._serving: asyncio.Handle | None = None

    def request(self, assigned: Assigned) -> Cancel:
        ticket = object()
        self._waiting[ticket] = assigned
        self._wake()

        def withdraw() -> None:
            self._waiting.pop(ticket, None)

        return withdraw

    def retire(self) -> None:
        for tunnel in list(self.tunnels):
            tunnel.retire()
        self._stop_dialling(Reason.NO_CERTIFICATE, "the certificate was renewed meanwhile")
        self._wake()

    def drop(self, reason: Reason, detail: str) -> None:
        self._stop_dialling(reason, detail)
        self._fail(Lost(reason, detail))
        for tunnel in list(self.tunnels):
            tunnel.lose(reason, detail)
        self._discard_if_empty()

    # Of its tunnels (their Owner)

    def verify(self, uris: tuple[str, ...]) -> SpiffeId:
        return expect_peer(uris, self.key.expected)

    def ready(self, tunnel: Tunnel) -> None:
        self._fresh = None
        self.tunnels.append(tunnel)
        self._wake()

    def offered(self, tunnel: Tunnel, stream: Stream, headers: Sequence[tuple[str, str]]) -> None:
        stream.refuse(503)  # a server offers nothing; mesh.http2 ends such a connection before it comes to this

    def freed(self, tunnel: Tunnel) -> None:
        if tunnel.idle and tunnel.retired:
            tunnel.end_gracefully()
        elif tunnel.idle and not self._waiting:
            self._await_use(tunnel)
        else:
            self._wake()

    def over(self, tunnel: Tunnel, lost: Lost) -> None:
        self._used(tunnel)
        if tunnel in self.tunnels:
            self.tunnels.remove(tunnel)
        if tunnel is self._fresh:
            self._fresh = None
            self._failed(lost)
        self._wake()

    # Inside

    def _wake(self) -> None:
        if self._serving is None:
            self._serving = self._runtime.loop.call_soon(self._serve)

    def _serve(self) -> None:
        """Give tunnels to those who wait, in their order; dial when there is none to give."""
        self._serving = None
        while self._waiting:
            tunnel = self._pick()
            if tunnel is None:
                if self._dial is None and self._fresh is None:
                    self._connect()
                return
            ticket = next(iter(self._waiting))
            assigned = self._waiting.pop(ticket)
            self._used(tunnel)
            assigned(tunnel)
            if tunnel.idle:  # the stream was not opened after all
                self._await_use(tunnel)
        self._discard_if_empty()

    def _pick(self) -> Tunnel | None:
        """The first with room that is not busy; when there may be no further one, the least busy with room."""
        usable = [tunnel for tunnel in self.tunnels if tunnel.vacancies > 0]
        if not usable:
            return None
        least = min(usable, key=lambda tunnel: tunnel.backlog)
        full = sum(not tunnel.retired for tunnel in self.tunnels) >= self._runtime.limits.tunnels_per_key
        return least if full or least.backlog < self._runtime.limits.busy_backlog else None

    def _connect(self) -> None:
        contexts, key, limits = self._pod.contexts, self.key, self._runtime.limits
        if contexts is None or contexts.identity != key.source:
            self._fail(Lost(Reason.NO_CERTIFICATE, f"no certificate of {key.source}"))
            return
        session = Session(contexts.client, server=False)
        try:
            sock = self._pod.socket(family_of(key.address.ip))
            tune_tunnel(sock, limits.socket_backlog)
        except OSError as error:
            self._failed(Lost(Reason.CONNECT_FAILED, f"no socket in the pod's netns: {error.strerror}"))
            return

        def connected(lost: Lost | None) -> None:
            self._dial = None
            if lost is not None:
                self._failed(lost)
                return
            transport = TcpEndpoint(self._runtime.poller, sock, f"tunnel to {key.address}")
            self._fresh = Tunnel(
                self._runtime.loop, transport, session, self, limits, server=False, address=key.address
            )

        self._dial = Dial(
            self._runtime.loop, self._runtime.poller, sock, key.address, limits.connect_timeout, connected
        )

    def _failed(self, lost: Lost) -> None:
        """No further tunnel: make do with a busy one, or tell everybody."""
        while self._waiting:
            usable = [tunnel for tunnel in self.tunnels if tunnel.vacancies > 0]
            if not usable:
                break
            self._waiting.pop(next(iter(self._waiting)))(min(usable, key=lambda tunnel: tunnel.backlog))
        self._fail(lost)

    def _fail(self, lost: Lost) -> None:
        waiting, self._waiting = self._waiting, {}
        for assigned in waiting.values():
            assigned(lost)
        self._discard_if_empty()

    def _stop_dialling(self, reason: Reason, detail: str) -> None:
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if self._fresh is not None:
            fresh, self._fresh = self._fresh, None
            fresh.lose(reason, detail)

    def _await_use(self, tunnel: Tunnel) -> None:
        if tunnel not in self._idle:
            timeout = self._runtime.limits.idle_timeout
            self._idle[tunnel] = self._runtime.loop.call_later(timeout, tunnel.end_gracefully)

    def _used(self, tunnel: Tunnel) -> None:
        timer = self._idle.pop(tunnel, None)
        if timer is not None:
            timer.cancel()

    def _discard_if_empty(self) -> None:
        if not self.tunnels and not self._waiting and self._dial is None and self._fresh is None:
            self._discard(self)
