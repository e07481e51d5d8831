"""Access log lines, field by field, and what happens when nobody reads them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.unit.ztunnel.small_agent import START, SmallAgent, inbound, outbound
from ztunnel.access_log import AccessLog, Level, line
from ztunnel.connections import Connection
from ztunnel.orders import Trip


def test_a_complete_connection_as_its_source_reports_it() -> None:
    connection = outbound(sent=84, received=358)
    assert line(START, Level.INFO, "connection complete", connection, 0.0149) == (
        "2026-01-02T03:04:05.000000Z\tinfo\taccess\tconnection complete\t"
        'src.addr=10.10.0.2:40000 src.workload="productpage-v1-0" src.namespace="default" '
        'src.identity="spiffe://cluster.local/ns/default/sa/bookinfo-productpage" src.cluster="Kubernetes" '
        "dst.addr=10.10.1.3:15008 dst.hbone_addr=10.10.1.3:8080 "
        'dst.service="reviews.default.svc.cluster.local" dst.workload="reviews-v2-0" dst.namespace="default" '
        'dst.identity="spiffe://cluster.local/ns/default/sa/bookinfo-reviews" dst.cluster="Kubernetes" '
        'direction="outbound" bytes_sent=84 bytes_recv=358 duration="15ms"\n'
    )


def test_bytes_are_from_the_reporters_own_side() -> None:
    said = line(START, Level.INFO, "connection complete", inbound(sent=84, received=358), 1.0)
    assert 'direction="inbound" bytes_sent=358 bytes_recv=84 duration="1000ms"' in said


def test_plaintext_shows_no_identity() -> None:
    said = line(START, Level.INFO, "connection complete", outbound(hbone=None), 0.0)
    assert "identity" not in said
    assert "hbone" not in said
    assert "dst.addr=10.10.1.3:8080" in said


def test_an_error_names_reason_detail_and_hint_on_one_line() -> None:
    connection = outbound(reason=Reason.CONNECT_FAILED, detail='refused\nby "peer"\u2028')
    said = line(START, Level.ERROR, "connection complete", connection, 0.0)
    assert said.count("\n") == 1
    assert "\u2028" not in said
    assert 'error="CONNECT_FAILED: refused\\nby \\"peer\\"\\u2028 (maybe a NetworkPolicy' in said


@pytest.mark.parametrize("common", [outbound(), inbound(), outbound(hbone=None, service=None)])
@pytest.mark.parametrize("level", [Level.DEBUG, Level.INFO, Level.WARN])
def test_those_that_are_told_together_have_a_line_each_like_any_other(common: Connection, level: Level) -> None:
    trips = [
        Trip(SocketAddress("10.10.0.2", 40000 + n), n, 2 * n, 1_000_000_000, 1_000_000_000 + 1_500_000 * n)
        for n in range(3)
    ]
    out = io.StringIO()
    log = AccessLog(out, level=level, now=lambda: START)
    log.passed(common, trips)
    log.close()
    expected = []
    for trip in trips:
        own = replace(common, client=trip.client, sent=trip.sent, received=trip.received)
        if level is Level.DEBUG:
            expected.append(line(START, Level.DEBUG, "connection opened", own))
        if level <= Level.INFO:
            seconds = (trip.closed_ns - trip.opened_ns) / 1e9
            expected.append(line(START, Level.INFO, "connection complete", own, seconds))
    assert out.getvalue() == "".join(expected)


def written(level: Level) -> list[tuple[str, str]]:
    """(level, message) of what a log at this level writes of a few connections."""
    out, agent = io.StringIO(), SmallAgent()
    log = AccessLog(out, level=level)
    agent.table.subscribe(log)
    agent.end(agent.open(outbound(1)))
    agent.end(agent.open(outbound(2)), Reason.TUNNEL_LOST)
    for id_, reason in ((3, Reason.POLICY_DENY), (4, Reason.SOURCE_UNKNOWN)):
        refused = outbound(id_, reason=reason)
        agent.table.begin(refused)
        agent.end(refused, reason)
    log.close()
    return [(text.split("\t")[1], text.split("\t")[3]) for text in out.getvalue().splitlines()]


ALL = [
    ("debug", "connection opened"),
    ("info", "connection complete"),
    ("debug", "connection opened"),
    ("error", "connection complete"),
    ("error", "connection complete"),
    ("warn", "connection failed"),
]


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (Level.DEBUG, ALL),
        (Level.INFO, [each for each in ALL if each[0] != "debug"]),
        (Level.WARN, [each for each in ALL if each[0] in ("warn", "error")]),
        (Level.ERROR, [each for each in ALL if each[0] == "error"]),
        (Level.OFF, []),
    ],
)
def test_levels(level: Level, shown: list[tuple[str, str]]) -> None:
    assert written(level) == shown


def test_a_blocked_reader_costs_lines_which_are_counted_and_never_time() -> None:
    reader, writer = os.pipe()
    out = os.fdopen(writer, "w")
    log = AccessLog(out, capacity=100)
    connection = outbound()
    for _ in range(5000):  # far more than the pipe holds: the writer's thread is stuck, this one is not
        log.closed(connection, 0.0)
    assert log.dropped >= 1000
    received: list[str] = []
    with os.fdopen(reader) as source:
        reading = threading.Thread(target=lambda: received.extend(source))
        reading.start()
        log.close(timeout=30)
        out.close()
        reading.join(timeout=30)
    lost = [int(found[1]) for text in received if (found := re.search(r"lines dropped.*lines=(\d+)", text))]
    kept = sum("connection complete" in text for text in received)
    assert sum(lost) == log.dropped
    assert kept + sum(lost) == 5000


def test_a_reader_that_went_away_does_not_end_the_log() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    out = os.fdopen(writer, "w")
    log = AccessLog(out)
    for _ in range(3):
        log.closed(outbound(), 0.0)
    log.close()
    assert log.dropped >= 1
    with contextlib.suppress(BrokenPipeError):  # what the buffer still holds has nowhere to go
        out.close()


def test_time_is_utc_with_microseconds() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    assert line(at, Level.WARN, "connection failed", outbound()).startswith("2026-01-02T03:04:05.678901Z\twarn\t")


def test_a_level_that_is_none_is_named_with_those_that_are() -> None:
    assert Level.parse("Warning") is Level.WARN
    with pytest.raises(ValueError, match="'loud' is no level; there are debug, info, warn, error, off"):
        Level.parse("loud")
