"""A peer that does not behave: raw bytes, TLS or HTTP/2 by hand, dialled from a pod's network namespace under whatever
certificate it is given; and what the agent that has to bear it shows meanwhile."""

from __future__ import annotations

import os
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import controller.ca
from bpf.netns import open_socket
from deploy.lab import agents, cgroup
from deploy.lab.cluster import Lab
from deploy.lab.layout import NETNS
from mesh import http2
from mesh.identity import SpiffeId
from tests.lab.talk import Talk, until
from tests.unit.ztunnel.pump.contexts import contexts
from ztunnel.csr import signing_request
from ztunnel.orders import Credentials

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TUNNEL_PORT = 15008
_TIMEOUT = 15.0  # of every call on an offender's socket: nothing may leave it hanging


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113 §4.1."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


SETTINGS = frame(4, 0, 0)


def connect_block(authority: str) -> bytes:
    """The header block of a CONNECT: HPACK literals."""
    return b"\x42\x07CONNECT\x41" + bytes([len(authority)]) + authority.encode()


def credentials(lab: Lab, identity: SpiffeId, *, lifetime: timedelta = controller.ca.LEAF_LIFETIME) -> Credentials:
    """As the mesh's own authority issues them."""
    now = datetime.now(UTC)
    authority = controller.ca.load_or_create(lab.layout.control / "state", trust_domain="cluster.local", now=now)
    key = ec.generate_private_key(ec.SECP256R1())
    chain = authority.issue(signing_request(identity, key), identity, now=now, lifetime=lifetime)
    return Credentials(
        identity=identity,
        chain=tuple(ssl.PEM_cert_to_DER_cert(pem) for pem in chain),
        key=key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        roots=tuple(ssl.PEM_cert_to_DER_cert(pem) for pem in authority.roots),
    )


def trusting(given: Credentials, *, alpn: str = "h2") -> ssl.SSLContext:
    """A client under this certificate."""
    context = contexts(given).client
    context.set_alpn_protocols([alpn])
    return context


