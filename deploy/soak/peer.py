"""An application at either end of a connection, run inside pods: only the standard library, and no import of ours.

    peer.py serve PORT         prints a JSON line per connection that has ended
    peer.py talk SPECS         a JSON list, a connection each, all at once; prints a JSON line per event
    peer.py ask                a JSON line in, a connection, a JSON line out; one process all along

What a connection carries follows from its seed, in both directions, so either end knows every byte the other one sends.
A line tells how it ended: `got` bytes, all `exact` or not, `eof` if the other side ended in order, `errors` by name. An
error of a socket is told once, to the thread that meets it first, so a connection has ended in order only if `eof` is
true *and* `errors` is empty.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import random
import secrets
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

HEADER = struct.Struct("!cIQQ")  # mode, seed, bytes to the server, bytes back
SUMMARY = struct.Struct("!?Q")  # what the server got: exact, bytes; the end of an EXCHANGE
BLOCK = 32 << 10
ENDLESS = 1 << 62  # bytes; paced
DEADLINE = 60.0
EXCHANGE = b"X"  # both at once; when the client has finished, the server sums up
FIRST = b"F"  # the server finishes first
STUFF = b"S"  # the server never reads
DIE = b"D"  # the server dies
WHO = b"W"  # the server tells who it is, and what it got


def stream(seed: int, way: str, size: int) -> Iterator[bytes]:
    """What `way` ("up", "down") of a connection carries, in blocks."""
    rng = random.Random(f"{seed}/{way}")
    while size > 0:
        yield rng.randbytes(BLOCK)[:size]
        size -= BLOCK


class Talk:
    """One connection and what came of it; `own` and `other` name the directions."""

    def __init__(self, sock: socket.socket, seed: int, own: str, other: str) -> None:
        self.sock, self.seed, self.own, self.other = sock, seed, own, other
        self.got = 0
        self.exact, self.eof = True, False
        self.errors: list[str] = []
        self.told = True  # that bytes are flowing
        sock.settimeout(DEADLINE)

    def send(self, size: int, *, finish: bool) -> None:
        try:
            for block in stream(self.seed, self.own, size):
                self.sock.sendall(block)
                if size == ENDLESS:
                    time.sleep(0.005)
            if finish:
                self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.fail(error)

    def put(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            self.fail(error)

    def receive(self, size: int, *, pause: float = 0.0, more: bytes = b"") -> None:
        """`size` bytes of the stream, then `more`, then the end. `pause` between reads of 1 KiB: a slow reader."""
        try:
            for block in itertools.chain(stream(self.seed, self.other, size), [more]):
                if not self.take(block, pause):
                    return
            self.exact = self.exact and not self.sock.recv(1)
            self.eof = True
        except OSError as error:
            self.fail(error)

    def take(self, block: bytes, pause: float) -> bool:
        """Whether all of it came, right or wrong."""
        left = memoryview(block)
        while left:
            data = self.sock.recv(min(len(left), 1024) if pause else len(left))
            if not data:
                self.eof = True
                return False
            self.exact = self.exact and data == left[: len(data)]
            self.got += len(data)
            left = left[len(data) :]
            if not self.told:
                self.told = True
                say(self.line("flowing"))
            time.sleep(pause)
        return True

    def fail(self, error: OSError) -> None:
        self.errors.append("timeout" if isinstance(error, TimeoutError) else errno.errorcode.get(error.errno or 0, "?"))

    def line(self, event: str) -> str:
        facts = {"got": self.got, "exact": self.exact, "eof": self.eof, "errors": self.errors}
        return json.dumps({"event": event, "seed": self.seed, **facts})


def say(line: str) -> None:
    """In one write: lines of several threads must not mix."""
    os.write(1, line.encode() + b"\n")


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            break
        data += part
    return data


def name_of_process() -> str:
    """Another one after a restart, also if the pid is the same."""
    return f"{os.getpid()}/{secrets.token_hex(4)}"


def together(*works: Callable[[], object]) -> None:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# The server


def serve(port: int) -> None:
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256) as listener:
        own = name_of_process()
        say(json.dumps({"event": "serving"}))
        while True:
            sock, name = listener.accept()
            threading.Thread(target=answer, args=(sock, name[0].removeprefix("::ffff:"), own), daemon=True).start()


def answer(sock: socket.socket, client: str, own: str) -> None:
    with sock:
        try:
            header = exactly(sock, HEADER.size)
        except OSError:
            return
        if len(header) < HEADER.size:  # a probe
            return
        mode, seed, up, down = HEADER.unpack(header)
        if mode == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == WHO:
            text = exactly(sock, up).decode()
            sock.sendall(json.dumps({"server": own, "seen": client, "echo": text}).encode())
            return
        talk = Talk(sock, seed, "down", "up")
        if mode == STUFF:
            talk.send(down, finish=False)
            threading.Event().wait(DEADLINE)
        together(lambda: talk.send(down, finish=mode == FIRST), lambda: talk.receive(up))
        if mode == EXCHANGE and not talk.errors:
            talk.put(SUMMARY.pack(talk.exact, talk.got))
    say(talk.line("served"))


# The clients


def talk_to(spec: dict[str, Any]) -> None:
    """One connection: `mode`, `seed`, `to`, `port`, `up`, `down`; `finish`: half-close after `up` (default); `pause`:
    read slowly; `hold`: read nothing before a line arrives on stdin; `reset`: end with a RST once `up` is sent."""
    mode, seed, up, down = spec["mode"].encode(), spec["seed"], spec.get("up", 0), spec.get("down", 0)
    try:
        sock = socket.create_connection((spec["to"], spec["port"]), timeout=DEADLINE)
    except OSError as error:
        say(json.dumps({"event": "refused", "seed": seed, "errors": [str(error)]}))
        return
    with sock:
        talk = Talk(sock, seed, "up", "down")
        talk.told = False

        def receive() -> None:
            if spec.get("hold"):
                released.wait()
            talk.receive(down, pause=spec.get("pause", 0.0), more=SUMMARY.pack(True, up) if mode == EXCHANGE else b"")

        talk.put(HEADER.pack(mode, seed, up, down))
        if spec.get("reset"):
            talk.send(up, finish=False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            together(lambda: talk.send(up, finish=spec.get("finish", True)), receive)
        say(talk.line("ended"))


released = threading.Event()


def talk(specs: list[dict[str, Any]]) -> None:
    def release() -> None:
        sys.stdin.readline()
        released.set()

    threading.Thread(target=release, daemon=True).start()
    together(*(functools.partial(talk_to, spec) for spec in specs))


def ask() -> None:
    """`to`, `port`, `text` in; who answered, as whom it saw us, what came back, out. `error` if it came to nothing."""
    own = name_of_process()
    for line in sys.stdin:
        wish = json.loads(line)
        text = wish["text"].encode()
        try:
            with socket.create_connection((wish["to"], wish["port"]), timeout=DEADLINE) as sock:
                sock.sendall(HEADER.pack(WHO, 0, len(text), 0) + text)
                answer = json.loads(b"".join(iter(lambda: sock.recv(65536), b"")))
        except (OSError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        say(json.dumps({"client": own, **answer}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port]:
            serve(int(port))
        case ["talk", specs]:
            talk(json.loads(specs))
        case ["ask"]:
            ask()
        case _:
            sys.exit(__doc__)
