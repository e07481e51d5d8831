"""What the kernel tells comes to the same, however it is cut into batches."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import pytest

from bpf import DirectBarred, DirectClosed, DirectDrained, DirectOpened, DirectReady, DirectTally, Mismatch
from mesh.model import Policy, PolicyAction, SocketAddress
from mesh.reason import Reason
from mesh.snapshot import Snapshot
from tests.unit.ztunnel.metrics.test_traffic import values
from tests.unit.ztunnel.test_direct import DB, EVIL, NOT_WEB, SERVER, WEB, Node, policy
from ztunnel.access_log import AccessLog, Level
from ztunnel.hearing import Hearing, Kind, Tiding, part
from ztunnel.metrics.traffic import Traffic

COOKIES = {11: WEB, 12: EVIL, 13: DB}


def flow(id_: int, source: int = 11, *, sent: int = 10, received: int = 20) -> tuple[DirectOpened, DirectClosed]:
    """Its two events; it lived two seconds."""
    client = SocketAddress(COOKIES[source].addresses[0], 40000 + id_)
    opened = DirectOpened(
        id=id_,
        source=source,
        destination=13,
        client=client,
        server=SERVER,
        asked=SERVER,
        generation=1,
        opened_ns=6_000_000_000,
    )
    closed = DirectClosed(*opened, sent=sent, received=received, accelerated=False, closed_ns=8_000_000_000)
    return opened, closed


def hearing(node: Node, *, each: bool = True, clock: Iterable[float] | None = None) -> Hearing:
    """It looks whenever it hears."""
    ticks = iter(clock if clock is not None else count())
    return Hearing(
        direct=node.direct,
        ledger=node.kernel,
        instance=lambda cookie: COOKIES[cookie].instance,
        each=lambda: each,
        monotonic=lambda: next(ticks),
    )


def told(batches: list[list[Tiding]], *resources: Policy) -> tuple[dict[str, float], int]:
    """The metrics, and how many live records there were at most."""
    node, traffic, most = Node(*resources), Traffic(clock=lambda: 0.0), 0
    node.connections.subscribe(traffic)
    hears = hearing(node)
    for batch in batches:
        hears.hear(batch, True)
        most = max(most, len(node.connections.live()))
    return values(traffic), most


def test_what_is_over_at_once_is_parted_from_the_rest() -> None:
    (_, a_end), (b, b_end), (_, c_end), (d, d_end) = (flow(n) for n in range(1, 5))
    _, other_end = flow(9, source=12)
    kinds, rest = part([c_end, b, a_end, b_end, d, other_end], known=())
    web, evil = (Kind(cookie, 13, COOKIES[cookie].addresses[0], SERVER, SERVER) for cookie in (11, 12))
    assert kinds == {web: [c_end, a_end], evil: [other_end]}
    assert rest == [b, b_end, d]
    assert part([d, d_end], known=()) == ({}, [d, d_end])  # policy has changed: it may have lost its permission
    assert part([c_end], known={3}) == ({}, [c_end])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rules", [(), (policy(PolicyAction.ALLOW),), (NOT_WEB,)], ids=["none", "allow", "deny"])
def test_batches_make_no_difference(seed: int, rules: tuple[Policy, ...]) -> None:
    rng = random.Random(seed)
    pending = [list(flow(n, rng.choice([11, 12]), sent=n, received=2 * n)) for n in range(40)]
    pending += [[flow(n)[0]] for n in range(100, 105)] + [[flow(n)[1]] for n in range(110, 115)]
    events: list[Tiding] = []
    while pending:
        one = rng.choice(pending)
        events.append(one.pop(0))
        pending = [each for each in pending if each]
    cut = rng.randrange(len(events))
    one_by_one, _ = told([[event] for event in events], *rules)
    in_two, _ = told([events[:cut], events[cut:]], *rules)
    at_once, _ = told([events], *rules)
    for counted in (one_by_one, in_two, at_once):
        # What is not permitted any more is ended, unless it is over already.
        counted.pop("istio_tcp_connections_failed_total", None)
    assert one_by_one == in_two == at_once
    assert one_by_one["istio_tcp_connections_closed_total"] == 2 * 45


def test_a_storm_has_no_records_and_is_counted() -> None:
    storm: list[Tiding] = [flow(n)[1] for n in range(500)]
    counted, most = told([storm])
    assert most == 0
    assert counted["istio_tcp_connections_opened_total"] == counted["istio_tcp_connections_closed_total"] == 1000
    assert (counted["istio_tcp_received_bytes_total"], counted["istio_tcp_sent_bytes_total"]) == (10_000, 20_000)


@pytest.mark.parametrize(("level", "lines"), [(Level.DEBUG, 12), (Level.INFO, 6), (Level.WARN, 0)])
def test_the_access_log_has_a_line_for_each_and_reporter(level: Level, lines: int) -> None:
    node, out = Node(), io.StringIO()
    log = AccessLog(out, level=level)
    node.connections.subscribe(log)
    hearing(node).hear([flow(n)[1] for n in range(3)], True)
    log.close()
    said = out.getvalue().splitlines()
    assert len(said) == lines
    complete = [line for line in said if "connection complete" in line]
    for n in range(3 if lines else 0):
        mine = [line for line in complete if f":{40000 + n} " in line]
        assert len(mine) == 2
        assert 'bytes_sent=10 bytes_recv=20 duration="2000ms"' in mine[0]
        assert 'bytes_sent=20 bytes_recv=10 duration="2000ms"' in mine[1]


def test_a_new_snapshot_is_another_verdict() -> None:
    node = Node()
    hears = hearing(node)
    hears.hear([flow(1)[1]], True)
    node.swap(NOT_WEB)
    hears.hear([flow(2)[1]], True)  # told one by one: there is something to say of it
    hears.hear([flow(3, source=12)[1]], True)
    assert [each[1] for each in node.told.ended] == [Reason.OK] * 6
    assert node.flows.passed(hears._heard(flow(4)[1]), [flow(4)[1]]) is False


def test_one_that_cannot_be_told_is_not_the_end_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    hears = hearing(node)
    odd = flow(1)[0]._replace(client=None)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        hears.hear([odd, *flow(2), Mismatch(3, 11, 13, SocketAddress("10.0.0.1", 5), SERVER, SERVER), flow(4)[0]], True)
    assert "event of the kernel side" in caplog.text
    assert [reason for _, reason, _, _ in node.told.ended] == [Reason.OK, Reason.OK, Reason.MISMATCH]
    assert len(node.connections.live()) == 2


@pytest.mark.parametrize("at_client", [True, False])
def test_what_acceleration_asks_for_is_done(at_client: bool, tmp_path: Path) -> None:
    node = Node()
    node.netns = tmp_path
    opened, closed = flow(1)
    node.kernel.told.clear()
    hearing(node).hear([opened, DirectReady(*opened[:6])], True)
    assert [told.split()[0] for told in node.kernel.told] == ["promote"]
    node.looked_into.clear()
    hearing(node).hear([DirectDrained(*opened[:5], at_client, 7, 8), DirectBarred(*opened[:6]), closed], True)
    assert [told.split()[0] for told in node.kernel.told] == ["promote", "nudge", "close_lanes"]
    assert node.looked_into == [DB.instance if at_client else WEB.instance], "the other end"


def test_what_is_gone_is_ended_once_all_that_was_waiting_is_heard() -> None:
    """An end may wait behind many other events: that flow is not ended twice."""
    node = Node()
    hears, (opened, closed) = hearing(node), flow(1)
    hears.hear([opened], True)
    for _ in range(3):
        node.flows.reconcile()
        hears.hear([], False)
    assert list(node.flows.live) == [1]
    hears.hear([closed], True)
    node.flows.reconcile()
    assert not node.flows.live
    assert len(node.told.ended) == 2
    hears.hear([flow(3)[0]], True)
    node.flows.reconcile()
    hears.hear([], True)
    node.flows.reconcile()  # its end was lost
    assert len(node.told.ended) == 4


def test_one_that_was_found_has_lived_until_the_kernel_saw_its_end() -> None:
    """However late that is heard."""
    node, out = Node(), io.StringIO()
    log = AccessLog(out)
    node.connections.subscribe(log)
    hears, (opened, closed) = hearing(node), flow(1)
    hears.hear([opened], True)
    hears.hear([closed._replace(closed_ns=6_123_000_000)], True)
    log.close()
    assert out.getvalue().count('duration="123ms"') == 2


def tally(flows: int, source: int = 11) -> DirectTally:
    return DirectTally(source, 13, COOKIES[source].addresses[0], SERVER, SERVER, flows, 10 * flows, 20 * flows)


def test_what_the_kernel_has_added_up_is_counted_as_if_each_had_been_told() -> None:
    added, one_by_one = Node(), Node()
    found = []
    for node in (added, one_by_one):
        traffic = Traffic(clock=lambda: 0.0)
        node.connections.subscribe(traffic)
        found.append(traffic)
    added.kernel.tallies = [tally(300), tally(7, source=12)]
    hearing(added, each=False).hear([], True)
    events = [flow(n)[1] for n in range(300)] + [flow(n, source=12)[1] for n in range(7)]
    hearing(one_by_one).hear(events, True)
    assert values(found[0]) == values(found[1])
    assert values(found[0])["istio_tcp_connections_closed_total"] == 2 * 307
    assert added.kernel.tallies == []


def test_what_was_permitted_while_it_lived_is_no_failure() -> None:
    node = Node(NOT_WEB)
    node.kernel.tallies = [tally(2)]
    hearing(node).hear([], True)
    assert node.told.ended == [(False, Reason.OK, 20, 40), (True, Reason.OK, 20, 40)]


@pytest.mark.parametrize("each", [True, False])
def test_the_kernel_is_told_whether_every_end_is_wanted(each: bool) -> None:
    node = Node()
    hearing(node, each=each).hear([], True)
    assert node.kernel.each is each


def test_it_looks_twice_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """However often it hears. What cannot be counted is counted later."""
    node = Node()
    node.kernel.tallies = [tally(1)]
    node.kernel.fault = OSError("not now")
    hears = hearing(node, clock=[1.0, 1.4, 1.5, 1.6])
    hears.hear([], True)
    assert "not now" in caplog.text
    node.kernel.fault = None
    hears.hear([], True)
    assert not node.told.ended
    hears.hear([], True)
    assert len(node.told.ended) == 2
    node.kernel.tallies = [tally(1)]
    hears.hear([], True)
    assert len(node.told.ended) == 2


def test_nothing_is_taken_before_anything_is_known() -> None:
    node = Node()
    node.snapshot = Snapshot()
    node.kernel.tallies = [tally(1)]
    hearing(node).hear([], True)
    assert node.kernel.tallies == [tally(1)]
