"""Who comes before or after the mesh has looked: pods that dial or are dialled before they are enrolled, addresses that
changed hands and process ids that came round while no agent was there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from deploy.lab import cgroup, launch
from deploy.lab.cluster import Lab
from deploy.lab.manifest import Key
from tests.lab.intruder import ARMED, DIAL, PROBED, SERVER, WELCOME, Dial, Intruder
from tests.lab.objects import namespace, node, pod, python
from tests.lab.talk import ips, until
from tests.lab.test_direct import ON
from tests.lab.test_intruders import POLICIES
from tests.lab.test_mesh import enrolled

CLUSTER = (
    namespace("mesh", ambient=True)
    + namespace("plain")
    + node("n1")
    + pod("server", "mesh", "n1", SERVER, probed=PROBED)
    + pod("client", "mesh", "n1", securityContext=ARMED)
    + pod("rogue", "mesh", "n1")
    + pod("rogue", "plain", "n1", SERVER)
    + POLICIES
)
# Dials its arguments, as fast as it can, until it is ended; tells of whatever it hears.
HASTY = """
import socket, sys
while True:
    for ip in sys.argv[1:]:
        try:
            with socket.create_connection((ip, 9000), timeout=0.5) as s:
                s.send(b"SECRET")
                if heard := s.recv(100): print("heard", heard, "from", ip, flush=True)
        except OSError: pass
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(CLUSTER)
    made.restart_agent("n1", arguments=ON)
    return made


def log(lab: Lab, name: str, namespace: str = "mesh") -> str:
    path = lab.logs(name, namespace=namespace)
    return path.read_text() if path.exists() else ""


def keys(name: str, namespace: str = "mesh") -> list[Key]:
    return [Key("Pod", namespace, name), Key("ServiceAccount", namespace, name)]


@contextmanager
def without_agent(lab: Lab) -> Iterator[None]:
    lab.kill_agent("n1")
    try:
        yield
    finally:
        lab.restart_agent("n1", arguments=ON)


def is_direct(lab: Lab, *targets: str) -> None:
    """From now on the client needs no agent to reach them."""
    client = Intruder(lab, "client", "mesh")
    dials = [Dial(to=ip) for target in targets for ip in ips(lab, target)]
    for _ in range(2):
        until(lambda: set(client.dial(*dials).values()) == {WELCOME})


@pytest.mark.parametrize("agent", [True, False], ids=["agent alive", "agent dead"])
def test_a_pod_that_dials_before_it_is_enrolled_is_nobody(lab: Lab, agent: bool) -> None:
    before = len(log(lab, "server"))
    text = pod("hasty", "mesh", "n1", command=[*python(HASTY), *ips(lab, "server")])
    text = text.replace('"readinessProbe"', '"livenessProbe"')

    def comes_and_goes() -> None:
        lab.apply({"hasty.yaml": text}, wait=False)
        try:
            until(lambda: lab.pod("hasty", "mesh")["status"]["phase"] == "Running")
            if agent:
                until(lambda: enrolled(lab, "hasty", "mesh"))
            is_direct(lab, "server")
            assert not log(lab, "hasty")
        finally:
            lab.delete(keys("hasty"))

    is_direct(lab, "server")
    if agent:
        comes_and_goes()
    else:
        with without_agent(lab):
            comes_and_goes()
    met = {line.split()[-1] for line in log(lab, "server")[before:].splitlines() if line.startswith("let in")}
    assert met == set(ips(lab, "client"))


def test_a_pod_that_is_dialled_before_it_is_enrolled(lab: Lab) -> None:
    text = pod("late", "mesh", "n1", SERVER, probed=PROBED, labels={"app": "server"})
    lab.apply({"late.yaml": text})
    addresses = ips(lab, "late")
    lab.delete(keys("late"))
    rogue = lab.popen("rogue", [*python(HASTY), *addresses], namespace="plain")
    try:
        lab.apply({"late.yaml": text})
        assert ips(lab, "late") == addresses
        until(lambda: enrolled(lab, "late", "mesh"))
        print(log(lab, "late"))
        assert "let in" not in log(lab, "late")
    finally:
        rogue.kill()
        lab.delete(keys("late"))
    assert not rogue.communicate()[0]


