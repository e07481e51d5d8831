"""The text of a scrape: read back by Prometheus's own parsers, and compared byte by byte where order matters."""

from __future__ import annotations

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from tests.unit.ztunnel.small_agent import SmallAgent, outbound
from ztunnel.metrics.exposition import OPENMETRICS, PROMETHEUS, negotiate, render
from ztunnel.metrics.traffic import Traffic

GOLDEN = (
    'istio_tcp_received_bytes_total{reporter="source",source_workload="productpage-v1",'
    'source_canonical_service="productpage",source_canonical_revision="v1",source_workload_namespace="default",'
    'source_principal="spiffe://cluster.local/ns/default/sa/bookinfo-productpage",source_app="productpage",'
    'source_version="v1",source_cluster="Kubernetes",destination_service="reviews.default.svc.cluster.local",'
    'destination_service_namespace="default",destination_service_name="reviews",destination_workload="reviews-v2",'
    'destination_canonical_service="reviews",destination_canonical_revision="v2",'
    'destination_workload_namespace="default",'
    'destination_principal="spiffe://cluster.local/ns/default/sa/bookinfo-reviews",destination_app="reviews",'
    'destination_version="v2",destination_cluster="Kubernetes",request_protocol="tcp",response_flags="-",'
    'connection_security_policy="mutual_tls"} 11'
)


def busy() -> Traffic:
    agent, traffic = SmallAgent(), Traffic()
    agent.table.subscribe(traffic)
    agent.open(outbound())
    agent.moved[1] = (11, 22)
    traffic.advance(agent.counts())
    return traffic


@pytest.mark.parametrize("content_type", [PROMETHEUS, OPENMETRICS])
def test_a_line_is_as_ztunnel_writes_it_label_by_label(content_type: str) -> None:
    assert GOLDEN in render(busy().collect({}), content_type).decode().splitlines()


@pytest.mark.parametrize(("content_type", "parse"), [(PROMETHEUS, parse_prometheus), (OPENMETRICS, parse_openmetrics)])
def test_prometheus_reads_what_was_written(content_type: str, parse) -> None:
    odd = Metric("gossamer_odd", 'with "quotes", a \\ and\na new line', "gauge")
    odd.add_sample("gossamer_odd", {"name": 'a"b\\c\nd', "empty": ""}, 1.5)
    odd.add_sample("gossamer_odd", {"name": "big"}, 2**53)
    odd.add_sample("gossamer_odd", {"name": "infinite"}, float("inf"))
    written = render([*busy().collect({}), odd], content_type).decode()
    read = {(s.name, tuple(s.labels.items())): s.value for family in parse(written) for s in family.samples}
    assert read["gossamer_odd", (("name", 'a"b\\c\nd'), ("empty", ""))] == 1.5
    assert read["gossamer_odd", (("name", "big"),)] == 2**53
    assert read["gossamer_odd", (("name", "infinite"),)] == float("inf")
    assert sum(name == "istio_tcp_connections_opened_total" for name, _ in read) == 1


def test_openmetrics_ends_with_eof_and_prometheus_does_not() -> None:
    assert render([], OPENMETRICS) == b"# EOF\n"
    assert render([], PROMETHEUS) == b""


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        ("", PROMETHEUS),
        ("*/*", PROMETHEUS),
        ("text/html,application/xhtml+xml", PROMETHEUS),
        ("application/openmetrics-text", OPENMETRICS),
        # What Prometheus 2 and 3 send
        ("application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
         "text/plain;version=0.0.4;q=0.3,*/*;q=0.2", OPENMETRICS),
        ("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.1", PROMETHEUS),
        ("application/openmetrics-text;version=2.0.0;q=0.9,text/plain;q=0.1", PROMETHEUS),
        ("application/openmetrics-text;q=nonsense", PROMETHEUS),
        ("application/openmetrics-text;q=0", PROMETHEUS),
    ],
)  # fmt: skip
def test_the_format_is_the_one_that_was_asked_for(accept: str, answered: str) -> None:
    assert negotiate(accept) == answered
