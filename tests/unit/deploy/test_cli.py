"""The console script."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from deploy import cli
from deploy.lab.layout import RUNTIME


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_names_every_part_and_imports_none() -> None:
    script = (
        "import sys; from deploy import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    for name in ("lab", "agent", "controller", "status", "workloads", "connections", "bpf", "bench"):
        assert re.search(rf"^ +{name}\s", done.stdout, re.MULTILINE), name
    for module in ("rich", "pyroute2", "yaml", "aiohttp", "ztunnel", "controller"):
        assert f"'{module}'" not in done.stdout, f"{module} is imported for --help"


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "down",
        "apply",
        "delete",
        "label",
        "exec",
        "status",
        "logs",
        "restart-agent",
        "kill-agent",
        "partition",
        "demo",
    ],
)
def test_lab_commands_have_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lab", command, "--help"])
    assert ended.value.code == 0 and "exit codes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["lab"],
        ["lab", "up"],
        ["lab", "nothing"],
        ["lab", "status", "-o", "xml"],
        ["lab", "label", "namespace", "a=b"],
        ["lab", "label", "namespace/default", "a"],
        ["lab", "logs", "client", "--tail", "-1"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2 and "usage: gossamer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["services", "--pod", "client"], "usage: gossamer services "),
        (["lab", "status", "--node", "n1"], "usage: gossamer lab "),
    ],
)
def test_an_option_that_is_not_known_is_answered_with_the_command_s_own_usage(
    arguments: list[str], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith(usage) and f"unrecognized arguments: {arguments[-2]}" in said


@pytest.mark.parametrize(("arguments", "listed"), [([], "certificates"), (["lab"], "partition"), (["bench"], "tunnel")])
def test_without_a_command_there_is_a_list_of_them(
    arguments: list[str], listed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2 and f"    {listed}" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"gossamer \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["lab", "status", "--name", "nosuchlab"], "lab nosuchlab is not up; gossamer lab up --name nosuchlab", 1),
        (["lab", "status", "--name", "a-b"], "lab name 'a-b': must be", 1),
        (["lab", "exec", "--name", "nosuchlab", "pod", "--", "true"], "lab nosuchlab is not up", 125),
        (["lab", "exec", "--name", "nosuchlab", "pod"], "exec: no command", 125),
        (["lab", "up", "--name", "nosuchlab", "-f", "/no/such/file"], "/no/such/file: No such file or directory", 1),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], message: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == code
    assert message in capsys.readouterr().err
    assert not (RUNTIME / "nosuchlab").exists()


def test_bad_yaml_makes_no_lab() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "lab", "up", "--name", "nosuchlab", "-f", "-"],
        input="apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {}",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (
        done.returncode == 1
        and "-: Pod x (default): spec.containers: a pod needs at least one container" in done.stderr
    )
    assert not (RUNTIME / "nosuchlab").exists()