def anonymous(*, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = newest
    context.set_alpn_protocols(["h2"])
    return context


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an offender sits: a pod's or a node's network namespace, outside of its cgroups, so that no hook captures
    what it dials."""

    netns: Path

    def socket(self, family: int, *, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        handle = os.open(self.netns, os.O_RDONLY)
        try:
            sock = open_socket(handle, family, kind=kind, protocol=protocol)
        finally:
            os.close(handle)
        sock.settimeout(_TIMEOUT)
        return sock

    def dial(self, ip: str, port: int) -> socket.socket:
        sock = self.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
        try:
            sock.connect((ip, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def tls(self, ip: str, context: ssl.SSLContext, port: int = TUNNEL_PORT) -> ssl.SSLSocket:
        return context.wrap_socket(self.dial(ip, port))


def in_pod(lab: Lab, pod: str, namespace: str) -> Place:
    return Place(netns=lab.netns(lab.pod(pod, namespace)))


def on_node(lab: Lab, node: str) -> Place:
    return Place(netns=NETNS / lab.layout.node_netns(node))


def said(sock: socket.socket) -> bytes:
    """Everything until the other side ends it, in order or not; TimeoutError if it does not."""
    got = b""
    with suppress(ConnectionError, ssl.SSLError):
        while data := sock.recv(65536):
            got += data
    return got


def push(sock: socket.socket, data: bytes) -> None:
    """Send as much of it as is taken."""
    with suppress(ConnectionError, ssl.SSLError):
        sock.sendall(data)


@dataclass(kw_only=True)
class Hbone:
    """HTTP/2 done right, for requests that are wrong."""

    sock: ssl.SSLSocket
    http: http2.Connection = field(init=False)
    events: list[http2.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = http2.Settings(initial_window_size=65535, max_concurrent_streams=100)
        self.http = http2.Connection(client=True, settings=settings, limits=http2.Limits())

    def request(self, authority: str, *, method: str = "CONNECT", headers: Mapping[str, str] | None = None) -> int:
        fields = [(b":method", method.encode()), (b":authority", authority.encode())]
        if method != "CONNECT":
            fields += [(b":scheme", b"https"), (b":path", b"/")]
        fields += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        stream = self.http.request(fields)
        self.flush()
        return stream

    def flush(self) -> None:
        while data := self.http.pull():
            self.sock.sendall(data)

    def status(self, stream: int) -> int:
        """Of the answer; ConnectionError if the stream or the tunnel ends without one."""
        return int(dict(self._await(http2.HeadersReceived, stream).headers)[b":status"])

    def data(self, stream: int) -> bytes:
        """The next piece."""
        return self._await(http2.DataReceived, stream).data

    def _await(self, kind: type, stream: int) -> http2.Event:
        end = time.monotonic() + _TIMEOUT  # PINGs keep coming
        while time.monotonic() < end:
            for event in self.events:
                if isinstance(event, kind) and event.stream_id == stream:
                    self.events.remove(event)
                    return event
                if isinstance(event, http2.StreamReset) and event.stream_id == stream:
                    raise ConnectionError(f"reset with error {event.error_code:#x}")
            self.flush()
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("the other side closed")
            self.events += self.http.receive(data, time.monotonic())
        raise TimeoutError("no answer")


# What bears it


def resident(pid: int) -> int:
    """Bytes of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The agent of a node, seen from outside."""

    lab: Lab
    node: str

    @property
    def pid(self) -> int:
        (pid,) = cgroup.processes(self.lab.layout.node_cgroup(self.node) / "agent")
        return pid

    @property
    def memory(self) -> int:
        return resident(self.pid)

    @property
    def seconds(self) -> float:
        """CPU time used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def idle(self) -> bool:
        """It used less than a third of a core in the last moment."""
        before = self.seconds
        time.sleep(0.3)
        return self.seconds - before < 0.1

    @property
    def log(self) -> str:
        return self.lab.logs(f"node/{self.node}").read_text()

    def refused(self) -> dict[str, int]:
        """Refusals by reason, the agent's and the kernel side's, from the metrics."""
        with on_node(self.lab, self.node).dial("127.0.0.1", 15020) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n")
            text = said(sock).decode()
        found: dict[str, int] = {}
        pattern = r'^gossamer_(?:kernel_)?refused_total\{reason="(\w+)"\} ([0-9.e+]+)$'
        for reason, count in re.findall(pattern, text, re.M):
            found[reason] = found.get(reason, 0) + int(float(count))
        return found

    def connections(self, pod: str) -> list[dict[str, Any]]:
        """Live ones to a pod."""
        found = agents.ask_socket(agents.admin_socket(self.lab.layout, self.node), "/connections")
        return [c for c in found["connections"] if c["destination"]["pod"] == pod]

    def policies(self) -> list[dict[str, Any]]:
        """Those it enforces."""
        return agents.ask_socket(agents.admin_socket(self.lab.layout, self.node), "/policies")["policies"]

    @contextmanager
    def logs(self, text: str) -> Iterator[None]:
        """Meanwhile, or soon after."""
        length = len(self.log)
        yield
        until(lambda: text in self.log[length:])

    @contextmanager
    def refuses(self, reason: str, *, says: str = "", times: int = 1) -> Iterator[None]:
        """Meanwhile it counts so many more refusals for `reason`, and its log says why."""
        before = self.refused().get(reason, 0)
        with self.logs(says):
            yield
        until(lambda: self.refused().get(reason, 0) >= before + times)


@contextmanager
def undisturbed(bystander: Talk, agent: Agent, *, memory: int = 50 << 20) -> Iterator[None]:
    """Meanwhile a connection of others goes on, byte for byte and never long in waiting; afterwards the agent is as big
    as before, within `memory` bytes, and idle."""
    before = agent.memory
    over, waits, wrong = threading.Event(), [0.0], []

    def exchange() -> None:
        number = 0
        while not over.is_set():
            number += 1
            start = time.monotonic()
            heard = bystander.says(f"round {number}")
            waits.append(time.monotonic() - start)
            if heard != f"got round {number}":
                wrong.append(heard)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
    assert not wrong and not thread.is_alive(), wrong
    assert max(waits) < 10, f"the bystander waited {max(waits):.1f} s"
    until(lambda: agent.idle)
    grown = agent.memory - before
    assert grown < memory, f"the agent has grown by {grown >> 20} MiB"
