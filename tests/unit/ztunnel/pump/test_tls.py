"""Who may speak to whom: the handshake from both sides, with every kind of wrong certificate."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from pathlib import Path

import pytest
from cryptography.x509 import ObjectIdentifier

from mesh.identity import SpiffeId, first_spiffe_id
from mesh.reason import Reason
from tests.unit.ztunnel.pump.authority import CLIENT, SERVER, Authority
from tests.unit.ztunnel.pump.contexts import contexts
from tests.unit.ztunnel.pump.nodes import DEADLINE, Pair, application, echo, eventually, pair
from ztunnel.orders import Credentials, Offered

HOUR = datetime.timedelta(hours=1)


async def outcome(made: Pair) -> tuple[Reason, str]:
    """How an attempt of the client's application ended."""
    reader, writer = await made.connect()
    writer.write(b"secret")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), DEADLINE)
    writer.close()
    (fact,) = await made.client.ended()
    assert made.server.of(Offered) == []
    assert fact.sent == 0
    return fact.reason, fact.detail


async def refused(made: Pair) -> dict[Reason, int]:
    """What the server turned away; it may hear of it after the client."""
    await eventually(lambda: made.server.engine.refused)
    return dict(made.server.engine.refused)


async def test_a_client_of_another_trust_domain_is_turned_away() -> None:
    async with pair() as made:
        other = SpiffeId("other.domain", "default", "client")
        made.client.engine.set_credentials("client-pod", made.authority.issue(other))
        made.client.decide = lambda fact: made.tunnel(fact.id, source=other)
        reason, _ = await outcome(made)
        assert reason == Reason.TLS_FAILED
        assert await refused(made) == {Reason.PEER_IDENTITY: 1}


async def test_a_server_with_another_identity_is_not_spoken_to() -> None:
    async with pair() as made:
        made.server.engine.set_credentials("server-pod", made.authority.issue(CLIENT))
        reason, detail = await outcome(made)
        assert reason == Reason.PEER_IDENTITY
        assert str(CLIENT) in detail
        assert str(SERVER) in detail


@pytest.mark.parametrize("side", ["client", "server"])
async def test_an_expired_certificate_is_refused(side: str) -> None:
    async with pair() as made:
        node, identity = (made.client, CLIENT) if side == "client" else (made.server, SERVER)
        node.engine.set_credentials(node.pod, made.authority.issue(identity, age=2 * HOUR))
        reason, detail = await outcome(made)
        assert reason == Reason.TLS_FAILED
        assert "expired" in detail
        assert await refused(made) == {Reason.TLS_FAILED: 1}


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_certificate_of_another_root_is_refused(side: str) -> None:
    async with pair() as made:
        node, identity = (made.client, CLIENT) if side == "client" else (made.server, SERVER)
        stranger = Authority.new("stranger").issue(identity, roots=(made.authority.root,))
        node.engine.set_credentials(node.pod, stranger)
        assert (await outcome(made))[0] == Reason.TLS_FAILED
        assert await refused(made) == {Reason.TLS_FAILED: 1}


@pytest.mark.parametrize("side", ["client", "server"])
async def test_the_extended_key_usage_must_fit_the_role(side: str) -> None:
    async with pair() as made:
        node, identity = (made.client, CLIENT) if side == "client" else (made.server, SERVER)
        wrong = ssl.Purpose.SERVER_AUTH if side == "client" else ssl.Purpose.CLIENT_AUTH
        node.engine.set_credentials(node.pod, made.authority.issue(identity, usages=(ObjectIdentifier(wrong.oid),)))
        assert (await outcome(made))[0] == Reason.TLS_FAILED


async def test_without_a_certificate_nothing_is_dialled() -> None:
    async with pair() as made:
        made.client.decide = lambda fact: made.tunnel(fact.id, source=SpiffeId("cluster.local", "default", "nobody"))
        reason, _ = await outcome(made)
        assert reason == Reason.NO_CERTIFICATE


def raw_context(credentials: Credentials) -> ssl.SSLContext:
    """A peer's context that checks nothing and proves `credentials`."""
    context = contexts(credentials).client
    context.verify_mode = ssl.CERT_NONE
    return context


async def answer_to(made: Pair, context: ssl.SSLContext) -> bytes:
    """What a hand-made TLS client gets from the tunnel port; ssl.SSLError and ConnectionError pass."""
    reader, writer = await asyncio.open_connection(*made.server.address("tunnel4"), ssl=context, server_hostname="")
    try:
        return await asyncio.wait_for(reader.read(), DEADLINE)
    finally:
        writer.close()


