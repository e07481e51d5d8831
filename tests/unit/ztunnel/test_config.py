"""The agent's settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from ztunnel.config import default_threads, drain_seconds, parse

ARGUMENTS = [
    *("--node", "n1", "--node-ip", "10.0.0.1", "--pods", "/p", "--run", "/r", "--bpf", "/b", "--cgroup", "/c"),
    *("--controller", "10.0.0.9:15012", "--root", "/ca.crt", "--token", "/token"),
]


def test_arguments() -> None:
    config = parse([*ARGUMENTS, "--log-level", "debug"], {})
    assert (config.node, config.node_ip, config.controller) == ("n1", "10.0.0.1", "10.0.0.9:15012")
    assert config.agent_cgroup == Path("/c/agent")
    assert config.kubelet_cgroup == Path("/c/kubelet")
    assert (config.log_level, config.drain_seconds, config.unload) == ("debug", 5.0, False)
    assert (config.direct, config.direct_acceleration) == ("on", "on")
    assert (config.replaced, config.stay_awake) == ("exit", "on")
    assert parse([*ARGUMENTS, "--stay-awake", "off"], {}).stay_awake == "off"


def test_the_drain_deadline_of_the_command_line_wins() -> None:
    environment = {"CONNECTION_TERMINATION_DEADLINE": "7s"}
    assert parse([*ARGUMENTS, "--drain", "90"], environment).drain_seconds == 90
    assert parse([*ARGUMENTS, "--drain", "0", "--replaced", "wait"], environment).drain_seconds == 0
    assert parse(ARGUMENTS, environment).drain_seconds == 7


def test_threads_are_as_many_as_cores_within_bounds() -> None:
    assert parse([*ARGUMENTS, "--threads", "7"], {}).threads == 7
    assert parse(ARGUMENTS, {}).threads == default_threads(len(os.sched_getaffinity(0)))
    assert [default_threads(cores) for cores in (0, 1, 2, 4, 64)] == [1, 1, 2, 4, 4]


@pytest.mark.parametrize(
    ("direct", "acceleration", "wanted"), [("on", "on", True), ("on", "off", False), ("off", "on", False)]
)
def test_without_direct_connections_nothing_is_accelerated(direct: str, acceleration: str, wanted: bool) -> None:
    arguments = [*ARGUMENTS, "--direct", direct, "--direct-acceleration", acceleration]
    assert parse(arguments, {}).accelerate is wanted


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--node-ip", "nowhere", "'nowhere' does not appear to be an IPv4 or IPv6 address"),
        ("--controller", "10.0.0.9", "'10.0.0.9' is not HOST:PORT"),
        ("--controller", "10.0.0.9:99999", "is not HOST:PORT"),
        ("--controller", "fd00::1:15012", "stands in brackets: [fd00::1]:15012"),
        ("--log-level", "loud", "invalid choice: 'loud'"),
        ("--direct", "both", "invalid choice: 'both'"),
        ("--drain", "soon", "'soon' is not a number of seconds up to a day"),
        ("--replaced", "die", "invalid choice: 'die'"),
        ("--threads", "0", "'0' is not a number of threads from 1 to 64"),
        ("--threads", "many", "'many' is not a number of threads from 1 to 64"),
    ],
)
def test_wrong_arguments_are_named(option: str, value: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*ARGUMENTS, option, value], {})
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 5.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30"}, 25.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "11"}, 6.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "10"}, 9.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "0"}, 0.0),
        ({"CONNECTION_TERMINATION_DEADLINE": "7s", "TERMINATION_GRACE_PERIOD_SECONDS": "30"}, 7.0),
    ],
)
def test_drain_deadline(environment: Mapping[str, str], seconds: float) -> None:
    assert drain_seconds(environment) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "1e9"])
def test_a_wrong_deadline_names_its_variable(text: str) -> None:
    with pytest.raises(ValueError, match="TERMINATION_GRACE_PERIOD_SECONDS"):
        drain_seconds({"TERMINATION_GRACE_PERIOD_SECONDS": text})
