"""Peers that the mesh has let in and that break HTTP/2 (RFC 9113), with frames built by packages nobody here wrote,
against the tunnel port of a whole agent. Each violation has its code; a flood costs its own connection, bounded CPU and
memory; the connections of others go on."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from statistics import quantiles

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
)

from deploy.lab.cluster import Lab
from mesh.identity import SpiffeId
from tests.lab.frames import (
    CANCEL,
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    PROTOCOL_ERROR,
    STREAM,
    STREAM_CLOSED,
    WHOLE,
    Speaker,
    Verdict,
    credit,
    raw,
)
from tests.lab.objects import pod
from tests.lab.offender import PREFACE, TUNNEL_PORT, Agent, Place, anonymous, credentials, in_pod, push, trusting
from tests.lab.talk import SERVER, Talk, ip, reaches, talk, until
from tests.lab.test_faults import HOSE
from tests.lab.test_mesh import CLUSTER as MESH

OUTSIDER = SpiffeId("cluster.local", "plain", "outsider")
MORE = "".join(pod(f"{name}{number}", "plain", "n1") for name in ("stranger", "snail") for number in range(4))
DATA, HEADERS, PRIORITY, RST, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 2, 3, 4, 6, 7, 8
END_HEADERS, PADDED, PRIORITISED = 4, 8, 0x20


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(MESH + MORE + pod("hose", "mesh", "n2", HOSE) + pod("sink", "mesh", "n2", SERVER))


@pytest.fixture(scope="module")
def member(lab: Lab) -> ssl.SSLContext:
    """A client under a certificate that the mesh accepts."""
    return trusting(credentials(lab, OUTSIDER))


@pytest.fixture(scope="module")
def outsider(lab: Lab) -> Place:
    return in_pod(lab, "outsider", "plain")


@pytest.fixture(scope="module")
def agent(lab: Lab) -> Agent:
    """Of the node that is attacked."""
    return Agent(lab=lab, node="n2")


@pytest.fixture(scope="module")
def target(lab: Lab) -> str:
    """The application that tunnels lead to."""
    return f"{ip(lab, 'server')}:9000"


@contextmanager
def tunnel(lab: Lab, place: Place, member: ssl.SSLContext, to: str = "server") -> Iterator[Speaker]:
    """A connection to the pod's tunnel port, TLS done, nothing said."""
    with place.tls(ip(lab, to), member) as sock:
        sock.settimeout(2)
        yield Speaker(sock=sock)


# What is malformed, and what it costs

Build = Callable[[Speaker, str], object]


def both(first: Frame, second: Frame) -> bytes:
    return first.serialize() + second.serialize()


def _continued(speaker: Speaker, target: str) -> bytes:
    block = speaker.encoder.encode([(":method", "CONNECT"), (":authority", target)])
    return both(HeadersFrame(3, block[:2]), PingFrame(0, b"12345678"))


