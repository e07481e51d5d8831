"""The threads as an engine begins them."""

from __future__ import annotations

import logging

from mesh import http2
from mesh.reason import Reason
from ztunnel.pump._pump import Pump, aes
from ztunnel.pump.limits import Limits
from ztunnel.pump.maps import Maps

log = logging.getLogger(__name__)

_FRAME_HEADER = 9  # bytes; with it a full DATA frame is one TLS record


def begin(limits: Limits, threads: int, accelerated: bool, maps: Maps | None) -> Pump:
    pump = Pump(
        limits=limits,
        server=limits.settings(server=True),
        client=limits.settings(server=False),
        http=http2.Limits(
            max_outbound_buffer=limits.stream_buffer,
            max_data_frame=limits.frame - _FRAME_HEADER,
            turn=limits.turn,
            resets=limits.resets,
        ),
        statuses={reason: reason.http_status for reason in Reason},
        threads=threads,
        accelerated=accelerated,
        maps=maps,
    )
    log.debug("AES-GCM of tunnels: %s", aes())
    return pump
