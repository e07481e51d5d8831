"""Answers as tables: columns that read fields, rows of text, and how they look. Pure, but for `show`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    cell: Callable[[Item], str]
    right: bool = False
    stacked: bool = False  # on a terminal, what commas or spaces separate stands one below the other
    optional: bool = False  # left out of a table in which no row has it
    spare: int = 0  # left out of a terminal that is too narrow, the highest first; 0: never
    folds: bool = False  # may wrap on a terminal that is too narrow even so
    colourless: bool = False  # its `no` is nothing to worry about


def text(*path: str) -> Callable[[Item], str]:
    """The cell for a field, reached through nested objects; a missing or empty one is `-`."""

    def cell(item: Item) -> str:
        value: Any = item
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, (list, tuple)):
            value = ",".join(str(v) for v in value)
        return "-" if value is None or value == "" else str(value)

    return cell


def count(*path: str) -> Callable[[Item], str]:
    inner = text(*path)
    return lambda item: "0" if inner(item) == "-" else inner(item)


def size(name: str) -> Callable[[Item], str]:
    return lambda item: human_bytes(int(item.get(name) or 0))


def human_bytes(n: int) -> str:
    """`999 B`, `1.5 KiB`, `12 MiB`: three digits say enough in a table; JSON has all."""
    value, unit = float(n), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{n} B" if unit == "B" else f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"


def human_duration(seconds: float) -> str:
    """Two units, as kubectl prints ages: `42s`, `5m12s`, `3h7m`, `2d4h`; negative ones with a sign."""
    sign, whole = ("-" if seconds < 0 else ""), int(abs(seconds))
    for big, small, unit, sub in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= big:
            rest = whole % big // small
            return f"{sign}{whole // big}{unit}" + (f"{rest}{sub}" if rest else "")
    return f"{sign}{whole}s"


def until(name: str) -> Callable[[Item], str]:
    """The time that is left to a timestamp field, or `expired`."""

    def cell(item: Item) -> str:
        if not item.get(name):
            return "-"
        left = (datetime.fromisoformat(item[name]) - datetime.now(UTC)).total_seconds()
        return human_duration(left) if left > 0 else "expired"

    return cell


GAP = 2  # spaces between columns
AGENT = Column("NODE", text("agent"))
TOLD_BY = Column("AGENT", text("agent"), spare=1)  # where every agent knows about all nodes, NODE would mislead


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text, ready to be shown. Without rows only the note is, if there is one."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""  # said instead of a table without rows


def table(columns: Sequence[Column], items: Iterable[Item], *, title: str = "", note: str = "") -> Table:
    """One row per item; with a TOLD_BY column, items that differ only in who told them become one row."""
    rows = [[column.cell(item) for column in columns] for item in items]
    if columns[0] is TOLD_BY:
        tellers: dict[tuple[str, ...], list[str]] = {}
        for agent, *rest in rows:
            tellers.setdefault(tuple(rest), []).append(agent)
        rows = [[",".join(agents), *rest] for rest, agents in tellers.items()]
    kept = [i for i, column in enumerate(columns) if not column.optional or any(row[i] != "-" for row in rows)]
    return Table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows], title, note)


def show(tables: Iterable[Table], out: TextIO) -> None:
    """Print. A terminal gets what its width has room for; into a pipe or file nothing is ever cut or wrapped."""
    told = [t for t in tables if t.rows or t.note]
    if not out.isatty():
        out.write("\n".join(_plain(t) for t in told))
        return
    from ztunnel.cli import terminal  # not for a pipe: rich takes its time to load

    terminal.show(told, out)


def _plain(shown: Table) -> str:
    """Columns padded to their widest cell, two spaces apart."""
    title = f"{shown.title}\n" if shown.title else ""
    if not shown.rows:
        return f"{title}{shown.note}\n"
    lines = [[column.title for column in shown.columns], *shown.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown.columns))]
    aligned = []
    for line in lines:
        cells = zip(line, widths, shown.columns, strict=True)
        padded = (c.rjust(width) if column.right else c.ljust(width) for c, width, column in cells)
        aligned.append((" " * GAP).join(padded).rstrip() + "\n")
    return title + "".join(aligned)