# With stream 1 open, a CONNECT that was answered; names are as RFC 9113 puts it, with the section.
BROKEN: dict[str, tuple[Build, int]] = {
    "4.2 a frame larger than SETTINGS_MAX_FRAME_SIZE": (lambda s, t: raw(DATA, 0, 1, bytes(16_385)), FRAME_SIZE_ERROR),
    "4.2 the same, announced only": (lambda s, t: raw(DATA, 0, 1, length=2**24 - 1), FRAME_SIZE_ERROR),
    "4.3 a header block that does not decode": (
        lambda s, t: raw(HEADERS, END_HEADERS, 3, b"\xff\x7f"),
        COMPRESSION_ERROR,
    ),
    "4.3 a dynamic table larger than allowed": (
        lambda s, t: raw(HEADERS, END_HEADERS, 3, b"\x3f\xff\xff\x7f"),
        COMPRESSION_ERROR,
    ),
    "4.3 a header block that is not finished before another frame": (_continued, PROTOCOL_ERROR),
    "5.1 DATA on an idle stream": (lambda s, t: DataFrame(5, b"x"), PROTOCOL_ERROR),
    "5.1 RST_STREAM on an idle stream": (lambda s, t: RstStreamFrame(7, CANCEL), PROTOCOL_ERROR),
    "5.1 WINDOW_UPDATE on an idle stream": (lambda s, t: credit(9, 1), PROTOCOL_ERROR),
    "5.1 DATA after END_STREAM": (
        lambda s, t: both(DataFrame(1, b"", flags=["END_STREAM"]), DataFrame(1, b"x")),
        STREAM_CLOSED,
    ),
    "5.1.1 a client's stream with an even id": (lambda s, t: s.connect(2, t), PROTOCOL_ERROR),
    "6.1 DATA on stream 0": (lambda s, t: raw(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
    "6.1 padding as long as the frame": (lambda s, t: raw(DATA, PADDED, 1, b"\x04abc"), PROTOCOL_ERROR),
    "6.2 HEADERS on stream 0": (lambda s, t: raw(HEADERS, END_HEADERS, 0, b"\x82"), PROTOCOL_ERROR),
    "6.2 HEADERS with too much padding": (
        lambda s, t: raw(HEADERS, END_HEADERS | PADDED, 3, b"\xff\x82"),
        PROTOCOL_ERROR,
    ),
    "6.3 PRIORITY on stream 0": (lambda s, t: raw(PRIORITY, 0, 0, bytes(5)), PROTOCOL_ERROR),
    "6.4 RST_STREAM on stream 0": (lambda s, t: raw(RST, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "6.4 RST_STREAM of three bytes": (lambda s, t: raw(RST, 0, 1, bytes(3)), FRAME_SIZE_ERROR),
    "6.5 SETTINGS ACK with a payload": (lambda s, t: raw(SETTINGS, 1, 0, bytes(6)), FRAME_SIZE_ERROR),
    "6.5 SETTINGS on a stream": (lambda s, t: raw(SETTINGS, 0, 1), PROTOCOL_ERROR),
    "6.5 SETTINGS of five bytes": (lambda s, t: raw(SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
    "6.5.2 SETTINGS_ENABLE_PUSH of 2": (lambda s, t: SettingsFrame(0, {2: 2}), PROTOCOL_ERROR),
    "6.5.2 SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1": (lambda s, t: SettingsFrame(0, {4: 2**31}), FLOW_CONTROL_ERROR),
    "6.5.2 SETTINGS_MAX_FRAME_SIZE below 2^14": (lambda s, t: SettingsFrame(0, {5: 16_383}), PROTOCOL_ERROR),
    "6.5.2 SETTINGS_MAX_FRAME_SIZE above 2^24-1": (lambda s, t: SettingsFrame(0, {5: 2**24}), PROTOCOL_ERROR),
    "6.6 PUSH_PROMISE from a client": (lambda s, t: PushPromiseFrame(1, 2, flags=["END_HEADERS"]), PROTOCOL_ERROR),
    "6.7 PING on a stream": (lambda s, t: raw(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "6.7 PING of seven bytes": (lambda s, t: raw(PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "6.8 GOAWAY on a stream": (lambda s, t: raw(GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "6.8 GOAWAY of seven bytes": (lambda s, t: raw(GOAWAY, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE of three bytes": (lambda s, t: raw(WINDOW, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE of zero on the connection": (lambda s, t: raw(WINDOW, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "6.9.1 the connection's window above 2^31-1": (lambda s, t: credit(0, 2**31 - 1), FLOW_CONTROL_ERROR),
    "6.10 CONTINUATION from nowhere": (lambda s, t: ContinuationFrame(1, b"\x82"), PROTOCOL_ERROR),
    "6.10 CONTINUATION of another stream": (
        lambda s, t: both(HeadersFrame(3, b""), ContinuationFrame(5, b"\x82", flags=["END_HEADERS"])),
        PROTOCOL_ERROR,
    ),
}

CONNECT = [(":method", "CONNECT"), (":authority", "10.0.0.7:8080")]
# A request that is malformed costs its stream alone (RFC 9113 §8.1.1).
MALFORMED = {
    "8.5 CONNECT with :scheme": [*CONNECT, (":scheme", "https")],
    "8.5 CONNECT with :path": [*CONNECT, (":path", "/")],
    "8.5 CONNECT without :authority": CONNECT[:1],
    "8.3 two authorities": [*CONNECT, CONNECT[1]],
    "8.3 an unknown pseudo-header field": [*CONNECT, (":gossamer", "x")],
    "8.3 a pseudo-header field after a field": [CONNECT[0], ("x", "y"), CONNECT[1]],
    "8.3 a response's pseudo-header field": [*CONNECT, (":status", "200")],
    "8.3.1 no :method": [(":scheme", "https"), (":authority", "a"), (":path", "/")],
    "8.2.1 a field name in upper case": [*CONNECT, ("X-Upper", "y")],
    "8.2.1 a line feed in a value": [*CONNECT, ("x", "a\nb")],
    "8.2.1 NUL in a value": [*CONNECT, ("x", "a\0b")],
    "8.2.2 connection": [*CONNECT, ("connection", "close")],
    "8.2.2 transfer-encoding": [*CONNECT, ("transfer-encoding", "chunked")],
}
# What may cost the stream or all of it; the code is the same.
COSTS_A_STREAM: dict[str, tuple[Build, int]] = {
    "5.3.1 PRIORITY of four bytes": (lambda s, t: raw(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE of zero": (lambda s, t: raw(WINDOW, 0, 1, bytes(4)), PROTOCOL_ERROR),
    "6.9.1 a stream's window above 2^31-1": (lambda s, t: credit(1, 2**31 - 1), FLOW_CONTROL_ERROR),
    # RFC 9113 asks for the connection; libnghttp2 ends the stream.
    "6.9.2 a stream's window above 2^31-1 by SETTINGS": (
        lambda s, t: both(credit(1, 2**30), SettingsFrame(0, {4: 2**31 - 1})),
        FLOW_CONTROL_ERROR,
    ),
    # With the request itself: later, an application that reads would give back the window as fast as it is used.
    "6.9.1 more DATA than the window": (
        lambda s, t: s.connect(3, t).serialize() + DataFrame(3, bytes(16_384)).serialize() * 64,
        FLOW_CONTROL_ERROR,
    ),
    "10.5.1 a header list that is too large": (
        lambda s, t: b"".join(
            one.serialize()
            for one in (
                HeadersFrame(3, s.encoder.encode([*CONNECT, ("a", "b" * 10_000)])),
                *(ContinuationFrame(3, s.encoder.encode([(f"c{n}", "d" * 12_000)])) for n in range(5)),
                ContinuationFrame(3, s.encoder.encode([("e", "f" * 12_000)]), flags=["END_HEADERS"]),
            )
        ),
        ENHANCE_YOUR_CALM,
    ),
}


@pytest.fixture(scope="module")
def conversation(lab: Lab) -> Iterator[Talk]:
    """A connection of others, open while everything is gone through."""
    with talk(lab, "client") as found:
        yield found


@pytest.fixture
def onlooker(conversation: Talk) -> Iterator[Talk]:
    """Whoever breaks the rules, the connection of others goes on."""
    yield conversation
    assert conversation.says("after that") == "got after that"


def verdict(lab: Lab, place: Place, member: ssl.SSLContext, target: str, build: Build) -> Verdict:
    with tunnel(lab, place, member) as speaker:
        speaker.hello()
        speaker.open(1, target)
        made = build(speaker, target)
        speaker.send(made)  # type: ignore[arg-type]
        found = speaker.verdict()
        assert found[0] == STREAM or speaker.ended(), "a connection that was given up stays open"
        return found


@pytest.mark.parametrize("what", BROKEN)
def test_a_violation_that_costs_the_connection(
    lab: Lab, outsider: Place, member: ssl.SSLContext, target: str, onlooker: Talk, what: str
) -> None:
    build, code = BROKEN[what]
    assert verdict(lab, outsider, member, target, build) == (WHOLE, code)


@pytest.mark.parametrize("what", COSTS_A_STREAM)
def test_a_violation_that_costs_a_stream_at_least(
    lab: Lab, outsider: Place, member: ssl.SSLContext, target: str, onlooker: Talk, what: str
) -> None:
    build, code = COSTS_A_STREAM[what]
    _, found = verdict(lab, outsider, member, target, build)
    assert found == code


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_request_costs_its_stream_and_no_other(
    lab: Lab, outsider: Place, member: ssl.SSLContext, target: str, onlooker: Talk, what: str
) -> None:
    with tunnel(lab, outsider, member) as speaker:
        speaker.hello()
        speaker.open(1, target)
        speaker.send(speaker.headers(3, MALFORMED[what]))
        assert speaker.verdict() == (STREAM, PROTOCOL_ERROR)
        speaker.send(DataFrame(1, b"still here\n"))
        speaker.until(lambda frame: isinstance(frame, DataFrame) and b"still here" in frame.data)


NO_PREFACE = {
    "HTTP/1.1": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "another preface": PREFACE.replace(b"SM", b"MS"),
    "no SETTINGS first": PREFACE + PingFrame(0, b"12345678").serialize(),
}


@pytest.mark.parametrize("said", NO_PREFACE.values(), ids=NO_PREFACE)
def test_3_4_what_is_no_preface(lab: Lab, outsider: Place, member: ssl.SSLContext, onlooker: Talk, said: bytes) -> None:
    with tunnel(lab, outsider, member) as speaker:
        push(speaker.sock, said)
        assert speaker.verdict() == (WHOLE, PROTOCOL_ERROR)
        assert speaker.ended()


def test_what_is_unusual_but_allowed_costs_nothing(
    lab: Lab, outsider: Place, member: ssl.SSLContext, target: str, onlooker: Talk
) -> None:
    """Unknown frames, settings and flags, PRIORITY, padding, reserved bits (RFC 9113 §4.1, §5.5, §6.5.2)."""
    with tunnel(lab, outsider, member) as speaker:
        speaker.hello({0x99: 7, 3: 2**31 - 1, 6: 2**32 - 1})
        speaker.open(1, target)
        speaker.send(
            raw(0x77, 0xFF, 0, b"x" * 9_000),
            raw(0x77, 0, 2**31 - 2, b""),
            PriorityFrame(101, depends_on=0, stream_weight=9),
            raw(PING, 0xFE, 2**31, b"reserved"),
            DataFrame(1, b"padded and whole\n", pad_length=200, flags=["PADDED"]),
        )
        speaker.until(lambda frame: isinstance(frame, DataFrame) and b"padded and whole" in frame.data)
        speaker.until(lambda frame: isinstance(frame, PingFrame) and frame.opaque_data == b"reserved")
        assert not [frame for frame in speaker.heard if isinstance(frame, GoAwayFrame | RstStreamFrame)]


# Floods: what a peer gets for as long as it insists


@dataclass(kw_only=True)
class Watch:
    """How others fare meanwhile, and what it costs the agent."""

    waits: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0
    memory: int = 0
    rounds: int = 0

    def line(self, what: str) -> str:
        p50, p99 = (1e3 * quantiles(self.waits, n=100)[rank - 1] for rank in (50, 99))
        return (
            f"{what}: {self.rounds} connections in {self.seconds:.1f} s; agent: CPU {self.cpu / self.seconds:.0%}, "
            f"memory {self.memory / (1 << 20):+.1f} MiB at most; others: p50 {p50:.1f}, p99 {p99:.1f}, "
            f"max {1e3 * max(self.waits):.1f} ms"
        )


@contextmanager
def watched(lab: Lab, agent: Agent) -> Iterator[Watch]:
    """A conversation of others goes on meanwhile; none of its answers takes long; then the agent is idle again."""
    watch, over, before, began, cpu = Watch(), threading.Event(), agent.memory, time.monotonic(), agent.seconds
    with talk(lab, "client") as conversation:
        wrong: list[str] = []

        def exchange() -> None:
            number = 0
            while not over.is_set():
                number += 1
                start = time.monotonic()
                heard = conversation.says(f"round {number}")
                watch.waits.append(time.monotonic() - start)
                watch.memory = max(watch.memory, agent.memory - before)
                if heard != f"got round {number}":
                    wrong.append(heard)
                    return
                over.wait(0.01)

        thread = threading.Thread(target=exchange)
        thread.start()
        try:
            yield watch
        finally:
            over.set()
            thread.join(60)
        watch.seconds, watch.cpu = time.monotonic() - began, agent.seconds - cpu
        assert not wrong and not thread.is_alive(), wrong
    until(lambda: agent.idle)
    assert reaches(lab, "neighbour")


def _requests(speaker: Speaker, target: str, count: int) -> list[bytes]:
    return [speaker.connect(1 + 2 * number, target).serialize() for number in range(count)]


def rapid_reset(speaker: Speaker, target: str) -> bytes:
    """CVE-2023-44487."""
    cancels = (RstStreamFrame(1 + 2 * number, CANCEL).serialize() for number in range(20_000))
    return b"".join(map(bytes.__add__, _requests(speaker, target, 20_000), cancels))


def made_to_reset(speaker: Speaker, target: str) -> bytes:
    """CVE-2025-8671: the agent is made to reset what was asked of it."""
    too_much = (credit(1 + 2 * number, 2**31 - 1).serialize() for number in range(20_000))
    return b"".join(map(bytes.__add__, _requests(speaker, target, 20_000), too_much))


def continuations(speaker: Speaker, target: str) -> bytes:
    """CVE-2024-27316: a header block without end."""
    block = speaker.encoder.encode([("a", "b")])
    return HeadersFrame(1, block).serialize() + ContinuationFrame(1, block * 1000).serialize() * 2000


def empty_continuations(speaker: Speaker, target: str) -> bytes:
    return HeadersFrame(1, b"").serialize() + ContinuationFrame(1, b"").serialize() * 100_000


def hpack_bomb(speaker: Speaker, target: str) -> bytes:
    """One large field in the table, referred to over and over."""
    first = speaker.headers(1, [*CONNECT, ("bomb", "b" * 3_900)]).serialize()
    later = (raw(HEADERS, END_HEADERS, 3 + 2 * number, bytes([0x80 | 62]) * 16_000) for number in range(200))
    return first + b"".join(later)


def settings(speaker: Speaker, target: str) -> bytes:
    """CVE-2019-9515."""
    return SettingsFrame(0, {4: 65_535}).serialize() * 100_000


def pings(speaker: Speaker, target: str) -> bytes:
    """CVE-2019-9512."""
    return PingFrame(0, b"12345678").serialize() * 200_000


def empty_data(speaker: Speaker, target: str) -> bytes:
    """CVE-2019-9518."""
    return speaker.connect(1, target).serialize() + DataFrame(1, b"").serialize() * 200_000


def priorities(speaker: Speaker, target: str) -> bytes:
    """CVE-2019-9513; a tree of dependencies is nothing to us."""
    return b"".join(PriorityFrame(2 * n + 101, depends_on=2 * n + 103).serialize() for n in range(20_000)) * 5


def window_crumbs(speaker: Speaker, target: str) -> bytes:
    return speaker.connect(1, target).serialize() + credit(1, 1).serialize() * 200_000


FLOODS = (
    rapid_reset, made_to_reset, continuations, empty_continuations, hpack_bomb, settings, pings, empty_data, priorities,
    window_crumbs,
)  # fmt: skip
INSISTS_S, ATTACKERS = 3.0, 2
"""Each attacker comes back as soon as it is cut off."""
LONGEST_S = 10  # that others wait, on a machine that has other work; the figures are printed (pytest -rP)


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.__name__)
def test_a_flood_costs_the_others_nothing_but_a_moment(
    lab: Lab, outsider: Place, agent: Agent, member: ssl.SSLContext, target: str, flood: Callable[[Speaker, str], bytes]
) -> None:
    payloads: dict[int, bytes] = {}

    def attack(number: int, until_then: float, watch: Watch) -> None:
        while time.monotonic() < until_then:
            with suppress(OSError, TimeoutError), tunnel(lab, outsider, member) as speaker:
                speaker.hello()
                if number not in payloads:  # a fresh encoder makes the same each time
                    payloads[number] = flood(speaker, target)
                push(speaker.sock, payloads[number])
                watch.rounds += 1
                speaker.sock.settimeout(0.2)
                with suppress(OSError):
                    while speaker.sock.recv(1 << 16):
                        pass

    with watched(lab, agent) as watch:
        end = time.monotonic() + INSISTS_S
        threads = [threading.Thread(target=attack, args=(number, end, watch)) for number in range(ATTACKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    print(watch.line(flood.__name__))
    assert watch.rounds >= ATTACKERS
    assert max(watch.waits) < LONGEST_S
    assert watch.memory < 64 << 20
    assert agent.refused()["HTTP2_PROTOCOL"] > 0


def test_zero_windows_hold_no_more_than_the_buffers_of_their_streams(
    lab: Lab, outsider: Place, agent: Agent, member: ssl.SSLContext
) -> None:
    """Much is asked for on many streams, nothing of it permitted (CVE-2019-9517), then a byte at a time (-9511)."""
    streams, peers = 100, 4
    source = f"{ip(lab, 'hose')}:9000"
    with watched(lab, agent) as watch, ExitStack() as stack:
        speakers = []
        for _ in range(peers):
            speaker = stack.enter_context(tunnel(lab, outsider, member, "hose"))
            speaker.hello({4: 0})
            speaker.send(b"".join(_requests(speaker, source, streams)))
            speakers.append(speaker)
        until(lambda: len(agent.connections("hose")) == streams * peers)
        until(lambda: agent.idle)
        for speaker in speakers:
            crumbs = b"".join(credit(1 + 2 * number, 1).serialize() for number in range(streams))
            speaker.send(crumbs * 20)
        watch.rounds = peers
    print(watch.line("zero windows"))
    assert max(watch.waits) < LONGEST_S
    assert watch.memory < streams * peers * (512 << 10), "more than 512 KiB for each stream"
    until(lambda: not agent.connections("hose"))


# Before the handshake is done


def by_strangers(place: Place, address: str) -> None:
    """The costliest that a stranger can have: the agent signs, then learns that there is no certificate."""
    with place.tls(address, anonymous()) as sock:
        sock.settimeout(2)
        while sock.recv(1 << 16):
            pass


def half(place: Place, address: str) -> None:
    """A ClientHello that is answered, and then nothing of ours any more."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        anonymous().wrap_bio(incoming, outgoing).do_handshake()
    with place.dial(address, TUNNEL_PORT) as sock:
        sock.settimeout(2)
        sock.sendall(outgoing.read())
        sock.recv(1 << 16)


def none_at_all(place: Place, address: str) -> None:
    place.dial(address, TUNNEL_PORT).close()


@pytest.mark.parametrize("handshake", [by_strangers, half, none_at_all], ids=lambda handshake: handshake.__name__)
def test_a_storm_of_handshakes_costs_the_others_nothing_but_a_moment(
    lab: Lab, agent: Agent, handshake: Callable[[Place, str], None]
) -> None:
    address, places = ip(lab, "server"), [in_pod(lab, f"stranger{number}", "plain") for number in range(4)]
    before = sum(agent.refused().values())

    def attack(place: Place, until_then: float, watch: Watch) -> None:
        while time.monotonic() < until_then:
            with suppress(OSError):
                handshake(place, address)
            watch.rounds += 1

    with watched(lab, agent) as watch:
        end = time.monotonic() + INSISTS_S
        threads = [threading.Thread(target=attack, args=(place, end, watch)) for place in places]
        for thread in threads:
            thread.start()
        while time.monotonic() < end:
            assert reaches(lab, "neighbour"), "members are let in meanwhile"
        for thread in threads:
            thread.join(60)
    print(watch.line(f"handshakes, {handshake.__name__}"))
    assert watch.rounds >= len(places)
    assert max(watch.waits) < LONGEST_S
    assert watch.memory < 64 << 20
    assert sum(agent.refused().values()) > before


# Slowness and silence


def test_slow_handshakes_by_the_hundred(lab: Lab, agent: Agent) -> None:
    """From several addresses, more than the pod takes at once; a byte now and then, never a whole ClientHello."""
    places = [in_pod(lab, f"snail{number}", "plain") for number in range(4)]
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    before = agent.refused().get("TLS_FAILED", 0)
    address, opened = ip(lab, "server"), 0
    with watched(lab, agent) as watch, ExitStack() as stack:
        socks = []
        for place in places:
            for _ in range(75):
                with suppress(ConnectionError):
                    socks.append(stack.enter_context(place.dial(address, TUNNEL_PORT)))
        for position in range(len(hello)):
            for sock in socks:
                push(sock, hello[position : position + 1])
            assert reaches(lab, "neighbour") and reaches(lab, "client"), "members are let in meanwhile"
        opened = len(socks)
        watch.rounds = opened
        until(lambda: agent.refused().get("TLS_FAILED", 0) >= before + 100)  # none outlives its ten seconds
    print(watch.line("slow handshakes"))
    assert max(watch.waits) < LONGEST_S
    assert watch.memory < 64 << 20


def test_tunnels_that_fall_silent_are_given_up(
    lab: Lab, outsider: Place, agent: Agent, member: ssl.SSLContext, target: str, onlooker: Talk
) -> None:
    """TLS done, then: nothing; half a preface; no request; half a header block; a request and no more. No PING is
    answered."""
    with ExitStack() as stack:
        speakers = [stack.enter_context(tunnel(lab, outsider, member)) for _ in range(5)]
        push(speakers[1].sock, PREFACE[:11])
        speakers[2].hello()
        speakers[3].hello()
        speakers[3].send(HeadersFrame(1, b""))
        speakers[4].hello()
        speakers[4].open(1, target)
        end = time.monotonic() + 75  # a PING after 10 s, 20 s for its answer
        for number, speaker in enumerate(speakers):
            while not speaker.ended():
                assert time.monotonic() < end, f"silence {number} is put up with"
    until(lambda: not [one for one in agent.connections("server") if one["source"]["pod"] == "outsider"])


def test_nobody_stumbled(lab: Lab) -> None:
    """After all of the above."""
    for name in ("node/n1", "node/n2", "controller"):
        text = lab.logs(name).read_text()
        assert "Traceback" not in text, text
        assert "INTERNAL" not in text
