"""bpf(2), as the kernel's union bpf_attr lays it out. File descriptors are ints that the caller closes."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path

_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}.get(platform.machine(), 321)
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long

# enum bpf_cmd
MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT, PROG_LOAD, OBJ_PIN, OBJ_GET, PROG_ATTACH = range(9)
(
    TEST_RUN,
    PROG_BY_ID,
    OBJ_INFO,
    TRACEPOINT_OPEN,
    BTF_LOAD,
    LOOKUP_BATCH,
    LOOKUP_DELETE_BATCH,
    UPDATE_BATCH,
    DELETE_BATCH,
    LINK_CREATE,
    LINK_UPDATE,
    LINK_DETACH,
) = (
    10,
    13,
    15,
    17,
    18,
    24,
    25,
    26,
    27,
    28,
    29,
    34,
)

# enum bpf_map_type
HASH, ARRAY, PROG_ARRAY, PERCPU_ARRAY, LPM_TRIE, SOCKMAP, SOCKHASH, SK_STORAGE, RINGBUF = 1, 2, 3, 6, 11, 15, 18, 24, 27

# flags of MAP_UPDATE
ANY, NOEXIST, EXIST = 0, 1, 2


def bpf(command: int, attr: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """One call; OSError with the command's number otherwise. `attr` is padded to what every command here needs."""
    buffer = ctypes.create_string_buffer(bytes(attr), max(len(attr), 128)) if isinstance(attr, bytes) else attr
    result = _syscall(_NUMBER, command, buffer, len(buffer))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"bpf({command})")
    return int(result)


def call(command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
    """The same without exceptions, for per-connection paths: 0 or more, or -errno."""
    result = _syscall(_NUMBER, command, attr, len(attr))
    return int(result) if result >= 0 else -ctypes.get_errno()


def create_map(
    *, kind: int, name: str, key: int, value: int, entries: int, flags: int = 0, btf: tuple[int, int, int] = (0, 0, 0)
) -> int:
    """`btf`: file descriptor, type id of the key, type id of the value."""
    try:
        return bpf(
            MAP_CREATE,
            struct.pack("=7I16s4I4x", kind, key, value, entries, flags, 0, 0, name.encode()[:15], 0, *btf),
        )
    except OSError as error:
        raise OSError(error.errno, f"map {name} could not be created: {error.strerror}") from error


def load_program(*, kind: int, attach: int, name: str, instructions: bytes, license: str) -> int:
    """Load one program; the verifier's log is in the error."""

    def load(log: ctypes.Array[ctypes.c_char] | None) -> int:
        return bpf(
            PROG_LOAD,
            struct.pack(
                "=IIQQIIQII16sII",
                kind,
                len(instructions) // 8,
                ctypes.addressof(code),
                ctypes.addressof(terms),
                1 if log else 0,
                len(log) if log else 0,
                ctypes.addressof(log) if log else 0,
                0,
                0,
                name.encode()[:15],
                0,
                attach,
            ),
        )

    code = ctypes.create_string_buffer(instructions, len(instructions))
    terms = ctypes.create_string_buffer(license.encode())
    try:
        return load(None)
    except OSError as error:
        log = ctypes.create_string_buffer(1 << 20)
        try:
            return load(log)
        except OSError:
            tail = log.value.decode(errors="replace").strip()[-4000:]
            raise OSError(error.errno, f"program {name} was refused: {error.strerror}\n{tail}") from error


def load_btf(blob: bytes) -> int:
    data = ctypes.create_string_buffer(blob, len(blob))
    return bpf(BTF_LOAD, struct.pack("=QQIII", ctypes.addressof(data), 0, len(blob), 0, 0))


def pin(fd: int, path: Path) -> None:
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        bpf(OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0))
    except OSError as error:
        raise OSError(error.errno, f"{path} could not be pinned: {error.strerror}") from error


def open_pin(path: Path) -> int | None:
    """The object pinned at `path`, or None."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        return bpf(OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise OSError(error.errno, f"{path} could not be opened: {error.strerror}") from error


def attach_to_map(program: int, map_fd: int, attach: int) -> None:
    bpf(PROG_ATTACH, struct.pack("=IIII", map_fd, program, attach, 0))


def open_tracepoint(name: str, program: int) -> int:
    text = ctypes.create_string_buffer(name.encode())
    return bpf(TRACEPOINT_OPEN, struct.pack("=QI", ctypes.addressof(text), program))


def create_link(program: int, target: int, attach: int) -> int:
    return bpf(LINK_CREATE, struct.pack("=IIII", program, target, attach, 0))


def update_link(link: int, program: int) -> bool:
    """Replace the program of a link; False if what it was attached to is gone (a netns goes asynchronously)."""
    try:
        bpf(LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0))
    except OSError as error:
        if error.errno == errno.ENOLINK:
            return False
        raise
    return True


def detach_link(link: int) -> None:
    """Detach now, whoever else holds the link. A link whose target is gone already is no error."""
    try:
        bpf(LINK_DETACH, struct.pack("=I", link))
    except OSError as error:
        if error.errno not in (errno.ENOLINK, errno.EOPNOTSUPP):
            raise


def test_run(program: int, packet: bytes) -> int:
    """Run a program once on a packet of at least 14 bytes, in the network namespace of this thread; what it returns."""
    data = ctypes.create_string_buffer(packet, len(packet))
    attr = struct.pack("=IIIIQQIIIIQQIII", program, 0, len(packet), 0, ctypes.addressof(data), *(0,) * 10)
    buffer = ctypes.create_string_buffer(attr, 128)
    bpf(TEST_RUN, buffer)
    return int(struct.unpack_from("=I", buffer, 4)[0])


def program_by_id(id: int) -> int:
    return bpf(PROG_BY_ID, struct.pack("=III", id, 0, 0))


def info(fd: int, size: int) -> bytes:
    """struct bpf_{map,prog,link}_info of an object, the first `size` bytes."""
    buffer = ctypes.create_string_buffer(size)
    bpf(OBJ_INFO, struct.pack("=IIQ", fd, size, ctypes.addressof(buffer)))
    return buffer.raw


def put_program(map_fd: int, index: int, program: int) -> None:
    """Into a program array."""
    key, value = ctypes.c_uint32(index), ctypes.c_uint32(program)
    bpf(MAP_UPDATE, struct.pack("=IIQQQ", map_fd, 0, ctypes.addressof(key), ctypes.addressof(value), 0))
