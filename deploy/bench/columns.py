"""What is compared. A column prepares its proxies and says where the client sits, what it dials and what to account.

none            nothing attached: the pods' cgroups are outside the nodes', so no program of ours sees them
unenrolled      our agents run and their hooks are attached around these pods, which are not enrolled
gossamer        enrolled: captured in the client's pod, HBONE with mutual TLS to the server's
direct          enrolled, on one node, under a policy that allows the client alone: from socket to socket
direct-vip      the same, by the address of a Service
envoy-tcp       Envoy beside each application: plaintext on loopback, one mTLS connection for each of the client's
envoy-hbone     the same, but one HTTP/2 CONNECT stream for each, over shared mTLS connections
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.bench import authority, envoy, load
from deploy.bench.envoy import Config, Endpoint, Envoy
from deploy.bench.fault import BenchError
from deploy.bench.ground import Ground, Pair
from deploy.bench.mesh import APP_PORT, VIP_PORT, Mesh
from deploy.bench.seat import Seat

_HBONE_PORT = 15008
_MOST = 18_000  # connections that a process may have open, within 20,000 descriptors; a proxy without HTTP/2: half
_ONE_PODS = 2500  # that one pod holds, where there is one
_LISTED_S = 5.0  # the agent hears of direct connections twice a second
_CLIENT, _SERVER = "spiffe://cluster.local/ns/bench/sa/client", "spiffe://cluster.local/ns/bench/sa/server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Where connections come from, and what they dial."""

    seat: Seat
    dial: Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every column is prepared with; `threads` is each proxy's number of data-path threads. `mesh` brings ours up
    when it is first asked for: where no column needs it, nothing of it is there."""

    ground: Ground
    bare: Pair
    program: Path
    directory: Path
    threads: int
    mesh: Callable[[], Mesh]
    style: Mapping[str, str]  # options of the load's server, and of clients that are measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A prepared column. `proxies` are cgroups; `everything` those and the load's own. `crosses` is the port of the
    server pod that bytes between the pods must go to; `prove` adds what the proxies themselves say (and may raise).
    `neighbours` are further pairs behind the same proxies, for more connections than one pod may have. `refusals`: what
    the proxies say, in words, when there are not so many as there should be."""

    pair: Pair
    dial: Endpoint
    crosses: int
    proxies: tuple[Path, ...] = ()
    prove: Callable[[], dict[str, str]] = dict
    neighbours: tuple[Caller, ...] = ()
    refusals: Callable[[], str] = str

    @property
    def callers(self) -> tuple[Caller, ...]:
        return (Caller(seat=self.pair.client, dial=self.dial), *self.neighbours)

    @property
    def everything(self) -> tuple[Path, ...]:
        return (*self.proxies, self.pair.client.cgroup, self.pair.server.cgroup)

    def check_path(self, program: Path) -> dict[str, str]:
        """With a few connections open: do they cross where the column says? Raises BenchError if not."""
        with load.Held(program, self.pair.client, self.dial.host, self.dial.port, 4):
            server = self.pair.server.address
            listing = self.pair.client.run(["ss", "-Htn", "state", "established", "dst", server], timeout=10)
            ports = {int(line.split()[3].rsplit(":", 1)[1]) for line in listing.stdout.splitlines()}
            if ports != {self.crosses}:
                raise BenchError(f"bytes should go to {server} port {self.crosses}, but open are: {sorted(ports)}")
            return self.prove()


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`prepare` registers its clean-up with the stack it is given; `most` is how many connections may be held."""

    name: str
    title: str
    prepare: Callable[[Setting, ExitStack], Lane]
    most: int = _MOST


def _nothing(setting: Setting, stack: ExitStack) -> Lane:
    address = setting.bare.server.address
    return Lane(pair=setting.bare, dial=Endpoint(host=address, port=APP_PORT), crosses=APP_PORT)


def _unenrolled(setting: Setting, stack: ExitStack) -> Lane:
    mesh = setting.mesh()
    stack.enter_context(load.serving(setting.program, mesh.plain.server, APP_PORT, **setting.style))
    dial = Endpoint(host=mesh.plain.server.address, port=APP_PORT)
    return Lane(pair=mesh.plain, dial=dial, crosses=APP_PORT, proxies=mesh.agents)


def _gossamer(setting: Setting, stack: ExitStack) -> Lane:
    lane = _enrolled(setting, stack, protocol="HBONE", crosses=_HBONE_PORT)
    return replace(lane, neighbours=_neighbours(setting, stack))


def _direct(setting: Setting, stack: ExitStack) -> Lane:
    lane = _enrolled(setting, stack, protocol="DIRECT", crosses=APP_PORT)
    return replace(lane, neighbours=_neighbours(setting, stack))


def _direct_vip(setting: Setting, stack: ExitStack) -> Lane:
    dial = Endpoint(host=setting.mesh().vip, port=APP_PORT)
    return _enrolled(setting, stack, protocol="DIRECT", crosses=VIP_PORT, app=VIP_PORT, dial=dial)


def _neighbours(setting: Setting, stack: ExitStack) -> tuple[Caller, ...]:
    found = []
    for pair in setting.mesh().neighbours:
        stack.enter_context(load.serving(setting.program, pair.server, APP_PORT))
        found.append(Caller(seat=pair.client, dial=Endpoint(host=pair.server.address, port=APP_PORT)))
    return tuple(found)


def _enrolled(
    setting: Setting,
    stack: ExitStack,
    *,
    protocol: str,
    crosses: int,
    app: int = APP_PORT,
    dial: Endpoint | None = None,
) -> Lane:
    """The server listens at port `app`; `dial` is the server unless it is given."""
    mesh = setting.mesh()
    stack.enter_context(load.serving(setting.program, mesh.ambient.server, app, **setting.style))
    dial = dial or Endpoint(host=mesh.ambient.server.address, port=app)

    def prove() -> dict[str, str]:
        end = time.monotonic() + _LISTED_S
        while True:
            listed = mesh.connections()
            live = [one for one in listed if one["destination"]["address"] == str(dial) and one["protocol"] == protocol]
            if live:
                break
            if time.monotonic() > end:
                raise BenchError(f"the client's agent lists no {protocol} connection to {dial}, only {listed}")
            time.sleep(0.05)
        return {end: str(live[0][end]["identity"]) for end in ("source", "destination")}

    return Lane(
        pair=mesh.ambient,
        dial=dial,
        crosses=crosses,
        proxies=mesh.agents,
        prove=prove,
        refusals=mesh.refusals,
    )


def _envoy_tcp(setting: Setting, stack: ExitStack) -> Lane:
    server = setting.bare.server.address
    here, there = Endpoint(host="127.0.0.1", port=15101), Endpoint(host=server, port=15108)
    own = authority.issue(_room(setting, "envoy-tcp"), [_CLIENT, _SERVER])
    return _envoy_pair(
        setting,
        stack,
        name="envoy-tcp",
        ends=(here, there),
        client=envoy.tcp_client(listen=here, peer=there, own=own[_CLIENT], expected=_SERVER),
        server=envoy.tcp_server(listen=there, app=_app(), own=own[_SERVER], expected=_CLIENT),
        said=("ssl.versions.TLSv1.3", "upstream_cx_total"),
    )


def _envoy_hbone(setting: Setting, stack: ExitStack) -> Lane:
    server = setting.bare.server.address
    here, there = Endpoint(host="127.0.0.1", port=15201), Endpoint(host=server, port=15208)
    own = authority.issue(_room(setting, "envoy-hbone"), [_CLIENT, _SERVER])
    target = Endpoint(host=server, port=APP_PORT)
    return _envoy_pair(
        setting,
        stack,
        name="envoy-hbone",
        ends=(here, there),
        client=envoy.hbone_client(listen=here, peer=there, target=target, own=own[_CLIENT], expected=_SERVER),
        server=envoy.hbone_server(listen=there, app=_app(), own=own[_SERVER], expected=_CLIENT),
        said=("ssl.versions.TLSv1.3", "upstream_cx_http2_total"),
    )


def _envoy_pair(
    setting: Setting,
    stack: ExitStack,
    *,
    name: str,
    ends: tuple[Endpoint, Endpoint],
    client: Config,
    server: Config,
    said: tuple[str, ...],
) -> Lane:
    """Envoys in the pods' own network namespaces, each in its own cgroup; `said` must have been counted upstream."""
    here, there = ends
    proxies = []
    started: list[Envoy] = []
    for role, seat, config in (("server", setting.bare.server, server), ("client", setting.bare.client, client)):
        group = setting.ground.layout.cgroup / "outside" / f"{name}-{role}"
        directory = _room(setting, name)
        label = f"{name}-{role}"
        own_seat = type(seat)(netns=seat.netns, cgroup=group, address=seat.address)
        started.append(Envoy(name=label, seat=own_seat, directory=directory, config=config, threads=setting.threads))
        stack.callback(started[-1].close)
        proxies.append(group)

    def prove() -> dict[str, str]:
        counters = started[-1].counters("cluster.peer.")
        missing = [what for what in said if not counters.get(f"cluster.peer.{what}")]
        if missing:
            raise BenchError(f"{name}: Envoy has counted none of {missing}, only {sorted(counters)}")
        return {"cipher": next((key.rsplit(".", 1)[1] for key in counters if ".ssl.ciphers." in key), "?")}

    return Lane(pair=setting.bare, dial=here, crosses=there.port, proxies=tuple(proxies), prove=prove)


