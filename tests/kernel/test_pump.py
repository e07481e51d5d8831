"""The pump in real network namespaces: where its sockets live, and that its threads always come home."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpf.netns import cookie_of, open_socket
from mesh.model import SocketAddress
from mesh.reason import Reason
from tests.unit.ztunnel.pump.authority import CLIENT, SERVER, Authority
from tests.unit.ztunnel.pump.nodes import DEADLINE, Node, echo, eventually
from tests.unit.ztunnel.pump.steering import steering_maps
from ztunnel.orders import Alternative, Ended, Passed, Plaintext, RelayPlain, RelayTunnel, Standing, TunnelKey

pytestmark = pytest.mark.kernel

ADDRESSES = {socket.AF_INET: "10.231.7.2", socket.AF_INET6: "fd00:231:7::2"}


@dataclass(frozen=True)
class Namespace:
    name: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def run(self, *command: str) -> None:
        subprocess.run(["ip", "-n", self.name, *command], check=True)

    def without_ipv6(self) -> None:
        settings = [f"net.ipv6.conf.{device}.disable_ipv6=1" for device in ("all", "lo", "eth0")]
        subprocess.run(["ip", "netns", "exec", self.name, "sysctl", "-qw", *settings], check=True)

    @property
    def peer(self) -> str:
        return f"pump-{os.getpid()}"

    def peer_is_there(self) -> bool:
        return self.peer in {name for _, name in socket.if_nameindex()}

    def add(self) -> None:
        subprocess.run(["ip", "netns", "add", self.name], check=True)

    def delete(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=True)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace(f"pump-{os.getpid()}")
    made.add()
    try:
        made.run("link", "set", "lo", "up")
        made.run("link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
        made.run("link", "set", "eth0", "up")
        made.run("link", "set", "peer0", "up")
        made.run("addr", "add", ADDRESSES[socket.AF_INET] + "/24", "dev", "eth0")
        made.run("addr", "add", ADDRESSES[socket.AF_INET6] + "/64", "dev", "eth0", "nodad")
        yield made
    finally:
        made.delete()


def in_namespace(namespace: Namespace, family: int) -> socket.socket:
    fd = os.open(namespace.path, os.O_RDONLY)
    try:
        return open_socket(fd, family)
    finally:
        os.close(fd)


@pytest.fixture
def doomed() -> Iterator[Namespace]:
    """One that the test deletes; its device has a peer out here."""
    made = Namespace(f"pump-doomed-{os.getpid()}")
    made.add()
    try:
        made.run("link", "set", "lo", "up")
        made.run("link", "add", "eth0", "type", "veth", "peer", "name", made.peer, "netns", str(os.getpid()))
        yield made
    finally:
        if Path(made.path).exists():
            made.delete()


async def dial(namespace: Namespace, ip: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = in_namespace(namespace, socket.AF_INET6 if ":" in ip else socket.AF_INET)
    await asyncio.get_running_loop().sock_connect(sock, (ip, port))
    return await asyncio.open_connection(sock=sock)


STRANDED = """
import asyncio, os, sys
from pathlib import Path
from mesh.model import SocketAddress
from tests.unit.ztunnel.pump.nodes import Node, connect
from ztunnel.orders import RelayPlain

async def main():
    node = Node("pod")
    elsewhere = os.open(sys.argv[1], os.O_RDONLY)
    for path in list(Path("/proc/self/fd").iterdir()):  # the way home of every thread
        if path.is_symlink() and str(path.readlink()).startswith("net:") and int(path.name) != elsewhere:
            os.close(int(path.name))
    node.engine._pump.socket(elsewhere, False, None)
    print("still here")

