"""Bad input and faults against real agents: each ends in a clear error for whoever caused it, is named in metrics and
log, costs bounded memory, and disturbs nobody else."""

from __future__ import annotations

import random
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta

import pytest

from deploy.lab.cluster import Lab
from deploy.lab.fault import LabError
from mesh.identity import SpiffeId
from tests.lab.objects import pod
from tests.lab.offender import (
    PREFACE,
    SETTINGS,
    TUNNEL_PORT,
    Agent,
    Place,
    anonymous,
    connect_block,
    credentials,
    frame,
    in_pod,
    push,
    said,
    trusting,
    undisturbed,
)
from tests.lab.talk import SERVER, SERVICE, Talk, ip, reaches, talk, until
from tests.lab.test_mesh import CLUSTER as MESH
from tests.unit.ztunnel.pump.authority import Authority

RST_STREAM = 3  # RFC 9113 §6.4

HOLLOW = """
---
apiVersion: v1
kind: Service
metadata: {name: hollow, namespace: mesh}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
"""
HOSE = SERVER.replace("for line in self.rfile:", "while True:").replace("write(line)", "write(bytes(65536))")
QUICK = 12.0  # seconds; who hears nothing waits for 20 (talk.CLIENT), and a machine may be busy
OUTSIDER = SpiffeId("cluster.local", "plain", "outsider")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(MESH + HOLLOW + pod("hose", "mesh", "n2", HOSE))


@pytest.fixture(scope="module")
def outsider(lab: Lab) -> Place:
    return in_pod(lab, "outsider", "plain")


@pytest.fixture(scope="module")
def agent(lab: Lab) -> Agent:
    """Of the node that is attacked."""
    return Agent(lab=lab, node="n2")


@pytest.fixture(scope="module")
def server(lab: Lab) -> str:
    return ip(lab, "server")


@pytest.fixture(scope="module")
def member(lab: Lab) -> ssl.SSLContext:
    """A client under a certificate that the mesh accepts."""
    return trusting(credentials(lab, OUTSIDER))


@pytest.fixture
def bystander(lab: Lab, agent: Agent) -> Iterator[Talk]:
    """A connection between two enrolled pods, before, during and after."""
    with talk(lab, "client") as conversation:
        assert conversation.is_open
        with undisturbed(conversation, agent):
            yield conversation
        assert conversation.says("after all that") == "got after all that"


# Who is not let in


def strangers(lab: Lab) -> dict[str, tuple[ssl.SSLContext, str, str]]:
    """Kind -> (client, reason, what the log says)."""
    evil, self_made = SpiffeId("evil.example", "plain", "outsider"), Authority.new("self-made")
    ended = timedelta(seconds=-30)
    own_root = credentials(lab, OUTSIDER).roots
    return {
        "another trust domain": (trusting(credentials(lab, evil)), "PEER_IDENTITY", "evil.example"),
        "expired": (trusting(credentials(lab, OUTSIDER, lifetime=ended)), "TLS_FAILED", "certificate has expired"),
        "another root": (
            trusting(self_made.issue(OUTSIDER, roots=own_root)),
            "TLS_FAILED",
            "certificate verify failed",
        ),
        "no certificate": (anonymous(), "TLS_FAILED", "peer did not return a certificate"),
        "TLS 1.2": (anonymous(newest=ssl.TLSVersion.TLSv1_2), "TLS_FAILED", "unsupported protocol"),
        "another ALPN": (trusting(credentials(lab, OUTSIDER), alpn="http/1.1"), "TLS_FAILED", "ALPN h2"),
    }


