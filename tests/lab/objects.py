"""Kubernetes objects as YAML text, for the labs of tests: `namespace("mesh", ambient=True) + node("n1") + pod(…)`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

PORT = 9000  # that the pods' programs listen on


def document(kind: str, metadata: Mapping[str, Any], spec: Mapping[str, Any] | None = None, api: str = "v1") -> str:
    """One object; JSON is YAML."""
    given = {"apiVersion": api, "kind": kind, "metadata": metadata} | ({"spec": spec} if spec is not None else {})
    return f"---\n{json.dumps(given)}\n"


def namespace(name: str, *, ambient: bool = False, direct: bool = True) -> str:
    """`direct` False: through the tunnel on one node too."""
    labels = {"istio.io/dataplane-mode": "ambient"} if ambient else {}
    if not direct:
        labels["gossamer.io/direct"] = "off"
    return document("Namespace", {"name": name, "labels": labels})


def node(name: str) -> str:
    return document("Node", {"name": name})


def service(name: str, namespace: str) -> str:
    """Dual-stack, port 80; of the pods that are labelled with its name."""
    ports = [{"port": 80, "targetPort": PORT}]
    spec = {"ipFamilyPolicy": "RequireDualStack", "selector": {"app": name}, "ports": ports}
    return document("Service", {"name": name, "namespace": namespace}, spec)


def python(program: str) -> list[str]:
    return ["/usr/bin/python3", "-S", "-u", "-c", program]


def pod(
    name: str,
    namespace: str,
    node: str,
    program: str = "",
    *,
    command: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    probed: int = PORT,
    **spec: Any,
) -> str:
    """A pod under a service account of its own name, and that account. `program` is Python and, like `command`, serves
    on PORT; `probed` is the port that says it is ready. Without either the pod sleeps. `spec` has more fields of the
    pod's spec; a `securityContext` is the container's."""
    ran = python(program) if program else list(command)
    container: dict[str, Any] = {"name": "main", "command": ran or ["sleep", "infinity"]}
    if ran:
        container["readinessProbe"] = {"tcpSocket": {"port": probed}, "periodSeconds": 1}
    if "securityContext" in spec:
        container["securityContext"] = spec.pop("securityContext")
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name, **(labels or {})}}
    account = document("ServiceAccount", {"name": name, "namespace": namespace})
    made = {"nodeName": node, "serviceAccountName": name, "containers": [container], **spec}
    return document("Pod", metadata, made) + account
