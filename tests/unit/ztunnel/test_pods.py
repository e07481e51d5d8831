"""Pod records: a directory, followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from ztunnel.pods import PodRecord, follow, read


def record(instance: str, name: str = "p") -> PodRecord:
    return PodRecord(instance=instance, namespace="shop", name=name, netns=f"/run/netns/{name}")


def write(directory: Path, record: PodRecord, name: str = "") -> Path:
    path = directory / f"{name or record.instance}.json"
    scratch = directory / ".new"
    scratch.write_bytes(msgspec.json.encode(record))
    return scratch.rename(path)


def test_records_by_instance(tmp_path: Path) -> None:
    write(tmp_path, record("a"))
    write(tmp_path, record("b"))
    (tmp_path / "README").write_text("not a record")
    (tmp_path / ".c.json").write_text("half written")
    assert read(tmp_path, {}) == {"a": record("a"), "b": record("b")}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"instance":"a"}',
        '{"instance":"b","namespace":"n","name":"p","netns":"/x"}',
        '{"instance":"a","namespace":"","name":"p","netns":"/x"}',
        '{"instance":"a","namespace":"n","name":"p","netns":"relative"}',
        '{"instance":"a","namespace":"n","name":"p","netns":"/' + "x" * (1 << 17) + '"}',
        "\xff",
    ],
)
def test_a_record_that_cannot_be_understood_changes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    write(tmp_path, record("good"))
    assert read(tmp_path, {}) == {"good": record("good")}
    assert read(tmp_path, {"a": record("a")}) == {"a": record("a"), "good": record("good")}


async def following(directory: Path) -> AsyncIterator[dict[str, PodRecord]]:
    async with asyncio.timeout(20):
        async for found in follow(directory):
            yield found


def test_a_fault_is_logged_once_until_it_is_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    faults: dict[Path, str] = {}
    for text, lines in (("{", 1), ("{", 1), ("[]", 2), ("[]", 2)):
        (tmp_path / "a.json").write_text(text)
        assert not read(tmp_path, {}, faults)
        assert len(caplog.records) == lines
    (tmp_path / "a.json").unlink()
    read(tmp_path, {}, faults)
    assert not faults


async def test_changes_are_followed(tmp_path: Path) -> None:
    write(tmp_path, record("a"))
    found = following(tmp_path)
    assert await anext(found) == {"a": record("a")}
    write(tmp_path, record("b"))
    assert await anext(found) == {"a": record("a"), "b": record("b")}
    write(tmp_path, record("b", "renamed"))
    assert await anext(found) == {"a": record("a"), "b": record("b", "renamed")}
    (tmp_path / "a.json").unlink()
    assert await anext(found) == {"b": record("b", "renamed")}
    await found.aclose()


async def test_a_directory_may_come_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = following(tmp_path / "pods")
    first = asyncio.create_task(anext(found))
    while "cannot be read: No such file or directory" not in caplog.text:  # noqa: ASYNC110 - a log record, no event
        await asyncio.sleep(0.01)
    (tmp_path / "pods").mkdir()
    write(tmp_path / "pods", record("a"))
    assert await first == {"a": record("a")}
    assert len(caplog.records) == 1
    await found.aclose()


async def test_an_empty_directory_is_said_to_be_empty(tmp_path: Path) -> None:
    found = following(tmp_path)
    assert await anext(found) == {}
    await found.aclose()
