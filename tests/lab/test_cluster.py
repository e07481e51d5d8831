"""The lab itself, without the mesh: pods, services, names, probes, isolation, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.lab import cgroup, fabric, slot
from deploy.lab.cluster import Lab
from deploy.lab.fault import LabError
from deploy.lab.layout import NETNS
from deploy.lab.manifest import Key, Object

SERVER = "[/usr/bin/python3, -S, -E, /srv-test/server.py]"

CLUSTER = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: other}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: server}}
data:
  server.py: |
    import http.server, os, socket, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self):
            down = os.path.exists("/tmp/down")
            body = f"{{os.environ['POD']}} {{self.client_address[0]}}".encode()
            self.send_response(503 if down else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *values): pass
    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6
    print("serving", flush=True)
    Server(("::", 8080), Handler).serve_forever()
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      volumes: [{{name: code, configMap: {{name: server}}}}]
      containers:
        - name: web
          command: {SERVER}
          env: [{{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
          volumeMounts: [{{name: code, mountPath: /srv-test}}]
          ports: [{{name: http, containerPort: 8080}}]
          readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1, failureThreshold: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: http}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web-headless}}
spec:
  clusterIP: None
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web}}
  ports: [{{port: 8080}}]
---
apiVersion: v1
kind: Service
metadata: {{name: nobody}}
spec: {{selector: {{app: nobody}}, ports: [{{port: 80}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: c1}}
spec:
  nodeName: n1
  containers: [{{name: main, command: [sleep, infinity]}}, {{name: side, command: [sleep, infinity]}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: c2, namespace: other}}
spec:
  nodeName: n2
  securityContext: {{runAsUser: 1234, runAsGroup: 1234}}
  containers:
    - name: main
      command: [sleep, infinity]
      workingDir: /tmp
      securityContext: {{capabilities: {{drop: [ALL], add: [NET_BIND_SERVICE]}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: onhost}}
spec:
  nodeName: n2
  hostNetwork: true
  containers: [{{name: main, command: [sleep, infinity]}}]
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(CLUSTER, agent=False)


def until(what: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def get(lab: Lab, url: str, *options: str, pod: str = "c1", namespace: str = "default") -> str:
    """A URL's body, read by a pod."""
    return lab.exec(pod, ["curl", "-sS", "-m", "5", *options, url], namespace=namespace, check=True).stdout


def web_pods(lab: Lab) -> list[Object]:
    return [pod for pod in lab.pods("default") if pod["metadata"].get("labels", {}).get("app") == "web"]


