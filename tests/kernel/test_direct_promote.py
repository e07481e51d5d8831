"""Who is promoted from TCP to socket to socket, and who is left alone: for readers that wait, and for splice(), nothing
must differ from TCP."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bpf import DirectDrained, Kernel, Mode, Outcome, Target
from bpf.layouts import COOKIE
from tests.kernel.promoting import Promoter, chat, promoted, promoter
from tests.kernel.rig import AgentListeners, Pod, Rig, Worker, enrol, run
from tests.kernel.streams import flood, pattern
from tests.kernel.test_direct import drained
from tests.kernel.test_direct_bytes import Pair, reset
from tests.kernel.test_life import fill, until


@pytest.fixture
def kernel(rig: Rig) -> Kernel:
    return rig.kernel(direct=True, accelerate=True)


@pytest.fixture
def server_pod(rig: Rig, kernel: Kernel, listeners: AgentListeners, pod: Pod) -> Pod:
    made = rig.add_pod()
    enrol(kernel, made)
    kernel.set_targets({p.name: Target(mode=Mode.OPEN) for p in (pod, made)})
    return made


@pytest.fixture
def server(rig: Rig, server_pod: Pod) -> Worker:
    return rig.worker("pods", server_pod)


@pytest.fixture
def agent_of(kernel: Kernel, pod: Pod, server_pod: Pod) -> Iterator[Promoter]:
    with promoter(kernel, pod, server_pod) as made:
        yield made


@pytest.fixture
def pair(app: Worker, server: Worker, server_pod: Pod) -> Pair:
    """As it is connected: TCP."""
    return Pair(app, server, server_pod.ip4)


def untouched(kernel: Kernel, made: Promoter) -> bool:
    """No socket is in the sockhash, no byte went past TCP."""
    return made.look() == [] and fill(kernel)["accelerated"] == 0 and not any(made.redirected())


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_flow_is_promoted_once_both_ends_have_shown_that_they_do_not_wait(
    family: str, app: Worker, server: Worker, server_pod: Pod, kernel: Kernel, agent_of: Promoter
) -> None:
    pair = Pair(app, server, getattr(server_pod, family))
    chat(app, server, pair.client, pair.accepted, 10)
    assert untouched(kernel, agent_of)
    for _ in range(30):
        app.send(pair.client, b"one way")
        assert server.recv(pair.accepted) == b"one way"
    assert untouched(kernel, agent_of), "the client has not received enough to tell"
    chat(app, server, pair.client, pair.accepted, 10)
    assert agent_of.look() == [Outcome.PROMOTED]
    assert fill(kernel)["accelerated"] == 2
    chat(app, server, pair.client, pair.accepted, 30)
    assert agent_of.look() == [], "it is told once"
    assert [n > 80 for n in agent_of.redirected()] == [True, True]
    app.close(pair.client)
    assert server.recv(pair.accepted) == b""
    server.close(pair.accepted)
    drained(kernel)
    until(lambda: fill(kernel)["accelerated"] == fill(kernel)["consumed"] == 0)


def blocking(sockets: Any, number: int) -> None:
    sockets.sockets[number].setblocking(True)


def test_a_reader_that_waits_is_never_promoted(
    app: Worker, server: Worker, pair: Pair, kernel: Kernel, agent_of: Promoter
) -> None:
    """Not even for one receive, at either end."""
    app.call(blocking, pair.client)
    chat(app, server, pair.client, pair.accepted, 1)
    app.wait_forever(pair.client)
    chat(app, server, pair.client, pair.accepted, 50)
    assert untouched(kernel, agent_of)


def wait(sockets: Any, number: int, size: int) -> str:
    """One receive that waits; what it is told."""
    s = sockets.sockets[number]
    s.setblocking(True)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 20, 0))
    try:
        return repr(s.recv(size))
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@pytest.mark.parametrize("what", ["half-close", "reset", "signal"])
def test_a_reader_that_waits_hears_what_tcp_tells(
    what: str, app: Worker, server: Worker, pair: Pair, kernel: Kernel, agent_of: Promoter
) -> None:
    """Wake-ups without bytes: the acknowledgement of its own end, a reset, a signal. Socket to socket, a receive that
    waits would return EAGAIN."""
    app.call(blocking, pair.client)
    chat(app, server, pair.client, pair.accepted, 40)
    agent_of.look()
    if what == "half-close":
        app.shutdown(pair.client)
    if what == "signal":
        app.call(ignore_children)
    app.start("call", wait, pair.client, 10)
    assert not app.answered(0.3)
    if what == "half-close":
        server.send(pair.accepted, b"late")
    elif what == "reset":
        server.call(reset, pair.accepted)
    else:
        os.kill(app.pid, signal.SIGUSR1)
        assert not app.answered(0.3), "a restarted system call"
        server.send(pair.accepted, b"late")
    assert app.finish() == ("ECONNRESET" if what == "reset" else "b'late'")


def ignore_children(_: Any) -> None:
    """A handler that does nothing; what it interrupts is restarted."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, False)


