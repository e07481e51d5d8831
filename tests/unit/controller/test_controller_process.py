"""The process: arguments, readiness, status, metrics, a policy edited on disk, SIGTERM."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import socket
import ssl
import stat
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from controller.__main__ import Listen, arguments
from mesh.control import (
    Ack,
    CertificateRequest,
    Hello,
    Nack,
    PodStatus,
    Redirection,
    Update,
    decode_from_controller,
    encode,
)
from mesh.identity import SpiffeId
from mesh.model import TunnelProtocol
from tests.unit.controller import shop
from ztunnel.csr import accept, signing_request
from ztunnel.holdings import Holdings
from ztunnel.journal import Journal
from ztunnel.sync import Sync
from ztunnel.uplink import Uplink

SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}
"""


@dataclass
class Running:
    process: asyncio.subprocess.Process
    top: Path
    port: int
    metrics: int

    async def get(self, path: str) -> Any:
        connector = aiohttp.UnixConnector(str(self.top / "run" / "admin.sock"))
        async with aiohttp.ClientSession(connector=connector) as session, session.get(f"http://x{path}") as answer:
            assert answer.status == 200
            return json.loads(await answer.text())

    async def until(self, true: Callable[[Any], bool]) -> None:
        async with asyncio.timeout(10):
            while not true(await self.get("/status")):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)

    async def condition(self, name: str, kind: str) -> dict[str, str]:
        status = await self.get("/status")
        (found,) = [c for o in status["objects"] if o["name"] == name for c in o["conditions"] if c["type"] == kind]
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def start(top: Path, *more: str) -> Running:
    (top / "source").mkdir(exist_ok=True)
    (top / "tokens").write_text(json.dumps({"n1": hashlib.sha256(b"t1").hexdigest()}))
    port, metrics = free_port(), free_port()
    options = {"--source": top / "source", "--state": top / "state", "--run": top / "run", "--tokens": top / "tokens"}
    listen = ["--listen", f"127.0.0.1:{port}", "--metrics", f"127.0.0.1:{metrics}"]
    given = [str(part) for pair in options.items() for part in pair]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controller", *given, *listen, *more, stderr=(top / "log").open("ab")
    )
    return Running(process, top, port, metrics)


async def ready(running: Running) -> None:
    async with asyncio.timeout(30), aiohttp.ClientSession() as session:
        while running.process.returncode is None:
            try:
                async with session.get(f"http://127.0.0.1:{running.metrics}/healthz/ready") as answer:
                    assert (answer.status, await answer.text()) == (200, "ready\n")
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
    raise AssertionError((running.top / "log").read_text())


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "shop.yaml").write_text(SHOP)
    made = await start(tmp_path)
    try:
        await ready(made)
        yield made
    finally:
        if made.process.returncode is None:
            made.process.kill()
        await made.process.wait()


async def update(socket: aiohttp.ClientWebSocketResponse) -> Update:
    async with asyncio.timeout(10):
        return decode_from_controller(await socket.receive_str())


async def test_the_whole_way(running: Running) -> None:
    assert (await running.condition("deny", "ZtunnelAccepted"))["reason"] == "UnsupportedValue"
    mode = (running.top / "run" / "admin.sock").stat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
    tls = ssl.create_default_context(cafile=str(running.top / "state" / "ca.crt"))
    headers = {"X-Gossamer-Node": "n1", "Authorization": "Bearer t1"}
    url = f"https://127.0.0.1:{running.port}/v1/stream"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, ssl=tls, headers=headers) as socket:
        await socket.send_bytes(encode(Hello(node="n1", version="test")))
        first = await update(socket)
        assert [e.resource.key for e in first.upserts] == ["policy/shop/deny"]
        await socket.send_bytes(encode(Ack(nonce=first.nonce)))

        fresh = running.top / "source" / ".shop.tmp"
        fresh.write_text(SHOP.replace("methods: [GET]", 'ports: ["80"]'))
        fresh.rename(running.top / "source" / "shop.yaml")
        second = await update(socket)
        assert second.upserts[0].policy is not None
        assert second.upserts[0].policy.rules[0].clauses[0].matches[0].destination_ports == (80,)
        await socket.send_bytes(encode(Nack(nonce=second.nonce, errors={"policy/shop/deny": "map full"})))
        await running.until(lambda status: status["nodes"][0]["rejected"] == {"policy/shop/deny": "map full"})
        assert (await running.condition("deny", "NodesAccepted"))["message"] == "n1: map full"

        (running.top / "source" / "bad.yaml").write_text("kind: Servce\nmetadata: {name: oops}\n")
        (running.top / "source" / "shop.yaml").write_text(SHOP.replace("methods: [GET]", "ports: [80]"))
        await running.until(lambda status: "the last good state stays" in json.dumps(status))
        assert (await running.condition("deny", "Accepted"))["message"] == (
            'deny (shop): spec.rules[0].to[0].operation.ports[0]: expected a string, got int 80; quote it: "80"; '
            "the last good state stays in force"
        )
        assert "did you mean Service?" in (await running.condition("oops", "Accepted"))["message"]

    async with aiohttp.ClientSession() as session:
        for path in ("/metrics", "/stats/prometheus"):
            async with session.get(f"http://127.0.0.1:{running.metrics}{path}") as answer:
                text = await answer.text()
        assert 'istio_build{component="controller",tag="' in text
        assert "gossamer_controller_nacks_total 1.0" in text
        assert "gossamer_controller_objects_refused 2.0" in text
        assert 'gossamer_controller_resources{kind="policy"} 1.0' in text

    running.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(running.process.wait(), 10) == 0
    log = (running.top / "log").read_text()
    assert "Traceback" not in log
    assert "did you mean Service?" in log


