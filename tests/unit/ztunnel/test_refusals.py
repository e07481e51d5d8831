"""What the kernel side refused, in few words."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.model import SocketAddress
from mesh.reason import Reason
from ztunnel.refusals import summary


@dataclass(frozen=True)
class Event:
    reason: Reason
    netns: int
    local: SocketAddress
    remote: SocketAddress


NOWHERE = SocketAddress("::", 0)


def event(reason: Reason, netns: int, port: int, remote: SocketAddress = NOWHERE) -> Event:
    return Event(reason, netns, SocketAddress("10.0.0.2", port), remote)


def test_one_line_per_pod_port_and_reason_the_most_frequent_first() -> None:
    client = SocketAddress("10.0.0.1", 4)
    lines = summary(
        [
            event(Reason.AGENT_ABSENT, 1, 80, client),
            *[event(Reason.RESERVED_PORT, 2, 15001)] * 3,
            event(Reason.AGENT_ABSENT, 1, 80, client),
        ],
        {1: "shop/db"},
    )
    assert lines == [
        f"netns 2: RESERVED_PORT 3x, last to 10.0.0.2:15001: {Reason.RESERVED_PORT.hint}",
        f"shop/db: AGENT_ABSENT 2x, last to 10.0.0.2:80 from 10.0.0.1:4: {Reason.AGENT_ABSENT.hint}",
    ]


def test_a_port_scan_does_not_fill_the_log() -> None:
    lines = summary([event(Reason.AGENT_ABSENT, 1, port) for port in range(1, 1001)], {})
    assert len(lines) == 21
    assert lines[-1] == "and 980 other kinds; see the counters"


def test_nothing() -> None:
    assert summary([], {}) == []
