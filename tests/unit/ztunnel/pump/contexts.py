"""Contexts of Python's ssl for peers made by hand: TLS 1.3, ALPN h2, a certificate from DER."""

from __future__ import annotations

import base64
import os
import ssl
from dataclasses import dataclass

from ztunnel.orders import Credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    server: ssl.SSLContext
    client: ssl.SSLContext


def contexts(credentials: Credentials) -> Contexts:
    return Contexts(
        server=_context(ssl.PROTOCOL_TLS_SERVER, credentials), client=_context(ssl.PROTOCOL_TLS_CLIENT, credentials)
    )


def _context(protocol: int, credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    context.load_verify_locations(cadata=b"".join(credentials.roots))
    _load_chain(context, credentials)
    return context


def _load_chain(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Through an anonymous file in memory: Python's ssl takes keys by path only."""
    text = _pem("PRIVATE KEY", credentials.key) + b"".join(_pem("CERTIFICATE", der) for der in credentials.chain)
    fd = os.memfd_create("credentials", os.MFD_CLOEXEC)
    try:
        os.write(fd, text)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _pem(label: str, der: bytes) -> bytes:
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label.encode(), base64.encodebytes(der), label.encode())
