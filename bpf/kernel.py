"""Kernel: the kernel side as the agent uses it."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bpf import compile, nudge, pin, preflight
from bpf.artifact import Artifact
from bpf.cgroup import Cgroup
from bpf.direct import DirectFlow, DirectPath, Target, VerdictEntry
from bpf.enrolment import Enrolment, Listeners
from bpf.events import Ring, Rings
from bpf.facts import Description, describe
from bpf.hooks import Hooks
from bpf.layouts import (
    COOKIE,
    DESTINATION,
    ENDPOINT,
    INDEX,
    REASONS,
    SETTINGS,
    DirectDrained,
    pack_cidr,
    pack_ip,
    pack_tuple,
    unpack_drawn,
    unpack_ip,
)
from bpf.ledger import Ledger
from bpf.maps import Map
from bpf.promote import Promoter
from bpf.registry import DEFINITION as REGISTRY
from bpf.registry import PodSlot, Registry
from bpf.services import Services
from mesh.balance import Balance
from mesh.model import Dialled, SocketAddress
from mesh.reason import Reason

QUOTA = 16384  # connections that one pod may have open: captured, or to its own addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What it was opened with. `cgroups`: ids and levels of the agent's and the kubelet's."""

    node: Cgroup
    cgroups: Sequence[int]
    quota: int
    accelerate: bool
    direct: bool


