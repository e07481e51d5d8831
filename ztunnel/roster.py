"""All pods of this node: begun, told of changes, taken over from an agent before, each with its own task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.identity import SpiffeId
from mesh.model import Workload
from mesh.snapshot import Snapshot
from ztunnel import pods as records
from ztunnel.enrol import Pod, Surroundings
from ztunnel.handover import giver
from ztunnel.handover.channel import close_all
from ztunnel.handover.heir import PodInheritance
from ztunnel.orders import Credentials
from ztunnel.pods import PodRecord

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class Pods:
    """All pods of this node, each with its own task."""

    around: Surroundings
    spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
    adopted: frozenset[str] = frozenset()  # enrolled in the kernel before this agent began
    listed: bool = False  # the records have been read
    by_instance: dict[str, Pod] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def follow(self, directory: Path) -> None:
        """The records in it, until cancelled. Adopted pods that have none were deleted while no agent ran."""
        async for found in records.follow(directory):
            if not self.listed:
                self._release(self.adopted - found.keys())
            self.update(found)
            self.listed, self.adopted = True, frozenset()

    def workload_of(self, snapshot: Snapshot, instance: str) -> Workload | None:
        """What the snapshot has of a pod."""
        pod = self.by_instance.get(instance)
        # Of adopted pods whose records were not read yet, the instance has to do.
        namespace, name = (pod.namespace, pod.name) if pod is not None else ("", "")
        return snapshot.workload_of_pod(instance, namespace, name) if instance else None

    def netns_of(self, instance: str) -> Path | None:
        """Where its network namespace is to be found."""
        pod = self.by_instance.get(instance)
        return Path(pod.record.netns) if pod is not None and pod.record is not None else None

    def update(self, records: Mapping[str, PodRecord]) -> None:
        """The records as they are now."""
        for instance, record in records.items():
            pod = self.by_instance.get(instance)
            if pod is None:
                self._begin(instance, record, adopted=instance in self.adopted)
            elif pod.record != record:
                pod.record = record
                pod.wake()
        for instance, pod in self.by_instance.items():
            if instance not in records and pod.record is not None:
                pod.record = None
                pod.wake()

    async def inherit(self, records: Mapping[str, PodRecord], inherited: Mapping[str, PodInheritance]) -> None:
        """Serve what a living agent serves. Afterwards each pod either is served or says why it is not."""
        for instance, one in inherited.items():
            if instance in records:
                self._begin(instance, records[instance], adopted=True, inherited=one)
            else:
                close_all(giver.descriptors_of(one.listeners))
        for pod in list(self.by_instance.values()):
            await pod.settled.wait()

    def resume(self) -> None:
        """See `Pod.resume`; OSError."""
        for pod in self.by_instance.values():
            pod.resume()
        self.around.gate.open()

    def swapped(self) -> None:
        """There is a new snapshot."""
        for pod in self.by_instance.values():
            pod.swapped()

    def deaf(self, instance: str) -> None:
        """The pod's listeners are gone."""
        pod = self.by_instance.get(instance)
        if pod is not None:
            pod.deaf()

    def certified(self, credentials: Credentials) -> None:
        """A certificate came or was renewed."""
        for pod in self.by_instance.values():
            if pod.identity == credentials.identity:
                try:
                    self.around.engine.set_credentials(pod.instance, credentials)
                except Exception as error:  # its own misfortune: certificates of all others come by here
                    log.error("pod %s/%s keeps its certificate: %s", pod.namespace, pod.name, error)
        self.uncertified(credentials.identity)

    def uncertified(self, identity: SpiffeId) -> None:
        """No certificate could be had, or one could: whoever waits for it says why in its status, or goes on."""
        for pod in self.by_instance.values():
            if pod.wanted == identity:
                pod.wake()

    def _release(self, instances: frozenset[str]) -> None:
        for instance in sorted(instances):
            try:
                self.around.kernel.unenrol(instance)
                log.info("pod %s is gone since the last run", instance)
            except OSError as error:
                log.warning("pod %s, gone since the last run, cannot be released: %s", instance, error)

    def _begin(
        self, instance: str, record: PodRecord, *, adopted: bool, inherited: PodInheritance | None = None
    ) -> None:
        pod = Pod(
            around=self.around,
            record=record,
            instance=instance,
            namespace=record.namespace,
            name=record.name,
            adopted=adopted,
            inherited=inherited,
        )
        self.by_instance[instance] = pod
        task = self.spawn(self._run(pod), f"pod {record.namespace}/{record.name}")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _run(self, pod: Pod) -> None:
        try:
            await pod.run()
        finally:
            pod.stop()
            del self.by_instance[pod.instance]
