"""Windows, buffers and turns."""

from __future__ import annotations

import pytest
from hyperframe.frame import DataFrame

from mesh.http2 import DataReceived, Limits, LocalProtocolError, Settings, WindowOpened
from tests.unit.mesh.http2.pair import CONNECT, OK, frames, only, opened, pair

MIB = 1 << 20


def received(events, stream):
    return sum(len(event.data) for event in only(events, DataReceived) if event.stream_id == stream)


def test_a_stream_stops_at_its_window_and_goes_on_when_consumed():
    made = pair(server=Settings(initial_window_size=10_000))
    stream = opened(made)
    made.client.write(stream, b"x" * 25_000)
    _, at_server = made.seen()
    assert received(at_server, stream) == 10_000
    assert made.client.remote_window(stream) == 0
    assert made.client.buffered(stream) == 15_000
    assert not made.client.want_write
    made.server.consume(stream, 10_000)
    _, at_server = made.seen()
    assert received(at_server, stream) == 10_000
    made.server.consume(stream, 10_000)
    _, at_server = made.seen()
    assert received(at_server, stream) == 5_000
    assert made.client.buffered(stream) == 0


def test_an_unread_stream_never_fills_the_connection():
    settings = Settings(initial_window_size=60_000, connection_window=65_535)
    made = pair(server=settings, limits=Limits(max_outbound_buffer=8 * MIB))
    unread, read = opened(made), opened(made)
    made.client.write(unread, b"u" * MIB)
    made.client.write(read, b"r" * MIB)
    total = {unread: 0, read: 0}
    while True:
        _, at_server = made.seen()
        taken = received(at_server, read)
        total[unread] += received(at_server, unread)
        total[read] += taken
        if not taken:
            break
        made.server.consume(read, taken)
    assert total == {unread: 60_000, read: MIB}
    assert made.client.remote_window() > 0


def test_grow_before_and_after_the_request_has_left():
    made = pair(client=Settings(initial_window_size=1_000), server=Settings(initial_window_size=1_000))
    stream = made.client.request(CONNECT)
    made.client.grow(stream, 50_000)
    made.exchange()
    made.server.respond(stream, OK)
    made.server.write(stream, b"d" * 60_000)
    at_client, _ = made.seen()
    assert received(at_client, stream) == 50_000
    assert made.client.local_window(stream) == 50_000
    made.client.grow(stream, 60_000)
    at_client, _ = made.seen()
    assert received(at_client, stream) == 10_000
    made.server.grow(stream, 5_000)
    made.client.write(stream, b"u" * 6_000)
    _, at_server = made.seen()
    assert received(at_server, stream) == 5_000


def test_zero_initial_window_then_settings_open_it():
    """The peer's SETTINGS change the windows of open streams (RFC 9113 6.9.2)."""
    made = pair(server=Settings(initial_window_size=0))
    stream = opened(made)
    made.client.write(stream, b"x" * 100)
    _, at_server = made.seen()
    assert received(at_server, stream) == 0
    made.client.receive(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + b"\x00\x04\x00\x00\x00\x64", 0.0)
    (_ack, data) = frames(made.client.pull())
    assert data.data == b"x" * 100


def test_end_waits_behind_the_window_and_then_leaves():
    made = pair(server=Settings(initial_window_size=5))
    stream = opened(made)
    made.client.write(stream, b"hello")
    made.client.end(stream)
    _, at_server = made.seen()
    assert received(at_server, stream) == 5
    assert at_server[-1].stream_id == stream  # END_STREAM came with the last bytes: it needs no window


def test_a_small_stream_leaves_within_the_first_frames():
    made = pair(
        server=Settings(initial_window_size=16 * MIB, connection_window=16 * MIB),
        limits=Limits(max_outbound_buffer=8 * MIB),
    )
    large, small = opened(made), opened(made)
    made.client.write(large, b"l" * 4 * MIB)
    made.client.write(small, b"s" * 100)
    sent = [frame.stream_id for frame in frames(made.client.pull())]
    assert small in sent[:2]
    assert sent.count(small) == 1
    made.client.write(large, b"l" * 4 * MIB)
    made.client.pull(100_000)
    made.client.write(small, b"s" * 100)
    sent = [frame.stream_id for frame in frames_after_partial(made.client.pull(200_000))]
    assert small in sent[:3]


def frames_after_partial(data: bytes):
    """Frames of a piece of the stream that begins inside a frame of payload 'l' and may end inside one."""
    start = 0
    while start < len(data) and data[start : start + 1] == b"l":
        start += 1
    found = []
    while start + 9 <= len(data):
        length = int.from_bytes(data[start : start + 3], "big")
        if start + 9 + length > len(data):
            break
        found += frames(data[start : start + 9 + length])
        start += 9 + length
    return found


