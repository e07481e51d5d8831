"""What the controller knows now: the newest translation, what nodes reported about pods, and who is connected.

One owner, the event loop. Translating runs in a thread on immutable input, one at a time; changes that arrive meanwhile
are coalesced into the next one, so that nobody ever waits for more than two.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from controller.metrics import Metrics
from controller.translate.settings import Settings
from controller.translate.snapshot import Translation, translate
from mesh.control import PodStatus, Redirection
from mesh.resources import Object, ObjectKey, ParseError

_log = logging.getLogger(__name__)

_REMEMBER_S = 600.0


@dataclass(slots=True, kw_only=True)
class NodeState:
    """What is known of one node, connected or not. `rejected`: resource key -> why the node did not apply it."""

    name: str
    connected: bool = False
    version: str = ""
    since: float = 0.0  # seconds since the epoch: the last connect or disconnect
    sent: int = 0  # nonce of the newest update
    acknowledged: int = 0
    rejected: Mapping[str, str] = field(default_factory=dict)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a node last said about one instance of a pod."""

    uid: str
    node: str
    redirection: Redirection
    error: str = ""
    gone: float = 0.0  # seconds since the epoch when its pod was no longer in the source; 0 while it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What the source says: objects in force with their files, and what was refused."""

    objects: Mapping[ObjectKey, Object] = field(default_factory=dict)
    files: Mapping[ObjectKey, str] = field(default_factory=dict)
    refusals: tuple[ParseError, ...] = ()


class State:
    """`reports_file` keeps what nodes reported over a restart: without it every pod would leave the mesh until its node
    has reconnected."""

    def __init__(self, settings: Settings, metrics: Metrics, reports_file: Path | None = None) -> None:
        self.settings = settings
        self.metrics = metrics
        self.input = Input()
        self.translation = Translation(settings=settings)
        self.version = 0
        self.nodes: dict[str, NodeState] = {}
        self.reports: dict[str, Report] = {}
        self._reports_file = reports_file
        self._reports_dirty = False
        self._stale = asyncio.Event()
        self._published = asyncio.Condition()
        if reports_file is not None:
            self.reports = _load_reports(reports_file)

    def take(self, given: Input) -> None:
        """A new state of the source; takes effect with the next translation."""
        self.input = given
        self.metrics.refused.set(len(given.refusals))
        self._stale.set()

    def report(self, node: str, status: PodStatus) -> str:
        """A node's word about a pod; returns why it is ignored, or an empty string."""
        place, before = self.translation.pods.get(status.uid), self.reports.get(status.instance)
        remembered = before is not None and before.gone and (before.uid, before.node) == (status.uid, node)
        if (place is None or place.node != node) and not remembered:
            return "the pod is not on this node"
        if not remembered and (not status.instance or place is None or place.instance != status.instance):
            return "another instance of this pod is current"
        gone = before.gone if before is not None else 0.0
        fresh = Report(uid=status.uid, node=node, redirection=status.redirection, error=status.error[:500], gone=gone)
        if self.reports.get(status.instance) != fresh:
            self.reports[status.instance] = fresh
            self._reports_dirty = True
            self._stale.set()
        return ""

    def node(self, name: str) -> NodeState:
        return self.nodes.setdefault(name, NodeState(name=name))

    async def run(self) -> None:
        """Translate whenever something changed, forever."""
        while True:
            await self._stale.wait()
            await self.refresh()

    async def refresh(self) -> None:
        """Translate what is there now and publish it."""
        self._stale.clear()
        given, previous = self.input, self.translation
        enrolled = frozenset(i for i, r in self.reports.items() if r.redirection is Redirection.ENABLED)
        began = time.perf_counter()
        made = await asyncio.to_thread(
            translate, given.objects, enrolled=enrolled, settings=self.settings, previous=previous
        )
        self.metrics.translation.observe(time.perf_counter() - began)
        self._forget_gone(made)
        self._save_reports()
        self.translation = made
        kinds = Counter(key.partition("/")[0] for key in made.entries)
        for kind in ("workload", "service", "policy"):
            self.metrics.resources.labels(kind).set(kinds[kind])
        async with self._published:
            self.version += 1
            self._published.notify_all()

    async def newer_than(self, version: int) -> int:
        """Wait for a translation newer than `version`; its version."""
        async with self._published:
            await self._published.wait_for(lambda: self.version > version)
            return self.version

    def rejections(self) -> Iterator[tuple[ObjectKey, str, str]]:
        """(object, node, why) of everything that a node did not apply."""
        for node in self.nodes.values():
            for key, why in node.rejected.items():
                origin = self.translation.origins.get(key)
                if origin is not None:
                    yield origin, node.name, why

    def _forget_gone(self, made: Translation) -> None:
        """Reports outlive a node's stream, and for a while the pod: it may come back with the file it was in, and its
        node, which saw nothing of that, would not report again."""
        alive = {place.instance for place in made.pods.values()}
        now = time.time()
        for instance, report in list(self.reports.items()):
            if (instance in alive) == (report.gone == 0.0):
                if report.gone and not 0 <= now - report.gone < _REMEMBER_S:
                    del self.reports[instance]
                    self._reports_dirty = True
                continue
            self.reports[instance] = msgspec.structs.replace(report, gone=0.0 if instance in alive else now)
            self._reports_dirty = True

    def _save_reports(self) -> None:
        if self._reports_file is None or not self._reports_dirty:
            return
        fresh = self._reports_file.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(self.reports))
            fresh.replace(self._reports_file)
            self._reports_dirty = False
        except OSError as error:
            _log.error("what nodes reported cannot be saved", extra={"cause": str(error)})


def _load_reports(path: Path) -> dict[str, Report]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Report])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.error("what nodes reported before cannot be read; they will report again", extra={"cause": str(error)})
        return {}