asyncio.run(main())
"""


def test_a_process_that_cannot_come_home_aborts(namespace: Namespace) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRANDED, namespace.path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -6, done  # SIGABRT
    assert "cannot leave" in done.stderr
    assert done.stdout == ""


async def test_the_thread_comes_home_from_every_socket(namespace: Namespace) -> None:
    before = Path("/proc/thread-self/ns/net").readlink()
    node = Node("pod", netns=namespace.path, addresses=["10.231.7.2"])
    pod = os.open(namespace.path, os.O_RDONLY)
    try:
        fd, cookie = node.engine._pump.socket(pod, False, "10.231.7.2")
        with socket.socket(fileno=fd) as inside, socket.socket() as outside:
            assert cookie
            assert cookie_of(inside) != cookie_of(outside)
        with socket.socket() as nothing, pytest.raises(OSError, match="no socket in the pod's netns"):
            node.engine._pump.socket(nothing.fileno(), False, None)
        with pytest.raises(OSError, match="bind to"):
            node.engine._pump.socket(pod, False, "10.9.9.9")
        assert Path("/proc/thread-self/ns/net").readlink() == before
    finally:
        os.close(pod)
        await node.engine.drain(0)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_everything_happens_inside_the_namespace(namespace: Namespace, family: int) -> None:
    """Outbound listener, tunnel, and last hop, all in there; the application sees the pod's own address."""
    ip, suffix = ADDRESSES[family], "6" if family == socket.AF_INET6 else "4"
    loopback = "::1" if suffix == "6" else "127.0.0.1"
    listener = in_namespace(namespace, family)
    listener.bind((ip, 0))
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername")[0])
        await echo(reader, writer)

    application = await asyncio.start_server(serve, sock=listener)
    target = SocketAddress(ip, listener.getsockname()[1])
    authority = Authority.new()
    settings = {"netns": namespace.path, "addresses": tuple(ADDRESSES.values())}
    client, server = Node("client-pod", **settings), Node("server-pod", **settings)
    try:
        client.engine.set_credentials("client-pod", authority.issue(CLIENT))
        server.engine.set_credentials("server-pod", authority.issue(SERVER))
        client.memory.destination = target
        key = TunnelKey(
            pod="client-pod",
            source=CLIENT,
            expected=frozenset({SERVER}),
            workload="server@1",
            address=SocketAddress(loopback, server.ports["tunnel" + suffix]),
        )
        client.decide = lambda fact: RelayTunnel(id=fact.id, key=key, authority=str(target), headers=())
        server.decide = lambda fact: RelayPlain(id=fact.id, destination=target, bind=ip, as_client=fact.client)
        payload = random.Random(1).randbytes(3 << 20)
        reader, writer = await dial(namespace, loopback, client.ports["outbound" + suffix])
        writer.write(payload)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), DEADLINE) == payload
        writer.close()
        assert seen == [ip]
        assert (await client.ended())[0].reason == Reason.OK
        with pytest.raises(OSError, match="Connect call failed"):  # not from here
            await asyncio.open_connection(loopback, client.ports["outbound" + suffix])
    finally:
        await client.engine.drain(0)
        await server.engine.drain(0)
        application.close()


async def test_a_pod_without_ipv6_has_no_ipv6_listeners(namespace: Namespace) -> None:
    namespace.without_ipv6()
    node = Node("pod", netns=namespace.path, addresses=["10.231.7.2"])
    try:
        assert node.listeners.outbound6 is node.listeners.plaintext6 is node.listeners.tunnel6 is None
    finally:
        await node.engine.drain(0)


async def test_a_pod_whose_loopback_is_down_is_an_error_that_says_so(namespace: Namespace) -> None:
    namespace.run("addr", "flush", "dev", "lo")  # as before it was set up
    with pytest.raises(OSError, match="is lo up"):
        Node("pod", netns=namespace.path, addresses=["10.231.7.2"])


async def test_the_pods_connections_end_when_it_is_removed_although_its_namespace_is_gone() -> None:
    gone = Namespace(f"pump-gone-{os.getpid()}")
    gone.add()
    try:
        gone.run("link", "set", "lo", "up")
        node = Node("pod", netns=gone.path, addresses=["127.0.0.1"])
        listener = in_namespace(gone, socket.AF_INET)
        listener.bind(("127.0.0.1", 0))
        application = await asyncio.start_server(echo, sock=listener)
        node.memory.destination = SocketAddress(*listener.getsockname())
        node.decide = lambda fact: RelayPlain(id=fact.id, destination=node.memory.destination)
        reader, writer = await dial(gone, "127.0.0.1", node.ports["outbound4"])
        await node.opened()
    finally:
        gone.delete()
    node.engine.remove_pod("pod")
    assert [fact.reason for fact in await node.ended()] == [Reason.POD_GONE]
    assert len(node.of(Ended)) == 1
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), DEADLINE)
    writer.close()
    application.close()
    await node.engine.drain(0)


