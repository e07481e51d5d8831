"""Progress on stderr: one moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from deploy.lab.build import Say

_PLAIN_INTERVAL = 5.0  # seconds between two lines of the same kind where lines stay


@contextmanager
def progress(title: str) -> Iterator[Say]:
    """Gives the function that is told what is going on."""
    began = time.monotonic()
    if sys.stderr.isatty():
        with Console(stderr=True).status(escape(title)) as status:
            yield lambda text: status.update(
                f"[bold]{escape(title)}[/]  {escape(text)}  [dim]{time.monotonic() - began:.0f} s[/]"
            )
        return
    last, at = "", 0.0

    def say(text: str) -> None:
        nonlocal last, at
        kind, now = text.split(" ", 1)[0], time.monotonic()
        if kind != last or now - at > _PLAIN_INTERVAL:
            last, at = kind, now
            print(f"{title}: {text} ({now - began:.0f} s)", file=sys.stderr, flush=True)

    yield say
