"""`verify`: read copies back, compare their SHA-256, mend what is spoilt from another store or from the source."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

import structlog

from .. import audio
from ..audio.spool import Spool
from ..catalog.catalog import Catalog, Reading
from ..common.scope import Row, canary, readable
from ..errors import SourceError, SpoolDown, StoreCold, StoreConflict, StoreError, StoreMissing
from ..model import Body, Copy, Medium
from ..ports import Locks
from ..settings.options import VerifyOptions
from ..sync.feeds import Feed, Outlet
from .described import Describer

log = structlog.get_logger()

Identity = tuple[str, str, str]
#: Hands out a share of a source's concurrency, by its name (see Engine.lending).
Lending: TypeAlias = Callable[[str], AbstractAsyncContextManager[None]]
_Page: TypeAlias = list[tuple[Identity, Copy, datetime]]
#: Copies read at once, and looked up at a time.
WIDTH = 8
#: So many copies missing at once, and not one there, look like another disk.
FEW = 4
PAGE = 256
MISSING = "missing"
LOCKED_AGAIN = "locking it again"
#: Bytes of a copy's beginning that say how it is coded.
HEAD = 64 << 10


@dataclass(slots=True)
class Verified:
    """What was found in one store, in copies.

    ``bad``: what was wrong, or could not be read, or is missing; ``repaired``: what is right again.
    """

    read: int = 0
    bytes: int = 0
    good: int = 0
    missing: int = 0
    #: Perhaps whole, but the store does not give it.
    unreadable: int = 0
    bad: int = 0
    repaired: int = 0
    #: Not read, for it lies in a cold class; nothing is known to be wrong with it.
    cold: int = 0
    #: Recordings of which no manifest in the store told, and those of them that one tells of now.
    undescribed: int = 0
    described: int = 0
    seconds: float = 0.0
    #: The store could not be read on.
    error: str | None = None
    findings: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.error is None and self.repaired == self.bad and self.described == self.undescribed


@dataclass(frozen=True, slots=True)
class _Look:
    """What reading one copy back showed."""

    problem: str | None = None
    #: The right bytes are there.
    whole: bool = False
    #: Why it could not be read, where that was so.
    error: StoreError | None = None
    #: That concerns the store, not this copy.
    of_store: bool = False


class _Digest:
    """A sink that keeps nothing but length, hash and the first bytes."""

    def __init__(self) -> None:
        self.length = 0
        self.hash = hashlib.sha256()
        self.head = bytearray()

    async def write(self, chunk: bytes) -> None:
        self.length += len(chunk)
        self.hash.update(chunk)
        self.head += chunk[: HEAD - len(self.head)]

    def told(self, *, content_type: str | None = None) -> None:
        """Only the bytes matter here."""

    async def restart(self) -> None:
        self.length, self.hash, self.head = 0, hashlib.sha256(), bytearray()


@dataclass(slots=True, kw_only=True)
class Verifier:
    """Reads the copies of one store back. ``lend`` gives a share of a source, where it must be asked for bytes."""

    catalog: Catalog
    outlet: Outlet
    outlets: Mapping[str, Outlet]
    feeds: Mapping[str, Feed]
    spool: Spool
    lend: Lending
    source: str | None = None
    #: A store in which not one copy is found is taken for one that is not mounted, and left alone, unless this is set.
    even_if_empty: bool = False
    found: Verified = field(default_factory=Verified)
    #: Hears the size of each copy that was read.
    on_read: Callable[[int], None] | None = None
    #: The store answers.
    checked: bool = False
    row: Row = field(default_factory=Row)
    describer: Describer = field(init=False)

    def __post_init__(self) -> None:
        self.describer = Describer(catalog=self.catalog, outlet=self.outlet, spool=self.spool, row=self.row)

    async def stalest(
        self, *, before: datetime | None = None, budget: int | None = None, seconds: float | None = None
    ) -> Verified:
        """Read what was last read (or made) before a moment (default: now), the longest unread first.

        Ends when all is read, or so many bytes or seconds are spent. What was read is remembered at once, so that
        the next run goes on behind it. At the end the store describes all of it that is there.
        """
        await self._stalest(before, budget, seconds)
        return await self._describe(at_once=True)

    async def _stalest(
        self, before: datetime | None = None, budget: int | None = None, seconds: float | None = None
    ) -> Verified:
        moment = before or self.catalog.clock.now()
        after: tuple[datetime, str] = (moment.min.replace(tzinfo=moment.tzinfo), "")

        async def page() -> _Page:
            nonlocal after
            read = await self.catalog.stalest(self.outlet.name, self.source, moment, after, PAGE)
            if read:
                after = (read[-1][2], read[-1][1].key)
            return read

        return await self._through(page, budget, seconds)

    async def bad_ones(self, *, before: datetime, budget: int | None = None, seconds: float | None = None) -> Verified:
        """Read again what was bad when it was last read, before a moment: perhaps it can be mended now."""
        pages = [await self.catalog.bad_ones(self.outlet.name, before, PAGE)]

        async def page() -> _Page:
            return pages.pop() if pages else []

        return await self._through(page, budget, seconds, known_bad=True)

    async def due(self, options: VerifyOptions) -> Verified:
        """What a daemon reads now: so much that the cycle holds, and never more than the budget of the day.

        Nothing is stored of a schedule: how old the oldest copy is, and what was read lately by any host, say it all.
        """
        catalog, name = self.catalog, self.outlet.name
        now = catalog.clock.now()
        left_bytes, left_seconds = await self._left(options)
        began = (self.found.bytes, self.found.seconds)

        def left() -> dict[str, float | int | None]:
            return {
                "budget": None if left_bytes is None else left_bytes - (self.found.bytes - began[0]),
                "seconds": None if left_seconds is None else left_seconds - (self.found.seconds - began[1]),
            }

        await self.bad_ones(before=now - options.period, **left())  # type: ignore[arg-type]
        await self._stalest(before=now - options.cycle + options.period, **left())  # type: ignore[arg-type]
        held = sum(size for (_, store), (_, size) in (await catalog.totals()).items() if store == name)
        share = held * (options.period / options.cycle)
        quota = max(int(share) - await catalog.read_since(name, now - options.period), 0)
        spent = left()
        if spent["budget"] is None or quota < spent["budget"]:
            spent["budget"] = quota
        await self._stalest(before=now - options.period, **spent)  # type: ignore[arg-type]
        return await self._describe(at_once=False)

    async def _left(self, options: VerifyOptions) -> tuple[int | None, float | None]:
        if options.budget is None:
            return None, None
        _, read, seconds = await self.catalog.verification(self.outlet.name)
        if isinstance(options.budget, timedelta):
            return None, options.budget.total_seconds() - seconds
        return options.budget - read, None

    async def _through(
        self,
        page: Callable[[], Awaitable[_Page]],
        budget: int | None,
        seconds: float | None,
        *,
        known_bad: bool = False,
    ) -> Verified:
        found, began = self.found, (self.found.bytes, self.found.seconds)

        def spent() -> bool:
            return (budget is not None and found.bytes - began[0] >= budget) or (
                seconds is not None and found.seconds - began[1] >= seconds
            )

        if found.error or spent():
            return found
        try:
            if not self.checked:
                error = await canary(self.outlet.store)
                # One that is full, or takes nothing, can be read all the same.
                if error is not None and not await self._any_readable():
                    raise error
                self.checked = True
            while not spent() and (copies := await page()):
                for start in range(0, len(copies), WIDTH):
                    if spent():
                        break
                    await self._part(copies[start : start + WIDTH], known_bad=known_bad)
                    if found.error:
                        return found
        except StoreError as error:
            found.error = f"store {self.outlet.name}: {error}"
        return found

    async def _part(self, part: _Page, *, known_bad: bool) -> None:
        found, outlet = self.found, self.outlet
        started = time.monotonic()
        digests = [_Digest() for _ in part]
        looks = await asyncio.gather(*(self._look(row[1], d) for row, d in zip(part, digests, strict=True)))
        none_there = len(part) >= FEW and found.good == 0 and {look.problem for look in looks} == {MISSING}
        if none_there and not (known_bad or self.even_if_empty or await self._any_there()):
            found.error = (
                f"store {outlet.name}: not one of {len(part)} copies is there; is the right disk mounted, the right"
                " bucket named? Nothing was repaired (--even-if-empty does it all the same)"
            )
            return
        lost = next((look.error for look in looks if look.of_store), None)
        if lost is not None and not await self._any_readable():
            found.error = f"store {outlet.name}: {lost}"
        readings, cold = [], []
        uncoded = await self.catalog.uncoded([identity for identity, _, _ in part])
        for (identity, copy, _), look, digest in zip(part, looks, digests, strict=True):
            if isinstance(look.error, StoreCold):
                cold.append(copy.key)
                continue
            if found.error is not None and look.problem is not None:
                # It is no time to judge, or to mend.
                continue
            mended = None
            if look.problem is not None:
                mended = await (self._lock_again(copy) if look.whole else self._mend(identity, copy, look))
                told = f"repaired by {mended}" if mended else "not repaired"
                found.findings.append(f"{outlet.name} {copy.key}: {look.problem}; {told}")
                log.error("copy.bad", store=outlet.name, key=copy.key, problem=look.problem, repaired_by=mended)
            if look.whole or mended:
                self.describer.add(*identity[:2], copy)
            found.missing += look.problem == MISSING
            found.unreadable += look.error is not None and not look.whole
            coding = _coding(bytes(digest.head)) if look.whole and identity in uncoded else None
            reading = Reading(identity=identity, copy=copy, problem=look.problem, mended_by=mended, coding=coding)
            readings.append(reading)
        spent = time.monotonic() - started
        found.seconds += spent
        if cold:
            found.cold += len(cold)
            await self.catalog.set_aside(outlet.name, cold)
        if readings:
            await self.catalog.verified(outlet.name, readings, spent)
        found.read += len(readings)
        found.bytes += sum(r.copy.size for r in readings)
        if self.on_read is not None:
            self.on_read(sum(copy.size for _, copy, _ in part))
        found.good += sum(r.problem is None for r in readings)
        found.bad += sum(r.problem is not None for r in readings)
        found.repaired += sum(r.mended_by is not None for r in readings)
        if self.describer.full:
            await self.describer.settle(at_once=True)

    async def _look(self, copy: Copy, digest: _Digest) -> _Look:
        """Read one copy back."""
        store = self.outlet.store
        try:
            problem = await read_back(self.outlet, copy, digest)
        except StoreError as error:
            of_store = await self.row.concerns_store(store, error, copy.key)
            return _Look(f"it can't be read: {error}", error=error, of_store=of_store)
        if problem is not None:
            return _Look(problem)
        self.row.worked(copy.key)
        if isinstance(store, Locks):
            try:
                problem = await store.lock_problem(copy.key, copy.archived_at)
            except StoreError as error:
                of_store = await self.row.concerns_store(store, error, copy.key)
                return _Look(f"its lock can't be read: {error}", whole=True, error=error, of_store=of_store)
        return _Look(problem, whole=True)

    async def _any_there(self) -> bool:
        """Does the store hold at least one of the copies that were right when they were read or made last?"""
        for key in await self.catalog.newest_copies(self.outlet.name, WIDTH):
            with contextlib.suppress(StoreError):
                if await self.outlet.store.stat(key) is not None:
                    return True
        return False

    async def _any_readable(self) -> bool:
        """Does the store give the bytes of at least one of them?"""
        keys = await self.catalog.newest_copies(self.outlet.name, WIDTH)
        return any(await asyncio.gather(*(readable(self.outlet.store, key) for key in keys)))

    async def _describe(self, *, at_once: bool) -> Verified:
        """Let the store describe what it was found to hold."""
        found, told = self.found, self.describer.report
        if found.error is None:
            try:
                await self.describer.settle(at_once=at_once)
            except StoreError as error:
                found.error = f"store {self.outlet.name}: {error}"
        found.undescribed, found.described = told.lacking, told.again
        found.findings += told.findings
        told.findings = []
        return found

    # -- mending -----------------------------------------------------------------------------------------------------

    async def _lock_again(self, copy: Copy) -> str | None:
        store = self.outlet.store
        assert isinstance(store, Locks)
        try:
            await store.lock(copy.key, copy.archived_at)
            still = await store.lock_problem(copy.key, copy.archived_at)
        except StoreError as error:
            still = str(error)
        if still is not None:
            log.error("lock.failed", store=self.outlet.name, key=copy.key, error=still)
        return LOCKED_AGAIN if still is None else None

    async def _mend(self, identity: Identity, copy: Copy, look: _Look) -> str | None:
        """Put the right bytes back, from another store or else from the source; who gave them, or None.

        What could not be read may be whole: it stays as it is, and is read again another time.
        """
        if look.error is not None and not await self._nothing_there(copy):
            return None
        with self.spool.sink() as sink:
            for other in await self.catalog.copies_of(*identity):
                giver = self.outlets.get(other.store)
                if giver is None or other.store == copy.store or other.sha256 != copy.sha256:
                    continue
                with contextlib.suppress(StoreError):
                    await giver.store.get(other.key, sink)
                    body = await sink.body()
                    if body.sha256 == copy.sha256 and await self._replace(copy, body, look):
                        return f"store {other.store}"
                await sink.restart()
        feed, medium = self.feeds.get(identity[0]), await self.catalog.medium(*identity)
        if feed is None or medium is None or feed.paused_until or feed.health.open(self.catalog.clock.now()):
            return None
        return f"source {feed.name}" if await self._from_source(feed, medium, copy, look) else None

    async def _nothing_there(self, copy: Copy) -> bool:
        try:
            return await self.outlet.store.stat(copy.key) is None
        except StoreError:
            return False

    async def _from_source(self, feed: Feed, medium: Medium, copy: Copy, look: _Look) -> bool:
        with self.spool.sink() as sink:
            try:
                async with self.lend(feed.name):
                    await feed.source.fetch(medium, sink)
                body = await sink.body()
            except (SourceError, SpoolDown) as error:
                log.warning("repair.failed", source=feed.name, error=str(error))
                return False
            return body.sha256 == copy.sha256 and await self._replace(copy, body, look)

    async def _replace(self, copy: Copy, body: Body, look: _Look) -> bool:
        """The one place where an object goes: bytes that were read and are spoilt make room for the right ones."""
        try:
            try:
                await self.outlet.store.put(copy.key, body)
            except StoreConflict:
                if look.error is not None:
                    raise
                await self.outlet.store.delete(copy.key)
                await self.outlet.store.put(copy.key, body)
            return await read_back(self.outlet, copy) is None
        except StoreError as error:
            log.error("repair.failed", store=self.outlet.name, key=copy.key, error=str(error))
            return False


def _coding(head: bytes) -> str | None:
    """How samples are coded that begin so; None: unknown."""
    with contextlib.suppress(SourceError):
        return audio.inspect(Body.of(head), opaque=True).coding
    return None


async def read_back(outlet: Outlet, copy: Copy, digest: _Digest | None = None) -> str | None:
    """None where the copy's bytes are whole, else what is wrong. Raises StoreError where the store can't be read."""
    digest = digest or _Digest()
    try:
        await outlet.store.get(copy.key, digest)
    except StoreMissing:
        return MISSING
    if digest.length != copy.size:
        return f"{digest.length} bytes in place of {copy.size}"
    if digest.hash.hexdigest() != copy.sha256:
        return "other bytes (SHA-256)"
    return None


def owed(options: VerifyOptions, held: int) -> str | None:
    """What to say where the budget of a day is too small for the cycle of a store that holds so many bytes."""
    if not isinstance(options.budget, int) or not held:
        return None
    days = held / options.budget
    cycle = options.cycle / timedelta(days=1)
    if days <= cycle:
        return None
    return f"the verify budget takes {days:.0f} days for what it holds, the cycle has {cycle:.0f}"
