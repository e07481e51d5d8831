"""Certificates: what is due, as a table; and the holder against our own CA."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controller import ca
from mesh.control import CertificateReply, CertificateRequest
from mesh.identity import SpiffeId
from ztunnel.certificates import CONCURRENT, Certificates, Failure, Plan, backoff, plan
from ztunnel.csr import Held
from ztunnel.orders import Credentials

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def at(hours: float) -> datetime:
    return T0 + timedelta(hours=hours)


def identity(name: str) -> SpiffeId:
    return SpiffeId("cluster.local", "shop", name)


def held(name: str, renew: float = 12, end: float = 24) -> Held:
    credentials = Credentials(identity=identity(name), chain=(b"",), key=b"", roots=())
    return Held(credentials=credentials, serial=1, not_before=T0, not_after=at(end), renew_at=at(renew))


def failed(until: float) -> Failure:
    return Failure(count=1, retry_at=at(until), error="e")


@pytest.mark.parametrize(
    ("now", "wanted", "has", "failures", "fetching", "expected"),
    [
        (0, "", {}, {}, "", Plan()),
        (0, "a", {}, {}, "", Plan(fetch=(identity("a"),))),
        (0, "a", {}, {}, "a", Plan()),
        (0, "a", {"a": held("a")}, {}, "", Plan(wake_at=at(12))),
        (12, "a", {"a": held("a")}, {}, "", Plan(fetch=(identity("a"),))),
        (30, "a", {"a": held("a")}, {}, "", Plan(fetch=(identity("a"),))),
        (0, "a", {}, {"a": failed(0.01)}, "", Plan(wake_at=at(0.01))),
        # The clock was set back: by an hour, by a day.
        (0, "a", {}, {"a": failed(1)}, "", Plan(fetch=(identity("a"),))),
        (-24, "a", {"a": held("a")}, {}, "", Plan(fetch=(identity("a"),))),
        (-24, "a", {"a": held("a")}, {"a": failed(-23.99)}, "", Plan(wake_at=at(-23.99))),
        (1, "a", {}, {"a": failed(1)}, "", Plan(fetch=(identity("a"),))),
        (13, "a", {"a": held("a")}, {"a": failed(13.01)}, "", Plan(wake_at=at(13.01))),
        (0, "", {"a": held("a")}, {}, "", Plan(forget=(identity("a"),))),
        (0, "", {}, {"a": failed(1)}, "", Plan(forget=(identity("a"),))),
        (0, "ab", {"a": held("a", renew=5), "b": held("b", renew=3)}, {}, "", Plan(wake_at=at(3))),
        (
            13,
            "abc",
            {"a": held("a", end=24), "b": held("b", end=20)},
            {},
            "",
            Plan(fetch=(identity("c"), identity("b"), identity("a"))),
        ),
        (0, "abcdefghij", {}, {}, "", Plan(fetch=tuple(identity(n) for n in "abcdefgh"))),
        (0, "abcdefghij", {}, {}, "abcdefgh", Plan()),
        (0, "abcdefghij", {}, {}, "bcdefgh", Plan(fetch=(identity("a"),))),
    ],
)
def test_what_is_due(
    now: float, wanted: str, has: dict[str, Held], failures: dict[str, Failure], fetching: str, expected: Plan
) -> None:
    assert (
        plan(
            at(now),
            wanted={identity(n) for n in wanted},
            held={identity(n): h for n, h in has.items()},
            failures={identity(n): f for n, f in failures.items()},
            fetching={identity(n) for n in fetching},
        )
        == expected
    )


def test_backoff_doubles_and_is_bounded() -> None:
    class Zero:
        def random(self) -> float:
            return 0.0

    assert [backoff(n, Zero()) for n in (1, 2, 3, 8, 9, 1000)] == [1, 2, 4, 128, 150, 150]
    assert all(120 <= backoff(20, random.Random(n)) <= 150 for n in range(50))


@dataclass
class Authority:
    """A CA that can be told to fail, and counts."""

    ca: ca.Authority
    clock: list[datetime]
    broken: bool = False
    asked: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def fetch(self, request: CertificateRequest) -> CertificateReply:
        self.asked.append(request.identity)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.broken:
            raise OSError("the controller is away")
        chain = self.ca.issue(request.csr, SpiffeId.parse(request.identity), now=self.clock[0])
        return CertificateReply(chain=chain, roots=self.ca.roots)


@dataclass
class Holder:
    """The real thing, its surroundings, and what it said."""

    certificates: Certificates
    authority: Authority
    clock: list[datetime]
    came: list[Credentials]
    told: asyncio.Event

    async def until_told(self) -> None:
        async with asyncio.timeout(10):
            await self.told.wait()
        self.told.clear()


@asynccontextmanager
async def holder(tmp_path: Path) -> AsyncIterator[Holder]:
    clock = [datetime.now(UTC).replace(microsecond=0)]
    authority = Authority(ca.load_or_create(tmp_path, trust_domain="cluster.local", now=clock[0]), clock)
    came: list[Credentials] = []
    told = asyncio.Event()

    def changed(credentials: Credentials) -> None:
        came.append(credentials)
        told.set()

    certificates = Certificates(
        fetch=authority.fetch, changed=changed, failed=lambda _: told.set(), rng=random.Random(1), now=lambda: clock[0]
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(certificates.run())
        yield Holder(certificates, authority, clock, came, told)
        running.cancel()


async def test_one_certificate_serves_all_pods_of_an_identity(tmp_path: Path) -> None:
    async with holder(tmp_path) as h:
        h.certificates.want(identity("web"))
        h.certificates.want(identity("web"))
        assert h.certificates.current(identity("web")) is None
        await h.until_told()
        assert h.certificates.current(identity("web")) is h.came[0]
        h.certificates.release(identity("web"))
        await asyncio.sleep(0)
        assert h.certificates.current(identity("web")) is h.came[0]
        assert h.authority.asked == [str(identity("web"))]


async def test_with_the_last_pod_the_key_is_forgotten(tmp_path: Path) -> None:
    async with holder(tmp_path) as h:
        h.certificates.want(identity("web"))
        await h.until_told()
        h.certificates.release(identity("web"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert h.certificates.views() == []
        assert h.certificates.current(identity("web")) is None


async def test_renewed_at_half_life_and_the_old_one_serves_until_it_expires(tmp_path: Path) -> None:
    async with holder(tmp_path) as h:
        h.certificates.want(identity("web"))
        await h.until_told()
        first = h.came[0]
        h.authority.broken = True
        h.clock[0] += timedelta(hours=13)
        h.certificates.retry()
        await h.until_told()
        assert h.certificates.current(identity("web")) is first
        assert [(v.state, v.error) for v in h.certificates.views()] == [("valid", "OSError: the controller is away")]
        h.authority.broken = False
        h.certificates.retry()
        await h.until_told()
        second = h.certificates.current(identity("web"))
        assert second is h.came[1]
        assert second is not None
        assert second.key != first.key
        h.authority.broken = True
        h.clock[0] += timedelta(hours=30)
        assert h.certificates.current(identity("web")) is None
        assert h.certificates.views()[0].state == "expired"


async def test_failures_are_the_identitys_own(tmp_path: Path) -> None:
    async with holder(tmp_path) as h:
        h.authority.broken = True
        h.certificates.want(identity("web"))
        await h.until_told()
        assert h.certificates.error(identity("web")) == "OSError: the controller is away"
        assert h.certificates.views()[0].state == "failed"
        h.authority.broken = False
        h.certificates.want(identity("other"))
        await h.until_told()
        assert h.certificates.current(identity("other")) is not None
        assert h.certificates.current(identity("web")) is None
        h.certificates.retry()
        await h.until_told()
        assert h.certificates.current(identity("web")) is not None
        assert h.certificates.error(identity("web")) == ""


async def test_a_storm_is_fetched_a_few_at_a_time(tmp_path: Path) -> None:
    async with holder(tmp_path) as h:
        for n in range(20):
            h.certificates.want(identity(f"s{n}"))
        async with asyncio.timeout(20):
            while len(h.came) < 20:
                await h.until_told()
        assert h.authority.most_at_once <= CONCURRENT


async def test_a_successor_goes_on_with_what_was_held(tmp_path: Path) -> None:
    async with holder(tmp_path) as h:
        for name in ("web", "db"):
            h.certificates.want(identity(name))
        async with asyncio.timeout(10):
            while len(h.came) < 2:
                await h.until_told()
        heir = Certificates(
            fetch=h.authority.fetch,
            changed=h.came.append,
            failed=lambda _: h.told.set(),
            rng=h.certificates.rng,
            now=h.certificates.now,
        )
        heir.inherit(h.certificates.held())
        heir.want(identity("web"))
        assert heir.current(identity("web")) is h.certificates.current(identity("web"))
        running = asyncio.create_task(heir.run())
        for _ in range(5):
            await asyncio.sleep(0)
        assert [view.identity for view in heir.views()] == [identity("web")], "nobody wants the other one any more"
        assert len(h.authority.asked) == 2
        running.cancel()
