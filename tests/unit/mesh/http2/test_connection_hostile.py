"""A peer that breaks the rules, with frames built by packages not ours: each ends in the right RFC 9113 code."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

import pytest
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from mesh.http2 import (
    Connection,
    DataReceived,
    Event,
    HeadersReceived,
    Limits,
    Rate,
    Settings,
    StreamClosed,
    StreamReset,
    Terminated,
)
from tests.unit.mesh.http2.pair import CONNECT, OK, PREFACE, frames, only

PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 1, 2, 3, 5, 6
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 7, 8, 9, 11

FEW = Rate(burst=10, per_second=1)
LIMITS = Limits(
    max_control_backlog=50,
    resets=FEW,
    pings=FEW,
    settings=FEW,
    empty_frames=FEW,
    max_settings_entries=8,
    max_continuations=4,
)


class Attacker:
    """Speaks frames to a server (or client) of ours."""

    def __init__(self, *, client: bool = False, settings: Settings | None = None, limits: Limits = LIMITS) -> None:
        self.victim = Connection(client=client, settings=settings or Settings(), limits=limits)
        self.encoder = Encoder()
        self.events: list[Event] = []
        self.told: list = []
        hello = SettingsFrame(0).serialize()
        self.send(hello if client else PREFACE + hello)
        self.send(SettingsFrame(0, flags=["ACK"]).serialize())

    def send(self, data: bytes, now: float = 0.0) -> list[Event]:
        """Deliver and read the answer; answers the events."""
        events = self.deaf(data, now)
        self.told += frames(self.victim.pull())
        self.events += self.victim.events()
        return events

    def deaf(self, data: bytes, now: float = 0.0) -> list[Event]:
        """Deliver without reading the answer."""
        events = self.victim.receive(data, now)
        self.events += events
        return events

    def headers(self, stream: int, fields=CONNECT, *, end: bool = False) -> bytes:
        flags = ["END_HEADERS", *(["END_STREAM"] if end else [])]
        return HeadersFrame(stream, self.encoder.encode(fields), flags=flags).serialize()

    def open(self, stream: int = 1) -> None:
        self.send(self.headers(stream))
        self.victim.respond(stream, OK)
        self.send(b"")
        self.told.clear()

    def assert_terminated(self, code: int) -> Terminated:
        (ended,) = only(self.events, Terminated)
        assert self.events[-1] is ended
        assert ended.error_code == code, ended
        assert ended.detail
        goaway = self.told[-1]
        assert isinstance(goaway, GoAwayFrame)
        assert goaway.error_code == code
        assert self.victim.closed
        assert self.victim.receive(PingFrame(0, b"12345678").serialize(), 99.0) == []
        assert self.victim.pull() == b""
        return ended

    def assert_reset(self, stream: int, code: int) -> None:
        assert StreamReset(stream, code, False) in self.events, self.events
        assert StreamClosed(stream) in self.events
        assert [frame.error_code for frame in self.told if isinstance(frame, RstStreamFrame)] == [code]
        assert not self.victim.terminated
        self.send(PingFrame(0, b"12345678").serialize())
        assert isinstance(self.told[-1], PingFrame)


def header(length: int, kind: int, flags: int, stream: int) -> bytes:
    return struct.pack(">I", length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream)


BROKEN: dict[str, tuple[Callable[[Attacker], bytes], int]] = {
    "frame larger than we allow": (lambda a: header(16_385, 0, 0, 1) + bytes(16_385), FRAME_SIZE_ERROR),
    "SETTINGS not a multiple of six": (lambda a: header(5, 4, 0, 0) + bytes(5), FRAME_SIZE_ERROR),
    "SETTINGS ack with payload": (lambda a: header(6, 4, 1, 0) + bytes(6), FRAME_SIZE_ERROR),
    "SETTINGS on a stream": (lambda a: header(0, 4, 0, 1), PROTOCOL_ERROR),
    "PING of seven bytes": (lambda a: header(7, 6, 0, 0) + bytes(7), FRAME_SIZE_ERROR),
    "PING on a stream": (lambda a: header(8, 6, 0, 1) + bytes(8), PROTOCOL_ERROR),
    "RST_STREAM of three bytes": (lambda a: header(3, 3, 0, 1) + bytes(3), FRAME_SIZE_ERROR),
    "RST_STREAM on an idle stream": (lambda a: RstStreamFrame(7, CANCEL).serialize(), PROTOCOL_ERROR),
    "WINDOW_UPDATE of three bytes": (lambda a: header(3, 8, 0, 0) + bytes(3), FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of zero on the connection": (lambda a: header(4, 8, 0, 0) + bytes(4), PROTOCOL_ERROR),
    "WINDOW_UPDATE on an idle stream": (lambda a: header(4, 8, 0, 9) + b"\0\0\0\1", PROTOCOL_ERROR),
    "connection window overflow": (lambda a: WindowUpdateFrame(0, 2**31 - 1).serialize(), FLOW_CONTROL_ERROR),
    "initial window over 2^31-1": (lambda a: header(6, 4, 0, 0) + b"\0\4\xff\xff\xff\xff", FLOW_CONTROL_ERROR),
    "max frame size under 16384": (lambda a: header(6, 4, 0, 0) + b"\0\5\0\0\0\1", PROTOCOL_ERROR),
    "DATA on stream 0": (lambda a: header(1, 0, 0, 0) + b"x", PROTOCOL_ERROR),
    "DATA on an idle stream": (lambda a: DataFrame(5, b"x").serialize(), PROTOCOL_ERROR),
    "padding longer than the frame": (lambda a: header(3, 0, 8, 1) + b"\xff\0\0", PROTOCOL_ERROR),
    "HEADERS on an even id": (lambda a: a.headers(2), PROTOCOL_ERROR),
    "HEADERS on stream 0": (lambda a: header(1, 1, 4, 0) + b"\x82", PROTOCOL_ERROR),
    "PUSH_PROMISE from a client": (lambda a: PushPromiseFrame(1, 2, flags=["END_HEADERS"]).serialize(), PROTOCOL_ERROR),
    "PRIORITY on stream 0": (lambda a: header(5, 2, 0, 0) + bytes(5), PROTOCOL_ERROR),
    "CONTINUATION from nowhere": (lambda a: ContinuationFrame(1, b"\x82").serialize(), PROTOCOL_ERROR),
    "another frame inside a header block": (
        lambda a: HeadersFrame(3, b"\x82").serialize() + PingFrame(0, b"12345678").serialize(),
        PROTOCOL_ERROR,
    ),
    "HPACK index that does not exist": (lambda a: header(2, 1, 4, 3) + b"\xff\x7f", COMPRESSION_ERROR),
    "HPACK table size over the limit": (lambda a: header(4, 1, 4, 3) + b"\x3f\xff\xff\x7f", COMPRESSION_ERROR),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_connection_error(name):
    attacker = Attacker()
    attacker.open()
    build, code = BROKEN[name]
    attacker.send(build(attacker))
    attacker.assert_terminated(code)


@pytest.mark.parametrize("farewells", [0, 1, 2, 3])
def test_a_violation_after_our_own_goaway_is_still_one(farewells):
    attacker = Attacker()
    attacker.open()
    for number in range(farewells):
        (attacker.victim.goaway if number == 1 else attacker.victim.shutdown_notice)()
    attacker.send(b"")
    assert len([frame for frame in attacker.told if isinstance(frame, GoAwayFrame)]) == min(farewells, 2)
    attacker.send(header(8, 6, 0, 1) + bytes(8))
    attacker.assert_terminated(PROTOCOL_ERROR)


def test_garbage_instead_of_a_preface():
    attacker = Attacker()
    attacker.victim = Connection(client=False, settings=Settings(), limits=LIMITS)
    attacker.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    attacker.assert_terminated(PROTOCOL_ERROR)


def test_a_server_that_does_not_begin_with_settings():
    victim = Connection(client=True, settings=Settings(), limits=LIMITS)
    (ended,) = victim.receive(PingFrame(0, b"12345678").serialize(), 0.0)
    assert isinstance(ended, Terminated)
    assert ended.error_code == PROTOCOL_ERROR


METHOD, AUTHORITY = CONNECT
SCHEME, PATH = (b":scheme", b"https"), (b":path", b"/")
MALFORMED = {
    "CONNECT with :scheme": [METHOD, SCHEME, AUTHORITY],
    "CONNECT with :path": [METHOD, AUTHORITY, PATH],
    "CONNECT without :authority": [METHOD],
    "CONNECT with :protocol, which we did not offer": [METHOD, SCHEME, AUTHORITY, PATH, (b":protocol", b"websocket")],
    "two authorities": [METHOD, AUTHORITY, AUTHORITY],
    "empty authority": [METHOD, (b":authority", b"")],
    "unknown pseudo-header": [*CONNECT, (b":gossamer", b"x")],
    "pseudo-header after a field": [METHOD, (b"x", b"y"), AUTHORITY],
    "response pseudo-header": [*CONNECT, (b":status", b"200")],
    "upper case": [*CONNECT, (b"X-Upper", b"y")],
    "connection header": [*CONNECT, (b"connection", b"close")],
    "line feed in a value": [*CONNECT, (b"x", b"a\nb")],
    "NUL in a value": [*CONNECT, (b"x", b"a\0b")],
    "no path": [(b":method", b"GET"), SCHEME, AUTHORITY],
    "no method": [SCHEME, AUTHORITY, PATH],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_costs_its_stream_only(name):
    attacker = Attacker()
    attacker.send(attacker.headers(1, MALFORMED[name]))
    assert only(attacker.events, HeadersReceived) == []
    attacker.assert_reset(1, PROTOCOL_ERROR)
    attacker.send(attacker.headers(3))
    assert only(attacker.events, HeadersReceived)[0].stream_id == 3


def test_content_length_that_lies():
    attacker = Attacker()
    attacker.send(attacker.headers(1, [(b":method", b"POST"), SCHEME, AUTHORITY, PATH, (b"content-length", b"3")]))
    attacker.send(DataFrame(1, b"four").serialize())
    attacker.assert_reset(1, PROTOCOL_ERROR)


def test_stream_window_overflow_by_update():
    attacker = Attacker()
    attacker.open()
    attacker.send(WindowUpdateFrame(1, 2**31 - 1).serialize())
    attacker.assert_reset(1, FLOW_CONTROL_ERROR)


def test_stream_window_update_of_zero():
    attacker = Attacker()
    attacker.open()
    attacker.send(header(4, 8, 0, 1) + bytes(4))
    assert attacker.victim.terminated or StreamReset(1, PROTOCOL_ERROR, False) in attacker.events


def test_more_data_than_the_stream_window():
    attacker = Attacker(settings=Settings(initial_window_size=20_000))
    attacker.open()
    for _ in range(3):
        attacker.send(DataFrame(1, bytes(16_000)).serialize())
    attacker.assert_reset(1, FLOW_CONTROL_ERROR)
    assert sum(len(event.data) for event in only(attacker.events, DataReceived)) <= 20_000


def test_more_data_than_the_connection_window():
    """It is given back on receipt, so only a piece that is larger than all of it can break it."""
    settings = Settings(initial_window_size=2**31 - 1, connection_window=65_535, max_frame_size=100_000)
    attacker = Attacker(settings=settings)
    attacker.open()
    attacker.send(DataFrame(1, bytes(70_000)).serialize())
    attacker.assert_terminated(FLOW_CONTROL_ERROR)


def test_data_on_a_closed_stream_is_counted_and_dropped():
    """RFC 9113 5.1: frames in flight on a stream we reset must be ignored, and the connection's window stays right."""
    attacker = Attacker()
    attacker.open()
    attacker.victim.reset(1, CANCEL)
    attacker.send(b"")
    attacker.events.clear()
    for _ in range(200):
        attacker.send(DataFrame(1, bytes(16_384)).serialize())
    assert attacker.events == []
    assert not attacker.victim.terminated


