"""A look inside the engine, for diagnosis: its tunnels, and how many keys and peers it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.model import SocketAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """`address` is the peer's, `backlog` bytes accepted for sending and not with the kernel yet."""

    pod: str
    server: bool
    ready: bool
    retired: bool
    streams: int
    backlog: int
    address: SocketAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """`groups` counts keys of the pool, `peers` the addresses that have, or just had, a tunnel with a pod of ours."""

    tunnels: Sequence[Tunnel]
    groups: int
    peers: int
