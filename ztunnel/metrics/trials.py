"""What policies under dry run (`istio.io/dry-run`) would have done, counted where it is decided: at the destination."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import Metric

from mesh.policy import Trial
from mesh.snapshot import Snapshot
from ztunnel.connections import Connection, Passed, Tally


@dataclass(slots=True, kw_only=True)
class Trials:
    """A subscriber to `ztunnel.connections`. There are as many counters as policies under dry run, times outcomes."""

    _counted: Counter[Trial] = field(default_factory=Counter)

    def opened(self, connection: Connection) -> None:
        self._count(connection, 1)

    def refused(self, connection: Connection, seconds: float) -> None:
        self._count(connection, 1)

    def passed(self, common: Connection, each: Sequence[Passed]) -> None:
        self._count(common, len(each))

    def tallied(self, common: Connection, tally: Tally) -> None:
        self._count(common, tally.connections)

    def closed(self, connection: Connection, seconds: float) -> None:
        """It was counted when it was opened."""

    def expire(self, snapshot: Snapshot) -> None:
        """Forget policies that are gone, or in force now."""
        tried = {p.namespaced_name for p in snapshot.policies.values() if p.dry_run} if self._counted else set()
        for trial in [trial for trial in self._counted if trial.policy not in tried]:
            del self._counted[trial]

    def collect(self) -> Metric:
        family = Metric("gossamer_dry_run", "Connections by what a policy under dry run would have done.", "counter")
        for trial, count in sorted(self._counted.items()):
            outcome = trial.outcome.replace(" ", "_")
            family.add_sample("gossamer_dry_run_total", {"policy": trial.policy, "outcome": outcome}, count)
        return family

    def _count(self, connection: Connection, many: int) -> None:
        if connection.inbound:  # a direct one is reported twice
            for trial in connection.trials:
                self._counted[trial] += many
