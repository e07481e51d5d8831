"""A certificate authority for tests of the engine."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import controller.ca
from mesh.identity import SpiffeId
from ztunnel.csr import signing_request
from ztunnel.orders import Credentials

CLIENT = SpiffeId("cluster.local", "default", "client")
SERVER = SpiffeId("cluster.local", "default", "server")
_BOTH = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _key_der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, name: str = "root") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        certificate = (
            _builder(subject, subject, key.public_key(), datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @property
    def root(self) -> bytes:
        return _der(self.certificate)

    def intermediate(self) -> Authority:
        """One that this one vouches for."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "intermediate")])
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        return Authority(certificate, key)

    def issue(
        self,
        identity: SpiffeId,
        *,
        above: tuple[bytes, ...] = (),
        sans: tuple[str, ...] | None = None,
        age: datetime.timedelta = datetime.timedelta(),
        usages: tuple[x509.ObjectIdentifier, ...] = _BOTH,
        roots: tuple[bytes, ...] | None = None,
    ) -> Credentials:
        """An hour's certificate, begun `age` ago; the SANs are those of `identity` unless given."""
        key = ec.generate_private_key(ec.SECP256R1())
        uris = sans if sans is not None else (str(identity),)
        builder = _builder(x509.Name([]), self.certificate.subject, key.public_key(), datetime.timedelta(hours=1), age)
        if uris:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
            builder = builder.add_extension(names, critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        leaf = builder.sign(self.key, hashes.SHA256())
        return Credentials(
            identity=identity, chain=(_der(leaf), *above), key=_key_der(key), roots=roots or (self.root,)
        )


@dataclass(frozen=True)
class ControllerAuthority:
    """The mesh's own authority, over the files in `state`: leaves as a node gets them."""

    state: Path

    @property
    def _signer(self) -> controller.ca.Authority:
        return controller.ca.load_or_create(self.state, trust_domain="cluster.local", now=_now())

    @property
    def root(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self._signer.roots[0])

    def issue(self, identity: SpiffeId) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        chain = self._signer.issue(signing_request(identity, key), identity, now=_now())
        ders = tuple(ssl.PEM_cert_to_DER_cert(pem) for pem in chain)
        return Credentials(identity=identity, chain=ders, key=_key_der(key), roots=(self.root,))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    life: datetime.timedelta,
    age: datetime.timedelta = datetime.timedelta(),
) -> x509.CertificateBuilder:
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1) - age
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + life)
    )
