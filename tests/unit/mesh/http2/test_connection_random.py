"""Any bytes, in any pieces: the same events, no exception, bounded memory; and any use delivers what was written."""

from __future__ import annotations

import itertools

from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.http2 import (
    Connection,
    DataReceived,
    Event,
    HeadersReceived,
    Limits,
    Settings,
    StreamEnded,
    StreamGone,
    Terminated,
)
from tests.unit.mesh.http2.pair import CONNECT, OK, PREFACE, only, pair

LIMITS = Limits(max_control_backlog=40, max_outbound_buffer=20_000)
SETTINGS = Settings(initial_window_size=5_000, max_concurrent_streams=5, max_header_list_size=3_000)


def joined(events: list[Event]) -> list[Event]:
    """Neighbouring data of one stream as one event: how it is cut depends on the pieces."""
    result: list[Event] = []
    for event in events:
        before = result[-1] if result else None
        if isinstance(event, DataReceived) and isinstance(before, DataReceived) and before.stream_id == event.stream_id:
            result[-1] = DataReceived(event.stream_id, before.data + event.data)
        else:
            result.append(event)
    return result


def script() -> bytes:
    encoder = Encoder()
    sent = PREFACE + SettingsFrame(0, {4: 3_000, 3: 50}).serialize() + SettingsFrame(0, flags=["ACK"]).serialize()
    for stream in (1, 3, 5):
        fields = [*CONNECT, (b"x-stream", str(stream).encode() * 300)]
        sent += HeadersFrame(stream, encoder.encode(fields), flags=["END_HEADERS"]).serialize()
        sent += DataFrame(stream, b"d" * 2_000, pad_length=7, flags=["PADDED"]).serialize()
    sent += WindowUpdateFrame(1, 500).serialize() + PingFrame(0, b"pingpong").serialize()
    sent += DataFrame(3, b"last", flags=["END_STREAM"]).serialize() + RstStreamFrame(5, 8).serialize()
    return sent + DataFrame(9, b"idle").serialize()  # a connection error


SCRIPT = script()


def play(pieces: list[bytes]) -> list[Event]:
    connection = Connection(client=False, settings=SETTINGS, limits=LIMITS)
    connection.pull()
    events = []
    for piece in pieces:
        events += connection.receive(piece, 0.0)
    return joined(events)


@given(st.lists(st.integers(0, len(SCRIPT)), max_size=40))
@settings(max_examples=150, deadline=None)
def test_the_pieces_do_not_matter(cuts):
    pieces = [SCRIPT[a:b] for a, b in itertools.pairwise(sorted({0, *cuts, len(SCRIPT)}))]
    whole = play([SCRIPT])
    assert isinstance(whole[-1], Terminated)
    assert play(pieces) == whole


def frame_like() -> st.SearchStrategy[bytes]:
    """A well-formed frame header with small numbers and any payload: gets deeper than pure noise."""

    def build(kind: int, flags: int, stream: int, body: bytes, lie: int) -> bytes:
        return (max(0, len(body) + lie)).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body

    headers = Encoder().encode(CONNECT, huffman=False)
    body = st.one_of(st.binary(max_size=64), st.just(headers), st.just(b"\0\0\0\1"), st.just(b"\0\4\0\0\0\1"))
    return st.builds(
        build, st.integers(0, 12), st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 255]), st.integers(0, 11), body,
        st.sampled_from([0, 0, 0, 0, 0, 1, -1]),
    )  # fmt: skip


@given(st.booleans(), st.lists(st.one_of(frame_like(), frame_like(), st.binary(max_size=200)), max_size=40), st.data())
@settings(max_examples=400, deadline=None)
def test_garbage_never_raises_and_owes_little(client, pieces, data):
    connection = Connection(client=client, settings=SETTINGS, limits=LIMITS)
    connection.pull()
    if client:
        for _ in range(3):
            connection.write(connection.request(CONNECT), b"x" * 3_000)
        connection.receive(SettingsFrame(0).serialize(), 0.0)
    else:
        connection.receive(PREFACE + SettingsFrame(0).serialize(), 0.0)
    for now, piece in enumerate(pieces):
        events = connection.receive(piece, float(now))
        for event in only(events, HeadersReceived):
            if not client and not event.trailers:
                answer(connection, event.stream_id)
        for event in only(events, DataReceived):
            connection.consume(event.stream_id, len(event.data))
        assert connection.open_streams <= 5
        if only(events, Terminated):
            assert isinstance(events[-1], Terminated)
        if data.draw(st.booleans()):
            connection.pull(data.draw(st.integers(0, 5_000)))
    # What is owed: control frames, the answers' data within windows, one GOAWAY.
    assert len(connection.pull()) < 40 * 17 + 5 * 21_000 + 1_000
    connection.events()
    if connection.terminated:
        assert connection.closed


def answer(connection: Connection, stream: int) -> None:
    try:
        connection.respond(stream, OK)
        connection.write(stream, b"y" * 20_000)
    except StreamGone:
        assert not connection.room(stream)


ACTIONS = st.tuples(st.sampled_from("wwwwep"), st.integers(0, 3), st.integers(1, 9_000))


@given(st.lists(ACTIONS, max_size=60), st.integers(1, 40_000), st.integers(1, 20_000))
@settings(max_examples=150, deadline=None)
def test_whatever_is_written_arrives_in_order(actions, window, piece):
    """Four streams, both directions, any interleaving of write, end and partial pulls, read or not."""
    wide = Settings(initial_window_size=window)
    made = pair(client=wide, server=wide, limits=LIMITS)
    streams = [made.client.request(CONNECT) for _ in range(4)]
    made.exchange()
    for stream in streams:
        made.server.respond(stream, OK)
    made.exchange()
    sides = {"c": made.client, "s": made.server}
    written = {(side, stream): b"" for side in sides for stream in streams}
    received = {(side, stream): b"" for side in sides for stream in streams}
    ended: set[tuple[str, int]] = set()
    finished: set[tuple[str, int]] = set()

    def carry(source: str, target: str, limit: int | None, read: bool) -> bool:
        data = sides[source].pull(limit)
        sides[source].events()
        for event in sides[target].receive(data, 0.0):
            if isinstance(event, DataReceived):
                received[source, event.stream_id] += event.data
                if read:
                    sides[target].consume(event.stream_id, len(event.data))
                else:
                    unread.append((target, event.stream_id, len(event.data)))
            elif isinstance(event, StreamEnded):
                finished.add((source, event.stream_id))
        return bool(data)

    unread: list[tuple[str, int, int]] = []
    for number, (action, which, size) in enumerate(actions):
        stream, side = streams[which], "cs"[number % 2]
        if action == "w" and (side, stream) not in ended and sides[side].room(stream) >= size:
            payload = bytes([number % 256]) * size
            sides[side].write(stream, payload)
            written[side, stream] += payload
        elif action == "e" and (side, stream) not in ended:
            sides[side].end(stream)
            ended.add((side, stream))
        elif action == "p":
            carry(side, "s" if side == "c" else "c", piece, read=size % 2 == 0)
    for target, stream, size in unread:
        sides[target].consume(stream, size)
    unread.clear()
    while carry("c", "s", None, read=True) | carry("s", "c", None, read=True):
        pass
    assert received == written
    assert finished == ended
