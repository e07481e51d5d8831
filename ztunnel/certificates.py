"""Certificates of the identities that run on this node: one per identity, however many pods share it.

`plan` is pure and says what is due; `Certificates` does it. A new one is fetched at half of the old one's life, the
old one serves until it expires. Keys are made here, P-256, and are in memory only: this process', and in a planned
restart its successor's. An identity whose last pod has left is forgotten, key and all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec

from mesh.control import CertificateReply, CertificateRequest
from mesh.identity import SpiffeId
from mesh.route import Rng
from ztunnel.csr import CLOCK_SKEW, Held, accept, signing_request
from ztunnel.orders import Credentials

log = logging.getLogger(__name__)

CONCURRENT = 8
_BACKOFF_FIRST = 1.0
_BACKOFF_LIMIT = 150.0
_JITTER = 0.2

Fetch = Callable[[CertificateRequest], Awaitable[CertificateReply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The last of `count` failures in a row."""

    count: int
    retry_at: datetime
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do now, and when to look again (None: when something changes)."""

    fetch: tuple[SpiffeId, ...] = ()
    forget: tuple[SpiffeId, ...] = ()
    wake_at: datetime | None = None


def plan(
    now: datetime,
    *,
    wanted: Collection[SpiffeId],
    held: Mapping[SpiffeId, Held],
    failures: Mapping[SpiffeId, Failure],
    fetching: Collection[SpiffeId],
) -> Plan:
    """Identities without a valid certificate go first, then those nearest to their expiry; CONCURRENT at a time."""
    forget = tuple(sorted(i for i in {*held, *failures} if i not in wanted))
    due: list[tuple[datetime, SpiffeId]] = []
    later: list[datetime] = []
    for identity in sorted(set(wanted) - set(fetching)):
        have, failed = held.get(identity), failures.get(identity)
        # A clock that was set back leaves certificates that are not valid yet, and retries years ahead.
        at = have.renew_at if have is not None and have.not_before <= now + CLOCK_SKEW else now
        if failed is not None and failed.retry_at <= now + timedelta(seconds=_BACKOFF_LIMIT):
            at = max(at, failed.retry_at)
        if at > now:
            later.append(at)
        else:
            due.append((have.not_after if have is not None else datetime.min.replace(tzinfo=UTC), identity))
    room = max(0, CONCURRENT - len(fetching))
    fetch = tuple(identity for _, identity in sorted(due)[:room])
    # What found no room is looked at again when a fetch ends.
    return Plan(fetch=fetch, forget=forget, wake_at=min(later, default=None))


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateView:
    """One identity's state for admin: no key in it."""

    identity: SpiffeId
    state: str  # valid | pending | failed | expired
    serial: int | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None
    error: str = ""
    chain: tuple[bytes, ...] = ()  # DER, the leaf first
    roots: tuple[bytes, ...] = ()


