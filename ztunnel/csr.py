"""Asking for a certificate, and checking what was signed before anybody depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.control import CertificateReply
from mesh.identity import SpiffeId
from mesh.route import Rng
from ztunnel.orders import Credentials

_JITTER = 0.2
CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A certificate in use, and when its successor is due."""

    credentials: Credentials
    serial: int
    not_before: datetime
    not_after: datetime
    renew_at: datetime


def signing_request(identity: SpiffeId, key: ec.EllipticCurvePrivateKey) -> str:
    """PKCS#10 in PEM: no subject, the identity as URI SAN."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def accept(
    identity: SpiffeId, key: ec.EllipticCurvePrivateKey, reply: CertificateReply, now: datetime, rng: Rng
) -> Held:
    """Check what the controller signed before anybody depends on it; ValueError says what is wrong with it."""
    chain = [x509.load_pem_x509_certificate(pem.encode()) for pem in reply.chain]
    # One root per string or several in one: both are met (istio-facts §2.4).
    roots = [cert for pem in reply.roots for cert in x509.load_pem_x509_certificates(pem.encode())]
    if not chain or not roots:
        raise ValueError("the controller's reply lacks a chain or roots")
    leaf = chain[0]
    _check_leaf(leaf, identity, key, now)
    _check_chain(chain, roots, now)
    life = leaf.not_valid_after_utc - max(leaf.not_valid_before_utc, now - CLOCK_SKEW)
    renew_at = leaf.not_valid_after_utc - life / 2 * (1 + _JITTER * rng.random())
    credentials = Credentials(
        identity=identity,
        chain=tuple(c.public_bytes(serialization.Encoding.DER) for c in chain),
        key=key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        roots=tuple(c.public_bytes(serialization.Encoding.DER) for c in roots),
    )
    return _held(leaf, credentials, renew_at)


def inherited(credentials: Credentials, renew_at: datetime) -> Held:
    """One that another agent of this node has checked and held; ValueError if it is no certificate."""
    return _held(x509.load_der_x509_certificate(credentials.chain[0]), credentials, renew_at)


def _held(leaf: x509.Certificate, credentials: Credentials, renew_at: datetime) -> Held:
    return Held(
        credentials=credentials,
        serial=leaf.serial_number,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        renew_at=renew_at,
    )


def _check_leaf(leaf: x509.Certificate, identity: SpiffeId, key: ec.EllipticCurvePrivateKey, now: datetime) -> None:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usages = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound as error:
        raise ValueError(f"the leaf lacks {error.oid._name}") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if uris != [str(identity)]:
        raise ValueError(f"the leaf is for {uris}, asked was {identity}")
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH} <= usages:
        raise ValueError("the leaf serves not both as client and as server certificate")
    if leaf.public_key() != key.public_key():
        raise ValueError("the leaf is not for the key that asked")
    _check_time(leaf, now, "leaf")


def _check_chain(chain: list[x509.Certificate], roots: list[x509.Certificate], now: datetime) -> None:
    for lower, upper in pairwise(chain):
        _check_time(upper, now, "intermediate")
        if not _issued(lower, upper):
            raise ValueError(f"{lower.subject.rfc4514_string() or 'the leaf'} is not issued by the next of the chain")
    if not any(_issued(chain[-1], root) and root.not_valid_after_utc > now for root in roots):
        raise ValueError("the chain leads to none of the roots that came with it")


def _issued(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    try:
        constraints = upper.extensions.get_extension_for_class(x509.BasicConstraints).value
        lower.verify_directly_issued_by(upper)
    except Exception:  # wrong name, wrong signature, key of another kind, no extension: all mean no
        return False
    return constraints.ca


def _check_time(certificate: x509.Certificate, now: datetime, what: str) -> None:
    if not certificate.not_valid_before_utc - CLOCK_SKEW <= now < certificate.not_valid_after_utc:
        raise ValueError(
            f"the {what} is valid from {certificate.not_valid_before_utc} to {certificate.not_valid_after_utc}, "
            f"now it is {now}; are both clocks right?"
        )
