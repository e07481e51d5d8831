"""Certificates for a pair of proxies: one CA, P-256 leaves with one SPIFFE name each, as the mesh issues them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFE = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """Files in PEM: what one proxy shows, and the root it trusts."""

    name: str
    key: Path
    chain: Path
    root: Path


def issue(directory: Path, names: list[str]) -> dict[str, Credential]:
    """Make a CA and a credential for each SPIFFE name; the files go to `directory`."""
    ca_key, ca = _root()
    root = directory / "root.pem"
    root.write_bytes(ca.public_bytes(Encoding.PEM))
    found = {}
    for number, name in enumerate(names):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _builder(x509.Name([]), ca.subject, key.public_key())
        leaf = leaf.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)]), critical=True)
        leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        leaf = leaf.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        signed = leaf.sign(ca_key, hashes.SHA256())
        credential = Credential(
            name=name, key=directory / f"{number}.key", chain=directory / f"{number}.pem", root=root
        )
        credential.key.touch(mode=0o600)
        credential.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        credential.chain.write_bytes(signed.public_bytes(Encoding.PEM))
        found[name] = credential
    return found


def _root() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark root")])
    root = _builder(name, name, key.public_key())
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return key, root.sign(key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _LIFE)
    )
