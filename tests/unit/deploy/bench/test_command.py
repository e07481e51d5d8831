"""Options become a plan; wrong ones are refused before anything is made."""

from __future__ import annotations

import argparse

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
    assert (found.baseline, found.rounds, found.seconds, found.threads) == ("none", 5, 2.0, 1)
    assert {figure.options.get("size") for figure in found.figures if figure.command == "echo"} == {100, 4096}


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
    assert [column.name for column in found.columns] == ["none", "unenrolled", "direct", "envoy-tcp"]
    assert (found.kind, found.together) == ("direct", True)
    assert found.agent == ("--direct", "on", "--direct-acceleration", "off")
    assert (plan("--quick").kind, plan("--quick").together, plan("--quick").agent) == ("tunnel", False, ())
