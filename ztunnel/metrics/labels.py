"""The labels of Istio's TCP metrics, in Istio's order (istio-facts §4.1)."""

from __future__ import annotations

from mesh.model import Workload
from mesh.reason import Reason
from ztunnel.connections import Connection

UNKNOWN = "unknown"


def traffic_labels(connection: Connection, reason: Reason = Reason.OK) -> dict[str, str]:
    """All labels, in order, a missing value as `unknown`; the four of the locality only where somebody has one.

    `source_principal` is what a TLS handshake proved, or of a direct connection the netns it was made in.
    `destination_principal` is whom the control plane says the destination runs as; it is proved where
    `connection_security_policy` is `mutual_tls`.
    """
    source, destination, service = connection.source, connection.destination, connection.service
    destination_principal = connection.destination_identity or (destination.identity if destination else None)
    mutual_tls = connection.hbone is not None
    attested = mutual_tls or connection.direct
    values = {
        "reporter": "destination" if connection.inbound else "source",
        "source_workload": workload_name(source),
        "source_canonical_service": source and source.canonical_name,
        "source_canonical_revision": source and source.canonical_revision,
        "source_workload_namespace": source and source.namespace,
        "source_principal": attested and connection.source_identity and str(connection.source_identity),
        "source_app": source and source.canonical_name,
        "source_version": source and source.canonical_revision,
        "source_cluster": source and source.cluster_id,
        "destination_service": service and service.hostname,
        "destination_service_namespace": service and service.namespace,
        "destination_service_name": service and service.name,
        "destination_workload": workload_name(destination),
        "destination_canonical_service": destination and destination.canonical_name,
        "destination_canonical_revision": destination and destination.canonical_revision,
        "destination_workload_namespace": destination and destination.namespace,
        "destination_principal": destination_principal and str(destination_principal),
        "destination_app": destination and destination.canonical_name,
        "destination_version": destination and destination.canonical_revision,
        "destination_cluster": destination and destination.cluster_id,
        "request_protocol": "tcp",
        "response_flags": reason.response_flags,
        "connection_security_policy": "mutual_tls" if mutual_tls else UNKNOWN,
    }
    locality = {
        "source_region": source and source.locality.region,
        "source_zone": source and source.locality.zone,
        "destination_region": destination and destination.locality.region,
        "destination_zone": destination and destination.locality.zone,
    }
    if any(locality.values()):
        values |= locality
    return {name: value or UNKNOWN for name, value in values.items()}


def workload_name(workload: Workload | None) -> str:
    """What owns the pod (a Deployment's name, say); a bare pod's own name; empty if there is no workload."""
    return "" if workload is None else workload.workload_name or workload.name
