"""The `Engine` of ztunnel.orders: pods, ids, facts out, orders in."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping, Sequence

from bpf.netns import cookie_of
from mesh.model import SocketAddress
from mesh.reason import Reason
from ztunnel.engine.connection import Connection
from ztunnel.engine.endpoint import Downstream
from ztunnel.engine.limits import Limits
from ztunnel.engine.listener import Listener, adopted, listen
from ztunnel.engine.mux import Header
from ztunnel.engine.netns import SocketFactory, open_socket
from ztunnel.engine.pod import Pod, new_pod
from ztunnel.engine.poller import Poller
from ztunnel.engine.pool import Pool
from ztunnel.engine.runtime import Runtime
from ztunnel.engine.stream import Stream
from ztunnel.engine.tcp import TcpEndpoint, address_of, reset, tune
from ztunnel.engine.tls import contexts
from ztunnel.engine.tunnel import Tunnel
from ztunnel.engine.tunnel_server import TunnelServer
from ztunnel.orders import (
    Captured,
    Credentials,
    Deaf,
    Ended,
    Fact,
    Listeners,
    Offered,
    Opened,
    Order,
    Plaintext,
    Steering,
)

_log = logging.getLogger(__name__)


class PythonEngine:
    """Everything happens in callbacks on the event loop that runs when it is made; facts are reported in batches from
    a callback of their own, so that an order given at once never meets half-done work."""

    def __init__(
        self,
        steering: Steering,
        report: Callable[[Sequence[Fact]], None],
        *,
        limits: Limits | None = None,
        sockets: SocketFactory = open_socket,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._runtime = Runtime(loop=loop, poller=Poller(loop), limits=limits or Limits())
        self._steering, self._report, self._sockets = steering, report, sockets
        self._emptied = asyncio.Event()  # for drain: something ended
        self._pool = Pool(self._runtime, self._emptied.set)
        self._pods: dict[str, Pod] = {}
        self._servers: dict[str, TunnelServer] = {}
        self._connections: dict[int, Connection] = {}
        self._last_id = 0
        self._facts: list[Fact] = []
        self._draining = False

    @property
    def refused(self) -> Mapping[Reason, int]:
        """Connections turned away before they had an id, since the start: failed handshakes, limits, stray captures."""
        return dict(self._runtime.refused)

    # The protocol

    def add_pod(
        self,
        pod: str,
        netns: int,
        trust_domain: str,
        addresses: Sequence[str],
        listeners: Listeners | None = None,
    ) -> Listeners:
        """OSError if the netns cannot be entered or has no loopback. ValueError if the pod has listeners already. One
        that was removed with `listeners_only` and has open connections still keeps them."""
        given = None if listeners is None else adopted(listeners)  # closed by themselves if this raises
        if self._draining:
            raise ValueError(f"pod {pod}: the engine is draining")
        state = self._pods.get(pod)
        if state is not None and state.listeners:
            raise ValueError(f"pod {pod} was added already")
        if state is None:
            state = self._pods[pod] = new_pod(pod, netns, trust_domain, addresses, self._sockets)
            self._servers[pod] = TunnelServer(self._runtime, state, self._offered, self._discard_if_unused)
        else:
            state.renew(netns, trust_domain, addresses)
        try:
            return self._listen(state, given)
        except OSError:
            state.close_listeners()
            self._discard_if_unused(state)
            raise

    def start_pod(self, pod: str) -> None:
        for listener in self._pods[pod].listeners:
            listener.start()

    def pause(self) -> None:
        for state in self._pods.values():
            for listener in state.listeners:
                listener.stop()

    def set_credentials(self, pod: str, credentials: Credentials) -> None:
        """ValueError: not usable; what the pod had before stays."""
        state = self._pods.get(pod)
        if state is None:
            return
        state.contexts = contexts(credentials)
        self._pool.retire(pod)

    def remove_pod(self, pod: str, *, listeners_only: bool = False) -> None:
        state = self._pods.get(pod)
        if state is None:
            return
        state.close_listeners()
        if listeners_only:
            self._servers[pod].announce_end()
            self._discard_if_unused(state)
        else:
            self._discard_pod(state, Reason.POD_GONE, "")

    def order(self, order: Order) -> None:
        connection = self._connections.get(order.id)
        if connection is not None:
            connection.carry_out(order)

    def counts(self) -> Mapping[int, tuple[int, int]]:
        return {number: connection.bytes for number, connection in self._connections.items()}

    async def drain(self, deadline: float) -> None:
        self._draining = True
        for pod in list(self._pods.values()):
            pod.close_listeners()
            self._servers[pod.name].announce_end()
            self._pool.retire(pod.name)
        try:
            async with asyncio.timeout(deadline):
                while self._connections or self._tunnels():
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            if self._connections:
                _log.info("the drain deadline has passed with %d connections open", len(self._connections))
        for pod in list(self._pods.values()):
            self._discard_pod(pod, Reason.DRAINED, "")
        self._report_all()
        await asyncio.sleep(0)  # what the last callbacks still had to tell each other
        self._runtime.poller.close()

    # Connections come

    def _listen(self, pod: Pod, given: Sequence[socket.socket | None] | None) -> Listeners:
        """On those that were `given`, in the order of the fields of Listeners, else on new ones."""
        next_given = iter(given or ())

        def made(family: int, accepted: Callable[[Pod, socket.socket], None]) -> int | None:
            sock = listen(pod.sockets, pod.netns, family) if given is None else next(next_given)
            if sock is None:
                return None
            runtime = self._runtime
            listener = Listener(
                runtime.loop, runtime.poller, sock, lambda incoming: accepted(pod, incoming), lambda: self._deaf(pod)
            )
            pod.listeners.append(listener)
            return listener.fileno()

        server = self._servers[pod.name]
        fds = [
            made(family, accepted)
            for accepted in (self._captured, self._plaintext, lambda _pod, sock: server.accept(sock))
            for family in (socket.AF_INET, socket.AF_INET6)
        ]
        outbound4, outbound6, plaintext4, plaintext6, tunnel4, tunnel6 = fds
        assert outbound4 is not None and plaintext4 is not None and tunnel4 is not None
        return Listeners(
            outbound4=outbound4,
            outbound6=outbound6,
            plaintext4=plaintext4,
            plaintext6=plaintext6,
            tunnel4=tunnel4,
            tunnel6=tunnel6,
        )

    def _captured(self, pod: Pod, sock: socket.socket) -> None:
        names = self._names(sock)
        if names is None or self._over_limit(pod, sock):
            return
        local, peer = names
        dialled = self._steering.original_destination(cookie_of(sock), local, peer)
        if dialled is None:
            self._runtime.count_refused(Reason.NO_DESTINATION, f"{pod.name}: {peer} to {local}")
            reset(sock)
            return
        # Loopback, or an address that the application bound to: not always one of the pod's (IP_TRANSPARENT).
        ip = peer.ip if peer.ip in pod.addresses else pod.address_like(dialled.destination.ip)
        connection = self._add(pod, TcpEndpoint(self._runtime.poller, sock, "downstream"))
        client = SocketAddress(ip, peer.port)
        fact = Captured(
            id=connection.id,
            pod=pod.name,
            client=client,
            destination=dialled.destination,
            drawn=dialled.drawn,
            elsewhere=dialled.elsewhere,
        )
        self._tell(fact)

    def _plaintext(self, pod: Pod, sock: socket.socket) -> None:
        names = self._names(sock)
        if names is None or self._over_limit(pod, sock):
            return
        local, peer = names
        if (local.ip.startswith("127.") or local.ip == "::1") and local.ip not in pod.addresses:
            # The pod dialled our listener by its own port; relayed to where it was addressed, it would come back here.
            self._runtime.count_refused(Reason.NO_DESTINATION, f"{pod.name}: {peer} to {local}")
            reset(sock)
            return
        connection = self._add(pod, TcpEndpoint(self._runtime.poller, sock, "downstream"))
        self._tell(Plaintext(id=connection.id, pod=pod.name, client=peer, destination=local))

    def _offered(
        self, pod: Pod, tunnel: Tunnel, stream: Stream, method: str, authority: str, headers: Sequence[Header]
    ) -> None:
        excess = self._excess(pod)
        if excess is not None:
            self._runtime.count_refused(Reason.LIMIT, excess)
            stream.refuse(Reason.LIMIT.http_status)
            return
        assert tunnel.peer is not None and tunnel.local is not None
        connection = self._add(pod, stream)
        self._tell(
            Offered(
                id=connection.id,
                pod=pod.name,
                client=tunnel.address,
                local=tunnel.local,
                peer=tunnel.peer,
                method=method,
                authority=authority,
                headers=headers,
            )
        )

    def _deaf(self, pod: Pod) -> None:
        _log.warning("a listener of pod %s was destroyed from outside", pod.name)
        self._tell(Deaf(pod=pod.name))

    def _names(self, sock: socket.socket) -> tuple[SocketAddress, SocketAddress] | None:
        """(local, peer); None if the connection is gone already."""
        try:
            tune(sock)
            return address_of(sock.getsockname()), address_of(sock.getpeername())
        except OSError:
            sock.close()
            return None

    def _over_limit(self, pod: Pod, sock: socket.socket) -> bool:
        excess = self._excess(pod)
        if excess is None:
            return False
        self._runtime.count_refused(Reason.LIMIT, excess)
        reset(sock)
        return True

    def _excess(self, pod: Pod) -> str | None:
        """A pod may have no more connections than the agent has left: however many pods are greedy, there is room for
        one that is not."""
        limits = self._runtime.limits
        if pod.connections >= limits.connections_per_pod:
            return f"{pod.name} has {limits.connections_per_pod} connections already"
        left = limits.connections - len(self._connections)
        if pod.connections >= left:
            return f"{pod.name} has {pod.connections} connections, all pods together may have {left} more"
        return None

    # Connections go

    def _add(self, pod: Pod, downstream: Downstream) -> Connection:
        self._last_id += 1
        connection = Connection(
            self._runtime, self._steering, self._pool, pod, self._last_id, downstream, self._connection_reports
        )
        self._connections[connection.id] = connection
        pod.connections += 1
        return connection

    def _connection_reports(self, connection: Connection, fact: Opened | Ended) -> None:
        self._tell(fact)
        if isinstance(fact, Ended):
            del self._connections[connection.id]
            connection.pod.connections -= 1
            self._emptied.set()
            self._discard_if_unused(connection.pod)

    def _discard_if_unused(self, pod: Pod) -> None:
        self._emptied.set()
        server = self._servers.get(pod.name)
        used = pod.listeners or pod.connections or (server is not None and server.tunnels)
        if self._pods.get(pod.name) is pod and not used:
            self._discard_pod(pod, Reason.POD_GONE, "")

    def _discard_pod(self, pod: Pod, reason: Reason, detail: str) -> None:
        if self._pods.get(pod.name) is not pod:
            return
        del self._pods[pod.name]
        for connection in [known for known in self._connections.values() if known.pod is pod]:
            connection.end(reason, detail)
        self._pool.drop(pod.name, reason, detail)
        self._servers.pop(pod.name).drop(reason, detail)
        pod.close()
        self._emptied.set()

    def _tunnels(self) -> int:
        return sum(len(server.tunnels) for server in self._servers.values()) + len(self._pool.tunnels())

    def _tell(self, fact: Fact) -> None:
        if not self._facts:
            self._runtime.loop.call_soon(self._report_all)
        self._facts.append(fact)

    def _report_all(self) -> None:
        facts, self._facts = self._facts, []
        if not facts:
            return
        try:
            self._report(facts)
        except Exception:
            _log.exception("facts could not be reported")
            for fact in facts:
                connection = None if isinstance(fact, Deaf) else self._connections.get(fact.id)
                if connection is not None and not connection.ordered:  # nobody will decide it
                    connection.end(Reason.INTERNAL, "a fault of the agent")
