"""What a terminal shows, wide or narrow."""

from __future__ import annotations

import io

import pytest
from rich.text import Text

from ztunnel.cli.tables import Column, show, table, text
from ztunnel.cli.terminal import narrowed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_narrow_terminal_leaves_out_what_can_be_spared() -> None:
    columns = (
        Column("NAME", text("n"), folds=True),
        Column("ONE", text("a"), spare=1),
        Column("TWO", text("a"), spare=2, stacked=True),
    )
    made = table(columns, [{"n": "x" * 30, "a": ["y" * 10, "z" * 10]}])
    for width, titles in (
        (30 + 2 + 21 + 2 + 10, ["NAME", "ONE", "TWO"]),
        (30 + 2 + 21 + 2 + 9, ["NAME", "ONE"]),
        (30 + 2 + 20, ["NAME"]),
        (8, ["NAME"]),
    ):
        shown, dropped = narrowed(made, width)
        assert [column.title for column in shown.columns] == titles
        assert sorted([*titles, *dropped]) == ["NAME", "ONE", "TWO"]
        assert [len(row) for row in shown.rows] == [len(titles)]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_cell_is_ever_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = Terminal()
    columns = (Column("A", text("a"), folds=True), Column("B", text("b")), Column("C", text("c"), spare=1))
    show([table(columns, [{"a": "x" * 60, "b": "y" * 12, "c": "z" * 90}])], out)
    shown = Text.from_ansi(out.getvalue()).plain
    assert {letter: shown.count(letter) for letter in "xyz"} == {"x": 60, "y": 12, "z": 90 if width == 200 else 0}
    assert ("no room for C" in shown) == (width < 200)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width


def test_a_terminal_gets_colours_and_cells_that_wrap() -> None:
    out = Terminal()
    columns = (Column("STATE", text("state")), Column("ADDRESS", text("addresses"), stacked=True))
    show([table(columns, [{"state": "valid", "addresses": ["10.0.0.1", "fd00::1"]}], title="Title")], out)
    lines = out.getvalue().splitlines()
    assert [line for line in lines if "10.0.0.1" in line] != [line for line in lines if "fd00::1" in line]
    assert "Title" in lines[0]
