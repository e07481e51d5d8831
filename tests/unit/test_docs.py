"""The documentation names what there is: commands and options, ports, metrics, labels, endpoints, files, links."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from controller.__main__ import METRICS_PORT
from controller.metrics import Metrics
from deploy import cli
from mesh import route
from tests.unit.ztunnel.served import served
from tests.unit.ztunnel.small_agent import SmallAgent
from ztunnel.admin.server import Ports
from ztunnel.cli.client import Agent
from ztunnel.metrics.exposition import PROMETHEUS
from ztunnel.metrics.scrape import Scrape
from ztunnel.metrics.traffic import Traffic
from ztunnel.metrics.trials import Trials

TOP = Path(__file__).resolve().parents[2]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
PARTS = ("mesh", "bpf", "ztunnel", "controller", "deploy", "tests")
GROUPS = ("lab", "bench")
FOREIGN = {"--unix-socket", "--concurrency"}  # curl's, Envoy's
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code(page: Path) -> Iterator[str]:
    """What is set as code: each indented line, and each span between backticks."""
    for line in page.read_text().splitlines():
        if line.startswith("    "):
            yield line
        else:
            yield from re.findall(r"`([^`]+)`", line)


@functools.cache
def help_of(*words: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    return shown.getvalue()


def subcommands(*words: str) -> list[str]:
    return re.findall(r"^    ([a-z][a-z-]*)\b", help_of(*words), re.MULTILINE)


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]\b", text))


def commands(page: Path) -> Iterator[tuple[list[str], str]]:
    """Each `gossamer …` of a page: its words before the first option or argument, and all of it."""
    for text in code(page):
        for found in re.findall(r"(?<![\w./-])(?:\.venv/bin/)?gossamer ([a-z-][^|;>#`]*)", text):
            call = found.partition(" -- ")[0]
            yield list(takewhile(re.compile(r"[a-z][a-z-]*").fullmatch, call.split())), call


@each_page
def test_commands_exist_and_have_the_options_they_are_shown_with(page: Path) -> None:
    for words, call in commands(page):
        assert words and words[0] in subcommands(), call
        known = words[:1]
        if words[0] in GROUPS and len(words) > 1:
            assert words[1] in subcommands(words[0]), call
            known = words[:2]
        assert flags(call) <= flags(help_of(*known)), call


@each_page
def test_options_that_are_named_exist(page: Path) -> None:
    there = set(FOREIGN)
    for name in subcommands():
        there |= flags(help_of(name))
        for below in subcommands(name) if name in GROUPS else ():
            there |= flags(help_of(name, below))
    assert {flag for text in code(page) for flag in flags(text)} <= there


def test_every_command_of_the_lab_and_every_measurement_is_told_of() -> None:
    for group, page in (("lab", "lab.md"), ("bench", "benchmarks.md")):
        text = (TOP / "docs" / page).read_text()
        assert [name for name in subcommands(group) if not re.search(rf"`?\b{name}\b", text)] == []


@pytest.mark.parametrize("page", [TOP / "README.md", TOP / "docs" / "architecture.md"], ids=lambda page: page.name)
def test_ports(page: Path) -> None:
    there = {route.OUTBOUND_PORT, route.PLAINTEXT_PORT, route.TUNNEL_PORT, METRICS_PORT}
    there |= {Ports().admin, Ports().metrics, Ports().readiness}
    there |= {int(port) for port in re.findall(r"default:\s+(15\d\d\d),\s+every\s+address", help_of("controller"))}
    section = page.read_text().partition("\n## Ports\n")[2].partition("\n## ")[0]
    assert {int(port) for port in re.findall(r"\b15\d\d\d\b", section)} == there


def is_ours(name: str) -> bool:
    return name.startswith(("istio_", "gossamer_", "workload_manager_"))


def named_metrics() -> set[str]:
    """Of observability.md; `istio_tcp_connections_opened_total`, `_closed_total` are two."""
    text = (TOP / "docs" / "observability.md").read_text()
    text = re.sub(r"`(_closed_total|_failed_total)`", r"`istio_tcp_connections\1`", text)
    return {name for name in re.findall(r"`(\w+)(?:\{[^}]*\})?`", text) if is_ours(name)}


async def test_metrics() -> None:
    scrape = Scrape(view=SmallAgent(), traffic=Traffic(), trials=Trials(), version="1.2.3")
    agent = re.findall(r"^# TYPE (\w+)", (await scrape.text(PROMETHEUS)).decode(), re.MULTILINE)
    controller = [f.name + ("_total" if f.type == "counter" else "") for f in Metrics().registry.collect()]
    maps = {"gossamer_bpf_map_entries", "gossamer_bpf_map_max_entries"}  # where there is a kernel side
    assert named_metrics() == {name for name in (*agent, *controller) if is_ours(name)} | maps


async def test_endpoints_of_the_admin_socket(tmp_path: Path) -> None:
    section = (TOP / "docs" / "observability.md").read_text().partition("## Admin endpoints")[2].partition("\n## ")[0]
    table = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {path for cell in table for path in re.findall(r"(/[a-z_]+)", cell)}
    async with served(tmp_path) as at:
        index = await asyncio.to_thread(Agent(node="", socket=at.socket).get, "/")
    assert named == set(index["endpoints"])


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if target.startswith("http"):
            continue
        to = (page.parent / target).resolve() if target else page
        assert to.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", to.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}, anchor


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    for text in code(page):
        if "gossamer lab " in text:  # there, deploy/NAME is a Deployment
            continue
        for name in re.findall(rf"(?<![\w/.])(?:{'|'.join(PARTS)})/[a-z][\w/.-]*\w", text):
            assert (TOP / name).exists(), name


@functools.cache
def sources() -> str:
    kinds = (".py", ".pyx", ".pxi", ".pxd", ".c", ".h", ".sh")
    files = [path for part in PARTS[:-1] for path in (TOP / part).rglob("*") if path.suffix in kinds]
    return "\n".join(path.read_text() for path in files) + (TOP / "Makefile").read_text()


@each_page
def test_labels_variables_and_reasons_are_the_code_s(page: Path) -> None:
    named = {name for text in code(page) for name in re.findall(r"\b(?:[a-z]+\.)?(?:gossamer|istio)\.io/[a-z-]+", text)}
    named |= {name for text in code(page) for name in re.findall(r"\b[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+\b", text)}
    assert {name for name in named if name not in sources()} == set()


@each_page
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (TOP / "Makefile").read_text(), re.MULTILINE)
    named = [name for text in code(page) for name in re.findall(r"^ *make ([a-z-]+)", text)]
    assert set(named) <= set(targets)
