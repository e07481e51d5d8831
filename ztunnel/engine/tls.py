"""TLS 1.3 with client certificates, sans I/O: contexts from DER, one session on memory buffers, identities of the peer.

istio-facts §1.3: ALPN exactly h2, no SNI, no resumption, chains to the mesh's roots; OpenSSL checks the extended key
usage for the role. The suites are the process' (see `ciphers`).
"""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mesh.identity import SpiffeId, first_spiffe_id
from mesh.reason import Reason
from ztunnel.engine.endpoint import Lost
from ztunnel.orders import Credentials

_ALPN = "h2"
_PLAINTEXT = 64 << 10  # asked of OpenSSL at once; it gives a record's worth
_UNEXPECTED = (ssl.SSLError, ValueError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """Both roles of one pod under one certificate."""

    identity: SpiffeId
    server: ssl.SSLContext
    client: ssl.SSLContext


def contexts(credentials: Credentials) -> Contexts:
    """ValueError: chain, key or roots are not usable, and which."""
    return Contexts(
        identity=credentials.identity,
        server=_context(ssl.PROTOCOL_TLS_SERVER, credentials),
        client=_context(ssl.PROTOCOL_TLS_CLIENT, credentials),
    )


def _context(protocol: int, credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # identities are URI SANs, compared by the two functions below
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([_ALPN])
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    name = credentials.identity
    if not credentials.roots:
        raise ValueError(f"{name}: no root certificate: nobody could be trusted")
    try:
        context.load_verify_locations(cadata=b"".join(credentials.roots))
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"{name}: a root certificate is not DER X.509: {error}") from error
    try:
        _load_chain(context, credentials)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"{name}: certificate chain and key are not usable together: {error}") from error
    return context


def _load_chain(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Through an anonymous file in memory: Python's ssl takes keys by path only, and a key must never touch a disk."""
    text = _pem("PRIVATE KEY", credentials.key) + b"".join(_pem("CERTIFICATE", der) for der in credentials.chain)
    fd = os.memfd_create("credentials", os.MFD_CLOEXEC)
    try:
        rest = memoryview(text)
        while rest:
            rest = rest[os.write(fd, rest) :]
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _pem(label: str, der: bytes) -> bytes:
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label.encode(), base64.encodebytes(der), label.encode())


def uri_sans(certificate: dict[str, Any]) -> tuple[str, ...]:
    """Of a verified certificate, in the form `SSLObject.getpeercert()` gives it."""
    return tuple(value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI")


def accept_peer(uris: tuple[str, ...], trust_domain: str) -> SpiffeId:
    """Server side: the peer's identity, or Lost if none of its SANs is of the pod's trust domain."""
    identity = first_spiffe_id(uris)
    if identity is None:
        raise Lost(Reason.PEER_IDENTITY, "the peer's certificate has no SPIFFE URI SAN")
    if not any(found.trust_domain == trust_domain for found in _parsed(uris)):
        raise Lost(Reason.PEER_IDENTITY, f"{identity} is not of trust domain {trust_domain}")
    return identity


def expect_peer(uris: tuple[str, ...], expected: frozenset[SpiffeId]) -> SpiffeId:
    """Client side: the SAN that is one of those expected, or Lost."""
    for found in _parsed(uris):
        if found in expected:
            return found
    raise Lost(
        Reason.PEER_IDENTITY,
        f"the peer proved {', '.join(uris) or 'no SPIFFE id'}, expected {' or '.join(sorted(map(str, expected)))}",
    )


def _parsed(uris: Iterable[str]) -> Iterable[SpiffeId]:
    for uri in uris:
        identity = first_spiffe_id((uri,))
        if identity is not None:
            yield identity


class Session:
    """One TLS connection: ciphertext in and out on one side, plaintext on the other. Errors are Lost(TLS_FAILED)."""

    __slots__ = ("_incoming", "_object", "_outgoing")

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=server)

    def feed(self, ciphertext: bytes) -> None:
        self._incoming.write(ciphertext)

    def handshake(self) -> bool:
        """Go on with it; True once it is complete and `h2` was agreed."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except _UNEXPECTED as error:
            raise Lost(Reason.TLS_FAILED, _text(error)) from None
        if self._object.selected_alpn_protocol() != _ALPN:
            raise Lost(Reason.TLS_FAILED, "the peer did not agree on ALPN h2")
        return True

    def peer_uris(self) -> tuple[str, ...]:
        """URI SANs of the peer's verified certificate."""
        try:
            return uri_sans(self._object.getpeercert() or {})
        except _UNEXPECTED as error:
            raise Lost(Reason.TLS_FAILED, f"the peer's certificate: {_text(error)}") from None

    def read(self) -> bytes | None:
        """Plaintext, None if a record is not complete; empty after close_notify."""
        try:
            return self._object.read(_PLAINTEXT)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except _UNEXPECTED as error:
            raise Lost(Reason.TLS_FAILED, _text(error)) from None

    def write(self, plaintext: bytes) -> None:
        try:
            self._object.write(plaintext)
        except _UNEXPECTED as error:
            raise Lost(Reason.TLS_FAILED, _text(error)) from None

    def close_notify(self) -> None:
        """Say that no more comes (RFC 8446 §6.1)."""
        try:
            self._object.unwrap()
        except (ssl.SSLError, ValueError):
            return  # the peer's close_notify is not waited for

    def outgoing(self) -> bytes:
        """Ciphertext (handshake, data, alerts) to be sent now."""
        return self._outgoing.read()


def _text(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(error)
