"""The headers of a CONNECT and of its answer, as ztunnel writes and reads them (istio-facts §1.5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from mesh.model import Service, SocketAddress, Workload

Headers = Sequence[tuple[str, str]]

_TYPES = frozenset({"deployment", "cronjob", "pod", "job"})
_MAX_HOST = 253  # RFC 1035 §2.3.4


class Bits(Protocol):
    """What is needed of random.Random."""

    def getrandbits(self, k: int, /) -> int: ...


def baggage(workload: Workload) -> str:
    """Who the workload is (W3C Baggage); empty keys left out."""
    kind = workload.workload_type if workload.workload_type in _TYPES else "pod"
    members = (
        ("k8s.cluster.name", workload.cluster_id),
        ("k8s.namespace.name", workload.namespace),
        (f"k8s.{kind}.name", workload.workload_name or workload.name),
        ("service.name", workload.canonical_name),
        ("service.version", workload.canonical_revision),
        ("cloud.region", workload.locality.region),
        ("cloud.availability_zone", workload.locality.zone),
    )
    return ",".join(f"{key}={value}" for key, value in members if value)


def forwarded(client: SocketAddress | str, service: Service | None) -> str:
    """Who asked, and the service it dialled, if it was one (RFC 7239 §4; the host unquoted as ztunnel writes it)."""
    host = f";host={service.hostname}" if service is not None else ""
    return f'for="{client}"{host}'


def traceparent(rng: Bits) -> str:
    """A fresh W3C trace context, not sampled."""
    return f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-00"


def request(source: Workload, client: SocketAddress | str, service: Service | None, trace: str) -> Headers:
    return (
        ("baggage", baggage(source)),
        ("forwarded", forwarded(client, service)),
        ("traceparent", trace),
    )


def response(workload: Workload) -> Headers:
    return (("baggage", baggage(workload)),)


def is_plain_forwarded(headers: Iterable[tuple[str, str]], client: SocketAddress, host: str) -> bool:
    """`forwarded` says this and nothing else, in the form that is written here."""
    return _first(headers, "forwarded") == f'for="{client}"' + (f";host={host}" if host else "")


def read_forwarded(headers: Iterable[tuple[str, str]]) -> tuple[SocketAddress | None, str]:
    """(client address, service hostname) of the first `forwarded` element; None and empty where missing or malformed.
    Both are claims of the peer: fit to attribute metrics and to show a port, never to decide."""
    client, host = None, ""
    value = _first(headers, "forwarded").partition(",")[0]
    for pair in value.split(";"):
        name, equals, quoted = pair.strip().partition("=")
        text = quoted[1:-1] if len(quoted) > 1 and quoted[0] == quoted[-1] == '"' else quoted
        if not equals or not text.isascii():
            continue
        if name.lower() == "for":
            try:
                client = SocketAddress.parse(text)
            except ValueError:
                continue
        elif name.lower() == "host" and len(text) <= _MAX_HOST:
            host = text
    return client, host


def read_traceparent(headers: Iterable[tuple[str, str]]) -> str:
    """Exactly 55 characters or nothing; used for logging only."""
    value = _first(headers, "traceparent")
    return value if len(value) == 55 and value.isascii() and value.isprintable() else ""


def _first(headers: Iterable[tuple[str, str]], name: str) -> str:
    return next((value for key, value in headers if key == name), "")
