"""Streams of bytes that a test can judge: known or hashed, sent and read in pieces of any size. A worker runs these."""

from __future__ import annotations

import contextlib
import hashlib
import random
import select
import socket
import threading
import time
from typing import Any


def pattern(size: int) -> bytes:
    """Every place is to be told from its neighbours."""
    return (b"".join(n.to_bytes(4, "big") for n in range(1 << 16)) * (size // (1 << 18) + 1))[:size]


def slab() -> int:
    """The kernel's memory for objects, of the whole machine, in bytes."""
    with open("/proc/meminfo") as file:  # noqa: PTH123
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("Slab:"))


def flood(sockets: Any, number: int, size: int) -> int:
    """Write until nothing is taken for half a second."""
    s, sent, data = sockets.sockets[number], 0, memoryview(pattern(64 << 20))
    s.setblocking(False)
    while select.select([], [s], [], 0.5)[1] and sent < 32 << 20:
        try:
            sent += s.send(data[sent : sent + size])
        except BlockingIOError:
            if not select.select([], [s], [], 0.5)[1]:
                break
    s.settimeout(10)
    return sent


def echo(sockets: Any, number: int, connections: int) -> list[str]:
    """In a worker, where its listener has that number."""
    return echo_at(sockets.sockets[number], connections)


def echo_at(listener: socket.socket, connections: int) -> list[str]:
    """Answer what comes, then its digest; both in pieces of random size. What went wrong."""
    bad: list[str] = []
    listener.settimeout(60)

    def answer(s: socket.socket, seed: int) -> None:
        dice, digest = random.Random(seed), hashlib.sha256()
        s.settimeout(30)
        try:
            with s:
                while data := s.recv(dice.randrange(1, 100_000)):
                    digest.update(data)
                    s.sendall(data)
                    if not dice.randrange(50):
                        time.sleep(0.001)
                s.sendall(digest.digest())
        except OSError as error:
            bad.append(repr(error))

    threads = []
    for seed in range(connections):
        accepted, _ = listener.accept()
        threads.append(threading.Thread(target=answer, args=(accepted, seed)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return bad


def exchange(sockets: Any, ip: str, port: int, connections: int) -> tuple[list[str], int]:
    """Non-blocking partial writes of random sizes while reading, with pauses until all is back; half-close; all of it
    must come back. What went wrong, and how many bytes were sent."""
    bad, total, lock = [], [0], threading.Lock()

    def one(seed: int) -> None:
        dice = random.Random(seed)
        data = dice.randbytes(dice.choice([0, 70, 5_000, 600_000, 1_500_000]))
        sent, got, ended, pausing = 0, bytearray(), False, False
        try:
            with socket.create_connection((ip, port), timeout=30) as s:
                s.setblocking(False)
                while True:
                    pausing = (pausing or not dice.randrange(10)) and len(got) < sent < len(data)
                    readable, writable, _ = select.select([s], [] if ended or pausing else [s], [], 30)
                    assert readable or writable, "nothing happens"
                    if writable and sent < len(data):
                        with contextlib.suppress(BlockingIOError):
                            sent += s.send(data[sent : sent + dice.choice([1, 17, 1000, 30_000, 300_000])])
                    elif writable:
                        s.shutdown(socket.SHUT_WR)
                        ended = True
                    if readable:
                        piece = s.recv(dice.randrange(1, 70_000))
                        if not piece:
                            break
                        got += piece
            if bytes(got) != data + hashlib.sha256(data).digest():
                bad.append(f"{seed}: sent {len(data)}, got {len(got)}")
        except (OSError, AssertionError) as error:
            bad.append(f"{seed}: {error!r} at {sent} of {len(data)}, got {len(got)}")
        with lock:
            total[0] += len(data)

    for first in range(0, connections, 20):
        threads = [threading.Thread(target=one, args=(seed,)) for seed in range(first, min(first + 20, connections))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return bad, total[0]
