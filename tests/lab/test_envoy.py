"""A peer nobody here wrote, in the lab: Envoy in a pod outside the mesh, as HBONE client under a certificate of the
controller's authority, to an enrolled pod on another node. (Envoy as HBONE server: tests/unit/ztunnel/pump.)"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpf.netns import open_socket
from deploy.lab.cluster import Lab
from mesh.identity import SpiffeId
from mesh.model import SocketAddress
from tests.lab.objects import namespace, node, pod
from tests.lab.talk import SERVER, ip
from tests.lab.test_mesh import STRICT
from tests.unit.ztunnel.pump import envoy
from tests.unit.ztunnel.pump.authority import ControllerAuthority

LISTEN = SocketAddress("127.0.0.1", 9901)
CLUSTER = (
    namespace("mesh", ambient=True)
    + namespace("plain")
    + node("n1")
    + node("n2")
    + pod("server", "mesh", "n2", SERVER)
    + pod("envoy", "plain", "n1")
)
ONLY_ENVOY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-envoy, namespace: mesh}
spec:
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/plain/sa/envoy]}}]}]
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(CLUSTER)
    lab.apply({"strict.yaml": STRICT, "policy.yaml": ONLY_ENVOY})
    return lab


@contextmanager
def envoy_in_its_pod(lab: Lab, directory: Path, *, account: str = "envoy", port: int = 9000) -> Iterator[None]:
    authority = ControllerAuthority(lab.layout.control / "state")
    server = ip(lab, "server")
    configuration = envoy.client(
        LISTEN,
        SocketAddress(server, 15008),
        f"{server}:{port}",
        authority.issue(SpiffeId("cluster.local", "plain", account)),
        SpiffeId("cluster.local", "mesh", "server"),
        directory,
    )
    netns = lab.netns(lab.pod("envoy", "plain"))
    log = directory / "envoy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["nsenter", f"--net={netns}", *envoy.command(configuration, directory)], stdout=output, stderr=output
        )
    try:
        end = time.monotonic() + 30
        while not envoy.is_ready(log):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def dial(lab: Lab, address: SocketAddress) -> socket.socket:
    """As a process of Envoy's pod."""
    netns = os.open(lab.netns(lab.pod("envoy", "plain")), os.O_RDONLY)
    try:
        sock = open_socket(netns, socket.AF_INET)
    finally:
        os.close(netns)
    sock.settimeout(20)
    sock.connect(address)
    return sock


def greeting(sock: socket.socket) -> list[str]:
    """The server's pid and whom it sees; empty when it did not come to that."""
    try:
        return sock.makefile("rb").readline().decode().split()
    except ConnectionError:
        return []


def test_envoy_is_served_and_seen_as_its_pod(lab: Lab, tmp_path: Path) -> None:
    with envoy_in_its_pod(lab, tmp_path), dial(lab, LISTEN) as sock:
        file = sock.makefile("rb")
        assert file.readline().decode().split()[1] == ip(lab, "envoy", "plain")
        payload = random.Random(3).randbytes(1 << 20).replace(b"\n", b" ") + b"\n"
        sock.sendall(payload)
        assert file.readline() == payload


def test_plaintext_from_the_same_pod_is_not(lab: Lab) -> None:
    try:
        with dial(lab, SocketAddress(ip(lab, "server"), 9000)) as sock:
            assert greeting(sock) == []
    except ConnectionResetError:
        pass  # already while connecting: the agent is fast


def test_another_identity_is_refused_by_policy(lab: Lab, tmp_path: Path) -> None:
    with envoy_in_its_pod(lab, tmp_path, account="other"), dial(lab, LISTEN) as sock:
        assert greeting(sock) == []


def test_a_port_nobody_listens_on_is_refused(lab: Lab, tmp_path: Path) -> None:
    with envoy_in_its_pod(lab, tmp_path, port=9), dial(lab, LISTEN) as sock:
        assert greeting(sock) == []
