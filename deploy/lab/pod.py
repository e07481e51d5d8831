"""One pod on its node: its namespaces, containers, probes, restarts, and the status they add up to."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.lab import cgroup, container, launch, probe
from deploy.lab.fault import LabError
from deploy.lab.layout import Layout
from deploy.lab.manifest import Key, Object
from deploy.lab.store import Store

# Kubernetes starts at 10 s and gives pods 30 s to end; a lab that people wait for starts and ends faster. Same shape.
BACKOFF_FIRST, BACKOFF_LIMIT, BACKOFF_RESET = 1.0, 300.0, 600.0
GRACE = 2.0


def backoff(restarts: int) -> float:
    """Seconds to wait before restart number `restarts` (counts from 1): at once, then doubling."""
    return 0.0 if restarts <= 1 else min(BACKOFF_LIMIT, BACKOFF_FIRST * 2 ** min(restarts - 2, 32))


def wants_restart(policy: str, exit_code: int) -> bool:
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True, kw_only=True)
class ContainerState:
    """What is known of one container; `state` is as in Kubernetes' containerStatuses[].state."""

    name: str
    init: bool = False
    state: Object = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last: Object | None = None
    ready: bool = False
    started: bool = False
    restarts: int = 0

    @property
    def exit_code(self) -> int | None:
        return self.state["terminated"]["exitCode"] if "terminated" in self.state else None

    def entry(self, image: str) -> Object:
        result: Object = {
            "name": self.name,
            "image": image,
            "state": self.state,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
        }
        return result | ({"lastState": self.last} if self.last else {})


def phase(states: list[ContainerState], policy: str) -> str:
    """The pod's phase from its (non-init) containers."""
    main = [state for state in states if not state.init]
    codes = [state.exit_code for state in main]
    if policy != "Always" and all(code is not None and not wants_restart(policy, code) for code in codes):
        return "Failed" if any(codes) else "Succeeded"
    if any("running" in s.state for s in main) or any(s.restarts or s.last for s in main):
        return "Running"
    return "Pending"


