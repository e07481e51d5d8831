"""The headers of a CONNECT, literally as istio-facts §1.5 has them."""

from __future__ import annotations

import random

import pytest

from mesh.model import Locality, Service, SocketAddress, Workload
from ztunnel import headers

CLIENT = SocketAddress("10.0.0.1", 40000)
WEB = Service(name="web", namespace="default", hostname="web.default.svc.cluster.local")
FULL = Workload(
    uid="u",
    name="web-7d9-x2x",
    namespace="shop",
    workload_type="deployment",
    workload_name="web",
    canonical_name="web",
    canonical_revision="v1",
    locality=Locality(region="r", zone="z"),
)


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        (
            FULL,
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,"
            "service.version=v1,cloud.region=r,cloud.availability_zone=z",
        ),
        (
            Workload(uid="u", name="bare", namespace="shop"),
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=bare",
        ),
        (
            Workload(uid="u", name="p", namespace="n", workload_type="job", workload_name="j", cluster_id=""),
            "k8s.namespace.name=n,k8s.job.name=j",
        ),
        (
            Workload(uid="u", name="p", namespace="n", workload_type="daemonset", workload_name="d", cluster_id=""),
            "k8s.namespace.name=n,k8s.pod.name=d",
        ),
    ],
)
def test_baggage_leaves_out_what_is_empty(workload: Workload, expected: str) -> None:
    assert headers.baggage(workload) == expected


def test_forwarded_names_client_and_dialled_service() -> None:
    assert headers.forwarded(CLIENT, None) == 'for="10.0.0.1:40000"'
    assert headers.forwarded(CLIENT, WEB) == 'for="10.0.0.1:40000";host=web.default.svc.cluster.local'
    assert headers.forwarded(SocketAddress("fd00::1", 1), None) == 'for="[fd00::1]:1"'


def test_traceparent_is_fresh_and_of_55_characters() -> None:
    rng = random.Random(1)
    first, second = headers.traceparent(rng), headers.traceparent(rng)
    assert first != second
    assert len(first) == 55
    assert first.startswith("00-")
    assert first.endswith("-00")
    assert headers.read_traceparent([("traceparent", first)]) == first


@pytest.mark.parametrize("bad", ["", "00-1-2-00", "x" * 56, "é" * 55])
def test_other_traceparents_are_not_taken(bad: str) -> None:
    assert headers.read_traceparent([("traceparent", bad)]) == ""


@pytest.mark.parametrize(
    ("value", "client", "host"),
    [
        ('for="10.0.0.1:40000";host=web.example', CLIENT, "web.example"),
        ('for="10.0.0.1:40000";host="web.example"', CLIENT, "web.example"),
        ('For="10.0.0.1:40000" ; Host=web.example', CLIENT, "web.example"),
        ("host=web.example", None, "web.example"),
        ('for="[fd00::1]:1"', SocketAddress("fd00::1", 1), ""),
        ("for=10.0.0.1", None, ""),
        ("for=unknown;host=web.example, for=other;host=other", None, "web.example"),
        ("", None, ""),
        (";;=;host", None, ""),
        ("host=" + "a" * 300, None, ""),
        ("host=wéb", None, ""),
    ],
)
def test_forwarded_is_read_as_far_as_it_makes_sense(value: str, client: SocketAddress | None, host: str) -> None:
    assert headers.read_forwarded([("forwarded", value)]) == (client, host)


def test_what_is_written_is_read() -> None:
    written = headers.request(FULL, CLIENT, WEB, headers.traceparent(random.Random(1)))
    assert [name for name, _ in written] == ["baggage", "forwarded", "traceparent"]
    assert headers.read_forwarded(written) == (CLIENT, WEB.hostname)
