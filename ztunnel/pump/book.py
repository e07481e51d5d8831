"""The standing orders of one pod: which stand, which have to go when there are too many, and what they are called."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST = 1024  # alternatives that stand: some 2 MiB here, and as much on each thread
_ORIGIN = 17  # bytes that a kind begins with: through which door, from which address


@dataclass(slots=True, kw_only=True, eq=False)
class Given:
    """One standing order. Its alternatives go by the numbers from `first` on."""

    kind: bytes
    first: int
    names: Sequence[object]
    used: bool = False  # since it was last considered for recall
    told: int = 0  # threads that have said all about it, once it is recalled

    @property
    def origin(self) -> bytes:
        return self.kind[:_ORIGIN]

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + len(self.names))


@dataclass(slots=True, kw_only=True)
class Book:
    """`standing`: by kind, the one first that was considered for recall longest ago. `numbered`: by the number of each
    alternative, also those that no longer stand, until all threads have said the last word about them.

    To make room, orders of the origin that has most are recalled, those first that were not used lately (the clock of
    page replacement). An origin is a client's address, or the pod itself for what it dials: who reaches ever new ports
    drives out its own orders, and the more there are who do, the more alike are their shares.
    """

    standing: OrderedDict[bytes, Given] = field(default_factory=OrderedDict)
    numbered: dict[int, Given] = field(default_factory=dict)
    alternatives: int = 0  # that stand
    _shares: Counter[bytes] = field(default_factory=Counter)  # of them, by origin

    def add(self, given: Given) -> Sequence[Given]:
        """Those that have to be recalled for it. By itself it has at most `MOST` alternatives."""
        recalled = []
        while self.alternatives + len(given.names) > MOST:
            recalled.append(self._recall())
        self.standing[given.kind] = given
        self.numbered.update(dict.fromkeys(given.numbers, given))
        self._count(given, len(given.names))
        return recalled

    def use(self, number: int) -> object:
        """The alternative's name."""
        given = self.numbered[number]
        given.used = True
        return given.names[number - given.first]

    def lapse(self) -> None:
        """None stands."""
        self.standing.clear()
        self._shares.clear()
        self.alternatives = 0

    def lapsed(self, last: int) -> None:
        """The last word was said about all with numbers up to this one."""
        self.numbered = {number: given for number, given in self.numbered.items() if number > last}

    def spent(self, first: int, threads: int) -> None:
        """One of so many threads has said the last word about this one, which was recalled."""
        given = self.numbered.get(first)
        if given is None:  # it has lapsed since
            return
        given.told += 1
        if given.told == threads:
            for number in given.numbers:
                del self.numbered[number]

    def _recall(self) -> Given:
        most = max(self._shares.values())
        while True:
            kind, given = next(iter(self.standing.items()))
            if self._shares[given.origin] == most:
                if not given.used:
                    break
                given.used = False
            self.standing.move_to_end(kind)
        del self.standing[kind]
        self._count(given, -len(given.names))
        return given

    def _count(self, given: Given, change: int) -> None:
        self.alternatives += change
        self._shares[given.origin] += change
        if not self._shares[given.origin]:
            del self._shares[given.origin]
