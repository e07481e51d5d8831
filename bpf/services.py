"""Services as the kernel side draws from them (bpf/src/services.c): by address and port, the endpoints that are targets
and the weight of all others.

They are no permissions: who may be reached is up to targets and verdicts, whatever is drawn. One entry is replaced as
a whole, so that a removed endpoint is not drawn any more once `set` has returned.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from bpf.layouts import BACKEND, BACKENDS, COOKIE, ENDPOINT, SERVICE, pack_ip
from bpf.maps import Map
from bpf.registry import PodSlot
from mesh.balance import Balance
from mesh.model import SocketAddress

_VERSION = 8  # bytes at either end of an entry


class Services:
    """The map. One writer: the agent."""

    __slots__ = ("_map",)

    def __init__(self, map: Map) -> None:
        self._map = map

    def set(self, pods: Mapping[str, PodSlot], wanted: Mapping[SocketAddress, Balance]) -> int:
        """These and no others; what is right already is left alone. How many found no room."""
        cookies = {instance: pod.cookie for instance, pod in pods.items()}
        entries = {
            ENDPOINT.pack(pack_ip(at.ip), at.port): packed
            for at, balance in wanted.items()
            if (packed := _pack(balance, cookies)) is not None
        }
        held = dict(self._map.snapshot())
        for key in held.keys() - entries.keys():
            self._map.delete(key)
        left_out = 0
        for key, entry in entries.items():
            if held.get(key, b"")[_VERSION:-_VERSION] == entry:
                continue
            version = COOKIE.pack(time.monotonic_ns())
            try:
                self._map.put(key, version + entry + version)
            except OSError:
                left_out += 1
                self._map.delete(key)
        return left_out


def _pack(balance: Balance, cookies: Mapping[str, int]) -> bytes | None:
    """An entry without its versions; None: no endpoint is enrolled here."""
    backends, upto = [], 0
    total = balance.elsewhere + sum(e.weight for e in balance.endpoints)
    for endpoint in balance.endpoints[:BACKENDS]:
        if endpoint.instance in cookies:
            upto += endpoint.weight
            ip, port = pack_ip(endpoint.address.ip), endpoint.address.port
            backends.append(BACKEND.pack(cookies[endpoint.instance], upto, ip, port, 0))
    if not backends:
        return None
    return SERVICE.pack(0, total, upto, len(backends), 0, b"".join(backends), 0)[_VERSION:-_VERSION]