async def test_tls_1_2_is_refused() -> None:
    async with pair() as made:
        context = raw_context(made.authority.issue(CLIENT))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await answer_to(made, context)
        assert await refused(made) == {Reason.TLS_FAILED: 1}


async def test_a_client_without_certificate_is_refused() -> None:
    async with pair() as made:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await answer_to(made, context)
        assert await refused(made) == {Reason.TLS_FAILED: 1}


@pytest.mark.parametrize("protocols", [None, ["http/1.1"]])
async def test_without_alpn_h2_nothing_is_served(protocols: list[str] | None, tmp_path: Path) -> None:
    async with pair() as made:
        credentials = made.authority.issue(CLIENT)
        pem = tmp_path / "client.pem"
        pem.write_text(
            "".join(
                [
                    ssl.DER_cert_to_PEM_cert(credentials.key).replace("CERTIFICATE", "PRIVATE KEY"),
                    *map(ssl.DER_cert_to_PEM_cert, credentials.chain),
                ]
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(pem)
        if protocols is not None:
            context.set_alpn_protocols(protocols)
        assert await answer_to(made, context) == b""
        assert await refused(made) == {Reason.TLS_FAILED: 1}


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100_000, b"\x16\x03\x01\xff\xff" + b"A" * 70_000]
)
async def test_garbage_on_the_tunnel_port_ends_there(garbage: bytes) -> None:
    async with pair() as made, application(made, echo):
        reader, writer = await asyncio.open_connection(*made.server.address("tunnel4"))
        writer.write(garbage)
        try:
            answer = await asyncio.wait_for(reader.read(), DEADLINE)
            assert answer[:1] in (b"", b"\x15")  # nothing, or an alert
        except ConnectionResetError:
            pass
        writer.close()
        assert await refused(made) == {Reason.TLS_FAILED: 1}
        reader, writer = await made.connect()
        writer.write(b"fine")
        assert await asyncio.wait_for(reader.readexactly(4), DEADLINE) == b"fine"
        writer.close()


async def test_no_session_tickets_and_no_sni() -> None:
    async with pair() as made, application(made, echo):
        context = raw_context(made.authority.issue(CLIENT))
        loop = asyncio.get_running_loop()
        with socket.create_connection(made.server.address("tunnel4")) as sock:

            def shake() -> tuple[bool, str, str]:
                with context.wrap_socket(sock) as tls:
                    tls.recv(100)  # SETTINGS: tickets would have come before
                    return tls.session.has_ticket, tls.version() or "", tls.cipher()[0]  # type: ignore[union-attr,index]

            ticket, version, cipher = await loop.run_in_executor(None, shake)
        assert (ticket, version) == (False, "TLSv1.3")
        assert cipher == "TLS_AES_256_GCM_SHA384"


@pytest.mark.parametrize("sent", [True, False])
async def test_intermediates_are_sent_and_needed(sent: bool) -> None:
    async with pair() as made, application(made, echo):
        between = made.authority.intermediate()
        roots, above = (made.authority.root,), (between.root,) if sent else ()
        made.client.engine.set_credentials("client-pod", between.issue(CLIENT, above=above, roots=roots))
        if not sent:
            assert (await outcome(made))[0] == Reason.TLS_FAILED
            return
        reader, writer = await made.connect()
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
        writer.close()


async def test_renewed_certificates_leave_open_connections_and_serve_new_ones() -> None:
    async with pair() as made, application(made, echo):
        first = await made.connect()
        first[1].write(b"one")
        assert await asyncio.wait_for(first[0].readexactly(3), DEADLINE) == b"one"
        other = Authority.new("next root")
        made.client.engine.set_credentials("client-pod", other.issue(CLIENT))
        made.server.engine.set_credentials("server-pod", other.issue(SERVER))
        second = await made.connect()
        second[1].write(b"two")
        assert await asyncio.wait_for(second[0].readexactly(3), DEADLINE) == b"two"
        first[1].write(b"still")
        assert await asyncio.wait_for(first[0].readexactly(5), DEADLINE) == b"still"
        first[1].close()
        second[1].close()
        await made.client.ended(2)
        await eventually(lambda: len(made.client.tunnels()) == 1)  # the old one went with its last stream


