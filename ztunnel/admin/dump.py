"""GET /config_dump: what this node knows and serves, in the shape of Istio's ztunnel, so that `istioctl ztunnel-config`
and Kiali's ztunnel page read it (istio/ztunnel src/admin.rs, src/state; istioctl pkg/writer/ztunnel/configdump).

Names are Istio's, in camelCase; addresses of Services are `<network>/<ip>`. Beside them stand `status` and `bpf`, which
Istio has not. Pure: `now` is an argument. No key is in it.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from cryptography import x509

from bpf.facts import Description
from mesh.control import Redirection
from mesh.model import (
    BalancingMode,
    IpFamilies,
    Match,
    MatchKind,
    Policy,
    Port,
    Service,
    StringMatch,
    TunnelProtocol,
    Workload,
)
from mesh.snapshot import Snapshot
from ztunnel.admin import report
from ztunnel.admin.report import Json
from ztunnel.admin.view import AgentView, Pod
from ztunnel.certificates import CertificateView
from ztunnel.connections import Connection

_STATES = {Redirection.ENABLED: "Up", Redirection.PENDING: "Pending"}
_FAMILIES = {IpFamilies.DUAL: "Dual", IpFamilies.IPV4_ONLY: "IPv4", IpFamilies.IPV6_ONLY: "IPv6"}


def config_dump(view: AgentView, kernel: Description | OSError, version: str, now: datetime) -> Json:
    """Everything that decides, and what is open, in one answer."""
    snapshot = view.snapshot
    return {
        "workloads": [_workload(w) for _, w in sorted(snapshot.workloads.items())],
        "services": [_service(s, snapshot) for _, s in sorted(snapshot.services.items())],
        "policies": [_policy(p) for p in sorted(snapshot.policies.values(), key=lambda p: p.namespaced_name)],
        "certificates": [_certificate(c) for c in sorted(view.certificates(), key=lambda c: str(c.identity))],
        "workloadState": _states(view),
        "config": {"localNode": view.node, "xdsAddress": view.controller.address},
        "version": {"version": version},
        "status": report.status(view, kernel, version, now),
        "bpf": report.bpf(view, kernel),
    }


def _workload(workload: Workload) -> Json:
    locality = workload.locality
    return {
        "uid": workload.uid,
        "workloadIps": list(workload.addresses),
        "protocol": "HBONE" if workload.tunnel_protocol is TunnelProtocol.HBONE else "TCP",
        "networkMode": _pascal(workload.network_mode),
        "name": workload.name,
        "namespace": workload.namespace,
        "trustDomain": workload.trust_domain,
        "serviceAccount": workload.service_account,
        "network": workload.network,
        "workloadName": workload.workload_name,
        "workloadType": workload.workload_type,
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "node": workload.node,
        "authorizationPolicies": list(workload.authorization_policies),
        "status": _pascal(workload.status),
        "clusterId": workload.cluster_id,
        "locality": {"region": locality.region, "zone": locality.zone, "subzone": locality.subzone},
        "services": sorted(workload.services),
        "capacity": workload.capacity,
    }


def _service(service: Service, snapshot: Snapshot) -> Json:
    balancing = service.load_balancing
    mode = "Standard" if balancing.mode is BalancingMode.UNSPECIFIED else _pascal(balancing.mode)
    return {
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": [f"{service.network}/{ip}" for ip in service.addresses],
        "ports": _ports(service.ports),
        "endpoints": {
            w.uid: {
                "workloadUid": w.uid,
                "port": _ports(w.services.get(service.namespaced_hostname, ())),
                "status": _pascal(w.status),
            }
            for w in sorted(snapshot.endpoints(service), key=lambda w: w.uid)
        },
        "subjectAltNames": list(service.subject_alt_names),
        "loadBalancer": {
            "routingPreferences": [_pascal(scope) for scope in balancing.routing_preference],
            "mode": mode,
            "healthPolicy": _pascal(balancing.health_policy),
        },
        "ipFamilies": _FAMILIES.get(service.ip_families),
    }


def _ports(ports: Iterable[Port]) -> dict[str, int]:
    """Service port -> target port; 0: a named one, the endpoint has it."""
    return {str(port.service_port): port.target_port for port in ports}


def _policy(policy: Policy) -> Json:
    return {
        "name": policy.name,
        "namespace": policy.namespace,
        "scope": _pascal(policy.scope),
        "action": _pascal(policy.action),
        "rules": [[[_match(m) for m in clause.matches] for clause in rule.clauses] for rule in policy.rules],
        "dryRun": policy.dry_run,
    }


def _match(match: Match) -> Json:
    """What is empty is left out."""

    def accounts(not_: str) -> list[Json]:
        found = getattr(match, f"{not_}service_accounts")
        return [{"namespace": a.namespace, "serviceAccount": a.service_account} for a in found]

    fields: Json = {}
    for not_, prefix in (("", ""), ("not_", "not")):
        values: Mapping[str, Sequence[object]] = {
            "namespaces": [_string(s) for s in getattr(match, f"{not_}namespaces")],
            "serviceAccounts": accounts(not_),
            "principals": [_string(s) for s in getattr(match, f"{not_}principals")],
            "sourceIps": list(getattr(match, f"{not_}source_ips")),
            "destinationIps": list(getattr(match, f"{not_}destination_ips")),
            "destinationPorts": list(getattr(match, f"{not_}destination_ports")),
        }
        for name, value in values.items():
            fields[f"{prefix}{name[0].upper()}{name[1:]}" if prefix else name] = value
    return {name: value for name, value in fields.items() if value}


def _string(match: StringMatch) -> Json:
    return {_pascal(match.kind): [] if match.kind is MatchKind.PRESENCE else match.value}


def _certificate(view: CertificateView) -> Json:
    missing = f"Unavailable: {view.error}" if view.error else "Initializing"
    return {
        "identity": str(view.identity),
        "state": "Available" if view.chain else missing,
        "certChain": [_x509(der) for der in view.chain],
        "rootCerts": [_x509(der) for der in view.roots],
    }


def _x509(der: bytes) -> Json:
    """`pem` is PEM in base64 once more, `serialNumber` decimal."""
    certificate = x509.load_der_x509_certificate(der)
    return {
        "pem": base64.b64encode(ssl.DER_cert_to_PEM_cert(der).encode()).decode(),
        "serialNumber": str(certificate.serial_number),
        "validFrom": _seconds(certificate.not_valid_before_utc),
        "expirationTime": _seconds(certificate.not_valid_after_utc),
    }


def _seconds(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _states(view: AgentView) -> Json:
    """The pods that are enrolled, or shall be, by metadata.uid, with their connections."""
    connections: dict[str, list[Connection]] = {}
    for connection in view.connections():
        connections.setdefault(connection.pod, []).append(connection)
    return {
        pod.instance: _state(pod, view.snapshot, connections.get(pod.instance, []))
        for pod in sorted(view.pods(), key=lambda pod: pod.instance)
        if pod.redirection in _STATES
    }


def _state(pod: Pod, snapshot: Snapshot, connections: Iterable[Connection]) -> Json:
    workload = snapshot.workload_of_pod(pod.instance, pod.namespace, pod.name)
    ends: dict[str, list[Json]] = {"inbound": [], "outbound": []}
    for connection in connections:
        ends["inbound" if connection.inbound else "outbound"].append(_connection(connection))
    return {
        "state": _STATES[pod.redirection],
        "connections": ends,
        "info": {
            "name": pod.name,
            "namespace": pod.namespace,
            "trustDomain": workload.trust_domain if workload else "",
            "serviceAccount": workload.service_account if workload else "",
        },
    }


def _connection(connection: Connection) -> Json:
    """`protocol` has one word more than Istio's: DIRECT. Of an inbound one, the original destination is the Service."""
    service = connection.service.hostname if connection.service else None
    actual = connection.upstream or connection.asked
    return {
        "src": str(connection.client),
        "originalDst": service if connection.inbound else str(connection.asked),
        "actualDst": str(actual if connection.inbound else connection.hbone or actual),
        "protocol": report.protocol(connection),
    }


def _pascal(value: str) -> str:
    """WORKLOAD_SELECTOR -> WorkloadSelector."""
    return "".join(word.capitalize() for word in value.split("_"))
