"""Runs an archive once: `sync`, `backfill`, and what a backfill would cost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ..catalog.catalog import Catalog
from ..errors import CatalogDown, ConfigError, SourceError
from ..model import Availability, ListingKey, Recording, State, Window
from ..ports import Details, lists_by_time
from ..sync import lookups, poll
from ..sync.engine import Engine
from ..sync.feeds import Feed
from ..sync.record import Polled
from ..sync.windows import plan
from . import searching
from .wiring import Archive, prove_stores


@dataclass(slots=True, kw_only=True)
class Summary:
    """What a one-shot run did with one source."""

    polled: Polled = field(default_factory=Polled)
    archived: int = 0
    pending: int = 0
    failed: int = 0
    gone: int = 0
    empty: int = 0
    bytes: int = 0
    #: Requests to the source while listing it.
    requests: int = 0

    @property
    def complete(self) -> bool:
        return not (self.polled.error or self.polled.more or self.polled.rejected or self.pending or self.failed)

    def document(self) -> dict[str, Any]:
        told = {name: getattr(self.polled, name) for name in ("windows", "listed", "new", "changed", "rejected")}
        told |= {n: getattr(self, n) for n in ("archived", "pending", "failed", "gone", "empty", "bytes")}
        return told | ({"error": self.polled.error} if self.polled.error else {})


def reach(feed: Feed, wanted: Window, now: datetime) -> Window:
    """What must be listed to find each call that began in ``wanted``. Raises ConfigError where nothing can be.

    Where a list goes by the end, a call that began just before the last moment is found as much later as it took.
    """
    if not lists_by_time(feed.source):
        why = f"{feed.name} has no listing by time ({feed.kind}): name the calls by `backfill --ids FILE`"
        raise ConfigError([why])
    if feed.source.listing_key is ListingKey.START:
        return wanted
    latest = min(wanted.end + feed.options.longest_call, now - feed.options.settle)
    return Window(wanted.start, max(wanted.end, latest))


async def run_once(
    archive: Archive,
    names: Sequence[str],
    *,
    wanted: Window | None = None,
    relist: bool = False,
    call_ids: Sequence[str] | None = None,
    wait: timedelta = timedelta(),
    on_engine: Callable[[Engine], None] | None = None,
) -> dict[str, Summary]:
    """List up to now (or for the calls that began in ``wanted``, or ``call_ids``), transfer until nothing is due.

    By source what came of it.
    """
    catalog = archive.catalog
    spans = {name: reach(archive.feeds[name], wanted, catalog.clock.now()) for name in names} if wanted else {}
    await prove_stores(archive, names)
    engine = archive.engine(names)
    if on_engine is not None:
        on_engine(engine)
    last = catalog.clock.now() + wait
    summaries = {name: Summary() for name in names}

    async def discover(name: str) -> None:
        feed = archive.feeds[name]
        while True:
            before = feed.gate.started
            async with engine.shares.polling(name):
                await engine.shares.admitted(name)
                try:
                    if call_ids is not None:
                        polled = await lookups.look_up(feed, catalog, call_ids)
                    else:
                        polled = await poll.poll(feed, catalog, wanted=spans.get(name), relist=relist)
                except SourceError as error:
                    polled = Polled(error=str(error))
            engine.nudge()
            _add(summaries[name].polled, polled)
            summaries[name].requests += feed.gate.started - before
            now = catalog.clock.now()
            if polled.busy:
                await asyncio.sleep(0.5)
            elif (polled.error is None and not polled.more) or now >= last:
                return
            elif polled.error is not None:
                await asyncio.sleep(min(5.0, max(0.1, (last - now).total_seconds())))

    async with asyncio.TaskGroup() as group:
        listing = [group.create_task(discover(name)) for name in names]
        others = _Others(catalog, engine, names)
        watching = group.create_task(others.watch())
        await engine.run(until=lambda: others.until(last) if all(task.done() for task in listing) else None)
        watching.cancel()
    if wanted is None and call_ids is None:
        await searching.some(catalog)
    counts = await catalog.counts(list(names))
    for name, summary in summaries.items():
        within = (await catalog.counts([name], spans[name])) if name in spans else counts
        found = {state: count for state, (count, _) in within.get(name, {}).items()}
        summary.pending, summary.failed = found.get("pending", 0), found.get("failed", 0)
        for state in (State.ARCHIVED, State.GONE, State.EMPTY):
            setattr(summary, state.value, engine.tally.states[name, state])
        summary.bytes = engine.tally.bytes[name]
    return summaries


class _Others:
    """What other processes have in hand (a daemon, or one that was killed) is waited for: it is not done yet."""

    def __init__(self, catalog: Catalog, engine: Engine, names: Sequence[str]) -> None:
        self._catalog, self._engine, self._names = catalog, engine, names
        self._asked = asyncio.Event()
        self._leased: datetime | None = None
        self._looked = float("-inf")

    def until(self, last: datetime) -> datetime | None:
        """Nothing due before this moment: all is done. None: it takes a look at the catalog to tell."""
        if time.monotonic() - self._looked > 0.5:
            self._asked.set()
            return None
        return max(last, self._leased) if self._leased is not None else last

    async def watch(self) -> None:
        while True:
            await self._asked.wait()
            with contextlib.suppress(CatalogDown):
                self._leased = await self._catalog.leased(self._names)
                self._looked = time.monotonic()
            self._asked.clear()
            self._engine.nudge()


def _add(total: Polled, polled: Polled) -> None:
    for name in ("windows", "listed", "new", "changed", "missing", "rejected"):
        setattr(total, name, getattr(total, name) + getattr(polled, name))
    total.error, total.more = polled.error, polled.more


@dataclass(slots=True, kw_only=True)
class Cost:
    """What a backfill would take: of what the ledger lacks, as far as it could be listed."""

    windows: int = 0
    recordings: int = 0
    media: int = 0
    #: Of the media whose size the source tells, and how many those are.
    bytes: int = 0
    sized: int = 0
    rejected: int = 0
    #: To the source: the listing's, and one or more for each recording.
    requests: int = 0
    #: The least it takes, by the configured rate. None without one: how long a download takes is not seen here.
    seconds: float | None = None
    error: str | None = None

    def document(self) -> dict[str, Any]:
        whole = self.sized == self.media
        told = {n: getattr(self, n) for n in ("windows", "recordings", "media", "rejected", "requests", "error")}
        seconds = None if self.seconds is None else round(self.seconds, 3)
        return told | {"bytes": self.bytes or None, "bytes_complete": whole, "seconds": seconds}


async def count_only(
    archive: Archive,
    name: str,
    wanted: Window,
    *,
    relist: bool,
    on_window: Callable[[int, int], None] | None = None,
) -> Cost:
    """A backfill's listing without writing anything. ``on_window`` hears how many windows of how many are listed.

    Counted are the calls that began in ``wanted``; requests and time are those of all that would be archived with them.
    """
    feed, catalog = archive.feeds[name], archive.catalog
    span = reach(feed, wanted, catalog.clock.now())
    feed.gate.limit = feed.options.concurrency
    known = await catalog.sources([name])
    covered = () if relist or not known else known[0]["covered"]
    cost, whole = Cost(), Cost()
    pieces = plan(covered, span, longest=feed.options.window, lookback=timedelta(), recent=False)
    before, began = feed.gate.started, time.monotonic()
    seen: set[str] = set()
    for number, piece in enumerate(pieces):
        if on_window is not None:
            on_window(number, len(pieces))
        try:
            listings = [listing async for _, listing in poll.listed(feed, piece.window)]
        except SourceError as error:
            cost.error = f"{piece.window}: {error}"
            break
        cost.windows += 1
        for recording in (r for listing in listings for r in listing.recordings):
            if recording.recording_id not in seen:
                seen.add(recording.recording_id)
                _count(whole, recording)
                if recording.started_at in wanted:
                    _count(cost, recording)
        cost.rejected += sum(len(listing.rejected) for listing in listings)
    asked, took = feed.gate.started - before, time.monotonic() - began
    batch = feed.batches.batch if feed.batches is not None else 1
    asks = isinstance(feed.source, Details) and getattr(feed.source, "asks_details", True)
    details = whole.recordings if asks else 0
    cost.requests = asked + details + -(-whole.media // batch)
    if feed.options.rate is not None:
        cost.seconds = max(cost.requests * feed.options.rate.interval.total_seconds(), took)
    return cost


def _count(cost: Cost, recording: Recording) -> None:
    media = [m for m in recording.media if m.availability in {Availability.READY, Availability.NOT_READY}]
    sizes = [m.size for m in media if m.size is not None]
    cost.recordings += 1
    cost.media += len(media)
    cost.sized += len(sizes)
    cost.bytes += sum(sizes)
