"""What the corpus began with: transcripts, and the violations of tests/lab/test_hostile.py.

usage: python -m tests.fuzz.seeds FOLDER    writes FOLDER/<target>/<name>
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from mesh.identity import SpiffeId
from tests.fuzz.steps import (
    CLOSE,
    DIALLED,
    GOING,
    GREETED,
    LAPSE,
    NO_STREAMS,
    NOTHING,
    PLAIN,
    RECALL,
    REFUSAL,
    SILENT,
    SMALL,
    STANDING,
    STRANGE,
    TUNNEL,
    frames,
    say,
    shake,
    step,
)
from tests.lab.frames import Speaker, credit
from tests.lab.offender import PREFACE
from tests.lab.test_hostile import BROKEN, COSTS_A_STREAM, MALFORMED, NO_PREFACE
from tests.unit.ztunnel.pump.authority import Authority

LONGEST = 6000
"""Bytes of a seed: from longer ones little follows that does not follow from these."""
AUTHORITY = "10.0.0.7:8080"
Seeds = Iterator[tuple[str, bytes]]


def _speaker() -> Speaker:
    return Speaker(sock=cast(ssl.SSLSocket, None))


def _bytes(made: object) -> bytes:
    return made.serialize() if isinstance(made, Frame) else cast(bytes, made)


def _response(stream: int, *fields: tuple[str, str], flags: tuple[str, ...] = ("END_HEADERS",)) -> bytes:
    return cast(bytes, HeadersFrame(stream, Encoder().encode(list(fields)), flags=list(flags)).serialize())


def _asked(stream: int, forwarded: str) -> bytes:
    fields = [(":method", "CONNECT"), (":authority", AUTHORITY), ("forwarded", forwarded), ("traceparent", "0" * 55)]
    return frames(0, _speaker().headers(stream, fields).serialize())


def server() -> Seeds:
    """Far 0 is the peer, far 1 the application that its first CONNECT leads to."""
    opening = frames(0, _speaker().connect(1, AUTHORITY).serialize())
    start = bytes([PLAIN | GREETED]) + opening
    data = frames(0, DataFrame(1, b"ping\n").serialize())
    last = frames(0, DataFrame(1, b"", flags=["END_STREAM"]).serialize())
    yield "request", start + data + say(1, b"pong\n") + last + step("LEAVE", 1, 0)
    yield "request-ended-by-application", start + say(1, b"pong\n") + step("LEAVE", 1, 1) + data + last
    yield "application-resets", start + data + step("LEAVE", 1, 2) + data
    yield "peer-leaves", start + data + step("LEAVE", 0, 1)
    yield "peer-resets", start + data + frames(0, RstStreamFrame(1, 8).serialize()) + data
    yield "refused", bytes([REFUSAL | GREETED]) + opening + last
    yield "refused-later", bytes([NOTHING | GREETED]) + opening + data + step("DECIDE", 0, REFUSAL, 1) + last
    yield "revoked", start + data + step("DECIDE", 0, CLOSE, 1) + data
    yield "undecided", bytes([NOTHING | GREETED]) + opening + step("WAIT", 70) + data
    yield "relayed-into-a-tunnel", (
        bytes([TUNNEL | GREETED]) + opening + step("HELLO", 1) + frames(1, _response(1, (":status", "200"))) + data
        + frames(1, DataFrame(1, b"pong\n", flags=["END_STREAM"]).serialize()) + last
    )  # fmt: skip
    yield "bulk-both-ways", start + step("BULK", 0, 1, 60) + step("BULK", 1, 0, 100) + step("HEAR", 1, 0)
    yield "slow-application", start + step("HEAR", 1, 0) + step("BULK", 0, 1, 90) + step("HEAR", 1, 40) + last
    yield "silent-peer", bytes([PLAIN | GREETED | SILENT | SMALL]) + opening + step("BULK", 1, 0, 200) + data
    yield "pings-unanswered", start + step("WAIT", 90) + step("WAIT", 90) + step("WAIT", 90)
    yield "pod-goes", start + data + step("CHANGE", 2) + last + step("WAIT", 8) + data
    yield "pod-dropped", start + data + step("CHANGE", 4) + data
    yield "new-certificate", start + step("CHANGE", 0) + step("DIAL", 1) + step("HELLO", 2) + data
    yield "several-peers", start + b"".join(step("DIAL", n) + step("HELLO", 2 + n) for n in range(6))
    yield "dial-refused", start[:1] + step("STUMBLE", 1) + opening + step("WAIT", 41)
    yield "dial-late", start[:1] + step("STUMBLE", 0) + opening + data
    yield "close-notify", start + step("CUT", 0, on=True) + data
    yield "tls-error", start + step("CUT", 1, on=True) + data
    yield (
        "many-streams",
        bytes([PLAIN | GREETED])
        + b"".join(frames(0, _speaker().connect(1 + 2 * n, AUTHORITY).serialize(), on=n % 2 == 0) for n in range(10)),
    )
    yield (
        "rapid-reset",
        bytes([PLAIN | GREETED])
        + b"".join(
            frames(
                0,
                _speaker().connect(1 + 2 * n, AUTHORITY).serialize() + RstStreamFrame(1 + 2 * n, 8).serialize(),
                on=True,
            )
            for n in range(16)
        ),
    )
    yield (
        "floods",
        start
        + frames(0, PingFrame(0, b"12345678").serialize())
        + step("AGAIN", 255)
        + frames(0, SettingsFrame(0, {4: 0}).serialize())
        + step("AGAIN", 200),
    )
    yield (
        "windows",
        start
        + frames(0, SettingsFrame(0, {4: 0}).serialize())
        + step("BULK", 1, 0, 20)
        + frames(
            0, credit(1, 100).serialize() + credit(0, 100_000).serialize() + SettingsFrame(0, {4: 70_000}).serialize()
        ),
    )
    yield (
        "captured-too",
        start + step("CAPTURE", 1) + say(2, b"hello") + step("CAPTURE", 0) + step("DECIDE", 1, TUNNEL, 1),
    )
    asked = [_asked(1 + 2 * n, f'for="[fd00::]:{4000 + n}"') for n in range(5)]
    answered = data + say(1, b"pong\n") + last + step("LEAVE", 1, 0)
    for name, choice in (("standing", PLAIN), ("standing-tunnel", TUNNEL)):
        yield (
            name,
            bytes([NOTHING | GREETED]) + asked[0] + step("DECIDE", 0, choice, STANDING) + answered
            + asked[1] + step("LEAVE", 2, 0) + asked[2] + step("WAIT", 1) + step("LEAVE", 3, 2)
            + asked[3] + step("CHANGE", LAPSE) + step("STUMBLE", 1) + asked[4],
        )  # fmt: skip
    yield (
        "standing-plaintext",
        bytes([NOTHING | GREETED]) + step("CAPTURE", 1) + step("DECIDE", 0, PLAIN, STANDING)
        + step("CAPTURE", 1) + step("STUMBLE", 1) + step("CAPTURE", 1) + step("CHANGE", 4),
    )  # fmt: skip
    yield (
        "standing-recalled",
        bytes([NOTHING | GREETED]) + step("CAPTURE", 1) + step("DECIDE", 0, PLAIN, STANDING) + step("CAPTURE", 1)
        + step("CHANGE", RECALL, 0) + step("CAPTURE", 1) + step("DECIDE", 1, PLAIN, STANDING) + step("CAPTURE", 1)
        + step("WAIT", 1) + step("LEAVE", 2, 0) + step("CHANGE", RECALL, 0),
    )  # fmt: skip
    for number, claim in enumerate(('[fd00::]:0"', '[fd00::]:65536"', "[fd00::]:1", "[fd00::]:", "")):
        yield f"not-standing-{number}", start + _asked(3, f'for="{claim}') + data
    for number, said in enumerate(NO_PREFACE.values()):
        yield f"no-preface-{number}", bytes([PLAIN]) + say(0, said)
    for name, (build, _) in (BROKEN | COSTS_A_STREAM).items():
        yield _file(name), start + frames(0, _bytes(build(_speaker(), AUTHORITY))) + data
    for name, fields in MALFORMED.items():
        yield _file(name), start + frames(0, _speaker().headers(3, fields).serialize()) + data


def client() -> Seeds:
    """Far 0 is the application, far 1 the server that was dialled for it."""
    hello = step("HELLO", 1)
    start = bytes([TUNNEL]) + hello
    answer = frames(1, _response(1, (":status", "200")))
    data = frames(1, DataFrame(1, b"pong\n").serialize())
    last = frames(1, DataFrame(1, b"", flags=["END_STREAM"]).serialize())
    yield "answer", start + say(0, b"ping\n") + answer + data + last + step("LEAVE", 0, 0)
    yield "application-first", start + say(0, b"ping\n") + answer + step("LEAVE", 0, 0) + data + last
    yield "application-resets", start + answer + data + step("LEAVE", 0, 2) + data
    yield "refused", start + frames(1, _response(1, (":status", "403"), flags=("END_HEADERS", "END_STREAM")))
    yield "status-000", start + frames(1, _response(1, (":status", "000"))) + step("WAIT", 90)
    yield "informational", start + frames(1, _response(1, (":status", "103"), ("link", "x"))) + answer + data
    yield "trailers", start + answer + data + frames(1, _response(1, ("x", "y"), flags=("END_HEADERS", "END_STREAM")))
    yield "no-status", start + frames(1, _response(1, ("x", "y")))
    yield "unasked", start + frames(1, _response(3, (":status", "200")))
    yield "pushed", start + frames(1, _bytes(BROKEN["6.6 PUSH_PROMISE from a client"][0](_speaker(), "")))
    yield "goaway", start + answer + frames(1, GoAwayFrame(0, last_stream_id=1).serialize()) + data + last
    yield (
        "goaway-unprocessed",
        start + frames(1, GoAwayFrame(0, last_stream_id=0).serialize()) + hello.replace(b"\x01", b"\x02"),
    )
    yield "refused-stream", start + frames(1, RstStreamFrame(1, 7).serialize()) + step("HELLO", 2) + answer
    yield "never-answers", start + step("WAIT", 85) + answer
    yield "silent-server", bytes([TUNNEL | SILENT | SMALL]) + hello + answer + step("BULK", 0, 0, 250) + data
    yield (
        "no-streams-allowed",
        bytes([TUNNEL])
        + frames(1, SettingsFrame(0, {3: 0}).serialize())
        + step("CAPTURE", 0)
        + frames(1, SettingsFrame(0, {3: 5}).serialize()),
    )
    yield "permits-no-streams", bytes([TUNNEL | NO_STREAMS]) + step("CAPTURE", 0)
    yield "goes-away-at-once", bytes([TUNNEL | GOING]) + step("CAPTURE", 0)
    yield "many-applications", start + b"".join(step("CAPTURE", 0, on=n % 2 == 0) for n in range(12)) + step("HELLO", 6)
    yield "server-leaves", start + answer + step("LEAVE", 1, 1) + say(0, b"more")
    yield "new-certificate", start + answer + step("CHANGE", 0) + step("CAPTURE", 0) + step("HELLO", 3) + data
    yield "dropped", start + answer + step("CHANGE", 4) + data
    yield "dial-refused", start + step("CHANGE", 3) + step("STUMBLE", 1) + step("CAPTURE", 0)
    yield (
        "windows",
        bytes([TUNNEL])
        + frames(1, SettingsFrame(0, {4: 0}).serialize())
        + answer
        + step("BULK", 0, 0, 40)
        + frames(1, credit(1, 20_000).serialize() + credit(0, 100_000).serialize()),
    )
    yield (
        "standing",
        bytes([NOTHING]) + step("DECIDE", 0, TUNNEL, STANDING) + hello + answer + step("CAPTURE", 0)
        + frames(1, _response(3, (":status", "200"))) + step("CAPTURE", 0) + step("WAIT", 1)
        + frames(1, _response(5, (":status", "403"))) + step("CHANGE", LAPSE) + step("CAPTURE", 0),
    )  # fmt: skip
    yield "bulk", start + answer + step("BULK", 1, 1, 120) + step("HEAR", 0, 0) + step("BULK", 1, 1, 80)
    for name, (build, _) in (BROKEN | COSTS_A_STREAM).items():
        yield _file(name), start + answer + frames(1, _bytes(build(_speaker(), AUTHORITY))) + data


def handshake() -> Seeds:
    """Far 0 is a peer with a certificate of the mesh; where we dial, far 1 is, and far 0 the application."""
    through = shake(0) + shake(0) + shake(0)
    speaks = say(0, PREFACE + SettingsFrame(0).serialize(), name="SPEAK")
    asks = say(0, _speaker().connect(1, AUTHORITY).serialize(), name="SPEAK")
    yield "let-in", bytes([PLAIN]) + through + speaks + asks + step("BYE", 0)
    yield "stranger", bytes([STRANGE]) + through + speaks
    yield "keys", bytes([PLAIN]) + through + speaks + step("KEYS", 0, 40) + asks
    yield "keys-unread", bytes([PLAIN | SILENT | SMALL]) + through + speaks + step("KEYS", 0, 63) * 4
    yield "late", bytes([PLAIN]) + shake(0) + step("WAIT", 41)
    yield "cut-short", bytes([PLAIN]) + shake(0, percent=50) + step("LEAVE", 0, 0)
    for offset in (0, 1, 3, 5, 9, 45, 120, 400):
        yield f"changed-at-{offset}", bytes([PLAIN]) + shake(0, offset, 1) + shake(0) + speaks
        yield f"changed-later-at-{offset}", bytes([PLAIN]) + shake(0) + shake(0, offset, 1) + speaks
        yield f"server-changed-at-{offset}", bytes([TUNNEL | DIALLED]) + shake(1, offset, 1) + shake(1)
    yield "served", bytes([TUNNEL | DIALLED]) + shake(1) * 3 + say(1, SettingsFrame(0).serialize(), name="SPEAK")
    yield "served-by-a-stranger", bytes([TUNNEL | DIALLED | STRANGE]) + shake(1) * 3
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    for name, protocols in (("h2", ["h2"]), ("others", ["http/1.1", "h3"]), ("none", [])):
        if protocols:
            context.set_alpn_protocols(protocols)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        peer = context.wrap_bio(incoming, outgoing)
        try:
            peer.do_handshake()
        except ssl.SSLWantReadError:
            yield f"client-hello-{name}", bytes([PLAIN]) + say(0, outgoing.read())
    yield "http", bytes([PLAIN]) + say(0, b"GET / HTTP/1.1\r\n\r\n")
    yield "alert", bytes([PLAIN]) + say(0, bytes.fromhex("15030300020228"))
    yield "slow", bytes([PLAIN]) + b"".join(say(0, bytes([one])) for one in bytes.fromhex("1603010200010001fc0303"))


def certificate() -> Seeds:
    root = Authority.new()
    ours = "spiffe://cluster.local/ns/a/sa/b"
    other = "spiffe://other.domain/ns/c/sa/d"
    for name, sans in {
        "one": (ours,),
        "two": (other, ours),
        "none": (),
        "others": ("https://a.b/c", "spiffe://cluster.local/", other),
        "many": tuple(f"spiffe://cluster.local/ns/n{n}/sa/s" for n in range(20)),
        "parts": ("spiffe://cluster.local/ns//sa/b", "spiffe://cluster.local/ns/a/sa/", "spiffe:///ns/a/sa/b"),
        "longest": (f"spiffe://{'t' * 255}/ns/{'n' * 253}/sa/{'s' * 253}",),
        "too-long": (f"spiffe://{'t' * 256}/ns/a/sa/b", f"spiffe://cluster.local/ns/{'n' * 254}/sa/b"),
        "letters": ("spiffe://Cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/A_b/sa/C-d.e"),
    }.items():
        issued = root.issue(SpiffeId("cluster.local", "a", "b"), sans=sans).chain[0]
        yield f"der-{name}", b"\0" + issued
        lines = "\n".join(sans).encode()
        yield f"lines-{name}", b"\2" + lines
        yield f"expected-{name}", b"\6" + lines
        at = issued.find(bytes.fromhex("0603551d11"))
        if at >= 0:
            yield f"names-{name}", b"\1" + issued[issued.index(b"\x30", at + 10) :][:1500]


def _file(name: str) -> str:
    return "".join(c if c.isalnum() or c == "." else "-" for c in name.lower())[:60]


def write(folder: Path) -> None:
    for seeds in (handshake, server, client, certificate):
        (folder / seeds.__name__).mkdir(parents=True, exist_ok=True)
        for name, data in seeds():
            if len(data) <= LONGEST:
                (folder / seeds.__name__ / name).write_bytes(data)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
