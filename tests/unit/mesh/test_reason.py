"""The closed list of reasons."""

import pytest

from mesh.reason import Reason

ISTIO_FLAGS = {
    "-",
    "DENY",
    "CONNECT",
    "TLS_FAILURE",
    "H2_HANDSHAKE_FAILURE",
    "NETWORK_POLICY",
    "IDENTITY_ERROR",
    "CERT_REVOKED",
}


@pytest.mark.parametrize("reason", list(Reason), ids=lambda r: r.name)
def test_every_reason_has_its_facts(reason: Reason) -> None:
    assert reason.response_flags in ISTIO_FLAGS
    assert reason.http_status in {200, 400, 401, 503}
    assert reason is Reason.OK or reason.hint


def test_the_kernels_numbers_fit_its_counters() -> None:
    assert max(Reason) < 128, "the kernel side's counter array has 128 slots"


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.POLICY_DENY, 401),
        (Reason.POLICY_NO_ALLOW, 401),
        (Reason.BAD_REQUEST, 400),
        (Reason.AUTHORITY_MISMATCH, 400),
        (Reason.CONNECT_FAILED, 503),
        (Reason.ILLEGAL_PORT, 503),
        (Reason.DESTINATION_UNKNOWN, 503),
    ],
)
def test_replies_to_a_refused_connect_are_istios(reason: Reason, status: int) -> None:
    assert reason.http_status == status
