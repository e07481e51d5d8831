"""The certificates are what a mesh would issue, and what a TLS peer accepts."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from deploy.bench import authority

NAME = "spiffe://cluster.local/ns/bench/sa/client"


def test_a_leaf_has_one_spiffe_name_and_both_uses_and_verifies(tmp_path: Path) -> None:
    own = authority.issue(tmp_path, [NAME])[NAME]
    leaf = x509.load_pem_x509_certificate(own.chain.read_bytes())
    root = x509.load_pem_x509_certificate(own.root.read_bytes())
    leaf.verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [NAME]
    assert len(names) == 1
    usage = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usage == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert own.key.stat().st_mode & 0o777 == 0o600
