"""The copy on disk of what the controller has brought."""

from __future__ import annotations

import asyncio
import random
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.control import Update, encode, entry
from mesh.model import Policy, PolicyAction, PolicyScope, Service, Workload
from ztunnel import journal
from ztunnel.holdings import Holdings
from ztunnel.journal import Journal, Reader

A = Workload(uid="u/a", name="a", namespace="shop", addresses=("10.0.0.1",))
S = Service(name="s", namespace="shop", hostname="s.shop.svc.cluster.local")
P = Policy(name="p", namespace="shop", scope=PolicyScope.NAMESPACE, action=PolicyAction.DENY)
FIRST = Update(nonce=1, upserts=(entry(A), entry(S)), trust_domain="td", root_namespace="root")
DENY = Update(nonce=2, upserts=(entry(P),), trust_domain="td", root_namespace="root")
LOOSEN = Update(nonce=3, removes=(P.key,), trust_domain="td", root_namespace="root")


def follow(book: Journal, held: Holdings, *updates: Update) -> Holdings:
    for update in updates:
        book.add(encode(update), to=held)
        held, _ = held.after(update)
    return held


def same(a: Holdings | None, b: Holdings) -> bool:
    assert a is not None
    return a.hashes == b.hashes and a.snapshot == replace(b.snapshot, version=a.snapshot.version)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "snapshot.jsonl"


