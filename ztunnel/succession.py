"""What a planned restart hands over, and in which order: the `Holder` of ztunnel.handover, both sides.

Pausing stops whoever writes to the kernel or acknowledges to the controller, before anything is given: nothing changes
while it is between two agents. Whatever was accepted stays with the agent that accepted it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mesh.control import decode_update
from ztunnel import csr
from ztunnel.admin.server import Endpoints
from ztunnel.certificates import Certificates
from ztunnel.direct import Direct
from ztunnel.handover import giver
from ztunnel.handover.heir import Inheritance
from ztunnel.handover.message import Certificate, Estate
from ztunnel.holdings import Holdings
from ztunnel.orders import Engine
from ztunnel.pods import PodRecord
from ztunnel.roster import Pods
from ztunnel.sync import Sync

log = logging.getLogger(__name__)

_LISTENER = "handover"  # the hand-over socket itself: the next one asks the new agent


class Kernel(Protocol):
    """What succession needs of the kernel side (implemented by `bpf.Kernel`)."""

    @property
    def layout(self) -> str: ...
    def reassert(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class Succession:
    """`halt` ends the agent's background tasks, `begin` starts them again; `ended` is called on `stop` and `release`.
    `listener` listens on the hand-over socket."""

    kernel: Kernel
    engine: Engine
    sync: Sync
    certificates: Certificates
    direct: Direct
    pods: Pods
    endpoints: Endpoints
    halt: Callable[[], Awaitable[None]]
    begin: Callable[[], None]
    ended: Callable[[], None]
    listener: socket.socket | None = None
    ending: bool = False
    released: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # nothing is between two agents just now

    def __post_init__(self) -> None:
        self.settled.set()

    def stop(self) -> None:
        self.ending = True
        self.ended()

    async def pause(self) -> giver.Legacy:
        self.settled.clear()
        await self.pods.around.gate.close()
        sockets = self.endpoints.keep()
        await self.halt()
        direct = self.direct.pause()
        self.engine.pause()
        pods = [found for pod in self.pods.by_instance.values() if (found := pod.legacy()) is not None]
        if self.listener is not None:
            sockets = {**sockets, _LISTENER: self.listener}
        estate = Estate(
            layout=self.kernel.layout,
            holdings=self.sync.holdings.encoded(),
            synced=self.sync.synced,
            certificates=tuple(
                Certificate(credentials=held.credentials, renew_at=held.renew_at) for held in self.certificates.held()
            ),
            direct=direct,
            sockets=tuple(sockets),
            pods=len(pods),
        )
        return giver.Legacy(estate=estate, sockets=[each.fileno() for each in sockets.values()], pods=pods)

    async def resume(self) -> None:
        """OSError: the kernel side cannot be put back; its pods are closed, and the agent is to end."""
        self.kernel.reassert()
        self.pods.resume()
        self.direct.resume()
        self.begin()
        self.settled.set()

    def release(self) -> None:
        self.released = True
        self.settled.set()
        self.endpoints.forgo()
        self.direct.flows.leave()
        self.ended()

    async def inherit(self, inherited: Inheritance, records: Mapping[str, PodRecord]) -> None:
        """Serve everything that a living agent serves, then have it confirmed. NotTaken."""
        estate = inherited.estate
        sockets = {name: socket.socket(fileno=fd) for name, fd in inherited.sockets.items()}
        for each in sockets.values():
            each.setblocking(False)
        self.listener = sockets.pop(_LISTENER, None)
        self.endpoints.given.update(sockets)
        self.certificates.inherit(csr.inherited(one.credentials, one.renew_at) for one in estate.certificates)
        holdings, _ = Holdings().after(decode_update(estate.holdings)[0])
        if estate.direct is not None and estate.layout == self.kernel.layout:
            self.direct.inherit(estate.direct, holdings.snapshot)
        self.sync.inherit(holdings, synced=estate.synced)
        await self.pods.inherit(records, inherited.pods)
        self.direct.renew()
        await asyncio.to_thread(inherited.confirm)
        log.info("%d pods were taken over from the agent before", len(inherited.pods))