class Commuters:
    """Connections in a namespace that come and go, four at a time, until they are refused or reset."""

    def __init__(self, netns: int, listener: tuple[str, int]) -> None:
        self._netns, self._listener = netns, listener
        self.made = 0

    async def _commute(self) -> None:
        family = socket.AF_INET6 if ":" in self._listener[0] else socket.AF_INET
        while True:
            with open_socket(self._netns, family) as sock:
                sock.setblocking(False)
                loop = asyncio.get_running_loop()
                try:
                    async with asyncio.timeout(DEADLINE):
                        await loop.sock_connect(sock, self._listener)
                        await loop.sock_sendall(sock, b"hello")
                        sock.shutdown(socket.SHUT_WR)
                        assert await loop.sock_recv(sock, 64) == b"hello"
                except ConnectionError:
                    return
            self.made += 1

    async def go(self) -> None:
        await asyncio.gather(*(self._commute() for _ in range(4)))


@asynccontextmanager
async def last_hops(netns: int, path: str, loopback: str) -> AsyncIterator[Node]:
    """A pod that serves plaintext; after the first connection nobody is asked any more."""
    listener = open_socket(netns, socket.AF_INET6 if ":" in loopback else socket.AF_INET)
    listener.bind((loopback, 0))
    application = await asyncio.start_server(echo, sock=listener)
    destination = SocketAddress(loopback, listener.getsockname()[1])
    with steering_maps() as steering:
        node = Node("pod", netns=path, addresses=[loopback], maps=steering.maps)
        node.decide = lambda fact: RelayPlain(
            id=fact.id, destination=destination, bind=loopback, as_client=SocketAddress(loopback, 1)
        )
        node.stands = lambda fact: Standing(
            id=fact.id, alternatives=[Alternative(weight=1, order=node.decide(fact), name="there")]
        )
        try:
            yield node
        finally:
            await node.engine.drain(0)
            application.close()


@pytest.mark.parametrize("loopback", ["127.0.0.1", "::1"])
async def test_no_namespace_outlives_its_pod_for_sockets_made_ahead(doomed: Namespace, loopback: str) -> None:
    """A veth's peer goes when the last one lets go of the namespace, and not before."""
    netns = os.open(doomed.path, os.O_RDONLY)
    try:
        async with last_hops(netns, doomed.path, loopback) as node:
            listener = (loopback, node.ports["plaintext6" if ":" in loopback else "plaintext4"])
            commuters = Commuters(netns, listener)
            going = asyncio.create_task(commuters.go())
            await node.until(lambda: sum(fact.connections for fact in node.of(Passed)) > 100)
            doomed.delete()  # its name
            before = commuters.made
            await eventually(lambda: commuters.made > before + 100)
            node.engine.remove_pod("pod")
            await asyncio.wait_for(going, DEADLINE)
            assert node.engine.held[0] == 0
            assert doomed.peer_is_there()
    finally:
        os.close(netns)
    await eventually(lambda: not doomed.peer_is_there())


async def test_sockets_made_ahead_that_nobody_takes_are_closed(namespace: Namespace) -> None:
    netns = os.open(namespace.path, os.O_RDONLY)
    try:
        async with last_hops(netns, namespace.path, "127.0.0.1") as node:
            for _ in range(20):
                reader, writer = await dial(namespace, "127.0.0.1", node.ports["plaintext4"])
                writer.write(b"hello")
                writer.write_eof()
                assert await asyncio.wait_for(reader.read(), DEADLINE) == b"hello"
                writer.close()
            assert len(node.of(Plaintext)) < 20
            await eventually(lambda: node.engine.held[0] == 0)
    finally:
        os.close(netns)
