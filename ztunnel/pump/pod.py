"""What the engine's Python side knows of a pod."""

from __future__ import annotations

from dataclasses import dataclass, field

from ztunnel.pump.book import Book


@dataclass(slots=True, kw_only=True, eq=False)
class Pod:
    """`number` names it to the threads; never used again. `life` counts how often it was added: a thread may just have
    given up the pod when it is added once more, and what it says of that concerns the earlier life. `netns` is our own
    descriptor, of sockets for last hops; `cookie` is that of the namespace."""

    name: str
    title: str  # what log lines call it
    number: int
    netns: int
    cookie: int
    addresses: tuple[str, ...]
    listening: bool = True
    life: int = 0
    book: Book = field(default_factory=Book)

    def address_like(self, ip: str) -> str:
        """The pod's own address of the same family; any, should it have none; `ip` if it has no address at all."""
        return next((own for own in self.addresses if (":" in own) == (":" in ip)), next(iter(self.addresses), ip))
