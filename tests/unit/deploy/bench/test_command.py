"""Options become a plan; wrong ones are refused before anything is made."""

from __future__ import annotations

import argparse
import os

import pytest

from deploy.bench.columns import COLUMNS
from deploy.bench.command import plan_of, register
from deploy.bench.rounds import Plan


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    return parser.parse_args(["bench", "tunnel", *words])


def plan(*words: str) -> Plan:
    return plan_of(parse(*words))


def test_all_columns_by_default_and_the_first_is_the_baseline() -> None:
    found = plan()
    assert [column.name for column in found.columns] == [
        "none",
        "unenrolled",
        "gossamer",
        "envoy-tcp",
        "envoy-hbone",
    ]
    assert (found.baseline, found.rounds, found.seconds, found.threads) == ("none", 3, 0.7, 1)
    assert {figure.options.get("size") for figure in found.figures if figure.command == "echo"} == {100, 4096}


def test_the_whole_table() -> None:
    found = plan("--all")
    echoes = {(f.options["size"], f.options["connections"]) for f in found.figures if f.command == "echo"}
    assert echoes == {(size, count) for size in (100, 4096, 65536) for count in (1, 16, 64, 256)}
    assert [f.options["connections"] for f in found.figures if f.command == "stream"] == [1, 8]
    assert [f.seconds for f in found.figures if f.command == "connects"] == [None, 60.0]
    assert {column.name: found.held_by(column) for column in found.columns} == {
        "none": (5000, 10_000),
        "unenrolled": (5000, 10_000),
        "gossamer": (5000, 10_000),
        "envoy-tcp": (5000,),  # two descriptors for each: more than a process may have
        "envoy-hbone": (5000,),
    }
    assert found.neighbours == 3
    assert plan("--held", "64").neighbours == 0


def test_every_step_is_counted() -> None:
    found = plan("--all")
    assert len(found.turns) == 5 * (5 * 15 + 1)
    assert found.steps == len(found.turns) + 5 + 3 * 2 + 2


def test_more_arguments_of_the_agents() -> None:
    assert plan("--agent", "--stay-awake off").agent == ("--stay-awake", "off")


def test_quick_is_shorter_and_what_is_said_explicitly_wins() -> None:
    assert (plan("--quick").rounds, plan("--quick").seconds) == (2, 0.5)
    assert {f.options["size"] for f in plan("--quick").figures if f.command == "echo"} == {100}
    found = plan("--quick", "--rounds", "3", "--seconds", "1.5", "--sizes", "65536")
    assert (found.rounds, found.seconds) == (3, 1.5)
    assert {f.options["size"] for f in found.figures if f.command == "echo"} == {65536}


def test_columns_in_the_order_given_once_each() -> None:
    found = plan("--columns", "envoy-hbone,none,none")
    assert [column.name for column in found.columns] == ["envoy-hbone", "none"]
    assert found.baseline == "envoy-hbone"
    assert plan("--columns", "none,envoy-tcp", "--baseline", "envoy-tcp").baseline == "envoy-tcp"


@pytest.mark.parametrize(
    "words",
    [
        ("--columns", "linkerd"),
        ("--columns", ""),
        ("--quick", "--all"),
        ("--rounds", "0"),
        ("--rounds", "two"),
        ("--seconds", "0"),
        ("--seconds", "1e9"),
        ("--seconds", "nan"),
        ("--connections", "1,,2"),
        ("--baseline", "linkerd"),
    ],
    ids=" ".join,
)
def test_wrong_options_are_usage_errors(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_a_baseline_that_is_not_run_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parse("--columns", "envoy-tcp", "--baseline", "none")
    assert arguments.run(arguments) == 2
    assert "--baseline none" in capsys.readouterr().err


def test_every_column_has_a_name_of_its_own() -> None:
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)


def test_direct_is_on_one_node_with_columns_of_its_own() -> None:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    found = plan_of(parser.parse_args(["bench", "direct", "--quick"]))
    assert [column.name for column in found.columns] == ["none", "unenrolled", "direct", "direct-vip", "envoy-tcp"]
    assert (found.kind, found.together) == ("direct", True)
    assert found.agent == ("--direct", "on")
    assert (plan("--quick").kind, plan("--quick").together, plan("--quick").agent) == ("tunnel", False, ())


@pytest.mark.parametrize(("words", "more"), [((), ()), (("--acceleration", "on"), ("--direct-acceleration", "on"))])
def test_the_agents_own_default_of_acceleration_is_what_is_measured(
    words: tuple[str, ...], more: tuple[str, ...]
) -> None:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    assert plan_of(parser.parse_args(["bench", "direct", *words])).agent == ("--direct", "on", *more)


def test_cpus_are_kept_awake_only_when_told_to() -> None:
    assert (plan("--awake").awake, plan().awake) == (True, False)


def test_a_pinned_load_has_one_cpu_at_both_ends() -> None:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    pinned, free = (plan_of(parser.parse_args(["bench", "direct", *words])) for words in (["--pinned"], []))
    assert pinned.cpu in os.sched_getaffinity(0)
    assert pinned.style == {"blocking": "no", "cpu": str(pinned.cpu)}
    assert (free.cpu, free.style) == (None, {"blocking": "no"})