KINDS = ["another trust domain", "expired", "another root", "no certificate", "TLS 1.2", "another ALPN"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_is_turned_away(
    lab: Lab, outsider: Place, agent: Agent, server: str, bystander: Talk, kind: str
) -> None:
    context, reason, says = strangers(lab)[kind]
    in_the_handshake = suppress(ssl.SSLError, ConnectionError)  # or, in TLS 1.3, right after
    with agent.refuses(reason, says=says), in_the_handshake, outsider.tls(server, context) as sock:
        push(sock, PREFACE + SETTINGS)
        assert said(sock) == b"", "not even SETTINGS"


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\nhost: server\r\n\r\n",
    "noise": random.Random(15008).randbytes(1 << 20),
    "a TLS record that is too long": b"\x16\x03\x01\xff\xff" + bytes(70_000),
    "half a ClientHello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_on_the_tunnel_port(outsider: Place, agent: Agent, server: str, bystander: Talk, kind: str) -> None:
    with agent.refuses("TLS_FAILED", times=5):
        for _ in range(5):
            with outsider.dial(server, TUNNEL_PORT) as sock:
                push(sock, GARBAGE[kind])
                if kind.startswith("half"):
                    sock.shutdown(socket.SHUT_WR)
                assert len(said(sock)) < 100, "an alert at most"


@pytest.mark.parametrize("port", [15001, 15006])
@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_the_agents_other_ports_are_closed_to_everybody(
    lab: Lab, outsider: Place, agent: Agent, bystander: Talk, port: int, family: int
) -> None:
    with agent.refuses("RESERVED_PORT", says="RESERVED_PORT"), pytest.raises(ConnectionRefusedError):
        outsider.dial(ip(lab, "server", family=family), port)


# Members of the mesh that misbehave

WIDE_OPEN = struct.pack(">I", 2**30)
CONNECT = connect_block("10.0.0.2:8080")
VIOLATIONS = {
    "HTTP/1.1": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "oversized frame": PREFACE + SETTINGS + frame(0, 0, 1, b"x" * 16_385),
    "oversized frame, announced": PREFACE + SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "window overflow": PREFACE + SETTINGS + frame(8, 0, 0, struct.pack(">I", 2**31 - 1)),
    "CONTINUATION flood": PREFACE
    + SETTINGS
    + frame(1, 0, 1, CONNECT)
    + frame(9, 0, 1, b"\x40\x01a\x01b" * 1000) * 2000,
    "rapid reset": PREFACE
    + SETTINGS
    + b"".join(frame(1, 4, 1 + 2 * n, CONNECT) + frame(3, 0, 1 + 2 * n, b"\0\0\0\x08") for n in range(20_000)),
    "SETTINGS flood": PREFACE + SETTINGS * 100_000,
    "PING flood": PREFACE + SETTINGS + frame(6, 0, 0, b"12345678") * 100_000,
    "empty DATA flood": PREFACE + SETTINGS + frame(1, 4, 1, CONNECT) + frame(0, 0, 1) * 100_000,
}


@pytest.mark.parametrize("kind", VIOLATIONS)
def test_a_violation_of_http2_costs_the_tunnel(
    outsider: Place, agent: Agent, server: str, member: ssl.SSLContext, bystander: Talk, kind: str
) -> None:
    with agent.refuses("HTTP2_PROTOCOL", says="HTTP2_PROTOCOL"), outsider.tls(server, member) as sock:
        push(sock, VIOLATIONS[kind])
        assert len(said(sock)) < 1 << 20


def test_more_than_the_window_costs_the_stream_or_the_tunnel(
    outsider: Place, agent: Agent, server: str, member: ssl.SSLContext, bystander: Talk
) -> None:
    with outsider.tls(server, member) as sock:
        push(sock, PREFACE + SETTINGS + frame(1, 4, 1, connect_block(f"{server}:9000")))
        push(sock, frame(0, 0, 1, b"x" * 16_384) * 4096)  # 64 MiB into a window of 64 KiB
        sock.settimeout(60)
        got = b""
        with suppress(ConnectionError, ssl.SSLError):
            while RST_STREAM not in kinds(got) and (data := sock.recv(65536)):
                got += data


def kinds(data: bytes) -> list[int]:
    """Of all whole frames."""
    found, at = [], 0
    while at + 9 <= len(data) and at + 9 + (size := int.from_bytes(data[at : at + 3])) <= len(data):
        found.append(data[at + 3])
        at += 9 + size
    return found


def test_a_member_that_reads_nothing_stalls_only_itself(
    lab: Lab, outsider: Place, agent: Agent, member: ssl.SSLContext, bystander: Talk
) -> None:
    """It asks for much on many streams, permits all of it, and never takes any."""
    hose = ip(lab, "hose")
    with ExitStack() as stack:
        for _ in range(4):
            sock = stack.enter_context(outsider.tls(hose, member))
            push(sock, PREFACE + SETTINGS + frame(8, 0, 0, WIDE_OPEN))
            for stream in range(1, 40, 2):
                push(sock, frame(1, 4, stream, connect_block(f"{hose}:9000")) + frame(8, 0, stream, WIDE_OPEN))
        until(lambda: len(agent.connections("hose")) == 80)
        until(lambda: agent.idle)


# Silence


def test_half_open_peers_keep_nobody_out(lab: Lab, outsider: Place, agent: Agent, server: str, bystander: Talk) -> None:
    """Connected without a handshake, and half a handshake; from both addresses of the pod."""
    with ExitStack() as stack, agent.refuses("LIMIT", says="handshakes of the peer are pending"):
        for address in (server, ip(lab, "server", family=1)):
            for number in range(40):
                try:
                    sock = stack.enter_context(outsider.dial(address, TUNNEL_PORT))
                except ConnectionResetError:
                    continue  # over the limit
                if number % 2:
                    push(sock, GARBAGE["half a ClientHello"])
        started = time.monotonic()
        assert reaches(lab, "neighbour") and reaches(lab, "client")
        assert time.monotonic() - started < QUICK


def test_half_open_syns_keep_nobody_out(lab: Lab, outsider: Place, server: str, bystander: Talk) -> None:
    """From an address nobody has, so that nobody answers the SYN-ACK."""
    nobody = str(lab.layout.node_pods4(0)[250])
    with outsider.socket(socket.AF_INET, kind=socket.SOCK_RAW, protocol=socket.IPPROTO_RAW) as raw:
        for number in range(3000):
            raw.sendto(syn(nobody, 10_000 + number, server, TUNNEL_PORT if number % 2 else 9000), (server, 0))
    started = time.monotonic()
    assert reaches(lab, "neighbour")
    assert reaches(lab, "outsider", "plain", server, 9000)
    assert time.monotonic() - started < QUICK


def syn(source: str, source_port: int, destination: str, port: int) -> bytes:
    """An IPv4 packet with a TCP SYN (RFC 791, RFC 9293 §3.1)."""
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    segment = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, 2, 64_240, 0, 0)
    words = struct.unpack("!16H", ends + struct.pack("!HH", socket.IPPROTO_TCP, len(segment)) + segment)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    segment = segment[:16] + struct.pack("!H", ~total & 0xFFFF) + segment[18:]
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, socket.IPPROTO_TCP, 0) + ends + segment


