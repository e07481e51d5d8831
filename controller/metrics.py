"""The controller's Prometheus series, in a registry of their own."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]


def build_version() -> str:
    try:
        return version("gossamer-mesh")
    except PackageNotFoundError:
        return "unknown"


class Metrics:
    """One instance per controller; labels are closed sets, never a peer's choice."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        build = Gauge("istio_build", "Component and version", ["component", "tag"], registry=self.registry)
        build.labels("controller", build_version()).set(1)
        self.nodes = Gauge("gossamer_controller_nodes", "Nodes with a live stream", registry=self.registry)
        self.resources = Gauge("gossamer_controller_resources", "Resources nodes get", ["kind"], registry=self.registry)
        self.refused = Gauge("gossamer_controller_objects_refused", "Objects or files refused", registry=self.registry)
        self.pushes = Counter("gossamer_controller_pushes", "Updates sent to nodes", registry=self.registry)
        self.acks = Counter("gossamer_controller_acks", "Updates applied whole", registry=self.registry)
        self.nacks = Counter("gossamer_controller_nacks", "Updates with resources refused", registry=self.registry)
        self.certificates = Counter(
            "gossamer_controller_certificates", "Certificate requests by outcome", ["outcome"], registry=self.registry
        )
        self.translation = Histogram(
            "gossamer_controller_translation_seconds", "Time to translate all objects", registry=self.registry
        )
