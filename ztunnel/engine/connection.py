"""One connection from its fact to its Ended: waits for the order, dials, relays."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

from mesh.identity import SpiffeId
from mesh.model import SocketAddress
from mesh.reason import Reason
from ztunnel.engine.endpoint import Downstream, Endpoint, Lost
from ztunnel.engine.pod import Pod
from ztunnel.engine.pool import Pool
from ztunnel.engine.relay import Relay
from ztunnel.engine.runtime import Runtime
from ztunnel.engine.stream import Stream
from ztunnel.engine.tcp import Dial, TcpEndpoint, bind_last_hop, family_of, socket_cookie, tune
from ztunnel.engine.tunnel import Tunnel
from ztunnel.orders import Close, Ended, Opened, Order, Refuse, RelayPlain, RelayTunnel, Steering

_log = logging.getLogger(__name__)


class Connection:
    """Tells `report` Opened and, last and once, Ended. Until the upstream is up nothing is read from downstream."""

    __slots__ = (
        "_attempts",
        "_cancel",
        "_downstream",
        "_over",
        "_pool",
        "_relay",
        "_report",
        "_runtime",
        "_steering",
        "_timer",
        "_upstream",
        "id",
        "ordered",
        "pod",
    )

    def __init__(
        self,
        runtime: Runtime,
        steering: Steering,
        pool: Pool,
        pod: Pod,
        number: int,
        downstream: Downstream,
        report: Callable[[Connection, Opened | Ended], None],
    ) -> None:
        self._runtime, self._steering, self._pool, self._report = runtime, steering, pool, report
        self.id, self.pod, self._downstream = number, pod, downstream
        self.ordered = self._over = False
        self._upstream: Endpoint | None = None
        self._relay: Relay | None = None
        self._cancel: Callable[[], None] | None = None  # of a dial or a request to the pool
        self._attempts = 0
        downstream.on_change = self._downstream_changed
        self._timer: asyncio.Handle | None
        late = Lost(Reason.INTERNAL, f"no decision within {runtime.limits.decision_timeout:g} s")
        self._timer = runtime.loop.call_later(runtime.limits.decision_timeout, self._fail, late)

    @property
    def bytes(self) -> tuple[int, int]:
        """(sent, received) so far."""
        return (0, 0) if self._relay is None else (self._relay.forward.moved, self._relay.backward.moved)

    def carry_out(self, order: Order) -> None:
        """Close at any time; of the others the first one."""
        try:
            self._carry_out(order)
        except Exception:
            _log.exception("connection %d: %s could not be carried out", self.id, order)
            self.end(Reason.INTERNAL, "an order could not be carried out")

    def end(self, reason: Reason, detail: str) -> None:
        """With an error on both sides."""
        self._fail(Lost(reason, detail))

    def _carry_out(self, order: Order) -> None:
        if isinstance(order, Close):
            self.end(order.reason, order.detail)
            return
        if self.ordered:
            _log.error("connection %d was given a second order: %s", self.id, order)
            return
        self.ordered = True
        self._stop_timer()
        match order:
            case Refuse():
                self.end(order.reason, order.detail)
            case RelayPlain():
                self._dial(order)
            case RelayTunnel():
                self._tunnel(order)

    def _dial(self, order: RelayPlain) -> None:
        announced: int | None = None
        try:
            sock = self.pod.socket(family_of(order.destination.ip))
        except OSError as error:
            self._fail(Lost(Reason.CONNECT_FAILED, f"no socket in the pod's netns: {error}"))
            return
        try:
            announced = self._prepare(sock, order)
        except OSError as error:
            sock.close()
            self._fail(Lost(Reason.CONNECT_FAILED, f"bind to {order.bind}: {error.strerror}"))
            return

        def dialled(lost: Lost | None) -> None:
            self._cancel = None
            if lost is not None:
                withdraw()
                self._fail(lost)
            else:
                endpoint = TcpEndpoint(self._runtime.poller, sock, "upstream")
                self._begin(endpoint, order.response_headers, None, order.destination)

        def withdraw() -> None:
            if announced is not None:
                self._steering.withdraw(announced)

        def cancel() -> None:
            dial.cancel()
            withdraw()

        dial = Dial(
            self._runtime.loop,
            self._runtime.poller,
            sock,
            order.destination,
            self._runtime.limits.connect_timeout,
            self._guarded(dialled),
        )
        self._cancel = cancel

    def _prepare(self, sock: socket.socket, order: RelayPlain) -> int | None:
        """Options and bind; the cookie under which the client was announced, if it was. OSError."""
        tune(sock)
        if order.bind is not None:
            bind_last_hop(sock, order.bind)
        if order.as_client is None:
            return None
        cookie = socket_cookie(sock)
        self._steering.announce(cookie, order.as_client)
        return cookie

    def _tunnel(self, order: RelayTunnel) -> None:
        self._attempts += 1
        request = [(":method", "CONNECT"), (":authority", order.authority), *order.headers]  # RFC 9113 §8.5

        def assigned(found: Tunnel | Lost) -> None:
            self._cancel = None
            if isinstance(found, Lost):
                self._fail(found)
                return
            stream = found.open(request)
            self._upstream = stream
            stream.on_change = self._guarded(lambda: self._unanswered(stream, order))
            stream.answered = self._guarded(lambda status: self._answered(stream, status, found, order))
            timeout = self._runtime.limits.response_timeout
            late = Lost(Reason.CONNECT_TIMEOUT, f"no response to the CONNECT within {timeout:g} s")
            self._timer = self._runtime.loop.call_later(timeout, self._fail, late)

        self._cancel = self._pool.assign(self.pod, order.key, self._guarded(assigned))

    def _answered(self, stream: Stream, status: int, tunnel: Tunnel, order: RelayTunnel) -> None:
        if self._over or stream is not self._upstream or self._relay is not None:
            return
        if status != 200:
            self._fail(Lost(Reason.TUNNEL_REFUSED, f"http status: {status}"))
        else:
            self._begin(stream, (), tunnel.peer, order.key.address)

    def _unanswered(self, stream: Stream, order: RelayTunnel) -> None:
        """The stream changed while its response is awaited."""
        if self._over or stream.lost is None or stream is not self._upstream:
            return
        if stream.unprocessed and self._attempts < self._runtime.limits.attempts:
            self._stop_timer()
            stream.close()
            self._upstream = None
            self._tunnel(order)
        else:
            self._fail(stream.lost)

    def _begin(
        self,
        upstream: Endpoint,
        response_headers: Sequence[tuple[str, str]],
        peer: SpiffeId | None,
        address: SocketAddress,
    ) -> None:
        self._stop_timer()
        self._upstream = upstream
        self._downstream.accept(response_headers)
        self._report(self, Opened(id=self.id, peer=peer, upstream=address))
        self._relay = Relay(self._downstream, upstream, self._runtime.loop.call_soon, self._guarded(self._relayed))
        self._runtime.loop.call_soon(self._relay.step)

    def _relayed(self, lost: Lost | None) -> None:
        if lost is not None:
            self._fail(lost)
            return
        self._downstream.close()
        assert self._upstream is not None
        self._upstream.close()
        self._finish(Reason.OK, "")

    def _downstream_changed(self) -> None:
        if self._downstream.lost is not None:
            self._fail(self._downstream.lost)

    def _fail(self, lost: Lost) -> None:
        if self._over:
            return
        self._stop_timer()
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        if self._upstream is not None:
            self._upstream.abort()
        if self._relay is not None:
            self._relay.stop()
            self._downstream.abort()
        else:
            self._downstream.refuse(lost.reason.http_status)
        self._finish(lost.reason, lost.detail)

    def _finish(self, reason: Reason, detail: str) -> None:
        self._over = True
        sent, received = self.bytes
        self._report(self, Ended(id=self.id, reason=reason, detail=detail, sent=sent, received=received))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        """A fault of ours ends this connection, and only this."""

        def guarded(*arguments: object) -> None:
            if self._over:
                return
            try:
                callback(*arguments)
            except Exception:
                _log.exception("connection %d failed", self.id)
                self.end(Reason.INTERNAL, "a fault of the agent")

        return guarded
