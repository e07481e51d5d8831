"""Inputs as they are written: the steps of script.pxi by name."""

from __future__ import annotations

import struct

_STEPS = """
    SAY FRAME HELLO AGAIN BULK HEAR LEAVE WAIT DIAL CAPTURE DECIDE CHANGE STUMBLE CUT SHAKE SPEAK KEYS BYE TURN
"""
STEPS = tuple(_STEPS.split())
NOTHING, PLAIN, TUNNEL, REFUSAL, CLOSE = range(5)
"""What becomes of a connection; the first four, in an input's first byte, of every one."""
GREETED, SMALL, SILENT, STRANGE, DIALLED = 4, 8, 16, 32, 64
"""Further bits of the first byte; see targets.pxi."""
NO_STREAMS, GOING = 32, 64
"""Of the client's."""
STANDING = 16
"""Added to a decision's variant: an order for all like it."""
LAPSE = 77
"""A change: no order stands."""
RECALL = 78
"""A change, with the number of a connection: no order for those like it."""
ON = 0x80
"""Added to a step: no turn of the loop after it."""


def step(name: str, *arguments: int, on: bool = False) -> bytes:
    """One that has only small numbers."""
    return bytes([STEPS.index(name) | (ON if on else 0), *arguments])


def say(far: int, data: bytes, *, name: str = "SAY", on: bool = False) -> bytes:
    return step(name, far, on=on) + struct.pack("<H", len(data)) + data


def shake(far: int, offset: int = 0, changed: int = 0, percent: int = 100) -> bytes:
    return step("SHAKE", far) + struct.pack("<HBB", offset, changed, percent)


def frames(far: int, data: bytes, *, on: bool = False) -> bytes:
    """A piece of HTTP/2 by frames; what is none, as it is."""
    made = b""
    while len(data) >= 9:
        length, kind, flags = int.from_bytes(data[:3]), data[3], data[4]
        stream = int.from_bytes(data[5:9])
        if stream >= 0xF8 or 9 + length > len(data) or length > 0xFFFF:
            break
        made += step("FRAME", far, kind, flags, stream, on=on) + struct.pack("<H", length) + data[9 : 9 + length]
        data = data[9 + length :]
    return made + (say(far, data, on=on) if data else b"")