def splice(sockets: Any, number: int, size: int) -> int:
    """Read by splice() until this many bytes have come or there is an end."""
    s, got = sockets.sockets[number], 0
    read, write = os.pipe()
    try:
        while got < size and select.select([s], [], [], 10)[0]:
            n = os.splice(s.fileno(), write, min(size - got, 60_000))
            if not n:
                break
            got += len(os.read(read, n))
    finally:
        os.close(read)
        os.close(write)
    return got


def test_who_splices_is_never_promoted(
    app: Worker, server: Worker, server_pod: Pod, kernel: Kernel, agent_of: Promoter
) -> None:
    """A proxy that reads a head by recv(), the rest by splice(): bytes that no receive accounts for. Its pod is known
    for it afterwards."""
    pair = Pair(app, server, server_pod.ip4)
    chat(app, server, pair.client, pair.accepted, 5)
    app.send(pair.client, b"x" * 1000)
    assert server.call(splice, pair.accepted, 1000) == 1000
    for _ in range(8):
        chat(app, server, pair.client, pair.accepted, 20)
        assert Outcome.PROMOTED not in agent_of.look()
    assert agent_of.outcomes[0] is Outcome.IN_DOUBT
    assert fill(kernel)["accelerated"] == 0
    assert kernel._maps["splicers"].walk() == []
    app.close(pair.client)
    assert server.recv(pair.accepted) == b""
    server.close(pair.accepted)
    drained(kernel)
    assert kernel._maps["splicers"].walk() == [COOKIE.pack(server_pod.cookie)]
    again = Pair(app, server, server_pod.ip4)
    chat(app, server, again.client, again.accepted, 40)
    assert untouched(kernel, agent_of)
    app.send(again.client, b"x" * 1000)
    app.shutdown(again.client)
    assert server.call(splice, again.accepted, 2000) == 1000
    until(lambda: kernel.flows()[0].sent == 40 * 4 + 1000)
    kernel.unenrol(server_pod.name)
    assert kernel._maps["splicers"].walk() == []


def test_a_reader_that_begins_to_wait_is_left_to_tcp(
    app: Worker, server: Worker, pair: Pair, kernel: Kernel, agent_of: Promoter
) -> None:
    promoted(agent_of, app, server, pair.client, pair.accepted)
    app.call(blocking, pair.client)
    chat(app, server, pair.client, pair.accepted, 2)
    before = agent_of.redirected()
    chat(app, server, pair.client, pair.accepted, 10)
    grown = sorted(n - m for n, m in zip(agent_of.redirected(), before, strict=True))
    assert grown == [0, 40], "to the one that waits by TCP; to the other as before"
    agent_of.look()
    app.send(pair.client, b"ping")
    assert agent_of.demote() is Outcome.DEMOTED, "what is unread went by TCP"
    assert server.recv(pair.accepted) == b"ping"
    assert fill(kernel)["accelerated"] == 0
    before = agent_of.redirected()
    chat(app, server, pair.client, pair.accepted, 40)
    assert agent_of.redirected() == before
    app.shutdown(pair.client)
    app.start("call", wait, pair.client, 10)
    assert not app.answered(0.3), "its own half-close wakes it no more than by TCP"
    assert server.call(splice, pair.accepted, 10) == 0
    server.send(pair.accepted, b"late")
    assert app.finish() == "b'late'"
    assert len(agent_of.barred) == 1


def test_what_is_unread_is_not_dropped_by_demotion(
    app: Worker, server: Worker, pair: Pair, kernel: Kernel, agent_of: Promoter
) -> None:
    promoted(agent_of, app, server, pair.client, pair.accepted)
    app.send(pair.client, b"unread")
    app.call(low_water_once, pair.client)
    agent_of.look()
    for _ in range(3):
        assert agent_of.demote() is Outcome.UNREAD
    app.send(pair.client, b"-by-tcp")
    assert server.recv(pair.accepted, 6) == b"unread"
    assert agent_of.demote() is Outcome.DEMOTED
    assert fill(kernel)["accelerated"] == 0
    assert server.recv(pair.accepted) == b"-by-tcp"
    chat(app, server, pair.client, pair.accepted)


