"""Which pod has which network namespace, by the cookies that the kernel side names them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from bpf import PodSlot
from ztunnel.enrol import Pod

_COOKIES = 4096  # of pods that are here, and of those that left last


class Kernel(Protocol):
    """What is asked of the kernel side (implemented by `bpf.Kernel`)."""

    def pods(self) -> Mapping[str, PodSlot]:
        """Instances that are enrolled in the kernel, of this agent and of earlier ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    """`pods` are those of this node, by instance."""

    kernel: Kernel
    pods: Mapping[str, Pod]
    _known: dict[int, str] = field(default_factory=dict)  # cookie -> instance

    def instance(self, cookie: int) -> str:
        """The pod with this netns, also one that has left not long ago; empty if this agent never knew it. Cookies are
        never used again."""
        if cookie not in self._known:
            self._known.update({slot.cookie: instance for instance, slot in self.kernel.pods().items()})
            for oldest in list(islice(self._known, max(0, len(self._known) - _COOKIES))):
                del self._known[oldest]
        return self._known.get(cookie, "")

    def names(self) -> dict[int, str]:
        """Cookie -> namespace/name of what is enrolled now, for people to read."""
        names = {}
        for instance, slot in self.kernel.pods().items():
            pod = self.pods.get(instance)
            names[slot.cookie] = f"{pod.namespace}/{pod.name}" if pod is not None else instance
        return names
