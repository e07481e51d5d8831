"""The server over real TLS on loopback, with a client as an agent would be."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller import ca, door, serve
from controller.metrics import Metrics
from controller.serve import CERTIFICATES_PATH, NODE_HEADER, STREAM_PATH, Gate, Server
from controller.sources.files import Files
from controller.state import Input, State
from controller.tokens import Tokens
from controller.translate.settings import Settings
from mesh.control import (
    Ack,
    CertificateReply,
    CertificateRequest,
    Hello,
    PodStatus,
    Redirection,
    Update,
    decode_from_controller,
    encode,
)

SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u1}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: c}]}
status: {phase: Running, podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop, uid: u2}
spec: {nodeName: n2, serviceAccountName: far, containers: [{name: c}]}
status: {phase: Running, podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop, uid: u3}
spec: {nodeName: n1, hostNetwork: true, serviceAccountName: host, containers: [{name: c}]}
status: {phase: Running, podIP: 192.168.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop, uid: u4}
spec: {nodeName: n1, serviceAccountName: done, containers: [{name: c}]}
status: {phase: Failed, podIP: 10.0.0.9}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [evil]}}]}]}
"""
WEB = "Kubernetes//Pod/shop/web"


@dataclass
class Controller:
    """Everything but the process."""

    state: State
    files: Files
    port: int
    tls: ssl.SSLContext
    authority: ca.Authority

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def write(self, text: str) -> None:
        self.files.put("shop.yaml", text)
        refusals = tuple(self.files.refusals())
        self.state.take(Input(objects=self.files.objects(), files=self.files.owners(), refusals=refusals))


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[Controller]:
    tokens = tmp_path / "tokens"
    tokens.write_text(json.dumps({n: hashlib.sha256(f"token of {n}".encode()).hexdigest() for n in ("n1", "n2")}))
    authority = ca.load_or_create(tmp_path, trust_domain="cluster.local", now=datetime.now(UTC))
    state = State(Settings(), Metrics())
    context = serve.tls_context()
    serve.load_identity(context, authority, ["127.0.0.1"], tmp_path)
    server = Server(state, authority, Tokens(tokens), lifetime=timedelta(hours=24), heartbeat_s=1.0)
    client = ssl.create_default_context(cadata="".join(authority.roots))
    made = Controller(state, Files(), 0, client, authority)
    made.write(SHOP)
    await state.refresh()
    listener = await server.listen("127.0.0.1", 0, context)
    made.port = listener.port
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(state.run())
        yield made
        await listener.close()
        run.cancel()


def headers(node: str, token: str | None = None) -> dict[str, str]:
    return {NODE_HEADER: node, "Authorization": f"Bearer {token or f'token of {node}'}"}


