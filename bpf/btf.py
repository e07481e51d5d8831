"""Type information. Format: https://docs.kernel.org/bpf/btf.html

To the kernel: the smallest that lets a socket storage map exist, an int key and a struct of the value's size; it is
refused without, so that dumps can be typed. From the kernel: where its struct tcp_sock has the sequence numbers, and
what tells that data is to leave with the SYN.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path

KERNEL = Path("/sys/kernel/btf/vmlinux")

KEY, VALUE = 1, 4  # type ids in what `storage` returns

_INT, _ARRAY, _STRUCT = 1, 3, 4
_HEADER = struct.Struct(
    "=HBBIIIII"
)  # magic, version, flags, length of this, types: offset, length; names: offset, length
_MAGIC = 0xEB9F
# Bytes that follow a type's first 12, by kind: always, and for each of its members.
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
_PER_MEMBER = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}


def storage(size: int) -> bytes:
    """Types of `int -> struct value { unsigned char bytes[size]; }`."""
    names = b"\0int\0unsigned char\0value\0bytes\0"

    def name(text: str) -> int:
        return names.index(b"\0" + text.encode() + b"\0") + 1

    def kind(number: int, members: int = 0) -> int:
        return number << 24 | members

    types = b"".join(
        (
            struct.pack("=IIII", name("int"), kind(_INT), 4, 1 << 24 | 32),  # 1: signed, 32 bits
            struct.pack("=IIII", name("unsigned char"), kind(_INT), 1, 8),  # 2
            struct.pack("=IIIIII", 0, kind(_ARRAY), 0, 2, 1, size),  # 3: element 2, index 1
            struct.pack("=III", name("value"), kind(_STRUCT, 1), size),  # 4
            struct.pack("=III", name("bytes"), 3, 0),
        )
    )
    header = _HEADER.pack(_MAGIC, 1, 0, 24, 0, len(types), len(types), len(names))
    return header + types + names


@functools.cache
def sequence_offsets(members: tuple[str, ...]) -> dict[str, int] | None:
    """Bytes from the start of the running kernel's struct tcp_sock to these members; None: it does not tell."""
    try:
        found = member_offsets(KERNEL.read_bytes(), "tcp_sock")
    except (OSError, ValueError):
        return None
    return {member: found[member] for member in members} if found.keys() >= set(members) else None


@functools.cache
def fast_open() -> tuple[int, int] | None:
    """Of struct tcp_sock: bytes to `fastopen_req`, bits to `fastopen_connect`; None: the kernel does not tell."""
    try:
        found = member_bits(KERNEL.read_bytes(), "tcp_sock")
        return found["fastopen_req"] // 8, found["fastopen_connect"]
    except (OSError, ValueError, KeyError):
        return None


def member_offsets(blob: bytes, name: str) -> dict[str, int]:
    """Named members of the first struct of this name: byte offsets. Empty if there is none; ValueError if it is no BTF.
    Bit fields are left out."""
    return {member: bits // 8 for member, bits, width in _struct(blob, name) if not width}


def member_bits(blob: bytes, name: str) -> dict[str, int]:
    """The same in bits, with the bit fields."""
    return {member: bits for member, bits, _ in _struct(blob, name)}


def _struct(blob: bytes, name: str) -> list[tuple[str, int, int]]:
    """(member, offset in bits, width of a bit field or 0)"""
    try:
        magic, _, _, start, types, types_length, names, names_length = _HEADER.unpack_from(blob)
        if magic != _MAGIC:
            raise ValueError(f"magic number {magic:#x} is not BTF's in this machine's byte order")
        if len(blob) < start + max(types + types_length, names + names_length):
            raise ValueError("the BTF is cut off")
        strings = blob[start + names : start + names + names_length]
        wanted = strings.find(b"\0" + name.encode() + b"\0") + 1
        at, end = start + types, start + types + types_length
        while wanted and at < end:
            label, info, _ = struct.unpack_from("=III", blob, at)
            kind, members = info >> 24 & 0x1F, info & 0xFFFF
            if kind == _STRUCT and label == wanted:
                return _members(blob[at + 12 : at + 12 + 12 * members], strings, sized=bool(info >> 31))
            at += 12 + _FIXED.get(kind, 0) + members * _PER_MEMBER.get(kind, 0)
    except struct.error as error:
        raise ValueError(f"the BTF is cut off: {error}") from error
    return []


def _members(data: bytes, strings: bytes, *, sized: bool) -> list[tuple[str, int, int]]:
    """`sized`: the upper byte of an offset is the size of a bit field."""
    found = []
    for label, _, bits in struct.iter_unpack("=III", data):
        if label:
            member = strings[label : strings.index(b"\0", label)].decode()
            found.append((member, bits & 0xFFFFFF, bits >> 24) if sized else (member, bits, 0))
    return found