async def test_a_real_agent_enrols_gets_its_certificate_and_survives_a_restart(tmp_path: Path) -> None:
    """The node agent's own end of the protocol: stream, certificate, resume."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "shop.yaml").write_text(shop.SHOP)
    (tmp_path / "token").write_text("t1\n")
    running = await start(tmp_path)
    uid, identity = "Kubernetes//Pod/shop/web", SpiffeId("cluster.local", "shop", "web")
    applied: asyncio.Queue[Holdings] = asyncio.Queue()
    try:
        await ready(running)
        root = tmp_path / "state" / "ca.crt"
        uplink = Uplink(address=f"127.0.0.1:{running.port}", node="n1", root=root, token=tmp_path / "token")
        journal = Journal(path=tmp_path / "snapshot.jsonl")
        sync = Sync(
            uplink=uplink,
            journal=journal,
            apply=applied.put_nowait,
            settled=partial(asyncio.sleep, 0),
            joined=lambda: None,
            rng=Random(1),
        )

        async def tunnel() -> TunnelProtocol:
            async with asyncio.timeout(20):
                return (await applied.get()).snapshot.workloads[uid].tunnel_protocol

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(sync.run())
            assert await tunnel() is TunnelProtocol.NONE
            sync.report(PodStatus(uid=uid, instance="u1", redirection=Redirection.ENABLED))
            assert await tunnel() is TunnelProtocol.HBONE
            key = ec.generate_private_key(ec.SECP256R1())
            request = CertificateRequest(identity=str(identity), csr=signing_request(identity, key))
            accept(identity, key, await uplink.certificate(request), datetime.now(UTC), Random(1))
            running.process.terminate()
            await running.process.wait()
            running = await start(tmp_path, "--listen", f"127.0.0.1:{running.port}")
            before = sync.holdings.entries
            assert await tunnel() is TunnelProtocol.HBONE, "the new process knows what is enrolled"
            assert sync.holdings.entries == before
            task.cancel()
    finally:
        if running.process.returncode is None:
            running.process.terminate()
        await running.process.wait()


async def test_sigterm_ends_live_streams_quickly(running: Running) -> None:
    tls = ssl.create_default_context(cafile=str(running.top / "state" / "ca.crt"))
    headers = {"X-Gossamer-Node": "n1", "Authorization": "Bearer t1"}
    url = f"https://127.0.0.1:{running.port}/v1/stream"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, ssl=tls, headers=headers) as socket:
        await socket.send_bytes(encode(Hello(node="n1", version="test")))
        await update(socket)
        running.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.process.wait(), 5) == 0
    log = (running.top / "log").read_text()
    assert "Traceback" not in log, log


async def test_what_it_refuses_to_start_with(tmp_path: Path) -> None:
    (tmp_path / "not-tokens").write_text("[]")
    bad = await start(tmp_path, "--tokens", str(tmp_path / "not-tokens"))
    assert await asyncio.wait_for(bad.process.wait(), 20) == 1
    assert "not a JSON object of node to sha256" in (tmp_path / "log").read_text()
    # That start has made the root already.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option, value, says in (
            ("--source", str(tmp_path / "nowhere"), "No such file or directory; name a directory of YAML files"),
            ("--tokens", str(tmp_path / "nowhere"), "No such file or directory; write"),
            ("--state", str(tmp_path / "not-tokens"), "cannot be made: File exists; name a writable directory"),
            ("--run", str(tmp_path / "not-tokens"), "cannot be made: File exists; name a writable directory"),
            ("--listen", f"127.0.0.1:{port}", "Address already in use; name an address of this machine and a port"),
            ("--metrics", f"127.0.0.1:{port}", "Address already in use; name an address of this machine and a port"),
        ):
            (tmp_path / "log").unlink()
            bad = await start(tmp_path, option, value)
            assert await asyncio.wait_for(bad.process.wait(), 20) == 1
            (line,) = (tmp_path / "log").read_text().splitlines()
            assert f"{option} {value}" in line and says in line
    # Now somebody shows the key around.
    (tmp_path / "state" / "ca.key").chmod(0o644)
    bad = await start(tmp_path)
    assert await asyncio.wait_for(bad.process.wait(), 20) == 1
    assert "others may read it; chmod 0600" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("text", "listen"),
    [("127.0.0.1:15012", Listen("127.0.0.1", 15012)), ("[::1]:1", Listen("::1", 1)), (":15012", Listen("", 15012))],
)
def test_where_to_listen(text: str, listen: Listen) -> None:
    base = ["--source", "s", "--state", "s", "--tokens", "t", "--run", "r"]
    assert arguments([*base, "--listen", text]).listen == listen
    with pytest.raises(SystemExit):
        arguments([*base, "--listen", "nonsense"])
    with pytest.raises(SystemExit):
        arguments([*base, "--dns-name", "no name!"])


NEEDED = ["--source", "s", "--state", "s", "--tokens", "t", "--run", "r"]


@pytest.mark.parametrize("text", ["0", "119", "-120", "1e3", "7776001", "9" * 30])
def test_a_lifetime_of_certificates_that_agents_could_not_live_with(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arguments([*NEEDED, "--certificate-lifetime", "120"]).certificate_lifetime == timedelta(seconds=120)
    with pytest.raises(SystemExit):
        arguments([*NEEDED, f"--certificate-lifetime={text}"])
    assert "--certificate-lifetime" in capsys.readouterr().err
