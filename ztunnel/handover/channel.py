"""Messages with file descriptors over a connected unix socket. Blocks, with a timeout: for a thread.

A message is its length (4 bytes, network order), with the descriptors beside it (SCM_RIGHTS, unix(7)), and MessagePack.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

from ztunnel.handover.message import Message, decode, encode

MAX_MESSAGE_BYTES = 256 << 20
MAX_DESCRIPTORS = 64  # per message; the kernel takes up to 253
_LENGTH = struct.Struct("!I")
_CREDENTIALS = struct.Struct("=iII")  # pid, uid, gid


class Gone(Exception):
    """The other agent has closed the connection, or died."""


class Stranger(Exception):
    """The other end is no process of root's, or says what no agent would."""


class Channel:
    """Owns the socket. Stranger if the other end is not root's."""

    def __init__(self, sock: socket.socket) -> None:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid, uid, _ = _CREDENTIALS.unpack(raw)
        if uid != os.geteuid():
            sock.close()
            raise Stranger(f"process {self.pid} of user {uid} is at the other end of the hand-over socket")
        self._sock = sock

    def send(self, message: Message, descriptors: Sequence[int] = (), *, seconds: float) -> None:
        """The descriptors are duplicated. Gone; TimeoutError if the other end does not take it."""
        data = encode(message)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._sock.settimeout(seconds)
        try:
            self._sock.sendmsg([_LENGTH.pack(len(data))], rights)  # whole: a stream socket takes 4 bytes or none
            self._sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Gone from error

    def receive(self, *, seconds: float) -> tuple[Message, list[int]]:
        """A message and its descriptors, which are the caller's. Gone, TimeoutError, Stranger."""
        self._sock.settimeout(seconds)
        head, descriptors = self._head()
        try:
            (length,) = _LENGTH.unpack(head)
            if length > MAX_MESSAGE_BYTES:
                raise Stranger(f"a message of {length} bytes")
            return decode(self._exactly(length)), descriptors
        except ValueError as error:
            close_all(descriptors)
            raise Stranger(f"no message: {error}") from error
        except BaseException:
            close_all(descriptors)
            raise

    def _head(self) -> tuple[bytes, list[int]]:
        """The kernel never joins bytes that came with descriptors to others, so that these are this message's."""
        room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        try:
            # Not socket.recv_fds, which forgets its flags.
            head, rights, flags, _ = self._sock.recvmsg(_LENGTH.size, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError as error:
            raise Gone from error
        descriptors = [fd for _, _, data in rights for fd in _descriptors(data)]
        if flags & socket.MSG_CTRUNC or 0 < len(head) < _LENGTH.size:
            close_all(descriptors)
            raise Stranger("a message that is cut off")
        if not head:
            raise Gone
        return head, descriptors

    def _exactly(self, count: int) -> bytes:
        data = bytearray(count)
        view, filled = memoryview(data), 0
        while filled < count:
            try:
                got = self._sock.recv_into(view[filled:])
            except ConnectionResetError as error:
                raise Gone from error
            if not got:
                raise Gone
            filled += got
        return bytes(data)

    def await_end(self) -> None:
        """Until the other end is closed."""
        self._sock.settimeout(None)
        with suppress(ConnectionResetError):
            while self._sock.recv(4096):
                pass

    def abort(self) -> None:
        """From another thread: whoever waits in here gets Gone."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()


def _descriptors(data: bytes) -> array.array[int]:
    found = array.array("i")
    found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
