"""Cells and tables: what a person reads."""

from __future__ import annotations

import io

import pytest

from ztunnel.cli.columns import WORKLOADS
from ztunnel.cli.tables import Column, Table, human_bytes, human_duration, show, table, text


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (12 << 10, "12 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 50, "3072 TiB"),
    ],
)
def test_bytes(n: int, shown: str) -> None:
    assert human_bytes(n) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (312, "5m12s"),
        (3600, "1h"),
        (11_220, "3h7m"),
        (187_200, "2d4h"),
        (-5, "-5s"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert human_duration(seconds) == shown


def test_what_several_agents_agree_on_is_one_row() -> None:
    item = {"namespace": "default", "name": "a", "status": "HEALTHY"}
    odd = item | {"status": "UNHEALTHY"}
    shown = table(WORKLOADS, [{"agent": "n1"} | item, {"agent": "n2"} | item, {"agent": "n3"} | odd])
    assert [row[0] for row in shown.rows] == ["n1,n2", "n3"]


def test_a_pipe_gets_whole_cells_in_columns() -> None:
    out, long = io.StringIO(), "x" * 500
    columns = (Column("A", text("a")), Column("N", text("n"), right=True), Column("B", text("b")))
    show([table(columns, [{"a": long, "n": 5, "b": "y"}, {"a": "z", "n": 1234}], title="Title")], out)
    assert out.getvalue() == (
        f"Title\nA{' ' * 499}     N  B\n{long}     5  y\nz{' ' * 499}  1234  -\n"
    )  # fmt: skip


def test_names_with_markup_are_shown_as_they_are() -> None:
    out = io.StringIO()
    show([Table((Column("A", text("a")),), [["[red]x[/red]"]], note="")], out)
    assert "[red]x[/red]" in out.getvalue()


def test_an_empty_table_says_so_or_nothing() -> None:
    out = io.StringIO()
    show([table((Column("A", text("a")),), [], note="no things"), table((Column("A", text("a")),), [])], out)
    assert out.getvalue() == "no things\n"


def test_an_error_column_is_there_when_there_is_an_error() -> None:
    columns = (Column("A", text("a")), Column("ERROR", text("error"), optional=True))
    assert [c.title for c in table(columns, [{"a": 1}]).columns] == ["A"]
    assert table(columns, [{"a": 1}, {"a": 2, "error": "oh"}]).rows == [["1", "-"], ["2", "oh"]]