@pytest.mark.parametrize("server_side", [False, True])
def test_streams_take_turns_whatever_priorities_the_peer_sends(server_side):
    """A dependency tree that would make one stream wait for the other has no effect."""
    wide = Settings(initial_window_size=4 * MIB, connection_window=16 * MIB)
    made = pair(client=wide, server=wide, limits=Limits(max_outbound_buffer=2 * MIB))
    streams = [opened(made) for _ in range(3)]
    sender, receiver = (made.server, made.client) if server_side else (made.client, made.server)
    for child, parent in ((streams[0], streams[1]), (streams[1], streams[2])):
        priority = parent.to_bytes(4, "big") + b"\x00"
        sender.receive(b"\x00\x00\x05\x02\x00" + child.to_bytes(4, "big") + priority, 0.0)
    assert not sender.terminated
    for stream in streams:
        sender.write(stream, b"x" * 163_840)
    sent = [frame.stream_id for frame in frames(sender.pull()) if isinstance(frame, DataFrame)]
    assert sent == streams * 10
    assert receiver.open_streams == 3


def test_a_turn_may_have_several_frames():
    """They follow each other, so that the other side can deliver them in one piece."""
    wide = Settings(initial_window_size=4 * MIB, connection_window=16 * MIB)
    made = pair(client=wide, server=wide, limits=Limits(turn=49_152))
    bulk, other = opened(made), opened(made)
    made.client.write(bulk, b"x" * 163_840)
    made.client.write(other, b"x" * 20_000)
    sent = [frame.stream_id for frame in frames(made.client.pull())]
    assert sent == [bulk] * 3 + [other] * 2 + [bulk] * 7
    made.client.write(bulk, b"x" * 40_000)  # whoever had nothing left begins anew
    made.client.write(other, b"x" * 1_000)
    assert [frame.stream_id for frame in frames(made.client.pull())] == [bulk] * 3 + [other]


def test_large_frames_when_both_sides_want_them():
    made = pair(
        server=Settings(max_frame_size=65_536, initial_window_size=MIB, connection_window=MIB),
        limits=Limits(max_data_frame=32_768),
    )
    stream = opened(made)
    made.client.write(stream, b"x" * 70_000)
    assert [len(frame.data) for frame in frames(made.client.pull())] == [32_768, 32_768, 70_000 - 65_536]
    made = pair(limits=Limits(max_data_frame=32_768))
    stream = opened(made)
    made.client.write(stream, b"x" * 40_000)
    assert [len(frame.data) for frame in frames(made.client.pull())] == [16_384, 16_384, 40_000 - 32_768]


def test_the_outbound_buffer_is_bounded_and_says_when_it_drains():
    made = pair(server=Settings(initial_window_size=10_000), limits=Limits(max_outbound_buffer=40_000))
    stream = opened(made)
    assert made.client.room(stream) == 40_000
    made.client.write(stream, b"x" * 40_000)
    assert made.client.room(stream) == 0
    with pytest.raises(LocalProtocolError, match="max_outbound_buffer"):
        made.client.write(stream, b"x")
    opened_at = []
    for _ in range(4):
        at_client, at_server = made.seen()
        if only(at_client, WindowOpened):
            opened_at.append(made.client.buffered(stream))
        made.server.consume(stream, received(at_server, stream))
    assert opened_at == [10_000]  # once, when it fell to a quarter
    assert made.client.room(stream) == 40_000


def test_a_window_update_is_sent_only_when_half_is_used():
    made = pair(server=Settings(initial_window_size=100_000, connection_window=MIB))
    stream = opened(made)
    made.client.write(stream, b"x" * 40_000)
    made.exchange()
    made.server.consume(stream, 40_000)
    assert made.server.pull() == b""
    made.client.write(stream, b"x" * 20_000)
    made.exchange()
    made.server.consume(stream, 20_000)
    (update,) = frames(made.server.pull())
    assert (update.stream_id, update.window_increment) == (stream, 60_000)


def test_padding_counts_and_is_given_back_without_the_application():
    made = pair(server=Settings(initial_window_size=1_000))
    stream = opened(made)
    padded = DataFrame(stream, b"p" * 100, pad_length=200, flags=["PADDED"]).serialize()
    for _ in range(20):
        (event,) = only(made.server.receive(padded, 0.0), DataReceived)
        assert event.data == b"p" * 100
        made.server.consume(stream, 100)
    assert not made.server.terminated