@pytest.mark.parametrize(
    "change",
    [{"chain": (b"nonsense",)}, {"chain": ()}, {"key": b"nonsense"}, {"roots": ()}, {"roots": (b"nonsense",)}],
    ids=["chain", "no chain", "key", "no roots", "roots"],
)
async def test_unusable_credentials_are_named_and_what_was_there_stays(change: dict) -> None:
    async with pair() as made, application(made, echo):
        good = made.authority.issue(CLIENT)
        fields = {"identity": good.identity, "chain": good.chain, "key": good.key, "roots": good.roots} | change
        with pytest.raises(ValueError, match=str(CLIENT)):
            made.client.engine.set_credentials("client-pod", Credentials(**fields))
        reader, writer = await made.connect()
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
        writer.close()


async def test_a_key_of_another_certificate_is_unusable() -> None:
    async with pair() as made:
        one, other = made.authority.issue(CLIENT), made.authority.issue(CLIENT)
        mixed = Credentials(identity=CLIENT, chain=one.chain, key=other.key, roots=one.roots)
        with pytest.raises(ValueError, match="not usable together"):
            made.client.engine.set_credentials("client-pod", mixed)


def trusted(identity: str) -> str:
    return f"spiffe://cluster.local/{identity}"


LONGEST = trusted(f"ns/{'n' * 253}/sa/{'s' * 253}")


@pytest.mark.parametrize(
    ("uris", "proved"),
    [
        ((trusted("ns/a/sa/b"),), trusted("ns/a/sa/b")),
        (("https://example.com", trusted("ns/a/sa/b")), trusted("ns/a/sa/b")),
        (("spiffe://other/ns/a/sa/b", trusted("ns/a/sa/b")), "spiffe://other/ns/a/sa/b"),
        ((LONGEST,), LONGEST),
        ((trusted("ns/A_9.z-/sa/B"),), trusted("ns/A_9.z-/sa/B")),
        (("spiffe://other/ns/a/sa/b",), None),
        (("spiffe://cluster.local.evil/ns/a/sa/b",), None),
        (("spiffe://Cluster.local/ns/a/sa/b",), None),
        ((trusted("other/form"),), None),
        ((trusted("ns/a/sa/b/c"),), None),
        ((trusted("ns/a/sa/b?x"),), None),
        ((trusted("ns//sa/b"),), None),
        ((trusted("ns/a/sa/"),), None),
        ((trusted(f"ns/{'n' * 254}/sa/b"),), None),
        (("https://cluster.local/ns/a/sa/b",), None),
        ((), None),
    ],
)
async def test_a_client_needs_one_san_of_the_trust_domain(uris: tuple[str, ...], proved: str | None) -> None:
    """The identity is the first SAN that is a SPIFFE id, as mesh.identity says."""
    async with pair() as made, application(made, echo):
        made.client.engine.set_credentials("client-pod", made.authority.issue(CLIENT, sans=uris))
        if proved is None:
            assert (await outcome(made))[0] == Reason.TLS_FAILED
            assert await refused(made) == {Reason.PEER_IDENTITY: 1}
            return
        reader, writer = await made.connect()
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
        writer.close()
        (offered,) = made.server.of(Offered)
        assert str(offered.peer) == proved
        assert first_spiffe_id(uris) == offered.peer


@pytest.mark.parametrize(
    ("uris", "welcome"),
    [
        ((str(SERVER),), True),
        (("spiffe://other/ns/a/sa/b", str(SERVER)), True),
        ((str(SERVER) + "x",), False),
        ((str(SERVER)[:-1],), False),
        (("spiffe://cluster.local",), False),
        ((), False),
    ],
)
async def test_a_server_needs_one_san_that_is_expected(uris: tuple[str, ...], welcome: bool) -> None:
    async with pair() as made, application(made, echo):
        made.server.engine.set_credentials("server-pod", made.authority.issue(SERVER, sans=uris))
        if not welcome:
            assert (await outcome(made))[0] == Reason.PEER_IDENTITY
            return
        _, writer = await made.connect()
        (opened,) = await made.client.opened()
        assert opened.peer == SERVER
        writer.close()


@pytest.mark.parametrize(
    ("suites", "served"),
    [("TLS_CHACHA20_POLY1305_SHA256", False), ("TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256", True)],
)
async def test_only_the_two_suites_of_istio_are_spoken(suites: str, served: bool) -> None:
    async with pair() as made:
        host, port = made.server.address("tunnel4")
        client = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_3", "-alpn", "h2", "-ciphersuites", suites),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(client.communicate(), DEADLINE)
        assert (b"Cipher is TLS_AES_128_GCM_SHA256" in said) == served
        assert (b"handshake failure" in said) != served
        assert await refused(made) == {Reason.TLS_FAILED: 1}  # it has no certificate, too
