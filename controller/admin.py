"""What people and probes ask: `GET /status` over a unix socket; `/metrics` and `/healthz/ready` over HTTP."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from controller.state import State
from mesh.resources import Condition, ObjectKey, ParseError

_STAYS = "; the last good state stays in force"


def status(state: State) -> dict[str, Any]:
    """`{"version", "objects": [{"file", "kind", "namespace", "name", "conditions"}], "nodes": [...]}`, plain values."""
    rejections: dict[ObjectKey, list[Condition]] = {}
    for key, node, why in state.rejections():
        condition = Condition(type="NodesAccepted", status="False", reason="Refused", message=f"{node}: {why}")
        rejections.setdefault(key, []).append(condition)
    for key, condition in _enrolment(state):
        rejections.setdefault(key, []).append(condition)
    refused = {(e.file, ObjectKey(e.kind, e.namespace, e.name)): e for e in state.input.refusals}
    objects = []
    for key, file in sorted(state.input.files.items(), key=lambda item: (item[1], item[0])):
        error = refused.pop((file, key), None)
        accepted = _refusal(error, _STAYS) if error is not None else _ACCEPTED
        conditions = (accepted, *state.translation.conditions.get(key, ()), *rejections.get(key, ()))
        objects.append(_object(file, key, conditions))
    objects += [_object(file, key, (_refusal(error),)) for (file, key), error in refused.items()]
    nodes = [msgspec.to_builtins(state.nodes[name]) | {"pods": _pods(state, name)} for name in sorted(state.nodes)]
    return {"version": state.version, "objects": objects, "nodes": nodes}


def status_application(state: State) -> web.Application:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(status(state)), content_type="application/json")

    app = web.Application()
    app.router.add_get("/status", answer)
    app.router.add_get("/healthz/ready", _ready)
    return app


def metrics_application(state: State) -> web.Application:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(state.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/metrics", answer)
    app.router.add_get("/stats/prometheus", answer)
    app.router.add_get("/healthz/ready", _ready)
    return app


async def _ready(_: web.Request) -> web.Response:
    """Answered only once the source has been read and nodes are served: nothing listens before."""
    return web.Response(text="ready\n")


_ACCEPTED = Condition(type="Accepted", status="True", reason="Accepted")


def _refusal(error: ParseError, stays: str = "") -> Condition:
    return Condition(type="Accepted", status="False", reason="Invalid", message=error.message + stays)


def _object(file: str, key: ObjectKey, conditions: tuple[Condition, ...]) -> dict[str, Any]:
    return {
        "file": file,
        "kind": key.kind,
        "namespace": key.namespace,
        "name": key.name,
        "conditions": [msgspec.to_builtins(condition) for condition in conditions],
    }


def _enrolment(state: State) -> list[tuple[ObjectKey, Condition]]:
    """Pods whose node could not enrol them."""
    found = []
    for report in state.reports.values():
        origin = state.translation.origins.get(f"workload/{report.uid}")
        if report.error and origin is not None:
            condition = Condition(type="Enrolled", status="False", reason="EnrolmentFailed", message=report.error)
            found.append((origin, condition))
    return found


def _pods(state: State, node: str) -> list[dict[str, str]]:
    pods = []
    for uid, place in sorted(state.translation.pods.items()):
        report = state.reports.get(place.instance)
        if place.node == node and report is not None:
            fields = {"uid": uid, "instance": place.instance, "redirection": report.redirection.value}
            pods.append(fields | {"error": report.error})
    return pods