def test_data_after_end_stream():
    attacker = Attacker()
    attacker.open()
    attacker.send(DataFrame(1, b"last", flags=["END_STREAM"]).serialize())
    attacker.send(DataFrame(1, b"more").serialize())
    assert b"".join(event.data for event in only(attacker.events, DataReceived)) == b"last"
    attacker.assert_terminated(STREAM_CLOSED)


def test_a_header_list_over_the_limit_costs_its_stream_only():
    attacker = Attacker(settings=Settings(max_header_list_size=4_000))
    attacker.send(attacker.headers(1, [*CONNECT, (b"x", b"v" * 4_000)]))
    assert only(attacker.events, HeadersReceived) == []
    attacker.assert_reset(1, ENHANCE_YOUR_CALM)


def test_hpack_bomb_is_not_expanded():
    """One large field in the table, referred to ten thousand times: 40 MB if it were kept."""
    attacker = Attacker(settings=Settings(max_header_list_size=16_384))
    attacker.send(attacker.headers(1, [*CONNECT, (b"bomb", b"b" * 3_900)]))
    before = resident()
    index = bytes([0x80 | 62])
    attacker.send(header(10_000, 1, 4, 3) + index * 10_000)
    assert resident() - before < 5 << 20
    assert (
        StreamReset(3, ENHANCE_YOUR_CALM, False) in attacker.events
        or StreamReset(3, PROTOCOL_ERROR, False) in attacker.events
    )


