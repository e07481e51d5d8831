"""What is not about connections: build, pods, controller, certificates, the kernel side. Read at each scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric

from bpf.facts import Description
from mesh.control import Redirection
from ztunnel.admin.report import map_entries
from ztunnel.admin.view import AgentView


def collect(view: AgentView, kernel: Description | None, version: str) -> Iterator[Metric]:
    """Names of Istio's ztunnel where there is one; ours start with `gossamer_`."""
    yield _gauge("istio_build", "The version of this agent.", ({"component": "ztunnel", "tag": version}, 1))
    pods = view.pods()
    active = sum(p.redirection is Redirection.ENABLED for p in pods)
    waiting = sum(p.redirection is Redirection.PENDING for p in pods)
    yield _gauge("workload_manager_active_proxy_count", "Pods of this node that are enrolled.", ({}, active))
    yield _gauge("workload_manager_pending_proxy_count", "Pods that wait for enrolment.", ({}, waiting))
    failing = sum(bool(p.error) for p in pods)
    yield _gauge("gossamer_enrolment_failing_pods", "Pods whose last enrolment failed; it is retried.", ({}, failing))
    yield _gauge("gossamer_older_connections", "Connections older than their pod's enrolment.", ({}, len(view.older())))
    yield _gauge("gossamer_stuck_threads", "Threads that have work and do not get on.", ({}, len(view.stuck())))
    yield from _control(view)
    yield _refusals(view)
    yield from _direct(view)
    if kernel is not None:
        yield from _maps(kernel)


def _control(view: AgentView) -> Iterator[Metric]:
    controller, snapshot = view.controller, view.snapshot
    yield _gauge("gossamer_controller_connected", "1 while its stream is up.", ({}, int(controller.connected)))
    yield _counter(
        "istio_xds_connection_terminations",
        "Streams from the controller that were up and ended.",
        ({}, controller.terminations),
    )
    yield _counter(
        "istio_xds_message",
        "Messages from the controller.",
        ({"url": "gossamer.Update"}, controller.updates),
    )
    yield _gauge("gossamer_snapshot_version", "Version of the snapshot that decides.", ({}, snapshot.version))
    yield _gauge(
        "gossamer_snapshot_resources",
        "Resources of the snapshot that decides.",
        ({"kind": "workload"}, len(snapshot.workloads)),
        ({"kind": "service"}, len(snapshot.services)),
        ({"kind": "policy"}, len(snapshot.policies)),
    )
    yield _gauge(
        "gossamer_certificate_expiry_timestamp_seconds",
        "When a certificate that the node holds ends, in Unix time.",
        *(
            ({"identity": str(c.identity)}, c.not_after.timestamp())
            for c in sorted(view.certificates(), key=lambda c: str(c.identity))
            if c.not_after is not None
        ),
    )


def _refusals(view: AgentView) -> Metric:
    counted = (({"reason": reason.name}, n) for reason, n in sorted(view.kernel_counters().items()))
    return _counter("gossamer_kernel_refused", "Connections that the kernel side refused, by reason.", *counted)


def _direct(view: AgentView) -> Iterator[Metric]:
    lost, unfilled = view.kernel_losses()
    yield _counter("gossamer_kernel_events_lost", "Events that the kernel side had no room for.", ({}, lost))
    yield _counter(
        "gossamer_direct_unfilled",
        "Permissions that the kernel had no room for: these connections take the tunnel.",
        ({}, unfilled),
    )


def _maps(kernel: Description) -> Iterator[Metric]:
    counted = [(m, entries) for m in kernel.maps if (entries := map_entries(m)) is not None]
    used = (({"map": m.name}, n) for m, n in counted)
    yield _gauge("gossamer_bpf_map_entries", "Entries in use of a kernel map.", *used)
    limits = (({"map": m.name}, m.max) for m, _ in counted)
    yield _gauge("gossamer_bpf_map_max_entries", "Entries that a kernel map has room for.", *limits)


def _gauge(name: str, text: str, *samples: tuple[dict[str, str], float]) -> Metric:
    family = Metric(name, text, "gauge")
    for labels, value in samples:
        family.add_sample(name, labels, value)
    return family


def _counter(name: str, text: str, *samples: tuple[dict[str, str], float]) -> Metric:
    family = Metric(name, text, "counter")
    for labels, value in samples:
        family.add_sample(f"{name}_total", labels, value)
    return family
