"""What one pod, one peer and one connection may use. Seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from mesh import http2
from mesh.http2 import Rate

_CAPTURES = Rate(burst=4000, per_second=4000)
_INBOUND = Rate(burst=8000, per_second=4000)
_INBOUND_OF_PEER = Rate(burst=4000, per_second=2000)
_HANDSHAKES = Rate(burst=2000, per_second=500)
_HANDSHAKES_OF_PEER = Rate(burst=400, per_second=100)
_RESETS = Rate(burst=2000, per_second=2000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Defaults follow istio-facts §1.4 and §1.9 where Istio has the number; the others bound memory and descriptors.

    Limits of a pod or a peer are of all threads that serve it together, but for resets.

    Worst case held for one tunnel connection: `streams * stream_window + window_budget` received and not yet
    delivered, and `streams * stream_buffer` to be sent.
    """

    descriptors: int = 768  # of sockets, all pods together, where a process may have 1,024; see `with_descriptors`
    connections: int = 65536  # all pods together
    connections_per_pod: int = 16384  # nor more than are left for all others
    tunnels_per_pod: int = 1024  # accepted tunnel connections
    tunnels_per_peer: int = 256  # of them, from one peer address
    handshakes_per_pod: int = 128  # of them, not yet through TLS
    handshakes_per_peer: int = 32  # of those, from one peer address: silence of one keeps nobody else out
    untold_per_peer: int = 4096  # connections of one address to a pod that Python has not heard of, ended ones too
    untold_captured: int = 128  # of a pod's own: other pods wait for no more of them to be decided

    # Rates of connections that Python is asked about or told of one by one, not of those under standing orders. Python
    # decides about 2,500 per second on one core. A pod's own connections wait for tokens in the listener's backlog,
    # those of others are refused.
    captures: Rate = _CAPTURES
    inbound: Rate = _INBOUND  # to a pod: plaintext and requests
    inbound_of_peer: Rate = _INBOUND_OF_PEER  # of them, by one address
    # A handshake costs half a millisecond of CPU, a failed one four tokens more. Tunnels are few and live long; a pod
    # that starts anew may meet hundreds of peers at once. Known peers need none of the pod's tokens, so that strangers
    # from many addresses keep no member out.
    handshakes: Rate = _HANDSHAKES  # with one pod
    handshakes_of_peer: Rate = _HANDSHAKES_OF_PEER  # of them, by one address
    # Streams reset by a peer, all its tunnels with a pod together that one thread serves, whose time they cost: an
    # application that resets its connections does no harm to others in the tunnel, and coming back under another
    # connection brings no fresh ones.
    resets: Rate = _RESETS

    decision_timeout: float = 30.0  # between a fact and its order
    connect_timeout: float = 10.0
    handshake_timeout: float = 10.0
    response_timeout: float = 20.0  # CONNECT sent until its response
    goaway_grace: float = 1.0  # between the GOAWAY that announces and the final one (RFC 9113 §6.8)
    ping_interval: float = 10.0
    ping_timeout: float = 20.0
    idle_timeout: float = 300.0  # a pooled tunnel without streams

    streams_accepted: int = 200  # SETTINGS_MAX_CONCURRENT_STREAMS that we advertise
    streams_opened: int = 100  # that we open at most on one tunnel
    tunnels_per_key: int = 8  # on each thread; more only if all have their streams used up, never for being busy
    busy_backlog: int = 512 << 10  # unsent bytes that make a tunnel busy: new streams go to another one
    attempts: int = 3  # of a CONNECT that a peer going away has not looked at
    awake: float = 100e-6  # that a thread looks for an event before it sleeps, while that pays; 0: it sleeps at once

    frame: int = 16 << 10
    turn: int = 64 << 10  # of a stream's DATA before another stream's: it arrives in one piece
    request_headers: int = 64 << 10
    response_headers: int = 16 << 10
    stream_window: int = 64 << 10  # to begin with
    stream_window_max: int = 4 << 20
    window_budget: int = 16 << 20  # sum of all growth beyond `stream_window` on one tunnel
    window_budget_per_pod: int = 64 << 20
    window_budget_of_all: int = 256 << 20  # tunnels together
    # Bytes that tunnels hold, received or to be sent. When there are more, streams are given a quarter of their buffer,
    # and no further connection begins: with LIMIT, for a pod that has more than is left.
    buffered_per_pod: int = 128 << 20
    buffered: int = 512 << 20
    connection_window: int = 16 << 20
    socket_backlog: int = 256 << 10  # not sent yet and with the kernel: more would wait before the next stream's turn
    stream_buffer: int = 256 << 10  # accepted for sending and not framed yet, per stream

    @classmethod
    def with_descriptors(cls, most: int) -> Limits:
        """For a process that may have so many. A quarter is left to what is no connection: some 15 per pod, of
        listeners, namespaces and the kernel side, and the agent's own."""
        return cls(descriptors=most * 3 // 4)

    def settings(self, *, server: bool) -> http2.Settings:
        """What a session of that role tells its peer."""
        return http2.Settings(
            initial_window_size=self.stream_window,
            max_frame_size=self.frame,
            max_header_list_size=self.request_headers if server else self.response_headers,
            max_concurrent_streams=self.streams_accepted if server else 0,
            connection_window=self.connection_window,
        )
