"""Who has to go when there are too many standing orders, and how long their names are kept."""

from __future__ import annotations

import random

import pytest

from ztunnel.pump import book
from ztunnel.pump.book import Book, Given


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "MOST", 100)


class Shelf:
    """A book, and what it has said."""

    def __init__(self) -> None:
        self.book, self.last = Book(), 0
        self.recalled: list[bytes] = []

    def add(self, origin: int, what: int, alternatives: int = 1) -> Given:
        kind = b"t" + origin.to_bytes(16) + what.to_bytes(8)
        given = Given(kind=kind, first=self.last + 1, names=[kind] * alternatives)
        self.last += alternatives
        self.recalled += [other.kind for other in self.book.add(given)]
        assert self.book.alternatives == sum(len(g.names) for g in self.book.standing.values()) <= 100
        assert given.kind in self.book.standing
        return given

    def stand(self, *given: Given) -> bool:
        return all(each.kind in self.book.standing for each in given)


def test_one_peer_drives_out_its_own() -> None:
    shelf = Shelf()
    honest = [shelf.add(peer, what) for peer in range(1, 6) for what in range(9)]
    for what in range(5000):
        shelf.add(77, what)
    assert shelf.stand(*honest), "although nobody uses them"
    assert len(shelf.book.standing) == 100
    assert {kind[1:17] for kind in shelf.recalled} == {(77).to_bytes(16)}


def test_many_greedy_peers_leave_each_its_share() -> None:
    shelf, rng = Shelf(), random.Random(1)
    honest = [shelf.add(peer, 0) for peer in range(1, 6)]
    for what in range(5000):
        shelf.add(rng.randrange(100, 119), what)
    assert shelf.stand(*honest)
    shares = [sum(kind[1:17] == peer.to_bytes(16) for kind in shelf.book.standing) for peer in range(100, 119)]
    assert min(shares) >= 4 and max(shares) <= 6, "95 among 19"


def test_those_go_first_that_are_not_used() -> None:
    shelf = Shelf()
    used = [shelf.add(1, what) for what in range(20)]
    for what in range(100, 1000):
        for given in used:
            shelf.book.use(given.first)
        shelf.add(1, what)
    assert shelf.stand(*used)
    for what in range(1000, 1300):  # nobody uses any of them any more
        shelf.add(1, what)
    assert not any(given.kind in shelf.book.standing for given in used)


def test_where_each_peer_has_one_those_go_that_are_not_used() -> None:
    shelf = Shelf()
    used = [shelf.add(peer, 0) for peer in range(20)]
    for peer in range(100, 1000):
        for given in used:
            shelf.book.use(given.first)
        shelf.add(peer, 0)
    assert shelf.stand(*used)


def test_as_many_go_as_there_has_to_be_room() -> None:
    shelf = Shelf()
    one = shelf.add(1, 0, 60)
    two = shelf.add(2, 0, 40)
    three = shelf.add(3, 0, 30)
    assert not shelf.stand(one)
    assert shelf.stand(two, three)
    four = shelf.add(4, 0, 100)
    assert list(shelf.book.standing) == [four.kind]


def test_a_name_is_kept_until_all_threads_have_said_the_last_word() -> None:
    shelf = Shelf()
    given = shelf.add(1, 0, 60)
    shelf.add(1, 1, 60)
    assert not shelf.stand(given)
    shelf.book.spent(given.first, 2)
    assert shelf.book.use(given.first + 59) == given.kind
    shelf.book.spent(given.first, 2)
    with pytest.raises(KeyError):
        shelf.book.use(given.first)
    assert len(shelf.book.numbered) == 60


def test_names_of_what_has_lapsed_are_kept_until_it_was_told() -> None:
    shelf = Shelf()
    before = [shelf.add(1, what) for what in range(150)]
    last = shelf.last
    shelf.book.lapse()
    assert shelf.book.alternatives == len(shelf.book.standing) == 0
    after = shelf.add(1, 0)
    assert shelf.book.use(before[0].first) == before[0].kind
    shelf.book.lapsed(last)
    assert list(shelf.book.numbered) == [after.first]
    shelf.book.spent(before[0].first, 1)  # a recall from before
    assert shelf.stand(after)
    for what in range(1, 150):  # the shares were begun anew, too
        shelf.add(2, what)
    assert not shelf.stand(before[149])
