"""C and Python read the same bytes: the header is compiled, and its sizes and offsets are compared."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from bpf import compile, layouts, registry
from mesh import balance
from mesh.model import SocketAddress
from mesh.reason import Reason

ASKED = ("key", "ip", "source", "port", "kind", "holds", "generation", "accelerate", "drawn", "pad")
PRELUDE = """
#include <stddef.h>
#include <stdio.h>
#include <stdint.h>
typedef uint64_t u64; typedef uint32_t u32; typedef uint16_t u16;
"""


@pytest.fixture(scope="module")
def seen_by_c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """`struct`: size, `struct.field`: offset, and constants, as the C compiler has them."""
    folder = tmp_path_factory.mktemp("layouts")
    prints = [f'printf("{c} %zu\\n", sizeof(struct {c}));' for c in [*layouts.STRUCTS, "asked"]]
    for name, (_, fields) in layouts.STRUCTS.items():
        prints += [f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));' for field in fields]
    for field in ASKED:
        prints.append(f'printf("asked.{field} %zu\\n", offsetof(struct asked, {field}));')
    for constant in ("KINDS", "MAX_PODS", "REASONS", "BACKENDS"):
        prints.append(f'printf("{constant} %d\\n", {constant});')
    for constant in ("OUTBOUND4", "OUTBOUND6", "PLAINTEXT4", "PLAINTEXT6", "TUNNEL4", "TUNNEL6"):
        prints.append(f'printf("{constant} %d\\n", {constant});')
    source = folder / "probe.c"
    header = (compile.SOURCE / "layouts.h").read_text()
    source.write_text(f"{PRELUDE}{header}\nint main(void) {{ {' '.join(prints)} return 0; }}\n")
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", folder / "probe", source], check=True)
    lines = subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def field_offsets(layout: struct.Struct) -> list[int]:
    """Offsets of a format's items; no padding is implied by "="."""
    items = re.findall(r"\d*[a-zA-Z]", layout.format.lstrip("="))
    spread = [one for item in items for one in ([item] if item.endswith("s") else [item[-1]] * int(item[:-1] or 1))]
    return [struct.calcsize("=" + "".join(spread[:n])) for n in range(len(spread))]


@pytest.mark.parametrize("name", layouts.STRUCTS)
def test_c_and_python_agree(name: str, seen_by_c: dict[str, int]) -> None:
    layout, fields = layouts.STRUCTS[name]
    assert seen_by_c[name] == layout.size
    assert [seen_by_c[f"{name}.{field}"] for field in fields] == field_offsets(layout)


def test_the_sockets_storage_agrees(seen_by_c: dict[str, int]) -> None:
    offsets = field_offsets(layouts.ASKED)
    assert seen_by_c["asked"] == layouts.ASKED.size
    assert [seen_by_c[f"asked.{f}"] for f in ASKED] == [
        offsets[0],
        *offsets[6:],
    ]


def test_no_struct_is_left_out() -> None:
    header = (compile.SOURCE / "layouts.h").read_text()
    assert set(re.findall(r"^struct (\w+) \{", header, re.M)) == {*layouts.STRUCTS, "asked"}


@pytest.mark.parametrize(
    "constant",
    [
        "KINDS",
        "MAX_PODS",
        "BACKENDS",
        "OUTBOUND4",
        "OUTBOUND6",
        "PLAINTEXT4",
        "PLAINTEXT6",
        "TUNNEL4",
        "TUNNEL6",
    ],
)
def test_constants_agree(constant: str, seen_by_c: dict[str, int]) -> None:
    assert getattr(layouts, constant) == seen_by_c[constant]


def test_the_kernels_reasons_fit(seen_by_c: dict[str, int]) -> None:
    assert seen_by_c["REASONS"] == layouts.REASONS


@pytest.mark.parametrize("ip", ["10.1.2.3", "0.0.0.0", "::1", "::", "fd00::1:2", "2001:db8::ff00:42:8329"])
def test_addresses_survive(ip: str) -> None:
    assert layouts.unpack_ip(layouts.pack_ip(ip)) == ip


def test_a_mapped_address_is_its_ipv4_one() -> None:
    assert layouts.pack_ip("::ffff:10.1.2.3") == layouts.pack_ip("10.1.2.3")


@pytest.mark.parametrize("bad", ["", "10.1.2", "10.1.2.3.4", "fe80::1%eth0", "localhost"])
def test_what_is_no_address_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="not an IP address"):
        layouts.pack_ip(bad)


def test_cidrs() -> None:
    assert layouts.pack_cidr("10.0.0.0/8")[:4] == struct.pack("=I", 104)
    assert layouts.pack_cidr("fd00::/8") == struct.pack("=I", 8) + b"\xfd" + bytes(15)
    with pytest.raises(ValueError, match="host bits"):
        layouts.pack_cidr("10.0.0.1/8")


def test_as_many_backends_as_are_planned() -> None:
    assert layouts.BACKENDS == balance.ENDPOINTS
    assert layouts.SERVICE.size == layouts.BACKENDS * layouts.BACKEND.size + 40


def test_events() -> None:
    local, remote = layouts.pack_ip("10.0.0.1"), layouts.pack_ip("fd00::1")
    event = layouts.unpack_event(layouts.EVENT.pack(9, local, remote, 80, 1234, 3), 0, layouts.EVENT.size)
    assert event.reason is Reason.RESERVED_PORT
    assert (event.netns, event.local, event.remote) == (9, ("10.0.0.1", 80), SocketAddress("fd00::1", 1234))


def test_slots_are_reused_and_end() -> None:
    def pod(slot: int) -> registry.PodSlot:
        return registry.PodSlot(instance=str(slot), slot=slot, cookie=slot, addresses=())

    assert registry.free_slot([]) == 0
    assert registry.free_slot([pod(0), pod(2)]) == 1
    with pytest.raises(ValueError, match="1024 pods"):
        registry.free_slot([pod(n) for n in range(layouts.MAX_PODS)])


def test_every_source_is_compiled() -> None:
    assert sorted(compile.ORDER) == sorted(p.name for p in Path(compile.SOURCE).iterdir())