def test_who_falls_behind_again_and_again_is_left_to_tcp(
    app: Worker, server: Worker, pair: Pair, kernel: Kernel, agent_of: Promoter
) -> None:
    """A stream is as fast by TCP, and TCP holds the writer back."""
    promoted(agent_of, app, server, pair.client, pair.accepted)
    for _ in range(3):
        sent = app.call(flood, pair.client, 65536)
        assert server.call(read_exactly, pair.accepted, sent) == hashlib.sha256(pattern(sent)).hexdigest()
        chat(app, server, pair.client, pair.accepted, 2)
        agent_of.look()
    assert len(agent_of.barred) == 1
    assert agent_of.demote() is Outcome.DEMOTED
    assert fill(kernel)["accelerated"] == 0
    chat(app, server, pair.client, pair.accepted, 40)


def pour(sockets: Any, number: int, total: int, step: int) -> str:
    """Write the pattern while reading what comes back, both at full speed; what is wrong."""
    s, data = sockets.sockets[number], memoryview(pattern(total))
    s.setblocking(False)
    sent = got = 0
    digest = hashlib.sha256()
    while got < total or sent < total:
        readable, writable, _ = select.select([s] if got < total else [], [s] if sent < total else [], [], 20)
        if not readable and not writable:
            return f"nothing happens after {sent} sent, {got} received"
        if writable:
            with contextlib.suppress(BlockingIOError):
                sent += s.send(data[sent : sent + step])
        if readable:
            piece = s.recv(20_000)
            if not piece:
                return f"an end after {got}"
            got += len(piece)
            digest.update(piece)
    s.settimeout(10)
    return "" if digest.digest() == hashlib.sha256(data).digest() else "other bytes"


@pytest.mark.parametrize(("total", "step"), [(1_000_000, 100), (30_000_000, 50_000), (60_000_000, 1_000_000)])
def test_promoted_in_the_middle_of_an_exchange_at_full_speed(
    total: int, step: int, app: Worker, server: Worker, server_pod: Pod, agent_of: Promoter
) -> None:
    """Both write and read at once: also far beyond the budget, there and back between TCP and socket to socket."""
    for _ in range(3):
        pair = Pair(app, server, server_pod.ip4)
        server.start("call", pour, pair.accepted, total, step)
        app.start("call", pour, pair.client, total, step)
        assert agent_of.during(app, server) == ["", ""]
        app.close(pair.client)
        server.close(pair.accepted)
    assert Outcome.PROMOTED in agent_of.outcomes


def test_what_fell_behind_the_budget_goes_past_tcp_again(
    app: Worker, server: Worker, pair: Pair, kernel: Kernel, agent_of: Promoter
) -> None:
    """Exactly when the reader has had all that went by TCP."""
    promoted(agent_of, app, server, pair.client, pair.accepted)
    before = max(agent_of.redirected())
    sent = app.call(flood, pair.client, 65536)
    moved = max(agent_of.redirected()) - before
    assert 1 << 18 < moved < sent
    assert server.call(read_exactly, pair.accepted, sent) == hashlib.sha256(pattern(sent)).hexdigest()
    chat(app, server, pair.client, pair.accepted, 10)
    assert max(agent_of.redirected()) - before - moved >= 36


def read_exactly(sockets: Any, number: int, size: int) -> str:
    digest = hashlib.sha256()
    while size:
        data = sockets.sockets[number].recv(min(size, 1 << 20))
        size -= len(data)
        digest.update(data)
    return digest.hexdigest()


def test_the_agents_death_before_and_after(
    app: Worker, server: Worker, server_pod: Pod, rig: Rig, kernel: Kernel, pod: Pod, agent_of: Promoter
) -> None:
    """What is promoted goes on past TCP; what is not goes on by TCP, until there is an agent again."""
    first, second = (Pair(app, server, server_pod.ip4) for _ in range(2))
    promoted(agent_of, app, server, first.client, first.accepted)
    kernel.close()
    for pair in (first, second):
        chat(app, server, pair.client, pair.accepted, 40)
    again = rig.kernel(direct=True, accelerate=True)
    with promoter(again, pod, server_pod) as after:
        assert {f.accelerated for f in again.flows()} == {True, False}
        before = sum(after.redirected())
        chat(app, server, first.client, first.accepted, 10)
        assert sum(after.redirected()) == before + 80
        assert after.look() == [Outcome.PROMOTED], "its event was kept"
        chat(app, server, second.client, second.accepted, 3)
        assert sum(after.redirected()) >= before + 80 + 16


