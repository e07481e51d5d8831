"""Restart policy, back-off, phase."""

from __future__ import annotations

import pytest

from deploy.lab.pod import BACKOFF_LIMIT, ContainerState, backoff, phase, wants_restart


def test_back_off_doubles_up_to_a_limit() -> None:
    assert [backoff(n) for n in range(1, 6)] == [0, 1, 2, 4, 8]
    assert backoff(1000) == BACKOFF_LIMIT


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [("Always", 0, True), ("Always", 1, True), ("OnFailure", 0, False), ("OnFailure", 1, True), ("Never", 1, False)],
)
def test_restart_policy(policy: str, code: int, again: bool) -> None:
    assert wants_restart(policy, code) is again


def state(what: str, **more: object) -> ContainerState:
    states = {
        "new": {"waiting": {"reason": "ContainerCreating"}},
        "on": {"running": {}},
        "ok": {"terminated": {"exitCode": 0}},
        "bad": {"terminated": {"exitCode": 2}},
    }
    return ContainerState(name="c", state=states[what], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("states", "policy", "wanted"),
    [
        ([state("new")], "Always", "Pending"),
        ([state("on"), state("new")], "Always", "Running"),
        ([state("ok")], "Never", "Succeeded"),
        ([state("ok"), state("bad")], "Never", "Failed"),
        ([state("ok"), state("on")], "Never", "Running"),
        ([state("bad", restarts=1)], "OnFailure", "Running"),
        ([state("new", last={"terminated": {}})], "Always", "Running"),
        ([state("on", init=True), state("new")], "Always", "Pending"),
    ],
)
def test_phase(states: list[ContainerState], policy: str, wanted: str) -> None:
    assert phase(states, policy) == wanted
