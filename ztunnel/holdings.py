"""What this node holds of the controller's state: resources with their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mesh.control import Entry, Update, encode
from mesh.snapshot import Delta, Snapshot, check


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
