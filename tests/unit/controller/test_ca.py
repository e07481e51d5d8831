"""Properties of certificates, checked with somebody else's eyes (`openssl verify`) too."""

from __future__ import annotations

import os
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller import ca
from controller.ca import Authority, AuthorityError, CsrError
from mesh.identity import SpiffeId

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
IDENTITY = SpiffeId("cluster.local", "shop", "web")
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def csr(key: Key | None = None, *, name: str = "") -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if name:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)])
        builder = builder.add_extension(names, critical=False)
    made = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return ca.load_or_create(tmp_path, trust_domain="cluster.local", now=NOW)


def leaf_of(chain: tuple[str, ...]) -> x509.Certificate:
    return x509.load_pem_x509_certificate(chain[0].encode())


def openssl_verify(tmp_path: Path, root: str, leaf: str, *options: str, at: datetime = NOW) -> None:
    (tmp_path / "root.pem").write_text(root)
    (tmp_path / "leaf.pem").write_text(leaf)
    when = ["-attime", str(int(at.timestamp()))]
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        *when,
        *options,
        "-CAfile",
        tmp_path / "root.pem",
        tmp_path / "leaf.pem",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise ValueError(done.stdout + done.stderr)


def test_a_leaf_says_what_was_authorised_not_what_the_csr_wants(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    evil = csr(key, name="spiffe://cluster.local/ns/kube-system/sa/admin")
    leaf = leaf_of(authority.issue(evil, IDENTITY, now=NOW))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert [type(n) for n in names.value] == [x509.UniformResourceIdentifier]
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [str(IDENTITY)]
    assert leaf.subject == x509.Name([])
    assert leaf.public_key() == key.public_key()
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca


def test_lifetime_skew_and_serial(authority: Authority) -> None:
    leaves = [leaf_of(authority.issue(csr(), IDENTITY, now=NOW)) for _ in range(20)]
    assert leaves[0].not_valid_before_utc == NOW - ca.SKEW
    later = leaf_of(authority.issue(csr(), IDENTITY, now=NOW + timedelta(days=1)))
    assert later.not_valid_before_utc == NOW + timedelta(days=1) - ca.SKEW
    assert later.not_valid_after_utc == NOW + timedelta(days=2)
    short = leaf_of(authority.issue(csr(), IDENTITY, now=NOW, lifetime=timedelta(minutes=5)))
    assert short.not_valid_after_utc == NOW + timedelta(minutes=5)
    assert len({leaf.serial_number for leaf in leaves}) == 20
    assert all(0 < leaf.serial_number < 1 << 128 for leaf in leaves)
    assert max(leaf.serial_number for leaf in leaves) > 1 << 100


def test_a_leaf_never_outlives_the_root(authority: Authority) -> None:
    end = NOW + ca.ROOT_LIFETIME
    leaf = leaf_of(authority.issue(csr(), IDENTITY, now=end - timedelta(hours=1)))
    assert leaf.not_valid_after_utc == end


def test_the_chain_is_good_in_openssls_eyes(authority: Authority, tmp_path: Path) -> None:
    (leaf,) = authority.issue(csr(), IDENTITY, now=NOW)
    (root,) = authority.roots
    for purpose in ("sslclient", "sslserver"):
        openssl_verify(tmp_path, root, leaf, "-purpose", purpose)
    with pytest.raises(ValueError, match="expired"):
        openssl_verify(tmp_path, root, leaf, at=NOW + timedelta(hours=25))
    other = ca.load_or_create(tmp_path / "other", trust_domain="cluster.local", now=NOW)
    with pytest.raises(ValueError, match=r"error (7|20)\b"):
        openssl_verify(tmp_path, other.roots[0], leaf)
    with pytest.raises(ValueError, match="error"):
        openssl_verify(tmp_path, leaf, leaf)  # a leaf is no authority


def test_the_root_may_sign_leaves_only(authority: Authority) -> None:
    root = x509.load_pem_x509_certificate(authority.roots[0].encode())
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    usage = root.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert root.not_valid_after_utc - NOW == ca.ROOT_LIFETIME


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)])
def test_other_keys_that_are_accepted(authority: Authority, tmp_path: Path, key: Key) -> None:
    (leaf,) = authority.issue(csr(key), IDENTITY, now=NOW)
    openssl_verify(tmp_path, authority.roots[0], leaf, "-purpose", "sslserver")


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 1024),
    ],
)
def test_keys_that_are_refused(authority: Authority, key: Key) -> None:
    with pytest.raises(CsrError, match="use P-256"):
        authority.issue(csr(key), IDENTITY, now=NOW)


