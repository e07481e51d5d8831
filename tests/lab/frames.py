"""HTTP/2 as an offender speaks it: frames built by hyperframe and header blocks by hpack, which nobody here wrote, over
a TLS connection that the mesh has accepted; and what the agent answers, read by the same."""

from __future__ import annotations

import ssl
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hpack import Encoder
from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from tests.lab.offender import PREFACE, push

NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED = 0, 1, 3, 5
FRAME_SIZE_ERROR, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 6, 8, 9, 11
_PATIENCE = 30.0  # seconds for an answer
WHOLE = "GOAWAY"  # the connection is ended
STREAM = "RST_STREAM"  # a stream is
Verdict = tuple[str, int]
"""What was ended, and the error code that was given (RFC 9113 §7)."""


def raw(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A frame that no library would build (RFC 9113 §4.1); `length` may lie."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


@dataclass(kw_only=True)
class Speaker:
    """One TLS connection to the tunnel port; `heard` are all frames that came, in their order."""

    sock: ssl.SSLSocket
    encoder: Encoder = field(default_factory=Encoder)
    heard: list[Frame] = field(default_factory=list)
    _rest: bytes = b""

    def hello(self, settings: dict[int, int] | None = None) -> None:
        """Preface and SETTINGS (RFC 9113 §3.4); the agent's SETTINGS are acknowledged."""
        push(self.sock, PREFACE + SettingsFrame(0, settings or {}).serialize())
        push(self.sock, SettingsFrame(0, flags=["ACK"]).serialize())

    def send(self, *frames: Frame | bytes) -> None:
        """As much of it as is taken."""
        push(self.sock, b"".join(one if isinstance(one, bytes) else one.serialize() for one in frames))

    def headers(self, stream: int, fields: Sequence[tuple[str, str]], *flags: str) -> Frame:
        return HeadersFrame(stream, self.encoder.encode(list(fields)), flags=["END_HEADERS", *flags])

    def connect(self, stream: int, authority: str) -> Frame:
        return self.headers(stream, [(":method", "CONNECT"), (":authority", authority)])

    def open(self, stream: int, authority: str) -> None:
        """A tunnel to an application, answered."""
        self.send(self.connect(stream, authority))
        self.until(lambda frame: isinstance(frame, HeadersFrame) and frame.stream_id == stream)

    def verdict(self) -> Verdict:
        """How it ends: the error of the first GOAWAY that has one, or of the first RST_STREAM."""
        found = self.until(lambda frame: _verdict(frame) is not None)
        verdict = _verdict(found)
        assert verdict is not None
        return verdict

    def until(self, wanted: Any) -> Frame:
        """The first frame, also of those heard already, that is `wanted`. ConnectionError if the end comes first."""
        seen, end = 0, time.monotonic() + _PATIENCE
        while True:
            for frame in self.heard[seen:]:
                if wanted(frame):
                    return frame
            seen = len(self.heard)
            if time.monotonic() > end:
                raise TimeoutError(f"not heard in {_PATIENCE:g} s; heard were {self.heard[-5:]}")
            self._listen()

    def ended(self) -> bool:
        """Whether the other side has closed; False after some time without."""
        end = time.monotonic() + _PATIENCE
        try:
            while time.monotonic() < end:
                self._listen()
        except (ConnectionError, ssl.SSLError):
            return True
        return False

    def _listen(self) -> None:
        try:
            data = self.sock.recv(1 << 16)
        except TimeoutError:
            return
        except ssl.SSLEOFError as error:
            raise ConnectionResetError(str(error)) from None
        if not data:
            raise ConnectionResetError(f"the agent closed; heard were {self.heard[-5:]}")
        self._rest += data
        while len(self._rest) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._rest[:9]))
            if len(self._rest) < 9 + length:
                break
            frame.parse_body(memoryview(self._rest[9 : 9 + length]))
            self.heard.append(frame)
            self._rest = self._rest[9 + length :]


def _verdict(frame: Frame) -> Verdict | None:
    if isinstance(frame, GoAwayFrame) and frame.error_code:
        return WHOLE, frame.error_code
    if isinstance(frame, RstStreamFrame):
        return STREAM, frame.error_code
    return None


def credit(stream: int, increment: int) -> Frame:
    """WINDOW_UPDATE."""
    return WindowUpdateFrame(stream, increment)
