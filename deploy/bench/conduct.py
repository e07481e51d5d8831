"""Carry a measurement out as a command: root, progress on stderr, Ctrl-C and its exit status; sheets for people."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from deploy.bench.fault import BenchError
from deploy.lab.fault import LabError

T = TypeVar("T")
Step = Callable[[str], None]
_ENDING = (signal.SIGINT, signal.SIGTERM)
_UNWATCHED_WIDTH = 120  # of a table that goes to a file


def conduct(name: str, steps: int, measure: Callable[[Step], T], show: Callable[[T], None]) -> int:
    """The exit status: 0 measured and shown, 1 failed, 2 not root, 130 interrupted. `measure` calls its argument before
    each of about `steps` steps."""
    errors = Console(stderr=True)
    if os.geteuid() != 0:
        errors.print(f"{name}: needs root: it makes network namespaces; run it with sudo")
        return 2
    previous = {number: signal.signal(number, _interrupt) for number in _ENDING}
    try:
        bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*bar, console=errors, transient=True) as progress:
            task = progress.add_task("preparing", total=steps)
            # Described before it happens, counted when the next begins.
            found = measure(lambda what: progress.update(task, description=what, advance=1))
    except (BenchError, LabError, OSError) as error:
        errors.print(f"{name}: {error}", style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        errors.print(f"{name}: stopped; everything is removed")
        return 130
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    show(found)
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A table for people: a row is what it is about, then a cell for each column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str

    def show(self) -> None:
        """Print it to stdout."""
        console = Console()
        if not console.is_terminal:
            console = Console(width=_UNWATCHED_WIDTH)
        table = Table(title=self.title, header_style="bold", pad_edge=False, box=box.SIMPLE_HEAD)
        table.add_column("", no_wrap=True)
        for column in self.columns:
            table.add_column(column, justify="right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        console.print(Text(self.note, style="dim"))


def print_json(document: dict[str, Any]) -> None:
    """To stdout, for programs."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    print()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Once: who presses Ctrl-C again, or timeout(1), which ends the process and its group, must not end the removal."""
    for each in _ENDING:
        signal.signal(each, _heard)
    raise KeyboardInterrupt


def _heard(number: int, frame: FrameType | None) -> None:
    """The removal is under way already."""
