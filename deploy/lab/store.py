"""The cluster's objects on disk: one YAML file per object, `<kind>.<namespace>.<name>.yaml`, replaced atomically.

Several processes change it (the command line: metadata and spec; kubelets: status), so every change is made under one
lock, to the object as it is then. Readers need no lock.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from deploy.lab.manifest import Key, Object, key_of
from deploy.lab.slot import locked

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes every value out, as kubectl does, instead of an alias to an equal one."""

    def ignore_aliases(self, data: object) -> bool:
        return True


class Store:
    """The objects under one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = directory.with_name(f"{directory.name}.lock")
        self._seen: dict[Path, tuple[tuple[int, int], Object]] = {}

    def path(self, key: Key) -> Path:
        parts = (key.kind.lower(), key.namespace, key.name) if key.namespace else (key.kind.lower(), key.name)
        return self.directory / f"{'.'.join(parts)}.yaml"

    def load(self) -> dict[Key, Object]:
        """All objects. A file that has not changed since the last call is not read again."""
        seen: dict[Path, tuple[tuple[int, int], Object]] = {}
        for path in self.directory.glob("*.yaml"):
            try:
                info = path.stat()
                stamp = (info.st_ino, info.st_mtime_ns)  # every write is a new file
                known = self._seen.get(path)
                item = (
                    known[1]
                    if known is not None and known[0] == stamp
                    else yaml.load(path.read_bytes(), Loader=_LOADER)
                )
            except FileNotFoundError:
                continue
            seen[path] = (stamp, item)
        self._seen = seen
        return {key_of(item): item for _, item in seen.values()}

    def get(self, key: Key) -> Object | None:
        try:
            return yaml.load(self.path(key).read_bytes(), Loader=_LOADER)
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
        path = self.path(key)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(yaml.dump(item, Dumper=_Dumper, sort_keys=False, width=120))
        fresh.rename(path)
