"""Tables on a terminal: coloured, and only as many columns as there is room for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TextIO

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ztunnel.cli.tables import GAP, Column, Table

_STYLES = {
    "yes": "green",
    "no": "red",
    "HBONE": "green",
    "DIRECT": "green",
    "enabled": "green",
    "pending": "yellow",
    "valid": "green",
    "expired": "red",
    "failed": "red",
    "connected": "green",
    "disconnected": "red",
    "UNHEALTHY": "red",
    "ready": "green",
    "not ready": "yellow",
    "stopped": "red",
    "partitioned": "red",
}


def show(tables: Iterable[Table], out: TextIO) -> None:
    """Print, with a line below a table that names the columns for which there was no room."""
    console = Console(file=out, highlight=False)
    for number, whole in enumerate(tables):
        if number:
            console.print()
        if whole.title:
            console.print(Text(whole.title, style="bold"))
        if not whole.rows:
            console.print(Text(whole.note))
            continue
        shown, dropped = narrowed(whole, console.width)
        grid = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold cyan")
        folding = any(column.folds for column in shown.columns)
        for column in shown.columns:
            justify: Literal["right", "left"] = "right" if column.right else "left"
            grid.add_column(column.title, justify=justify, overflow="fold", no_wrap=not column.folds and folding)
        for row in shown.rows:
            grid.add_row(*(_cell(cell, column) for cell, column in zip(row, shown.columns, strict=True)))
        console.print(grid)
        if dropped:
            console.print(Text(f"no room for {', '.join(dropped)}: widen the terminal, or -o json", style="dim"))


def _cell(cell: str, column: Column) -> Text:
    style = "" if column.colourless else _STYLES.get(cell, "")
    return Text(_stack(cell) if column.stacked else cell, style=style)


def narrowed(shown: Table, width: int) -> tuple[Table, list[str]]:
    """The table without the spare columns for which `width` characters are not enough, and their titles."""
    kept = list(range(len(shown.columns)))

    def needed() -> int:
        return sum(_natural(shown, i) for i in kept) + GAP * (len(kept) - 1)

    dropped: list[str] = []
    while needed() > width and (spare := [i for i in kept if shown.columns[i].spare]):
        least = max(spare, key=lambda i: shown.columns[i].spare)
        kept.remove(least)
        dropped.append(shown.columns[least].title)
    columns, rows = [shown.columns[i] for i in kept], [[row[i] for i in kept] for row in shown.rows]
    return Table(columns, rows, shown.title, shown.note), dropped


def _natural(shown: Table, index: int) -> int:
    """How wide the column is if nothing wraps."""
    column = shown.columns[index]
    cells = (_stack(row[index]) if column.stacked else row[index] for row in shown.rows)
    return max(len(line) for cell in (column.title, *cells) for line in cell.split("\n"))


def _stack(cell: str) -> str:
    return cell.replace(",", "\n").replace(" ", "\n")