class Kernel:
    """One node's kernel side. For one thread: the agent's event loop. `ledger`: how ended direct flows are told."""

    def __init__(
        self, pins: Path, artifact: Artifact, maps: Mapping[str, Map], registry: Map, settings: Settings
    ) -> None:
        self._pins = pins
        self._artifact = artifact
        self._settings = settings
        self._maps = maps
        self._registry_map = registry
        self._registry = Registry(registry)
        self._folder = pins / artifact.layout
        self._hooks = Hooks(self._folder, artifact, {name: map.fd for name, map in maps.items()})
        self._rings: Rings | None = None
        self._promoter: Promoter | None = None
        self._direct = DirectPath(maps)
        self._enrolment = Enrolment(
            maps=maps,
            registry=self._registry,
            hooks=self._hooks,
            direct=self._direct,
            layout=artifact.layout_id,
            folders=partial(pin.layouts, pins),
        )
        self.ledger = Ledger(maps)
        self._services = Services(maps["services"])
        self.captured, self.announced = maps["captured"], maps["announced"]

    @classmethod
    def open(
        cls,
        pins: Path,
        *,
        cgroup: Path,
        agent_cgroup: Path,
        kubelet_cgroup: Path | None,
        cache: Path = compile.CACHE,
        quota: int = QUOTA,
        accelerate: bool = False,
        direct: bool = False,
        succeeding: bool = False,
    ) -> Kernel:
        """Load, or adopt what a former agent left pinned and replace its programs by these, without a gap.

        `pins` is a directory in a bpffs; it is made if need be. PreflightError names what is missing here.
        `accelerate`: direct flows and loopback legs may be promoted. `direct`: connections take the direct path where
        targets and verdicts say so; those that a former agent wrote stay in force, under the same generation.
        Announcements of a former agent are forgotten; its listeners are gone with it, so adopted pods are closed until
        `set_listeners` or `enrol`. `succeeding`: the former agent lives, its announcements and listeners are good.
        """
        node, cgroups = preflight.check(pins, cgroup, agent_cgroup, kubelet_cgroup)
        if accelerate:
            preflight.can_accelerate()
        artifact = compile.build(cache)
        settings = Settings(node=node, cgroups=cgroups, quota=quota, accelerate=accelerate, direct=direct)
        pins.mkdir(mode=0o700, exist_ok=True)
        with pin.locked(pins):
            registry = pin.adopt_map(pins / "registry", REGISTRY)
            self = cls(pins, artifact, pin.adopt_maps(pins, artifact), registry, settings)
            try:
                if not succeeding:
                    for key in self.announced.walk():
                        self.announced.delete(key)
                self._attach()
                self._collect()
            except BaseException:
                self.close()
                raise
        return self

    def reassert(self) -> None:
        """These programs and settings again, whatever another agent has attached and set since; pods that it has
        enrolled are to be enrolled again."""
        with pin.locked(self._pins):
            self._attach()

    @property
    def layout(self) -> str:
        """Names the maps: what one agent wrote, another finds if this is equal."""
        return self._artifact.layout

    def close(self) -> None:
        """Let go of the file descriptors; programs, maps and pins stay, and enrolled pods stay captured."""
        if self._rings is not None:
            self._rings.close()
            self._rings = None
        if self._promoter is not None:
            self._promoter.close()
            self._promoter = None
        for map in (*self._maps.values(), self._registry_map):
            map.close()

    def unload(self) -> None:
        """Un-enrol everything, detach every program of every layout, remove every pin, and close."""
        pin.remove(self._pins)
        self.close()

    # Pods

    def pods(self) -> dict[str, PodSlot]:
        """Enrolled pods by instance; after a restart those that the former agent enrolled."""
        return self._registry.pods()

    def enrol(
        self, instance: str, netns_fd: int, addresses: Sequence[str], listeners: Listeners | None = None
    ) -> PodSlot:
        """Capture a pod: afterwards its new connections go to the listeners, in and out, and nowhere else.

        `addresses` are the pod's own; the first of each family is what getsockname() shows. Nothing is captured before
        everything is in place; without `listeners` the pod is closed until `set_listeners`. Again for an enrolled pod:
        addresses, listeners and programs are renewed. ValueError: not a pod's netns, or another pod has it.
        """
        with pin.locked(self._pins):
            self._collect()
            return self._enrolment.enrol(instance, netns_fd, addresses, listeners)

    def set_listeners(self, slot: int, listeners: Listeners) -> None:
        """Steer to these listening sockets from now on. A socket that is closed leaves by itself."""
        self._enrolment.set_listeners(slot, listeners)

    def unenrol(self, instance: str) -> None:
        """Stop capturing; unknown instances are ignored. What open sockets see stays true until they close."""
        with pin.locked(self._pins):
            self._collect()
            pod = self._registry.pods().get(instance)
            if pod is not None:
                self._enrolment.remove(pod)

    def set_bypass(self, cidrs: Iterable[str]) -> None:
        """Connections to these networks are never captured. ValueError if one is no CIDR, with nothing changed."""
        wanted = {pack_cidr(cidr) for cidr in cidrs}
        trie = self._maps["bypass"]
        for key in set(trie.walk()) - wanted:
            trie.delete(key)
        for key in wanted:
            trie.put(key, INDEX.pack(1))

    # Per connection: ztunnel's Steering

    def original_destination(self, cookie: int, local: SocketAddress, peer: SocketAddress) -> Dialled | None:
        """What was dialled, for a connection accepted by an outbound listener of the netns with this cookie; `local`
        and `peer` as the accepted socket reports them. Known until that socket closes. None: refuse, nobody recorded
        it."""
        key = pack_tuple(cookie, local, peer)
        found = self.captured.get(key) or self._captured_by_others(key)
        if found is None:
            return None
        _, ip, port, drawn = DESTINATION.unpack(found)
        endpoint, elsewhere = unpack_drawn(drawn)
        return Dialled(destination=SocketAddress(unpack_ip(ip), port), drawn=endpoint, elsewhere=elsewhere)

    def announce(self, socket_cookie: int, client: SocketAddress) -> None:
        """Before connect() of a last-hop socket (its SO_COOKIE): the application shall see `client` as its peer."""
        self.announced.put(COOKIE.pack(socket_cookie), ENDPOINT.pack(pack_ip(client.ip), client.port))

    def withdraw(self, socket_cookie: int) -> None:
        """The announced socket was closed before connect(); connect() itself takes the announcement away."""
        self.announced.delete(COOKIE.pack(socket_cookie))

    # The direct path: see bpf.direct for the order of a change

    @property
    def generation(self) -> int:
        """Of the targets and verdicts that are in force."""
        return self._direct.generation

    def switch(self, targets: Mapping[str, Target], entries: Iterable[VerdictEntry]) -> int:
        """A generation of these, in force at once when all of it is written. How many entries found no room."""
        return self._direct.switch(self.pods(), targets, entries)

    def bump(self) -> int:
        """Every target and verdict is a miss from now on; the new generation."""
        return self._direct.bump()

    def set_targets(self, targets: Mapping[str, Target]) -> None:
        """By instance, under the current generation; pods that are left out neither dial nor are dialled directly."""
        self._direct.set_targets(self.pods(), targets)

    def put_verdicts(self, entries: Iterable[VerdictEntry]) -> int:
        """Under the current generation; entries of unknown instances are ignored. How many found no room."""
        return self._direct.put_verdicts(self.pods(), entries)

    def set_services(self, services: Mapping[SocketAddress, Balance]) -> int:
        """What connections to these addresses are spread over; every other address asks the agent. Endpoints that are
        not enrolled count as elsewhere. How many Services found no room: those ask the agent too."""
        return self._services.set(self.pods(), services)

    def flows(self, known: Container[int] = (), most: int | None = None) -> list[DirectFlow]:
        """The direct flows that are open, those of a former agent too, also where it had another layout; without those
        whose ids are known, which is cheap where most are, and no more than `most` of a layout."""
        pods = self.pods()
        found = self._direct.flows(pods, known, most)
        for folder in self._other_layouts():
            with pin.same_maps(folder, [self._maps[n].definition for n in ("directs", "consumed")]) as maps:
                found += DirectPath(maps).flows(pods, known, most) if maps else []
        return found

    @property
    def promoter(self) -> Promoter:
        """From TCP to socket to socket, as DirectReady asks, and back, as DirectBarred does."""
        if self._promoter is None:
            self._promoter = Promoter(self._artifact, {name: map.fd for name, map in self._maps.items()})
        return self._promoter

    def nudge(self, event: DirectDrained, *, at_sender: int) -> None:
        """Wake the reader that a DirectDrained tells of; `at_sender` is a file descriptor of the other end's netns.
        OSError."""
        sender, reader = (event.server, event.client) if event.at_client else (event.client, event.server)
        nudge.send(sender, reader, sequence=event.next, acknowledged=event.acknowledged, at_sender=at_sender)

    # Seeing it

    def counters(self) -> dict[Reason, int]:
        """Refusals since this layout was first loaded; policy's are those that cached verdicts refused."""
        return {reason: self._counter(reason.value) for reason in Reason if 0 < reason.value < REASONS}

    def lost_events(self) -> int:
        """Events that the ring had no room for."""
        return self._counter(0)

    def events(self) -> Rings:
        """Direct flows and refusals as they happen, refusals last; one reader."""
        if self._rings is None:
            maps = [self._maps[name] for name in ("events", "refusals")]
            self._rings = Rings([Ring(map.fd, map.definition.entries) for map in maps])
        return self._rings

    def describe(self) -> Description:
        """Programs, links and the fill of every map, for `gossamer bpf`."""
        return describe(self._folder, self._maps, [pod.slot for pod in self.pods().values()])

    # Inside

    def _attach(self) -> None:
        wanted, generation = self._settings, self._direct.generation or 1
        accelerate, direct = wanted.accelerate, wanted.direct
        # What was on stays on: a direction that is sent in meanwhile would leave acceleration for good.
        now = SETTINGS.unpack(self._maps["settings"].get(INDEX.pack(0)) or bytes(SETTINGS.size))[5]
        self._set(*wanted.cgroups, wanted.quota, now and accelerate, generation, direct)
        self._hooks.attach_cgroup(wanted.node)
        self._hooks.replace_netns(self.pods().values())
        self._hooks.attach_options(wanted.node, accelerate)
        self._hooks.attach_messages(direct or accelerate)
        self._hooks.attach_acceleration(accelerate)
        self._set(*wanted.cgroups, wanted.quota, accelerate, generation, direct)
        self._enrolment.forget_usage()

    def _set(self, agent: int, kubelet: int, agent_level: int, kubelet_level: int, *rest: int) -> None:
        self._maps["settings"].put(INDEX.pack(0), SETTINGS.pack(agent, kubelet, agent_level, kubelet_level, *rest))

    def _counter(self, index: int) -> int:
        values = self._maps["counters"].get(INDEX.pack(index)) or b""
        return sum(int.from_bytes(values[i : i + 8], sys.byteorder) for i in range(0, len(values), 8))

    def _captured_by_others(self, key: bytes) -> bytes | None:
        """A connection that waited in the listener while its pod went over to this layout."""
        for folder in self._other_layouts():
            with pin.same_maps(folder, [self.captured.definition]) as maps:
                if maps and (found := maps["captured"].get(key)) is not None:
                    return found
        return None

    def _other_layouts(self) -> list[Path]:
        return [folder for folder in pin.layouts(self._pins) if folder != self._folder]

    def _collect(self) -> None:
        """Drop old layouts that serve no netns and no open connection any more. Not right after the last pod has been
        switched over: until then a connect() may be on its way through the old programs, so it is done later."""
        serving = {f"{COOKIE.unpack(layout)[0]:016x}" for _, layout in self._maps["enrolled"].snapshot()}
        for folder in self._other_layouts():
            if folder.name not in serving and not pin.holds_connections(folder):
                pin.remove_layout(folder)
