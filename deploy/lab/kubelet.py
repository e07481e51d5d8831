"""One node's kubelet: follows the pods bound to its node and runs them. `python -m deploy.lab.kubelet LAB SLOT NODE`.

It is started in the node's network namespace and in the cgroup NODE/kubelet, and dials probes itself: that is how a
mesh tells them from other traffic.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import watchfiles

from deploy.lab import cgroup
from deploy.lab.layout import Layout
from deploy.lab.manifest import Object
from deploy.lab.pod import PodRun
from deploy.lab.store import Store

_STARTS_AT_ONCE = 4
_RESCAN = 5.0  # seconds between looks at the directory in case a notice was lost


class Kubelet:
    """One node's: a task for each pod whose manifest is in the node's directory."""

    def __init__(self, layout: Layout, node: str) -> None:
        self.layout, self.node = layout, node
        self.store = Store(layout.cluster)
        self.directory = layout.pod_manifests(node)
        self.pods: dict[str, asyncio.Task[None]] = {}
        self.ending: set[str] = set()
        self.gate = asyncio.Semaphore(_STARTS_AT_ONCE)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; pods are ended then."""
        self._remove_strangers()
        try:
            self._reconcile()
            async for _ in watchfiles.awatch(
                self.directory,
                stop_event=stop,
                debounce=100,
                step=20,
                rust_timeout=int(_RESCAN * 1000),
                yield_on_timeout=True,
                recursive=False,
            ):
                self._reconcile()
        finally:
            for uid, task in self.pods.items():
                if uid not in self.ending:
                    task.cancel()
            await asyncio.gather(*self.pods.values(), return_exceptions=True)

    def _remove_strangers(self) -> None:
        """End what an earlier kubelet of this node left running: nobody would see it exit."""
        pods = self.layout.node_cgroup(self.node) / "pods"
        cgroup.kill(pods)
        for group in pods.iterdir():
            if group.is_dir():
                cgroup.remove(group)

    def _reconcile(self) -> None:
        wanted = {path.stem: path for path in self.directory.glob("*.json")}
        for uid in self.pods.keys() - wanted.keys() - self.ending:
            self.ending.add(uid)
            self.pods[uid].cancel()
        for uid in wanted.keys() - self.pods.keys():
            try:
                record: Object = json.loads(wanted[uid].read_text())
            except FileNotFoundError:
                continue
            pod = PodRun(self.layout, self.store, record["pod"], Path(record["netns"]), self.gate)
            task = asyncio.create_task(pod.run(), name=f"{pod.key.namespace}/{pod.key.name}")
            self.pods[uid] = task
            task.add_done_callback(lambda done, uid=uid: self._ended(uid, done))

    def _ended(self, uid: str, task: asyncio.Task[None]) -> None:
        del self.pods[uid]
        self.ending.discard(uid)
        if not task.cancelled() and (error := task.exception()) is not None:
            # One pod's trouble is its own; the next look at the directory starts it again.
            print(f"pod {task.get_name()}: {error!r}", file=sys.stderr, flush=True)


async def _main(lab: str, slot: int, node: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Kubelet(Layout(name=lab, slot=slot), node).run(stop)


if __name__ == "__main__":
    # Children are waited for by pidfd: no thread per container.
    policy = asyncio.DefaultEventLoopPolicy()
    policy.set_child_watcher(asyncio.PidfdChildWatcher())
    asyncio.set_event_loop_policy(policy)
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
