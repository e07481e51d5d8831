"""Direct flows carry the same bytes, in order, to their end, in bounded memory: by TCP, and from socket to socket."""

from __future__ import annotations

import array
import errno
import hashlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bpf import DirectClosed, Kernel, Mode, Target
from tests.kernel.promoting import Promoter, promoted, promoter
from tests.kernel.rig import AgentListeners, Pod, Rig, Worker, enrol
from tests.kernel.streams import echo, exchange, flood, pattern, slab
from tests.kernel.test_direct import drained, events
from tests.kernel.test_life import until
from ztunnel import older

TOTAL = 4_000_000
LINGER_0 = struct.pack("=ii", 1, 0)


@pytest.fixture(params=[True, False], ids=["accelerated", "native"])
def accelerated(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def kernel(rig: Rig, accelerated: bool) -> Kernel:
    return rig.kernel(direct=True, accelerate=accelerated)


@pytest.fixture
def server_pod(rig: Rig, kernel: Kernel, listeners: AgentListeners, pod: Pod) -> Pod:
    """Enrolled; both pods take the direct path."""
    made = rig.add_pod()
    enrol(kernel, made)
    kernel.set_targets({p.name: Target(mode=Mode.OPEN) for p in (pod, made)})
    return made


@pytest.fixture
def server(rig: Rig, server_pod: Pod) -> Worker:
    return rig.worker("pods", server_pod)


class Pair:
    """One connection; both ends in their workers."""

    def __init__(self, app: Worker, server: Worker, ip: str) -> None:
        listener, port = server.listen("::" if ":" in ip else "0.0.0.0")
        self.client = app.dial(ip, port)
        self.accepted, _ = server.accept(listener)
        self.where = (ip, port)
        server.close(listener)


@pytest.fixture
def agent_of(kernel: Kernel, pod: Pod, server_pod: Pod) -> Iterator[Promoter]:
    with promoter(kernel, pod, server_pod) as made:
        yield made


@pytest.fixture
def pair(app: Worker, server: Worker, server_pod: Pod, agent_of: Promoter, accelerated: bool) -> Pair:
    """Where it is accelerated: from the next byte on, both ways."""
    made = Pair(app, server, server_pod.ip4)
    if accelerated:
        promoted(agent_of, app, server, made.client, made.accepted)
    return made


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_every_byte_arrives_once_and_in_order(
    family: str, kernel: Kernel, app: Worker, server: Worker, server_pod: Pod, agent_of: Promoter, accelerated: bool
) -> None:
    """Promoted in the middle of it."""
    count = 200
    listener, port = server.listen("::" if family == "ip6" else "0.0.0.0")
    server.start("call", echo, listener, count)
    app.start("call", exchange, getattr(server_pod, family), port, count)
    (bad, total), lost = agent_of.during(app, server)
    assert bad == lost == []
    closed = [e for e in agent_of.others if isinstance(e, DirectClosed)]
    closed += events(kernel, DirectClosed, count - len(closed)) if len(closed) < count else []
    assert len(closed) == count
    assert sum(e.sent for e in closed) == total
    assert sum(e.received for e in closed) == total + 32 * count
    if accelerated:
        assert any(e.accelerated for e in closed)  # how many depends on who is quicker: they, or their promotion
    else:
        assert not any(e.accelerated for e in closed)
    drained(kernel)


def read_all(sockets: Any, number: int) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while data := sockets.sockets[number].recv(1 << 20):
        size += len(data)
        digest.update(data)
    return size, digest.hexdigest()


@pytest.mark.parametrize("size", [1, 100, 4096, 65536])
def test_a_slow_reader_holds_the_writer_back(size: int, app: Worker, server: Worker, pair: Pair) -> None:
    before = slab()
    sent = app.call(flood, pair.client, size)
    assert sent < 16 << 20
    assert slab() - before < 64 << 20
    server.start("call", read_all, pair.accepted)
    app.shutdown(pair.client)
    assert server.finish() == (sent, hashlib.sha256(pattern(sent)).hexdigest())


def test_a_reader_that_keeps_up_leaves_the_flow_accelerated(
    app: Worker, server: Worker, pair: Pair, kernel: Kernel, agent_of: Promoter, accelerated: bool
) -> None:
    """More than the budget in all, but never unread at once: a pipeline two messages deep."""
    before, total = agent_of.redirected(), TOTAL + kernel.flows()[0].sent
    server.start("call", pipeline_server, pair.accepted, 4000)
    app.call(pipeline_client, pair.client, 4000)
    server.finish()
    until(lambda: [(f.sent, f.received, f.accelerated) for f in kernel.flows()] == [(total, total, accelerated)])
    if accelerated:
        assert [n - m for n, m in zip(agent_of.redirected(), before, strict=True)] == [TOTAL, TOTAL]
    app.close(pair.client)
    server.close(pair.accepted)
    (closed,) = events(kernel, DirectClosed)
    assert (closed.sent, closed.received) == (total, total)


def pipeline_client(sockets: Any, number: int, count: int) -> None:
    s = sockets.sockets[number]
    s.sendall(b"a" * 1000)
    for n in range(count):
        if n + 1 < count:
            s.sendall(b"a" * 1000)
        size = 0
        while size < 1000:
            size += len(s.recv(1000 - size))


def pipeline_server(sockets: Any, number: int, count: int) -> None:
    s = sockets.sockets[number]
    for _ in range(count):
        size = 0
        while size < 1000:
            data = s.recv(1000 - size)
            size += len(data)
        s.sendall(b"b" * 1000)


def test_half_close_and_who_closes_first(app: Worker, server: Worker, pair: Pair) -> None:
    app.send(pair.client, b"question")
    app.shutdown(pair.client)
    assert server.recv(pair.accepted) == b"question"
    assert server.recv(pair.accepted) == b""
    for n in range(50):
        server.send(pair.accepted, bytes([n]) * 1000)
    server.close(pair.accepted)
    assert app.call(read_all, pair.client)[0] == 50_000


def test_reset(app: Worker, server: Worker, pair: Pair, kernel: Kernel) -> None:
    app.send(pair.client, b"unread")
    server.call(reset, pair.accepted)
    with pytest.raises(ConnectionResetError):
        app.recv(pair.client)
    app.close(pair.client)
    drained(kernel)


def reset(sockets: Any, number: int) -> None:
    sockets.sockets[number].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    sockets.close(number)


def test_a_peer_that_is_gone_is_told_as_by_tcp(app: Worker, server: Worker, pair: Pair, kernel: Kernel) -> None:
    """Never EACCES, which no application expects of send()."""
    app.send(pair.client, b"unread")
    server.close(pair.accepted)
    assert app.call(write_until_it_fails, pair.client) in ("EPIPE", "ECONNRESET")
    app.close(pair.client)
    drained(kernel)


def write_until_it_fails(sockets: Any, number: int) -> str:
    try:
        for _ in range(200):
            sockets.sockets[number].send(b"x" * 100)
            time.sleep(0.01)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "never"


def test_closing_under_fire_is_never_a_refusal(app: Worker, server: Worker, server_pod: Pod, kernel: Kernel) -> None:
    """The reader closes while the writer writes: from the writer's side like TCP."""
    listener, port = server.listen("0.0.0.0")
    server.start("call", close_some, listener, 150)
    assert set(app.call(fire, server_pod.ip4, port, 150)) <= {"EPIPE", "ECONNRESET"}
    server.finish()
    drained(kernel)


def close_some(sockets: Any, number: int, count: int) -> None:
    for n in range(count):
        s, _ = sockets.sockets[number].accept()
        s.settimeout(10)
        s.recv(100)
        if n % 3:
            time.sleep(0.0005 * (n % 5))
        s.close()


def fire(sockets: Any, ip: str, port: int, count: int) -> list[str]:
    ends = []
    for _ in range(count):
        with socket.create_connection((ip, port), timeout=10) as s:
            try:
                while True:
                    s.send(b"y" * 500)
            except OSError as error:
                ends.append(errno.errorcode[error.errno or 0])
    return ends


def test_peek_and_readiness(app: Worker, server: Worker, pair: Pair) -> None:
    assert not server.call(readable, pair.accepted, 0.05)
    app.send(pair.client, b"hello")
    assert server.call(readable, pair.accepted, 5)
    assert server.call(peek, pair.accepted) == (b"hell", 5)
    assert server.recv(pair.accepted) == b"hello"
    assert not server.call(readable, pair.accepted, 0.05)


def readable(sockets: Any, number: int, seconds: float) -> bool:
    poll = select.epoll()
    poll.register(sockets.sockets[number], select.EPOLLIN)
    return bool(poll.poll(seconds))


def peek(sockets: Any, number: int) -> tuple[bytes, int]:
    """The first four bytes, and FIONREAD."""
    import fcntl

    s, size = sockets.sockets[number], array.array("i", [0])
    data = s.recv(4, socket.MSG_PEEK)
    fcntl.ioctl(s, 0x541B, size)
    return data, size[0]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_low_water_mark_is_honoured(when: str, app: Worker, server: Worker, server_pod: Pod, kernel: Kernel) -> None:
    """SO_RCVLOWAT, on the listener and so inherited, or on the connection: socket to socket could not honour it."""
    listener, port = server.listen("0.0.0.0")
    if when == "before":
        server.call(low_water, listener)
    client = app.dial(server_pod.ip4, port)
    accepted, _ = server.accept(listener)
    if when == "after":
        app.send(client, b"z")
        assert server.recv(accepted) == b"z"
        server.call(low_water, accepted)
    app.send(client, b"x" * 99)
    assert not server.call(readable, accepted, 0.1)
    app.send(client, b"x")
    assert server.call(readable, accepted, 5)
    assert server.recv(accepted) == b"x" * 100
    server.send(accepted, b"back")
    assert app.recv(client) == b"back"


def low_water(sockets: Any, number: int) -> None:
    sockets.sockets[number].setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)