def forged() -> str:
    """A CSR whose signature was made over something else."""
    der = bytearray(x509.load_pem_x509_csr(csr().encode()).public_bytes(serialization.Encoding.DER))
    other = x509.load_pem_x509_csr(csr().encode())
    info = x509.load_der_x509_csr(bytes(der)).tbs_certrequest_bytes
    # The other's key with this one's signature: same structure, no proof of possession.
    spki = other.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    own = x509.load_der_x509_csr(bytes(der)).public_key()
    mine = own.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    at = bytes(der).index(mine)
    assert mine in info
    der[at : at + len(mine)] = spki
    made = x509.load_der_x509_csr(bytes(der))
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    "text", ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----", "\ud800"]
)
def test_what_is_no_csr(authority: Authority, text: str) -> None:
    with pytest.raises(CsrError):
        authority.issue(text, IDENTITY, now=NOW)


def test_a_csr_without_proof_of_possession_and_one_too_large(authority: Authority) -> None:
    with pytest.raises(CsrError, match="its own key"):
        authority.issue(forged(), IDENTITY, now=NOW)
    with pytest.raises(CsrError, match="larger than"):
        authority.issue("x" * (ca.MAX_CSR_BYTES + 1), IDENTITY, now=NOW)


def test_files_and_modes_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        first = ca.load_or_create(tmp_path / "s", trust_domain="td", now=NOW)
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "s").iterdir()}
    assert modes == {"ca.key": 0o600, "ca.crt": 0o644}
    assert ca.load_or_create(tmp_path / "s", trust_domain="td", now=NOW).roots == first.roots


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    ca.load_or_create(tmp_path, trust_domain="td", now=NOW)
    (tmp_path / "ca.key").chmod(mode)
    with pytest.raises(AuthorityError, match=f"mode {mode:04o}: others may read it; chmod 0600"):
        ca.load_or_create(tmp_path, trust_domain="td", now=NOW)


def test_a_root_without_its_key_or_with_anothers_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    ca.load_or_create(one, trust_domain="td", now=NOW)
    ca.load_or_create(two, trust_domain="td", now=NOW)
    (one / "ca.key").rename(one / "lost")
    with pytest.raises(AuthorityError, match="restore the key"):
        ca.load_or_create(one, trust_domain="td", now=NOW)
    (two / "ca.key").rename(one / "ca.key")
    with pytest.raises(AuthorityError, match="does not belong"):
        ca.load_or_create(one, trust_domain="td", now=NOW)


def test_a_root_that_has_ended_is_refused(tmp_path: Path) -> None:
    ca.load_or_create(tmp_path, trust_domain="td", now=NOW)
    with pytest.raises(AuthorityError, match="has ended"):
        ca.load_or_create(tmp_path, trust_domain="td", now=NOW + ca.ROOT_LIFETIME)


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_files_that_are_no_key_or_certificate(tmp_path: Path, content: bytes) -> None:
    ca.load_or_create(tmp_path, trust_domain="td", now=NOW)
    (tmp_path / "ca.crt").write_bytes(content)
    with pytest.raises(AuthorityError, match=r"ca\.crt is not a readable certificate"):
        ca.load_or_create(tmp_path, trust_domain="td", now=NOW)
    (tmp_path / "ca.key").write_bytes(content)
    with pytest.raises(AuthorityError, match=r"ca\.key is not a readable private key"):
        ca.load_or_create(tmp_path, trust_domain="td", now=NOW)


def test_a_key_without_certificate_gets_one(tmp_path: Path) -> None:
    """A start that was killed between the two files."""
    first = ca.load_or_create(tmp_path, trust_domain="td", now=NOW)
    (tmp_path / "ca.crt").unlink()
    again = ca.load_or_create(tmp_path, trust_domain="td", now=NOW)
    (leaf,) = again.issue(csr(), IDENTITY, now=NOW)
    openssl_verify(tmp_path, first.roots[0], leaf)


def test_the_controllers_own_certificate(authority: Authority, tmp_path: Path) -> None:
    made = authority.server(["controller.example", "127.0.0.1", "::1", "127.0.0.1"], now=NOW)
    leaf = made.chain.decode()
    for option in (["-verify_hostname", "controller.example"], ["-verify_ip", "127.0.0.1"], ["-verify_ip", "::1"]):
        openssl_verify(tmp_path, authority.roots[0], leaf, "-purpose", "sslserver", *option)
    with pytest.raises(ValueError, match="hostname mismatch"):
        openssl_verify(tmp_path, authority.roots[0], leaf, "-verify_hostname", "other.example")
    assert made.not_after == NOW + ca.LEAF_LIFETIME