@pytest.mark.parametrize("client", [False, True], ids=["requests that are reset", "responses with 1xx"])
def test_many_small_bombs_are_not_expanded_in_one_go(client: bool):
    """Lists just within the limit, of some 30 bytes each: 8 KB that would become 15 MB."""
    attacker = Attacker(client=client, settings=Settings(max_header_list_size=65_536), limits=Limits())
    first = [(b":status", b"103")] if client else CONNECT
    if client:
        attacker.victim.request([(b":method", b"CONNECT"), (b":authority", b"a:1")])
        attacker.victim.pull()
    attacker.send(attacker.headers(1, [*first, (b"bomb", b"b" * 3_900)]))
    bomb = attacker.encoder.encode(first) + bytes([0x80 | 62]) * 15
    said = b""
    for number in range(250):
        stream = 1 if client else 3 + 2 * number
        said += header(len(bomb), 1, 4, stream) + bomb
        said += b"" if client else RstStreamFrame(stream, CANCEL).serialize()
    attacker.send(said)
    lists = [event.headers for event in only(attacker.events, HeadersReceived)]
    assert sum(len(name) + len(value) for fields in lists for name, value in fields) < 5 << 20
    attacker.assert_terminated(ENHANCE_YOUR_CALM)


def test_as_many_fields_one_after_the_other_cost_nothing():
    attacker = Attacker(settings=Settings(max_header_list_size=65_536), limits=Limits())
    attacker.send(attacker.headers(1, [*CONNECT, (b"bomb", b"b" * 3_900)]))
    bomb = attacker.encoder.encode(CONNECT) + bytes([0x80 | 62]) * 15
    for number in range(90):
        attacker.send(header(len(bomb), 1, 4, 3 + 2 * number) + bomb)
    assert len(only(attacker.events, HeadersReceived)) == 91
    assert not attacker.victim.terminated


class Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2 (mallinfo(3))."""

    _fields_ = tuple((f"field{number}", ctypes.c_size_t) for number in range(10))


def allocated() -> int:
    """Bytes that C code of this process has allocated and not freed: hblkhd + uordblks."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo
    info = mallinfo2()
    return info.field4 + info.field7


def resident() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096


def test_continuation_flood():
    attacker = Attacker(settings=Settings(max_header_list_size=2**31))
    attacker.send(HeadersFrame(1, b"\x00\x01a\x01b").serialize())
    for _ in range(20):
        attacker.send(ContinuationFrame(1, b"\x00\x01a\x01b" * 100).serialize())
        if attacker.victim.terminated:
            break
    attacker.assert_terminated(ENHANCE_YOUR_CALM)


def test_empty_continuation_flood():
    attacker = Attacker()
    attacker.send(HeadersFrame(1, b"").serialize() + ContinuationFrame(1, b"").serialize() * 20)
    attacker.assert_terminated(ENHANCE_YOUR_CALM)


def test_rapid_reset():
    attacker = Attacker()
    for number in range(50):
        stream = 2 * number + 1
        attacker.send(attacker.headers(stream) + RstStreamFrame(stream, CANCEL).serialize())
        if attacker.victim.terminated:
            break
    assert number == 10
    ended = attacker.assert_terminated(ENHANCE_YOUR_CALM)
    assert "RST_STREAM" in ended.detail


