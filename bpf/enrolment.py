"""Enrolment of pods: what the maps hold of each, and its own lookup program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bpf import netns, pin, syscall
from bpf.direct import DirectPath
from bpf.hooks import Hooks
from bpf.layouts import COOKIE, INDEX, KINDS, NOWHERE, PLACE, POD, is_v4, pack_ip
from bpf.maps import Map
from bpf.registry import PodSlot, Registry, free_slot


class Listeners(Protocol):
    """File descriptors of listening sockets in the pod's netns; None: the family is not available."""

    @property
    def outbound4(self) -> int: ...
    @property
    def outbound6(self) -> int | None: ...
    @property
    def plaintext4(self) -> int: ...
    @property
    def plaintext6(self) -> int | None: ...
    @property
    def tunnel4(self) -> int: ...
    @property
    def tunnel6(self) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """`layout` is what `enrolled` names us by, `folders` where all layouts have their pins. Whoever calls holds the
    lock of the pins."""

    maps: Mapping[str, Map]
    registry: Registry
    hooks: Hooks
    direct: DirectPath
    layout: int
    folders: Callable[[], Iterable[Path]]

    def enrol(self, instance: str, netns_fd: int, addresses: Sequence[str], listeners: Listeners | None) -> PodSlot:
        """As `Kernel.enrol`."""
        packed = [pack_ip(address) for address in addresses]
        cookie = netns.cookie(netns_fd)
        if cookie == netns.cookie():
            raise ValueError(
                f"pod {instance} is in the node's own network namespace; host-network pods are not enrolled"
            )
        pods = self.registry.pods()
        known = pods.get(instance)
        if known is not None and known.cookie != cookie:
            self.remove(known)  # the pod was made again in a new netns
            del pods[instance]
        for other in pods.values():
            if other.cookie == cookie and other.instance != instance:
                raise ValueError(
                    f"pod {instance} has the netns of pod {other.instance}, which is enrolled; un-enrol that first"
                )
        slot = pods[instance].slot if instance in pods else free_slot(pods.values())
        pod = PodSlot(instance=instance, slot=slot, cookie=cookie, addresses=tuple(addresses))
        fresh = self.maps["enrolled"].get(COOKIE.pack(cookie)) is None
        try:
            self._admit(pod, packed, netns_fd, listeners)
        except BaseException:
            if fresh:
                self.remove(pod)
            raise
        return pod

    def set_listeners(self, slot: int, listeners: Listeners) -> None:
        """As `Kernel.set_listeners`."""
        kinds = (
            listeners.outbound4,
            listeners.outbound6,
            listeners.plaintext4,
            listeners.plaintext6,
            listeners.tunnel4,
            listeners.tunnel6,
        )
        for kind, fd in enumerate(kinds):
            key = INDEX.pack(slot * KINDS + kind)
            if fd is None:
                self.maps["listeners"].delete(key)
            elif self.maps["listeners"].get(key) != netns.socket_cookie(fd):  # else it is there, handed over
                self.maps["listeners"].put(key, COOKIE.pack(fd))

    def _admit(self, pod: PodSlot, packed: Sequence[bytes], netns_fd: int, listeners: Listeners | None) -> None:
        """Everything in place first; the entry in `enrolled` is the switch of both directions."""
        maps, cookie = self.maps, COOKIE.pack(pod.cookie)
        before = self.registry.pods().get(pod.instance)
        self.registry.put(pod)
        sources = [next((ip for ip in packed if is_v4(ip) == v4), NOWHERE) for v4 in (True, False)]
        maps["pods"].put(cookie, POD.pack(pod.slot, 0, *sources))
        former = set(before.addresses if before else ()) - set(pod.addresses)
        self.direct.forget(pod, former)
        for gone in former:
            maps["addresses"].delete(PLACE.pack(pod.cookie, pack_ip(gone)))
        for ip in packed:
            maps["addresses"].put(PLACE.pack(pod.cookie, ip), INDEX.pack(1))
        maps["usage"].put(cookie, INDEX.pack(0), syscall.NOEXIST)
        if listeners is not None:
            self.set_listeners(pod.slot, listeners)
        self.hooks.attach_netns(pod, netns_fd)
        maps["enrolled"].put(cookie, COOKIE.pack(self.layout))

    def remove(self, pod: PodSlot) -> None:
        """It is captured no more."""
        maps, cookie = self.maps, COOKIE.pack(pod.cookie)
        self.direct.leave(pod)
        maps["enrolled"].delete(cookie)
        for folder in self.folders():
            pin.unlink(folder / f"lookup_{pod.slot}")
        maps["pods"].delete(cookie)
        for address in pod.addresses:
            maps["addresses"].delete(PLACE.pack(pod.cookie, pack_ip(address)))
        for kind in range(KINDS):
            maps["listeners"].delete(INDEX.pack(pod.slot * KINDS + kind))
        self.forget_usage()
        self.registry.remove(pod.instance)

    def forget_usage(self) -> None:
        """Counts of netns that are not enrolled any more, once the last of their sockets has closed."""
        for key, held in self.maps["usage"].snapshot():
            if held == INDEX.pack(0) and self.maps["enrolled"].get(key) is None:
                self.maps["usage"].delete(key)
