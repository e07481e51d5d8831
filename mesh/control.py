"""Wire messages between controller and node agent: codec only.

One WebSocket per node (`GET /v1/stream`, TLS, `Authorization: Bearer <bootstrap token>`, `X-Gossamer-Node: <node>`),
JSON text messages. The agent says Hello with the content hash of every resource it holds; the controller sends what
differs as one Update, then an Update per change. Each Update is answered by Ack or Nack; a Nack names the resources
that were not applied, the others of the same Update are. Reconnecting, to the same controller or to another, thus
never resends what the agent has. PodStatus reports enrolment, which the controller folds back into the workloads.
Certificates: `POST /v1/certificates`, same authorization, CertificateRequest -> CertificateReply or 401/403/400.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from mesh.model import Policy, Resource, Service, Workload

MAX_MESSAGE_BYTES = 64 << 20


class Redirection(StrEnum):
    """State of a pod's capture on its node: Istio's annotation `ambient.istio.io/redirection`."""

    ENABLED = "enabled"
    PENDING = "pending"
    DISABLED = "disabled"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One resource of an Update: exactly one of the three kinds is set."""

    hash: str
    workload: Workload | None = None
    service: Service | None = None
    policy: Policy | None = None

    @property
    def resource(self) -> Resource:
        """The resource; ValueError unless exactly one is set."""
        given = [r for r in (self.workload, self.service, self.policy) if r is not None]
        if len(given) != 1:
            raise ValueError("an Entry carries exactly one of workload, service, policy")
        return given[0]


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    node: str
    version: str
    known: Mapping[str, str] = {}  # resource key -> hash


class Update(msgspec.Struct, frozen=True, kw_only=True, tag="update"):
    nonce: int
    upserts: tuple[Entry, ...] = ()
    removes: tuple[str, ...] = ()  # resource keys
    trust_domain: str = "cluster.local"
    root_namespace: str = "istio-system"


class Ack(msgspec.Struct, frozen=True, kw_only=True, tag="ack"):
    nonce: int


class Nack(msgspec.Struct, frozen=True, kw_only=True, tag="nack"):
    nonce: int
    errors: Mapping[str, str]  # resource key -> why


class PodStatus(msgspec.Struct, frozen=True, kw_only=True, tag="pod"):
    uid: str
    instance: str
    redirection: Redirection
    error: str = ""


class CertificateRequest(msgspec.Struct, frozen=True, kw_only=True):
    identity: str
    csr: str  # PEM, PKCS#10


class CertificateReply(msgspec.Struct, frozen=True, kw_only=True):
    chain: tuple[str, ...]  # PEM, leaf first, then intermediates
    roots: tuple[str, ...]  # PEM


FromNode = Hello | Ack | Nack | PodStatus
FromController = Update

_TOO_DEEP = "the message is nested deeper than any message of this protocol"

_encoder = msgspec.json.Encoder(order="deterministic")
_from_node: msgspec.json.Decoder[FromNode] = msgspec.json.Decoder(FromNode)
_from_controller = msgspec.json.Decoder(Update)


def encode(message: FromNode | FromController | CertificateRequest | CertificateReply) -> bytes:
    return _encoder.encode(message)


def decode_from_node(data: bytes | str) -> FromNode:
    """ValueError (msgspec.DecodeError) names the path and the cause."""
    try:
        return _from_node.decode(data)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def decode_from_controller(data: bytes | str) -> FromController:
    """ValueError (msgspec.DecodeError) names the path and the cause."""
    try:
        return _from_controller.decode(data)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


class _Loose(msgspec.Struct, frozen=True, kw_only=True, tag="update"):
    """An Update whose resources are not looked at yet."""

    nonce: int
    upserts: tuple[msgspec.Raw, ...] = ()
    removes: tuple[str, ...] = ()
    trust_domain: str = "cluster.local"
    root_namespace: str = "istio-system"


_loose: msgspec.json.Decoder[_Loose] = msgspec.json.Decoder(_Loose)
_entry: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


def decode_update(data: bytes | str) -> tuple[Update, dict[str, str]]:
    """An Update with the resources that decode, and of the others, by `upserts[<index>]`, why they do not: one bad
    resource does not keep the rest from a node. ValueError if the message itself is none."""
    try:
        loose = _loose.decode(data)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    good: list[Entry] = []
    errors: dict[str, str] = {}
    for index, raw in enumerate(loose.upserts):
        try:
            found = _entry.decode(raw)
            found.resource  # noqa: B018  # exactly one of the kinds
        except (ValueError, RecursionError) as error:
            errors[f"upserts[{index}]"] = str(error) or _TOO_DEEP
        else:
            good.append(found)
    update = Update(
        nonce=loose.nonce,
        upserts=tuple(good),
        removes=loose.removes,
        trust_domain=loose.trust_domain,
        root_namespace=loose.root_namespace,
    )
    return update, errors


def entry(resource: Resource) -> Entry:
    """Wrap a resource with the hash of its content."""
    digest = hashlib.blake2b(_encoder.encode(resource), digest_size=12).hexdigest()
    if isinstance(resource, Workload):
        return Entry(hash=digest, workload=resource)
    if isinstance(resource, Service):
        return Entry(hash=digest, service=resource)
    return Entry(hash=digest, policy=resource)
