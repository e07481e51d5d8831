"""Type information as the kernel writes it is read, whole or not at all."""

from __future__ import annotations

import struct

import pytest

from bpf import btf
from bpf.programs import SEQUENCE_MARKERS

NAMES = b"\0tcp_sock\0write_seq\0copied_seq\0flag\0int\0other\0"


def name(text: str) -> int:
    return NAMES.index(b"\0" + text.encode() + b"\0") + 1


def blob(types: bytes, magic: int = 0xEB9F) -> bytes:
    return struct.pack("=HBBIIIII", magic, 1, 0, 24, 0, len(types), len(types), len(NAMES)) + types + NAMES


def kind(text: str, number: int, *members: tuple[str, int], size: int = 4, flag: int = 0, extra: int = 0) -> bytes:
    body = b"".join(struct.pack("=III", name(n) if n else 0, 1, offset) for n, offset in members)
    head = struct.pack("=III", name(text), flag << 31 | number << 24 | len(members), size)
    return head + bytes(extra) + body


INT = kind("int", 1, extra=4)
ARRAY = kind("other", 3, extra=12)
UNION = kind("other", 5, ("flag", 0))
TCP_SOCK = kind("tcp_sock", 4, ("copied_seq", 64), ("", 0), ("write_seq", 96))


def test_members_are_found_behind_other_types() -> None:
    assert btf.member_offsets(blob(INT + ARRAY + UNION + TCP_SOCK), "tcp_sock") == {"copied_seq": 8, "write_seq": 12}
    assert btf.member_offsets(blob(INT + ARRAY), "tcp_sock") == {}
    assert btf.member_offsets(blob(INT), "no such name") == {}
    union_of_this_name = kind("tcp_sock", 5, ("flag", 8))
    assert "flag" not in btf.member_offsets(blob(union_of_this_name + TCP_SOCK), "tcp_sock")


def test_bit_fields_are_left_out() -> None:
    with_bits = kind("tcp_sock", 4, ("flag", 3 << 24 | 5), ("write_seq", 32), flag=1)
    assert btf.member_offsets(blob(with_bits), "tcp_sock") == {"write_seq": 4}


def test_bits_have_the_bit_fields_too() -> None:
    with_bits = kind("tcp_sock", 4, ("flag", 3 << 24 | 5), ("write_seq", 32), flag=1)
    assert btf.member_bits(blob(with_bits), "tcp_sock") == {"flag": 5, "write_seq": 32}


def test_the_running_kernel_tells_of_fast_open() -> None:
    found = btf.fast_open()
    assert found is not None
    assert found[0] and found[0] % 8 == 0 and found[1]


def test_what_is_no_btf_is_an_error() -> None:
    for data in (b"", b"short", blob(INT, magic=0x9FEB), blob(INT + TCP_SOCK[:14])[: 24 + 16 + 8]):
        with pytest.raises(ValueError, match="BTF"):
            btf.member_offsets(data, "tcp_sock")


def test_the_running_kernel_tells() -> None:
    found = btf.sequence_offsets(tuple(SEQUENCE_MARKERS))
    assert found is not None
    assert found.keys() == SEQUENCE_MARKERS.keys()
    assert len(set(found.values())) == len(found)
    assert all(offset % 4 == 0 for offset in found.values())
    assert btf.sequence_offsets(("write_seq", "no such member")) is None


def test_a_kernel_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btf, "KERNEL", btf.Path("/nonexistent"))
    assert btf.sequence_offsets(("snd_una",)) is None
    btf.sequence_offsets.cache_clear()
