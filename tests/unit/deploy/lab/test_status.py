"""Which of the controller's objects `lab status` and `lab apply` tell of: those that are not in force as written."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.lab.status import not_in_force

TRUE = {"type": "Accepted", "status": "True", "reason": "Accepted"}


def said(**condition: str) -> list[dict[str, Any]]:
    item = {"file": "f.json", "kind": "AuthorizationPolicy", "namespace": "default", "name": "p"}
    return not_in_force([item | {"conditions": [TRUE, condition]}])


def test_what_is_accepted_is_not_listed() -> None:
    assert said(type="ZtunnelAccepted", status="True", reason="Accepted", message="attached to ztunnel") == []


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("Accepted", "False", "Invalid"),
        ("ZtunnelAccepted", "False", "UnsupportedValue"),  # an action that no agent enforces
        ("ZtunnelAccepted", "True", "UnsupportedValue"),  # Istio's word for HTTP rules that were left out
        ("Warning", "True", "NeverMatches"),
        ("AddressConflict", "True", "Duplicate"),
    ],
)
def test_what_is_not_enforced_as_written_is(kind: str, status: str, reason: str) -> None:
    condition = {"type": kind, "status": status, "reason": reason, "message": "why"}
    assert said(**condition) == [
        {"kind": "AuthorizationPolicy", "namespace": "default", "name": "p", "conditions": [condition]}
    ]
