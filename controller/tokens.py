"""The nodes' bootstrap tokens: a JSON file `{"<node>": "<sha256 hex of its token>"}`, read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

import msgspec

_log = logging.getLogger(__name__)
_NOBODY = "0" * 64


class TokensError(RuntimeError):
    """The file cannot be read; the text says why."""


class Tokens:
    """Raises TokensError if the file is bad at the start; a bad change later keeps what was good."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._hashes = _read(path)

    def allows(self, node: str, token: str) -> bool:
        """Is this the node's token? Takes the same time whatever the answer, known node or not."""
        self._refresh()
        expected = self._hashes.get(node, _NOBODY)
        given = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        return hmac.compare_digest(given, expected) and node in self._hashes

    def _refresh(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._hashes = _read(self._path)
        except TokensError as error:
            _log.error("the new tokens are refused; the old ones stay", extra={"cause": str(error)})


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> dict[str, str]:
    form = 'write {"<node>": "<sha256 hex of its token>"}'
    try:
        given = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except OSError as error:
        raise TokensError(f"--tokens {path}: {error.strerror}; {form} to it") from error
    except ValueError as error:
        raise TokensError(f"--tokens {path}: not a JSON object of node to sha256: {error}; {form}") from error
    for node, digest in given.items():
        if len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef"):
            raise TokensError(f"--tokens {path}: {node}: not a sha256 in hex; write what `sha256sum` says of the token")
    return {node: digest.lower() for node, digest in given.items()}
