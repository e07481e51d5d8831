"""A server that says who it is and whom it sees, clients in pods of a lab, and what agents list of them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deploy.lab import agents
from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key

SERVER = """
import os, socket, socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        host = self.client_address[0].removeprefix("::ffff:")
        self.wfile.write(f"{os.getpid()} {host}\\n".encode())
        for line in self.rfile:
            self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address, daemon_threads = socket.AF_INET6, True, True
Server(("::", 9000), Handler).serve_forever()
"""
# Each line in, each answer out; the end and what it was.
CLIENT = """
import socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
    file = s.makefile("rwb")
    greeting = file.readline()
    if not greeting: raise EOFError("closed at once")
    print("open", greeting.decode().strip(), flush=True)
    s.settimeout(0.2)
    import select
    while True:
        ready, _, _ = select.select([s, sys.stdin], [], [], 60)
        if s in ready:
            s.settimeout(None); got = s.recv(4096)
            if not got: raise EOFError("closed")
            print("got", got.decode().strip(), flush=True)
        if sys.stdin in ready:
            line = sys.stdin.readline()
            if not line: break
            s.sendall(line.encode())
    print("end OK", flush=True)
except Exception as error:
    print("end", type(error).__name__, error, flush=True)
"""
SERVICE = "server.mesh"


def until(what: Callable[[], object], seconds: float = 90.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def ask(lab: Lab, node: str, target: str) -> Any:
    return agents.ask_socket(agents.admin_socket(lab.layout, node), target)


class Talk:
    """One long connection of a process in a pod."""

    def __init__(self, lab: Lab, source: str, namespace: str, to: str, port: int) -> None:
        command = ["/usr/bin/python3", "-S", "-u", "-c", CLIENT, to, str(port)]
        self.process: subprocess.Popen[str] = lab.popen(source, command, namespace=namespace, pipe_input=True)
        self.greeting = self.heard()

    @property
    def is_open(self) -> bool:
        return self.greeting.startswith("open ")

    @property
    def server_pid(self) -> str:
        return self.greeting.split()[1]

    @property
    def seen_as(self) -> str:
        """The client's address as the server saw it."""
        return self.greeting.split()[2]

    def heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def says(self, text: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.heard()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def talk(lab: Lab, source: str, namespace: str = "mesh", to: str = SERVICE, port: int = 80) -> Iterator[Talk]:
    conversation = Talk(lab, source, namespace, to, port)
    try:
        yield conversation
    finally:
        conversation.close()


def reaches(lab: Lab, source: str, namespace: str = "mesh", to: str = SERVICE, port: int = 80) -> bool:
    with talk(lab, source, namespace, to, port) as conversation:
        return conversation.is_open


def ip(lab: Lab, name: str, namespace: str = "mesh", family: int = 0) -> str:
    return str(lab.pod(name, namespace)["status"]["podIPs"][family]["ip"])


def ips(lab: Lab, name: str, namespace: str = "mesh") -> list[str]:
    return [entry["ip"] for entry in lab.pod(name, namespace)["status"]["podIPs"]]


@contextmanager
def applied(lab: Lab, text: str, key: Key) -> Iterator[None]:
    lab.apply({"policy.yaml": text})
    try:
        yield
    finally:
        lab.delete([key])


def listed(lab: Lab, node: str, source: str, direction: str) -> dict[str, Any]:
    """What an agent lists of the only open connection of a pod; an earlier one may take a moment to be gone."""
    found: list[dict[str, Any]] = []

    def alone() -> bool:
        found[:] = [c for c in live(lab, node, source) if c["direction"] == direction]
        return len(found) == 1

    until(alone)
    return found[0]


def live(lab: Lab, node: str, source: str) -> list[dict[str, Any]]:
    found = ask(lab, node, "/connections")["connections"]
    return [c for c in found if c["source"]["pod"] == source]
