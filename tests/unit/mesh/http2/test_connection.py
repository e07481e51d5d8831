"""Transcripts between two of our own connections."""

from __future__ import annotations

import pytest
from hyperframe.frame import DataFrame, HeadersFrame

from mesh.http2 import (
    Connection,
    DataReceived,
    GoAwayReceived,
    HeadersReceived,
    Limits,
    LocalProtocolError,
    PingAck,
    Settings,
    SettingsReceived,
    StreamClosed,
    StreamEnded,
    StreamGone,
    StreamReset,
)
from tests.unit.mesh.http2.pair import CONNECT, OK, PREFACE, frames, only, opened, pair

CANCEL, REFUSED_STREAM = 8, 7


def test_the_first_bytes_are_preface_settings_and_connection_window():
    settings = Settings(
        initial_window_size=70_000,
        max_frame_size=20_000,
        max_header_list_size=9_000,
        max_concurrent_streams=7,
        connection_window=200_000,
    )
    client = Connection(client=True, settings=settings, limits=Limits())
    first = client.pull()
    assert first.startswith(PREFACE)
    announced, window = frames(first)
    assert announced.settings == {2: 0, 3: 7, 4: 70_000, 5: 20_000, 6: 9_000}
    assert (window.stream_id, window.window_increment) == (0, 200_000 - 65_535)
    server = Connection(client=False, settings=settings, limits=Limits())
    announced, _ = frames(server.pull())
    assert announced.settings == {3: 7, 4: 70_000, 5: 20_000, 6: 9_000, 9: 1}
    assert server.receive(first, 0.0) == [SettingsReceived()]
    assert server.peer_settings["initial_window_size"] == 70_000
    assert server.remote_window() == 200_000
    assert client.local_window() == 200_000


def test_connect_both_halves_end_by_themselves():
    made = pair()
    stream = made.client.request([*CONNECT, (b"baggage", b"k8s.pod.name=a")])
    made.client.write(stream, b"early")
    assert made.seen() == (
        [],
        [
            HeadersReceived(stream, (*CONNECT, (b"baggage", b"k8s.pod.name=a"))),
            DataReceived(stream, b"early"),
        ],
    )
    made.server.respond(stream, OK)
    made.server.write(stream, b"server speaks before the client ends")
    assert made.seen() == (
        [HeadersReceived(stream, tuple(OK)), DataReceived(stream, b"server speaks before the client ends")],
        [],
    )
    made.server.end(stream)
    assert made.seen() == ([StreamEnded(stream)], [])
    assert made.client.open_streams == made.server.open_streams == 1
    made.client.write(stream, b"after the server's FIN")
    assert made.seen() == ([], [DataReceived(stream, b"after the server's FIN")])
    made.client.end(stream)
    assert made.seen() == ([StreamClosed(stream)], [StreamEnded(stream), StreamClosed(stream)])
    assert made.client.open_streams == made.server.open_streams == 0


def test_client_half_closes_first():
    made = pair()
    stream = opened(made)
    made.client.write(stream, b"request")
    made.client.end(stream)
    assert made.seen() == ([], [DataReceived(stream, b"request"), StreamEnded(stream)])
    made.server.write(stream, b"answer")
    assert made.seen() == ([DataReceived(stream, b"answer")], [])
    made.server.end(stream)
    assert made.seen() == ([StreamEnded(stream), StreamClosed(stream)], [StreamClosed(stream)])


def test_end_with_nothing_written_is_one_empty_data_frame():
    made = pair()
    stream = opened(made)
    made.client.end(stream)
    (frame,) = frames(made.client.pull())
    assert isinstance(frame, DataFrame)
    assert (frame.data, frame.flags) == (b"", {"END_STREAM"})
    assert made.client.pull() == b""


def test_the_last_bytes_carry_end_stream():
    made = pair()
    stream = opened(made)
    made.client.write(stream, b"x" * 20_000)
    made.client.end(stream)
    first, last = frames(made.client.pull())
    assert (len(first.data), first.flags) == (16_384, set())
    assert (len(last.data), last.flags) == (20_000 - 16_384, {"END_STREAM"})


def test_a_refusal_ends_the_stream_with_its_headers_and_the_client_still_may_write():
    made = pair()
    stream = made.client.request(CONNECT)
    made.exchange()
    made.server.respond(stream, [(b":status", b"401")], end_stream=True)
    at_client, _ = made.seen()
    assert at_client == [HeadersReceived(stream, ((b":status", b"401"),), end_stream=True), StreamEnded(stream)]
    made.client.write(stream, b"unaware")
    made.client.end(stream)
    at_client, at_server = made.seen()
    assert at_client == [StreamClosed(stream)]
    assert only(at_server, StreamClosed)


