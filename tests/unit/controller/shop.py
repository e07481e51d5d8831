"""A small mesh for tests of the controller: a namespace with the pod `web`, and `far` on another node."""

from __future__ import annotations

from controller.state import Input
from mesh.resources import Object, ObjectKey, key_of, load, parse

WEB, FAR = "Kubernetes//Pod/shop/web", "Kubernetes//Pod/shop/far"
SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u1}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: c}]}
status: {phase: Running, podIP: 10.0.0.1}
"""
BOTH = f"""{SHOP}---
apiVersion: v1
kind: Pod
metadata: {{name: far, namespace: shop, uid: u2}}
spec: {{nodeName: n2, containers: [{{name: c}}]}}
status: {{phase: Running, podIP: 10.0.0.2}}
"""


def given_input(text: str) -> Input:
    parsed: list[Object] = [parse(document, file="f") for document in load(text, file="f")]
    objects: dict[ObjectKey, Object] = {key_of(p): p for p in parsed}
    return Input(objects=objects, files=dict.fromkeys(objects, "f"))
