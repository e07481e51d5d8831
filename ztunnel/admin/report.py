"""The JSON of the admin endpoints, from a view of the agent. Pure: `now` is an argument.

Shapes are stable (docs/observability.md lists them): fields are added, never renamed. Times are RFC 3339 in UTC,
durations seconds, addresses `ip:port` or `[v6]:port`; what is not known is null.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from bpf.facts import Description, MapFacts
from mesh.control import Redirection
from mesh.model import Policy, Service, SocketAddress, Workload, WorkloadStatus
from mesh.snapshot import Snapshot
from ztunnel.admin.view import AgentView, OlderConnection, Pod
from ztunnel.certificates import CertificateView
from ztunnel.connections import Connection

Json = dict[str, Any]

MAP_FILL_WARNING = 0.9
_COUNTED = frozenset({"hash", "lpm_trie", "sockhash", "sockmap"})


def status(view: AgentView, kernel: Description | OSError, version: str, now: datetime) -> Json:
    """What the agent is, what it waits for (`pending`: not ready) and what an operator should look at (`problems`)."""
    pods, certificates, connections = view.pods(), view.certificates(), view.connections()
    snapshot, controller, pending = view.snapshot, view.controller, list(view.pending())
    return {
        "node": view.node,
        "node_ip": view.node_ip,
        "version": version,
        "pid": os.getpid(),
        "started_at": timestamp(view.started_at),
        "uptime_seconds": round((now - view.started_at).total_seconds(), 3),
        "ready": not pending,
        "pending": pending,
        "problems": problems(view, kernel, now),
        "controller": {
            "address": controller.address,
            "state": "connected" if controller.connected else "disconnected",
            "synced": controller.synced,
            "error": controller.error,
        },
        "snapshot": {
            "version": snapshot.version,
            "trust_domain": snapshot.trust_domain,
            "workloads": len(snapshot.workloads),
            "services": len(snapshot.services),
            "policies": len(snapshot.policies),
        },
        "pods_enrolled": sum(p.redirection is Redirection.ENABLED for p in pods),
        "pods_wanted": sum(p.redirection is not Redirection.DISABLED for p in pods),
        "certificates": {
            "total": len(certificates),
            "valid": sum(certificate_state(c, now) == "valid" for c in certificates),
        },
        "connections": {
            "inbound": sum(c.inbound for c in connections),
            "outbound": sum(not c.inbound for c in connections),
            "older": len(view.older()),
        },
        "pods": [_pod(p, snapshot) for p in sorted(pods, key=lambda p: (p.namespace, p.name))],
    }


def problems(view: AgentView, kernel: Description | OSError, now: datetime) -> list[str]:
    """What does not stop the node but wants somebody's attention: the object, the cause and what it means."""
    found = []
    controller = view.controller
    if not controller.connected:
        cause = f": {controller.error}" if controller.error else ""
        found.append(f"controller {controller.address}: disconnected{cause}; the last state it sent stays in force")
    found += [f"pod {p.namespace}/{p.name}: {p.error}" for p in view.pods() if p.error]
    for certificate in view.certificates():
        state = certificate_state(certificate, now)
        if state in ("failed", "expired") or certificate.error:
            cause = f": {certificate.error}" if certificate.error else ""
            found.append(f"certificate of {certificate.identity}: {state}{cause}")
    if isinstance(kernel, OSError):
        found.append(f"the kernel side cannot be read: {kernel}")
    else:
        for each in kernel.maps:
            entries = map_entries(each)
            if entries is not None and entries >= MAP_FILL_WARNING * each.max:
                found.append(
                    f"kernel map {each.name}: {entries} of {each.max} entries used; full, it refuses connections"
                )
    return found


def workloads(view: AgentView) -> Json:
    pods = {p.instance: p for p in view.pods()}
    listed = sorted(view.snapshot.workloads.values(), key=lambda w: (w.namespace, w.name, w.uid))
    return {"workloads": [_workload(w, pods.get(w.instance)) for w in listed]}


def services(view: AgentView) -> Json:
    listed = sorted(view.snapshot.services.values(), key=lambda s: (s.namespace, s.hostname))
    return {"services": [_service(s, view.snapshot) for s in listed]}


def policies(view: AgentView) -> Json:
    listed = sorted(view.snapshot.policies.values(), key=lambda p: p.namespaced_name)
    return {"policies": [_policy(p) for p in listed]}


def certificates(view: AgentView, now: datetime) -> Json:
    users: dict[str, list[str]] = {}
    for pod in view.pods():
        workload = view.snapshot.workload_of_pod(pod.instance, pod.namespace, pod.name)
        if workload is not None:
            users.setdefault(str(workload.identity), []).append(f"{pod.namespace}/{pod.name}")
    listed = sorted(view.certificates(), key=lambda c: str(c.identity))
    return {"certificates": [_certificate(c, users.get(str(c.identity), []), now) for c in listed]}


def connections(view: AgentView, now: datetime) -> Json:
    """Live ones, oldest first; beside them (`older`) those that were there before their pod was enrolled."""
    names = {p.instance: p for p in view.pods()}
    counts = view.counts()
    listed = sorted(view.connections(), key=lambda c: (c.opened_at, c.id))
    return {
        "connections": [_connection(c, counts.get(c.id), now) for c in listed],
        "older": [_older(o, names.get(o.pod)) for o in view.older()],
    }


