"""A lab as an object: `up`, `apply`, `delete`, `exec`, `down`… The command line and the tests use this.

Everything that changes a lab holds its lock. What exists is found in the machine (namespaces, cgroups, files), never
remembered, so that any command works after a crash of any process of the lab.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from deploy.lab import agents, cgroup, container, fabric, launch, manifest, plan, slot
from deploy.lab.build import Builder, Say, machine, pod_cgroup, pod_netns
from deploy.lab.endpoints import is_ready
from deploy.lab.fabric import Machine
from deploy.lab.fault import LabError
from deploy.lab.file import replace
from deploy.lab.layout import NETNS, RUNTIME, Layout, check_lab_name
from deploy.lab.manifest import Key, Object, key_of
from deploy.lab.readiness import waiting_for, why_unready
from deploy.lab.store import Store
from mesh.resources import Invalid, check


class Lab:
    """One lab by name, whether it is up or not. `say` is told what is going on, for people."""

    def __init__(self, name: str = "lab", *, say: Say = lambda text: None) -> None:
        self.name = check_lab_name(name)
        self.say = say
        self.layout = Layout(name=name, slot=slot.find(name) or 0)
        self.store = Store(self.layout.cluster)

    # --- what there is ----------------------------------------------------------------------------
    @property
    def is_up(self) -> bool:
        return (self.layout.run / "lab.json").exists()

    @property
    def has_agents(self) -> bool:
        """Whether it was brought up with the mesh."""
        return bool(self._settings().get("agent"))

    def _settings(self) -> Object:
        try:
            return json.loads((self.layout.run / "lab.json").read_text())
        except FileNotFoundError:
            raise LabError(
                f"lab {self.name} is not up; gossamer lab up --name {self.name} -f FILE brings it up"
            ) from None

    def objects(self) -> dict[Key, Object]:
        self._settings()
        return self.store.load()

    def nodes(self) -> list[Machine]:
        """The nodes in the order of their addresses."""
        found = [machine(self.layout, item) for key, item in self.objects().items() if key.kind == "Node"]
        return sorted(found, key=lambda node: int(node.address4.rpartition(".")[2]))

    def node(self, name: str) -> Machine:
        found = {node.name: node for node in self.nodes()}
        if name not in found:
            raise LabError(f"lab {self.name} has no node {name!r}; it has {', '.join(found)}")
        return found[name]

    def pods(self, namespace: str | None = None) -> list[Object]:
        items = [item for key, item in sorted(self.objects().items()) if key.kind == "Pod"]
        return [item for item in items if namespace in (None, item["metadata"]["namespace"])]

    def pod(self, name: str, namespace: str = "default") -> Object:
        """A pod by name, or the first ready pod of `deploy/NAME`."""
        objects = self.objects()
        kind, _, rest = name.rpartition("/")
        if kind in ("deploy", "deployment"):
            deployment = Key("Deployment", namespace, rest)
            if deployment not in objects:
                raise LabError(f"there is no Deployment {namespace}/{rest}; gossamer lab status lists what there is")
            pods = plan.pods_of(objects, deployment)
            if not pods:
                raise LabError(f"Deployment {namespace}/{rest} has no pods (replicas: 0)")
            return next((pod for pod in pods if is_ready(pod)), pods[0])
        if kind not in ("", "pod"):
            raise LabError(f"{name!r}: give a pod's name, deploy/NAME, or node/NAME")
        found = objects.get(Key("Pod", namespace, rest))
        if found is None:
            others = sorted(key.name for key in objects if key.kind == "Pod" and key.namespace == namespace)
            raise LabError(f"there is no pod {namespace}/{rest}; in this namespace: {', '.join(others) or 'none'}")
        return found

    def netns(self, pod: Object) -> Path:
        """The file of a pod's network namespace (the node's, for a host-network pod)."""
        return pod_netns(self.layout, pod)

    @property
    def _builder(self) -> Builder:
        return Builder(layout=self.layout, store=self.store, say=self.say)

    # --- up, apply, delete ------------------------------------------------------------------------
    def up(self, texts: Mapping[str, str], *, agent: bool = True, timeout: float = 180.0) -> None:
        """Bring the lab up with the objects of these YAML texts (by file name) and wait until everything is ready.

        On a lab that is up: `apply`, and processes that are missing are started again. LabError if something does not
        get ready in `timeout` seconds (the lab stays up then), or if the input is bad (then nothing is made).
        """
        wanted = self._parse(texts)
        self._check_machine()
        with slot.locked(self.layout.lock):
            fresh = not self.is_up
            if not fresh and agent != self.has_agents:
                have, other = ("without", "") if agent else ("with", " --no-agent")
                raise LabError(f"lab {self.name} is up {have} agents; take it down first, then up{other}")
            if fresh and self._builder.leftovers():
                self.say("removing what a crash has left")
                self._builder.remove()
            try:
                self._up(wanted, agent)
            except BaseException:
                if fresh:
                    self._builder.remove()
                raise
        self.wait(timeout, agents_down=False)

    def _up(self, wanted: list[Object], agent: bool) -> None:
        self.layout = Layout(name=self.name, slot=slot.take(self.name))
        todo = self._plan(wanted)
        for directory in (self.layout.cluster, self.layout.logs, self.layout.control):
            directory.mkdir(parents=True, exist_ok=True)
        self.layout.run.chmod(0o700)  # credentials, keys and admin sockets are below it
        replace(self.layout.run / "lab.json", json.dumps({"slot": self.layout.slot, "agent": agent}))
        self._builder.realise(todo)
        if agent:
            self._builder.start_mesh(self.nodes())

    def apply(self, texts: Mapping[str, str], *, timeout: float = 120.0, wait: bool = True) -> list[Key]:
        """Bring objects into the running lab; the keys that changed. With `wait`, until everything is ready again."""
        wanted = self._parse(texts)
        with slot.locked(self.layout.lock):
            before = {node.name for node in self.nodes()}
            todo = self._plan(wanted)
            self._builder.realise(todo)
            fresh = [node for node in self.nodes() if node.name not in before]
            if fresh and self.has_agents:
                self._builder.start_mesh(fresh)
        if wait:
            self.wait(timeout)
        return [*todo.delete, *(key_of(item) for item in todo.put)]

    def delete(self, keys: Iterable[Key]) -> list[Key]:
        """Remove objects and what belongs to them, and wait until their pods are gone; the keys that were removed."""
        with slot.locked(self.layout.lock):
            todo = plan.plan_delete(self.objects(), keys)
            self._builder.realise(todo)
        return list(todo.delete)

    def label(self, key: Key, labels: Mapping[str, str | None]) -> None:
        """Set labels of an object, or remove those given as None; a running pod's processes are not touched.

        LabError if Kubernetes would not take a label: the controller would refuse the object from then on.
        """
        try:
            check.labels("metadata.labels", {name: value or "" for name, value in labels.items()})
        except Invalid as fault:
            raise LabError(f"{key}: {fault.path}: {fault.cause}; {fault.cure}") from None

        def change(item: Object) -> Object:
            kept = {k: v for k, v in (item["metadata"].get("labels") or {}).items() if k not in labels}
            added = {k: v for k, v in labels.items() if v is not None}
            return item | {"metadata": item["metadata"] | {"labels": kept | added}}

        with slot.locked(self.layout.lock):
            item = self.objects().get(key)
            if item is None or not self.store.change(key, item["metadata"]["uid"], change):
                raise LabError(f"there is no {key}")

    def parse(self, texts: Mapping[str, str]) -> list[Object]:
        """The objects of these YAML texts; LabError names what is wrong with them."""
        return self._parse(texts)

    def _parse(self, texts: Mapping[str, str]) -> list[Object]:
        found: dict[Key, tuple[str, Object]] = {}
        for file, text in texts.items():
            for item in manifest.parse(text, file):
                key = key_of(item)
                if key in found and key.kind != "Namespace":
                    raise LabError(
                        f"{file}: {key}: metadata.name: {found[key][0]} has one of that name too; rename one"
                    )
                found[key] = (file, item)
        if not found:
            raise LabError(f"{', '.join(texts)}: there is no object in it; each has apiVersion, kind and metadata")
        return [item for _, item in found.values()]

    def _plan(self, wanted: list[Object]) -> plan.Plan:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return plan.plan_apply(self.store.load(), wanted, layout=self.layout, now=now, rng=random.SystemRandom())

    def _check_machine(self) -> None:
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces and cgroups: run it as root (sudo)")
        needed = {"bwrap": "bubblewrap", "nft": "nftables", "bridge": "iproute2", "setpriv": "util-linux"}
        needed |= {"/usr/sbin/dnsmasq": "dnsmasq-base", "nsenter": "util-linux"}
        missing = sorted({package for program, package in needed.items() if shutil.which(program) is None})
        if missing:
            raise LabError(f"programs are missing; install them: apt-get install {' '.join(missing)}")
        if not Path("/proc/sys/net/ipv6").exists():
            raise LabError("this kernel runs without IPv6, which pods have; boot without ipv6.disable=1")

    # --- waiting ----------------------------------------------------------------------------------
    def wait(self, timeout: float = 120.0, *, agents_down: bool = True) -> None:
        """Until pods are ready, services and names in force and, with agents, enrolment is as the labels ask.

        `agents_down`: an agent may be missing (kill_agent), its pods' enrolment is then not waited for. LabError when
        the time (seconds) is over, or at once if a process is dead that nobody will start again.
        """
        end = time.monotonic() + timeout
        while reason := waiting_for(self.layout, self.objects(), mesh=self.has_agents, agents_down=agents_down):
            if time.monotonic() > end:
                raise LabError(f"after {timeout:g} s still waiting for {reason}")
            self.say(f"waiting for {reason}")
            time.sleep(0.05)

    # --- commands in it ---------------------------------------------------------------------------
    def exec_call(
        self, target: str, command: Sequence[str], *, namespace: str = "default", container_name: str | None = None
    ) -> tuple[list[str], dict[str, str], Callable[[], None]]:
        """(argv, environment, what the child does before exec) of a command in a pod, or in node/NAME."""
        if target.startswith("node/"):
            node = self.node(target.removeprefix("node/"))
            group = self.layout.node_cgroup(node.name) / "host"
            handle = os.open(NETNS / node.netns, os.O_RDONLY | os.O_CLOEXEC)
            return list(command), dict(os.environ), launch.entry(group, [handle])
        pod = self.pod(target, namespace)
        meta = pod["metadata"]
        specs = {spec["name"]: spec for spec in pod["spec"]["containers"]}
        name = container_name or next(iter(specs))
        if name not in specs:
            raise LabError(
                f"pod {meta['namespace']}/{meta['name']} has no container {name!r}; it has {', '.join(specs)}"
            )
        group = pod_cgroup(self.layout, pod) / name
        pid = container.init_pid(cgroup.processes(group))
        if pid is None:
            raise LabError(
                f"pod {meta['namespace']}/{meta['name']}: container {name} is not running: {why_unready(pod)}"
            )

        def config_map(wanted: str) -> Mapping[str, str]:
            return (self.store.get(Key("ConfigMap", meta["namespace"], wanted)) or {}).get("data") or {}

        env = container.environment(pod, specs[name], config_map)
        return container.exec_argv(pid, pod, specs[name], command), env, launch.entry(group)

    def exec(
        self,
        target: str,
        command: Sequence[str],
        *,
        namespace: str = "default",
        container_name: str | None = None,
        input: str | None = None,
        timeout: float = 60.0,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a pod (or `node/NAME`) and wait for it. With `check`, a failure raises with its output."""
        process = self.popen(
            target, command, namespace=namespace, container_name=container_name, pipe_input=input is not None
        )
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        if check and process.returncode:
            raise LabError(f"{target}: {' '.join(command)}: exit status {process.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(list(command), process.returncode, out, err)

    def popen(
        self,
        target: str,
        command: Sequence[str],
        *,
        namespace: str = "default",
        container_name: str | None = None,
        pipe_input: bool = False,
    ) -> subprocess.Popen[str]:
        """Start a command in a pod (or `node/NAME`); the caller waits for it. Output is text through pipes."""
        argv, env, entry = self.exec_call(target, command, namespace=namespace, container_name=container_name)
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if pipe_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            preexec_fn=entry,  # noqa: PLW1509 - it takes no lock
        )

    def logs(self, target: str, *, namespace: str = "default", container_name: str | None = None) -> Path:
        """The log file of a pod's container, of `node/NAME` (its agent), or of `controller`."""
        if target == "controller":
            return self.layout.logs / "controller.log"
        if target.startswith("node/"):
            return agents.agent_log(self.layout, self.node(target.removeprefix("node/")).name)
        pod = self.pod(target, namespace)
        names = [spec["name"] for spec in [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or [])]]
        name = container_name or names[0]
        if name not in names:
            raise LabError(
                f"pod {namespace}/{pod['metadata']['name']} has no container {name!r}; it has {', '.join(names)}"
            )
        return self.layout.container_log(namespace, pod["metadata"]["name"], name)

    # --- faults -----------------------------------------------------------------------------------
    def restart_agent(
        self, node: str, *, wait: bool = True, timeout: float = 60.0, arguments: Sequence[str] = ()
    ) -> None:
        """Start an agent that takes over from the one that runs, with more `arguments` than those every agent gets. The
        old one drains, then ends. Starts one where none runs. With `wait`, until it is ready and its pods are
        enrolled. LabError if it could not take over: the old one goes on."""
        agents.replace_agent(self.layout, self._mesh_node(node), arguments=arguments)
        if wait:
            self.wait(timeout)

    def stop_agent(self, node: str) -> None:
        """SIGTERM, and time to drain; it stays away until `restart_agent`."""
        self._mesh_node(node)
        agents.stop_agent(self.layout, node, kill=False)

    def kill_agent(self, node: str) -> None:
        """SIGKILL, also to one that was replaced and still drains; it stays away until `restart_agent`."""
        self._mesh_node(node)
        if not agents.stop_agent(self.layout, node, kill=True):
            raise LabError(f"the agent of {node} does not run; gossamer lab restart-agent {node} starts it")

    def _mesh_node(self, node: str) -> Machine:
        machine = self.node(node)
        if not self.has_agents:
            raise LabError(f"lab {self.name} was brought up with --no-agent; take it down and up without that option")
        return machine

    def restart_controller(self) -> None:
        """End the controller, if it runs, and start it; nodes come back to it by themselves."""
        self.kill_controller()
        agents.start_controller(self.layout, [node.name for node in self.nodes()])

    def kill_controller(self) -> None:
        """SIGKILL; it stays away until `restart_controller`."""
        cgroup.kill(self.layout.service_cgroup("controller"))

    def partition(self, node: str, *, healed: bool = False) -> None:
        """Cut a node off the fabric, or plug it in again."""
        fabric.partition(self.layout, self.node(node), healed)

    # --- down ----------------------------------------------------------------------------------------
    def down(self) -> bool:
        """Remove every trace; False if there was none. Works on whatever a crash has left."""
        with slot.locked(self.layout.lock):
            there = self._builder.leftovers()
            self._builder.remove()
            self.layout.lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            RUNTIME.rmdir()  # of the last lab
        return there
