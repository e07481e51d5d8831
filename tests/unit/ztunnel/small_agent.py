"""A small agent to look at: a real snapshot, a real table of connections, real certificate views; only the engine's
counters and the kernel's description are given by the test."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from bpf.facts import Description, MapFacts
from mesh.control import Redirection
from mesh.identity import SpiffeId
from mesh.model import Locality, Port, Service, SocketAddress, TunnelProtocol, Workload, WorkloadStatus
from mesh.reason import Reason
from mesh.snapshot import Delta, Snapshot
from ztunnel.certificates import CertificateView
from ztunnel.connections import Connection, Connections
from ztunnel.orders import Ended, Opened

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

PRODUCTPAGE = Workload(
    uid="Kubernetes//Pod/default/productpage-v1-0",
    name="productpage-v1-0",
    namespace="default",
    instance="uid-productpage",
    addresses=("10.10.0.2", "fd00::2"),
    node="node1",
    service_account="bookinfo-productpage",
    tunnel_protocol=TunnelProtocol.HBONE,
    capture=True,
    workload_type="deployment",
    workload_name="productpage-v1",
    canonical_name="productpage",
    canonical_revision="v1",
)
REVIEWS_SERVICE = Service(
    name="reviews",
    namespace="default",
    hostname="reviews.default.svc.cluster.local",
    addresses=("10.70.0.20",),
    ports=(Port(service_port=9080, target_port=8080),),
)
REVIEWS = Workload(
    uid="Kubernetes//Pod/default/reviews-v2-0",
    name="reviews-v2-0",
    namespace="default",
    instance="uid-reviews",
    addresses=("10.10.1.3",),
    node="node2",
    service_account="bookinfo-reviews",
    tunnel_protocol=TunnelProtocol.HBONE,
    capture=True,
    workload_type="deployment",
    workload_name="reviews-v2",
    canonical_name="reviews",
    canonical_revision="v2",
    services={"default/reviews.default.svc.cluster.local": (Port(service_port=9080, target_port=8080),)},
)
OLD_REVIEWS = Workload(
    uid="Kubernetes//Pod/legacy/old-0",
    name="old-0",
    namespace="legacy",
    instance="uid-old",
    addresses=("10.10.1.9",),
    node="node2",
    status=WorkloadStatus.UNHEALTHY,
    services={"default/reviews.default.svc.cluster.local": (Port(service_port=9080, target_port=8080),)},
)
ZONED = Workload(
    uid="Kubernetes//Pod/default/zoned-0",
    name="zoned-0",
    namespace="default",
    addresses=("10.10.0.7",),
    workload_name="zoned",
    locality=Locality(region="eu", zone="eu-1"),
)
SNAPSHOT = Snapshot().apply(Delta(upserts=(PRODUCTPAGE, REVIEWS, OLD_REVIEWS, REVIEWS_SERVICE)))


def outbound(id_: int = 1, **changes: object) -> Connection:
    """productpage -> reviews through the tunnel, as its source's agent sees it."""
    values: dict = {
        "id": id_,
        "pod": "uid-productpage",
        "inbound": False,
        "client": SocketAddress("10.10.0.2", 40000),
        "asked": SocketAddress("10.70.0.20", 9080),
        "opened_at": START,
        "source": PRODUCTPAGE,
        "destination": REVIEWS,
        "service": REVIEWS_SERVICE,
        "source_identity": PRODUCTPAGE.identity,
        "destination_identity": REVIEWS.identity,
        "upstream": SocketAddress("10.10.1.3", 8080),
        "hbone": SocketAddress("10.10.1.3", 15008),
    }
    return Connection(**(values | changes))


def inbound(id_: int = 2, **changes: object) -> Connection:
    """The same connection, as its destination's agent sees it."""
    values: dict = {"inbound": True, "pod": "uid-reviews", "asked": SocketAddress("10.10.1.3", 8080)}
    return outbound(id_, **(values | changes))


@dataclass(frozen=True, kw_only=True)
class SmallPod:
    instance: str
    namespace: str
    name: str
    redirection: Redirection = Redirection.ENABLED
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class SmallController:
    address: str = "10.130.0.2:15012"
    connected: bool = True
    synced: bool = True
    error: str = ""
    updates: int = 4
    terminations: int = 2


@dataclass(frozen=True, kw_only=True)
class SmallOlder:
    pod: str
    inbound: bool
    local: SocketAddress
    remote: SocketAddress


def maps(*facts: tuple[str, str, int | None, int]) -> Description:
    """Kernel maps: (name, type, entries, max)."""
    described = tuple(MapFacts(name=name, type=type_, entries=n, max=limit) for name, type_, n, limit in facts)
    return Description(layout="0123456789abcdef", programs=(), maps=described)


@dataclass(kw_only=True)
class SmallAgent:
    """Implements `ztunnel.admin.view.AgentView`."""

    node: str = "node1"
    node_ip: str = "10.130.0.10"
    started_at: datetime = START
    snapshot: Snapshot = SNAPSHOT
    controller: SmallController = field(default_factory=SmallController)
    waits_for: list[str] = field(default_factory=list)
    stands: list[str] = field(default_factory=list)
    moved: dict[int, tuple[int, int]] = field(default_factory=dict)
    counters: dict[Reason, int] = field(default_factory=dict)
    losses: tuple[int, int] = (0, 0)
    turned_away: dict[Reason, int] = field(default_factory=dict)
    held: list[CertificateView] = field(default_factory=list)
    own_pods: list[SmallPod] = field(
        default_factory=lambda: [SmallPod(instance="uid-productpage", namespace="default", name="productpage-v1-0")]
    )
    before: list[SmallOlder] = field(default_factory=list)
    described: Description | OSError = field(default_factory=maps)
    table: Connections = field(init=False)

    def __post_init__(self) -> None:
        self.table = Connections(self.counts, lambda: START + timedelta(seconds=5))

    def pending(self) -> list[str]:
        return self.waits_for

    def stuck(self) -> list[str]:
        return self.stands

    def pods(self) -> list[SmallPod]:
        return self.own_pods

    def certificates(self) -> list[CertificateView]:
        return self.held

    def connections(self) -> list[Connection]:
        return list(self.table.live())

    def older(self) -> list[SmallOlder]:
        return self.before

    def counts(self) -> dict[int, tuple[int, int]]:
        return self.moved

    def refused(self) -> dict[Reason, int]:
        return self.turned_away

    def kernel(self) -> Description:
        if isinstance(self.described, OSError):
            raise self.described
        return self.described

    def kernel_losses(self) -> tuple[int, int]:
        return self.losses

    def kernel_counters(self) -> dict[Reason, int]:
        return self.counters

    def open(self, connection: Connection) -> Connection:
        """A connection is answered and its upstream is up."""
        self.table.begin(connection)
        self.table.opened(Opened(id=connection.id, peer=connection.destination_identity))
        return connection

    def end(self, connection: Connection, reason: Reason = Reason.OK, detail: str = "") -> None:
        sent, received = self.moved.pop(connection.id, (0, 0))
        self.table.ended(Ended(id=connection.id, reason=reason, detail=detail, sent=sent, received=received))


def certificate(identity: SpiffeId, *, days: float = 1.0, error: str = "") -> CertificateView:
    """Valid from now for some days; negative: it has expired."""
    now = datetime.now(UTC)
    return CertificateView(
        identity=identity,
        state="valid",
        serial=0xC0FFEE,
        not_before=now - timedelta(days=2),
        not_after=now + timedelta(days=days),
        error=error,
    )
