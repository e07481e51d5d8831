"""What is on the wire between nodes, seen from the fabric: mutual TLS 1.3 on one port for who is in the mesh, plain
text for who is not, and either one for a pod that changes sides while it runs."""

from __future__ import annotations

import json
import secrets
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.lab import agents
from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key
from deploy.lab.wire import TUNNEL_PORT, Wire, capture
from deploy.soak import peer
from tests.lab.objects import PORT, namespace, node, pod, service

PROGRAM = Path(peer.__file__).read_text()
AMBIENT = "istio.io/dataplane-mode"
TLS_1_3 = "0x0304"
CHACHA20 = "0x1303"


def python(*arguments: str) -> list[str]:
    return ["/usr/bin/python3", "-S", "-u", "-c", PROGRAM, *arguments]


def serving(name: str, namespace: str, node: str) -> str:
    """A pod and its Service."""
    return pod(name, namespace, node, command=python("serve", str(PORT))) + service(name, namespace)


NAMESPACE = {
    "client": "mesh",
    "fresh": "mesh",
    "server": "mesh",
    "outsider": "plain",
    "legacy": "plain",
    "left": "turning",
    "right": "turning",
}
CLUSTER = (
    namespace("mesh", ambient=True)
    + namespace("plain")
    + namespace("turning")
    + node("n1")
    + node("n2")
    + serving("client", "mesh", "n1")
    + serving("fresh", "mesh", "n1")
    + serving("server", "mesh", "n2")
    + serving("outsider", "plain", "n1")
    + serving("legacy", "plain", "n2")
    + serving("left", "turning", "n1")
    + serving("right", "turning", "n2")
)


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(CLUSTER)


def addresses(lab: Lab, name: str) -> list[str]:
    return [entry["ip"] for entry in lab.pod(name, NAMESPACE[name])["status"]["podIPs"]]


def doors(lab: Lab, name: str) -> list[tuple[str, int]]:
    """All ways to a pod's server: its addresses and its service's, IPv4 and IPv6."""
    service = lab.objects()[Key("Service", NAMESPACE[name], name)]
    found = [(ip, PORT) for ip in addresses(lab, name)] + [(ip, 80) for ip in service["spec"]["clusterIPs"]]
    assert sum(":" in ip for ip, _ in found) == 2 and len(found) == 4
    return found


