"""The built-in certificate authority: a P-256 root in two files, workloads' leaves, the controller's own certificate.

What a leaf says comes from the authorised request, never from the CSR, of which only the key is taken. Time is an
argument. Certificates follow RFC 5280 and SPIFFE X509-SVID: no subject, one URI SAN, hence critical (§4.2.1.6).
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.identity import SpiffeId

ROOT_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(hours=24)
SKEW = timedelta(minutes=1)  # certificates are valid since then, for clocks that are behind ours
MAX_CSR_BYTES = 16 << 10

KEY_FILE, CERTIFICATE_FILE = "ca.key", "ca.crt"


class CsrError(ValueError):
    """The CSR cannot be signed; the text says why."""


class AuthorityError(RuntimeError):
    """The root cannot be used; the text names the file and the cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """The controller's own key and chain, PEM, and when it ends."""

    key: bytes
    chain: bytes
    not_after: datetime


class Authority:
    """A root key and its certificate."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @property
    def roots(self) -> tuple[str, ...]:
        """PEM of what peers trust."""
        return (_pem(self._certificate),)

    def issue(self, csr: str, identity: SpiffeId, *, now: datetime, lifetime: timedelta = LEAF_LIFETIME) -> tuple[str]:
        """The chain for this identity and the CSR's key, PEM, leaf first. CsrError if the CSR is no good."""
        key = _csr_key(csr)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
        return (_pem(self._sign(key, names, now=now, lifetime=lifetime)),)

    def server(self, names: Iterable[str], *, now: datetime, lifetime: timedelta = LEAF_LIFETIME) -> ServerIdentity:
        """A fresh key and certificate for the controller under these DNS names and IP addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternative = x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)])
        certificate = self._sign(key.public_key(), alternative, now=now, lifetime=lifetime)
        return ServerIdentity(
            key=_private_pem(key), chain=_pem(certificate).encode(), not_after=certificate.not_valid_after_utc
        )

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        names: x509.SubjectAlternativeName,
        *,
        now: datetime,
        lifetime: timedelta,
    ) -> x509.Certificate:
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        root = self._certificate
        root_id = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(root.subject)
            .public_key(key)
            .serial_number(_serial())
            .not_valid_before(max(now - SKEW, root.not_valid_before_utc))
            .not_valid_after(min(now + lifetime, root.not_valid_after_utc))
            .add_extension(names, critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(encipher=isinstance(key, rsa.RSAPublicKey)), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_id), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


def load_or_create(state: Path, *, trust_domain: str, now: datetime) -> Authority:
    """The authority in `state` (`ca.key` 0600, `ca.crt` 0644); made if neither file is there. AuthorityError if the
    files cannot be trusted: a key others may read, a key without its certificate's match, an expired root."""
    state.mkdir(parents=True, exist_ok=True)
    key_file, certificate_file = state / KEY_FILE, state / CERTIFICATE_FILE
    if not key_file.exists():
        if certificate_file.exists():
            raise AuthorityError(f"{certificate_file} has no {KEY_FILE} beside it; restore the key, or remove both")
        write_new(key_file, _private_pem(ec.generate_private_key(ec.SECP256R1())), mode=0o600)
    key = _load_key(key_file)
    if not certificate_file.exists():
        write_new(certificate_file, _pem(_root(key, trust_domain, now)).encode(), mode=0o644)
    certificate = _load_certificate(certificate_file)
    if _public(certificate) != _public(key):
        raise AuthorityError(f"{certificate_file} does not belong to {KEY_FILE}; restore the one that matches")
    if certificate.not_valid_after_utc <= now:
        raise AuthorityError(f"{certificate_file} has ended; remove it and {KEY_FILE}, and give nodes the new root")
    return Authority(key, certificate)


def write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Create a file with its whole content, on disk, or not at all; an existing one stays (somebody was faster)."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)
        except FileExistsError:
            return
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        fresh.unlink()


def _root(key: ec.EllipticCurvePrivateKey, trust_domain: str, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64])])
    public = key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(_serial())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def _csr_key(text: str) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    """The key of a CSR that proves possession of it: P-256, P-384, or RSA of 2048 to 4096 bits."""
    if len(text) > MAX_CSR_BYTES:
        raise CsrError(f"the CSR is larger than {MAX_CSR_BYTES} bytes")
    try:
        csr = x509.load_pem_x509_csr(text.encode())
        key = csr.public_key()
        genuine = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, TypeError) as error:
        raise CsrError(f"not a PKCS#10 request in PEM: {error}"[:200]) from None
    if not genuine:
        raise CsrError("the CSR's signature is not made with its own key")
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 4096:
        return key
    raise CsrError("the key is not accepted; use P-256 or P-384, or RSA of 2048 to 4096 bits")


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise AuthorityError(
                    f"{path} has mode {mode:04o}: others may read it; chmod 0600, and consider a new root"
                )
            key = serialization.load_pem_private_key(file.read(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AuthorityError(f"{path} is not a readable private key in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(
            f"{path} is not an elliptic curve key; remove {KEY_FILE} and {CERTIFICATE_FILE} for a new root"
        )
    return key


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AuthorityError(f"{path} is not a readable certificate in PEM: {error}") from error


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, authority: bool = False, encipher: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_encipherment=encipher,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _serial() -> int:
    """128 random bits, never 0 (RFC 5280 §4.1.2.2 allows 20 octets)."""
    return secrets.randbits(128) or 1


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public(holder: x509.Certificate | ec.EllipticCurvePrivateKey) -> bytes:
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