def test_idle_tunnels_of_one_member_are_bounded(
    lab: Lab, outsider: Place, agent: Agent, server: str, member: ssl.SSLContext, bystander: Talk
) -> None:
    with ExitStack() as stack, agent.refuses("LIMIT", says="the peer has 256 already"):
        for _ in range(257):
            try:
                stack.enter_context(outsider.tls(server, member)).sendall(PREFACE + SETTINGS)
            except ConnectionError:
                break
        assert reaches(lab, "neighbour")


# The cluster's own faults


def test_a_service_without_endpoints_is_refused_at_once(lab: Lab, bystander: Talk) -> None:
    source = Agent(lab=lab, node="n1")
    with source.refuses("NO_ENDPOINT", says="service mesh/hollow.mesh.svc.cluster.local selects no pods"):
        started = time.monotonic()
        assert not reaches(lab, "client", to="hollow.mesh")
        assert time.monotonic() - started < QUICK
    with source.refuses("NO_SERVICE_PORT", says="has no port 81; it has 80"):
        assert not reaches(lab, "client", to=SERVICE, port=81)


def test_a_node_that_is_cut_off(lab: Lab) -> None:
    """Open connections survive a short cut, a new one is told so, those of other nodes do not notice."""
    source = Agent(lab=lab, node="n1")
    with talk(lab, "client") as across, talk(lab, "client", to=ip(lab, "legacy", "plain"), port=9000) as near:
        lab.partition("n2")
        try:
            assert near.says("here") == "got here"
            assert reaches(lab, "client", to=ip(lab, "legacy", "plain"), port=9000)
            with source.refuses("CONNECT_TIMEOUT", says="CONNECT_TIMEOUT"):
                assert not reaches(lab, "client", to=ip(lab, "neighbour"), port=9000)
        finally:
            lab.partition("n2", healed=True)
        assert across.says("again") == "got again"
    until(lambda: reaches(lab, "client"))


