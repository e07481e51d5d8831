"""Istio's labels: all of them, in Istio's order, with Istio's values."""

from __future__ import annotations

import pytest

from mesh.reason import Reason
from tests.unit.ztunnel.small_agent import OLD_REVIEWS, PRODUCTPAGE, ZONED, inbound, outbound
from ztunnel.metrics.labels import traffic_labels

TUNNELLED = {
    "reporter": "source",
    "source_workload": "productpage-v1",
    "source_canonical_service": "productpage",
    "source_canonical_revision": "v1",
    "source_workload_namespace": "default",
    "source_principal": "spiffe://cluster.local/ns/default/sa/bookinfo-productpage",
    "source_app": "productpage",
    "source_version": "v1",
    "source_cluster": "Kubernetes",
    "destination_service": "reviews.default.svc.cluster.local",
    "destination_service_namespace": "default",
    "destination_service_name": "reviews",
    "destination_workload": "reviews-v2",
    "destination_canonical_service": "reviews",
    "destination_canonical_revision": "v2",
    "destination_workload_namespace": "default",
    "destination_principal": "spiffe://cluster.local/ns/default/sa/bookinfo-reviews",
    "destination_app": "reviews",
    "destination_version": "v2",
    "destination_cluster": "Kubernetes",
    "request_protocol": "tcp",
    "response_flags": "-",
    "connection_security_policy": "mutual_tls",
}


def test_a_tunnelled_connection_has_every_label_in_order() -> None:
    assert list(traffic_labels(outbound()).items()) == list(TUNNELLED.items())


def test_the_destination_reports_the_same_connection_under_its_own_reporter() -> None:
    assert traffic_labels(inbound()) == TUNNELLED | {"reporter": "destination"}


def test_what_is_not_known_is_unknown_and_never_missing() -> None:
    labels = traffic_labels(
        outbound(
            source=None,
            destination=None,
            service=None,
            source_identity=None,
            destination_identity=None,
            hbone=None,
        )
    )
    assert list(labels) == list(TUNNELLED)
    said = {name for name, value in labels.items() if value != "unknown"}
    assert said == {"reporter", "request_protocol", "response_flags"}


def test_plaintext_proves_no_source_but_names_the_destination() -> None:
    labels = traffic_labels(outbound(hbone=None, source_identity=PRODUCTPAGE.identity, destination=OLD_REVIEWS,
                                     destination_identity=None))  # fmt: skip
    assert labels["connection_security_policy"] == "unknown"
    assert labels["source_principal"] == "unknown"
    assert labels["destination_principal"] == "spiffe://cluster.local/ns/legacy/sa/default"
    assert labels["destination_workload"] == "old-0", "a bare pod is its own workload"


def test_the_locality_comes_as_a_block_at_the_end() -> None:
    labels = traffic_labels(outbound(source=ZONED))
    assert list(labels.items())[-4:] == [
        ("source_region", "eu"),
        ("source_zone", "eu-1"),
        ("destination_region", "unknown"),
        ("destination_zone", "unknown"),
    ]


@pytest.mark.parametrize(
    ("reason", "flags"),
    [
        (Reason.OK, "-"),
        (Reason.POLICY_DENY, "DENY"),
        (Reason.STRICT_PLAINTEXT, "DENY"),
        (Reason.CONNECT_FAILED, "CONNECT"),
        (Reason.PEER_IDENTITY, "TLS_FAILURE"),
        (Reason.HTTP2_PROTOCOL, "H2_HANDSHAKE_FAILURE"),
        (Reason.NO_CERTIFICATE, "IDENTITY_ERROR"),
    ],
)
def test_response_flags(reason: Reason, flags: str) -> None:
    assert traffic_labels(outbound(), reason)["response_flags"] == flags
