"""Objects on disk: who may write what."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.lab.manifest import Key, Object
from deploy.lab.store import Store
from mesh.resources import load

KEY = Key("Pod", "default", "p")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "cluster").mkdir()
    return Store(tmp_path / "cluster")


def pod(uid: str = "1", **more: object) -> Object:
    return {"kind": "Pod", "metadata": {"name": "p", "namespace": "default", "uid": uid}, **more}


def test_one_file_per_object(store: Store) -> None:
    store.put(pod(spec={"a": ["x"], "b": ["x"]}))
    store.put({"kind": "Node", "metadata": {"name": "n1"}})
    assert {path.name for path in store.directory.iterdir()} == {"pod.default.p.json", "node.n1.json"}
    assert set(store.load()) == {KEY, Key("Node", "", "n1")}


def test_the_controller_reads_what_was_put(store: Store) -> None:
    texts = ["12e4", "0o17", "on", "null", "1:30", "", " a\n\tb ", "\U0001f98a", *(chr(n) for n in range(0x20, 0xA1))]
    item = pod(spec={"texts": [*texts, "\u2028", "\ufeff", "\uffff"], "numbers": [1, 0.5, True, None]})
    store.put(item)
    assert load(store.path(KEY).read_bytes(), file="f") == [item]
    assert store.get(KEY) == item


def test_a_status_is_its_writer_s(store: Store) -> None:
    store.put(pod())
    assert store.change(KEY, "1", lambda item: item | {"status": {"phase": "Running"}})
    store.put(pod(spec={}, status={"phase": "Pending"}))
    assert store.get(KEY) == pod(spec={}, status={"phase": "Running"})
    store.put(pod("2", status={"phase": "Pending"}))
    assert store.get(KEY) == pod("2", status={"phase": "Pending"}), "a new pod of that name has a status of its own"


def test_a_status_never_brings_a_deleted_pod_back(store: Store) -> None:
    store.put(pod("2"))
    assert not store.change(KEY, "1", lambda item: item | {"status": {}})
    store.delete(KEY)
    assert not store.change(KEY, "2", lambda item: item | {"status": {}})
    assert store.load() == {} and store.get(KEY) is None


def test_load_sees_every_change(store: Store) -> None:
    for number in range(50):
        store.put(pod(str(number)))
        assert store.load()[KEY]["metadata"]["uid"] == str(number)