def test_a_request_without_body_and_informational_responses_and_trailers():
    made = pair()
    get = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]
    stream = made.client.request(get, end_stream=True)
    at_client, at_server = made.seen()
    assert at_server == [HeadersReceived(stream, tuple(get), end_stream=True), StreamEnded(stream)]
    made.server.respond(stream, [(b":status", b"103"), (b"link", b"</x>")])
    made.server.respond(stream, OK)
    made.server.write(stream, b"body")
    made.server.trailers(stream, [(b"grpc-status", b"0")])
    at_client, at_server = made.seen()
    assert at_client == [
        HeadersReceived(stream, ((b":status", b"103"), (b"link", b"</x>")), informational=True),
        HeadersReceived(stream, tuple(OK)),
        DataReceived(stream, b"body"),
        HeadersReceived(stream, ((b"grpc-status", b"0"),), end_stream=True, trailers=True),
        StreamEnded(stream),
        StreamClosed(stream),
    ]
    assert at_server == [StreamClosed(stream)]


def test_request_trailers():
    made = pair()
    post = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]
    stream = made.client.request(post)
    made.client.write(stream, b"body")
    made.client.trailers(stream, [(b"x-sum", b"1"), (b"x-empty", b"")])
    _, at_server = made.seen()
    assert at_server[-2:] == [
        HeadersReceived(stream, ((b"x-sum", b"1"), (b"x-empty", b"")), end_stream=True, trailers=True),
        StreamEnded(stream),
    ]


def test_reset_by_either_side():
    made = pair()
    one, two = opened(made), opened(made)
    made.client.write(one, b"dropped")
    made.client.reset(one, CANCEL)
    made.server.reset(two, REFUSED_STREAM)
    assert made.seen() == (
        [StreamClosed(one), StreamReset(two, REFUSED_STREAM, True), StreamClosed(two)],
        [StreamClosed(two), StreamReset(one, CANCEL, True), StreamClosed(one)],
    )
    with pytest.raises(StreamGone):
        made.client.write(one, b"x")
    made.client.reset(one, CANCEL)
    made.client.consume(one, 5)
    made.client.grow(one, 100_000)
    assert made.client.pull() == b""


def test_reset_with_no_error_is_still_reported():
    made = pair()
    stream = opened(made)
    made.server.reset(stream, 0)
    at_client, _ = made.seen()
    assert at_client == [StreamReset(stream, 0, True), StreamClosed(stream)]


def test_reset_of_a_request_that_has_not_left_sends_nothing():
    made = pair()
    stream = made.client.request(CONNECT)
    made.client.reset(stream, CANCEL)
    assert made.client.pull() == b""
    assert made.client.events() == [StreamClosed(stream)]
    assert made.client.open_streams == 0
    following = opened(made)
    assert following > stream


def test_ping():
    made = pair()
    made.client.ping(b"12345678")
    assert made.seen() == ([PingAck(b"12345678")], [])
    with pytest.raises(LocalProtocolError, match="8 bytes"):
        made.client.ping(b"short")


def test_available_streams_follow_the_peer():
    client = Connection(client=True, settings=Settings(), limits=Limits())
    assert client.available_streams == 100
    made = pair(server=Settings(max_concurrent_streams=2))
    assert made.client.available_streams == 2
    one, two = opened(made), opened(made)
    assert made.client.available_streams == 0
    with pytest.raises(LocalProtocolError, match="MAX_CONCURRENT_STREAMS"):
        made.client.request(CONNECT)
    made.client.reset(one, CANCEL)
    made.exchange()
    assert made.client.available_streams == 1
    assert made.server.available_streams == 0
    assert two == 3


def test_requests_beyond_a_limit_not_yet_known_are_refused_and_may_be_retried():
    client = Connection(client=True, settings=Settings(), limits=Limits())
    server = Connection(client=False, settings=Settings(max_concurrent_streams=1), limits=Limits())
    one, two = client.request(CONNECT), client.request(CONNECT)
    heard = server.receive(client.pull(), 0.0)
    assert [event.stream_id for event in only(heard, HeadersReceived)] == [one]
    told = client.receive(server.pull(), 0.0)
    assert [event for event in told if not isinstance(event, SettingsReceived)] == [
        StreamReset(two, REFUSED_STREAM, True),
        StreamClosed(two),
    ]


def test_graceful_shutdown_serves_what_is_in_flight():
    made = pair()
    before = opened(made)
    made.server.shutdown_notice()
    crossing = made.client.request(CONNECT)
    at_client, at_server = made.seen()
    assert at_client == [GoAwayReceived(2**31 - 1, 0, b"")]
    assert only(at_server, HeadersReceived)[0].stream_id == crossing
    assert made.client.available_streams == 0
    with pytest.raises(LocalProtocolError):
        made.client.request(CONNECT)
    made.server.goaway()
    made.server.respond(crossing, OK)
    made.client.write(before, b"still served")
    at_client, at_server = made.seen()
    assert GoAwayReceived(crossing, 0, b"") in at_client
    assert DataReceived(before, b"still served") in at_server
    for stream in (before, crossing):
        assert not made.client.closed
        made.client.end(stream)
        made.server.end(stream)
        made.exchange()
    assert made.client.closed
    assert made.server.closed


