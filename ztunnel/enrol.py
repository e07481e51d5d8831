"""Enrolment: makes the kernel side and the engine of each pod what its record and its workload ask for.

`ztunnel.step` says what one pod needs next; `Pod` carries it out, one step at a time, in a task of its own, so that a
pod that fails or hangs is retried alone. A pod enters with a certificate in hand and its listeners up before
the controller hears of it; only then do peers use its tunnel. Pods that an earlier agent left pinned are adopted:
they are captured already, so they are served at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bpf.netns import entered
from mesh.control import PodStatus, Redirection
from mesh.identity import SpiffeId
from mesh.model import Workload
from mesh.snapshot import Snapshot
from ztunnel import older
from ztunnel.gate import Gate
from ztunnel.handover import giver
from ztunnel.handover.channel import close_all
from ztunnel.handover.heir import PodInheritance
from ztunnel.handover.message import PodEstate
from ztunnel.older import OlderConnection
from ztunnel.orders import Credentials, Engine, Listeners
from ztunnel.pods import PodRecord
from ztunnel.step import Shape, Step, step

log = logging.getLogger(__name__)

_RETRY_FIRST = 0.5
_RETRY_LIMIT = 30.0
_OLDER_SECONDS = 10.0  # how often it is looked whether older connections have ended
# Connections that the hooks redirected just before they were detached are still to be accepted.
_LEAVE_SECONDS = 0.5
# The last hop goes from the pod's address to the pod's address: a busy server would have its 28 k ports in TIME_WAIT
# within half a minute of 1,000 short connections a second. 1: taken again after a second (timestamps make it safe).
_REUSE = "1"
_REUSE_PATH = Path("/proc/sys/net/ipv4/tcp_tw_reuse")


def reuse_ports(netns: int, value: str) -> str:
    """Set net.ipv4.tcp_tw_reuse in a pod's netns; what it was, or empty where it cannot be set: ports then run out
    earlier, nothing else."""
    try:
        with entered(netns):
            before = _REUSE_PATH.read_text().strip()
            if before != value:
                _REUSE_PATH.write_text(value)
            return before
    except OSError as error:
        log.warning("%s cannot be set to %s: %s", _REUSE_PATH, value, error)
        return ""


class Capture(Protocol):
    """What enrolment needs of the kernel side (implemented by `bpf.Kernel`)."""

    def enrol(self, instance: str, netns_fd: int, addresses: Sequence[str], listeners: Listeners) -> object: ...
    def unenrol(self, instance: str) -> None: ...


class Credentialed(Protocol):
    """What enrolment needs of the certificates."""

    def want(self, identity: SpiffeId) -> None: ...
    def release(self, identity: SpiffeId) -> None: ...
    def current(self, identity: SpiffeId) -> Credentials | None: ...
    def error(self, identity: SpiffeId) -> str: ...


class Reporting(Protocol):
    """What enrolment needs of the stream to the controller."""

    def report(self, status: PodStatus) -> None: ...
    def forget(self, instance: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all pods of a node share."""

    kernel: Capture
    engine: Engine
    certificates: Credentialed
    reporting: Reporting
    snapshot: Callable[[], Snapshot]
    joined: Callable[[str], None] = lambda _: None  # a pod (instance) has been enrolled in the kernel
    leaving: Callable[[str], None] = lambda _: None  # and is about to be taken out of it
    # Of connections that a pod has, those that are not direct: they are no plaintext, however old
    not_direct: Callable[[str, Sequence[OlderConnection]], tuple[OlderConnection, ...]] = lambda _, found: tuple(found)
    agents: Callable[[], Iterable[int]] = tuple  # other agents' processes: one that was replaced may still drain
    gate: Gate = field(default_factory=Gate)  # closed while another agent takes over
    own_netns: int  # inode of the node's network namespace: a pod in it is host-network, whatever its record says