class Asker:
    """One process in a pod that makes one connection after the other."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.name = lab, name
        self.process = lab.popen(name, python("ask"), namespace=NAMESPACE[name], pipe_input=True)

    def ask(self, to: tuple[str, int], text: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"to": to[0], "port": to[1], "text": text}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def ask_everywhere(self, target: str) -> Talked:
        """Through each door a text of its own, with everything on the wire meanwhile."""
        texts = {door: secrets.token_hex(16) for door in doors(self.lab, target)}
        with capture(self.lab) as wire:
            answers = {door: self.ask(door, text * 50) for door, text in texts.items()}
        own = addresses(self.lab, self.name)
        for door, answer in answers.items():
            assert answer.get("echo") == texts[door] * 50, (door, answer)
            assert answer["seen"] in own, "the server did not see its real client"
            assert (":" in answer["seen"]) == (":" in door[0])
        (process,) = {(answer["client"], answer["server"]) for answer in answers.values()}
        return Talked(wire, list(texts.values()), {*own, *addresses(self.lab, target)}, process)


class Talked:
    """`processes`: names of the one that asked and of the one that answered."""

    def __init__(self, wire: Wire, texts: list[str], hosts: set[str], processes: tuple[str, str]) -> None:
        self.texts, self.processes = texts, processes
        # Tunnels of others may have a PING to say meanwhile.
        self.wire = Wire(segments=[s for s in wire.segments if {s.source, s.target} <= hosts], pcap=wire.pcap)

    def seen(self) -> list[bool]:
        """Which of the texts could be read on the wire."""
        # Each host's bytes by themselves: one text is never torn apart by another one's segments.
        by_flow: dict[tuple[str, int], bytes] = defaultdict(bytes)
        for segment in self.wire.segments:
            by_flow[segment.source, segment.source_port] += segment.payload
        return [any(text.encode() in flow for flow in by_flow.values()) for text in self.texts]

    def check_encrypted(self) -> None:
        assert set(self.wire.by_port) == {TUNNEL_PORT}, self.wire.by_port
        assert self.wire.by_port[TUNNEL_PORT] > sum(len(text) * 100 for text in self.texts)
        assert self.wire.tls_records > 0
        assert self.seen() == [False] * 4

    def check_clear(self) -> None:
        sizes = self.wire.by_port
        assert sizes[PORT] and set(sizes) <= {PORT, TUNNEL_PORT}, sizes
        assert sizes[TUNNEL_PORT] < len(self.texts[0]) * 50, "more than the PING or GOAWAY of a tunnel from before"
        assert self.seen() == [True] * 4


@pytest.fixture
def asking(lab: Lab) -> Iterator[Callable[[str], Asker]]:
    with ExitStack() as stack:

        def start(name: str) -> Asker:
            asker = Asker(lab, name)
            stack.callback(asker.process.communicate)
            stack.callback(asker.process.kill)
            return asker

        yield start


def test_between_enrolled_pods_everything_goes_encrypted_through_the_tunnel_port(asking: Callable) -> None:
    asking("client").ask_everywhere("server").check_encrypted()


@pytest.mark.parametrize(("source", "target"), [("outsider", "legacy"), ("client", "legacy"), ("outsider", "server")])
def test_with_who_is_not_enrolled_it_stays_plain_text(asking: Callable, source: str, target: str) -> None:
    asking(source).ask_everywhere(target).check_clear()


def fields(pcap: Path, *names: str, only: str) -> list[dict[str, list[str]]]:
    """What wireshark's dissector, which nobody here wrote, reads in the packets: all values of each field."""
    command = ["tshark", "-n", "-r", str(pcap), "-d", f"tcp.port=={TUNNEL_PORT},tls", "-Y", only, "-T", "fields"]
    command += ["-E", "separator=/t", "-E", "occurrence=a", "-E", "aggregator=,"]
    command += [word for name in names for word in ("-e", name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [dict(zip(names, (value.split(",") if value else [] for value in row), strict=True)) for row in rows]


def test_the_handshake_is_mutual_tls_1_3_with_alpn_h2(lab: Lab, asking: Callable, tmp_path: Path) -> None:
    talked = asking("fresh").ask_everywhere("server")
    talked.check_encrypted()
    file = tmp_path / "wire.pcap"
    file.write_bytes(talked.wire.pcap)

    versions, suites = "tls.handshake.extensions.supported_version", "tls.handshake.ciphersuite"
    alpn, sni = "tls.handshake.extensions_alpn_str", "tls.handshake.extensions_server_name"
    kinds = "tls.handshake.type"
    hellos = fields(file, kinds, versions, suites, alpn, sni, only="tls.handshake.type == 1")
    assert len(hellos) == 2, "one tunnel per address"
    for hello in hellos:
        assert hello[versions] == [TLS_1_3]
        assert hello[alpn] == ["h2"]
        assert hello[sni] == []
        assert CHACHA20 not in hello[suites]
        assert set(hello[suites]) <= {"0x1301", "0x1302", "0x00ff"}, "TLS 1.3's AES-GCM suites (and RFC 5746's SCSV)"
    answers = fields(file, versions, suites, alpn, only="tls.handshake.type == 2")
    assert len(answers) == 2
    for answer in answers:
        assert answer[versions] == [TLS_1_3]
        assert answer[suites][0] in ("0x1301", "0x1302")
        assert answer[alpn] == [], "what was chosen is said under encryption"
    # From there on everything, certificates too, is in records of application data (23): no Certificate (11), no
    # CertificateRequest (13) to be read, and no alert (21).
    types = [kind for row in fields(file, kinds, only="tls.handshake") for kind in row[kinds]]
    assert sorted(types) == ["1", "1", "2", "2"]
    records = fields(file, "tls.record.content_type", "tls.record.opaque_type", only="tls")
    seen = {kind for row in records for kinds_ in row.values() for kind in kinds_}
    assert seen <= {"20", "22", "23"} and "23" in seen
    for name in (b"spiffe://", b"cluster.local", b"CONNECT", b"baggage"):
        assert name not in talked.wire.payload


@pytest.mark.parametrize(
    ("options", "complaint"), [(["-tls1_3"], "certificate required"), (["-tls1_2"], "protocol version")]
)
def test_the_tunnel_port_wants_a_certificate_and_tls_1_3(lab: Lab, options: list[str], complaint: str) -> None:
    host = addresses(lab, "server")[0]
    command = ["openssl", "s_client", "-connect", f"{host}:{TUNNEL_PORT}", "-alpn", "h2", "-ign_eof", *options]
    done = lab.exec("outsider", command, namespace="plain", timeout=20)
    assert done.returncode != 0
    assert complaint in done.stderr, done.stderr


def protocols(lab: Lab) -> set[tuple[str, str]]:
    """How each node's agent would reach the pods that change sides: (node and pod, protocol)."""
    found = set()
    for name in ("n1", "n2"):
        answer = agents.ask_socket(agents.admin_socket(lab.layout, name), "/workloads") or {"workloads": []}
        found |= {(f"{name} {w['name']}", w["protocol"]) for w in answer["workloads"] if w["namespace"] == "turning"}
    return found


@contextmanager
def asked_without_end(asker: Asker, to: tuple[str, int]) -> Iterator[list[dict[str, Any]]]:
    """Connection after connection while the block runs; the answers, all there after the block."""
    answers: list[dict[str, Any]] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(asker.ask(to, "still there?"))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join(peer.DEADLINE)


def test_enrolment_flips_it_on_running_pods_and_back(lab: Lab, asking: Callable, until: Callable[..., None]) -> None:
    left, permanent = asking("left"), asking("left")
    uids = {name: lab.pod(name, "turning")["metadata"]["uid"] for name in ("left", "right")}
    before = left.ask_everywhere("right")
    before.check_clear()
    for mode, protocol, check in (
        ("ambient", "HBONE", Talked.check_encrypted),
        (None, "NONE", Talked.check_clear),
        ("ambient", "HBONE", Talked.check_encrypted),
        (None, "NONE", Talked.check_clear),
    ):
        wanted = {(f"{node} {name}", protocol) for node in ("n1", "n2") for name in ("left", "right")}
        with asked_without_end(permanent, doors(lab, "right")[0]) as answers:
            lab.label(Key("Namespace", "", "turning"), {AMBIENT: mode})
            until(lambda wanted=wanted: protocols(lab) == wanted)
        assert answers, "nothing was asked while it changed"
        assert not [answer for answer in answers if "error" in answer], "a connection failed while it changed"
        after = left.ask_everywhere("right")
        check(after)
        assert after.processes == before.processes, "a process was restarted"
    assert uids == {name: lab.pod(name, "turning")["metadata"]["uid"] for name in ("left", "right")}
