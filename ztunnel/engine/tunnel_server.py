"""Tunnel connections to one pod: accept, bound, verify, and offer each request."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Sequence

from mesh.identity import SpiffeId
from mesh.reason import Reason
from ztunnel.engine.channel import LINGER
from ztunnel.engine.endpoint import Lost
from ztunnel.engine.mux import Header
from ztunnel.engine.pod import Pod
from ztunnel.engine.runtime import Runtime
from ztunnel.engine.stream import Stream
from ztunnel.engine.tcp import TcpEndpoint, address_of, reset, tune_tunnel
from ztunnel.engine.tls import Session, accept_peer
from ztunnel.engine.tunnel import Tunnel

Offer = Callable[[Pod, Tunnel, Stream, str, str, Sequence[Header]], None]
"""(pod, tunnel, stream, method, authority, headers without pseudo headers)"""


class TunnelServer:
    """The `Owner` of a pod's accepted tunnels."""

    __slots__ = ("_emptied", "_handshaking", "_offer", "_open", "_pod", "_runtime", "tunnels")

    def __init__(self, runtime: Runtime, pod: Pod, offer: Offer, emptied: Callable[[Pod], None]) -> None:
        self._runtime, self._pod, self._offer, self._emptied = runtime, pod, offer, emptied
        self.tunnels: set[Tunnel] = set()
        self._handshaking: dict[Tunnel, None] = {}  # the oldest first
        self._open: Counter[str] = Counter()  # per peer address; those that still say their last words included

    def accept(self, sock: socket.socket) -> None:
        try:
            tune_tunnel(sock, self._runtime.limits.socket_backlog)
            peer, local = address_of(sock.getpeername()), address_of(sock.getsockname())
        except OSError:  # gone already
            sock.close()
            return
        excess = self._excess(peer.ip)
        if excess is not None:
            self._runtime.count_refused(Reason.LIMIT, f"{self._pod.name}: tunnel from {peer}: {excess}")
            reset(sock)
            return
        if self._pod.contexts is None:
            self._runtime.count_refused(Reason.NO_CERTIFICATE, f"{self._pod.name}: tunnel from {peer}")
            reset(sock)
            return
        tunnel = Tunnel(
            self._runtime.loop,
            TcpEndpoint(self._runtime.poller, sock, f"tunnel from {peer}"),
            Session(self._pod.contexts.server, server=True),
            self,
            self._runtime.limits,
            server=True,
            address=peer,
            local=local,
        )
        self.tunnels.add(tunnel)
        self._handshaking[tunnel] = None
        self._open[peer.ip] += 1

    def announce_end(self) -> None:
        for tunnel in list(self.tunnels):
            tunnel.announce_end()

    def drop(self, reason: Reason, detail: str) -> None:
        for tunnel in list(self.tunnels):
            tunnel.lose(reason, detail)

    def _excess(self, peer: str) -> str | None:
        limits = self._runtime.limits
        if len(self.tunnels) >= limits.tunnels_per_pod:  # not the last words of strangers: they would keep members out
            return f"the pod has {limits.tunnels_per_pod} already"
        if self._open[peer] >= limits.tunnels_per_peer:
            return f"the peer has {limits.tunnels_per_peer} already"
        pending = Counter(tunnel.address.ip for tunnel in self._handshaking)
        if pending[peer] >= limits.handshakes_per_peer:
            return f"{limits.handshakes_per_peer} handshakes of the peer are pending already"
        if len(self._handshaking) >= limits.handshakes_per_pod:
            worst, most = pending.most_common(1)[0]
            if pending[peer] >= most:
                return f"{limits.handshakes_per_pod} handshakes are pending already"
            self._evict(worst)
        return None

    def _evict(self, peer: str) -> None:
        """Several silent peers together keep nobody else out either: of the one with the most, the oldest goes."""
        oldest = next(tunnel for tunnel in self._handshaking if tunnel.address.ip == peer)
        oldest.lose(
            Reason.LIMIT, f"{self._runtime.limits.handshakes_per_pod} handshakes are pending, this one is given up"
        )

    # Of its tunnels

    def verify(self, uris: tuple[str, ...]) -> SpiffeId:
        return accept_peer(uris, self._pod.trust_domain)

    def ready(self, tunnel: Tunnel) -> None:
        self._handshaking.pop(tunnel, None)

    def offered(self, tunnel: Tunnel, stream: Stream, headers: Sequence[Header]) -> None:
        pseudo = {name: value for name, value in headers if name.startswith(":")}
        plain = [(name, value) for name, value in headers if not name.startswith(":")]
        self._offer(self._pod, tunnel, stream, pseudo.get(":method", ""), pseudo.get(":authority", ""), plain)

    def freed(self, tunnel: Tunnel) -> None:
        if tunnel.idle and tunnel.retired:
            tunnel.end_gracefully()

    def over(self, tunnel: Tunnel, lost: Lost) -> None:
        self.tunnels.discard(tunnel)
        if tunnel in self._handshaking or lost.reason in (Reason.PEER_IDENTITY, Reason.HTTP2_PROTOCOL):
            self._handshaking.pop(tunnel, None)
            self._runtime.count_refused(lost.reason, f"{self._pod.name}: tunnel from {tunnel.address}: {lost.detail}")
        self._runtime.loop.call_later(LINGER, self._closed, tunnel.address.ip)
        if not self.tunnels:
            self._emptied(self._pod)

    def _closed(self, peer: str) -> None:
        self._open[peer] -= 1
        if not self._open[peer]:
            del self._open[peer]
