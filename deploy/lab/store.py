"""The cluster's objects on disk: one file per object, `<kind>.<namespace>.<name>.json`, replaced atomically.

Several processes change it (the command line: metadata and spec; kubelets: status), so every change is made under one
lock, to the object as it is then. Readers need no lock. JSON, because readers of YAML disagree on whether `1e5` and
`on` are strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from deploy.lab.file import replace
from deploy.lab.manifest import Key, Object, key_of
from deploy.lab.slot import locked

# What a YAML reader takes for a line break or refuses, and JSON would leave as it is.
_NOT_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


class Store:
    """The objects under one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = directory.with_name(f"{directory.name}.lock")
        self._seen: dict[Path, tuple[tuple[int, int], Object]] = {}

    def path(self, key: Key) -> Path:
        parts = (key.kind.lower(), key.namespace, key.name) if key.namespace else (key.kind.lower(), key.name)
        return self.directory / f"{'.'.join(parts)}.json"

    def load(self) -> dict[Key, Object]:
        """All objects. A file that has not changed since the last call is not read again."""
        seen: dict[Path, tuple[tuple[int, int], Object]] = {}
        for path in self.directory.glob("*.json"):
            try:
                info = path.stat()
                stamp = (info.st_ino, info.st_mtime_ns)  # every write is a new file
                known = self._seen.get(path)
                item = known[1] if known is not None and known[0] == stamp else json.loads(path.read_bytes())
            except FileNotFoundError:
                continue
            seen[path] = (stamp, item)
        self._seen = seen
        return {key_of(item): item for _, item in seen.values()}

    def get(self, key: Key) -> Object | None:
        try:
            found: Object = json.loads(self.path(key).read_bytes())
            return found
        except FileNotFoundError:
            return None

    def put(self, item: Object) -> None:
        """Write metadata and spec; a status that a kubelet has written in the meantime stays."""
        key = key_of(item)
        with locked(self._lock):
            before = self.get(key)
            if (
                before is not None
                and before["metadata"].get("uid") == item["metadata"].get("uid")
                and "status" in before
            ):
                item = item | {"status": before["status"]}
            self._write(key, item)

    def change(self, key: Key, uid: str, change: Callable[[Object], Object]) -> bool:
        """Replace the object by what `change` makes of it; False if it is gone or another of its name is there."""
        with locked(self._lock):
            before = self.get(key)
            if before is None or before["metadata"].get("uid") != uid:
                return False
            after = change(before)
            if after != before:
                self._write(key, after)
            return True

    def delete(self, key: Key) -> None:
        with locked(self._lock):
            self.path(key).unlink(missing_ok=True)

    def _write(self, key: Key, item: Object) -> None:
        text = json.dumps(item, indent=2, ensure_ascii=False)
        replace(self.path(key), _NOT_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
