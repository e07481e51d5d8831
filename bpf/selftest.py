"""Whether acceleration keeps its promises on the running kernel: bytes, order, EOF, RST, memory, and who is left alone.

Proved with the real programs on connections of a process of its own, in a scratch network namespace and cgroup, before
the agent relies on it. One namespace is enough: its loopback device has two addresses, of which one is a target.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import random
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bpf import compile, netns, pin
from bpf.error import PreflightError
from bpf.kernel import Kernel
from bpf.layouts import (
    COOKIE,
    INDEX,
    METER,
    PLACE,
    TARGET,
    TARGET_OPEN,
    DirectClosed,
    DirectReady,
    pack_ip,
)
from bpf.promote import Outcome

SECONDS = 30.0  # it takes about one
_CLIENT, _SERVER = "192.0.2.1", "192.0.2.2"  # TEST-NET-1, RFC 5737
_CLONE_NEWNET = 0x40000000
_SIOCSIFADDR, _SIOCSIFFLAGS, _SIOCSIFNETMASK, _UP = 0x8916, 0x8914, 0x891C, 0x1
_MEMORY = 48 << 20  # bytes that one reader who never reads may cost; the budget is 1 MiB of messages, the rest is TCP's
_libc = ctypes.CDLL(None, use_errno=True)


def prove(pins: Path, cgroup: Path, agent_cgroup: Path, cache: Path = compile.CACHE) -> str:
    """What is not as it should be; "" if acceleration is proved. Blocks for about a second; for use before threads are
    started. `pins` is the agent's directory in a bpffs, which need not exist; what is made beside it and the scratch
    cgroup are removed again."""
    pins = pins / pin.SCRATCH if pins.is_mount() else pins.with_name(f"{pins.name}-{pin.SCRATCH}")
    scratch = cgroup / f"gossamer-selftest-{os.getpid()}"
    try:
        pin.remove(pins)  # of one that was killed
        scratch.mkdir()
        try:
            return _in_child(lambda: _run(pins, scratch, agent_cgroup, cache), scratch)
        finally:
            pin.remove(pins)  # where the child did not come to it
            _remove(scratch)
    except (OSError, PreflightError) as error:
        return f"it could not be tried: {error}"


def _in_child(work: Callable[[], str], cgroup: Path) -> str:
    """The child's answer; an answer that does not come is a failure too."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "it ended without an answer"
        try:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            answer = work()
        except BaseException as error:  # whatever it is, it goes to the parent
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, b"." + answer.encode(errors="replace")[:4000])
            os._exit(0)
    os.close(writing)
    try:
        if not select.select([reading], [], [], SECONDS)[0]:
            return f"no end of it within {SECONDS:g} s"
        data = os.read(reading, 4096)
        return data[1:].decode() if data else "the process that tried it died"
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _remove(cgroup: Path) -> None:
    """It is busy for a moment after its last process was reaped."""
    for _ in range(100):
        try:
            cgroup.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(0.02)
        else:
            return


def _run(pins: Path, cgroup: Path, agent_cgroup: Path, cache: Path) -> str:
    node = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if _libc.unshare(_CLONE_NEWNET):
        return f"no network namespace: {os.strerror(ctypes.get_errno())}"
    _loopback()
    kernel = Kernel.open(
        pins, cgroup=cgroup, agent_cgroup=agent_cgroup, kubelet_cgroup=None, cache=cache, accelerate=True, direct=True
    )
    try:
        here = os.open("/proc/self/ns/net", os.O_RDONLY)
        with netns.entered(node):
            pod = kernel.enrol("selftest", here, [_CLIENT])
        kernel.ledger.tell_each(True)
        cookie, maps = COOKIE.pack(pod.cookie), kernel._maps
        maps["sources"].put(cookie, INDEX.pack(1))
        maps["targets"].put(PLACE.pack(kernel.generation, pack_ip(_SERVER)), TARGET.pack(pod.cookie, 0, TARGET_OPEN, 1))
        agent = _Agent(kernel, here)
        for check in (_bytes, _reset, _gone, _memory, _waiting, _waiting_later):
            check(agent)
        agent.look()
        return "" if agent.moved >= 10 else f"only {agent.moved} of {agent.closed} connections were accelerated"
    finally:
        kernel.unload()


