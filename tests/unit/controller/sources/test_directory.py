"""A real directory, real events."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controller.sources.directory import Directory
from controller.sources.files import Files

DEADLINE_S = 20.0


def namespace(name: str, label: str = "x") -> str:
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{l: {label}}}}}\n"


def labels(directory: Directory) -> dict[str, str]:
    return {k.name: o.metadata.labels["l"] for k, o in directory.files.objects().items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


@asynccontextmanager
async def followed(source: Path) -> AsyncIterator[Directory]:
    directory = Directory(source, Files())
    directory.scan()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(directory.follow(lambda: None))
        yield directory
        task.cancel()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - the watcher calls nobody when nothing changed for the better
            await asyncio.sleep(0.01)


async def has(directory: Directory, expected: dict[str, str]) -> None:
    await until(lambda: labels(directory) == expected)


async def test_files_come_change_and_go(source: Path) -> None:
    (source / "a.yaml").write_text(namespace("one"))
    (source / "ignored.txt").write_text("not ours")
    (source / ".hidden.yaml").write_text("{")
    async with followed(source) as directory:
        assert labels(directory) == {"one": "x"}
        (source / "b.yml").write_text(namespace("two"))
        await has(directory, {"one": "x", "two": "x"})
        (source / "a.yaml").write_text(namespace("one", "new"))
        await has(directory, {"one": "new", "two": "x"})
        fresh = source / ".a.yaml.tmp"
        fresh.write_text(namespace("one", "renamed"))
        fresh.rename(source / "a.yaml")
        await has(directory, {"one": "renamed", "two": "x"})
        (source / "b.yml").unlink()
        await has(directory, {"one": "renamed"})
        assert list(directory.files.refusals()) == []


async def test_a_half_written_file_changes_nothing(source: Path) -> None:
    (source / "a.yaml").write_text(namespace("one"))
    async with followed(source) as directory:
        with (source / "a.yaml").open("w") as file:
            file.write("apiVersion: v1\nkind: Namespace\nmetadata: {name: one, labels: {l: ")
            file.flush()
            await until(lambda: bool(list(directory.files.refusals())))
            assert labels(directory) == {"one": "x"}
            file.write("rest}}\n")
        await has(directory, {"one": "rest"})
        assert list(directory.files.refusals()) == []


def test_a_file_just_emptied_is_not_believed_yet(source: Path) -> None:
    file = source / "a.yaml"
    file.write_text(namespace("one"))
    directory = Directory(source, Files())
    assert directory.scan()
    os.truncate(file, 0)
    assert not directory.scan()
    assert labels(directory) == {"one": "x"}
    past = time.time() - 5
    os.utime(file, (past, past))
    assert directory.scan()
    assert labels(directory) == {}


def test_an_unchanged_directory_is_not_read_again(source: Path) -> None:
    (source / "a.yaml").write_text(namespace("one"))
    directory = Directory(source, Files())
    assert directory.scan()
    assert not directory.scan()


def test_a_directory_that_vanishes_keeps_everything(source: Path) -> None:
    (source / "a.yaml").write_text(namespace("one"))
    directory = Directory(source, Files())
    directory.scan()
    source.rename(source.with_name("elsewhere"))
    assert not directory.scan()
    assert labels(directory) == {"one": "x"}


async def test_a_directory_that_appears_late_is_followed(tmp_path: Path) -> None:
    source = tmp_path / "late"
    async with followed(source) as directory:
        source.mkdir()
        (source / "a.yaml").write_text(namespace("one"))
        await has(directory, {"one": "x"})


def test_a_file_that_cannot_be_read_and_one_too_large(source: Path) -> None:
    (source / "a.yaml").symlink_to(source / "a.yaml")  # a loop: OSError, even for root
    with (source / "b.yaml").open("wb") as file:
        file.truncate(65 << 20)
    directory = Directory(source, Files())
    directory.scan()
    said = sorted(str(error) for error in directory.files.refusals())
    assert said[0].startswith("a.yaml: it cannot be read: Too many levels of symbolic links")
    assert said[1] == "b.yaml: the file is larger than 67108864 bytes; split it"
    assert not directory.scan()


def test_over_a_restart_a_bad_object_is_what_it_last_was(source: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    (source / "a.yaml").write_text(namespace("one") + "---\n" + namespace("two"))
    Directory(source, Files(), keep=keep).scan()
    (source / "a.yaml").write_text(namespace("one", "'*'") + "---\n" + namespace("two", "new"))
    again = Directory(source, Files(), keep=keep)
    again.scan()
    assert labels(again) == {"one": "x", "two": "new"}
    (source / "a.yaml").unlink()
    third = Directory(source, Files(), keep=keep)
    third.scan()
    assert labels(third) == {}
    (source / "a.yaml").write_text(namespace("one", "'*'"))
    third.scan()
    assert labels(third) == {}, "a file that was away does not bring an old object back"
