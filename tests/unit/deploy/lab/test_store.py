"""Objects on disk: who may write what."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deploy.lab.manifest import Key, Object
from deploy.lab.store import Store

KEY = Key("Pod", "default", "p")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "cluster").mkdir()
    return Store(tmp_path / "cluster")


def pod(uid: str = "1", **more: object) -> Object:
    return {"kind": "Pod", "metadata": {"name": "p", "namespace": "default", "uid": uid}, **more}


def test_one_yaml_file_per_object(store: Store) -> None:
    store.put(pod(spec={"a": ["x"], "b": ["x"]}))
    store.put({"kind": "Node", "metadata": {"name": "n1"}})
    assert {path.name for path in store.directory.iterdir()} == {"pod.default.p.yaml", "node.n1.yaml"}
    text = store.path(KEY).read_text()
    assert yaml.safe_load(text)["spec"] == {"a": ["x"], "b": ["x"]} and "&" not in text
    assert set(store.load()) == {KEY, Key("Node", "", "n1")}


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