def test_whatever_was_about_to_be_applied_is_known_to_the_next_agent(path: Path) -> None:
    """No agent of these is ever closed: each might have been killed at this moment."""
    held = Holdings()
    for update in (FIRST, DENY, LOOSEN):
        book = Journal(path=path)
        assert update is FIRST or same(book.restore(), held)
        held = follow(book, held, update)
        assert same(Journal(path=path).restore(), held)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_that_was_not_finished_was_not_acted_on(path: Path) -> None:
    first = follow(Journal(path=path), Holdings(), FIRST)
    whole = path.read_bytes()
    line = encode(DENY) + b"\n"
    for cut in (1, len(line) // 2, len(line) - 1):
        path.write_bytes(whole + line[:cut])
        book = Journal(path=path)
        held = book.restore()
        assert same(held, first)
        after = follow(book, first, DENY)
        assert same(Journal(path=path).restore(), after)


def test_a_copy_that_cannot_be_read_is_as_good_as_none(path: Path) -> None:
    assert Journal(path=path).restore() is None
    for garbage in (b"", b"\n", b"{\n", b"[" * 100_000 + b"\n", b'{"type":"hello"}\n', b"\xff\n"):
        path.write_bytes(garbage)
        assert Journal(path=path).restore() is None
        held = follow(Journal(path=path), Holdings(), FIRST)
        assert same(Journal(path=path).restore(), held)
    path.unlink()
    path.mkdir()
    assert Journal(path=path).restore() is None


async def test_it_is_written_anew_when_it_has_grown_and_misses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_GROWTH", 256)
    rng, book, held = random.Random(7), Journal(path=path), Holdings()
    held = follow(book, held, FIRST)
    for _ in range(60):
        tidying = asyncio.create_task(book.tidy(held))
        while not tidying.done():
            held = follow(book, held, rng.choice((DENY, LOOSEN)))
            await asyncio.sleep(0)
        await tidying
        assert same(Journal(path=path).restore(), held)
    await book.tidy(held)
    most, _ = Holdings().after(FIRST)[0].after(DENY)
    assert path.stat().st_size < 2 * (len(most.encoded()) + 1) + 256
    assert [p.name for p in path.parent.iterdir()] == [path.name]


async def test_a_copy_that_could_not_be_written_is_no_stale_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Journal(path=path)
    held = follow(book, Holdings(), FIRST)
    with monkeypatch.context() as full:

        def no_space(_file: int, _line: bytes) -> None:
            raise OSError(28, "No space left on device")

        full.setattr(journal, "_write", no_space)
        held = follow(book, held, DENY)
        assert not path.exists()
        await book.tidy(held)
        assert not path.exists()
    held = follow(book, held, LOOSEN, DENY)
    assert Journal(path=path).restore() is None
    await book.tidy(held)
    assert same(Journal(path=path).restore(), held)


async def test_a_good_copy_outlives_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_GROWTH", -(1 << 20))
    book = Journal(path=path)
    held = follow(book, Holdings(), FIRST, DENY, LOOSEN, DENY)
    with monkeypatch.context() as full:

        def no_space(_file: int) -> None:
            raise OSError(28, "No space left on device")

        full.setattr(journal.os, "fsync", no_space)
        assert not await book.tidy(held)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    held = follow(book, held, LOOSEN)
    assert same(Journal(path=path).restore(), held)
    assert await book.tidy(held)
    assert same(Journal(path=path).restore(), held)


async def test_an_attempt_that_was_cancelled_does_not_write_into_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_GROWTH", -(1 << 20))
    write, entered, leave = journal._write, threading.Event(), threading.Event()
    book = Journal(path=path)
    held = follow(book, Holdings(), FIRST, DENY, LOOSEN, DENY)

    def slow(file: int, line: bytes) -> None:
        monkeypatch.setattr(journal, "_write", write)
        write(file, line[:10])
        entered.set()
        leave.wait(60)
        write(file, line[10:])

    monkeypatch.setattr(journal, "_write", slow)
    tidying = asyncio.create_task(book.tidy(held))
    await asyncio.to_thread(entered.wait, 60)
    tidying.cancel()
    await asyncio.gather(tidying, return_exceptions=True)
    try:
        assert await book.tidy(held)
    finally:
        leave.set()
    assert same(Journal(path=path).restore(), held)


def test_what_killed_agents_had_begun_is_swept(path: Path) -> None:
    held = follow(Journal(path=path), Holdings(), FIRST)
    (path.parent / f".{path.name}.4711.1.new").write_bytes(b"{")
    assert same(Journal(path=path).restore(), held)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_carriage_return_between_tokens_ends_no_line(path: Path) -> None:
    book, reader = Journal(path=path), Reader(path=path)
    book.add(encode(FIRST).replace(b",", b",\r\n"), to=Holdings())
    held, _ = Holdings().after(FIRST)
    assert same(Journal(path=path).restore(), held)
    assert reader.read()
    assert same(reader.holdings, held)


def test_a_reader_sees_each_update_once_it_is_whole(path: Path) -> None:
    reader, book = Reader(path=path), Journal(path=path)
    with pytest.raises(FileNotFoundError):
        reader.read()
    held = follow(book, Holdings(), FIRST)
    assert reader.read()
    assert same(reader.holdings, held)
    assert not reader.read()
    line = encode(DENY) + b"\n"
    for part in (line[:10], line[10:-1]):
        with path.open("ab") as file:
            file.write(part)
        assert not reader.read()
    with path.open("ab") as file:
        file.write(line[-1:])
    assert reader.read()
    assert same(reader.holdings, held.after(DENY)[0])


async def test_a_reader_goes_on_in_a_journal_that_was_written_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_GROWTH", -(1 << 20))
    book = Journal(path=path)
    held = follow(book, Holdings(), FIRST, DENY, LOOSEN, DENY)
    reader = Reader(path=path)
    assert reader.read()
    inode = path.stat().st_ino
    await book.tidy(held)
    assert path.stat().st_ino != inode
    held = follow(book, held, LOOSEN)
    assert reader.read()
    assert same(reader.holdings, held)
    held = follow(book, held, DENY)
    assert reader.read()
    assert same(reader.holdings, held)


def test_a_reader_of_no_journal_says_so(path: Path) -> None:
    path.write_bytes(b"nonsense\n")
    with pytest.raises(ValueError):
        Reader(path=path).read()