class _Agent:
    """Does what the agent does with the kernel's events; both ends are in one netns."""

    def __init__(self, kernel: Kernel, netns_fd: int) -> None:
        self.kernel, self.netns = kernel, netns_fd
        self.closed = self.moved = self.promoted = 0

    def look(self) -> None:
        for event in self.kernel.events().read():
            if isinstance(event, DirectReady):
                done = self.kernel.promoter.promote(
                    event.destination, event.client, event.server, at_source=self.netns, at_destination=self.netns
                )
                self.promoted += done is Outcome.PROMOTED
            elif isinstance(event, DirectClosed):
                self.closed += 1
                self.moved += event.accelerated

    @contextlib.contextmanager
    def pair(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A connection that is promoted: its receives do not wait, a timeout is poll()."""
        with _connected() as (client, server):
            before = self.promoted
            for _ in range(200):
                if self.promoted > before:
                    break
                _ping(client, server)
                self.look()
            _expect(self.promoted > before, "a connection was not promoted")
            _ping(client, server)
            yield client, server


def _loopback() -> None:
    """Up, with a whole network of addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for request, address in ((_SIOCSIFADDR, _CLIENT), (_SIOCSIFNETMASK, "255.255.255.0")):
            fcntl.ioctl(s, request, struct.pack("=16sHH4s8x", b"lo", socket.AF_INET, 0, socket.inet_aton(address)))
        fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("=16sH14x", b"lo", _UP))


@contextlib.contextmanager
def _connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server((_SERVER, 0)) as listener:
        client = socket.create_connection((_SERVER, listener.getsockname()[1]), 5, (_CLIENT, 0))
        server, _ = listener.accept()
    server.settimeout(5)
    with client, server:
        yield client, server


def _expect(truth: bool, what: str) -> None:
    if not truth:
        raise ValueError(what)


def _ping(client: socket.socket, server: socket.socket) -> None:
    for one, other in ((client, server), (server, client)):
        one.sendall(b"ping")
        _expect(other.recv(4) == b"ping", "a small message did not arrive whole")


def _bytes(agent: _Agent) -> None:
    """Random sizes both ways, promoted meanwhile; pauses, in which what went by TCP is read and bytes may begin to go
    past it; half-close, all of it back, and the end."""
    for seed in range(20):
        dice = random.Random(seed)
        data = dice.randbytes(dice.choice([1, 3_000, 600_000, 1_500_000, 3_000_000]))
        with _connected() as (client, server):
            thread = threading.Thread(target=_echo, args=(server, dice.randrange(1, 80_000)))
            thread.start()
            got, sent, pausing = bytearray(), 0, False
            client.setblocking(False)
            while True:
                pausing = (pausing or not dice.randrange(8)) and len(got) < sent < len(data)
                readable, writable, _ = select.select(
                    [client], [client] if sent < len(data) and not pausing else [], [], 5
                )
                _expect(bool(readable or writable), f"nothing came after {len(got)} of {len(data)} bytes")
                if writable:
                    with contextlib.suppress(BlockingIOError):
                        sent += client.send(data[sent : sent + dice.choice([1, 900, 60_000])])
                    if sent == len(data):
                        client.shutdown(socket.SHUT_WR)
                if readable:
                    piece = client.recv(65536)
                    if not piece:
                        break
                    got += piece
                agent.look()
            thread.join()
        _expect(bytes(got) == data + hashlib.sha256(data).digest(), f"{len(data)} bytes did not come back as sent")