def test_a_receive_that_waits_for_all_is_honoured_from_the_second_on(
    app: Worker, server: Worker, pair: Pair, accelerated: bool
) -> None:
    got = []
    for _ in range(3):
        server.start("call", receive_all, pair.accepted)
        app.send(pair.client, b"x" * 60)
        time.sleep(0.1)
        app.send(pair.client, b"x" * 40)
        got.append(server.finish())
        rest = 100 - got[-1]
        while rest:
            rest -= len(server.recv(pair.accepted, rest))
    assert got == [60 if accelerated else 100, 100, 100]


def receive_all(sockets: Any, number: int) -> int:
    sockets.sockets[number].setblocking(True)
    return len(sockets.sockets[number].recv(100, socket.MSG_WAITALL))


def test_zero_copy_is_completed(app: Worker, server: Worker, pair: Pair) -> None:
    """MSG_ZEROCOPY: the option makes the sender native, so that completions come."""
    assert app.call(zero_copy, pair.client)
    assert server.recv(pair.accepted) == b"z" * 20_000


def zero_copy(sockets: Any, number: int) -> bool:
    s = sockets.sockets[number]
    s.setsockopt(socket.SOL_SOCKET, 60, 1)
    s.send(b"z" * 20_000, 0x4000000)
    poll = select.poll()
    poll.register(s, 0)  # an error, which the completion is, comes unasked
    return poll.poll(60_000) == [(s.fileno(), select.POLLERR)] and bool(s.recvmsg(1, 1000, socket.MSG_ERRQUEUE)[1])


