"""The threads as an engine begins them."""

from __future__ import annotations

from mesh import http2
from mesh.reason import Reason
from ztunnel.pump._pump import Pump
from ztunnel.pump.limits import Limits
from ztunnel.pump.maps import Maps

_FRAME_HEADER = 9  # bytes; with it a full DATA frame is one TLS record


def begin(limits: Limits, threads: int, accelerated: bool, maps: Maps | None) -> Pump:
    return Pump(
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