def test_closed_before_the_agent_comes_to_it(
    app: Worker, server: Worker, pair: Pair, kernel: Kernel, agent_of: Promoter
) -> None:
    chat(app, server, pair.client, pair.accepted, 40)
    app.close(pair.client)
    server.close(pair.accepted)
    drained(kernel)
    assert agent_of.look() == [Outcome.NOT_THERE]
    assert fill(kernel)["accelerated"] == 0


def test_one_end_alone_stays_with_tcp(
    app: Worker, server: Worker, pair: Pair, kernel: Kernel, agent_of: Promoter
) -> None:
    """The agent dies between the two."""
    chat(app, server, pair.client, pair.accepted, 40)
    server.call(low_water_once, pair.accepted)
    assert agent_of.look() == [Outcome.NOT_FIT]
    chat(app, server, pair.client, pair.accepted, 20)
    assert not any(agent_of.redirected())
    app.shutdown(pair.client)
    assert server.recv(pair.accepted) == b""
    server.send(pair.accepted, b"end")
    assert app.recv(pair.client) == b"end"


def low_water_once(sockets: Any, number: int) -> None:
    sockets.sockets[number].setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def edges(sockets: Any, number: int, size: int, pause: float) -> int:
    """An edge-triggered reader that takes a short receive for the end of what is there, as event loops may: how much it
    gets of `size` bytes before nothing wakes it for ten seconds."""
    s, got = sockets.sockets[number], 0
    s.setblocking(False)
    poll = select.epoll()
    poll.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET | select.EPOLLRDHUP)
    time.sleep(pause)
    while got < size:
        events = poll.poll(10)
        if not events:
            break
        while events[0][1] & select.EPOLLIN:
            try:
                n = len(s.recv(50_000))
            except BlockingIOError:
                break
            got += n
            if n < 50_000:
                break
    s.settimeout(10)
    return got


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize("size", [250_000, 260_000, 266_000, 300_000, 600_000, 9_000_000])
def test_an_edge_triggered_reader_that_trusts_short_receives_gets_all(
    family: str, size: int, app: Worker, server: Worker, server_pod: Pod, agent_of: Promoter
) -> None:
    """It begins late, when a part of the bytes has gone by TCP: the first 259 messages fit into the budget."""
    pair = Pair(app, server, getattr(server_pod, family))
    promoted(agent_of, app, server, pair.client, pair.accepted)
    server.start("call", edges, pair.accepted, size, 0.5)
    app.start("call", in_pieces, pair.client, size)
    assert agent_of.during(server, app) == [size, None]
    assert any(isinstance(event, DirectDrained) for event in agent_of.others) is (size > 259_000)


def in_pieces(sockets: Any, number: int, size: int) -> None:
    for _ in range(size // 1000):
        sockets.sockets[number].sendall(bytes(1000))


@pytest.mark.parametrize("size", [1, 100, 4096, 65536])
def test_a_reader_that_never_reads_costs_half_a_mebibyte_more_than_by_tcp(
    size: int, app: Worker, server: Worker, pod: Pod, server_pod: Pod, agent_of: Promoter
) -> None:
    """What sockets are charged with for buffers, and a KiB for each redirected message, which is what it costs. TCP's
    own share is half a MiB at least once buffers have grown, but varies from one connection to the next."""
    cost = []
    for fast in (False, True):
        pair = Pair(app, server, server_pod.ip4)
        if fast:
            promoted(agent_of, app, server, pair.client, pair.accepted)
        before = max([0, *agent_of.redirected()])
        app.call(flood, pair.client, size)
        messages = (max([0, *agent_of.redirected()]) - before) // size
        assert (messages > 0) is fast
        assert messages * (size + 1024) <= 1 << 19
        cost.append(buffered(pod) + buffered(server_pod) + messages * 1024)
        app.close(pair.client)
        server.close(pair.accepted)
        agent_of.look()
        drained(agent_of.kernel)
    print(f"{size} bytes: {cost[0] >> 10} KiB by TCP, {cost[1] >> 10} KiB from socket to socket")
    assert cost[1] <= (1 << 19) + 4 * max(cost[0], 1 << 19)


def buffered(pod: Pod) -> int:
    """Bytes of buffers, received or to be sent, of the pod's connections."""
    shown = run("ip", "netns", "exec", pod.name, "ss", "-tnmH", "state", "established")
    return sum(int(n) for n in re.findall(r"skmem:\(r(\d+)", shown) + re.findall(r",w(\d+)", shown))
