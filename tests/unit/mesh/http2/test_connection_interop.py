"""The h2 package, which nobody here wrote, as client and as server."""

from __future__ import annotations

from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from mesh.http2 import (
    Connection,
    DataReceived,
    GoAwayReceived,
    HeadersReceived,
    Limits,
    PingAck,
    Settings,
    StreamClosed,
    StreamEnded,
    StreamReset,
)
from tests.unit.mesh.http2.pair import CONNECT, OK, only

PAYLOAD = bytes(range(256)) * 2_000


class Meeting:
    """One connection of ours and one of h2's."""

    def __init__(self, *, ours_is_client: bool) -> None:
        settings = Settings(initial_window_size=100_000, max_concurrent_streams=10)
        self.ours = Connection(client=ours_is_client, settings=settings, limits=Limits(max_outbound_buffer=1 << 20))
        self.other = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=not ours_is_client, header_encoding=None)
        )
        self.other.initiate_connection()
        self.run(lambda event: None)

    def run(self, react: Callable[[h2.events.Event], None]) -> tuple[list, list]:
        """Carry bytes until silence; answers (our events, h2's)."""
        ours, others = [], []
        while True:
            up, down = self.ours.pull(), self.other.data_to_send()
            ours += self.ours.events()
            if not up and not down:
                return ours, others
            for event in self.other.receive_data(up) if up else []:
                others.append(event)
                react(event)
            got = self.ours.receive(down, 0.0)
            ours += got
            for event in only(got, DataReceived):
                self.ours.consume(event.stream_id, len(event.data))

    def acknowledge(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived):
            self.other.acknowledge_received_data(event.flow_controlled_length, event.stream_id)


def data(events: list) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, (DataReceived, h2.events.DataReceived)))


def test_their_server_serves_our_client():
    meeting = Meeting(ours_is_client=True)
    assert meeting.ours.peer_settings["max_concurrent_streams"] == 100
    stream = meeting.ours.request(CONNECT)
    _, theirs = meeting.run(meeting.acknowledge)
    (request,) = [event for event in theirs if isinstance(event, h2.events.RequestReceived)]
    assert list(request.headers) == CONNECT
    meeting.other.send_headers(stream, OK)
    meeting.ours.write(stream, PAYLOAD)
    meeting.ours.end(stream)
    ours, theirs = meeting.run(meeting.acknowledge)
    assert HeadersReceived(stream, tuple(OK)) in ours
    assert data(theirs) == PAYLOAD
    assert isinstance(theirs[-1], h2.events.StreamEnded)
    sent = 0
    received = b""
    while sent < len(PAYLOAD):
        size = min(meeting.other.local_flow_control_window(stream), meeting.other.max_outbound_frame_size)
        assert size > 0
        meeting.other.send_data(stream, PAYLOAD[sent : sent + size])
        sent += size
        received += data(meeting.run(meeting.acknowledge)[0])
    meeting.other.end_stream(stream)
    ours, _ = meeting.run(meeting.acknowledge)
    assert received == PAYLOAD
    assert ours == [StreamEnded(stream), StreamClosed(stream)]


def test_our_server_serves_their_client():
    meeting = Meeting(ours_is_client=False)
    meeting.other.send_headers(1, CONNECT)
    meeting.other.send_data(1, b"early", pad_length=50)
    ours, _ = meeting.run(meeting.acknowledge)
    assert ours == [HeadersReceived(1, tuple(CONNECT)), DataReceived(1, b"early")]
    meeting.ours.respond(1, OK)
    meeting.ours.write(1, PAYLOAD)
    meeting.ours.end(1)
    _, theirs = meeting.run(meeting.acknowledge)
    assert [type(event) for event in theirs if isinstance(event, h2.events.ResponseReceived)]
    assert data(theirs) == PAYLOAD
    meeting.other.send_data(1, b"late")
    meeting.other.end_stream(1)
    ours, _ = meeting.run(meeting.acknowledge)
    assert ours == [DataReceived(1, b"late"), StreamEnded(1), StreamClosed(1)]


def test_refusal_reset_ping_and_goaway_cross():
    meeting = Meeting(ours_is_client=False)
    for stream in (1, 3):
        meeting.other.send_headers(stream, CONNECT)
    meeting.run(meeting.acknowledge)
    meeting.ours.respond(1, [(b":status", b"503")], end_stream=True)
    meeting.ours.ping(b"abcdefgh")
    meeting.other.reset_stream(3, 8)
    ours, theirs = meeting.run(meeting.acknowledge)
    assert [event.stream_id for event in theirs if isinstance(event, h2.events.StreamEnded)] == [1]
    assert StreamReset(3, 8, True) in ours
    assert PingAck(b"abcdefgh") in ours
    meeting.ours.shutdown_notice()
    _, theirs = meeting.run(meeting.acknowledge)
    (goaway,) = [event for event in theirs if isinstance(event, h2.events.ConnectionTerminated)]
    assert (goaway.error_code, goaway.last_stream_id) == (0, 2**31 - 1)


def test_their_goaway_and_trailers():
    meeting = Meeting(ours_is_client=True)
    stream = meeting.ours.request(
        [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]
    )
    meeting.ours.trailers(stream, [(b"x-end", b"1")])
    _, theirs = meeting.run(meeting.acknowledge)
    assert any(isinstance(event, h2.events.TrailersReceived) for event in theirs)
    meeting.other.send_headers(stream, OK)
    meeting.other.send_headers(stream, [(b"grpc-status", b"0")], end_stream=True)
    ours, _ = meeting.run(meeting.acknowledge)
    assert HeadersReceived(stream, ((b"grpc-status", b"0"),), end_stream=True, trailers=True) in ours
    meeting.other.close_connection(0, b"bye")
    ours, _ = meeting.run(meeting.acknowledge)
    assert ours == [GoAwayReceived(stream, 0, b"bye")]
    assert meeting.ours.closed


@pytest.mark.parametrize("window", [0, 1, 70_000])
def test_they_change_their_window_in_the_middle(window):
    meeting = Meeting(ours_is_client=True)
    stream = meeting.ours.request(CONNECT)
    meeting.run(lambda event: None)
    meeting.ours.write(stream, PAYLOAD[:200_000])
    _, theirs = meeting.run(lambda event: None)
    got = data(theirs)
    assert len(got) == 65_535
    meeting.other.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    _, theirs = meeting.run(lambda event: None)
    got += data(theirs)
    assert len(got) == 65_535  # the connection's window is used up as well
    meeting.other.increment_flow_control_window(2**20)
    _, theirs = meeting.run(lambda event: None)
    got += data(theirs)
    assert len(got) == max(65_535, window)
    meeting.other.increment_flow_control_window(2**20, stream)
    _, theirs = meeting.run(lambda event: None)
    assert got + data(theirs) == PAYLOAD[:200_000]