class PodRun:
    """Runs one pod until cancelled."""

    def __init__(self, layout: Layout, store: Store, pod: Object, netns: Path, gate: asyncio.Semaphore) -> None:
        self.layout, self.store, self.pod, self.netns, self.gate = layout, store, pod, netns, gate
        meta, spec = pod["metadata"], pod["spec"]
        self.key = Key("Pod", meta["namespace"], meta["name"])
        self.uid: str = meta["uid"]
        self.node: str = spec["nodeName"]
        self.policy: str = spec["restartPolicy"]
        self.group = layout.pod_cgroup(self.node, self.key.namespace, self.key.name, self.uid)
        self.files = layout.node_dir(self.node) / "files" / self.uid
        self.specs: dict[str, Object] = {
            c["name"]: c for c in [*(spec.get("initContainers") or []), *spec["containers"]]
        }
        self.states = {
            name: ContainerState(name=name, init=c not in spec["containers"]) for name, c in self.specs.items()
        }
        self._dirty = asyncio.Event()
        self._handles: list[int] = []

    async def run(self) -> None:
        """Start everything and keep it running; on cancellation end it and remove what belongs to the pod."""
        try:
            self._prepare()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._report())
                await self._init()
                for spec in self.pod["spec"]["containers"]:
                    tasks.create_task(self._keep(spec))
        finally:
            await self._end()

    def _prepare(self) -> None:
        self.group.mkdir(parents=True, exist_ok=True)
        etc = self.files / "etc"
        etc.mkdir(parents=True, exist_ok=True)
        dns = self.layout.cluster_dns
        (etc / "resolv.conf").write_text(container.resolv_conf(self.key.namespace, dns[:1]))
        (etc / "hosts").write_text(container.hosts_file(self.pod))
        (etc / "hostname").write_text(container.hostname(self.pod) + "\n")
        self._handles.append(os.open(self.netns, os.O_RDONLY | os.O_CLOEXEC))
        self._handles += launch.pod_namespaces(container.hostname(self.pod))

    async def _init(self) -> None:
        for spec in self.pod["spec"].get("initContainers") or []:
            await self._keep(spec, "OnFailure" if self.policy == "Always" else self.policy)
            state = self.states[spec["name"]]
            state.ready = state.exit_code == 0
            if state.exit_code != 0:  # restartPolicy Never: the pod has failed
                await asyncio.Event().wait()

    async def _keep(self, spec: Object, policy: str | None = None) -> None:
        """Run one container again and again, as its restart policy says."""
        state = self.states[spec["name"]]
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            code, reason = await self._once(spec, state)
            state.ready = state.started = False
            ended = {"exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error"), "finishedAt": now()}
            state.state = {"terminated": ended}
            self._dirty.set()
            if not wants_restart(policy or self.policy, code):
                return
            failures = 1 if loop.time() - began > BACKOFF_RESET else failures + 1
            state.last = state.state
            if backoff(failures):
                message = f"back-off {backoff(failures):g}s restarting failed container; last: {ended['reason']}"
                state.state = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
                self._dirty.set()
            await asyncio.sleep(backoff(failures))
            state.restarts += 1

    async def _once(self, spec: Object, state: ContainerState) -> tuple[int, str]:
        """One life of a container: (exit status, reason if it is ours to tell)."""
        group = self.group / spec["name"]
        try:
            process, env = await self._start(spec, group)
        except (LabError, OSError) as error:
            self._log(spec, f"lab: cannot start: {error}\n")
            return 128, f"CreateContainerError: {error}"
        state.state = {"running": {"startedAt": now()}}
        state.started = not spec.get("startupProbe")
        state.ready = state.started and not spec.get("readinessProbe")
        self._dirty.set()
        probing = asyncio.create_task(self._probe_all(spec, state, env))
        try:
            code = await process.wait()
        finally:
            probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probing
        cgroup.kill(group)  # what a container leaves behind goes with its first process
        return (code if code >= 0 else 128 - code), ""

    async def _start(self, spec: Object, group: Path) -> tuple[asyncio.subprocess.Process, dict[str, str]]:
        async with self.gate:
            group.mkdir(exist_ok=True)
            env = container.environment(self.pod, spec, self._config_map)
            argv = container.run_argv(self.pod, spec, self.files / "etc", self._mounts(spec), env)
            log = self.layout.container_log(self.key.namespace, self.key.name, spec["name"])
            with log.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,
                    env=env,
                    preexec_fn=launch.entry(group, self._handles),
                )
            return process, env

    def _log(self, spec: Object, text: str) -> None:
        with self.layout.container_log(self.key.namespace, self.key.name, spec["name"]).open("a") as log:
            log.write(text)

    def _config_map(self, name: str) -> Mapping[str, str]:
        item = self.store.get(Key("ConfigMap", self.key.namespace, name))
        if item is None:
            raise LabError(f"ConfigMap {self.key.namespace}/{name} is missing; add it to the file")
        return item.get("data") or {}

    def _mounts(self, spec: Object) -> list[container.Mount]:
        sources = {volume["name"]: volume for volume in self.pod["spec"].get("volumes") or []}
        mounts = []
        for mount in spec.get("volumeMounts") or []:
            volume = sources[mount["name"]]
            directory = self.files / "volumes" / mount["name"]
            if not directory.exists():
                directory.mkdir(parents=True)
                directory.chmod(0o777 if "emptyDir" in volume else 0o755)
                if "configMap" in volume:
                    self._fill(directory, volume["configMap"])
            source = directory / mount["subPath"] if "subPath" in mount else directory
            read_only = "configMap" in volume or bool(mount.get("readOnly"))
            mounts.append(container.Mount(source=source, target=mount["mountPath"], read_only=read_only))
        return mounts

    def _fill(self, directory: Path, reference: Object) -> None:
        data = self._config_map(reference["name"])
        names = {item["key"]: item["path"] for item in reference.get("items") or []} or {key: key for key in data}
        for key, path in names.items():
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(data[key])
            target.chmod(0o755)

    # --- probes -----------------------------------------------------------------------------------
    async def _probe_all(self, spec: Object, state: ContainerState, env: dict[str, str]) -> None:
        ip = self.pod["status"]["podIP"]
        startup, ready, live = (
            probe.parse(spec.get(f"{n}Probe"), spec, ip) for n in ("startup", "readiness", "liveness")
        )
        if startup is not None:
            if not await self._until_decided(spec, startup, env):
                return
            state.started = True
            state.ready = ready is None
            self._dirty.set()

        def set_ready(passed: bool) -> None:
            if state.ready != passed:
                state.ready = passed
                self._dirty.set()

        async with asyncio.TaskGroup() as tasks:
            if ready is not None:
                tasks.create_task(self._watch(spec, ready, env, set_ready))
            if live is not None:
                tasks.create_task(self._until_decided(spec, live, env, forever=True))

    async def _until_decided(self, spec: Object, what: probe.Probe, env: dict[str, str], forever: bool = False) -> bool:
        """Probe until it passes (or for ever); when it fails for good, end the container and return False."""
        verdict = probe.Verdict()
        await asyncio.sleep(what.initial_delay)
        while True:
            why = await self._ask(spec, what, env)
            verdict = probe.observe(verdict, not why, what)
            if verdict.passed is False:
                self._log(spec, f"lab: probe failed {what.failure_threshold} times, restarting: {why}\n")
                await self._terminate(spec["name"])
                return False
            if verdict.passed and not forever:
                return True
            await asyncio.sleep(what.period)

    async def _watch(self, spec: Object, what: probe.Probe, env: dict[str, str], tell: Callable[[bool], None]) -> None:
        verdict = probe.Verdict()
        await asyncio.sleep(what.initial_delay)
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            verdict = probe.observe(verdict, not await self._ask(spec, what, env), what)
            if verdict.passed is not None:
                tell(verdict.passed)
            # Until it has been ready once, a container that has just started is asked more often, so that nobody waits
            # a whole period for something that takes a moment.
            eager = verdict.passed is None or (not verdict.passed and loop.time() - began < what.period)
            await asyncio.sleep(min(0.25, what.period) if eager and loop.time() - began < 10 else what.period)

    async def _ask(self, spec: Object, what: probe.Probe, env: dict[str, str]) -> str:
        try:
            async with asyncio.timeout(what.timeout):
                if isinstance(what.action, probe.Exec):
                    return await self._ask_inside(spec, what.action, env)
                return await probe.ask(what.action)
        except TimeoutError:
            return f"no answer within {what.timeout:g} s"

    async def _ask_inside(self, spec: Object, action: probe.Exec, env: dict[str, str]) -> str:
        group = self.group / spec["name"]
        pid = container.init_pid(cgroup.processes(group))
        if pid is None:
            return "container is not running"
        process = await asyncio.create_subprocess_exec(
            *container.exec_argv(pid, self.pod, spec, action.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            env=env,
            preexec_fn=launch.entry(group),
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        return "" if code == 0 else f"{action.command[0]}: exit status {code}"

    # --- end --------------------------------------------------------------------------------------
    async def _terminate(self, name: str) -> None:
        """SIGTERM to the container's first process, SIGKILL to all of them after the grace period."""
        group = self.group / name
        pid = container.init_pid(cgroup.processes(group))
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        loop = asyncio.get_running_loop()
        end = loop.time() + self.pod["spec"].get("terminationGracePeriodSeconds", GRACE)
        while cgroup.populated(group) and loop.time() < end:  # noqa: ASYNC110 - cgroup.events sends no asyncio event
            await asyncio.sleep(0.02)
        cgroup.kill(group)

    async def _end(self) -> None:
        # Not to be cancelled half way: the pod's processes must be gone when its task is.
        async with asyncio.TaskGroup() as tasks:
            for name in self.specs:
                tasks.create_task(self._terminate(name))
        cgroup.kill(self.group)
        cgroup.remove(self.group)
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()
        shutil.rmtree(self.files, ignore_errors=True)

    # --- status -----------------------------------------------------------------------------------
    def status(self) -> Object:
        """The parts of the pod's status that its containers decide."""
        states = list(self.states.values())
        main = [state for state in states if not state.init]
        images = {name: spec.get("image", "") for name, spec in self.specs.items()}
        ready = str(all(state.ready for state in main))
        result: Object = {
            "phase": phase(states, self.policy),
            "conditions": [{"type": kind, "status": ready} for kind in ("Ready", "ContainersReady")],
            "containerStatuses": [state.entry(images[state.name]) for state in main],
        }
        first = [state.entry(images[state.name]) for state in states if state.init]
        return result | ({"initContainerStatuses": first} if first else {})

    async def _report(self) -> None:
        """Write the status whenever it changed."""
        written: Object = {}
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            status = self.status()
            if status != written:
                await asyncio.to_thread(
                    self.store.change, self.key, self.uid, lambda pod, s=status: pod | {"status": pod["status"] | s}
                )
                written = status
