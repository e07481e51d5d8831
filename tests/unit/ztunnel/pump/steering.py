"""The two maps that the threads use, made of real ones, without the programs that fill them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bpf import syscall
from bpf.artifact import MapDefinition
from bpf.layouts import COOKIE, DESTINATION, ENDPOINT, TUPLE, pack_ip, pack_tuple, unpack_ip
from bpf.maps import Map
from bpf.netns import cookie
from mesh.model import SocketAddress
from ztunnel.pump import Maps


@dataclass(frozen=True)
class SteeringMaps:
    captured: Map
    announced: Map

    @property
    def maps(self) -> Maps:
        return Maps.of(self.captured, self.announced)

    def dial(self, listener: tuple[str, int], asked: SocketAddress, *, drawn: bytes = bytes(20)) -> socket.socket:
        """As an application whose connect() to `asked` was captured: connected to the listener of this netns."""
        family = socket.AF_INET6 if ":" in listener[0] else socket.AF_INET
        sock = socket.socket(family)
        sock.settimeout(60)
        sock.bind((listener[0], 0))
        key = pack_tuple(cookie(), SocketAddress(*listener), SocketAddress(*sock.getsockname()[:2]))
        self.captured.put(key, DESTINATION.pack(0, pack_ip(asked.ip), asked.port, drawn))
        sock.connect(listener)
        return sock

    def seen(self) -> list[SocketAddress]:
        """Whom applications were announced to see."""
        found = [ENDPOINT.unpack(value) for _, value in self.announced.snapshot()]
        return sorted(SocketAddress(unpack_ip(ip), port) for ip, port in found)


@contextmanager
def steering_maps() -> Iterator[SteeringMaps]:
    sizes = {"captured": (TUPLE.size, DESTINATION.size), "announced": (COOKIE.size, ENDPOINT.size)}
    made = {}
    try:
        for name, (key, value) in sizes.items():
            fd = syscall.create_map(kind=syscall.HASH, name=name, key=key, value=value, entries=65536, flags=1)
            definition = MapDefinition(name=name, kind=syscall.HASH, key=key, value=value, entries=65536, flags=1)
            made[name] = Map(fd, definition)
        yield SteeringMaps(**made)
    finally:
        for map in made.values():
            os.close(map.fd)