class Agent:
    """The other end of a stream, as a node's agent would be: keeps what it holds."""

    def __init__(self, controller: Controller, node: str) -> None:
        self.controller, self.node = controller, node
        self.held: dict[str, str] = {}
        self.session = aiohttp.ClientSession()
        self.socket: aiohttp.ClientWebSocketResponse

    async def __aenter__(self) -> Agent:
        url = f"{self.controller.url}{STREAM_PATH}"
        self.socket = await self.session.ws_connect(
            url, ssl=self.controller.tls, headers=headers(self.node), max_msg_size=64 << 20
        )
        await self.socket.send_bytes(encode(Hello(node=self.node, version="test", known=self.held)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()
        await self.session.close()

    async def update(self) -> Update:
        """The next update, applied and acknowledged."""
        async with asyncio.timeout(10):
            update = decode_from_controller(await self.socket.receive_str())
        for entry in update.upserts:
            self.held[entry.resource.key] = entry.hash
        for key in update.removes:
            del self.held[key]
        await self.socket.send_bytes(encode(Ack(nonce=update.nonce)))
        return update


def sent(update: Update) -> set[str]:
    return {e.resource.key for e in update.upserts}


async def test_hello_delta_ack_reconnect(controller: Controller) -> None:
    async with Agent(controller, "n1") as agent:
        assert sent(await agent.update()) == set(controller.state.translation.entries)
        controller.write(SHOP.replace("10.0.0.2", "10.0.0.3"))
        assert sent(await agent.update()) == {"workload/Kubernetes//Pod/shop/far"}
        held = agent.held
    again = Agent(controller, "n1")
    again.held = held
    async with again:
        update = await again.update()
        assert (update.upserts, update.removes) == ((), ()), "a node that has everything is sent nothing"
        controller.write(SHOP.replace("10.0.0.2", "10.0.0.4"))
        assert sent(await again.update()) == {"workload/Kubernetes//Pod/shop/far"}


async def test_each_node_is_told_and_enrolment_comes_back(controller: Controller) -> None:
    async with Agent(controller, "n1") as one, Agent(controller, "n2") as two:
        for agent in (one, two):
            (web,) = [e.workload for e in (await agent.update()).upserts if e.workload and e.workload.name == "web"]
            assert (web.capture, web.tunnel_protocol) == (True, "NONE")
        status = PodStatus(uid=WEB, instance="u1", redirection=Redirection.ENABLED)
        await two.socket.send_bytes(encode(status))  # not its pod: ignored
        await one.socket.send_bytes(encode(status))
        for agent in (one, two):
            (entry,) = (await agent.update()).upserts
            assert entry.workload is not None
            assert (entry.workload.name, entry.workload.tunnel_protocol) == ("web", "HBONE")
    # The stream is gone, the data plane is not: what the node enrolled stays enrolled.
    async with Agent(controller, "n2") as late:
        (web,) = [e.workload for e in (await late.update()).upserts if e.workload and e.workload.name == "web"]
        assert web.tunnel_protocol == "HBONE"
        # Un-labelling is one update.
        controller.write(SHOP.replace("{istio.io/dataplane-mode: ambient}", "{}"))
        found = {e.workload.name: e.workload for e in (await late.update()).upserts if e.workload}
        assert (found["web"].capture, found["web"].tunnel_protocol) == (False, "NONE")


async def test_a_bad_object_is_refused_while_the_last_good_one_stays(controller: Controller) -> None:
    async with Agent(controller, "n1") as agent:
        await agent.update()
        before = agent.held["policy/shop/deny"]
        controller.write(SHOP.replace("namespaces: [evil]", "ipBlocks: [10.0.0/8]").replace("10.0.0.2", "10.0.0.7"))
        update = await agent.update()
        assert sent(update) == {"workload/Kubernetes//Pod/shop/far"}
        assert update.removes == ()
        assert agent.held["policy/shop/deny"] == before
        assert "did you mean 10.0.0.0/8?" in str(controller.state.input.refusals[0])


@pytest.mark.parametrize(
    "given",
    [
        {},
        headers("n1", "wrong"),
        headers("n1", "token of n2"),
        headers("n3"),
        {NODE_HEADER: "n1", "Authorization": "Basic token of n1"},
        {"Authorization": "Bearer token of n1"},
        {NODE_HEADER: "n1", "Authorization": "Bearer " + "x" * 7000},
    ],
)
async def test_without_the_nodes_own_token_there_is_nothing(controller: Controller, given: dict[str, str]) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{controller.url}{STREAM_PATH}", ssl=controller.tls, headers=given) as answer:
            assert answer.status == 401
        body = encode(CertificateRequest(identity="spiffe://cluster.local/ns/shop/sa/web", csr=csr()))
        url = f"{controller.url}{CERTIFICATES_PATH}"
        async with session.post(url, ssl=controller.tls, headers=given, data=body) as answer:
            assert answer.status == 401
            assert "bootstrap token" in await answer.text()
    assert controller.state.nodes == {}


def csr() -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


async def ask(controller: Controller, node: str, body: bytes) -> tuple[int, bytes]:
    url = f"{controller.url}{CERTIFICATES_PATH}"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, ssl=controller.tls, headers=headers(node), data=body) as answer,
    ):
        return answer.status, await answer.read()


async def test_a_certificate_for_a_pod_of_the_node(controller: Controller) -> None:
    identity = "spiffe://cluster.local/ns/shop/sa/web"
    status, body = await ask(controller, "n1", encode(CertificateRequest(identity=identity, csr=csr())))
    assert status == 200
    reply = msgspec.json.decode(body, type=CertificateReply)
    assert reply.roots == controller.authority.roots
    leaf = x509.load_pem_x509_certificate(reply.chain[0].encode())
    root = x509.load_pem_x509_certificate(reply.roots[0].encode())
    leaf.verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [identity]


