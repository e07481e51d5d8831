"""What admin, metrics and readiness are shown of the agent: `ztunnel.admin.view.AgentView`, read off its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from bpf.facts import Description
from mesh.reason import Reason
from mesh.snapshot import Snapshot
from ztunnel.certificates import Certificates, CertificateView
from ztunnel.config import Config
from ztunnel.connections import Connection, Connections
from ztunnel.direct import Direct
from ztunnel.enrol import Pod
from ztunnel.older import OlderConnection
from ztunnel.orders import Engine
from ztunnel.roster import Pods
from ztunnel.sync import Sync
from ztunnel.watchdog import Watchdog


class Kernel(Protocol):
    """What there is to see of the kernel side (implemented by `bpf.Kernel`)."""

    def describe(self) -> Description:
        """Programs, links, maps."""

    def counters(self) -> Mapping[Reason, int]: ...
    def lost_events(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Names as in `AgentView`. `ending`: the agent has been told to stop."""

    config: Config
    started_at: datetime
    source: Kernel
    engine: Engine
    controller: Sync
    held: Pods
    wallet: Certificates
    table: Connections
    direct: Direct
    watchdog: Watchdog
    ending: Callable[[], bool]

    @property
    def node(self) -> str:
        return self.config.node

    @property
    def node_ip(self) -> str:
        return self.config.node_ip

    @property
    def snapshot(self) -> Snapshot:
        return self.controller.holdings.snapshot

    def pending(self) -> Sequence[str]:
        waits = []
        if self.ending():
            waits.append("stopping")
        if not self.held.listed:
            waits.append(f"pod records in {self.config.pods}")
        if not self.controller.synced and not self.controller.holdings.entries:
            waits.append(f"first state from the controller {self.config.controller}")
        return waits + [f"thread {name}, which is stuck" for name in self.stuck()]

    def stuck(self) -> Sequence[str]:
        return self.watchdog.stuck

    def pods(self) -> Sequence[Pod]:
        return list(self.held.by_instance.values())

    def certificates(self) -> Sequence[CertificateView]:
        return self.wallet.views()

    def connections(self) -> Sequence[Connection]:
        return self.table.live()

    def older(self) -> Sequence[OlderConnection]:
        return [connection for pod in self.held.by_instance.values() for connection in pod.older]

    def counts(self) -> Mapping[int, tuple[int, int]]:
        return {**self.engine.counts(), **self.direct.flows.counts()}

    def refused(self) -> Mapping[Reason, int]:
        return self.engine.refused

    def kernel(self) -> Description:
        return self.source.describe()

    def kernel_losses(self) -> tuple[int, int]:
        return self.source.lost_events(), self.direct.unfilled

    def kernel_counters(self) -> Mapping[Reason, int]:
        return self.source.counters()
