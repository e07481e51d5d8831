"""Answers of agents as tables: which columns, from which fields. Pure, but for `show`."""

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
    stacked: bool = False  # on a terminal, what commas separate stands one below the other
    optional: bool = False  # left out of a table in which no row has it


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


def _party(end: str) -> Callable[[Item], str]:
    """`namespace/pod` where it is known, and always the address."""

    def cell(item: Item) -> str:
        party = item.get(end) or {}
        pod = f"{party['namespace']}/{party['pod']}" if party.get("pod") else ""
        return " ".join(part for part in (pod, party.get("address") or "") if part) or "-"

    return cell


def _principal(end: str) -> Callable[[Item], str]:
    return lambda item: text(end, "identity")(item).removeprefix("spiffe://")


def _ports(item: Item) -> str:
    return ",".join(f"{p['service_port']}→{p['target_port'] or 'named'}" for p in item.get("ports", ())) or "-"


def _map_fill(item: Item) -> str:
    entries, limit = item.get("entries"), item.get("max_entries")
    return "-" if entries is None or not limit else f"{100 * entries / limit:.0f}%"


AGENT = Column("NODE", text("agent"))
TOLD_BY = Column("AGENT", text("agent"))  # where every agent knows about all nodes, NODE would mislead

STATUS = (
    AGENT,
    Column("READY", lambda s: "yes" if s.get("ready") else "no"),
    Column("CONTROLLER", text("controller", "state")),
    Column("SNAPSHOT", count("snapshot", "version"), right=True),
    Column("ENROLLED", lambda s: f"{s['pods_enrolled']}/{s['pods_wanted']}", right=True),
    Column("CERTIFICATES", lambda s: f"{s['certificates']['valid']}/{s['certificates']['total']}", right=True),
    Column("IN", count("connections", "inbound"), right=True),
    Column("OUT", count("connections", "outbound"), right=True),
    Column("OLDER", count("connections", "older"), right=True),
    Column("UP", lambda s: human_duration(s.get("uptime_seconds") or 0), right=True),
    Column("VERSION", text("version")),
)
PODS = (
    AGENT,
    Column("NAMESPACE", text("namespace")),
    Column("POD", text("name")),
    Column("STATE", text("state")),
    Column("ADDRESS", text("addresses"), stacked=True),
    Column("IDENTITY", text("identity")),
    Column("ERROR", text("error"), optional=True),
)
WORKLOADS = (
    TOLD_BY,
    Column("NAMESPACE", text("namespace")),
    Column("NAME", text("name")),
    Column("ADDRESS", text("addresses"), stacked=True),
    Column("NODE", text("node")),
    Column("PROTOCOL", text("protocol")),
    Column("STATUS", text("status")),
    Column("IDENTITY", text("identity")),
    Column("SERVICES", lambda w: text("hostnames")({"hostnames": [s["hostname"] for s in w.get("services", ())]})),
)
SERVICES = (
    TOLD_BY,
    Column("NAMESPACE", text("namespace")),
    Column("NAME", text("name")),
    Column("ADDRESS", text("addresses"), stacked=True),
    Column("PORTS", _ports),
    Column("ENDPOINTS", lambda s: f"{s['endpoints_healthy']}/{s['endpoints_total']}", right=True),
    Column("HOSTNAME", text("hostname")),
)
CERTIFICATES = (
    AGENT,
    Column("IDENTITY", text("identity")),
    Column("STATE", text("state")),
    Column("EXPIRES IN", until("not_after"), right=True),
    Column("NOT BEFORE", text("not_before")),
    Column("NOT AFTER", text("not_after")),
    Column("SERIAL", text("serial")),
    Column("ERROR", text("error"), optional=True),
)
CONNECTIONS = (
    AGENT,
    Column("DIRECTION", text("direction")),
    Column("SOURCE", _party("source")),
    Column("DESTINATION", _party("destination")),
    Column("SERVICE", text("service")),
    Column("PROTOCOL", text("protocol")),
    Column("SENT", size("bytes_sent"), right=True),
    Column("RECEIVED", size("bytes_received"), right=True),
    Column("AGE", lambda c: human_duration(c.get("age_seconds") or 0), right=True),
    Column("SOURCE IDENTITY", _principal("source")),
    Column("DESTINATION IDENTITY", _principal("destination")),
)
OLDER = (
    AGENT,
    Column("NAMESPACE", text("namespace")),
    Column("POD", text("pod")),
    Column("DIRECTION", text("direction")),
    Column("LOCAL", text("local")),
    Column("REMOTE", text("remote")),
)
PROGRAMS = (
    AGENT,
    Column("PROGRAM", text("name")),
    Column("ID", text("id"), right=True),
    Column("ATTACHED TO", text("attach")),
    Column("TARGET", text("target"), right=True),
    Column("LINK", text("link"), right=True),
    Column("TAG", text("tag")),
)
MAPS = (
    AGENT,
    Column("MAP", text("name")),
    Column("TYPE", text("type")),
    Column("ENTRIES", text("entries"), right=True),
    Column("MAX", lambda m: text("max_entries")(m) if m.get("max_entries") else "-", right=True),
    Column("FILL", _map_fill, right=True),
)
COUNTERS = (
    AGENT,
    Column("REASON", text("reason")),
    Column("COUNT", count("count"), right=True),
    Column("MEANING", text("meaning")),
)


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
    """Print. On a terminal cells wrap to its width; into a pipe or file nothing is ever cut or wrapped."""
    told = [t for t in tables if t.rows or t.note]
    if not out.isatty():
        out.write("\n".join(_plain(t) for t in told))
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=out, highlight=False)
    for number, shown in enumerate(told):
        if number:
            console.print()
        if shown.title:
            console.print(Text(shown.title, style="bold"))
        if not shown.rows:
            console.print(Text(shown.note))
            continue
        grid = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold cyan")
        for column in shown.columns:
            grid.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
        for row in shown.rows:
            cells = (
                c.replace(",", "\n") if column.stacked else c for c, column in zip(row, shown.columns, strict=True)
            )
            grid.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))
        console.print(grid)


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
}


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
        aligned.append("  ".join(padded).rstrip() + "\n")
    return title + "".join(aligned)
