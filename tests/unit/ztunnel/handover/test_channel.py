"""Messages and descriptors over a unix socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from ztunnel.handover import channel
from ztunnel.handover.channel import Channel, Gone, Stranger, close_all
from ztunnel.handover.message import Ask, Taken, Withdrawn

SECONDS = 20.0


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    """A raw end and a channel at the other."""
    raw, other = socket.socketpair()
    made = Channel(other)
    yield raw, made
    raw.close()
    made.close()


def test_descriptors_come_with_their_message_and_are_the_same_sockets() -> None:
    left, right = (Channel(end) for end in socket.socketpair())
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    left.send(Taken(), [listeners[0].fileno()], seconds=SECONDS)
    left.send(Ask(version="none"), seconds=SECONDS)
    left.send(Withdrawn(why="two"), [listener.fileno() for listener in listeners[1:]], seconds=SECONDS)
    ports = []
    for said, count in ((Taken(), 1), (Ask(version="none"), 0), (Withdrawn(why="two"), 2)):
        heard, descriptors = right.receive(seconds=SECONDS)
        assert heard == said
        assert len(descriptors) == count
        for fd in descriptors:
            assert not os.get_inheritable(fd)
            with socket.socket(fileno=fd) as sock:
                ports.append(sock.getsockname()[1])
    assert ports == [listener.getsockname()[1] for listener in listeners]
    for one in (*listeners, left, right):
        one.close()


def test_a_message_larger_than_any_buffer() -> None:
    left, right = (Channel(end) for end in socket.socketpair())
    large = Withdrawn(why="x" * (8 << 20))
    sender = threading.Thread(target=lambda: left.send(large, seconds=SECONDS))
    sender.start()
    assert right.receive(seconds=SECONDS) == (large, [])
    sender.join()
    left.close()
    right.close()


def test_a_dead_end_is_gone(ends: tuple[socket.socket, Channel]) -> None:
    raw, made = ends
    raw.close()
    with pytest.raises(Gone):
        made.receive(seconds=SECONDS)
    with pytest.raises(Gone):
        made.send(Taken(), seconds=SECONDS)
    made.await_end()


def test_the_last_word_is_heard_although_the_end_is_closed(ends: tuple[socket.socket, Channel]) -> None:
    raw, made = ends
    said = Channel(raw.dup())
    said.send(Withdrawn(why="too long"), seconds=SECONDS)
    said.close()
    raw.close()
    with pytest.raises(Gone):
        made.send(Taken(), seconds=SECONDS)
    assert made.receive(seconds=SECONDS) == (Withdrawn(why="too long"), [])


def test_silence_is_a_timeout_and_abort_ends_it(ends: tuple[socket.socket, Channel]) -> None:
    _, made = ends
    with pytest.raises(TimeoutError):
        made.receive(seconds=0.01)
    aborter = threading.Timer(0.05, made.abort)
    aborter.start()
    with pytest.raises(Gone):
        made.receive(seconds=SECONDS)
    aborter.join()


@pytest.mark.parametrize("data", [b"\0\0", b"\0\0\0\1\xc1", b"\xff\xff\xff\xff"], ids=["cut", "nonsense", "huge"])
def test_nonsense_is_a_strangers_and_its_descriptors_are_closed(
    ends: tuple[socket.socket, Channel], data: bytes
) -> None:
    raw, made = ends
    reader, writer = os.pipe()
    socket.send_fds(raw, [data[:4]], [writer])
    if data[4:]:
        raw.sendall(data[4:])
    os.close(writer)
    with pytest.raises(Stranger):
        made.receive(seconds=SECONDS)
    assert os.read(reader, 1) == b"", "a duplicate of the descriptor is left"
    os.close(reader)


def test_more_descriptors_than_a_message_may_have(ends: tuple[socket.socket, Channel]) -> None:
    raw, made = ends
    reader, writer = os.pipe()
    socket.send_fds(raw, [b"\0\0\0\1"], [writer] * (channel.MAX_DESCRIPTORS + 10))
    os.close(writer)
    with pytest.raises(Stranger):
        made.receive(seconds=SECONDS)
    assert os.read(reader, 1) == b""
    close_all([reader])


def test_another_user_is_refused() -> None:
    """A process of another user at the other end."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    left.close()
    right.close()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0gossamer-test-{os.getpid()}")
    listener.listen()
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65534, 65534)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(listener.getsockname())
            os._exit(0 if sock.recv(1) == b"" else 1)
    connected, _ = listener.accept()
    with pytest.raises(Stranger, match="user 65534"):
        Channel(connected)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    listener.close()
