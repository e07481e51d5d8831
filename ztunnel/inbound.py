"""Inbound: who asks for a pod of this node, by tunnel or in plaintext, and whether it may.

The destination is the owner of the netns the connection arrived in. What a peer says in headers names things for
logs; only its certificate and its address decide (istio-facts §1.6, §1.7, §3.1).
"""

from __future__ import annotations

from datetime import datetime

from mesh.identity import SpiffeId
from mesh.model import SocketAddress, Workload
from mesh.policy import Arrival, decide
from mesh.reason import Reason
from mesh.route import ILLEGAL_PORTS, service_of, target_port
from mesh.snapshot import Snapshot
from ztunnel import headers
from ztunnel.capture import Answer
from ztunnel.connections import Connection
from ztunnel.orders import Offered, Plaintext, Refuse, RelayPlain

_MAX_AUTHORITY = 260  # a hostname of 253 characters, a colon, a port


class Refused(Exception):
    """A request that asks for nothing this pod can give."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def offered(snapshot: Snapshot, workload: Workload | None, fact: Offered, now: datetime) -> Answer:
    """Decide about a request on a tunnel. `workload` None: the controller has not sent the pod's own."""
    claimed, host = headers.read_forwarded(fact.headers)
    source = _source(snapshot, workload, fact.client.ip, fact.peer)
    connection = Connection(
        id=fact.id,
        pod=fact.pod,
        inbound=True,
        # The address is the peer's own, as connected; which of its ports it was, only the peer can tell.
        client=claimed if claimed is not None and claimed.ip == fact.client.ip else fact.client,
        asked=fact.local,
        opened_at=now,
        source=source,
        destination=workload,
        source_identity=fact.peer,
        destination_identity=workload.identity if workload is not None else None,
        hbone=fact.local,
        trace=headers.read_traceparent(fact.headers),
    )
    try:
        port = requested_port(snapshot, workload, fact)
    except Refused as refused:
        return _refuse(connection, refused.reason, refused.detail)
    assert workload is not None  # else requested_port refuses
    connection.asked = connection.upstream = SocketAddress(fact.local.ip, port)
    connection.service = service_of(snapshot, workload, port, host)
    return _decide(snapshot, workload, connection, headers.response(workload))


def plaintext(snapshot: Snapshot, workload: Workload | None, fact: Plaintext, now: datetime) -> Answer:
    """Decide about a connection that proves no identity: PeerAuthentication and policy."""
    connection = Connection(
        id=fact.id,
        pod=fact.pod,
        inbound=True,
        client=fact.client,
        asked=fact.destination,
        upstream=fact.destination,
        opened_at=now,
        source=snapshot.workload_at(fact.client.ip, workload.network if workload is not None else ""),
        destination=workload,
    )
    if workload is None:
        return _refuse(connection, Reason.DESTINATION_UNKNOWN, f"no workload is known for pod {fact.pod}")
    if fact.destination.port in ILLEGAL_PORTS:
        return _refuse(connection, Reason.ILLEGAL_PORT, f"port {fact.destination.port} is the agent's own")
    connection.service = service_of(snapshot, workload, fact.destination.port)
    return _decide(snapshot, workload, connection, ())


def requested_port(snapshot: Snapshot, workload: Workload | None, fact: Offered) -> int:
    """The pod's own port that the request asks for. Refused, in the order of istio-facts §1.6 and §1.7: not CONNECT, no
    authority with a port, another pod's address, an unknown host, a port no service maps, one of the agent's."""
    if fact.method != "CONNECT":
        raise Refused(Reason.BAD_REQUEST, f"method {fact.method[:32]!r} instead of CONNECT")
    authority = _parse_authority(fact.authority)
    if workload is None:
        raise Refused(Reason.DESTINATION_UNKNOWN, f"no workload is known for pod {fact.pod}")
    if isinstance(authority, SocketAddress):
        if authority.ip != fact.local.ip:
            raise Refused(Reason.AUTHORITY_MISMATCH, f"ip mismatch: {authority.ip} != {fact.local.ip}")
        port = authority.port
    else:
        port = _port_of_service(snapshot, workload, *authority)
    if port in ILLEGAL_PORTS:
        raise Refused(Reason.ILLEGAL_PORT, f"port {port} is the agent's own")
    return port


def _parse_authority(text: str) -> SocketAddress | tuple[str, int]:
    """`ip:port`, else (hostname, port)."""
    if len(text) > _MAX_AUTHORITY:
        raise Refused(Reason.BAD_REQUEST, f"the authority has {len(text)} characters")
    try:
        return SocketAddress.parse(text)
    except ValueError:
        pass
    host, colon, port = text.rpartition(":")
    numeric = port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536
    if not colon or not numeric or not _is_hostname(host):
        raise Refused(Reason.BAD_REQUEST, f"authority {text!r} is neither ip:port nor host:port")
    return host.lower(), int(port)


def _is_hostname(host: str) -> bool:
    labels = host.split(".")
    return (
        all(label and label.replace("-", "").replace("_", "").isalnum() for label in labels)
        and host.isascii()
        and not labels[-1].isdigit()  # an address that was not one: 10.0.0.300
    )


def _port_of_service(snapshot: Snapshot, workload: Workload, host: str, port: int) -> int:
    service = snapshot.service_named(host, workload.namespace)
    if service is None:
        raise Refused(Reason.DESTINATION_UNKNOWN, f"no service has the hostname {host}")
    if not any(p.service_port == port for p in service.ports):
        raise Refused(Reason.NO_SERVICE_PORT, f"service {service.namespaced_hostname} has no port {port}")
    target = target_port(service, workload, port)
    if not target:
        detail = f"port {port} of service {service.namespaced_hostname} leads to no port of {workload.uid}"
        raise Refused(Reason.NO_SERVICE_PORT, detail)
    return target


def _source(snapshot: Snapshot, workload: Workload | None, ip: str, peer: SpiffeId) -> Workload | None:
    """The peer's workload, for logs and metrics: the owner of its address, if it proved that one's identity."""
    found = snapshot.workload_at(ip, workload.network if workload is not None else "")
    return found if found is not None and found.identity == peer else None


def _decide(snapshot: Snapshot, workload: Workload, connection: Connection, answer: headers.Headers) -> Answer:
    assert connection.upstream is not None
    arrival = Arrival(
        source_ip=connection.client.ip,
        identity=connection.source_identity,
        destination=workload,
        destination_ip=connection.upstream.ip,
        destination_port=connection.upstream.port,
    )
    verdict = decide(snapshot, arrival)
    connection.policy, connection.notes, connection.trials = verdict.policy, verdict.notes, verdict.trials
    if not verdict.allow:
        return _refuse(connection, verdict.reason, verdict.detail)
    connection.arrival = arrival
    order = RelayPlain(
        id=connection.id,
        destination=connection.upstream,
        bind=connection.upstream.ip,
        as_client=connection.client,
        response_headers=answer,
    )
    return Answer(order=order, connection=connection)


def _refuse(connection: Connection, reason: Reason, detail: str) -> Answer:
    connection.reason, connection.detail = reason, detail
    return Answer(order=Refuse(id=connection.id, reason=reason, detail=detail), connection=connection)
