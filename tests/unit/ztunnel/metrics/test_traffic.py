"""Connections and bytes per series, over the life of connections and of workloads."""

from __future__ import annotations

from mesh.identity import SpiffeId
from mesh.reason import Reason
from mesh.snapshot import Delta
from tests.unit.ztunnel.small_agent import REVIEWS, SNAPSHOT, SmallAgent, inbound, outbound
from ztunnel.metrics.traffic import Traffic


def watched(**options: object) -> tuple[SmallAgent, Traffic]:
    agent, traffic = SmallAgent(), Traffic(**options)
    agent.table.subscribe(traffic)
    return agent, traffic


def values(traffic: Traffic, **labels: str) -> dict[str, float]:
    """Sample name -> sum over the series with these labels."""
    found: dict[str, float] = {}
    for family in traffic.collect({}):
        for sample in family.samples:
            if labels.items() <= sample.labels.items():
                found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_received_is_from_client_to_server_for_both_reporters() -> None:
    agent, traffic = watched()
    for connection, reporter in ((outbound(), "source"), (inbound(), "destination")):
        agent.open(connection)
        agent.moved[connection.id] = (11, 22)  # the client sends 11 and gets 22
        agent.end(connection)
        assert values(traffic, reporter=reporter) == {
            "istio_tcp_connections_opened_total": 1,
            "istio_tcp_connections_closed_total": 1,
            "istio_tcp_received_bytes_total": 11,
            "istio_tcp_sent_bytes_total": 22,
            "istio_tcp_sockets_open": 0,
        }


def test_bytes_of_a_living_connection_grow_and_are_counted_once() -> None:
    agent, traffic = watched()
    connection = agent.open(outbound())
    seen = []
    for moved in ((0, 0), (5, 0), (100, 7)):
        agent.moved[1] = moved
        traffic.advance(agent.counts())
        traffic.advance(agent.counts())
        now = values(traffic)
        seen.append((now["istio_tcp_received_bytes_total"], now["istio_tcp_sent_bytes_total"]))
        assert now["istio_tcp_sockets_open"] == 1
    assert seen == [(0, 0), (5, 0), (100, 7)]
    agent.moved[1] = (120, 9)
    agent.end(connection)
    now = values(traffic)
    assert (now["istio_tcp_received_bytes_total"], now["istio_tcp_sent_bytes_total"]) == (120, 9)
    assert "istio_tcp_connections_failed_total" not in now


def test_an_error_is_known_at_the_end_and_flags_closed_and_failed() -> None:
    agent, traffic = watched()
    agent.end(agent.open(outbound()), Reason.TUNNEL_LOST, "connection reset")
    assert values(traffic, response_flags="-")["istio_tcp_connections_opened_total"] == 1
    assert values(traffic, response_flags="CONNECT") == {
        "istio_tcp_connections_closed_total": 1,
        "istio_tcp_connections_failed_total": 1,
    }


def test_a_denied_connection_is_opened_closed_and_failed() -> None:
    agent, traffic = watched()
    denied = inbound(reason=Reason.POLICY_DENY, detail="default/deny-all")
    agent.table.begin(denied)
    agent.end(denied, Reason.POLICY_DENY)
    assert values(traffic, response_flags="DENY", reporter="destination") == {
        "istio_tcp_connections_closed_total": 1,
        "istio_tcp_connections_failed_total": 1,
    }
    assert values(traffic)["istio_tcp_connections_opened_total"] == 1
    assert values(traffic, reason="POLICY_DENY") == {"gossamer_refused_total": 1}


def test_those_turned_away_by_the_engine_are_counted_with_the_refused() -> None:
    agent, traffic = watched()
    denied = inbound(reason=Reason.LIMIT)
    agent.table.begin(denied)
    agent.end(denied, Reason.LIMIT)
    families = {family.name: family.samples for family in traffic.collect({Reason.LIMIT: 2, Reason.TLS_FAILED: 3})}
    counted = {sample.labels["reason"]: sample.value for sample in families["gossamer_refused"]}
    assert counted == {"LIMIT": 3, "TLS_FAILED": 3}


def test_refused_before_both_ends_are_known_makes_no_series() -> None:
    agent, traffic = watched()
    unknown = outbound(source=None, destination=None, reason=Reason.SOURCE_UNKNOWN)
    agent.table.begin(unknown)
    agent.end(unknown, Reason.SOURCE_UNKNOWN)
    assert values(traffic) == {
        "istio_tcp_sockets_open": 0,
        "gossamer_refused_total": 1,
        "gossamer_metric_series_evicted_total": 0,
    }


def test_series_of_a_vanished_workload_expire_when_nobody_uses_them() -> None:
    time = [0.0]
    agent, traffic = watched(clock=lambda: time[0], linger=900)
    connection = agent.open(outbound())
    without = SNAPSHOT.apply(Delta(removes=(REVIEWS.key,)))
    time[0] = 10_000.0
    traffic.expire(without)
    assert values(traffic)["istio_tcp_connections_opened_total"] == 1, "still open"
    agent.end(connection)
    time[0] += 899
    traffic.expire(without)
    assert values(traffic)["istio_tcp_connections_closed_total"] == 1, "a last scrape shall see it"
    time[0] += 2
    traffic.expire(SNAPSHOT)
    assert values(traffic)["istio_tcp_connections_closed_total"] == 1, "its workloads are there"
    traffic.expire(without)
    assert "istio_tcp_connections_closed_total" not in values(traffic)


def test_a_revoked_connection_fails_with_deny() -> None:
    agent, traffic = watched()
    connection = agent.open(inbound())
    connection.reason = Reason.REVOKED
    agent.end(connection, Reason.REVOKED)
    assert values(traffic, response_flags="DENY")["istio_tcp_connections_failed_total"] == 1
    assert values(traffic)["istio_tcp_sockets_open"] == 0


def test_there_are_never_more_series_than_the_limit() -> None:
    agent, traffic = watched(limit=10)
    for n in range(100):
        identity = SpiffeId("td", "ns", f"sa{n}")
        agent.end(agent.open(outbound(n, destination=None, destination_identity=identity)))
    shown = values(traffic)
    assert shown["istio_tcp_connections_closed_total"] <= 10
    assert shown["gossamer_metric_series_evicted_total"] >= 90


def test_with_every_series_in_use_new_ones_are_counted_as_unknown() -> None:
    agent, traffic = watched(limit=2)
    connections = [agent.open(outbound(n, destination_identity=SpiffeId("td", "ns", f"sa{n}"))) for n in range(5)]
    unknown = values(traffic, destination_principal="unknown", source_workload="unknown", reporter="source")
    assert unknown["istio_tcp_connections_opened_total"] == 3
    for connection in connections:
        agent.end(connection)
    assert values(traffic)["istio_tcp_sockets_open"] == 0
    agent.open(outbound(9))
    assert values(traffic, destination_principal=str(REVIEWS.identity))["istio_tcp_connections_opened_total"] == 1
