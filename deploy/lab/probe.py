"""Readiness, liveness and startup probes: their parameters and thresholds (pure), and how the kubelet asks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.lab.manifest import Object

_HEAD_LIMIT = 16384  # bytes of an answer that a probe reads


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpGet:
    host: str
    port: int
    path: str = "/"
    tls: bool = False
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpSocket:
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Times in seconds; defaults are Kubernetes'."""

    action: HttpGet | TcpSocket | Exec
    initial_delay: float = 0
    period: float = 10
    timeout: float = 1
    success_threshold: int = 1
    failure_threshold: int = 3


def parse(item: Mapping[str, object] | None, container: Object, pod_ip: str) -> Probe | None:
    """A container's probe; None if it has none. The object has been checked by `manifest`."""
    if not item:
        return None
    ports = {port.get("name"): port["containerPort"] for port in container.get("ports") or []}

    def number(detail: Object) -> int:
        return ports[detail["port"]] if isinstance(detail["port"], str) else detail["port"]

    action: HttpGet | TcpSocket | Exec
    if "httpGet" in item:
        detail: Object = item["httpGet"]  # type: ignore[assignment]
        action = HttpGet(
            host=detail.get("host") or pod_ip,
            port=number(detail),
            path=detail.get("path") or "/",
            tls=detail.get("scheme", "HTTP").upper() == "HTTPS",
            headers=tuple((h["name"], h["value"]) for h in detail.get("httpHeaders") or []),
        )
    elif "tcpSocket" in item:
        detail = item["tcpSocket"]  # type: ignore[assignment]
        action = TcpSocket(host=detail.get("host") or pod_ip, port=number(detail))
    else:
        action = Exec(command=tuple(item["exec"]["command"]))  # type: ignore[index]

    def setting(name: str, default: int) -> int:
        value = item.get(name)
        return value if isinstance(value, int) else default

    return Probe(
        action=action,
        initial_delay=setting("initialDelaySeconds", 0),
        period=max(1, setting("periodSeconds", 10)),
        timeout=max(1, setting("timeoutSeconds", 1)),
        success_threshold=max(1, setting("successThreshold", 1)),
        failure_threshold=max(1, setting("failureThreshold", 3)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a probe has said so far: the result in force (None: not yet), and how often in a row something else came."""

    passed: bool | None = None
    streak: int = 0
    last: bool | None = None


def observe(verdict: Verdict, ok: bool, probe: Probe) -> Verdict:
    """The verdict after one more answer: the result changes when a threshold is reached."""
    streak = verdict.streak + 1 if ok == verdict.last else 1
    threshold = probe.success_threshold if ok else probe.failure_threshold
    passed = ok if streak >= threshold else verdict.passed
    return replace(verdict, passed=passed, streak=streak, last=ok)


async def ask(action: HttpGet | TcpSocket) -> str:
    """Ask once. Returns "" if it passed, else why not; the caller sets the time limit."""
    try:
        if isinstance(action, TcpSocket):
            _, writer = await asyncio.open_connection(action.host, action.port)
            writer.close()
            return ""
        return await _http_get(action)
    except OSError as error:
        # asyncio's own text ("Connect call failed") does not say why.
        return f"{action.host}:{action.port}: {os.strerror(error.errno) if error.errno else error}"


async def _http_get(action: HttpGet) -> str:
    context = None
    if action.tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # as the kubelet does
    reader, writer = await asyncio.open_connection(action.host, action.port, ssl=context, limit=_HEAD_LIMIT)
    try:
        host = f"[{action.host}]" if ":" in action.host else action.host
        headers = {
            "Host": f"{host}:{action.port}",
            "User-Agent": "kube-probe/1.33",
            "Accept": "*/*",
            "Connection": "close",
        }
        headers |= dict(action.headers)
        head = [f"GET {action.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*head, "", ""]).encode())
        try:
            line = await reader.readuntil(b"\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return f"{action.host}:{action.port}{action.path}: not an HTTP answer"
        return _judge(line.split(), action)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            writer.transport.abort()


def _judge(words: Sequence[bytes], action: HttpGet) -> str:
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return f"{action.host}:{action.port}{action.path}: not an HTTP answer"
    status = int(words[1])
    return "" if 200 <= status < 400 else f"{action.host}:{action.port}{action.path}: HTTP status {status}"
