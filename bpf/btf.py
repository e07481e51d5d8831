"""The smallest type information that lets a socket storage map exist: an int key and a struct of the value's size.

Format: https://docs.kernel.org/bpf/btf.html. The kernel refuses socket storage without it, so that dumps can be typed.
"""

from __future__ import annotations

import struct

KEY, VALUE = 1, 4  # type ids in what `storage` returns

_INT, _ARRAY, _STRUCT = 1, 3, 4


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
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    return header + types + names