def test_a_pod_that_is_made_while_no_agent_is_there_is_outside_the_mesh_until_one_is(lab: Lab) -> None:
    """docs/architecture.md, "Before a pod is enrolled"."""
    rogue = Intruder(lab, "rogue", "plain")
    try:
        with without_agent(lab):
            text = pod("late", "mesh", "n1", SERVER, probed=PROBED, labels={"app": "server"})
            lab.apply({"late.yaml": text}, wait=False)
            dials = [Dial(to=ip) for ip in ips(lab, "late")]
            until(lambda: set(rogue.dial(*dials).values()) == {WELCOME})
        until(lambda: enrolled(lab, "late", "mesh"))
        assert WELCOME not in rogue.dial(*dials).values()
    finally:
        lab.delete(keys("late"))


def test_an_address_that_changed_hands_while_no_agent_was_there(lab: Lab) -> None:
    """As destination and as source; then the agent comes, and each is who it is."""
    lab.apply({"victim.yaml": pod("victim", "mesh", "n1", SERVER, probed=PROBED)})
    is_direct(lab, "server", "victim")
    client, before = Intruder(lab, "client", "mesh"), len(log(lab, "server"))
    taken, own = ips(lab, "victim"), ips(lab, "client")
    with without_agent(lab):
        lab.delete(keys("victim"))
        lab.apply({"thief.yaml": pod("thief", "mesh", "n1", SERVER, probed=PROBED)}, wait=False)
        assert ips(lab, "thief") == taken
        outsider = Intruder(lab, "rogue", "plain")
        until(lambda: set(outsider.dial(*(Dial(to=ip) for ip in taken)).values()) == {WELCOME})
        until(lambda: log(lab, "thief").count("heard") >= 2)
        met = log(lab, "thief").count("heard")
        for early in (False, True):
            heard = client.dial(*(Dial(to=ip, early=early) for ip in taken))
            assert WELCOME not in heard.values(), heard
        assert log(lab, "thief").count("heard") == met
        lab.delete(keys("client"))
        lab.apply({"heir.yaml": pod("heir", "mesh", "n1", securityContext=ARMED)}, wait=False)
        assert ips(lab, "heir") == own
        until(lambda: lab.pod("heir", "mesh")["status"]["phase"] == "Running")
        heard = Intruder(lab, "heir", "mesh").dial(*(Dial(to=ip) for ip in ips(lab, "server")))
        assert WELCOME not in heard.values(), heard
    lab.wait(60)
    heir = Intruder(lab, "heir", "mesh")
    assert WELCOME not in heir.dial(*(Dial(to=ip) for ip in ips(lab, "server"))).values()
    assert set(heir.dial(*(Dial(to=ip) for ip in taken)).values()) == {WELCOME}
    assert "let in" not in log(lab, "server")[before:]
    lab.delete([*keys("heir"), *keys("thief")])
    lab.apply({"client.yaml": pod("client", "mesh", "n1", securityContext=ARMED)})


def process_number(pid: int, argv: list[str], entry: Callable[[], None]) -> subprocess.Popen[str]:
    """A process of this pid, as the kernel gives it to whoever forks often enough."""
    for _ in range(100):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        pipe = subprocess.PIPE
        process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, preexec_fn=entry)  # noqa: PLW1509 (no thread)
        if process.pid == pid:
            return process
        process.kill()
        process.communicate()
    raise AssertionError(f"somebody else has pid {pid}")


def test_the_agents_former_process_id_is_no_privilege(lab: Lab) -> None:
    """In the pod's cgroup and netns; towards a pod of the mesh, the agent's ports there, and out of the mesh."""
    (former,) = cgroup.processes(lab.layout.node_cgroup("n1") / "agent")
    intruder = lab.pod("rogue", "mesh")
    with without_agent(lab):
        until(lambda: not Path(f"/proc/{former}").exists())
        netns = os.open(lab.netns(intruder), os.O_RDONLY | os.O_CLOEXEC)
        try:
            group = lab.layout.pod_cgroup("n1", "mesh", "rogue", intruder["metadata"]["uid"]) / "main"
            dialler = python(DIAL.replace("sys.argv[1]", "sys.stdin.read()"))
            process = process_number(former, dialler, launch.entry(group, [netns]))
        finally:
            os.close(netns)
        dials = [Dial(to=ip, port=port) for ip in ips(lab, "server") for port in (9000, 15001, 15006, 15008)]
        dials += [Dial(to=ip) for ip in ips(lab, "rogue", "plain")]
        heard, _ = process.communicate(json.dumps([asdict(d) for d in dials]))
        assert set(json.loads(heard)) <= {"ConnectionRefusedError", "PermissionError"}, heard


def test_nobody_stumbled(lab: Lab) -> None:
    """After all of the above."""
    for target in ("node/n1", "controller"):
        text = lab.logs(target).read_text()
        assert "Traceback" not in text, text
        assert "INTERNAL" not in text