def test_resets_at_a_bearable_rate_are_fine():
    attacker = Attacker()
    for number in range(50):
        stream = 2 * number + 1
        attacker.send(attacker.headers(stream) + RstStreamFrame(stream, CANCEL).serialize(), now=float(number))
    assert not attacker.victim.terminated
    assert attacker.victim.open_streams == 0


@pytest.mark.parametrize(
    "provoke",
    [
        lambda a, s: a.headers(s, [METHOD, SCHEME, AUTHORITY]),
        lambda a, s: a.headers(s) + WindowUpdateFrame(s, 2**31 - 1).serialize(),
        lambda a, s: a.headers(s, [*CONNECT, (b"x", b"v" * 3_000)]),
    ],
    ids=["malformed request", "window overflow", "headers too large"],
)
def test_making_us_reset(provoke):
    """A client that makes the server reset counts as if it had reset by itself (CVE-2025-8671)."""
    attacker = Attacker(settings=Settings(max_header_list_size=2_000))
    for number in range(50):
        attacker.send(provoke(attacker, 2 * number + 1))
        if attacker.victim.terminated:
            break
    assert number <= 20
    attacker.assert_terminated(ENHANCE_YOUR_CALM)


def test_streams_over_the_limit():
    attacker = Attacker(settings=Settings(max_concurrent_streams=3))
    for number in range(4):
        attacker.send(attacker.headers(2 * number + 1))
    assert attacker.victim.open_streams == 3
    attacker.assert_terminated(PROTOCOL_ERROR)  # it had acknowledged the limit


def test_streams_over_a_limit_that_was_never_acknowledged():
    attacker = Attacker(settings=Settings(max_concurrent_streams=3))
    attacker.victim = Connection(client=False, settings=Settings(max_concurrent_streams=3), limits=LIMITS)
    attacker.encoder = Encoder()
    attacker.send(PREFACE + SettingsFrame(0).serialize())
    for number in range(50):
        attacker.send(attacker.headers(2 * number + 1))
        if attacker.victim.terminated:
            break
        assert attacker.victim.open_streams <= 3
    assert number < 20
    attacker.assert_terminated(ENHANCE_YOUR_CALM)


@pytest.mark.parametrize(
    "frame",
    [
        PingFrame(0, b"12345678").serialize(),
        SettingsFrame(0, {4: 1000}).serialize(),
        DataFrame(1, b"").serialize(),
        DataFrame(1, b"", pad_length=3, flags=["PADDED"]).serialize(),
    ],
    ids=["PING", "SETTINGS", "empty DATA", "padded empty DATA"],
)
@pytest.mark.parametrize("reads", [True, False])
def test_a_flood_of(frame, reads):
    attacker = Attacker()
    attacker.open()
    for _ in range(30):
        (attacker.send if reads else attacker.deaf)(frame)
    attacker.told += frames(attacker.victim.pull())
    attacker.assert_terminated(ENHANCE_YOUR_CALM)


def test_a_peer_that_never_reads_its_answers():
    """Within the rates, but nothing is taken: cut off at the backlog."""
    attacker = Attacker()
    for number in range(200):
        attacker.deaf(PingFrame(0, b"12345678").serialize(), now=2.0 * number)
        if attacker.victim.terminated:
            break
    assert 40 <= number <= 51
    attacker.told += frames(attacker.victim.pull())
    attacker.assert_terminated(ENHANCE_YOUR_CALM)


def test_a_peer_that_reads_slowly_but_reads_is_not_cut_off():
    attacker = Attacker()
    attacker.open()
    for number in range(500):
        attacker.victim.write(1, bytes(1_000))
        attacker.deaf(PingFrame(0, b"12345678").serialize(), now=2.0 * number)
        attacker.deaf(WindowUpdateFrame(0, 1_000).serialize() + WindowUpdateFrame(1, 1_000).serialize())
        assert len(attacker.victim.pull(1_000 if number % 20 else 900)) <= 1_000  # never quite empty
    assert not attacker.victim.terminated


