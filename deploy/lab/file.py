"""Files: replaced so that they are complete and valid at any time, whoever reads them and whenever the writer dies; and
the end of a log."""

from __future__ import annotations

from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write beside the file, then rename over it."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.rename(path)


def tail(path: Path, lines: int = 15) -> str:
    """The end of a log, for an error message."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"
