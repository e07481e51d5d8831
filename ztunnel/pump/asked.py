"""What the threads ask about, as facts."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.identity import SpiffeId
from mesh.model import Dialled, SocketAddress
from ztunnel.orders import Captured, Offered
from ztunnel.pump.addresses import Told, address
from ztunnel.pump.pod import Pod


def captured(number: int, pod: Pod, client: SocketAddress, dialled: Dialled) -> Captured:
    # Loopback, or an address that the application bound to: not always one of the pod's (IP_TRANSPARENT).
    ip = client.ip if client.ip in pod.addresses else pod.address_like(dialled.destination.ip)
    return Captured(
        id=number,
        pod=pod.name,
        client=SocketAddress(ip, client.port),
        destination=dialled.destination,
        drawn=dialled.drawn,
        elsewhere=dialled.elsewhere,
    )


def offered(number: int, pod: Pod, client: Told, local: Told, peer: str, fields: Sequence[tuple[str, str]]) -> Offered:
    pseudo = {name: value for name, value in fields if name.startswith(":")}
    return Offered(
        id=number,
        pod=pod.name,
        client=address(*client),
        local=address(*local),
        peer=SpiffeId.parse(peer),
        method=pseudo.get(":method", ""),
        authority=pseudo.get(":authority", ""),
        headers=[(name, value) for name, value in fields if not name.startswith(":")],
    )
