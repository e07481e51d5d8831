"""The self-test proves acceleration on this kernel, fails where it is broken, and leaves nothing."""

from __future__ import annotations

import pytest

from bpf import selftest
from bpf.hooks import Hooks
from bpf.kernel import Kernel
from tests.kernel.rig import Rig


def prove(rig: Rig) -> str:
    before = set(rig.cgroup.iterdir())
    said = selftest.prove(rig.pins, rig.cgroup, rig.cgroup / "agent")
    assert set(rig.cgroup.iterdir()) == before
    assert [p for p in rig.bpffs.iterdir() if p.suffix != ".debug"] == []
    return said


def test_acceleration_is_proved_here(rig: Rig) -> None:
    assert prove(rig) == ""


def test_where_the_pins_are_a_whole_bpffs(rig: Rig) -> None:
    rig.pins = rig.bpffs
    assert prove(rig) == ""


def test_beside_a_running_agent(rig: Rig) -> None:
    rig.kernel(direct=True)
    assert selftest.prove(rig.pins, rig.cgroup, rig.cgroup / "agent") == ""


def test_a_kernel_that_does_not_accelerate_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hooks, "attach_acceleration", lambda hooks, wanted: None)
    assert "a connection was not promoted" in prove(rig)


def test_what_cannot_be_tried_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> Kernel:
        raise OSError(1, "not today")

    monkeypatch.setattr(Kernel, "open", broken)
    assert "not today" in prove(rig)
    assert "could not be tried" in selftest.prove(rig.pins, rig.cgroup / "nowhere", rig.cgroup / "agent")


def test_a_hang_is_a_failure(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "SECONDS", 0.5)
    monkeypatch.setattr(selftest, "_bytes", lambda agent: selftest.time.sleep(60))
    said = prove(rig)
    assert said == "no end of it within 0.5 s"
    assert [p for p in rig.bpffs.iterdir() if p.suffix != ".debug"] == []