def _app() -> Endpoint:
    return Endpoint(host="127.0.0.1", port=APP_PORT)


def _room(setting: Setting, name: str) -> Path:
    directory = setting.directory / name
    directory.mkdir(exist_ok=True)
    return directory


COLUMNS: tuple[Column, ...] = (
    Column(name="none", title="nothing attached", prepare=_nothing),
    Column(name="unenrolled", title="un-enrolled beside", prepare=_unenrolled),
    Column(name="gossamer", title="gossamer", prepare=_gossamer),
    Column(name="envoy-tcp", title="Envoy mTLS TCP", prepare=_envoy_tcp, most=_MOST // 2),
    Column(name="envoy-hbone", title="Envoy HBONE", prepare=_envoy_hbone, most=_MOST // 2),
)
DIRECT_COLUMNS: tuple[Column, ...] = (
    Column(name="none", title="nothing attached", prepare=_nothing),
    Column(name="unenrolled", title="un-enrolled beside", prepare=_unenrolled),
    Column(name="direct", title="gossamer direct", prepare=_direct),
    Column(name="direct-vip", title="by Service", prepare=_direct_vip, most=_ONE_PODS),
    Column(name="envoy-tcp", title="Envoy mTLS TCP", prepare=_envoy_tcp, most=_MOST // 2),
)
