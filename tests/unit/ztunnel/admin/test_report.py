"""The JSON that scripts depend on, field by field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from mesh.control import Redirection
from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.unit.ztunnel.small_agent import (
    PRODUCTPAGE,
    REVIEWS,
    START,
    SmallAgent,
    SmallController,
    SmallOlder,
    SmallPod,
    certificate,
    maps,
    outbound,
)
from ztunnel.admin import report

LATER = START + timedelta(seconds=42)


def test_status_of_a_healthy_agent() -> None:
    agent = SmallAgent(held=[certificate(PRODUCTPAGE.identity, days=100_000)])
    agent.open(outbound())
    status = report.status(agent, agent.kernel(), "1.2.3", LATER)
    assert (status["ready"], status["pending"], status["problems"]) == (True, [], [])
    assert status["uptime_seconds"] == 42
    assert status["started_at"] == "2026-01-02T03:04:05.000Z"
    assert status["controller"] == {"address": "10.130.0.2:15012", "state": "connected", "synced": True, "error": ""}
    assert status["snapshot"] == {
        "version": 1,
        "trust_domain": "cluster.local",
        "workloads": 3,
        "services": 1,
        "policies": 0,
    }
    assert status["connections"] == {"inbound": 0, "outbound": 1, "older": 0}
    assert status["certificates"] == {"total": 1, "valid": 1}
    assert (status["pods_enrolled"], status["pods_wanted"]) == (1, 1)
    assert status["pods"] == [
        {
            "namespace": "default",
            "name": "productpage-v1-0",
            "instance": "uid-productpage",
            "addresses": ["10.10.0.2", "fd00::2"],
            "identity": "spiffe://cluster.local/ns/default/sa/bookinfo-productpage",
            "wanted": True,
            "state": "enabled",
            "error": "",
        }
    ]


def test_problems_name_the_object_and_the_cause() -> None:
    agent = SmallAgent(
        controller=SmallController(connected=False, error="connection refused"),
        own_pods=[
            SmallPod(
                instance="x",
                namespace="default",
                name="broken-0",
                redirection=Redirection.PENDING,
                error="netns /run/netns/broken: gone",
            )
        ],
        held=[
            certificate(PRODUCTPAGE.identity, days=-1),
            certificate(REVIEWS.identity, error="the controller answered 403: reviews does not run here"),
        ],
        described=maps(
            ("flows", "hash", 90, 100),
            ("clients", "hash", 89, 100),
            ("sockets", "sk_storage", None, 1),
            ("a", "array", 8, 8),
        ),
    )
    assert report.problems(agent, agent.kernel(), datetime.now(UTC)) == [
        "controller 10.130.0.2:15012: disconnected: connection refused; the last state it sent stays in force",
        "pod default/broken-0: netns /run/netns/broken: gone",
        "certificate of spiffe://cluster.local/ns/default/sa/bookinfo-productpage: expired",
        "certificate of spiffe://cluster.local/ns/default/sa/bookinfo-reviews: valid: "
        "the controller answered 403: reviews does not run here",
        "kernel map flows: 90 of 100 entries used; full, it refuses connections",
    ]


def test_a_connection() -> None:
    agent = SmallAgent()
    agent.open(outbound(7))
    agent.moved[7] = (100, 2000)
    (shown,) = report.connections(agent, LATER)["connections"]
    assert shown == {
        "id": 7,
        "direction": "outbound",
        "source": {
            "namespace": "default",
            "pod": "productpage-v1-0",
            "identity": "spiffe://cluster.local/ns/default/sa/bookinfo-productpage",
            "address": "10.10.0.2:40000",
        },
        "destination": {
            "namespace": "default",
            "pod": "reviews-v2-0",
            "identity": "spiffe://cluster.local/ns/default/sa/bookinfo-reviews",
            "address": "10.70.0.20:9080",
        },
        "service": "reviews.default.svc.cluster.local",
        "protocol": "HBONE",
        "established": True,
        "upstream": "10.10.1.3:8080",
        "hbone": "10.10.1.3:15008",
        "opened_at": "2026-01-02T03:04:05.000Z",
        "age_seconds": 42,
        "bytes_sent": 100,
        "bytes_received": 2000,
        "policy": None,
    }


def test_an_older_connection_names_its_pod() -> None:
    older = SmallOlder(
        pod="uid-productpage",
        inbound=True,
        local=SocketAddress("10.10.0.2", 9080),
        remote=SocketAddress("fd00::9", 55000),
    )
    agent = SmallAgent(before=[older])
    assert report.connections(agent, LATER)["older"] == [
        {
            "namespace": "default",
            "pod": "productpage-v1-0",
            "instance": "uid-productpage",
            "direction": "inbound",
            "local": "10.10.0.2:9080",
            "remote": "[fd00::9]:55000",
        }
    ]


def test_a_certificate_names_its_pods_and_expires_by_the_clock() -> None:
    agent = SmallAgent(held=[certificate(PRODUCTPAGE.identity)])
    now = datetime.now(UTC)
    (shown,) = report.certificates(agent, now)["certificates"]
    assert (shown["state"], shown["serial"], shown["pods"]) == ("valid", "c0ffee", ["default/productpage-v1-0"])
    assert report.certificates(agent, now + timedelta(days=2))["certificates"][0]["state"] == "expired"


def test_services_count_their_endpoints() -> None:
    (service,) = report.services(SmallAgent())["services"]
    assert (service["endpoints_healthy"], service["endpoints_total"]) == (1, 2)
    assert service["ports"] == [{"service_port": 9080, "target_port": 8080, "app_protocol": "UNKNOWN"}]


def test_the_kernels_counters_say_what_they_mean() -> None:
    agent = SmallAgent(counters={Reason.AGENT_ABSENT: 2})
    shown = report.bpf(agent, agent.kernel())["counters"]
    assert shown == [{"reason": "AGENT_ABSENT", "count": 2, "meaning": Reason.AGENT_ABSENT.hint}]
