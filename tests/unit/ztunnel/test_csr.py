"""What is asked of the controller's CA, and what of its answers is accepted."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from controller import ca
from mesh.control import CertificateReply
from mesh.identity import SpiffeId
from ztunnel.csr import accept, inherited, signing_request

NOW = datetime.now(UTC).replace(microsecond=0)
WEB = SpiffeId("cluster.local", "shop", "web")
OTHER = SpiffeId("cluster.local", "shop", "other")


@pytest.fixture
def authority(tmp_path: Path) -> ca.Authority:
    return ca.load_or_create(tmp_path, trust_domain="cluster.local", now=NOW)


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def signed(authority: ca.Authority, key: ec.EllipticCurvePrivateKey, identity: SpiffeId = WEB) -> CertificateReply:
    chain = authority.issue(signing_request(identity, key), identity, now=NOW)
    return CertificateReply(chain=chain, roots=authority.roots)


def test_the_request_proves_the_key_and_names_the_identity(key: ec.EllipticCurvePrivateKey) -> None:
    request = x509.load_pem_x509_csr(signing_request(WEB, key).encode())
    assert request.is_signature_valid
    assert list(request.subject) == []
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(WEB)]


def test_what_our_ca_signs_is_accepted(authority: ca.Authority, key: ec.EllipticCurvePrivateKey) -> None:
    held = accept(WEB, key, signed(authority, key), NOW, random.Random(1))
    assert held.credentials.identity == WEB
    assert serialization.load_der_private_key(held.credentials.key, None).public_key() == key.public_key()  # type: ignore[union-attr]
    assert x509.load_der_x509_certificate(held.credentials.chain[0]).serial_number == held.serial
    assert len(held.credentials.roots) == 1
    assert held.not_after - held.not_before >= timedelta(hours=24)


def test_what_was_accepted_is_the_same_for_the_next_agent(
    authority: ca.Authority, key: ec.EllipticCurvePrivateKey
) -> None:
    held = accept(WEB, key, signed(authority, key), NOW, random.Random(1))
    assert inherited(held.credentials, held.renew_at) == held


@pytest.mark.parametrize("seed", range(20))
def test_its_successor_is_due_about_half_life(
    authority: ca.Authority, key: ec.EllipticCurvePrivateKey, seed: int
) -> None:
    held = accept(WEB, key, signed(authority, key), NOW, random.Random(seed))
    left = (held.not_after - held.renew_at) / (held.not_after - NOW)
    assert 0.49 < left < 0.61


def test_bundled_roots_are_told_apart(authority: ca.Authority, key: ec.EllipticCurvePrivateKey, tmp_path: Path) -> None:
    second = ca.load_or_create(tmp_path / "second", trust_domain="cluster.local", now=NOW)
    reply = signed(authority, key)
    bundle = CertificateReply(chain=reply.chain, roots=("".join(second.roots + authority.roots),))
    assert len(accept(WEB, key, bundle, NOW, random.Random(1)).credentials.roots) == 2


def leaf(key: ec.EllipticCurvePrivateKey, change: Callable[[x509.CertificateBuilder], x509.CertificateBuilder]) -> str:
    """A self-signed certificate that would do for WEB, changed."""
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    name = x509.Name([])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(WEB))]), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )
    return change(builder).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_other_identities_are_refused(authority: ca.Authority, key: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(ValueError, match=r"the leaf is for .*sa/other.*, asked was .*sa/web"):
        accept(WEB, key, signed(authority, key, OTHER), NOW, random.Random(1))


def test_other_keys_are_refused(authority: ca.Authority, key: ec.EllipticCurvePrivateKey) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(ValueError, match="not for the key"):
        accept(WEB, key, signed(authority, stranger), NOW, random.Random(1))


@pytest.mark.parametrize(
    ("at", "says"),
    [(timedelta(hours=25), "are both clocks right"), (timedelta(hours=-2), "are both clocks right")],
)
def test_expired_and_future_ones_are_refused(
    authority: ca.Authority, key: ec.EllipticCurvePrivateKey, at: timedelta, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        accept(WEB, key, signed(authority, key), NOW + at, random.Random(1))


def test_self_signed_ones_are_refused(authority: ca.Authority, key: ec.EllipticCurvePrivateKey) -> None:
    alone = leaf(key, lambda builder: builder)
    for roots in (authority.roots, (alone,)):
        with pytest.raises(ValueError, match="leads to none of the roots"):
            accept(WEB, key, CertificateReply(chain=(alone,), roots=roots), NOW, random.Random(1))


def test_a_chain_of_strangers_is_refused(
    authority: ca.Authority, key: ec.EllipticCurvePrivateKey, tmp_path: Path
) -> None:
    second = ca.load_or_create(tmp_path / "second", trust_domain="cluster.local", now=NOW)
    reply = signed(authority, key)
    with pytest.raises(ValueError, match="leads to none of the roots"):
        accept(WEB, key, CertificateReply(chain=reply.chain, roots=second.roots), NOW, random.Random(1))
    with pytest.raises(ValueError, match="not issued by the next"):
        chained = CertificateReply(chain=(*reply.chain, *second.roots), roots=second.roots)
        accept(WEB, key, chained, NOW, random.Random(1))


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (CertificateReply(chain=(), roots=("x",)), "PEM|lacks"),
        (CertificateReply(chain=("nonsense",), roots=("x",)), "PEM"),
    ],
)
def test_nonsense_is_refused(key: ec.EllipticCurvePrivateKey, reply: CertificateReply, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        accept(WEB, key, reply, NOW, random.Random(1))


def test_one_usage_is_not_enough(authority: ca.Authority, key: ec.EllipticCurvePrivateKey) -> None:
    def client_only(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
        kept = [e for e in builder._extensions if not isinstance(e.value, x509.ExtendedKeyUsage)]
        usage = x509.Extension(
            x509.ExtendedKeyUsage.oid, False, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        )
        builder._extensions = [*kept, usage]
        return builder

    with pytest.raises(ValueError, match="both as client and as server"):
        accept(
            WEB, key, CertificateReply(chain=(leaf(key, client_only),), roots=authority.roots), NOW, random.Random(1)
        )


def test_lifetime_counts_from_now_for_a_certificate_that_is_old_already(
    authority: ca.Authority, key: ec.EllipticCurvePrivateKey
) -> None:
    held = accept(WEB, key, signed(authority, key), NOW + timedelta(hours=20), random.Random(1))
    assert held.renew_at > NOW + timedelta(hours=20)
    assert replace(held) == held
