"""Making the machine agree with the objects: nodes, pods and the lab's own processes; and removing all of it.

What exists is found in the machine (namespaces, cgroups, files), never remembered: a second run makes what is missing.
"""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.lab import agents, cgroup, clusterd, dns, fabric, launch, slot
from deploy.lab.fabric import Machine
from deploy.lab.fault import LabError
from deploy.lab.file import replace, tail
from deploy.lab.layout import NETNS, Layout
from deploy.lab.manifest import Key, Object, key_of
from deploy.lab.plan import Plan
from deploy.lab.pod import GRACE
from deploy.lab.store import Store

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Builds and removes one lab. The caller holds the lab's lock."""

    layout: Layout
    store: Store
    say: Say

    def realise(self, todo: Plan) -> None:
        """Make machine and files agree with the plan, and mend what is missing."""
        self._remove_pods([key for key in todo.delete if key.kind == "Pod"])
        for key in todo.delete:
            self.store.delete(key)
        for item in todo.put:
            self.store.put(item)
        self._make_fabric()
        self._make_nodes()
        self._start_services()
        self._make_pods()

    def _objects(self, kind: str) -> list[Object]:
        return [item for key, item in sorted(self.store.load().items()) if key.kind == kind]

    # --- machines ------------------------------------------------------------------------------------
    def _make_fabric(self) -> None:
        layout = self.layout
        if not fabric.made(layout, layout.fabric_netns):
            self.say("network fabric")
            fabric.make_fabric(layout)
        for machine, extra in ((self._control, ()), (self._dns, layout.cluster_dns)):
            if not fabric.made(layout, machine.netns):
                fabric.make_machine(layout, machine, extra)

    @property
    def _control(self) -> Machine:
        v4, v6 = self.layout.control_addresses
        return Machine(name="control", netns=self.layout.control_netns, address4=v4, address6=v6)

    @property
    def _dns(self) -> Machine:
        v4, v6 = self.layout.dns_addresses
        return Machine(name="dns", netns=self.layout.dns_netns, address4=v4, address6=v6)

    def _make_nodes(self) -> None:
        layout = self.layout
        nodes = [machine(layout, item) for item in self._objects("Node")]
        fresh = [node for node in nodes if not fabric.made(layout, node.netns)]
        for node in fresh:
            self.say(f"node {node.name}")
            for directory in (layout.pod_records(node.name), layout.pod_manifests(node.name)):
                directory.mkdir(parents=True, exist_ok=True)
            fabric.make_machine(layout, node)
        router = Machine(name="fabric", netns=layout.fabric_netns, address4="", address6="")
        for each in (*nodes, self._control, self._dns, router):
            fabric.set_routes(layout, each, nodes)
        for node in nodes:
            group = layout.node_cgroup(node.name)
            for child in ("agent", "kubelet", "host", "pods"):
                (group / child).mkdir(parents=True, exist_ok=True)
            if not cgroup.populated(group / "kubelet"):
                self._daemon("deploy.lab.kubelet", node.name, group=group / "kubelet", netns=NETNS / node.netns)

    # --- the lab's own processes ---------------------------------------------------------------------
    def _start_services(self) -> None:
        layout = self.layout
        if not cgroup.populated(layout.service_cgroup("dns")):
            hosts = layout.control / "hosts"
            replace(hosts, clusterd.names(layout, self.store.load()))
            argv = dns.dnsmasq_argv(hosts, layout.control / "dnsmasq.pid", layout.cluster_dns)
            log, netns = layout.logs / "dns.log", NETNS / layout.dns_netns
            launch.daemon(argv, cgroup=layout.service_cgroup("dns"), log=log, netns=netns)
        if not cgroup.populated(layout.service_cgroup("clusterd")):
            self._daemon("deploy.lab.clusterd", group=layout.service_cgroup("clusterd"))

    def _daemon(self, module: str, *arguments: str, group: Path, netns: Path | None = None) -> None:
        argv = [sys.executable, "-m", module, self.layout.name, str(self.layout.slot), *arguments]
        log = self.layout.logs / f"{'-'.join([module.rpartition('.')[2], *arguments])}.log"
        launch.daemon(argv, cgroup=group, log=log, netns=netns, env=agents.python_env())

    def start_mesh(self, nodes: list[Machine]) -> None:
        """The controller, and the agents of these nodes, where they do not run."""
        self.say("controller")
        agents.start_controller(self.layout, [item["metadata"]["name"] for item in self._objects("Node")])
        root = self.layout.control / "state" / "ca.crt"
        end = time.monotonic() + 30.0
        while not root.exists():
            if not cgroup.populated(self.layout.service_cgroup("controller")) or time.monotonic() > end:
                raise LabError(f"the controller does not start:\n{tail(self.layout.logs / 'controller.log')}")
            time.sleep(0.02)
        for node in nodes:
            self.say(f"agent of {node.name}")
            agents.start_agent(self.layout, node)

    # --- pods ----------------------------------------------------------------------------------------
    def _make_pods(self) -> None:
        nodes = {item["metadata"]["name"]: machine(self.layout, item) for item in self._objects("Node")}
        missing = [pod for pod in self._objects("Pod") if not self._manifest(pod).exists()]
        for number, pod in enumerate(missing, 1):
            meta, node = pod["metadata"], nodes[pod["spec"]["nodeName"]]
            self.say(f"pod {number}/{len(missing)}: {meta['namespace']}/{meta['name']} on {node.name}")
            if not pod["spec"].get("hostNetwork"):
                fabric.remove_pod(self.layout, meta["namespace"], meta["name"], node)  # of an attempt that crashed
                first, second = (entry["ip"] for entry in pod["status"]["podIPs"])
                fabric.make_pod(self.layout, meta["namespace"], meta["name"], node, (first, second))
            netns = str(pod_netns(self.layout, pod))
            record = {"instance": meta["uid"], "namespace": meta["namespace"], "name": meta["name"], "netns": netns}
            replace(self.layout.pod_records(node.name) / f"{meta['uid']}.json", json.dumps(record))
            replace(self._manifest(pod), json.dumps({"pod": pod, "netns": netns}))

    def _manifest(self, pod: Object) -> Path:
        return self.layout.pod_manifests(pod["spec"]["nodeName"]) / f"{pod['metadata']['uid']}.json"

    def _remove_pods(self, keys: list[Key]) -> None:
        """As Kubernetes does it: out of the services, then TERM, then gone; then the addresses are free."""
        objects = self.store.load()
        pods = [objects[key] for key in keys if key in objects]
        if not pods:
            return
        self.say(f"ending {len(pods)} pod{'s' * (len(pods) > 1)}")
        stamp = {"deletionTimestamp": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        for pod in pods:
            uid = pod["metadata"]["uid"]
            self.store.change(key_of(pod), uid, lambda item: item | {"metadata": item["metadata"] | stamp})
            self._manifest(pod).unlink(missing_ok=True)
        grace = max(pod["spec"].get("terminationGracePeriodSeconds", GRACE) for pod in pods)
        end, left = time.monotonic() + grace + 5.0, pods
        while left and time.monotonic() < end:
            left = [pod for pod in left if pod_cgroup(self.layout, pod).exists() and self._kubelet_runs(pod)]
            time.sleep(0.02 if left else 0)
        for pod in pods:
            self._remove_pod(pod)

    def _remove_pod(self, pod: Object) -> None:
        meta, group = pod["metadata"], pod_cgroup(self.layout, pod)
        node = machine(self.layout, self.store.load()[Key("Node", "", pod["spec"]["nodeName"])])
        cgroup.kill(group)
        cgroup.remove(group)
        (self.layout.pod_records(node.name) / f"{meta['uid']}.json").unlink(missing_ok=True)
        if not pod["spec"].get("hostNetwork"):
            fabric.remove_pod(self.layout, meta["namespace"], meta["name"], node)
        for log in self.layout.logs.glob(f"{meta['namespace']}_{meta['name']}_*.log"):
            log.unlink(missing_ok=True)

    def _kubelet_runs(self, pod: Object) -> bool:
        return cgroup.populated(self.layout.node_cgroup(pod["spec"]["nodeName"]) / "kubelet")

    # --- the end -------------------------------------------------------------------------------------
    def leftovers(self) -> bool:
        """Whether anything of this lab is in the machine."""
        return self.layout.run.exists() or self.layout.cgroup.exists() or bool(fabric.leftovers(self.layout))

    def remove(self) -> None:
        """Remove every trace but the lock, whatever state it is in."""
        layout = self.layout
        cgroup.kill(layout.cgroup)
        agents.unmount_below(layout.run)
        for name in fabric.leftovers(layout):
            fabric.remove(name)
        cgroup.remove(layout.cgroup)
        shutil.rmtree(layout.run, ignore_errors=True)
        slot.give_back(layout.name)


def machine(layout: Layout, node: Object) -> Machine:
    """A Node object as what the fabric knows of it."""
    name = node["metadata"]["name"]
    v4, v6 = (entry["address"] for entry in node["status"]["addresses"] if entry["type"] == "InternalIP")
    pods4, pods6 = node["spec"]["podCIDRs"]
    return Machine(name=name, netns=layout.node_netns(name), address4=v4, address6=v6, pods4=pods4, pods6=pods6)


def pod_netns(layout: Layout, pod: Object) -> Path:
    """The file of a pod's network namespace (the node's, for a host-network pod)."""
    if pod["spec"].get("hostNetwork"):
        return NETNS / layout.node_netns(pod["spec"]["nodeName"])
    return NETNS / layout.pod_netns(pod["metadata"]["namespace"], pod["metadata"]["name"])


def pod_cgroup(layout: Layout, pod: Object) -> Path:
    meta = pod["metadata"]
    return layout.pod_cgroup(pod["spec"]["nodeName"], meta["namespace"], meta["name"], meta["uid"])
