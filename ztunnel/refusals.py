"""What the kernel side tells: refusals go to the log, once a second and per pod, however many there were; the rest to
whoever wants it, all that there is at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from mesh.model import SocketAddress
from mesh.reason import Reason

log = logging.getLogger(__name__)

_INTERVAL = 1.0  # between lines
_LOOK = 0.5  # seconds, also without a wake-up
_BATCH = 4000  # events, about a full ring; then others have their turn
_REST = 0.02  # seconds: a storm is heard of in fifty batches a second, not in one for each event
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
    """`fd` is readable when `read` has something; refusals come last."""

    @property
    def fd(self) -> int: ...
    def read(self) -> Iterator[Any]: ...


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


async def follow(
    ring: Ring, names: Callable[[], Mapping[int, str]], kind: type, tell: Callable[[Sequence[Any], bool], None]
) -> None:
    """Read until cancelled: refusals (events of this `kind`) are logged; others are told in the order they came, and
    whether these are all. At most half of the time is spent on it; what the ring has no room for meanwhile, the kernel
    side counts."""
    loop = asyncio.get_running_loop()
    refused: list[Refusal] = []
    told = 0.0
    while True:
        await _readable(ring.fd)
        began = loop.time()
        others: list[Any] = []
        events = list(islice(ring.read(), _BATCH))
        for event in events:
            if not isinstance(event, kind):
                others.append(event)
            elif len(refused) < _MAX_EVENTS:
                refused.append(event)
        tell(others, len(events) < _BATCH or isinstance(events[-1], kind))
        if refused and loop.time() - told >= _INTERVAL:
            for line in summary(refused, names()):
                log.warning("refused in the kernel: %s", line)
            refused.clear()
            told = loop.time()
        await asyncio.sleep(max(_REST, loop.time() - began))


async def _readable(fd: int) -> None:
    """Until there is something, or long enough for what the kernel side did not think worth a wake-up."""
    loop = asyncio.get_running_loop()
    some = asyncio.Event()
    loop.add_reader(fd, some.set)
    try:
        async with asyncio.timeout(_LOOK):
            await some.wait()
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(fd)
