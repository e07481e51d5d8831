"""Files that are complete and valid at any time, whoever reads them and whenever the writer dies."""

from __future__ import annotations

from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write beside the file, then rename over it."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.rename(path)
