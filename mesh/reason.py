"""Why a connection was refused or ended: one closed enum, the same numbers everywhere.

The numbers are wire format: BPF counters, `gossamer bpf`, logs, metrics and the generated header `bpf/src/reason.h`
use them. Never renumber; append. The kernel side owns 1-31, user space the rest.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Reason(IntEnum):
    """Closed: the numbers stand in kernel counters, logs, metrics and answers, and never change their meaning."""

    OK = 0

    # Seen by the kernel side
    NO_DESTINATION = 1
    AGENT_ABSENT = 2
    RESERVED_PORT = 3
    MAP_FULL = 4
    UNROUTABLE_SOCKET = 5
    UNAUTHENTICATED = 6
    MISMATCH = 7
    STALE_VERDICT = 8

    # Policy
    POLICY_DENY = 32
    POLICY_NO_ALLOW = 33
    STRICT_PLAINTEXT = 34
    REVOKED = 35

    # Outbound decision
    SOURCE_UNKNOWN = 48
    NO_ENDPOINT = 49
    NO_SERVICE_PORT = 50
    ILLEGAL_PORT = 51
    NO_CERTIFICATE = 52

    # Dialling and the tunnel
    CONNECT_FAILED = 64
    CONNECT_TIMEOUT = 65
    TLS_FAILED = 66
    PEER_IDENTITY = 67
    HTTP2_PROTOCOL = 68
    TUNNEL_LOST = 69
    TUNNEL_REFUSED = 70

    # Inbound tunnel requests
    BAD_REQUEST = 80
    AUTHORITY_MISMATCH = 81
    DESTINATION_UNKNOWN = 82

    # Lifetime and limits
    RESET_BY_PEER = 96
    DRAINED = 97
    POD_GONE = 98
    LIMIT = 99
    INTERNAL = 100

    @property
    def response_flags(self) -> str:
        """Value of the metric label `response_flags` (istio-facts §4.1)."""
        return _FACTS[self].flags if self in _FACTS else "-"

    @property
    def http_status(self) -> int:
        """Reply to a CONNECT that is refused for this reason (istio-facts §1.6)."""
        return _FACTS[self].status if self in _FACTS else 503

    @property
    def hint(self) -> str:
        """What it means and what an operator can do, for logs and tables."""
        return _FACTS[self].hint if self in _FACTS else ""


class _Facts(NamedTuple):
    flags: str
    status: int
    hint: str


_FACTS = {
    Reason.OK: _Facts("-", 200, ""),
    Reason.NO_DESTINATION: _Facts("-", 503, "a connection to the capture port that the connect hook did not redirect"),
    Reason.AGENT_ABSENT: _Facts("-", 503, "the node agent is not running; enrolled pods fail closed until it is back"),
    Reason.RESERVED_PORT: _Facts("-", 503, "ports 15001, 15006 and 15008 of an enrolled pod belong to the agent"),
    Reason.MAP_FULL: _Facts("-", 503, "a kernel map is full; see `gossamer bpf` for its fill"),
    Reason.UNROUTABLE_SOCKET: _Facts(
        "-",
        503,
        "the socket is bound to a device and could not be unbound from it, or an IPv6 link-local address was dialled: "
        "the agent is out of its reach",
    ),
    Reason.UNAUTHENTICATED: _Facts("DENY", 401, "the peer has no authenticated identity"),
    Reason.MISMATCH: _Facts("-", 503, "a pod's address was answered by somebody else; it was reused or borrowed"),
    Reason.STALE_VERDICT: _Facts("-", 503, "policy changed while a direct connection was being opened; dial again"),
    Reason.POLICY_DENY: _Facts("DENY", 401, "a DENY policy matched"),
    Reason.POLICY_NO_ALLOW: _Facts("DENY", 401, "allow policies exist, but none allowed"),
    Reason.STRICT_PLAINTEXT: _Facts(
        "DENY", 401, "PeerAuthentication STRICT refuses plaintext; enrol the client or use PERMISSIVE"
    ),
    Reason.REVOKED: _Facts("DENY", 401, "policy or enrolment changed and no longer permits this open connection"),
    Reason.SOURCE_UNKNOWN: _Facts("-", 503, "the controller has not sent this pod's own workload"),
    Reason.NO_ENDPOINT: _Facts("-", 503, "no healthy upstream; check that the Service selects ready pods"),
    Reason.NO_SERVICE_PORT: _Facts("-", 503, "the Service has no such port, or no endpoint maps it"),
    Reason.ILLEGAL_PORT: _Facts("-", 503, "the destination is one of the agent's own ports"),
    Reason.NO_CERTIFICATE: _Facts("IDENTITY_ERROR", 503, "no valid certificate for the source identity yet"),
    Reason.CONNECT_FAILED: _Facts("CONNECT", 503, "maybe a NetworkPolicy or firewall is blocking port 15008"),
    Reason.CONNECT_TIMEOUT: _Facts("CONNECT", 503, "no answer within the connect timeout"),
    Reason.TLS_FAILED: _Facts("TLS_FAILURE", 503, "the TLS handshake failed"),
    Reason.PEER_IDENTITY: _Facts("TLS_FAILURE", 503, "the peer's certificate does not carry an expected identity"),
    Reason.HTTP2_PROTOCOL: _Facts("H2_HANDSHAKE_FAILURE", 503, "the peer violated HTTP/2"),
    Reason.TUNNEL_LOST: _Facts("CONNECT", 503, "the tunnel connection was lost"),
    Reason.TUNNEL_REFUSED: _Facts("CONNECT", 503, "the peer's agent refused the CONNECT"),
    Reason.BAD_REQUEST: _Facts("-", 400, "not a CONNECT, or its authority is not ip:port or host:port"),
    Reason.AUTHORITY_MISMATCH: _Facts("-", 400, "the authority names another address than the one dialled"),
    Reason.DESTINATION_UNKNOWN: _Facts("-", 503, "the destination is not known on this node"),
    Reason.RESET_BY_PEER: _Facts("-", 503, "one of the two ends reset the connection"),
    Reason.DRAINED: _Facts("-", 503, "the agent is stopping and the drain deadline has passed"),
    Reason.POD_GONE: _Facts("-", 503, "the pod was deleted or un-enrolled"),
    Reason.LIMIT: _Facts("-", 503, "a limit on connections, streams or memory was reached"),
    Reason.INTERNAL: _Facts("-", 503, "a fault of the agent; please report it with the log line"),
}