def test_goaway_returns_unprocessed_requests_as_refused():
    made = pair()
    kept = opened(made)
    made.server.goaway(0, b"draining")
    lost = made.client.request(CONNECT)
    unheard = made.client.pull()
    told = made.client.receive(made.server.pull(), 0.0)
    assert told == [
        GoAwayReceived(kept, 0, b"draining"),
        StreamReset(lost, REFUSED_STREAM, False),
        StreamClosed(lost),
    ]
    assert made.server.receive(unheard, 0.0) == []
    assert made.server.open_streams == 1


def test_terminate_ends_all_at_once():
    made = pair()
    stream = opened(made)
    made.server.write(stream, b"never sent")
    made.server.terminate(2)
    (goaway,) = frames(made.server.pull())
    assert (goaway.error_code, goaway.last_stream_id) == (2, stream)
    assert made.server.closed
    assert made.server.events() == []
    assert made.server.receive(b"anything", 0.0) == []
    with pytest.raises(StreamGone):
        made.server.write(stream, b"x")


def test_a_large_header_block_uses_continuation():
    made = pair(server=Settings(max_header_list_size=60_000))
    big = (b"x-big", b"v" * 30_000)
    made.client.request([*CONNECT, big])
    sent = made.client.pull()
    assert [type(frame).__name__ for frame in frames(sent)] == ["HeadersFrame", "ContinuationFrame"]
    (headers,) = only(made.server.receive(sent, 0.0), HeadersReceived)
    assert headers.headers[-1] == big


def test_pull_respects_its_limit_and_loses_nothing():
    made = pair()
    stream = opened(made)
    payload = bytes(range(256)) * 200
    made.client.write(stream, payload)
    got = b""
    while piece := made.client.pull(1_000):
        assert len(piece) <= 1_000
        got += b"".join(event.data for event in only(made.server.receive(piece, 0.0), DataReceived))
    assert got == payload
    assert made.client.pull(0) == b""


def test_want_write_tells_when_to_pull():
    made = pair()
    assert not made.client.want_write
    stream = made.client.request(CONNECT)
    assert made.client.want_write
    made.exchange()
    assert not made.client.want_write
    made.client.write(stream, b"x")
    assert made.client.want_write
    made.client.pull()
    assert not made.client.want_write
    assert made.client.want_read


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        ([(b"X-Upper", b"v")], "lower-case"),
        ([(b"bad name", b"v")], "lower-case"),
        ([(b"", b"v")], "lower-case"),
        ([(b"name", b"a\r\nb")], "control characters"),
        ([(b"name", b" v")], "outer spaces"),
        ([(b"name", b"v" * 70_000)], "at most"),
    ],
)
def test_our_own_headers_are_checked(headers, complaint):
    made = pair()
    with pytest.raises(LocalProtocolError, match=complaint):
        made.client.request([*CONNECT, *headers])
    assert made.client.open_streams == 0
    with pytest.raises(TypeError, match="must be bytes"):
        made.client.request([("str", b"v")])


def test_misuse_is_refused_and_changes_nothing():
    made = pair()
    stream = made.client.request(CONNECT)
    made.exchange()
    with pytest.raises(LocalProtocolError, match="respond"):
        made.server.write(stream, b"x")
    with pytest.raises(LocalProtocolError, match="opens no streams"):
        made.server.request(CONNECT)
    with pytest.raises(LocalProtocolError, match="does not respond"):
        made.client.respond(stream, OK)
    with pytest.raises(LocalProtocolError, match="three digits"):
        made.server.respond(stream, [(b"x", b"y")])
    with pytest.raises(LocalProtocolError, match="1xx"):
        made.server.respond(stream, [(b":status", b"100")], end_stream=True)
    made.server.respond(stream, OK)
    with pytest.raises(LocalProtocolError, match="already"):
        made.server.respond(stream, OK)
    with pytest.raises(LocalProtocolError, match="pseudo-header"):
        made.server.trailers(stream, OK)
    made.server.end(stream)
    with pytest.raises(LocalProtocolError, match="ended already"):
        made.server.write(stream, b"x")
    with pytest.raises(LocalProtocolError, match="ended already"):
        made.server.end(stream)
    with pytest.raises(StreamGone):
        made.server.write(99, b"x")
    with pytest.raises(LocalProtocolError, match="consumed 1 bytes of 0"):
        made.client.consume(stream, 1)
    with pytest.raises(LocalProtocolError):
        made.client.shutdown_notice()
    at_client, _ = made.seen()
    assert at_client == [HeadersReceived(stream, tuple(OK)), StreamEnded(stream)]


def test_writes_before_the_request_has_left_follow_its_headers():
    made = pair()
    stream = made.client.request(CONNECT)
    made.client.write(stream, b"payload")
    made.client.end(stream)
    sent = frames(made.client.pull())
    assert [type(frame) for frame in sent] == [HeadersFrame, DataFrame]
    assert sent[1].flags == {"END_STREAM"}
