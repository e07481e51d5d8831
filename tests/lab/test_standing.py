"""Many connections of one kind: decided once, told of exactly, none under a policy that is not in force any more."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable

import pytest

from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key
from tests.lab.objects import namespace, node, pod, service
from tests.lab.talk import SERVER, applied, ask, ip, reaches, talk, until

CLUSTER = (
    namespace("mesh", ambient=True, direct=False)
    + namespace("plain")
    + node("n1")
    + node("n2")
    + service("server", "mesh")
    + pod("server", "mesh", "n2", SERVER)
    + pod("second", "mesh", "n2", SERVER, labels={"app": "server"})
    + pod("client", "mesh", "n1")
    + pod("outsider", "plain", "n1")
)
# One connection after another; of each "<server's pid> <own port>", or its error.
DIALS = """
import socket, sys
to, port, count = socket.gethostbyname(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
done = 0
while done < count or not count:
    done += 1
    try:
        with socket.create_connection((to, port), timeout=60) as s:
            file = s.makefile("rwb")
            greeting = file.readline().split()
            if not greeting: raise ConnectionResetError("closed at once")
            file.write(b"hello\\n"); file.flush()
            assert file.readline() == b"hello\\n"
            s.shutdown(socket.SHUT_WR)
            assert file.read() == b""
            print(greeting[0].decode(), s.getsockname()[1], flush=True)
    except OSError as error:
        print("failed", type(error).__name__, flush=True)
"""
DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-client, namespace: mesh}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]}]
"""
DENY_KEY = Key("AuthorizationPolicy", "mesh", "deny-client")
TRIED = DENY.replace("{name: deny-client,", '{name: tried, annotations: {istio.io/dry-run: "true"},')
TRIED_KEY = Key("AuthorizationPolicy", "mesh", "tried")
SENT = len("hello\n")
MANY = 200


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(CLUSTER)


def command(to: str, port: int, count: int) -> list[str]:
    return ["/usr/bin/python3", "-S", "-u", "-c", DIALS, to, str(port), str(count)]


def dials(
    lab: Lab, to: str, port: int = 9000, *, source: str = "client", of: str = "mesh", count: int = MANY
) -> list[str]:
    done = lab.exec(source, command(to, port, count), namespace=of, check=True).stdout.splitlines()
    assert len(done) == count
    return done


def sums(lab: Lab, at: str, reporter: str) -> Counter[str]:
    """Of what a node's agent has counted of connections to the server, by family."""
    text = lab.exec(f"node/{at}", ["curl", "-sS", "http://127.0.0.1:15020/metrics"], check=True).stdout
    found: Counter[str] = Counter()
    for family, labels, value in re.findall(r"^istio_tcp_(\w+)_total\{(.*)\} (\d+)", text, re.M):
        if f'reporter="{reporter}"' in labels and 'connection_security_policy="mutual_tls"' in labels:
            found[family] += int(value)
    return found


def enforced(lab: Lab) -> set[str]:
    """Policies by which the servers' agent decides."""
    return {p["name"] for p in ask(lab, "n2", "/policies")["policies"]}


def lines(lab: Lab, at: str, direction: str, offset: int = 0) -> list[str]:
    text = lab.logs(f"node/{at}").read_text()[offset:]
    return [line for line in text.splitlines() if "connection complete" in line and f'direction="{direction}"' in line]


@pytest.mark.parametrize("to", ["address", "service"])
def test_metrics_and_the_access_log_are_exact(lab: Lab, to: str) -> None:
    target = (ip(lab, "server"), 9000) if to == "address" else ("server.mesh", 80)
    reports = {("n1", "source", "outbound"), ("n2", "destination", "inbound")}
    before = {at: sums(lab, at, reporter) for at, reporter, _ in reports}
    offsets = {at: len(lab.logs(f"node/{at}").read_text()) for at, _, _ in reports}
    done = dials(lab, *target)
    by_server = Counter(line.split()[0] for line in done)
    assert "failed" not in by_server
    ports = sorted(line.split()[1] for line in done)
    heard = sum(len(f"{pid} {ip(lab, 'client')}\n") + SENT for pid in by_server.elements())
    for at, reporter, direction in sorted(reports):
        expected = {
            "connections_opened": MANY,
            "connections_closed": MANY,
            "received_bytes": MANY * SENT,
            "sent_bytes": heard,
        }
        until(lambda at=at, reporter=reporter, e=expected: sums(lab, at, reporter) - before[at] == Counter(e))
        until(lambda at=at, d=direction: len(lines(lab, at, d, offsets[at])) >= MANY)
        told = lines(lab, at, direction, offsets[at])
        assert sorted(re.findall(r"src\.addr=\S+:(\d+) ", "\n".join(told))) == ports
        chosen = Counter(re.findall(r"dst\.hbone_addr=(\S+) ", "\n".join(told)))
        assert chosen.keys() == {
            f"{ip(lab, name)}:9000" for name in (["server", "second"] if to == "service" else ["server"])
        }
        assert min(chosen.values()) > MANY // len(chosen) - 45  # with even odds, of 200, the standard deviation is 7
        for line in told:
            for field in (
                f"src.addr={ip(lab, 'client')}:",
                'src.workload="client" src.namespace="mesh" src.identity="spiffe://cluster.local/ns/mesh/sa/client"',
                ":15008 dst.hbone_addr=",
                'dst.service="server.mesh.svc.cluster.local"' if (to, direction) != ("address", "outbound") else "",
                'dst.identity="spiffe://cluster.local/ns/mesh/sa/',
                f"bytes_{'recv' if direction == 'inbound' else 'sent'}={SENT} ",
            ):
                assert field in line
            assert re.search(r'duration="\d+ms"$', line)


def test_one_that_lives_is_listed_and_counted(lab: Lab) -> None:
    dials(lab, ip(lab, "server"), count=2)
    with talk(lab, "client", to=ip(lab, "server"), port=9000) as conversation:
        conversation.says("hello")
        for at in ("n1", "n2"):

            def found(at: str = at) -> list[dict[str, object]]:
                return [c for c in ask(lab, at, "/connections")["connections"] if c["source"]["pod"] == "client"]

            until(lambda found=found: len(found()) == 1)
            until(lambda found=found: found()[0]["bytes_sent"] == SENT)


def test_a_policy_in_force_is_in_force_for_the_next_connection_and_for_those_that_live(lab: Lab) -> None:
    address = ip(lab, "server")
    for _ in range(5):
        until(lambda: reaches(lab, "client", to=address, port=9000))
        dials(lab, address, count=20)
        with talk(lab, "client", to=address, port=9000) as living, applied(lab, DENY, DENY_KEY):
            until(lambda: enforced(lab) == {"deny-client"})
            refused = dials(lab, address, count=20)
            assert {line.split()[0] for line in refused} == {"failed"}
            assert living.heard().startswith("end ConnectionResetError")
    until(lambda: reaches(lab, "client", to=address, port=9000))


def test_what_comes_while_policy_flaps_is_whole_or_refused(lab: Lab) -> None:
    address = ip(lab, "server")
    process: subprocess.Popen[str] = lab.popen("client", command(address, 9000, 0), namespace="mesh")
    try:
        for _ in range(5):
            with applied(lab, DENY, DENY_KEY):
                until(lambda: enforced(lab) == {"deny-client"})
            until(lambda: not enforced(lab))
    finally:
        process.terminate()
        out, errors = process.communicate()
    assert not errors, errors
    assert Counter(line.split()[0] for line in out.splitlines()[:-1]).keys() > {"failed"}
    until(lambda: reaches(lab, "client", to=address, port=9000))


def test_a_dry_run_is_told_of_each(lab: Lab) -> None:
    counter = re.compile(r'^gossamer_dry_run_total\{policy="mesh/tried",outcome="deny"\} (\d+)$', re.M)

    def tried() -> int:
        text = lab.exec("node/n2", ["curl", "-sS", "http://127.0.0.1:15020/metrics"], check=True).stdout
        return sum(map(int, counter.findall(text)))

    with applied(lab, TRIED, TRIED_KEY):
        until(lambda: enforced(lab) == {"tried"})
        dials(lab, ip(lab, "server"), count=20)
        until(lambda: tried() == 20)
        assert lab.logs("node/n2").read_text().count("dry-run: mesh/tried would deny") == 20


def test_plaintext_peers_are_told_of_too(lab: Lab) -> None:
    offset = len(lab.logs("node/n2").read_text())
    ports = sorted(line.split()[1] for line in dials(lab, ip(lab, "server"), source="outsider", of="plain", count=50))
    until(lambda: len(lines(lab, "n2", "inbound", offset)) == 50)
    told = "\n".join(lines(lab, "n2", "inbound", offset))
    assert sorted(re.findall(r"src\.addr=\S+:(\d+) ", told)) == ports


def test_nobody_stumbled(lab: Lab) -> None:
    for target in ("node/n1", "node/n2", "controller"):
        text = lab.logs(target).read_text()
        assert "Traceback" not in text, text
