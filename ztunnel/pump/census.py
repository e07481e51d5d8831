"""A look inside the engine, for diagnosis: its tunnels, and how many keys and peers it keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mesh.model import SocketAddress
from ztunnel.pump._pump import Pump
from ztunnel.pump.addresses import address


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


def take(pump: Pump, name: Callable[[int], str]) -> Census:
    """`name`: of a pod, by its number. Waits for the threads."""
    tunnels, groups, peers = pump.census()
    return Census(
        tunnels=[
            Tunnel(
                pod=name(pod),
                server=server,
                ready=ready,
                retired=retired,
                streams=streams,
                backlog=backlog,
                address=address(*at),
            )
            for pod, server, ready, retired, streams, backlog, at in tunnels
        ],
        groups=groups,
        peers=peers,
    )
