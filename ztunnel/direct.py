"""The direct path, as the agent keeps it: tells the kernel which pods of this node may talk from socket to socket, and
ends what lost its permission.

On every new snapshot, and when a pod is enrolled or leaves: plan (mesh.direct), and if anything was taken away, switch
to another generation of answers, at once; then judge the open connections anew. Services are no permissions: what
connections to them are spread over is replaced one by one. An answer that was not made ahead is made when a pod first
asks for it: that connection goes through the tunnel, the next one directly. If the kernel cannot be told, nothing is
direct until it can.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

from mesh import direct
from mesh.balance import Balance
from mesh.direct import Key, Plan, Target, VerdictEntry
from mesh.model import SocketAddress, Workload
from mesh.reason import Reason
from mesh.snapshot import Snapshot
from ztunnel import older
from ztunnel.connections import Connection, Passed, Tally, lost
from ztunnel.flows import Flow, Flows, Heard, Record
from ztunnel.handover.message import DirectKey, DirectState, DirectTarget
from ztunnel.older import OlderConnection

log = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0  # how often the kernel's list is compared with ours
_RETRY_SECONDS = 0.2


class Promoter(Protocol):
    """Acceleration (implemented by `bpf.promote.Promoter`); flows are named by netns cookie and addresses."""

    def promote(
        self, destination: int, client: SocketAddress, server: SocketAddress, *, at_source: int, at_destination: int
    ) -> IntEnum: ...
    def close_lanes(self, destination: int, client: SocketAddress, server: SocketAddress) -> None: ...
    def demote(self, destination: int, client: SocketAddress, server: SocketAddress) -> IntEnum: ...


class Kernel(Protocol):
    """What the direct path needs of the kernel side (implemented by `bpf.Kernel`)."""

    def pods(self) -> Mapping[str, Any]: ...
    def switch(self, targets: Mapping[str, Target], entries: Iterable[VerdictEntry]) -> int: ...  # no room for so many
    def bump(self) -> int: ...
    def set_targets(self, targets: Mapping[str, Target]) -> None: ...
    def put_verdicts(self, entries: Iterable[VerdictEntry]) -> int: ...  # likewise
    def set_services(self, services: Mapping[SocketAddress, Balance]) -> int: ...  # likewise
    @property
    def promoter(self) -> Promoter: ...
    def nudge(self, event: Any, *, at_sender: int) -> None: ...


@dataclass(slots=True, kw_only=True)
class Direct:
    """`on`: whether anything may be direct; if not, what former agents permitted is withdrawn, and their open
    connections are still listed and judged. `netns` is the path of a pod's network namespace by its instance."""

    on: bool
    kernel: Kernel
    flows: Flows
    snapshot: Callable[[], Snapshot]
    workload: Callable[[Snapshot, str], Workload | None]
    netns: Callable[[str], Path | None]
    redrawn: Callable[[], None] = lambda: None  # told when what is `drawable` has changed
    unfilled: int = 0  # answers and Services that the kernel had no room for
    _plan: Plan | None = None
    _leaving: set[str] = field(default_factory=set)
    _again: asyncio.Event = field(default_factory=asyncio.Event)
    _barred: dict[int, tuple[Flow, int]] = field(default_factory=dict)  # to be demoted: flow, cookie of the destination
    _paused: bool = False
    _renewed: bool = False  # pods were enrolled since the kernel was told last

    # A planned restart

    def pause(self) -> DirectState | None:
        """Tell the kernel nothing more, and what it was told last; None: nobody knows."""
        self._paused = True
        if self._plan is None:
            return None
        targets = self._plan.targets.items()
        return DirectState(
            sources=tuple(self._plan.sources),
            targets=tuple(DirectTarget(instance=i, mode=t.mode, accelerate=t.accelerate) for i, t in targets),
            permitted=tuple(DirectKey(source=s, destination=d, port=p) for s, d, p in self._plan.entries),
        )

    def resume(self) -> None:
        """Whatever the kernel was told meanwhile."""
        self._paused, self._plan = False, None
        self._apply()

    def inherit(self, state: DirectState, snapshot: Snapshot) -> None:
        """Begin with what the predecessor has told the kernel, under this snapshot: what is still right stays in force,
        also what was added because a pod asked."""
        entries = [VerdictEntry(source=k.source, destination=k.destination, port=k.port) for k in state.permitted]
        self._plan = Plan(
            sources={i: w for i in state.sources if (w := self.workload(snapshot, i)) is not None},
            targets={t.instance: Target(mode=t.mode, accelerate=t.accelerate) for t in state.targets},
            entries={entry.key: entry for entry in entries},
        )

    # What the kernel is told

    def swapped(self) -> None:
        """There is a new snapshot. Afterwards nothing that it refuses is open, or will be opened."""
        if self._paused:
            return
        self._apply()
        self._look(self._judge)

    def renew(self) -> None:
        """Pods of an agent before have been enrolled again."""
        self._renewed = True
        self._apply()

    def joined(self, instance: str) -> None:
        """The kernel has begun to capture a pod, or has new addresses of it. Its connections go through the tunnel
        until `run` tells the kernel of all that have joined by then: pods come in crowds."""
        self._leaving.discard(instance)
        self._renewed = True
        self._again.set()

    def leave(self, instance: str) -> None:
        """A pod is about to be un-enrolled: nobody reaches it directly from now on. What is open goes on."""
        self._leaving.add(instance)
        self._apply()

    def asked(self, connection: Connection) -> None:
        """A captured connection goes through the tunnel; the next one like it may be direct."""
        destination, upstream, made = connection.destination, connection.upstream, self._plan
        if self._paused:
            return
        if destination is None or upstream is None or made is None:
            return
        entry = direct.ask(self.snapshot(), made, Key(connection.pod, destination.instance, upstream.port))
        if entry is not None:
            made.entries[entry.key] = entry
            self._put((entry,))

    def not_direct(self, instance: str, found: Sequence[OlderConnection]) -> tuple[OlderConnection, ...]:
        """Those of a pod's connections that are not direct ones, of this agent's life or of one before; OSError. The
        kernel is asked after they were found, so that one which began meanwhile is not missed."""
        rest = _without(instance, found, [record.flow for record in self.flows.live.values()])
        return _without(instance, rest, self.flows.kernel.flows(self.flows.live)) if rest else ()

    def drawable(self, service: SocketAddress) -> frozenset[SocketAddress]:
        """The endpoints that the kernel itself draws where this is dialled; others are the agent's to draw."""
        balance = self._plan.services.spread.get(service) if self._plan is not None else None
        return frozenset(e.address for e in balance.endpoints) if balance is not None else frozenset()

    def _apply(self) -> None:
        snapshot = self.snapshot()
        if self._paused:
            return
        if self._plan is None and not snapshot.workloads and self.on:
            return  # nothing is known yet; what was pinned stays as it is, closed to everything undecided
        try:
            enrolled = self.kernel.pods().keys()
            self._leaving &= enrolled
            enrolled = enrolled - self._leaving if self.on else frozenset()
            pods = {i: w for i in sorted(enrolled) if (w := self.workload(snapshot, i)) is not None}
            made = direct.plan(snapshot, pods, before=self._plan)
            step = direct.change(self._plan, made)
            if step.services or self._renewed:
                self._full(self.kernel.set_services(made.services.spread), "Services")
            if step.revoking:
                self._full(self.kernel.switch(made.targets, step.entries), "answers")
            else:
                if step.targets or self._renewed:
                    self.kernel.set_targets(made.targets)
                self._put(step.entries)
        except Exception as error:
            self._plan = None
            with suppress(OSError):
                self.kernel.bump()  # what was permitted before may be forbidden now
            if not isinstance(
                error, OSError
            ):  # a fault of ours, which may be there again: tried when the next look is due
                log.exception("nothing is direct: it could not be planned who may talk directly")
                return
            self._again.set()
            log.error("the kernel could not be told who may talk directly; again in %s s: %s", _RETRY_SECONDS, error)
        else:
            self._plan, self._renewed = made, False
            if step.services:
                self.redrawn()

    def _put(self, entries: tuple[VerdictEntry, ...]) -> None:
        self._full(self.kernel.put_verdicts(entries) if entries else 0, "answers")

    def _full(self, left_out: int, what: str) -> None:
        if left_out:  # what has no entry asks the agent: slower, nothing else
            self.unfilled += left_out
            log.warning("%d %s found no room in the kernel", left_out, what)

    # What is open

    def _judge(self) -> None:
        """All of them, under this snapshot."""
        snapshot = self.snapshot()
        self._heard(self.flows.reconcile())
        for record in list(self.flows.live.values()):
            if record.condemned or record.arrival is None:
                continue
            try:
                detail = lost(snapshot, record.arrival)
            except Exception:  # a fault of ours costs this connection, not the swap and not the others
                log.exception("direct connection %d could not be judged anew", record.flow.id)
                detail = "it could not be judged anew"
            if detail:
                self._condemn(record, detail)
        self._execute()

    def _heard(self, records: Iterable[Record]) -> None:
        """Of new connections: one that began while a change was on its way has come too late."""
        for record in records:
            if record.refusal and not record.condemned:
                self._condemn(record, record.refusal)

    def _condemn(self, record: Record, detail: str) -> None:
        log.info("direct connection from %s to %s is closed: %s", record.flow.client, record.flow.server, detail)
        self.flows.condemn(record, detail)
        self._again.set()

    def _execute(self) -> None:
        """End what is condemned; until the kernel's list has it no longer, it is tried again."""
        self._end([record.flow for record in self.flows.live.values() if record.condemned])

    def _end(self, flows: Iterable[Flow]) -> None:
        """An error at both ends, each in its own netns: the one that is left has it, whichever is gone."""
        ends: dict[str, set[tuple[SocketAddress, SocketAddress]]] = {}
        for flow in flows:
            ends.setdefault(flow.source, set()).add((flow.client, flow.server))
            ends.setdefault(flow.destination, set()).add((flow.server, flow.client))
        for instance, addresses in ends.items():
            path = self.netns(instance)
            if path is None:
                continue
            try:
                netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    older.end(netns, addresses)
                finally:
                    os.close(netns)
            except OSError as error:
                log.warning(
                    "%d direct connections of pod %s stay open as yet: %s", len(addresses), self._title(instance), error
                )

    # What the kernel tells

    @property
    def knows(self) -> bool:
        """Whether there is something to judge connections by."""
        return bool(self.snapshot().workloads)

    def opened(self, flow: Flow) -> None:
        if self.knows:  # else it is found when there is something to judge it by
            self._heard([self.flows.opened(flow)])
            self._execute()

    def passed(self, like: Flow, each: Sequence[Passed]) -> bool:
        """They are over already, and alike; False: they are to be told one by one."""
        return not self.knows or self.flows.passed(like, each)

    def tallied(self, like: Flow, tally: Tally) -> None:
        """They came and went before anybody looked."""
        self.flows.tallied(like, tally)

    def find(self) -> None:
        """Flows that were opened since the last time."""
        self._look(self._find)

    def _find(self) -> None:
        fresh = self.flows.find()
        if fresh:
            self._heard(fresh)
            self._execute()

    def closed(self, flow: Heard) -> None:
        self.flows.closed(flow, closed_ns=flow.closed_ns)

    def mismatched(self, flows: Sequence[Flow]) -> None:
        """The address was another's. The kernel delivers nothing; the sources' sockets are ended here, all together: a
        pod that answers in another's place could have any number of them."""
        for flow in flows:
            detail = f"{flow.server} is not the address of the pod that was permitted"
            try:
                self.flows.refused(flow, Reason.MISMATCH, detail)
            except Exception:  # a fault of ours costs this record, not the others
                log.exception("direct connection that was astray: %r", flow)
        if flows:
            log.warning("%d direct connections were astray, the last one from %s: %s", len(flows), flow.client, detail)
            self._end(flows)

    def ready(self, flow: Flow, destination: int) -> None:
        """Neither end waits in its receives: from now on bytes may go from socket to socket. `destination` is a netns
        cookie. What cannot be promoted goes on by TCP."""
        try:
            with ExitStack() as held:
                source, target = (self._entered(held, instance) for instance in (flow.source, flow.destination))
                outcome = self.kernel.promoter.promote(
                    destination, flow.client, flow.server, at_source=source, at_destination=target
                )
        except OSError as error:
            log.warning("direct connection from %s to %s stays with TCP: %s", flow.client, flow.server, error)
        else:
            log.debug("direct connection from %s to %s: %s", flow.client, flow.server, outcome.name)

    def barred(self, flow: Flow, destination: int) -> None:
        """It was promoted, or is about to be, and needs TCP. Bytes go by TCP from now on; it is a TCP connection in
        every respect as soon as the others have been read."""
        self._barred[flow.id] = (flow, destination)
        self._again.set()
        try:
            self.kernel.promoter.close_lanes(destination, flow.client, flow.server)
        except OSError as error:
            log.warning("direct connection from %s to %s goes past TCP still: %s", flow.client, flow.server, error)

    def _demote(self) -> None:
        for id_, (flow, destination) in list(self._barred.items()):
            try:
                outcome = self.kernel.promoter.demote(destination, flow.client, flow.server)
            except OSError as error:
                log.warning("direct connection from %s to %s is not demoted: %s", flow.client, flow.server, error)
                continue
            if outcome.name != "UNREAD":
                del self._barred[id_]

    def drained(self, event: object, sender: str) -> None:
        """A reader may wait for bytes that are there; `sender` is the instance at the other end."""
        try:
            with ExitStack() as held:
                self.kernel.nudge(event, at_sender=self._entered(held, sender))
        except OSError as error:
            log.warning("a reader at the other end of pod %s could not be woken: %s", self._title(sender), error)

    def _entered(self, held: ExitStack, instance: str) -> int:
        """File descriptor of the pod's network namespace, closed with `held`."""
        path = self.netns(instance)
        if path is None:
            raise OSError(f"pod {self._title(instance)} is not here any more")
        netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        held.callback(os.close, netns)
        return netns

    def _title(self, instance: str) -> str:
        """What log lines call a pod."""
        found = self.workload(self.snapshot(), instance)
        return f"{found.namespace}/{found.name}" if found is not None else instance

    async def run(self) -> None:
        """Retry what failed, end what would not end, find what no event told."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._again.wait()
                    await asyncio.sleep(_RETRY_SECONDS)
            self._again.clear()
            if self._renewed or self._plan is None or not self._plan.services.complete:
                self._apply()
            self._look(self._heard_of_all)
            self._demote()

    def _heard_of_all(self) -> None:
        self._heard(self.flows.reconcile())
        self._execute()

    def _look(self, what: Callable[[], None]) -> None:
        if not self.knows:
            return
        try:
            what()
        except OSError as error:
            self._again.set()
            log.warning("direct connections cannot be listed; again in %s s: %s", _RETRY_SECONDS, error)


def _without(instance: str, found: Sequence[OlderConnection], flows: Iterable[Flow]) -> tuple[OlderConnection, ...]:
    ends = set()
    for flow in flows:  # no instance: it was not enrolled when it was looked at last
        if flow.source in (instance, ""):
            ends.add((flow.client, flow.server))
        if flow.destination in (instance, ""):
            ends.add((flow.server, flow.client))
    return tuple(one for one in found if (one.local, one.remote) not in ends)
