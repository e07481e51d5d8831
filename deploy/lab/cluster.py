"""A lab as an object: `up`, `apply`, `delete`, `exec`, `down`… The command line and the tests use this.

Everything that changes a lab holds its lock. What exists is found in the machine (namespaces, cgroups, files), never
remembered, so that any command works after a crash of any process of the lab.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from deploy.lab import agents, cgroup, clusterd, container, dns, fabric, launch, manifest, plan, slot
from deploy.lab.endpoints import is_alive, is_ready
from deploy.lab.fabric import Machine
from deploy.lab.fault import LabError
from deploy.lab.layout import NETNS, RUNTIME, Layout, check_lab_name
from deploy.lab.manifest import Key, Object, key_of
from deploy.lab.store import Store

Say = Callable[[str], None]


class Lab:
    """One lab by name, whether it is up or not. `say` is told what is going on, for people."""

    def __init__(self, name: str = "lab", *, say: Say = lambda text: None) -> None:
        self.name = check_lab_name(name)
        self.say = say
        self.layout = Layout(name=name, slot=slot.find(name) or 0)
        self.store = Store(self.layout.cluster)

    # --- what there is ---------------------------------------------------------------------------------------------------
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
        found = [_machine(self.layout, item) for key, item in self.objects().items() if key.kind == "Node"]
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
            others = [key.name for key in objects if key.kind == "Pod" and key.namespace == namespace]
            raise LabError(f"there is no pod {namespace}/{rest}; in this namespace: {', '.join(others) or 'none'}")
        return found

    def netns(self, pod: Object) -> Path:
        """The file of a pod's network namespace (the node's, for a host-network pod)."""
        if pod["spec"].get("hostNetwork"):
            return NETNS / self.layout.node_netns(pod["spec"]["nodeName"])
        return NETNS / self.layout.pod_netns(pod["metadata"]["namespace"], pod["metadata"]["name"])

    # --- up, apply, delete -----------------------------------------------------------------------------------------------
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
                raise LabError(
                    f"lab {self.name} is up {have} agents; gossamer lab down --name {self.name}, then up{other}"
                )
            if fresh and (fabric.leftovers(self.layout) or self.layout.cgroup.exists()):
                self.say("removing what a crash has left")
                self._remove()
            try:
                self._up(wanted, agent)
            except BaseException:
                if fresh:
                    self._remove()
                raise
        self.wait(timeout)

    def _up(self, wanted: list[Object], agent: bool) -> None:
        self.layout = Layout(name=self.name, slot=slot.take(self.name))
        layout = self.layout
        for directory in (layout.cluster, layout.logs, layout.control):
            directory.mkdir(parents=True, exist_ok=True)
        todo = self._plan(wanted)
        _write(layout.run / "lab.json", json.dumps({"slot": layout.slot, "agent": agent}))
        self._make_fabric()
        self._realise(todo)
        if agent:
            self._start_mesh(self.nodes())

    def apply(self, texts: Mapping[str, str], *, timeout: float = 120.0, wait: bool = True) -> list[Key]:
        """Bring objects into the running lab; the keys that changed. With `wait`, until everything is ready again."""
        wanted = self._parse(texts)
        with slot.locked(self.layout.lock):
            before = {node.name for node in self.nodes()}
            todo = self._plan(wanted)
            self._realise(todo)
            fresh = [node for node in self.nodes() if node.name not in before]
            if fresh and self.has_agents:
                self._start_mesh(fresh)
        if wait:
            self.wait(timeout)
        return [*todo.delete, *(key_of(item) for item in todo.put)]

    def delete(self, keys: Iterable[Key]) -> list[Key]:
        """Remove objects and what belongs to them, and wait until their pods are gone; the keys that were removed."""
        with slot.locked(self.layout.lock):
            todo = plan.plan_delete(self.objects(), keys)
            self._realise(todo)
        return list(todo.delete)

    def label(self, key: Key, labels: Mapping[str, str | None]) -> None:
        """Set labels of an object, or remove those given as None; a running pod's processes are not touched."""

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

    # --- making what the objects say -------------------------------------------------------------------------------------
    def _make_fabric(self) -> None:
        layout = self.layout
        if not fabric.exists(layout.fabric_netns):
            self.say("network fabric")
            fabric.make_fabric(layout)
        for machine, extra in ((self._control, ()), (self._dns, layout.cluster_dns)):
            if not fabric.exists(machine.netns):
                fabric.make_machine(layout, machine, extra)

    @property
    def _control(self) -> Machine:
        v4, v6 = self.layout.control_addresses
        return Machine(name="control", netns=self.layout.control_netns, address4=v4, address6=v6)

    @property
    def _dns(self) -> Machine:
        v4, v6 = self.layout.dns_addresses
        return Machine(name="dns", netns=self.layout.dns_netns, address4=v4, address6=v6)

    def _realise(self, todo: plan.Plan) -> None:
        """Make machine and files agree with the plan, and mend what is missing."""
        self._remove_pods([key for key in todo.delete if key.kind == "Pod"])
        for key in todo.delete:
            self.store.delete(key)
        for item in todo.put:
            self.store.put(item)
        self._make_nodes()
        self._start_services()
        self._make_pods()

    def _make_nodes(self) -> None:
        layout, nodes = self.layout, self.nodes()
        fresh = [node for node in nodes if not fabric.exists(node.netns)]
        for node in fresh:
            self.say(f"node {node.name}")
            for directory in (layout.pod_records(node.name), layout.pod_manifests(node.name)):
                directory.mkdir(parents=True, exist_ok=True)
            layout.node_dir(node.name).chmod(0o700)
            fabric.make_machine(layout, node)
        if fresh:
            router = Machine(name="fabric", netns=layout.fabric_netns, address4="", address6="")
            for machine in (*nodes, self._control, self._dns, router):
                fabric.set_routes(layout, machine, nodes)
        for node in nodes:
            group = layout.node_cgroup(node.name)
            for child in ("agent", "kubelet", "host", "pods"):
                (group / child).mkdir(parents=True, exist_ok=True)
            if not cgroup.populated(group / "kubelet"):
                self._daemon("deploy.lab.kubelet", node.name, cgroup=group / "kubelet", netns=NETNS / node.netns)

    def _start_services(self) -> None:
        layout = self.layout
        if not cgroup.populated(layout.service_cgroup("dns")):
            hosts = layout.control / "hosts"
            _write(hosts, clusterd.names(layout, self.objects()))
            argv = dns.dnsmasq_argv(hosts, layout.control / "dnsmasq.pid", layout.cluster_dns)
            launch.daemon(
                argv, cgroup=layout.service_cgroup("dns"), log=layout.logs / "dns.log", netns=NETNS / layout.dns_netns
            )
        if not cgroup.populated(layout.service_cgroup("clusterd")):
            self._daemon("deploy.lab.clusterd", cgroup=layout.service_cgroup("clusterd"))

    def _daemon(self, module: str, *arguments: str, cgroup: Path, netns: Path | None = None) -> None:
        argv = [sys.executable, "-m", module, self.name, str(self.layout.slot), *arguments]
        log = self.layout.logs / f"{'-'.join([module.rpartition('.')[2], *arguments])}.log"
        launch.daemon(argv, cgroup=cgroup, log=log, netns=netns, env=agents.python_env())

    def _make_pods(self) -> None:
        nodes = {node.name: node for node in self.nodes()}
        missing = [pod for pod in self.pods() if not self._manifest(pod).exists()]
        for number, pod in enumerate(missing, 1):
            meta, node = pod["metadata"], nodes[pod["spec"]["nodeName"]]
            self.say(f"pod {number}/{len(missing)}: {meta['namespace']}/{meta['name']} on {node.name}")
            if not pod["spec"].get("hostNetwork"):
                fabric.remove(self.layout.pod_netns(meta["namespace"], meta["name"]))  # of an attempt that crashed
                addresses = tuple(entry["ip"] for entry in pod["status"]["podIPs"])
                fabric.make_pod(self.layout, meta["namespace"], meta["name"], node, (addresses[0], addresses[1]))
            netns = str(self.netns(pod))
            record = {"instance": meta["uid"], "namespace": meta["namespace"], "name": meta["name"], "netns": netns}
            _write(self.layout.pod_records(node.name) / f"{meta['uid']}.json", json.dumps(record))
            _write(self._manifest(pod), json.dumps({"pod": pod, "netns": netns}))

    def _manifest(self, pod: Object) -> Path:
        return self.layout.pod_manifests(pod["spec"]["nodeName"]) / f"{pod['metadata']['uid']}.json"

    def _pod_cgroup(self, pod: Object) -> Path:
        meta = pod["metadata"]
        return self.layout.pod_cgroup(pod["spec"]["nodeName"], meta["namespace"], meta["name"], meta["uid"])

    def _remove_pods(self, keys: list[Key]) -> None:
        """As Kubernetes does it: out of the services, then TERM, then gone; addresses are free when nothing uses them."""
        objects = self.objects()
        pods = [objects[key] for key in keys if key in objects]
        if not pods:
            return
        self.say(f"ending {len(pods)} pod{'s' * (len(pods) > 1)}")
        stamp = {"deletionTimestamp": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        for pod in pods:
            self.store.change(
                key_of(pod), pod["metadata"]["uid"], lambda item: item | {"metadata": item["metadata"] | stamp}
            )
            self._manifest(pod).unlink(missing_ok=True)
        grace = max(pod["spec"].get("terminationGracePeriodSeconds", 2.0) for pod in pods)
        end = time.monotonic() + grace + 5.0
        while time.monotonic() < end and any(
            self._pod_cgroup(pod).exists() and self._kubelet_runs(pod) for pod in pods
        ):
            time.sleep(0.02)
        for pod in pods:
            meta, node = pod["metadata"], pod["spec"]["nodeName"]
            cgroup.kill(self._pod_cgroup(pod))
            cgroup.remove(self._pod_cgroup(pod))
            (self.layout.pod_records(node) / f"{meta['uid']}.json").unlink(missing_ok=True)
            if not pod["spec"].get("hostNetwork"):
                fabric.remove(self.layout.pod_netns(meta["namespace"], meta["name"]))

    def _kubelet_runs(self, pod: Object) -> bool:
        return cgroup.populated(self.layout.node_cgroup(pod["spec"]["nodeName"]) / "kubelet")

    def _start_mesh(self, nodes: list[Machine]) -> None:
        self.say("controller")
        agents.start_controller(self.layout, [node.name for node in self.nodes()])
        root = self.layout.control / "state" / "ca.crt"
        end = time.monotonic() + 30.0
        while not root.exists():
            if not cgroup.populated(self.layout.service_cgroup("controller")) or time.monotonic() > end:
                raise LabError(f"the controller does not start:\n{_tail(self.layout.logs / 'controller.log')}")
            time.sleep(0.02)
        for node in nodes:
            self.say(f"agent of {node.name}")
            agents.start_agent(self.layout, node)

    # --- waiting ---------------------------------------------------------------------------------------------------------
    def wait(self, timeout: float = 120.0) -> None:
        """Until all pods are ready, services and names are in force and, with agents, enrolment is as the labels ask."""
        end = time.monotonic() + timeout
        while True:
            reason = self.waiting_for()
            if not reason:
                return
            if time.monotonic() > end:
                raise LabError(f"after {timeout:g} s still waiting for {reason}")
            self.say(f"waiting for {reason}")
            time.sleep(0.05)

    def waiting_for(self) -> str:
        """What is not ready yet, in words; empty if everything is."""
        objects = self.objects()
        pods = [item for key, item in sorted(objects.items()) if key.kind == "Pod"]
        unready = [pod for pod in pods if not is_ready(pod) and pod["status"]["phase"] not in ("Succeeded", "Failed")]
        if unready:
            return f"{len(unready)} of {len(pods)} pods: {_first(_why_unready(pod) for pod in unready)}"
        nodes = [key.name for key in objects if key.kind == "Node"]
        applied = clusterd.digest(clusterd.table(self.layout, objects), clusterd.names(self.layout, objects), nodes)
        path = self.layout.control / "applied"
        if not path.exists() or path.read_text() != applied:
            return "service addresses and names"
        return self._mesh_waits_for(objects, nodes) if self.has_agents else ""

    def _mesh_waits_for(self, objects: dict[Key, Object], nodes: Sequence[str]) -> str:
        enrolled: dict[str, bool] = {}
        for node in nodes:
            if not cgroup.populated(self.layout.node_cgroup(node) / "agent"):
                return f"agent of {node}, which is not running:\n{_tail(agents.agent_log(self.layout, node))}"
            answer = agents.ask_socket(agents.admin_socket(self.layout, node), "/status")
            if answer is None or not answer.get("ready"):
                pending = ", ".join((answer or {}).get("pending") or [])
                return f"agent of {node}{': ' + pending if pending else ''}"
            enrolled |= {pod["instance"]: pod["state"] == "enabled" for pod in answer["pods"]}
        wrong = [
            key
            for key, pod in objects.items()
            if key.kind == "Pod"
            and is_alive(pod)
            and wants_mesh(pod, objects) != enrolled.get(pod["metadata"]["uid"], False)
        ]
        return f"enrolment of {len(wrong)} pods: {_first(str(key) for key in wrong)}" if wrong else ""

    # --- commands in it --------------------------------------------------------------------------------------------------
    def exec_call(
        self, target: str, command: Sequence[str], *, namespace: str = "default", container_name: str | None = None
    ) -> tuple[list[str], dict[str, str], Callable[[], None]]:
        """(argv, environment, what the child does before exec) of a command in a pod, or in node/NAME beside its pods."""
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
        group = self._pod_cgroup(pod) / name
        pid = container.init_pid(cgroup.processes(group))
        if pid is None:
            raise LabError(
                f"pod {meta['namespace']}/{meta['name']}: container {name} is not running: {_why_unready(pod)}"
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
            preexec_fn=entry,
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

    # --- faults ----------------------------------------------------------------------------------------------------------
    def restart_agent(self, node: str) -> None:
        """SIGTERM, wait for it to drain, start it again. Starts one that does not run."""
        machine = self._mesh_node(node)
        agents.stop_agent(self.layout, node, kill=False)
        agents.start_agent(self.layout, machine)

    def kill_agent(self, node: str) -> None:
        """SIGKILL; it stays away until `restart_agent`."""
        self._mesh_node(node)
        if not agents.stop_agent(self.layout, node, kill=True):
            raise LabError(f"the agent of {node} does not run; gossamer lab restart-agent {node} starts it")

    def _mesh_node(self, node: str) -> Machine:
        machine = self.node(node)
        if not self.has_agents:
            raise LabError(f"lab {self.name} was brought up with --no-agent; take it down and up without that option")
        return machine

    def restart_controller(self) -> None:
        self.kill_controller()
        agents.start_controller(self.layout, [node.name for node in self.nodes()])

    def kill_controller(self) -> None:
        cgroup.kill(self.layout.service_cgroup("controller"))

    def partition(self, node: str, *, healed: bool = False) -> None:
        """Cut a node off the fabric, or plug it in again."""
        fabric.partition(self.layout, self.node(node), healed)

    # --- down ------------------------------------------------------------------------------------------------------------
    def down(self) -> bool:
        """Remove every trace; False if there was none. Works on whatever a crash has left."""
        with slot.locked(self.layout.lock):
            there = self.layout.run.exists() or self.layout.cgroup.exists() or bool(fabric.leftovers(self.layout))
            self._remove()
            self.layout.lock.unlink(missing_ok=True)
        try:
            RUNTIME.rmdir()  # of the last lab
        except OSError:
            pass
        return there

    def _remove(self) -> None:
        layout = self.layout
        cgroup.kill(layout.cgroup)
        agents.unmount_below(layout.run)
        for name in fabric.leftovers(layout):
            fabric.remove(name)
        cgroup.remove(layout.cgroup)
        shutil.rmtree(layout.run, ignore_errors=True)
        slot.give_back(layout.name)


def wants_mesh(pod: Object, objects: Mapping[Key, Object]) -> bool:
    """Whether the labels ask for enrolment (Istio's rule: the pod's label wins over its namespace's)."""
    label = "istio.io/dataplane-mode"
    meta = pod["metadata"]
    own = (meta.get("labels") or {}).get(label)
    namespace = objects.get(Key("Namespace", "", meta["namespace"]), {}).get("metadata", {})
    inherited = (namespace.get("labels") or {}).get(label)
    return not pod["spec"].get("hostNetwork") and (own or inherited) == "ambient"


def _machine(layout: Layout, node: Object) -> Machine:
    name = node["metadata"]["name"]
    v4, v6 = (entry["address"] for entry in node["status"]["addresses"] if entry["type"] == "InternalIP")
    pods4, pods6 = node["spec"]["podCIDRs"]
    return Machine(name=name, netns=layout.node_netns(name), address4=v4, address6=v6, pods4=pods4, pods6=pods6)


def _why_unready(pod: Object) -> str:
    meta = pod["metadata"]
    name = f"{meta['namespace']}/{meta['name']}"
    states = [*(pod["status"].get("initContainerStatuses") or []), *(pod["status"].get("containerStatuses") or [])]
    for status in states:
        for kind, detail in status["state"].items():
            reason = detail.get("message") or detail.get("reason")
            if kind != "running" and reason:
                return f"{name} (container {status['name']}: {reason})"
    return f"{name} (not ready)" if states else f"{name} (not started)"


def _first(texts: Iterable[str]) -> str:
    found = list(texts)
    return ", ".join(found[:3]) + (f", and {len(found) - 3} more" if len(found) > 3 else "")


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def _write(path: Path, text: str) -> None:
    """Complete and valid at any time: written beside, then renamed."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.rename(path)
