"""Connections of a pod found and ended through sock_diag, on this kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bpf.netns import open_socket
from mesh.model import SocketAddress
from tests.kernel.rig import Pod, Rig, Worker
from ztunnel import older


@pytest.fixture
def two(rig: Rig) -> tuple[Pod, Pod]:
    return rig.add_pod(), rig.add_pod()


@pytest.fixture
def workers(rig: Rig, two: tuple[Pod, Pod]) -> tuple[Worker, Worker]:
    return rig.worker("pods", two[0]), rig.worker("pods", two[1])


@pytest.fixture
def netns(two: tuple[Pod, Pod]) -> Iterator[int]:
    """Of the first pod."""
    fd = os.open(two[0].netns, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_connections_in_both_directions_are_found_and_ended(
    two: tuple[Pod, Pod], workers: tuple[Worker, Worker], netns: int, family: str
) -> None:
    (a, b), (in_a, in_b) = two, workers
    address_a, address_b = getattr(a, family), getattr(b, family)
    door_a, port_a = in_a.listen(address_a)
    door_b, port_b = in_b.listen(address_b)
    from_b = in_b.dial(address_a, port_a)
    in_a.accept(door_a)
    from_a = in_a.dial(address_b, port_b)
    in_b.accept(door_b)
    in_a.dial(address_a, port_a)  # with itself: nobody else's concern

    found = older.find("i", netns)
    assert {(c.inbound, c.local.ip, c.remote.ip) for c in found} == {
        (True, address_a, address_b),
        (False, address_a, address_b),
    }
    assert len(found) == 2
    (inbound,) = [c for c in found if c.inbound]
    assert inbound.local == SocketAddress(address_a, port_a)
    assert older.still_open(found, netns) == found

    older.destroy(netns, [inbound])
    with pytest.raises(ConnectionResetError):
        in_b.recv(from_b)
    (left,) = older.still_open(found, netns)
    assert not left.inbound
    in_a.send(from_a, b"still here")
    older.destroy(netns, [inbound])  # gone already: no error


def test_this_process_own_sockets_are_not_the_pods(
    two: tuple[Pod, Pod], workers: tuple[Worker, Worker], netns: int
) -> None:
    door, port = workers[1].listen(two[1].ip4)
    with open_socket(netns, 2) as mine:
        mine.setblocking(True)
        mine.connect((two[1].ip4, port))
        workers[1].accept(door)
        assert older.find("i", netns) == []


def test_many(two: tuple[Pod, Pod], workers: tuple[Worker, Worker], netns: int) -> None:
    """More than one netlink message can hold."""
    door, port = workers[0].listen(two[0].ip4)
    for _ in range(300):
        workers[1].dial(two[0].ip4, port)
        workers[0].accept(door)
    found = older.find("i", netns)
    assert len(found) == 300
    older.destroy(netns, found)
    assert older.still_open(found, netns) == []


@pytest.mark.parametrize(("family", "listening"), [("ip4", "own family"), ("ip4", "dual"), ("ip6", "own family")])
def test_ended_by_address_and_a_listener_at_that_address_lives(
    two: tuple[Pod, Pod], workers: tuple[Worker, Worker], netns: int, family: str, listening: str
) -> None:
    (a, b), (in_a, in_b) = two, workers
    address, theirs = getattr(a, family), getattr(b, family)
    door, port = in_a.listen("::" if listening == "dual" else address, dual=listening == "dual")
    doomed, other = in_b.dial(address, port), in_b.dial(address, port)
    in_a.accept(door)
    in_a.accept(door)
    first, second = sorted(older.find("i", netns), key=lambda c: c.remote.port)
    older.end(netns, {(first.local, first.remote)})
    older.end(netns, {(first.local, first.remote)})  # gone: the listener is not meant
    older.end(netns, {(SocketAddress(address, port), SocketAddress(theirs, 9))})
    assert older.still_open([first, second], netns) == [second]
    ended = 0
    for sock in (doomed, other):
        try:
            in_b.send(sock, b"still here")
        except OSError:
            ended += 1
    assert ended == 1
    in_b.dial(address, port)
