"""What the tour tells people to type: something that they can."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.lab.demo import program


@pytest.mark.parametrize(
    ("called", "on_path", "typed"),
    [
        (".venv/bin/gossamer", False, ".venv/bin/gossamer"),
        ("/opt/venv/bin/gossamer", False, "/opt/venv/bin/gossamer"),
        (".venv/bin/gossamer", True, "gossamer"),
        ("deploy/cli.py", False, "gossamer"),
    ],
)
def test_our_name_is_what_people_can_type(called: str, on_path: bool, typed: str, tmp_path: Path) -> None:
    if on_path:
        (tmp_path / "gossamer").touch(mode=0o755)
    assert program(called, str(tmp_path)) == typed