@dataclass(slots=True, kw_only=True)
class Certificates:
    """Holds and renews. `changed` is called with each new certificate, `failed` when one could not be had."""

    fetch: Fetch
    changed: Callable[[Credentials], None]
    failed: Callable[[SpiffeId], None]
    rng: Rng
    now: Callable[[], datetime]
    _wanted: dict[SpiffeId, int] = field(default_factory=dict)
    _held: dict[SpiffeId, Held] = field(default_factory=dict)
    _failures: dict[SpiffeId, Failure] = field(default_factory=dict)
    _fetching: set[SpiffeId] = field(default_factory=set)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def want(self, identity: SpiffeId) -> None:
        """One more pod runs as this identity."""
        self._wanted[identity] = self._wanted.get(identity, 0) + 1
        self._wake.set()

    def release(self, identity: SpiffeId) -> None:
        """One pod less does; with the last one the certificate is forgotten."""
        left = self._wanted.get(identity, 0) - 1
        if left > 0:
            self._wanted[identity] = left
        else:
            self._wanted.pop(identity, None)
        self._wake.set()

    def current(self, identity: SpiffeId) -> Credentials | None:
        """The certificate to use now; None while there is none that is valid."""
        held = self._held.get(identity)
        return held.credentials if held is not None and held.not_after > self.now() else None

    def held(self) -> Sequence[Held]:
        """All, keys included: for a successor."""
        return list(self._held.values())

    def inherit(self, held: Iterable[Held]) -> None:
        """From a predecessor, before `run`; those that nobody wants by then are forgotten."""
        self._held.update((one.credentials.identity, one) for one in held)

    def error(self, identity: SpiffeId) -> str:
        """Why the last attempt failed; empty if it did not."""
        failed = self._failures.get(identity)
        return failed.error if failed is not None else ""

    def retry(self) -> None:
        """The controller is back: no reason to sit out a back-off."""
        now = self.now()
        for identity, failed in self._failures.items():
            self._failures[identity] = Failure(count=failed.count, retry_at=now, error=failed.error)
        self._wake.set()

    def views(self) -> Sequence[CertificateView]:
        return [self._view(identity) for identity in sorted({*self._wanted, *self._held})]

    async def run(self) -> None:
        """Fetch and renew until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                due = plan(
                    self.now(),
                    wanted=self._wanted,
                    held=self._held,
                    failures=self._failures,
                    fetching=self._fetching,
                )
                for identity in due.forget:
                    self._held.pop(identity, None)
                    self._failures.pop(identity, None)
                for identity in due.fetch:
                    self._fetching.add(identity)
                    tasks.create_task(self._obtain(identity), name=f"certificate {identity}")
                await self._sleep_until(due.wake_at)

    async def _sleep_until(self, at: datetime | None) -> None:
        # Never longer than a minute: a suspended machine's clock jumps, its timers do not.
        seconds = 60.0 if at is None else min(60.0, max(0.0, (at - self.now()).total_seconds()))
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _obtain(self, identity: SpiffeId) -> None:
        try:
            key = ec.generate_private_key(ec.SECP256R1())
            request = CertificateRequest(identity=str(identity), csr=signing_request(identity, key))
            held = accept(identity, key, await self.fetch(request), self.now(), self.rng)
        except Exception as error:  # whatever it is: the next attempt comes, other identities go on
            self._failed(identity, error)
        else:
            self._failures.pop(identity, None)
            if identity in self._wanted:
                self._held[identity] = held
                log.info("certificate of %s, valid until %s", identity, held.not_after.isoformat())
                self.changed(held.credentials)
        finally:
            self._fetching.discard(identity)
            self._wake.set()

    def _failed(self, identity: SpiffeId, error: Exception) -> None:
        earlier = self._failures.get(identity)
        count = earlier.count + 1 if earlier is not None else 1
        retry_at = self.now() + timedelta(seconds=backoff(count, self.rng))
        text = f"{type(error).__name__}: {error}"
        self._failures[identity] = Failure(count=count, retry_at=retry_at, error=text)
        log.warning("no certificate for %s (attempt %d, next at %s): %s", identity, count, retry_at.isoformat(), text)
        self.failed(identity)

    def _view(self, identity: SpiffeId) -> CertificateView:
        held, error = self._held.get(identity), self.error(identity)
        if held is None:
            return CertificateView(identity=identity, state="failed" if error else "pending", error=error)
        return CertificateView(
            identity=identity,
            state="valid" if held.not_after > self.now() else "expired",
            serial=held.serial,
            not_before=held.not_before,
            not_after=held.not_after,
            error=error,
            chain=held.credentials.chain,
            roots=held.credentials.roots,
        )


def backoff(count: int, rng: Rng) -> float:
    """Seconds after the `count`th failure in a row: doubling from 1 to 150, a fifth of it random (istio-facts §2.4)."""
    seconds = min(_BACKOFF_LIMIT, _BACKOFF_FIRST * 2.0 ** min(count - 1, 10))
    return seconds * (1 - _JITTER * rng.random())
