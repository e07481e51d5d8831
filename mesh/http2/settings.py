"""What we tell the peer (Settings) and what we hold it to (Limits)."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_WINDOW = 2**31 - 1  # RFC 9113 6.9.1


def _within(name: str, value: float, low: float, high: float, source: str) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: {value} is not within {low}..{high} ({source})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Our SETTINGS frame (RFC 9113 6.5.2) and the size of the connection's window. Sizes are bytes."""

    initial_window_size: int = 65_535
    max_frame_size: int = 16_384
    max_header_list_size: int = 32_768  # enforced: a larger list costs the stream (ENHANCE_YOUR_CALM)
    max_concurrent_streams: int = 100  # what the peer may open; for a client it concerns pushes only
    enable_push: bool = False
    connection_window: int = 1_048_576

    def __post_init__(self) -> None:
        _within("initial_window_size", self.initial_window_size, 0, MAX_WINDOW, "RFC 9113 6.5.2")
        _within("max_frame_size", self.max_frame_size, 16_384, 2**24 - 1, "RFC 9113 6.5.2")
        _within("max_header_list_size", self.max_header_list_size, 1, 2**32 - 1, "RFC 9113 6.5.2")
        _within("max_concurrent_streams", self.max_concurrent_streams, 0, 2**31 - 1, "RFC 9113 6.5.2")
        _within("connection_window", self.connection_window, 65_535, MAX_WINDOW, "RFC 9113 6.9.2")
        if self.enable_push:
            raise ValueError("enable_push: server push is not implemented; leave it False")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A token bucket: `burst` at once, refilled with `per_second`."""

    burst: int
    per_second: float

    def __post_init__(self) -> None:
        _within("burst", self.burst, 1, 2**53, "a frame costs one token")
        _within("per_second", self.per_second, 0, 2**53, "frames per second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on memory and work. All but the outbound ones end in GOAWAY with ENHANCE_YOUR_CALM when exceeded.

    Memory one peer can make us hold, at most: max_concurrent_streams * (initial or grown window, if the application
    does not read) + max_concurrent_streams * max_outbound_buffer + max_header_list_size + some 17 bytes for each of
    max_control_backlog.
    """

    # Payload bytes per stream that write() may queue; WindowOpened when they fall to a quarter of it.
    max_outbound_buffer: int = 262_144
    max_data_frame: int = 16_384  # payload bytes of a DATA frame we send
    turn: int = 16_384  # payload bytes after which another stream may frame: what is one turn arrives in one piece
    max_control_backlog: int = 1_000  # frames we owe the peer and it does not take: acks, RST_STREAM, WINDOW_UPDATE
    max_settings_entries: int = 32  # in one SETTINGS frame
    max_continuations: int = 8  # CONTINUATION frames of one header block
    # Server only: RST_STREAM frames, and frames of the peer that make us send one (also: streams over the limit).
    resets: Rate = field(default_factory=lambda: Rate(burst=1_000, per_second=200))
    pings: Rate = field(default_factory=lambda: Rate(burst=100, per_second=10))
    settings: Rate = field(default_factory=lambda: Rate(burst=50, per_second=5))
    # DATA with neither bytes nor END_STREAM.
    empty_frames: Rate = field(default_factory=lambda: Rate(burst=1_000, per_second=100))

    def __post_init__(self) -> None:
        _within("max_outbound_buffer", self.max_outbound_buffer, 1, 2**40, "bytes")
        _within("max_data_frame", self.max_data_frame, 1, 2**24 - 1, "RFC 9113 4.2")
        _within("turn", self.turn, 1, 2**24 - 1, "bytes")
        _within("max_control_backlog", self.max_control_backlog, 1, 2**31, "frames")
        _within("max_settings_entries", self.max_settings_entries, 1, 2**31, "entries")
        _within("max_continuations", self.max_continuations, 0, 2**31, "frames")
