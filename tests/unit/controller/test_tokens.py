"""Who a token belongs to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from controller.tokens import Tokens, TokensError


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def write(path: Path, content: object) -> Path:
    fresh = path.with_suffix(".tmp")
    fresh.write_text(content if isinstance(content, str) else json.dumps(content))
    return fresh.replace(path)


def test_a_token_belongs_to_one_node(tmp_path: Path) -> None:
    tokens = Tokens(write(tmp_path / "t", {"n1": digest("one"), "n2": digest("two").upper()}))
    assert tokens.allows("n1", "one")
    assert tokens.allows("n2", "two")
    for node, token in (
        ("n1", "two"),
        ("n2", "one"),
        ("n3", "one"),
        ("n3", ""),
        ("", ""),
        ("n1", ""),
        ("n1", "ö\udcff"),
    ):
        assert not tokens.allows(node, token)


def test_nobody_gets_in_with_the_digest_of_nobody(tmp_path: Path) -> None:
    assert not Tokens(write(tmp_path / "t", {})).allows("n1", "0" * 64)


def test_a_change_is_seen_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "t", {"n1": digest("one")})
    tokens = Tokens(path)
    write(path, {"n1": digest("new"), "n2": digest("two")})
    assert (tokens.allows("n1", "one"), tokens.allows("n1", "new"), tokens.allows("n2", "two")) == (False, True, True)
    write(path, "{")
    assert tokens.allows("n1", "new")
    path.unlink()
    assert tokens.allows("n1", "new")


@pytest.mark.parametrize("content", ["", "[]", '{"n1": 1}', '{"n1": "abc"}', {"n1": "g" * 64}])
def test_a_file_that_is_no_token_file(tmp_path: Path, content: object) -> None:
    with pytest.raises(TokensError, match="t: "):
        Tokens(write(tmp_path / "t", content))
    with pytest.raises(TokensError):
        Tokens(tmp_path / "absent")
