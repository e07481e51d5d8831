"""What this node holds of the controller's state: resources with their hashes, and the copy on disk.

The copy makes a restarted agent work while the controller is away. It has no secrets in it, is readable by the agent
alone and replaced atomically; one that cannot be read is as good as none.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mesh.control import Entry, Update, decode_update, encode
from mesh.snapshot import Delta, Snapshot, check

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """A snapshot and the entries it was made of, by resource key."""

    snapshot: Snapshot = field(default_factory=Snapshot)
    entries: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def hashes(self) -> dict[str, str]:
        """For Hello: what need not be sent again."""
        return {key: entry.hash for key, entry in self.entries.items()}

    def after(self, update: Update) -> tuple[Holdings, dict[str, str]]:
        """With an Update applied, and why some of its resources were not; of those the last good state stays."""
        errors: dict[str, str] = {}
        good: dict[str, Entry] = {}
        for entry in update.upserts:
            try:
                check(entry.resource)
            except ValueError as error:
                errors[entry.resource.key] = str(error)
            else:
                good[entry.resource.key] = entry
        delta = Delta(
            upserts=tuple(entry.resource for entry in good.values()),
            removes=update.removes,
            trust_domain=update.trust_domain,
            root_namespace=update.root_namespace,
        )
        entries = dict(self.entries)
        for key in update.removes:
            entries.pop(key, None)
        entries.update(good)
        return replace(self, snapshot=self.snapshot.apply(delta), entries=entries), errors

    def encoded(self) -> bytes:
        """As one Update from nothing."""
        return encode(
            Update(
                nonce=0,
                upserts=tuple(self.entries.values()),
                trust_domain=self.snapshot.trust_domain,
                root_namespace=self.snapshot.root_namespace,
            )
        )


def load(path: Path) -> Holdings | None:
    """The copy on disk; None if there is none that can be read."""
    try:
        update, undecodable = decode_update(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, the controller will send everything: %s", path, error)
        return None
    holdings, invalid = Holdings().after(update)
    for key, why in {**undecodable, **invalid}.items():
        log.warning("%s: %s left out: %s", path, key, why)
    return holdings


def store(path: Path, data: bytes) -> None:
    """Replace the copy on disk; OSError. Blocks: for a thread."""
    scratch = path.with_name(f".{path.name}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