def _echo(server: socket.socket, size: int) -> None:
    digest = hashlib.sha256()
    with contextlib.suppress(OSError):  # the other side tells what is missing
        while data := server.recv(size):
            digest.update(data)
            server.sendall(data)
        server.sendall(digest.digest())
        server.shutdown(socket.SHUT_WR)


def _reset(agent: _Agent) -> None:
    with agent.pair() as (client, server):
        client.sendall(b"unread")
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        server.close()
        try:
            client.recv(1)
        except ConnectionResetError:
            return
        _expect(False, "a reset arrived as an orderly end")


def _gone(agent: _Agent) -> None:
    """Writing to a peer that has closed fails as by TCP."""
    with agent.pair() as (client, server):
        client.sendall(b"x")
        _expect(server.recv(1) == b"x", "a byte did not arrive")
        server.close()
        try:
            for _ in range(100):
                client.send(b"y")
                time.sleep(0.002)
        except (BrokenPipeError, ConnectionResetError):
            return
        _expect(False, "writing to a peer that has closed does not fail")


def _memory(agent: _Agent) -> None:
    """Small messages to a reader that never reads; later all of them arrive."""
    with agent.pair() as (client, server):
        before, sent = _slab(), 0
        client.setblocking(False)
        while select.select([], [client], [], 0.1)[1]:
            with contextlib.suppress(BlockingIOError):
                sent += client.send(b"%07d." % (sent // 8 % 10**7) if sent % 8 == 0 else b"." * (8 - sent % 8))
            _expect(sent < 64 << 20, "a reader that never reads does not hold the writer back")
            if sent % 80_000 == 0 and sent > 800_000:
                break  # by TCP since long
        _expect(_slab() - before < _MEMORY, f"{sent} bytes that nobody reads cost {_slab() - before} bytes of memory")
        client.setblocking(True)
        client.shutdown(socket.SHUT_WR)
        got = bytearray()
        while piece := server.recv(1 << 20):
            got += piece
        _expect(bytes(got) == b"".join(b"%07d." % n for n in range(sent // 8)), "messages were lost or overtook others")


def _waiting(agent: _Agent) -> None:
    """Readers that wait are never promoted, so that a wake-up without bytes is no error to them."""
    before = agent.promoted
    for how in ("half-close", "reset"):
        with _connected() as (client, server):
            client.settimeout(None)
            for _ in range(40):
                _ping(client, server)
            agent.look()
            _expect(agent.promoted == before, "a connection was promoted whose reader waits")
            told = _told(client, server, how)
            _expect(
                told == ("b''" if how == "half-close" else "ECONNRESET"), f"a waiting reader hears {told} at a {how}"
            )


def _waiting_later(agent: _Agent) -> None:
    """A reader that begins to wait is left to TCP."""
    with agent.pair() as (client, server):
        _ping(client, server)
        server.setblocking(True)
        _ping(client, server)
        before = agent.kernel.flows()[0].sent, _redirected(agent)
        _ping(client, server)
        after = agent.kernel.flows()[0].sent, _redirected(agent)
        _expect(after[0] == before[0] + 4, "received bytes are not counted")
        _expect(after[1] == before[1] + 4, "bytes go past TCP to a reader that waits")  # 4 to the other one


def _redirected(agent: _Agent) -> int:
    return sum(METER.unpack(meter)[3] for _, meter in agent.kernel._maps["consumed"].items())


def _told(client: socket.socket, server: socket.socket, how: str) -> str:
    """What the client's receive hears that waits while the connection changes state."""
    told: list[str] = []

    def wait() -> None:
        try:
            told.append(repr(client.recv(1)))
        except OSError as error:
            told.append(errno.errorcode[error.errno or 0])

    if how == "half-close":
        client.shutdown(socket.SHUT_WR)
    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)  # so that it waits; if it does not yet, nothing is proved, and nothing is wrong
    if how == "reset":
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    server.close()
    thread.join()
    return told[0]


def _slab() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Slab:"))
