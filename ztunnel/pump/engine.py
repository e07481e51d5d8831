"""The `Engine` of ztunnel.orders on native threads: facts out, orders in; no byte of a connection comes by here."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bpf.netns import cookie_of
from mesh.identity import SpiffeId
from mesh.model import SocketAddress
from mesh.reason import Reason
from ztunnel.orders import (
    Begun,
    Captured,
    Close,
    Credentials,
    Deaf,
    Ended,
    Fact,
    Listeners,
    Offered,
    Opened,
    Order,
    Passed,
    Plaintext,
    Refuse,
    RelayPlain,
    RelayTunnel,
    Standing,
    Steering,
)
from ztunnel.pump import asked, standing
from ztunnel.pump.addresses import Told, address
from ztunnel.pump.census import Census, take
from ztunnel.pump.limits import Limits
from ztunnel.pump.listeners import adopt, close_all, listen
from ztunnel.pump.maps import Maps
from ztunnel.pump.pod import Pod
from ztunnel.pump.standing import StandingOrders
from ztunnel.pump.threads import begin
from ztunnel.pump.tunnel_key import packed

_log = logging.getLogger(__name__)
_FACTS = 128  # reported at once: some 50 ms of decisions


class PumpEngine:
    """Facts are reported in batches, from a callback on the event loop that runs when it is made."""

    def __init__(
        self,
        steering: Steering,
        report: Callable[[Sequence[Fact]], None],
        *,
        limits: Limits | None = None,
        threads: int = 1,
        accelerated: bool = False,
        maps: Maps | None = None,
    ) -> None:
        """`accelerated`: the kernel may hand bytes between applications and us from socket to socket. Without `maps` no
        order stands."""
        self._loop = asyncio.get_running_loop()
        self._limits = limits or Limits()
        self._steering, self._report = steering, report
        self._pump = begin(self._limits, threads, accelerated, maps)
        self._standing = StandingOrders(self._pump)
        self._stopped = False
        self._pods: dict[str, Pod] = {}
        self._numbered: dict[int, Pod] = {}  # gone ones too, until the thread has said so
        self._last_pod = 0
        self._owners: dict[int, Pod] = {}  # live connections
        self._undecided: set[int] = set()
        self._strays: set[int] = set()  # nobody was told of them
        self._own_refused: Counter[Reason] = Counter()
        self._emptied = asyncio.Event()  # for drain: something ended
        self._draining = False
        self._loop.add_reader(self._pump.fileno(), self._take_some_facts)

    @property
    def held(self) -> tuple[int, int, int]:
        """Descriptors of sockets, open or promised; bytes in tunnels' buffers; bytes by which windows have grown."""
        return self._pump.held

    @property
    def refused(self) -> Mapping[Reason, int]:
        """Connections turned away before they had an id, since the start: failed handshakes, limits, stray captures."""
        return self._own_refused + Counter({Reason(number): count for number, count in self._pump.refused.items()})

    # The protocol

    def add_pod(
        self,
        pod: str,
        netns: int,
        trust_domain: str,
        addresses: Sequence[str],
        listeners: Listeners | None = None,
        *,
        title: str = "",
    ) -> Listeners:
        """OSError if the netns cannot be entered or has no loopback. ValueError if the pod has listeners already. One
        that was removed with `listeners_only` and has open connections still keeps them."""
        sockets = [] if listeners is None else adopt(listeners, self._limits.socket_backlog)
        try:
            if self._draining:
                raise ValueError(f"pod {pod}: the engine is draining")
            state = self._pods.get(pod)
            if state is not None and state.listening:
                raise ValueError(f"pod {pod} was added already")
            sockets = sockets or listen(netns, self._limits.socket_backlog)
            cookie = next(cookie_of(sock) for sock in sockets if sock is not None)
        except BaseException:
            close_all(sockets)
            raise
        if state is None:
            self._last_pod += 1
            state = Pod(name=pod, title=title or pod, number=self._last_pod, netns=-1, cookie=0, addresses=())
            self._pods[pod] = self._numbered[state.number] = state
        elif state.netns >= 0:
            os.close(state.netns)
        state.netns, state.addresses, state.listening = os.dup(netns), tuple(addresses), True
        state.cookie = cookie
        fds = [None if sock is None else sock.detach() for sock in sockets]
        state.life += 1
        title, own = state.title, os.dup(netns)
        _done("add", title, self._pump.pod(state.number, state.life, title, trust_domain, own, cookie, fds))
        self._standing.lapse(state.number, [state])
        outbound4, outbound6, plaintext4, plaintext6, tunnel4, tunnel6 = fds
        assert outbound4 is not None and plaintext4 is not None and tunnel4 is not None
        return Listeners(
            outbound4=outbound4,
            outbound6=outbound6,
            plaintext4=plaintext4,
            plaintext6=plaintext6,
            tunnel4=tunnel4,
            tunnel6=tunnel6,
        )

    def start_pod(self, pod: str) -> None:
        self._pump.start(self._pods[pod].number)

    def pause(self) -> None:
        _done("pause", "all", self._pump.pause())

    def set_credentials(self, pod: str, credentials: Credentials) -> None:
        """ValueError: not usable; what the pod had before stays."""
        state = self._pods.get(pod)
        if state is not None:
            self._pump.credentials(state.number, credentials)

    def remove_pod(self, pod: str, *, listeners_only: bool = False) -> None:
        state = self._pods.get(pod)
        if state is None:
            return
        state.listening = False
        if listeners_only:
            _done("close listeners of", state.title, self._pump.unlisten(state.number))
        else:
            del self._pods[pod]
            _done("remove", state.title, self._pump.drop(state.number, Reason.POD_GONE))

    def order(self, order: Order) -> None:
        owner = self._owners.get(order.id)
        if owner is None:
            return
        self._undecided.discard(order.id)
        try:
            self._carry_out(order, owner)
        except Exception:
            _log.exception("connection %d: %s could not be carried out", order.id, order)
            self._pump.fail(order.id, Reason.INTERNAL, "an order could not be carried out", True)

    def stands(self, id_: int) -> bool:
        return id_ in self._owners and self._standing.wanted(id_, self._owners[id_])

    def stand(self, standing: Standing) -> None:
        if standing.id in self._owners:
            self._standing.give(standing, self._owners[standing.id])

    def lapse(self) -> None:
        if not self._stopped:
            self._standing.lapse(0, list(self._numbered.values()))

    async def settled(self) -> None:
        await self._standing.settled()

    def counts(self) -> Mapping[int, tuple[int, int]]:
        counts = self._pump.counts()
        for stray in self._strays:
            counts.pop(stray, None)
        return counts

    def census(self) -> Census:
        """Asks the threads, which takes some milliseconds while they are busy."""
        return take(self._pump, lambda number: self._numbered[number].name)

    def pulses(self) -> Mapping[str, tuple[int, bool]]:
        return {f"pump-{i}": pulse for i, pulse in enumerate(self._pump.pulses())}

    async def drain(self, deadline: float) -> None:
        self._draining = True
        for pod in list(self._pods.values()):
            pod.listening = False
            _done("close listeners of", pod.title, self._pump.unlisten(pod.number))
            self._pump.retire(pod.number)
        try:
            async with asyncio.timeout(deadline):
                while self._owners or self._pump.tunnels or self._pump.connections:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            if self._owners:
                _log.info("the drain deadline has passed with %d connections open", len(self._owners))
        for pod in list(self._pods.values()):
            _done("remove", pod.title, self._pump.drop(pod.number, Reason.DRAINED))
        self._stopped = True
        await asyncio.to_thread(self._pump.stop)
        self._loop.remove_reader(self._pump.fileno())
        while self._take_some_facts():  # noqa: ASYNC110 - there is nothing to wait for
            await asyncio.sleep(0)  # others have their turn
        self._standing.end()

    # Orders

    def _carry_out(self, order: Order, pod: Pod) -> None:
        match order:
            case Close():
                self._pump.fail(order.id, order.reason, order.detail, True)
            case Refuse():
                self._pump.fail(order.id, order.reason, order.detail, False)
            case RelayPlain():
                self._plain(order, pod)
            case RelayTunnel():
                self._tunnel(order, pod)

    def _plain(self, order: RelayPlain, pod: Pod) -> None:
        destination = order.destination
        try:
            fd, cookie = self._pump.socket(pod.netns, ":" in destination.ip, order.bind)
        except OSError as error:
            self._pump.fail(order.id, Reason.CONNECT_FAILED, error.strerror, False)
            return
        announced = False
        try:
            if order.as_client is not None:
                self._steering.announce(cookie, order.as_client)
                announced = True
            announced_as = cookie if announced else 0
            self._pump.plain(order.id, fd, announced_as, destination.ip, destination.port, order.response_headers)
        except BaseException:
            os.close(fd)
            if announced:
                self._steering.withdraw(cookie)
            raise

    def _tunnel(self, order: RelayTunnel, pod: Pod) -> None:
        key, source, expected = packed(order.key, pod.name)
        self._pump.tunnel(order.id, key, source, expected, *order.key.address, order.authority, order.headers)

    # Facts

    def _take_some_facts(self) -> bool:
        """Not all at once: between them others have their turn. False: there were none."""
        told = self._pump.facts(_FACTS)
        facts = [fact for kind, *fields in told if (fact := self._read(kind, fields)) is not None]
        if facts:
            self._tell(facts)
        return bool(told)

    def _read(self, kind: str, fields: Sequence[Any]) -> Fact | None:
        """What cannot be read costs its own connection, not all that were reported with it."""
        try:
            return _READERS[kind](self, *fields)
        except Exception:
            _log.exception("fact %s of %s could not be read", kind, fields[0])
            if kind in ("captured", "plaintext", "offered"):
                self._untold(fields[0], Reason.INTERNAL)
            elif kind == "begun":  # nobody could judge it
                self._pump.fail(fields[0], Reason.INTERNAL, "a fault of the agent", True)
            return None

    def _tell(self, facts: Sequence[Fact]) -> None:
        try:
            self._report(facts)
        except Exception:
            _log.exception("facts could not be reported")
            for fact in facts:
                if isinstance(fact, Captured | Plaintext | Offered) and fact.id in self._undecided:  # and stays so
                    self._pump.fail(fact.id, Reason.INTERNAL, "a fault of the agent", False)

    def _asked(self, number: int, pod: int, kind: bytes) -> Pod:
        owner = self._owners[number] = self._numbered[pod]
        self._undecided.add(number)
        self._standing.asked(number, kind)
        return owner

    def _captured(self, number: int, pod: int, peer: Told, local: Told, kind: bytes) -> Captured | None:
        owner, client, listener = self._asked(number, pod, kind), address(*peer), address(*local)
        dialled = self._steering.original_destination(owner.cookie, listener, client)
        if dialled is None:
            return self._stray(number, owner, client, listener)
        return asked.captured(number, owner, client, dialled)

    def _plaintext(self, number: int, pod: int, peer: Told, local: Told, kind: bytes) -> Plaintext | None:
        owner, client, dialled = self._asked(number, pod, kind), address(*peer), address(*local)
        if (dialled.ip.startswith("127.") or dialled.ip == "::1") and dialled.ip not in owner.addresses:
            # The pod dialled our listener by its own port; relayed to where it was addressed, it would come back here.
            return self._stray(number, owner, client, dialled)
        return Plaintext(id=number, pod=owner.name, client=client, destination=dialled)

    def _untold(self, number: int, reason: Reason) -> None:
        """Refused, and nobody hears of it."""
        self._own_refused[reason] += 1
        self._undecided.discard(number)
        self._strays.add(number)
        self._pump.fail(number, reason, "", False)

    def _stray(self, number: int, pod: Pod, client: SocketAddress, local: SocketAddress) -> None:
        self._untold(number, Reason.NO_DESTINATION)
        _log.debug("refused (NO_DESTINATION): %s: %s to %s", pod.title, client, local)

    def _offered(self, number: int, pod: int, *rest: Any) -> Offered:
        *request, kind = rest
        return asked.offered(number, self._asked(number, pod, kind), *request)

    def _begun(self, number: int, pod: int, *rest: Any) -> Begun:
        owner = self._owners[number] = self._numbered[pod]
        return standing.begun(owner, number, *rest)

    def _passed(self, pod: int, *rest: Any) -> Passed:
        self._emptied.set()
        return standing.passed(self._numbered[pod], *rest)

    def _lapsed(self, fence: int) -> None:
        self._standing.lapsed(fence)

    def _spent(self, pod: int, first: int) -> None:
        self._numbered[pod].book.spent(first, self._pump.threads)

    def _opened(self, number: int, peer: str, upstream: Told) -> Opened:
        return Opened(id=number, peer=SpiffeId.parse(peer) if peer else None, upstream=address(*upstream))

    def _ended(self, number: int, reason: int, detail: str, sent: int, received: int) -> Ended | None:
        self._owners.pop(number, None)
        self._undecided.discard(number)
        self._standing.answered(number)
        self._emptied.set()
        if number in self._strays:
            self._strays.remove(number)
            return None
        return Ended(id=number, reason=Reason(reason), detail=detail, sent=sent, received=received)

    def _deaf(self, pod: int) -> Deaf | None:
        owner = self._numbered[pod]
        _log.warning("a listener of pod %s was destroyed from outside", owner.title)
        return Deaf(pod=owner.name)

    def _turned_away(self, reason: int, text: str) -> None:
        _log.info("refused (%s): %s", Reason(reason).name, text)

    def _told(self, text: str) -> None:
        _log.warning("%s", text)

    def _pod_gone(self, number: int, life: int) -> None:
        pod = self._numbered.get(number)
        if pod is None or pod.life != life:  # what is on its way may outlast the life it was sent in
            return
        del self._numbered[number]
        if self._pods.get(pod.name) is pod:
            del self._pods[pod.name]
        os.close(pod.netns)
        pod.netns = -1
        self._emptied.set()

    def _quiet(self, _: int = 0) -> None:
        self._emptied.set()


def _done(what: str, pod: str, done: bool) -> None:
    if not done:
        _log.error("%s pod %s: a thread that is stuck has not done its part; it will when it goes on", what, pod)


_READERS: dict[str, Callable[..., Fact | None]] = {
    "captured": PumpEngine._captured,
    "plaintext": PumpEngine._plaintext,
    "offered": PumpEngine._offered,
    "begun": PumpEngine._begun,
    "passed": PumpEngine._passed,
    "lapsed": PumpEngine._lapsed,
    "spent": PumpEngine._spent,
    "opened": PumpEngine._opened,
    "ended": PumpEngine._ended,
    "deaf": PumpEngine._deaf,
    "turned away": PumpEngine._turned_away,
    "log": PumpEngine._told,
    "withdraw": lambda self, cookie: self._steering.withdraw(cookie),
    "pod gone": PumpEngine._pod_gone,
    "quiet": PumpEngine._quiet,
}