def test_two_processes_write_and_a_third_reads(app: Worker, server: Worker, pair: Pair) -> None:
    """A socket shared by fork: each record arrives whole, none is lost. Then it is passed on to another process."""
    server.start("call", read_all, pair.accepted)
    app.call(write_by_two, pair.client)
    app.shutdown(pair.client)
    size, _ = server.finish()
    assert size == 2 * 3000 * 64
    server.send(pair.accepted, b"for whoever reads")
    assert app.call(pass_on, pair.client) == b"for whoever reads"


def write_by_two(sockets: Any, number: int) -> None:
    s = sockets.sockets[number]
    child = os.fork()
    for n in range(3000):
        s.sendall((b"%07d." % n) * 8)
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def pass_on(sockets: Any, number: int) -> bytes:
    """Send the descriptor to a child, which reads and answers over a pipe; ours is closed meanwhile."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    child = os.fork()
    if child == 0:
        _, descriptors, _, _ = socket.recv_fds(theirs, 1, 1)
        received = socket.socket(fileno=descriptors[0])
        received.settimeout(10)
        theirs.sendall(received.recv(100))
        os._exit(0)
    socket.send_fds(ours, [b"x"], [sockets.sockets[number].fileno()])
    ours.settimeout(15)
    data = ours.recv(100)
    os.waitpid(child, 0)
    return data


def test_sendfile_and_splice_out(app: Worker, server: Worker, pair: Pair) -> None:
    """Into the socket; splice() from an accelerated one is a documented difference."""
    server.start("call", read_all, pair.accepted)
    app.call(send_file, pair.client)
    app.shutdown(pair.client)
    assert server.finish() == (300_000, hashlib.sha256(pattern(300_000)).hexdigest())


def send_file(sockets: Any, number: int) -> None:
    s = sockets.sockets[number]
    s.setblocking(True)
    fd = os.memfd_create("bytes")
    os.write(fd, pattern(300_000))
    sent = 0
    while sent < 150_000:
        sent += os.sendfile(s.fileno(), fd, sent, 150_000 - sent)
    read, write = os.pipe()
    while sent < 300_000:
        n = os.splice(fd, write, 60_000, offset_src=sent)
        sent += n
        while n:
            n -= os.splice(read, s.fileno(), n)


def test_pods_that_do_not_want_it_are_not_accelerated(
    kernel: Kernel, app: Worker, server: Worker, pod: Pod, server_pod: Pod
) -> None:
    for unwilling in (pod, server_pod):
        kernel.set_targets({p.name: Target(mode=Mode.OPEN, accelerate=p is not unwilling) for p in (pod, server_pod)})
        pair = Pair(app, server, server_pod.ip4)
        app.send(pair.client, b"x" * 10)
        assert server.recv(pair.accepted) == b"x" * 10
        assert [f.accelerated for f in kernel.flows()] == [False]
        app.close(pair.client)
        server.close(pair.accepted)
        drained(kernel)


def test_a_flow_that_is_ended_meets_an_error_on_both_ends_after_an_exact_prefix(
    app: Worker, server: Worker, pod: Pod, server_pod: Pod, pair: Pair, kernel: Kernel
) -> None:
    """SOCK_DESTROY in both network namespaces, one end busy writing and the other reading; then an idle flow."""
    server.start("call", read_until_error, pair.accepted)
    app.start("call", write_until_error, pair.client)
    until(lambda: kernel.flows()[0].sent > 1_000_000)
    for each in (pod, server_pod):
        with each.opened() as fd:
            older.destroy(fd, older.find(each.name, fd))
    written, how = app.finish()
    got, digest, told = server.finish()
    assert how in ("ECONNABORTED", "ECONNRESET", "EPIPE")
    assert told in ("ECONNABORTED", "ECONNRESET")
    assert 0 < got <= written
    assert digest == hashlib.sha256(pattern(got)).hexdigest()
    drained(kernel)
    idle = Pair(app, server, server_pod.ip4)
    app.send(idle.client, b"queued")
    for each in (pod, server_pod):
        with each.opened() as fd:
            older.destroy(fd, older.find(each.name, fd))
    with pytest.raises((ConnectionAbortedError, ConnectionResetError)):
        app.recv(idle.client)
    assert server.call(read_until_error, idle.accepted)[2] in ("ECONNABORTED", "ECONNRESET")
    drained(kernel)


def write_until_error(sockets: Any, number: int) -> tuple[int, str]:
    data, sent = memoryview(pattern(1 << 28)), 0
    try:
        while sent < len(data):
            sent += sockets.sockets[number].send(data[sent : sent + 3000])
    except OSError as error:
        return sent, errno.errorcode[error.errno or 0]
    return sent, "never"


def read_until_error(sockets: Any, number: int) -> tuple[int, str, str]:
    size, digest = 0, hashlib.sha256()
    try:
        while data := sockets.sockets[number].recv(50_000):
            size += len(data)
            digest.update(data)
    except OSError as error:
        return size, digest.hexdigest(), errno.errorcode[error.errno or 0]
    return size, digest.hexdigest(), "an orderly end"


def test_splice_from_the_socket(app: Worker, server: Worker, pair: Pair, accelerated: bool) -> None:
    """A documented difference: it sees TCP's bytes only. recv() sees all."""
    app.send(pair.client, b"x" * 1000)
    assert server.call(splice_in, pair.accepted) == (0 if accelerated else 1000)
    if accelerated:
        assert server.recv(pair.accepted) == b"x" * 1000


def splice_in(sockets: Any, number: int) -> int:
    read, write = os.pipe()
    sockets.sockets[number].setblocking(False)
    try:
        return os.splice(sockets.sockets[number].fileno(), write, 5000)
    except BlockingIOError:
        return 0
    finally:
        sockets.sockets[number].settimeout(10)
        os.close(read)
        os.close(write)


def test_closing_with_unread_data(app: Worker, server: Worker, pair: Pair, accelerated: bool) -> None:
    """A documented difference: by TCP a reset; socket to socket, the end of the stream."""
    app.send(pair.client, b"never read")
    assert server.call(readable, pair.accepted, 5)
    server.close(pair.accepted)
    if accelerated:
        assert app.recv(pair.client) == b""
    else:
        with pytest.raises(ConnectionResetError):
            app.recv(pair.client)