BAD_INPUT = {
    "unknown kind": (
        "apiVersion: example.org/v1\nkind: Gizmo\nmetadata: {name: a, namespace: mesh}\n",
        ["bad.yaml", "Gizmo"],
    ),
    "malformed YAML": ("apiVersion: v1\nkind: [Service\n", ["bad.yaml", "line"]),
    "not an object": ("- a\n- b\n", ["bad.yaml"]),
    "overlapping names": (HOLLOW + HOLLOW, ["bad.yaml", "hollow", "metadata.name"]),
    "a field of the wrong type": (HOLLOW.replace("port: 80", "port: many"), ["bad.yaml", "hollow", "port"]),
    "a name that is none": (HOLLOW.replace("hollow", "Hol_low"), ["bad.yaml", "metadata.name"]),
    "a bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n",
        ["bad.yaml"],
    ),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_refused_by_name_and_changes_nothing(lab: Lab, bystander: Talk, kind: str) -> None:
    text, named = BAD_INPUT[kind]
    before = lab.objects()
    with pytest.raises(LabError) as refusal:
        lab.apply({"bad.yaml": text})
    assert all(word in str(refusal.value) for word in named), refusal.value
    assert lab.objects() == before


def test_an_agent_that_was_killed(lab: Lab) -> None:
    """Its pods are closed at once for destinations known and unknown, and open again without help."""
    unknown = str(lab.layout.node_pods4(7)[7])
    targets = [(SERVICE, 80), (ip(lab, "server"), 9000), (ip(lab, "server", family=1), 9000)]
    targets += [(ip(lab, "legacy", "plain"), 9000), (unknown, 80), ("203.0.113.9", 443), ("2001:db8::9", 443)]
    with talk(lab, "client") as open_before:
        lab.kill_agent("n1")
        try:
            assert open_before.heard().startswith("end "), "it ends in an error or an end, it does not hang"
            for host, port in targets:
                started = time.monotonic()
                assert not reaches(lab, "client", to=host, port=port), host
                assert time.monotonic() - started < QUICK, f"{host} was not refused quickly"
            started = time.monotonic()
            assert not reaches(lab, "neighbour", to=ip(lab, "client"), port=9000)
            assert not reaches(lab, "outsider", "plain", ip(lab, "client"), 9000)
            assert time.monotonic() - started < QUICK
            assert reaches(lab, "neighbour"), "the other node does not notice"
        finally:
            lab.restart_agent("n1")
    until(lambda: reaches(lab, "client"))
    assert Agent(lab=lab, node="n1").refused()["AGENT_ABSENT"] >= len(targets)


def test_nobody_stumbled(lab: Lab) -> None:
    """After all of the above."""
    for target in ("node/n1", "node/n2", "controller"):
        text = lab.logs(target).read_text()
        assert "Traceback" not in text, text
        assert "INTERNAL" not in text
