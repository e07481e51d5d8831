"""One map: bytes in, bytes out. Buffers are made once, so that a look-up per connection costs one system call."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping

from bpf import syscall
from bpf.artifact import MapDefinition

_PAGE = 1024  # entries per batch


class Map:
    """Owns `fd`. Not for use by several threads at once: the buffers are shared by all calls."""

    __slots__ = ("_attr", "_attr_delete", "_key", "_value", "definition", "fd", "value_size")

    def __init__(self, fd: int, definition: MapDefinition) -> None:
        self.fd = fd
        self.definition = definition
        self.value_size = definition.value * (possible_cpus() if definition.kind == syscall.PERCPU_ARRAY else 1)
        self._key = ctypes.create_string_buffer(max(definition.key, 1))
        self._value = ctypes.create_string_buffer(max(self.value_size, 1))
        self._attr = ctypes.create_string_buffer(
            struct.pack("=IIQQQ", fd, 0, ctypes.addressof(self._key), ctypes.addressof(self._value), 0), 128
        )

        self._attr_delete = ctypes.create_string_buffer(struct.pack("=IIQ", fd, 0, ctypes.addressof(self._key)), 128)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def get(self, key: bytes) -> bytes | None:
        self._key.raw = key
        result = syscall.call(syscall.MAP_LOOKUP, self._attr)
        if result == 0:
            return self._value.raw
        if result == -errno.ENOENT:
            return None
        raise self._error(result, "read")

    def put(self, key: bytes, value: bytes, flags: int = syscall.ANY) -> bool:
        """False if `flags` say NOEXIST and it exists."""
        self._key.raw, self._value.raw = key, value
        struct.pack_into("=Q", self._attr, 24, flags)
        result = syscall.call(syscall.MAP_UPDATE, self._attr)
        struct.pack_into("=Q", self._attr, 24, 0)
        if result == 0:
            return True
        if result == -errno.EEXIST and flags == syscall.NOEXIST:
            return False
        raise self._error(result, "written")

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        self._key.raw = key
        result = syscall.call(syscall.MAP_DELETE, self._attr_delete)
        if result == 0:
            return True
        if result in (-errno.ENOENT, -errno.EINVAL) and (
            result == -errno.ENOENT or self.definition.kind == syscall.SOCKMAP
        ):
            return False  # an empty place of a sockmap answers EINVAL
        raise self._error(result, "deleted")

    def put_all(self, entries: Mapping[bytes, bytes]) -> None:
        """Into a hash map, by one system call. OSError at the first that cannot be written; those before it are."""
        result, _ = self._batch(syscall.UPDATE_BATCH, entries.keys(), entries.values())
        if result:
            raise self._error(result, "written")

    def delete_all(self, keys: Collection[bytes]) -> None:
        """From a hash map, by one system call; those that are not there are passed over."""
        left = list(keys)
        while left:
            result, done = self._batch(syscall.DELETE_BATCH, left)
            if result not in (0, -errno.ENOENT):
                raise self._error(result, "deleted")
            left = left[done + 1 :] if result else []

    def _batch(self, command: int, keys: Collection[bytes], values: Iterable[bytes] = ()) -> tuple[int, int]:
        """-errno or 0, and how many were done until then."""
        packed, filled = b"".join(keys), b"".join(values)
        if not packed:
            return 0, 0
        places = (ctypes.c_char_p(packed), ctypes.c_char_p(filled))
        at = [ctypes.cast(place, ctypes.c_void_p).value or 0 for place in places]
        attr = ctypes.create_string_buffer(struct.pack("=QQQQIIQQ", 0, 0, *at, len(keys), self.fd, 0, 0), 128)
        return syscall.call(command, attr), struct.unpack_from("=I", attr, 32)[0]

    def walk(self) -> list[bytes]:
        """A walk of a changing map may miss or repeat entries; at most twice its capacity is walked."""
        found: list[bytes] = []
        following = ctypes.create_string_buffer(self.definition.key)
        attr = ctypes.create_string_buffer(struct.pack("=IIQQQ", self.fd, 0, 0, ctypes.addressof(following), 0), 128)
        while len(found) <= 2 * self.definition.entries:
            result = syscall.call(syscall.MAP_NEXT, attr)
            if result == -errno.ENOENT:
                break
            if result:
                raise self._error(result, "walked")
            found.append(following.raw)
            self._key.raw = following.raw
            struct.pack_into("=Q", attr, 8, ctypes.addressof(self._key))
        return found

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        for key in self.walk():
            value = self.get(key)
            if value is not None:
                yield key, value

    def fill(self) -> int:
        """How many entries there are; hash maps in batches, because they may be large."""
        if self.definition.kind != syscall.HASH:
            return len(self.walk())
        return sum(count for count, _, _ in self._batches(syscall.LOOKUP_BATCH))

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        """Of a hash map: every entry that is there all the while, and maybe some that come or go meanwhile."""
        key, value = self.definition.key, self.value_size
        return [
            (keys[i * key : (i + 1) * key], values[i * value : (i + 1) * value])
            for count, keys, values in self._batches(syscall.LOOKUP_BATCH)
            for i in range(count)
        ]

    def clear(self) -> None:
        """Remove every entry that is there now from a hash map."""
        for _ in self._batches(syscall.LOOKUP_DELETE_BATCH):
            pass

    def _batches(self, command: int) -> Iterator[tuple[int, bytes, bytes]]:
        """Buckets of a hash map in pages: number of entries, their keys, their values."""
        page, first = _PAGE, True
        place = ctypes.create_string_buffer(max(self.definition.key, 8))
        at = ctypes.addressof(place)
        while True:
            keys = ctypes.create_string_buffer(page * self.definition.key)
            values = ctypes.create_string_buffer(page * self.value_size)
            attr = ctypes.create_string_buffer(
                struct.pack(
                    "=QQQQIIQQ",
                    0 if first else at,
                    at,
                    ctypes.addressof(keys),
                    ctypes.addressof(values),
                    page,
                    self.fd,
                    0,
                    0,
                ),
                128,
            )
            result = syscall.call(command, attr)
            if result == -errno.ENOSPC and page <= self.definition.entries:
                page *= 2  # one bucket holds more than a page
                continue
            if result not in (0, -errno.ENOENT):
                raise self._error(result, "read")
            count = int(struct.unpack_from("=I", attr, 32)[0])
            yield (
                count,
                ctypes.string_at(keys, count * self.definition.key),
                ctypes.string_at(values, count * self.value_size),
            )
            first = False
            if result:
                return

    def _error(self, result: int, what: str) -> OSError:
        cure = f" (it holds {self.definition.entries} entries)" if result == -errno.E2BIG else ""
        return OSError(-result, f"map {self.definition.name} could not be {what}: {os.strerror(-result)}{cure}")


def possible_cpus() -> int:
    """Values of a per-CPU map are this many."""
    with open("/sys/devices/system/cpu/possible") as file:  # noqa: PTH123 - one read
        return max(int(part.split("-")[-1]) for part in file.read().strip().split(",")) + 1
