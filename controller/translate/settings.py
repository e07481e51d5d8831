"""What the whole mesh agrees on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`root_namespace`: where mesh-wide policies live. `cluster_domain`: what service host names end in."""

    trust_domain: str = "cluster.local"
    cluster_id: str = "Kubernetes"
    root_namespace: str = "istio-system"
    cluster_domain: str = "cluster.local"
