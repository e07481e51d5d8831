"""What the engine keeps per pod."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from ztunnel.engine.listener import Listener
from ztunnel.engine.netns import SocketFactory
from ztunnel.engine.tls import Contexts


@dataclass(slots=True, kw_only=True, eq=False)
class Pod:
    """What the engine holds of an enrolled pod."""

    name: str
    netns: int  # our duplicate; closed by `close`
    trust_domain: str
    addresses: tuple[str, ...]
    sockets: SocketFactory
    listeners: list[Listener] = field(default_factory=list)
    contexts: Contexts | None = None
    connections: int = 0

    def socket(self, family: int) -> socket.socket:
        """A non-blocking socket in the pod's netns; OSError."""
        return self.sockets(self.netns, family)

    def address_like(self, ip: str) -> str:
        """The pod's own address of the same family; any, should it have none; `ip` if it has no address at all."""
        return next((own for own in self.addresses if (":" in own) == (":" in ip)), next(iter(self.addresses), ip))

    def close_listeners(self) -> None:
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()

    def renew(self, netns: int, trust_domain: str, addresses: Sequence[str]) -> None:
        """Added again while connections of before are open."""
        old, self.netns = self.netns, os.dup(netns)
        os.close(old)
        self.trust_domain, self.addresses = trust_domain, tuple(addresses)

    def close(self) -> None:
        self.close_listeners()
        if self.netns >= 0:
            os.close(self.netns)
            self.netns = -1


def new_pod(name: str, netns: int, trust_domain: str, addresses: Sequence[str], sockets: SocketFactory) -> Pod:
    return Pod(name=name, netns=os.dup(netns), trust_domain=trust_domain, addresses=tuple(addresses), sockets=sockets)
