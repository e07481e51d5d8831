"""Instructions with maps by name and constants by marker: symbolic, encoded, decoded, resolved."""

from __future__ import annotations

import dataclasses
import json
import struct

import pytest

from bpf import artifact, btf
from bpf.artifact import Artifact, MapDefinition, Program

MARKER = 0x1122334455667788


def wide(value: int, *, source: int = 0, register: int = 1) -> bytes:
    return struct.pack("=BBhiBBhi", 0x18, register | source << 4, 0, _signed(value), 0, 0, 0, _signed(value >> 32))


def _signed(value: int) -> int:
    return struct.unpack("=i", struct.pack("=I", value & 0xFFFFFFFF))[0]


EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)
MAPS = (
    MapDefinition(name="pods", kind=1, key=8, value=40, entries=10, flags=1),
    MapDefinition(name="flows", kind=1, key=48, value=8, entries=10, flags=1),
)


@pytest.fixture
def program() -> Program:
    code = wide(7, source=1) + wide(MARKER) + wide(9, source=1) + wide(7, source=1) + wide(9) + EXIT
    return artifact.symbolic("lookup", code, {7: "pods", 9: "flows", 11: "unused"})


def test_maps_are_named_and_resolved(program: Program) -> None:
    assert program.maps == ("pods", "flows")
    code = artifact.resolved(program, {"pods": 70, "flows": 90})
    assert code == wide(70, source=1) + wide(MARKER) + wide(90, source=1) + wide(70, source=1) + wide(9) + EXIT


def test_a_map_that_is_not_in_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="lookup: instruction 2 refers to map 8"):
        artifact.symbolic("lookup", wide(7, source=1) + wide(8, source=1), {7: "pods"})


def test_markers_are_patched_wherever_they_stand(program: Program) -> None:
    assert artifact.marked(program.instructions, MARKER) == 1
    value = 0xFFFFFFFF00000001
    patched = artifact.patched(wide(MARKER) + wide(MARKER, register=3) + wide(MARKER + 1), {MARKER: value})
    assert patched == wide(value) + wide(value, register=3) + wide(MARKER + 1)


def test_a_map_reference_that_looks_like_a_marker_is_not_patched() -> None:
    code = wide(5, source=1)
    assert artifact.patched(code, {5: 6}) == code


def test_the_second_half_of_a_wide_load_is_not_an_instruction() -> None:
    """Its immediate may hold any byte pattern, also one that reads as another wide load."""
    code = wide(0x18 << 32) + wide(MARKER)
    assert artifact.patched(code, {MARKER: 1}) == wide(0x18 << 32) + wide(1)


def test_survives_the_file(program: Program) -> None:
    whole = Artifact(maps=MAPS, programs=(program,), layout="00000000000000ff", sources="s")
    assert Artifact.decode(whole.encode()) == whole
    assert whole.layout_id == 255


@pytest.mark.parametrize("damage", ["truncated", "format", "field", "instructions", "list", "empty"])
def test_a_damaged_file_is_an_error(damage: str, program: Program) -> None:
    good = Artifact(maps=MAPS, programs=(program,), layout="ff", sources="s").encode()
    text = json.loads(good)
    if damage == "format":
        text["format"] = 0
    elif damage == "field":
        del text["maps"][0]["kind"]
    elif damage == "instructions":
        text["programs"][0]["instructions"] = "§"
    bad = {"truncated": good[:-20], "list": b"[]", "empty": b""}.get(damage, json.dumps(text).encode())
    with pytest.raises(ValueError, match="not a BPF artifact"):
        Artifact.decode(bad)


def test_a_layout_is_its_maps_and_structs() -> None:
    same = artifact.layout_hash(MAPS, "struct a {\n u32 x; };")
    assert same == artifact.layout_hash(MAPS[::-1], "struct a { u32 x; };")
    assert len(same) == 16
    assert same != artifact.layout_hash(MAPS, "struct a { u64 x; };")
    bigger = (dataclasses.replace(MAPS[0], value=48), MAPS[1])
    assert same != artifact.layout_hash(bigger, "struct a { u32 x; };")


def test_type_information_of_a_storage_map() -> None:
    blob = btf.storage(88)
    magic, version, _, header, types_at, types, names_at, names = struct.unpack_from("=HBBIIIII", blob)
    assert (magic, version, header, types_at, names_at) == (0xEB9F, 1, 24, 0, types)
    assert len(blob) == header + types + names
    assert blob[-1:] == b"\0"