def test_deployment_pods_are_spread_over_the_nodes_and_ready(lab: Lab) -> None:
    pods = web_pods(lab)
    assert {pod["spec"]["nodeName"] for pod in pods} == {"n1", "n2"}
    for pod in pods:
        assert {"type": "Ready", "status": "True"} in pod["status"]["conditions"]
        assert pod["status"]["phase"] == "Running"
        assert pod["metadata"]["name"].startswith("web-")
        assert pod["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet"


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize(("pod", "namespace"), [("c1", "default"), ("c2", "other"), ("onhost", "default")])
def test_service_reaches_every_ready_pod(lab: Lab, family: str, pod: str, namespace: str) -> None:
    service = lab.objects()[Key("Service", "default", "web")]
    ip = service["spec"]["clusterIPs"][0 if family == "-4" else 1]
    url = f"http://[{ip}]/" if family == "-6" else f"http://{ip}/"
    command = f"for i in $(seq 24); do curl -sS -m 5 '{url}' || exit 1; echo; done"
    answers = lab.exec(pod, ["sh", "-c", command], namespace=namespace, check=True).stdout.split("\n")
    assert {line.split()[0] for line in answers if line} == {pod["metadata"]["name"] for pod in web_pods(lab)}


@pytest.mark.parametrize("family", [0, 1])
def test_pods_see_each_other_s_own_addresses(lab: Lab, family: int) -> None:
    client = lab.pod("c1")["status"]["podIPs"][family]["ip"]
    for pod in web_pods(lab):
        ip = pod["status"]["podIPs"][family]["ip"]
        name, seen = get(lab, f"http://[{ip}]:8080/" if family else f"http://{ip}:8080/").split()
        assert (name, seen.removeprefix("::ffff:")) == (pod["metadata"]["name"], client)


def test_a_pod_reaches_itself_through_its_own_service(lab: Lab) -> None:
    name = web_pods(lab)[0]["metadata"]["name"]
    command = "for i in $(seq 16); do curl -sS -m 2 http://web/ || exit 1; echo; done"
    answers = lab.exec(name, ["sh", "-c", command], check=True).stdout
    assert name in answers


def test_a_service_without_endpoints_refuses_at_once(lab: Lab) -> None:
    began = time.monotonic()
    done = lab.exec("c1", ["curl", "-sS", "-m", "5", "http://nobody/"])
    assert done.returncode == 7, done.stderr  # could not connect
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("name", ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"])
def test_names_of_services(lab: Lab, name: str) -> None:
    found = lab.exec("c1", ["getent", "ahosts", name], check=True).stdout
    assert {line.split()[0] for line in found.splitlines()} == set(
        lab.objects()[Key("Service", "default", "web")]["spec"]["clusterIPs"]
    )


def test_names_from_another_namespace(lab: Lab) -> None:
    assert lab.exec("c2", ["getent", "hosts", "web"], namespace="other").returncode == 2
    assert lab.exec("c2", ["getent", "hosts", "web.default"], namespace="other").returncode == 0
    assert lab.exec("c2", ["getent", "hosts", "example.com"], namespace="other").returncode == 2


def test_headless_name_gives_the_pods(lab: Lab) -> None:
    found = lab.exec("c1", ["getent", "ahosts", "web-headless"], check=True).stdout
    wanted = {entry["ip"] for pod in web_pods(lab) for entry in pod["status"]["podIPs"]}
    assert {line.split()[0] for line in found.splitlines()} == wanted


def test_resolv_conf_and_hostname(lab: Lab) -> None:
    out = lab.exec(
        "c2", ["sh", "-c", "cat /etc/resolv.conf; hostname; pwd; id -u"], namespace="other", check=True
    ).stdout
    assert out.splitlines() == [
        "search other.svc.cluster.local svc.cluster.local cluster.local",
        f"nameserver {lab.layout.cluster_dns[0]}",
        "options ndots:5",
        "c2",
        "/tmp",
        "1234",
    ]


def test_readiness_takes_a_pod_out_of_service_and_back(lab: Lab) -> None:
    first, second = (pod["metadata"]["name"] for pod in web_pods(lab))
    lab.exec(first, ["touch", "/tmp/down"], check=True)
    until(lambda: not _is_ready(lab, first) and not lab_waits_for_names(lab))
    command = "for i in $(seq 12); do curl -sS -m 5 http://web/ || exit 1; echo; done"
    assert set(lab.exec("c1", ["sh", "-c", command], check=True).stdout.split()[::2]) == {second}
    lab.exec(first, ["rm", "/tmp/down"], check=True)
    lab.wait(20)


def lab_waits_for_names(lab: Lab) -> bool:
    return len(lab.exec("c1", ["getent", "ahostsv4", "web-headless"], check=True).stdout.splitlines()) > 3


def _is_ready(lab: Lab, name: str) -> bool:
    return {"type": "Ready", "status": "True"} in lab.pod(name)["status"]["conditions"]


def test_exec_passes_input_output_and_status(lab: Lab) -> None:
    done = lab.exec("c1", ["sh", "-c", "cat; echo problem >&2; exit 42"], input="some text")
    assert (done.stdout, done.stderr, done.returncode) == ("some text", "problem\n", 42)
    with pytest.raises(LabError, match="has no container 'third'; it has main, side"):
        lab.exec("c1", ["true"], container_name="third")
    with pytest.raises(LabError, match="there is no pod default/nothing"):
        lab.exec("nothing", ["true"])


def test_exec_in_the_command_line(lab: Lab) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "deploy.cli", "lab", "exec", "--name", lab.name, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)

    done = run("-n", "other", "c2", "--", "sh", "-c", "echo $HOSTNAME; exit 3")
    assert (done.stdout, done.returncode) == ("c2\n", 3)
    done = run("deploy/web", "--", "hostname")
    assert done.stdout.startswith("web-") and done.returncode == 0
    done = run("deploy/webb", "--", "hostname")
    assert done.returncode == 125 and "there is no Deployment default/webb" in done.stderr


def test_containers_of_a_pod_share_network_hostname_and_ipc_only(lab: Lab) -> None:
    command = [
        "sh",
        "-c",
        "readlink /proc/self/ns/net /proc/self/ns/uts /proc/self/ns/ipc /proc/self/ns/pid /proc/self/ns/mnt",
    ]
    main = lab.exec("c1", command, container_name="main", check=True).stdout.split()
    side = lab.exec("c1", command, container_name="side", check=True).stdout.split()
    mine = [str(Path("/proc/self/ns", kind).readlink()) for kind in ("net", "uts", "ipc", "pid", "mnt")]
    assert main[:3] == side[:3]
    assert not set(main[3:]) & set(side[3:])
    assert not set(main) & set(mine)
    theirs = lab.exec("c1", ["readlink", "/proc/self/ns/cgroup"], check=True).stdout.strip()
    assert str(Path("/proc/self/ns/cgroup").readlink()) != theirs


def test_host_network_pod_is_in_the_node_s_namespace(lab: Lab) -> None:
    pod = lab.pod("onhost")
    assert pod["status"]["podIP"] == lab.node("n2").address4
    inside = lab.exec("onhost", ["readlink", "/proc/self/ns/net"], check=True).stdout.strip()
    assert inside == lab.exec("node/n2", ["readlink", "/proc/self/ns/net"], check=True).stdout.strip()


def test_default_capabilities_are_kubernetes(lab: Lab) -> None:
    def capabilities(pod: str, namespace: str, path: str) -> dict[str, int]:
        text = lab.exec(pod, ["grep", "^Cap", path], namespace=namespace, check=True).stdout
        return {line.split()[0]: int(line.split()[1], 16) for line in text.splitlines()}

    default = {"CapInh:": 0, "CapPrm:": 0xA80425FB, "CapEff:": 0xA80425FB, "CapBnd:": 0xA80425FB, "CapAmb:": 0}
    assert capabilities("c1", "default", "/proc/1/status") == default  # the container's own process
    assert capabilities("c1", "default", "/proc/self/status") == default  # and a command in it
    restricted = {"CapInh:": 0, "CapPrm:": 0, "CapEff:": 0, "CapBnd:": 1 << 10, "CapAmb:": 0}
    assert capabilities("c2", "other", "/proc/1/status") == restricted
    assert capabilities("c2", "other", "/proc/self/status") == restricted


def test_the_machine_s_secrets_are_not_visible(lab: Lab) -> None:
    """Neither keys, agents' sockets and pins below /run, nor other processes, nor the cgroup and bpf filesystems."""
    script = r"""
    ls -A /run | grep -v '^$' && echo "things in /run"
    ls /sys/fs/cgroup /sys/fs/bpf /sys/kernel 2>/dev/null && echo "kernel filesystems"
    grep -E ' (cgroup2?|bpf|debugfs|tracefs|securityfs) ' /proc/mounts && echo "mounts"
    mkdir /sys/x 2>/dev/null && echo "/sys is writable"
    touch /usr/x /etc/x /x 2>/dev/null && echo "the host's files are writable"
    [ "$(ls -d /proc/[0-9]* | wc -l)" -lt 12 ] || echo "other processes"
    mount -t tmpfs none /mnt 2>/dev/null && echo "can mount"
    echo 1 > /proc/sys/net/ipv4/ip_forward 2>/dev/null && echo "sysctls are writable"
    for path in /tmp /var/tmp /run /dev/shm; do touch $path/x || echo "$path is not writable"; done
    """
    for pod, namespace in (("c1", "default"), ("c2", "other"), ("onhost", "default")):
        assert lab.exec(pod, ["sh", "-c", script], namespace=namespace).stdout == "", pod
    assert lab.layout.run.stat().st_mode & 0o077 == 0


def test_processes_are_in_their_cgroups(lab: Lab) -> None:
    pod = lab.pod("c1")
    node = lab.layout.node_cgroup("n1")
    group = lab.layout.pod_cgroup("n1", "default", "c1", pod["metadata"]["uid"])
    assert {path.name for path in node.iterdir() if path.is_dir()} == {"agent", "kubelet", "host", "pods"}
    assert cgroup.populated(group / "main") and cgroup.populated(group / "side")
    sleeper = lab.popen("c1", ["sleep", "30"])
    try:
        until(lambda: any(_name(pid) == "sleep 30" for pid in cgroup.processes(group / "main")))
    finally:
        sleeper.kill()
        sleeper.communicate()


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


RESTARTS = """
apiVersion: v1
kind: Pod
metadata: {name: crashing}
spec:
  nodeName: n1
  containers: [{name: main, command: [sh, -c, "echo life; exit 3"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  initContainers:
    - {name: first, command: [sh, -c, "echo done > /shared/x"], volumeMounts: [{name: v, mountPath: /shared}]}
  containers:
    - {name: main, command: [cat, /shared/x], volumeMounts: [{name: v, mountPath: /shared}]}
  volumes: [{name: v, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: dying}
spec:
  nodeName: n2
  containers:
    - name: main
      command: [sh, -c, "touch /tmp/alive; exec sleep infinity"]
      livenessProbe:
        {exec: {command: [test, -e, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1, initialDelaySeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  nodeName: n2
  containers:
    - name: main
      command:
        [/usr/bin/python3, -S, -E, -c, "import socket, time; s = socket.create_server(('', 9000)); time.sleep(1e6)"]
      startupProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}
"""


def test_restarts_probes_and_back_off(lab: Lab) -> None:
    lab.apply({"restarts.yaml": RESTARTS}, wait=False)

    def state(name: str) -> Object:
        return (lab.pod(name)["status"].get("containerStatuses") or [{"restartCount": 0, "state": {}}])[0]

    until(lambda: state("crashing")["restartCount"] >= 3)
    until(lambda: state("crashing")["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff")
    assert state("crashing")["lastState"]["terminated"]["exitCode"] == 3
    assert lab.logs("crashing").read_text().startswith("life\nlife\n")
    until(lambda: lab.pod("once")["status"]["phase"] == "Succeeded")
    assert lab.logs("once").read_text() == "done\n"
    until(lambda: _is_ready(lab, "slow") and _is_ready(lab, "dying"))
    assert state("slow")["started"]
    lab.exec("dying", ["rm", "/tmp/alive"], check=True)
    until(lambda: state("dying")["restartCount"] == 1)
    gone = lab.delete(Key("Pod", "default", name) for name in ("crashing", "once", "dying", "slow"))
    assert len(gone) == 4
    assert not any(name in entry for name in ("crashing", "once", "dying") for entry in fabric.leftovers(lab.layout))


def test_scaling_and_replacing_a_deployment(lab: Lab) -> None:
    text = CLUSTER.replace("name: web}", "name: rolling}").replace("app: web}", "app: rolling}")
    document = next(d for d in text.split("---") if "kind: Deployment" in d)

    def pods() -> set[str]:
        return {
            p["metadata"]["name"]
            for p in lab.pods("default")
            if p["metadata"].get("labels", {}).get("app") == "rolling"
        }

    lab.apply({"d.yaml": document})
    before = pods()
    lab.apply({"d.yaml": document.replace("replicas: 2", "replicas: 3")})
    assert before < pods() and len(pods()) == 3
    lab.apply({"d.yaml": document.replace("- name: web", "- name: changed")})
    assert len(pods()) == 2 and not before & pods()
    lab.delete([Key("Deployment", "default", "rolling")])
    assert not pods()


def test_labels_change_without_touching_processes(lab: Lab) -> None:
    pid = lab.exec("c1", ["readlink", "/proc/1/ns/pid"]).stdout
    lab.label(Key("Pod", "default", "c1"), {"colour": "blue"})
    assert lab.pod("c1")["metadata"]["labels"]["colour"] == "blue"
    lab.label(Key("Pod", "default", "c1"), {"colour": None})
    assert "colour" not in lab.pod("c1")["metadata"]["labels"]
    assert lab.exec("c1", ["readlink", "/proc/1/ns/pid"]).stdout == pid


def test_partition_cuts_a_node_off_and_heals(lab: Lab) -> None:
    far = next(pod for pod in web_pods(lab) if pod["spec"]["nodeName"] == "n2")
    url = f"http://{far['status']['podIP']}:8080/"
    lab.partition("n2")
    try:
        assert lab.exec("c1", ["curl", "-sS", "-m", "1", url]).returncode == 28  # timed out: nobody answers
        state = json.loads(_cli("status", "--name", lab.name, "-o", "json"))
        assert [node["partitioned"] for node in state["nodes"]] == [False, True]
    finally:
        lab.partition("n2", healed=True)
    assert get(lab, url)


def _cli(*arguments: str) -> str:
    argv = [sys.executable, "-m", "deploy.cli", "lab", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout


def test_status_names_everything(lab: Lab) -> None:
    state = json.loads(_cli("status", "--name", lab.name, "-o", "json"))
    c2 = next(pod for pod in state["pods"] if pod["name"] == "c2")
    assert c2["identity"] == "spiffe://cluster.local/ns/other/sa/default"
    assert (c2["namespace"], c2["node"], c2["ready"], c2["enrolled"]) == ("other", "n2", True, None)
    assert "c2" in _cli("status", "--name", lab.name)


def test_bad_input_changes_nothing(lab: Lab) -> None:
    before = lab.objects()
    for text, message in (
        ("a: [", "bad.yaml: line 2, column 1: did not find expected node content"),
        (
            "apiVersion: v1\nkind: Pot\nmetadata: {name: x}",
            r"bad.yaml: Pot x \(default\): kind: \"Pot\" is not a kind this mesh knows; did you mean Pod\?",
        ),
        (
            SMALL.replace("one", "x").replace("n1", "n9"),
            r"Pod x \(default\): spec.nodeName: there is no Node 'n9'; there are n1, n2",
        ),
    ):
        with pytest.raises(LabError, match=message):
            lab.apply({"bad.yaml": text})
    assert lab.objects() == before


SMALL = """
apiVersion: v1
kind: Pod
metadata: {name: one}
spec: {nodeName: n1, containers: [{name: main, command: [sleep, infinity]}]}
"""


def test_down_after_a_crash_leaves_nothing_and_harms_nobody(lab: Lab, make_lab: Callable[..., Lab]) -> None:
    doomed = make_lab(SMALL, agent=False)
    layout = doomed.layout
    assert layout.slot != lab.layout.slot
    assert not layout.pods4.overlaps(lab.layout.pods4)
    for group in ("n1/kubelet", "control/clusterd", "control/dns"):
        for pid in cgroup.processes(layout.cgroup / group):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not cgroup.populated(layout.cgroup / "n1" / "kubelet"))
    assert cgroup.populated(layout.cgroup / "n1" / "pods")  # its pods run on
    pids = cgroup.processes(layout.cgroup)
    assert doomed.down()
    assert not layout.cgroup.exists() and not layout.run.exists() and not layout.lock.exists()
    assert not fabric.leftovers(layout) and slot.find(doomed.name) is None
    assert str(layout.run) not in Path("/proc/self/mountinfo").read_text()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert not doomed.down()  # again: nothing to do
    assert get(lab, "http://web/")
    assert lab.is_up and (NETNS / lab.layout.node_netns("n1")).exists()


@pytest.mark.parametrize("moment", ["network", "node", "pod", "waiting"])
def test_up_that_is_killed_half_way_is_cleaned_up_or_finished(make_lab: Callable[..., Lab], moment: str) -> None:
    lab = make_lab(SMALL, agent=False)
    lab.down()
    argv = [sys.executable, "-m", "deploy.cli", "lab", "up", "--name", lab.name, "--no-agent", "-f", "-"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(SMALL)
    process.stdin.close()
    assert any(line.startswith(f"lab {lab.name}: {moment}") for line in process.stderr)
    process.kill()
    process.wait()
    process.stderr.close()
    if moment in ("node", "waiting"):
        Lab(lab.name).up({"test.yaml": SMALL}, agent=False)
        assert Lab(lab.name).exec("one", ["true"]).returncode == 0
    assert Lab(lab.name).down()
    assert not fabric.leftovers(lab.layout) and not lab.layout.cgroup.exists() and not lab.layout.run.exists()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_machine_made_half_is_made_anew(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    lab = make_lab(SMALL, agent=False)
    node, steps, within = lab.node("n1"), 0, fabric._within

    def killed(name: str, work: Callable[[object], None]) -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            raise KeyboardInterrupt
        within(name, work)

    with monkeypatch.context() as patch:
        patch.setattr(fabric, "_within", killed)
        with pytest.raises(KeyboardInterrupt):
            fabric.make_machine(lab.layout, node)
    assert fabric.exists(node.netns) and not fabric.made(lab.layout, node.netns)
    fabric.make_machine(lab.layout, node)
    assert fabric.made(lab.layout, node.netns)


def test_up_again_mends_what_died(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(SMALL, agent=False)
    uid = lab.pod("one")["metadata"]["uid"]
    for name in ("n1/kubelet", "control/clusterd", "control/dns"):
        cgroup.kill(lab.layout.cgroup / name)
    lab.up({"test.yaml": SMALL}, agent=False)
    assert lab.pod("one")["metadata"]["uid"] == uid

    def runs() -> bool:
        try:
            return lab.exec("one", ["true"]).returncode == 0
        except LabError:  # the new kubelet has not started it yet
            return False

    until(runs)
    with pytest.raises(LabError, match="is up without agents"):
        lab.up({"test.yaml": SMALL})