@dataclass(slots=True, kw_only=True, eq=False)
class Pod:
    """One pod of this node; `redirection` and `error` are what the controller is told."""

    around: Surroundings
    record: PodRecord | None
    instance: str
    namespace: str
    name: str
    adopted: bool = False
    redirection: Redirection = Redirection.DISABLED
    error: str = ""
    older: tuple[OlderConnection, ...] = ()
    inherited: PodInheritance | None = None  # from the agent before; taken once
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # it has been seen to once, whatever came of it
    _listeners: Listeners | None = None
    _inside: Shape | None = None
    _wanted: SpiffeId | None = None
    _seen: Workload | None = None  # when it was last looked at what it needs
    _netns: int = -1
    _reuse: str = ""  # what the pod's netns had before; empty: not changed
    _attempts: int = 0
    _deaf: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def workload(self) -> Workload | None:
        return self.around.snapshot().workload_of_pod(self.instance, self.namespace, self.name)

    @property
    def identity(self) -> SpiffeId | None:
        """The identity it is enrolled as."""
        return self._inside.identity if self._inside is not None else None

    @property
    def serving(self) -> bool:
        return self._inside is not None

    @property
    def wanted(self) -> SpiffeId | None:
        """The identity whose certificate it has, or waits for."""
        return self._wanted

    def wake(self) -> None:
        """Something it depends on has changed."""
        self._changed.set()

    def swapped(self) -> None:
        """There is a new snapshot: most of them change nothing for most pods."""
        if self.older or self.workload is not self._seen:
            self._changed.set()

    def deaf(self) -> None:
        """A listener of the agent's is gone, although nobody here closed it."""
        self._deaf = True
        self._changed.set()

    async def run(self) -> None:
        """Follow what is asked for until the pod is deleted; its failures are its own."""
        while True:
            self._changed.clear()
            try:
                async with self.around.gate.passed():
                    if await self._advance():
                        return
                self._attempts = 0
                timeout = _OLDER_SECONDS if self.older else None
            except Exception as error:
                self._attempts += 1
                timeout = min(_RETRY_LIMIT, _RETRY_FIRST * 2.0 ** min(self._attempts - 1, 10))
                redirection = Redirection.ENABLED if self.serving else Redirection.PENDING
                self._tell(redirection, f"{type(error).__name__}: {error}")
                log.warning(
                    "pod %s/%s is not as it should be (attempt %d, again in %.1f s): %s",
                    self.namespace,
                    self.name,
                    self._attempts,
                    timeout,
                    error,
                    exc_info=not isinstance(error, OSError),
                )
            self.settled.set()
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _advance(self) -> bool:
        """Steps until there is nothing left to do; True: the pod is gone."""
        if self._deaf:
            self._deaf = False
            self._hang_up()
        while True:
            workload = self._seen = self.workload
            self._want(workload)
            match step(
                self.record,
                workload,
                inside=self._inside,
                adopted=self.adopted,
                certified=self._wanted is not None and self.around.certificates.current(self._wanted) is not None,
            ):
                case Step.GO:
                    self._go()
                    return True
                case Step.LEAVE:
                    await self._leave()
                case Step.REENTER:
                    self._drop()
                case Step.ENTER:
                    assert workload is not None
                    await self._enter(workload)
                case Step.AWAIT_CERTIFICATE:
                    assert self._wanted is not None
                    why = self.around.certificates.error(self._wanted)
                    self._tell(Redirection.PENDING, f"no certificate for {self._wanted} yet{why and ': ' + why}")
                    return False
                case Step.REST:
                    await self._judge_older(workload)
                    return False

    def _want(self, workload: Workload | None) -> None:
        """Hold a claim to the certificate of the identity the pod is, or shall be, enrolled as."""
        if self.record is None or (workload is not None and not workload.capture):
            identity = None
        elif workload is None:
            identity = self._wanted
        else:
            identity = workload.identity
        if identity == self._wanted:
            return
        if identity is not None:
            self.around.certificates.want(identity)
        if self._wanted is not None:
            self.around.certificates.release(self._wanted)
        self._wanted = identity

    async def _enter(self, workload: Workload) -> None:
        record, around = self.record, self.around
        assert record is not None
        shape = Shape.of(record, workload)
        self._close_netns()
        self._netns = os.open(record.netns, os.O_RDONLY | os.O_CLOEXEC)
        if os.fstat(self._netns).st_ino == around.own_netns:
            raise ValueError(f"{record.netns} is the node's own network namespace; host-network pods are not enrolled")
        inherited, self.inherited = self.inherited, None
        given = inherited.listeners if inherited is not None else None
        self._listeners = around.engine.add_pod(
            self.instance,
            self._netns,
            workload.trust_domain,
            shape.addresses,
            given,
            title=f"{self.namespace}/{self.name}",
        )
        try:
            before = reuse_ports(self._netns, _REUSE)
            around.kernel.enrol(self.instance, self._netns, shape.addresses, self._listeners)
            if inherited is not None:
                self._reuse, self.older = inherited.estate.reuse, inherited.estate.older
            else:
                around.joined(self.instance)
                # Before the engine makes sockets of its own in there.
                self._reuse = before
                found = await asyncio.to_thread(older.find, self.instance, self._netns, around.agents())
                self.older = around.not_direct(self.instance, found)
            # Nothing is awaited from here until the pod is inside: a certificate that came meanwhile is here, one that
            # comes later finds the pod (`Pods.certified`).
            credentials = around.certificates.current(shape.identity)
            if credentials is not None:
                around.engine.set_credentials(self.instance, credentials)
            around.engine.start_pod(self.instance)
        except BaseException:
            self._undo()
            raise
        self._inside, self.adopted = shape, False
        self._tell(Redirection.ENABLED, "", workload)
        log.info("pod %s/%s is enrolled as %s", self.namespace, self.name, shape.identity)

    def legacy(self) -> giver.Pod | None:
        """What another agent needs to serve this pod; None while it is not served."""
        if self._inside is None or self._listeners is None:
            return None
        present = giver.presence_of(self._listeners)
        estate = PodEstate(instance=self.instance, present=present, reuse=self._reuse, older=self.older)
        return giver.Pod(estate=estate, listeners=self._listeners)

    def resume(self) -> None:
        """Another agent was about to take over and has not: serve on. OSError."""
        if self._inside is not None and self._listeners is not None:
            self.around.kernel.enrol(self.instance, self._netns, self._inside.addresses, self._listeners)
            self.around.engine.start_pod(self.instance)

    def _undo(self) -> None:
        """A half-made enrolment: out of the kernel first, so that nothing is steered to listeners that are gone. One
        that was adopted stays captured: closed, until it succeeds."""
        if not self.adopted:
            self.around.leaving(self.instance)
            try:
                self.around.kernel.unenrol(self.instance)
            except OSError as error:
                log.error("pod %s/%s stays captured, without service: %s", self.namespace, self.name, error)
                self.adopted = True
        self.around.engine.remove_pod(self.instance)

    async def _leave(self) -> None:
        """Un-enrol a pod that lives on. What is open goes on; the kernel keeps what those sockets need."""
        served = self._inside is not None
        self.around.leaving(self.instance)
        self.around.kernel.unenrol(self.instance)
        if self._reuse:
            reuse_ports(self._netns, self._reuse)
        self._inside, self.adopted, self.older = None, False, ()
        self._tell(Redirection.DISABLED, "")
        log.info("pod %s/%s is no longer enrolled", self.namespace, self.name)
        if served:
            try:
                await asyncio.sleep(_LEAVE_SECONDS)
            finally:
                self.around.engine.remove_pod(self.instance, listeners_only=True)

    def _drop(self) -> None:
        """Identity, addresses or netns have changed: begin anew, closed meanwhile."""
        self.around.engine.remove_pod(self.instance)
        self._inside, self.adopted = None, True

    def _hang_up(self) -> None:
        """To be enrolled anew, but not at once: whoever destroys listeners in the pod would keep this agent busy. What
        is open goes on; OSError says why nothing new comes."""
        if self._inside is None:
            return
        self.around.engine.remove_pod(self.instance, listeners_only=True)
        self._inside, self.adopted = None, True
        raise OSError("a process of the pod destroyed the agent's listeners in its netns (has it NET_ADMIN?)")

    def _go(self) -> None:
        self._forgo()
        self.around.engine.remove_pod(self.instance)
        self.around.leaving(self.instance)
        try:
            self.around.kernel.unenrol(self.instance)
        except OSError as error:
            log.warning(
                "pod %s/%s: what the kernel held of it could not be removed: %s", self.namespace, self.name, error
            )
        self._close_netns()
        self._inside = None
        self.around.reporting.forget(self.instance)
        log.info("pod %s/%s is gone", self.namespace, self.name)

    async def _judge_older(self, workload: Workload | None) -> None:
        """Forget the connections older than the enrolment that have ended, close those that policy forbids."""
        if not self.older or workload is None or self._inside is None:
            return
        present = await asyncio.to_thread(older.still_open, self.older, self._netns)
        condemned = older.forbidden(self.around.snapshot(), workload, present)
        for connection, why in condemned:
            log.info(
                "pod %s/%s: connection from %s to %s is older than the enrolment and not permitted: %s; closed",
                self.namespace,
                self.name,
                connection.remote,
                connection.local,
                why,
            )
        if condemned:
            await asyncio.to_thread(older.destroy, self._netns, [c for c, _ in condemned])
        closed = {c.id for c, _ in condemned}
        self.older = tuple(c for c in present if c.id not in closed)

    def _tell(self, redirection: Redirection, error: str, workload: Workload | None = None) -> None:
        self.redirection, self.error = redirection, error
        if redirection is Redirection.PENDING and self.adopted:
            return  # peers must not fall back to plaintext because an agent is still coming up
        found = workload or self.workload
        if found is None:
            return
        status = PodStatus(uid=found.uid, instance=self.instance, redirection=redirection, error=error)
        self.around.reporting.report(status)

    def _close_netns(self) -> None:
        if self._netns >= 0:
            os.close(self._netns)
            self._netns = -1

    def stop(self) -> None:
        """The agent stops: let go of what only this process holds; the kernel side stays, closed."""
        self._close_netns()
        self._forgo()

    def _forgo(self) -> None:
        """Listeners of an agent before that are of no use any more."""
        inherited, self.inherited = self.inherited, None
        if inherited is not None:
            close_all(giver.descriptors_of(inherited.listeners))
