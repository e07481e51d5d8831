"""A full node: many pods in a few namespaces, each with an identity of its own, and thousands of policies. Pure.

Pod N is `pod-N` in namespace `crowd-(N mod 10)`, runs as service account `pod-N`, and has a headless Service of its
own. Policies are spread evenly over the pods: each selects one pod and allows two principals to one port, so that with
eight policies a pod has sixteen callers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

NAMESPACES = 10
PORT = 8080
TRUST_DOMAIN = "cluster.local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """How many there are of each."""

    pods: int = 250
    policies: int = 2000

    def namespace(self, pod: int) -> str:
        return f"crowd-{pod % NAMESPACES}"

    @property
    def permitted(self) -> int:
        """How many (source, destination) pairs the policies allow, where every pod has policies."""
        return 2 * self.policies

    def principal(self, pod: int) -> str:
        pod %= self.pods
        return f"{TRUST_DOMAIN}/ns/{self.namespace(pod)}/sa/pod-{pod}"

    def namespaces(self) -> Iterator[Object]:
        for number in range(NAMESPACES):
            labels = {"istio.io/dataplane-mode": "ambient"}
            yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"crowd-{number}", "labels": labels}}

    def neighbourhood(self, pod: int, *, uid: str, node: str, node_ip: str, address: str) -> Iterator[Object]:
        """A pod, its service account and its Service."""
        meta = {"namespace": self.namespace(pod), "name": f"pod-{pod}"}
        labels = {"app": f"pod-{pod}"}
        yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
        yield {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"clusterIP": "None", "selector": labels, "ports": [{"port": PORT}]},
        }
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta | {"uid": uid, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "nodeName": node,
                "serviceAccountName": f"pod-{pod}",
                "containers": [{"name": "idle", "image": "idle"}],
            },
            "status": {
                "phase": "Running",
                "hostIP": node_ip,
                "podIP": address,
                "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }

    def callers(self, policy: int) -> tuple[int, int]:
        """The pods that a policy allows; of one pod's policies, all different."""
        pod, turn = policy % self.pods, policy // self.pods
        return (pod + 2 * turn + 1) % self.pods, (pod + 2 * turn + 2) % self.pods

    def policy(self, number: int) -> Object:
        pod = number % self.pods
        return allow(
            f"policy-{number}", self.namespace(pod), pod, [self.principal(caller) for caller in self.callers(number)]
        )


def allow(name: str, namespace: str, pod: int, principals: list[str]) -> Object:
    """An AuthorizationPolicy that lets these principals reach one pod."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "selector": {"matchLabels": {"app": f"pod-{pod}"}},
            "action": "ALLOW",
            "rules": [
                {
                    "from": [{"source": {"principals": principals}}],
                    "to": [{"operation": {"ports": [str(PORT)]}}],
                }
            ],
        },
    }
