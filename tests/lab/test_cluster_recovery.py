"""A lab whose parts died, or whose maker was killed half-way: it is mended or removed, and no other is harmed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.lab import cgroup, fabric, slot
from deploy.lab.cluster import Lab
from deploy.lab.fault import LabError
from deploy.lab.layout import NETNS
from tests.lab.talk import until

SMALL = """
apiVersion: v1
kind: Pod
metadata: {name: one}
spec: {nodeName: n1, containers: [{name: main, command: [sleep, infinity]}]}
"""


def test_down_after_a_crash_leaves_nothing_and_harms_nobody(make_lab: Callable[..., Lab]) -> None:
    lab, doomed = make_lab(SMALL, agent=False), make_lab(SMALL, agent=False)
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
    assert lab.exec("one", ["true"]).returncode == 0
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
