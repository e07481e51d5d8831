"""The name of a tunnel as the threads know it."""

from __future__ import annotations

from ztunnel.orders import TunnelKey


def packed(key: TunnelKey, pod: str) -> tuple[bytes, bytes, bytes]:
    """(key, source, expected identities, one per line). Keys are equal for equal TunnelKeys only: no part can hold a
    zero. ValueError: it is another pod's tunnel."""
    if key.pod != pod:
        raise ValueError(f"a connection of pod {pod} was sent to a tunnel of {key.pod}")
    source = str(key.source).encode()
    expected = "\n".join(sorted(map(str, key.expected))).encode()
    parts = [key.pod.encode(), source, expected, key.workload.encode(), str(key.address).encode()]
    return b"\0".join(parts), source, expected