def test_ten_thousand_frames_in_one_piece():
    """The backlog counts inside one receive() as well."""
    attacker = Attacker(limits=Limits(pings=Rate(burst=10**6, per_second=1), max_control_backlog=100))
    attacker.deaf(PingFrame(0, b"12345678").serialize() * 10_000)
    sent = attacker.victim.pull()
    assert len(sent) < 200 * 17
    attacker.told += frames(sent)
    attacker.assert_terminated(ENHANCE_YOUR_CALM)


def test_too_many_settings_in_one_frame():
    attacker = Attacker()
    attacker.send(header(6 * 9, 4, 0, 0) + b"\x00\x04\x00\x00\x00\x64" * 9)
    attacker.assert_terminated(ENHANCE_YOUR_CALM)


@pytest.mark.parametrize("client", [False, True])
def test_priority_and_unknown_frames_are_ignored(client):
    attacker = Attacker(client=client)
    if not client:
        attacker.open()
    attacker.events.clear()
    attacker.told.clear()
    frames_of = (PriorityFrame(2 * n + 101, depends_on=2 * n + 103, stream_weight=9).serialize() for n in range(20_000))
    flood = b"".join(frames_of)  # made before: a sanitizer's heap keeps what the test itself has freed
    before = resident()
    attacker.send(flood)
    attacker.send(header(9_000, 0x77, 3, 1) + b"x" * 9_000)
    attacker.send(header(7, 0x10, 0, 0) + b"\0\0\0\1u=0")  # PRIORITY_UPDATE, RFC 9218
    assert attacker.events == []
    assert attacker.told == []
    assert resident() - before < 4 << 20


def test_a_hostile_server_pushes():
    attacker = Attacker(client=True)
    stream = attacker.victim.request(CONNECT)
    attacker.send(b"")
    push = PushPromiseFrame(stream, 2, attacker.encoder.encode([(b":method", b"GET")]), flags=["END_HEADERS"])
    attacker.send(push.serialize())
    attacker.assert_terminated(PROTOCOL_ERROR)


def test_a_hostile_server_answers_what_was_not_asked():
    attacker = Attacker(client=True)
    attacker.send(attacker.headers(1, OK))
    attacker.assert_terminated(PROTOCOL_ERROR)


@pytest.mark.parametrize(
    "fields",
    [
        [(b"x", b"y")],
        [(b":status", b"abc")],
        [*OK, (b":path", b"/")],
        [(b":status", b"404"), (b"content-length", b"5"), (b"content-length", b"6")],
    ],
    ids=["no status", "status not a number", "request pseudo-header", "two lengths"],
)
def test_a_malformed_response_costs_its_stream_only(fields):
    attacker = Attacker(client=True)
    stream = attacker.victim.request(CONNECT)
    attacker.send(b"")
    attacker.send(attacker.headers(stream, fields))
    attacker.assert_reset(stream, PROTOCOL_ERROR)


def test_data_before_the_response():
    attacker = Attacker(client=True)
    stream = attacker.victim.request(CONNECT)
    attacker.send(b"")
    attacker.send(DataFrame(stream, b"x").serialize())
    assert only(attacker.events, DataReceived) == []
    attacker.assert_terminated(PROTOCOL_ERROR)


def test_connections_leave_no_memory_behind():
    def life() -> None:
        attacker = Attacker(limits=Limits())
        for number in range(20):
            attacker.open(2 * number + 1)
            attacker.victim.write(2 * number + 1, bytes(100_000))
        attacker.send(DataFrame(1, b"x" * 1_000).serialize() + HeadersFrame(41, b"\x82").serialize())
        attacker.victim.trailers(3, [(b"a", b"b")])

    for _ in range(30):
        life()
    before = allocated()
    for _ in range(200):
        life()
    assert allocated() - before < 20_000  # 200 lives hold 400 MB