@pytest.mark.parametrize(
    ("node", "identity"),
    [
        ("n1", "spiffe://cluster.local/ns/shop/sa/far"),
        ("n2", "spiffe://cluster.local/ns/shop/sa/web"),
        ("n1", "spiffe://cluster.local/ns/shop/sa/host"),
        ("n1", "spiffe://cluster.local/ns/shop/sa/done"),
        ("n1", "spiffe://cluster.local/ns/shop/sa/nobody"),
        ("n1", "spiffe://other.domain/ns/shop/sa/web"),
    ],
)
async def test_no_certificate_for_an_identity_that_is_not_on_the_node(
    controller: Controller, node: str, identity: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, body = await ask(controller, node, encode(CertificateRequest(identity=identity, csr=csr())))
    assert status == 403
    assert body.decode() == (
        f"no pod of {identity} runs on {node}; a node gets certificates for its own pods' identities only"
    )
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == ["certificate refused"]


async def test_a_pod_that_has_left_takes_its_identity_along(controller: Controller) -> None:
    request = encode(CertificateRequest(identity="spiffe://cluster.local/ns/shop/sa/web", csr=csr()))
    assert (await ask(controller, "n1", request))[0] == 200
    version = controller.state.version
    controller.write(SHOP.replace("phase: Running, podIP: 10.0.0.1", "phase: Succeeded, podIP: 10.0.0.1"))
    await controller.state.newer_than(version)
    assert (await ask(controller, "n1", request))[0] == 403


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[" * 30_000,
        b"\xff",
        b'{"identity": "web", "csr": ""}',
        encode(CertificateRequest(identity="spiffe://cluster.local/ns/shop/sa/web", csr="x")),
    ],
)
async def test_requests_that_cannot_be_understood(controller: Controller, body: bytes) -> None:
    status, text = await ask(controller, "n1", body)
    assert status == 400
    assert len(text) <= 500


async def test_a_body_too_large(controller: Controller) -> None:
    assert (await ask(controller, "n1", b"x" * (1 << 20)))[0] == 413


async def test_a_new_stream_replaces_the_old(controller: Controller) -> None:
    async with Agent(controller, "n1") as old:
        await old.update()
        async with Agent(controller, "n1") as new:
            await new.update()
            message = await asyncio.wait_for(old.socket.receive(), 10)
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
            assert controller.state.nodes["n1"].connected
            controller.write(SHOP.replace("10.0.0.2", "10.0.0.8"))
            assert sent(await new.update()) == {"workload/Kubernetes//Pod/shop/far"}


async def test_a_half_open_node_is_dropped_and_hurts_nobody(controller: Controller) -> None:
    """A peer that completes everything and then neither reads nor answers pings."""
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port, ssl=controller.tls, limit=1 << 20)
    lines = [
        f"GET {STREAM_PATH} HTTP/1.1",
        "Host: x",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        *(f"{k}: {v}" for k, v in headers("n1").items()),
    ]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    assert b"101" in await reader.readuntil(b"\r\n\r\n")
    hello = encode(Hello(node="n1", version="x"))
    writer.write(b"\x81" + bytes([0x80 | len(hello)]) + bytes(4) + hello)  # masked with zeros
    async with Agent(controller, "n2") as good:
        await good.update()
        second = asyncio.create_task(good.update())  # listens, and so answers its pings
        async with asyncio.timeout(15):
            while await reader.read(65536):  # pings pass by unanswered, until the controller has had enough
                pass
            controller.write(SHOP.replace("10.0.0.2", "10.0.0.6"))
            assert sent(await second) == {"workload/Kubernetes//Pod/shop/far"}
        assert not controller.state.nodes["n1"].connected
    writer.close()


async def test_garbage_instead_of_tls(controller: Controller) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", controller.port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n" * 100)
    await writer.drain()
    writer.close()
    async with Agent(controller, "n1") as agent:
        assert (await agent.update()).upserts


async def test_a_connection_that_says_nothing_is_dropped(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "PATIENCE_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port, ssl=controller.tls)
    writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: ")
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


def test_only_tls_1_3() -> None:
    assert serve.tls_context().minimum_version is ssl.TLSVersion.TLSv1_3


async def test_old_tls_is_refused(controller: Controller) -> None:
    controller.tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", controller.port, ssl=controller.tls)


async def test_the_renewed_certificate_is_served(controller: Controller, tmp_path: Path) -> None:
    context = serve.tls_context()
    served: list[bytes] = []
    accepted = await asyncio.start_server(
        lambda _, w: w.close(), "127.0.0.1", 0, ssl=_loaded(context, controller, tmp_path)
    )
    port = accepted.sockets[0].getsockname()[1]
    for _ in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=controller.tls)
        served.append(writer.get_extra_info("ssl_object").getpeercert(True))
        writer.close()
        _loaded(context, controller, tmp_path)
    accepted.close()
    assert served[0] != served[1]
    assert not list(tmp_path.glob(".server.*")), "no key is left behind"


def _loaded(context: ssl.SSLContext, controller: Controller, scratch: Path) -> ssl.SSLContext:
    serve.load_identity(context, controller.authority, ["127.0.0.1"], scratch)
    return context


def test_a_gate_lets_a_burst_through_and_no_more() -> None:
    gate = Gate(rate=0.001, burst=3)
    assert [gate.opens() for _ in range(5)] == [True, True, True, False, False]
