"""The lab itself, without the mesh: pods, services, names, probes, isolation, and that nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.lab import cgroup
from deploy.lab.cluster import Lab
from deploy.lab.fault import LabError
from deploy.lab.manifest import Key, Object
from tests.lab import objects
from tests.lab.talk import until

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
    done = lab.exec("c1", ["curl", "-sS", "-m", "5", "http://nobody/"])
    assert done.returncode == 7, done.stderr  # could not connect


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
    until(lambda: not is_ready(lab, first) and not lab_waits_for_names(lab))
    command = "for i in $(seq 12); do curl -sS -m 5 http://web/ || exit 1; echo; done"
    assert set(lab.exec("c1", ["sh", "-c", command], check=True).stdout.split()[::2]) == {second}
    lab.exec(first, ["rm", "/tmp/down"], check=True)
    lab.wait(20)


def lab_waits_for_names(lab: Lab) -> bool:
    return len(lab.exec("c1", ["getent", "ahostsv4", "web-headless"], check=True).stdout.splitlines()) > 3


def is_ready(lab: Lab, name: str) -> bool:
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
            objects.pod("x", "default", "n9"),
            r"Pod x \(default\): spec.nodeName: there is no Node 'n9'; there are n1, n2",
        ),
    ):
        with pytest.raises(LabError, match=message):
            lab.apply({"bad.yaml": text})
    assert lab.objects() == before