def bpf(view: AgentView, kernel: Description | OSError) -> Json:
    """Each program is attached by one link; `target` is a cgroup's id or a network namespace's inode."""
    counters = [
        {"reason": reason.name, "count": n, "meaning": reason.hint}
        for reason, n in sorted(view.kernel_counters().items())
    ]
    if isinstance(kernel, OSError):
        return {"layout": None, "error": str(kernel), "programs": [], "maps": [], "counters": counters}
    return {
        "layout": kernel.layout,
        "error": "",
        "programs": [msgspec.to_builtins(program) for program in kernel.programs],
        "maps": [
            {"name": m.name, "type": m.type, "entries": map_entries(m), "max_entries": m.max} for m in kernel.maps
        ],
        "counters": counters,
    }


def map_entries(facts: MapFacts) -> int | None:
    """Entries in use; None where that cannot be counted, or means nothing because an array is always full."""
    return facts.entries if facts.type in _COUNTED else None


def certificate_state(certificate: CertificateView, now: datetime) -> str:
    """What its keeper says, but `expired` where that has happened since."""
    if certificate.not_after is not None and certificate.not_after <= now:
        return "expired"
    return certificate.state


def timestamp(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _pod(pod: Pod, snapshot: Snapshot) -> Json:
    workload = snapshot.workload_of_pod(pod.instance, pod.namespace, pod.name)
    return {
        "namespace": pod.namespace,
        "name": pod.name,
        "instance": pod.instance,
        "addresses": list(workload.addresses) if workload else [],
        "identity": str(workload.identity) if workload else None,
        "wanted": workload.capture if workload else False,
        "state": str(pod.redirection),
        "error": pod.error,
    }


def _workload(workload: Workload, pod: Pod | None) -> Json:
    return {
        "uid": workload.uid,
        "namespace": workload.namespace,
        "name": workload.name,
        "instance": workload.instance,
        "addresses": list(workload.addresses),
        "node": workload.node,
        "network": workload.network,
        "identity": str(workload.identity),
        "protocol": str(workload.tunnel_protocol),
        "wanted": workload.capture,
        "state": str(pod.redirection) if pod else None,  # of enrolment, on the node that runs it
        "network_mode": str(workload.network_mode),
        "status": str(workload.status),
        "workload_type": workload.workload_type,
        "workload_name": workload.workload_name,
        "canonical_name": workload.canonical_name,
        "canonical_revision": workload.canonical_revision,
        "cluster_id": workload.cluster_id,
        "locality": msgspec.to_builtins(workload.locality),
        "services": [
            {
                "hostname": name.partition("/")[2],
                "namespace": name.partition("/")[0],
                "ports": msgspec.to_builtins(ports),
            }
            for name, ports in sorted(workload.services.items())
        ],
        "authorization_policies": list(workload.authorization_policies),
    }


def _service(service: Service, snapshot: Snapshot) -> Json:
    endpoints = sorted(snapshot.endpoints(service), key=lambda w: w.uid)
    return {
        "namespace": service.namespace,
        "name": service.name,
        "hostname": service.hostname,
        "addresses": list(service.addresses),
        "ports": [msgspec.to_builtins(port) for port in service.ports],
        "endpoints_total": len(endpoints),
        "endpoints_healthy": sum(w.status is WorkloadStatus.HEALTHY for w in endpoints),
        "endpoints": [{"uid": w.uid, "addresses": list(w.addresses), "status": str(w.status)} for w in endpoints],
        "subject_alt_names": list(service.subject_alt_names),
    }


def _policy(policy: Policy) -> Json:
    shown: Json = msgspec.to_builtins(policy)
    return shown


def _certificate(certificate: CertificateView, pods: list[str], now: datetime) -> Json:
    return {
        "identity": str(certificate.identity),
        "namespace": certificate.identity.namespace,
        "service_account": certificate.identity.service_account,
        "state": certificate_state(certificate, now),
        "serial": None if certificate.serial is None else f"{certificate.serial:x}",
        "not_before": timestamp(certificate.not_before),
        "not_after": timestamp(certificate.not_after),
        "error": certificate.error,
        "pods": sorted(pods),
    }


def _connection(connection: Connection, counted: tuple[int, int] | None, now: datetime) -> Json:
    sent, received = counted or (connection.sent, connection.received)
    return {
        "id": connection.id,
        "direction": "inbound" if connection.inbound else "outbound",
        "source": _party(connection.source, connection.source_identity, connection.client),
        "destination": _party(connection.destination, connection.destination_identity, connection.asked),
        "service": connection.service.hostname if connection.service else None,
        "protocol": protocol(connection),
        "established": connection.established,  # the upstream has answered
        "upstream": str(connection.upstream) if connection.upstream else None,
        "hbone": str(connection.hbone) if connection.hbone else None,
        "opened_at": timestamp(connection.opened_at),
        "age_seconds": round((now - connection.opened_at).total_seconds(), 3),
        "bytes_sent": sent,  # client to server
        "bytes_received": received,
        "policy": connection.policy or None,
    }


def protocol(connection: Connection) -> str:
    return "HBONE" if connection.hbone else "DIRECT" if connection.direct else "TCP"


def _party(workload: Workload | None, identity: object, address: SocketAddress) -> Json:
    return {
        "namespace": workload.namespace if workload else None,
        "pod": workload.name if workload else None,
        "identity": str(identity) if identity else None,
        "address": str(address),
    }


def _older(older: OlderConnection, pod: Pod | None) -> Json:
    return {
        "namespace": pod.namespace if pod else None,
        "pod": pod.name if pod else None,
        "instance": older.pod,
        "direction": "inbound" if older.inbound else "outbound",
        "local": str(older.local),
        "remote": str(older.remote),
    }


def encode(answer: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(answer), indent=2) + b"\n"
