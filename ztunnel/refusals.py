"""What the kernel side refused, told in the log: once a second and per pod, however many there were."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Protocol

from mesh.model import SocketAddress
from mesh.reason import Reason

log = logging.getLogger(__name__)

_INTERVAL = 1.0
_MAX_LINES = 20  # per interval; the counters have all of it
_MAX_EVENTS = 5000


class Refusal(Protocol):
    """One event of the kernel side (`bpf.Event`)."""

    @property
    def reason(self) -> Reason: ...
    @property
    def netns(self) -> int: ...  # cookie of the pod's netns
    @property
    def local(self) -> SocketAddress: ...
    @property
    def remote(self) -> SocketAddress: ...


class Ring(Protocol):
    """`fd` is readable when `read` has something."""

    @property
    def fd(self) -> int: ...
    def read(self) -> Iterator[Refusal]: ...


def summary(events: Iterable[Refusal], names: Mapping[int, str]) -> list[str]:
    """One line per pod, destination port and reason, the most frequent first. `names`: netns cookie -> pod."""
    groups: dict[tuple[int, Reason, int], list[Refusal]] = {}
    for event in events:
        groups.setdefault((event.netns, event.reason, event.local.port), []).append(event)
    lines = []
    for (netns, reason, _), found in sorted(groups.items(), key=lambda item: -len(item[1]))[:_MAX_LINES]:
        last, who = found[-1], names.get(netns, f"netns {netns}")
        came = f" from {last.remote}" if last.remote.port else ""
        lines.append(f"{who}: {reason.name} {len(found)}x, last to {last.local}{came}: {reason.hint}")
    if len(groups) > _MAX_LINES:
        lines.append(f"and {len(groups) - _MAX_LINES} other kinds; see the counters")
    return lines


async def follow(ring: Ring, names: Callable[[], Mapping[int, str]]) -> None:
    """Log until cancelled."""
    loop = asyncio.get_running_loop()
    some = asyncio.Event()
    while True:
        loop.add_reader(ring.fd, some.set)
        try:
            await some.wait()
        finally:
            loop.remove_reader(ring.fd)
        some.clear()
        for line in summary(islice(ring.read(), _MAX_EVENTS), names()):
            log.warning("refused in the kernel: %s", line)
        await asyncio.sleep(_INTERVAL)
