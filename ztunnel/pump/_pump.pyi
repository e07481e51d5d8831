"""The Python face of the byte engine (_pump.pyx); `ztunnel.pump.engine` is its only user."""

from collections.abc import Mapping, Sequence
from typing import Any

from mesh import http2
from ztunnel.orders import Credentials
from ztunnel.pump.limits import Limits
from ztunnel.pump.maps import Maps

Address = tuple[str, int]
Fields = Sequence[tuple[str, str]]

def aes() -> str:
    """Whose AES-GCM the tunnels use, once there is a Pump: "OpenSSL" or "libipsec-mb"."""

class Pump:
    """`threads` native threads, each with its own epoll. `statuses`: HTTP answer per reason. Connection ids and pod
    numbers name their thread: number % threads."""

    def __init__(
        self,
        *,
        limits: Limits,
        server: http2.Settings,
        client: http2.Settings,
        http: http2.Limits,
        statuses: Mapping[int, int],
        threads: int,
        accelerated: bool,
        maps: Maps | None,
    ) -> None:
        """ValueError: the maps have other layouts than the threads."""
    @property
    def threads(self) -> int: ...
    @property
    def tunnels(self) -> int: ...
    @property
    def connections(self) -> int:
        """That the threads have, also those that Python was not told of."""
    @property
    def held(self) -> tuple[int, int, int]:
        """(descriptors of sockets open or promised, bytes in tunnels' buffers, bytes by which windows have grown)."""
    @property
    def refused(self) -> dict[int, int]: ...
    def fileno(self) -> int:
        """An eventfd, readable when there are facts."""
    def counts(self) -> dict[int, tuple[int, int]]:
        """Connections that Python was told of and whose Ended was not taken yet: (sent, received)."""
    def facts(self, most: int) -> list[tuple[Any, ...]]:
        """What happened next, in order, at most so many; none: nothing has. The first item of each names it."""
    def fail(self, number: int, reason: int, detail: str, close: bool) -> None: ...
    def plain(self, number: int, fd: int, cookie: int, ip: str, port: int, headers: Fields) -> None:
        """Takes `fd`. ValueError, and it is not taken."""
    def tunnel(
        self,
        number: int,
        key: bytes,
        source: bytes,
        expected: bytes,
        ip: str,
        port: int,
        authority: str,
        headers: Fields,
    ) -> None: ...
    def stand(self, number: int, kind: bytes, alternatives: list[tuple[Any, ...]]) -> None:
        """For all connections of this kind to the pod. Each alternative: number, sum of the weights up to it, is it a
        tunnel, is it a last hop, ip, port; of a tunnel also key, source, expected, authority, as bytes; headers. The
        numbers follow each other. ValueError."""
    def recall(self, number: int, kind: bytes) -> None:
        """The order for this kind is over. Each thread says ("spent", pod, first alternative) after the last fact
        that names one of its alternatives."""
    def lapse(self, number: int, fence: int) -> None:
        """No connection begins under an order of the pod, 0: of any, that was given until now. Each thread says
        ("lapsed", fence) after the last fact that names one of their alternatives."""
    def socket(self, netns: int, six: bool, bind: str | None) -> tuple[int, int]:
        """(descriptor, socket cookie); OSError."""
    def pod(
        self,
        number: int,
        life: int,
        name: str,
        trust_domain: str,
        netns: int,
        cookie: int,
        listeners: Sequence[int | None],
    ) -> bool:
        """`cookie`: of the netns. Takes the descriptors. True: all threads have carried it out. False: two seconds were
        not enough for one; it will, before anything it is told later. So with what else returns a bool."""
    def start(self, number: int) -> None: ...
    def credentials(self, number: int, credentials: Credentials) -> None:
        """ValueError: not usable."""
    def unlisten(self, number: int) -> bool: ...
    def retire(self, number: int) -> None: ...
    def drop(self, number: int, reason: int) -> bool: ...
    def pause(self) -> bool:
        """Nobody is accepted any more; `facts` has all who were."""
    def pulses(self) -> list[tuple[int, bool]]:
        """Of each thread that runs: (steps into rounds and out of them, it has something to do). From any thread."""
    def census(self) -> tuple[list[tuple[int, bool, bool, bool, int, int, Address]], int, int]:
        """(tunnels, groups, peers); a tunnel is (pod, server, ready, retired, streams, backlog, peer)."""
    def stop(self) -> None: ...
