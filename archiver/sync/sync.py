"""THE ALGORITHM. ``poll`` finds out what there is, ``transfer`` brings one medium home, ``commit`` writes it down.

    poll      plan windows the ledger lacks → list each to its natural end → rows and window in one transaction
    transfer  fetch → hash, check → put into every store, each of which verifies
    commit    one manifest per source and store, then one transaction: bytes, then manifest, then catalog

It knows nouns and seams only. What goes wrong is decided in one place, ``explain``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import structlog

from .. import audio
from ..audio.spool import Spool, SpoolSink
from ..catalog.catalog import Catalog, Document, Ledger, Recorded, with_results
from ..common.scope import Row, concerns_store
from ..common.tally import Timings
from ..common.traces import span
from ..errors import (
    BadData,
    Busy,
    CatalogDown,
    Doubtful,
    Empty,
    Gone,
    Mismatch,
    NotReady,
    Overflow,
    Refused,
    Scope,
    SourceError,
    SpoolDown,
    StoreError,
    StoreRefused,
    TooSlow,
    TryAgain,
)
from ..model import (
    Availability,
    Body,
    Chapter,
    Claim,
    Copy,
    Download,
    Flag,
    Listing,
    ListingKey,
    Medium,
    Outcome,
    Recording,
    Rejected,
    State,
    Verdict,
    Window,
)
from ..ports import Acknowledges, Details, Expects, FetchesBatches, Follows, LooksUp, Source, Store
from ..proof import layout, manifests
from ..settings.options import SourceOptions
from ..wire.recorder import Gate, Heard, overheard
from .windows import EPOCH, Piece, cut, halve, next_look, next_try, plan, subtract

log = structlog.get_logger()

#: A medium that its source neither lists nor delivers any more is gone after so long.
GONE_AFTER = timedelta(days=3)
#: A fresh file without audio may still be written.
FRESH = timedelta(minutes=15)
#: Audio that may not be whole is waited for while its call ended less than so long ago …
YOUNG = timedelta(hours=1)
#: … and so long, where far more was told of than came.
YOUNG_IF_SHORT = timedelta(days=1)
#: Then it is kept as evidence, once the same bytes came twice, so long apart.
TWICE = timedelta(minutes=10)
#: Of a call that was told to be longer than this, less than a fifth is short.
LONG_ENOUGH = timedelta(minutes=1)
SHORT_BELOW = 0.2
#: The reason of a medium whose bytes are not what its source told of.
MISMATCH = "mismatch"
#: A recorder that was seen to work so lately is not asked again because of single items.
ALIVE_FOR = timedelta(seconds=30)
#: After so many failures in a row a source's queue is taken from its other end, for so long, in seconds.
OTHER_END_AFTER, OTHER_END = 3, 60.0
#: A first attempt that stands still for so many times as long as downloads that came lately, and for no less than so
#: many seconds, gives way where others wait; until so many gave way in a row and nothing came: the recorder is slow.
#: Before any came, it is a thirtieth of its source's time-out.
HURRIED, HURRIED_LEAST, HURRIES, HURRIED_AT_FIRST = 4, 2.0, 5, 1 / 30
#: Where it asks for fewer requests, it gets none for so long: what it asked for itself, within these bounds.
SPARED, SPARED_AT_MOST = timedelta(seconds=2), timedelta(minutes=1)
#: What a store can't take of one object is tried again no sooner.
OBJECT_AGAIN = timedelta(hours=1)
#: Parts of a window that fail in a row before the rest of it is left for later: a second of an hour takes twelve.
PARTS = 16
#: Call ids that could not be looked up are asked for again, so many to a poll.
LOOKUPS = 50
#: In a medium's ref: not to be fetched, for what its bytes must be is not known yet.
UNDETAILED = "undetailed"
#: What only an operator can mend is looked at again so often.
STUCK = timedelta(minutes=15)
#: So many media refused, and none delivered in between, are no matter of single recordings.
REFUSALS = 5
#: So many of them come from the other end of the queue; and for so long no audio came at all.
SAMPLED = 3
SILENT = timedelta(minutes=10)
#: Listings of a window that are tried in place before the poll goes on without it.
TRIES = 3
#: Of a long listing so many recordings are written first, so that the stores need not wait for the others.
FIRST = 250


@dataclass(slots=True)
class Health:
    """A breaker. Failures in a row are a reason to ask; what is open stays so for longer each time it fails again."""

    #: So many in a row, with nothing good in between, are asked about.
    allowed: int
    first: timedelta
    cap: timedelta
    failures: int = 0
    #: How often it was opened without having worked since.
    opened: int = 0
    until: datetime | None = None
    why: str = ""
    #: A canary worked, and the one medium that is let through decides (stores).
    trying: bool = False

    def suspects(self) -> bool:
        """One more failure; are there so many now that somebody should ask?"""
        self.failures += 1
        return self.failures >= self.allowed or self.probing

    def opens(self, now: datetime, why: str, asked: timedelta | None = None, *, wait: timedelta | None = None) -> None:
        """For longer each time, and no shorter than ``asked``; or for just so long (``wait``)."""
        longer = min(self.cap, self.first * float(2 ** min(self.opened, 20)))
        self.opened += wait is None
        self.until, self.why, self.trying = now + (wait or max(longer, asked or timedelta())), why, False

    def worked(self) -> None:
        self.failures, self.opened, self.until, self.why, self.trying = 0, 0, None, "", False

    def open(self, now: datetime) -> bool:
        return self.until is not None and now < self.until

    @property
    def probing(self) -> bool:
        """Has it been open, and nothing worked since?"""
        return self.until is not None


@dataclass(frozen=True, slots=True)
class Stuck:
    """One thing that fails while the rest works (a window, a description): tried again on its own schedule."""

    due_at: datetime
    attempts: int
    why: str


@dataclass(slots=True)
class Outlet:
    """A store as the engine sees it."""

    name: str
    store: Store
    prefix: str
    health: Health = field(default_factory=lambda: Health(1, timedelta(seconds=2), timedelta(minutes=1)))
    #: What could not be put although a canary works.
    unput: Row = field(default_factory=Row)
    #: Recordings whose description it refuses: tried again on their own schedule.
    undescribable: dict[tuple[str, str], Stuck] = field(default_factory=dict)
    #: How many work with it (see :func:`hold`): one that left the config is closed after the last.
    users: int = 0
    #: What was put since the beginning: how long each took, all bytes, and how many failed.
    puts: Timings = field(default_factory=Timings)
    bytes_put: int = 0
    failed_puts: int = 0
    #: By source and key the id of recordings that were not found where a manifest must describe them, and when such
    #: were last looked for in all manifests (see described.py).
    doubtful: dict[str, dict[str, str]] = field(default_factory=dict)
    sought_at: datetime | None = None


@dataclass(slots=True)
class Feed:
    """A source as the engine sees it."""

    name: str
    kind: str
    source: Source
    options: SourceOptions
    outlets: dict[str, Outlet]
    gate: Gate
    health: Health = field(default_factory=lambda: Health(5, timedelta(seconds=5), timedelta(minutes=10)))
    #: The account is refused: nothing is asked before.
    paused_until: datetime | None = None
    paused_why: str = ""
    pauses: int = 0
    #: When the account was last seen to work, so that a refused item does not cost a login each.
    welcome_at: datetime | None = None
    logging_in: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: When the recorder itself was last seen to work, so that failing items do not cost a question each.
    alive_at: datetime | None = None
    #: Windows that fail although the recorder works: when to try them again, how often it was tried, and why.
    stuck: dict[Window, Stuck] = field(default_factory=dict)
    #: How many work with it (see :func:`hold`): one that left the config is closed after the last.
    users: int = 0
    #: Asks whether it is still the recorder that was listed before; what is to be answered before it is polled on.
    ask: Callable[[], Awaitable[str | None]] | None = None
    question: str | None = None
    #: The media that were refused since audio last came, though the account is welcome; and those of them that were
    #: taken from the other end of the queue, to see whether all are.
    refused: set[tuple[str, str, str]] = field(default_factory=set)
    refused_newest: set[tuple[str, str, str]] = field(default_factory=set)
    #: When audio last came.
    delivered_at: datetime | None = None
    #: Until when the queue is taken from its other end (monotonic clock), and how many gave way in a row.
    other_end_until: float = float("-inf")
    hurries: int = 0
    #: How long, in seconds, downloads that came lately stood still.
    stillness: float = 0.0
    #: The source, where it delivers many media in one answer.
    batches: FetchesBatches | None = field(init=False)

    @property
    def samples(self) -> bool:
        """Do so many fail in a row that others, from the other end of the queue, are to be tried first?"""
        return len(self.refused) >= REFUSALS or time.monotonic() < self.other_end_until

    def __post_init__(self) -> None:
        # Asked for each medium, and Python looks at every method of a protocol each time.
        self.batches = self.source if isinstance(self.source, FetchesBatches) else None


def hold(*things: Feed | Outlet) -> None:
    """Keep sources (with their stores) and stores open although a new config replaces them, until :func:`let_go`."""
    for thing in _parts(things):
        thing.users += 1


def let_go(*things: Feed | Outlet) -> None:
    for thing in _parts(things):
        thing.users -= 1


@contextlib.contextmanager
def using(*things: Feed | Outlet) -> Iterator[None]:
    """Hold them meanwhile."""
    hold(*things)
    try:
        yield
    finally:
        let_go(*things)


def _parts(things: Sequence[Feed | Outlet]) -> list[Feed | Outlet]:
    return [*things, *(outlet for feed in things if isinstance(feed, Feed) for outlet in feed.outlets.values())]


@dataclass(slots=True)
class Polled:
    """What a poll did. Counts are recordings, but ``windows``."""

    windows: int = 0
    listed: int = 0
    new: int = 0
    changed: int = 0
    missing: int = 0
    rejected: int = 0
    bytes: int = 0
    error: str | None = None
    #: The recorder itself does not work: nothing more was asked.
    down: bool = False
    #: Another process was polling this source, or had all of it.
    busy: bool = False
    #: There are gaps left to list.
    more: bool = False

    def add(self, recorded: Recorded) -> None:
        self.listed += recorded.listed
        self.new += recorded.new
        self.changed += recorded.changed
        self.missing += recorded.missing
        self.rejected += recorded.rejected


# -- poll --------------------------------------------------------------------------------------------------------------


async def poll(
    feed: Feed,
    catalog: Catalog,
    *,
    wanted: Window | None = None,
    relist: bool = False,
    budget: timedelta | None = None,
    pause: float = 1.0,
) -> Polled:
    """List what the ledger lacks of ``wanted`` (default: all since the source's start) and what may have changed.

    What was listed an hour, a day and a week ago for the first time, or will soon leave the source, is listed again.

    At least one older gap is worked on; after ``budget`` the rest is left to the next poll (``more``). ``relist``
    lists all of ``wanted`` again. Raises Refused, after pausing the source, and CatalogDown.
    """
    with span("poll", source=feed.name) as tell:
        polled = await _poll(feed, catalog, wanted, budget, pause, relist=relist)
        ended = "busy" if polled.busy else "failed" if polled.error else "more to list" if polled.more else "done"
        tell(outcome=ended, windows=polled.windows, listed=polled.listed, new=polled.new)
        return polled


async def _poll(
    feed: Feed, catalog: Catalog, wanted: Window | None, budget: timedelta | None, pause: float, *, relist: bool
) -> Polled:
    report = Polled()
    now = catalog.clock.now()
    if await _asked(feed, catalog, report):
        return report
    await catalog.expire_by(feed.name, feed.options.retention)
    ledger = await _ledger(feed, catalog)
    if feed.gate.limit < 1:
        # Without a share of the source it would wait, and keep those waiting that have one.
        report.busy = True
        return report
    async with catalog.only_one(f"poll:{feed.name}") as mine:
        if not mine:
            report.busy = True
            return report
        try:
            settled = now - feed.options.settle
            whole = wanted or (Window(ledger.start_at, settled) if ledger.start_at < settled else None)
            if whole is not None and getattr(feed.source, "lists_by_time", True):
                pieces = await _pieces(feed, catalog, ledger.covered, whole, relist=relist, recent=wanted is None)
                await _list_all(feed, catalog, pieces, report, budget, pause)
            if wanted is None and not report.down:
                await _follow(feed, catalog, ledger.cursor, report, budget)
                await _name_lookups(feed, catalog, report)
                if not report.more:
                    await _revisit(feed, catalog, report, pause)
        except Refused as refusal:
            await pause_source(feed, catalog, str(refusal))
            report.error = str(refusal)
            raise
        finally:
            if wanted is None:
                await catalog.polled(feed.name, report.error)
        if not report.down and len(feed.refused) < REFUSALS:
            await resume_source(feed, catalog)
    return report


async def _asked(feed: Feed, catalog: Catalog, report: Polled) -> bool:
    """Is somebody to say first which recorder this is? Until then nothing is asked of it."""
    before, feed.question = feed.question, await feed.ask() if feed.ask is not None else None
    if feed.question is None:
        return False
    if feed.question != before:
        log.error("source.another", source=feed.name, error=feed.question)
    report.error = feed.question
    await catalog.polled(feed.name, report.error)
    return True


async def _ledger(feed: Feed, catalog: Catalog) -> Ledger:
    options, default = feed.options, catalog.clock.now() - timedelta(hours=24)
    whom = {"origin": options.origin, "account": options.account}
    return await catalog.source(feed.name, feed.kind, default_start=default, start=options.start, **whom)


async def _pieces(
    feed: Feed, catalog: Catalog, covered: Sequence[Window], wanted: Window, *, relist: bool, recent: bool
) -> list[Piece]:
    lookback = feed.options.relisted(feed.source.listing_key)
    doubtful = await catalog.doubtful(feed.name, wanted.end - lookback) if recent else []
    return plan(
        () if relist else covered,
        wanted,
        longest=feed.options.window,
        lookback=lookback if recent else timedelta(),
        recent=recent,
        doubtful=doubtful,
        without=_stuck(feed, catalog, wanted) if recent else (),
        horizon=catalog.clock.now() - feed.options.retention if feed.options.retention is not None else None,
    )


def _stuck(feed: Feed, catalog: Catalog, within: Window) -> list[Window]:
    """Windows that failed although the recorder works, and are not due again yet."""
    now = catalog.clock.now()
    return [
        w for w, stuck in feed.stuck.items() if stuck.due_at > now and w.start < within.end and within.start < w.end
    ]


async def _revisit(feed: Feed, catalog: Catalog, report: Polled, pause: float) -> None:
    """List again what is due for it by its first listing, or by the end of the source's retention."""
    for window in await catalog.revisits(feed.name, feed.options.retention):
        again = subtract([window], _stuck(feed, catalog, window))
        pieces = [Piece(part) for span in again for part in cut(span, feed.options.window)]
        await _list_all(feed, catalog, pieces, report, None, pause)
        if report.down:
            return
        await catalog.revisited(feed.name, window)


async def _list_all(
    feed: Feed, catalog: Catalog, pieces: Sequence[Piece], report: Polled, budget: timedelta | None, pause: float
) -> None:
    history = 0
    began: datetime | None = None
    newest = max((piece.window.end for piece in pieces), default=None)
    for piece in pieces:
        # Neither what is listed again nor the newest moments may use up the time that older gaps are to get.
        if piece.opens and began is None:
            began = catalog.clock.now()
        if budget is not None and began is not None and history and catalog.clock.now() - began > budget:
            report.more = True
            break
        try:
            await _list(feed, catalog, piece.window, report, pause=pause)
        except RecorderLost as lost:
            report.error, report.down, report.more = f"{piece.window}: {lost}", True, True
            return
        history += bool(piece.opens) and piece.window.end != newest
    _name_stuck(feed, report)


def _name_stuck(feed: Feed, report: Polled) -> None:
    """What can't be listed is said in each poll, tried or not."""
    if feed.stuck and report.error is None:
        window, stuck = min(feed.stuck.items())
        others = f" (and {len(feed.stuck) - 1} more such windows)" if len(feed.stuck) > 1 else ""
        report.error = f"{window}: {stuck.why}{others}"


class RecorderLost(Exception):
    """The recorder itself does not work: no window is to blame."""


#: What may be wrong with one window while its recorder works.
_OF_A_WINDOW = (TryAgain, NotReady, BadData, Gone, Empty)


async def _works(feed: Feed, catalog: Catalog, error: SourceError) -> bool:
    """Something failed: does the recorder itself work? Asked, unless it was seen to a moment ago. Opens its breaker.

    Raises Refused.
    """
    now = catalog.clock.now()
    lately = feed.alive_at is not None and now - feed.alive_at < ALIVE_FOR
    if lately and error.scope is not Scope.RECORDER:
        return True
    try:
        await feed.source.check()
    except Refused:
        raise
    except SourceError as dead:
        now, asked = catalog.clock.now(), getattr(dead, "retry_after", None)
        if not feed.health.open(now):
            feed.health.opens(now, str(dead), asked)
            feed.gate.refused()
            log.warning("source.down", source=feed.name, error=str(dead))
        return False
    feed.alive_at = catalog.clock.now()
    return True


async def _list(feed: Feed, catalog: Catalog, window: Window, report: Polled, *, pause: float) -> None:
    """One window, each part of it recorded as it comes; what can't be listed stays a named gap, the rest is covered.

    Raises RecorderLost, Refused.
    """
    waiting, in_a_row, tries = [window], 0, TRIES
    finest = getattr(feed.source, "finest", timedelta(seconds=1))
    while waiting:
        part = waiting.pop(0)
        try:
            # What was listed whole is written down before what follows it is asked for.
            async for piece, listing in listed(feed, part, pause=pause, tries=tries):
                await _look_up_later(feed, catalog, listing.failed)
                if not await _recorded(feed, catalog, listing, report, piece):
                    await _gets_stuck(feed, catalog, piece, f"not one of its {len(listing.rejected)} rows can be read")
                report.windows += 1
        except _OF_A_WINDOW as error:
            log.warning("window.failed", source=feed.name, window=str(part), error=str(error))
            if not await _works(feed, catalog, error):
                raise RecorderLost(str(error)) from None
            in_a_row, tries = in_a_row + 1, 1
            halves = halve(part) if part.length > finest else None
            if halves is None or in_a_row > PARTS:
                await _gets_stuck(feed, catalog, part, str(error))
            else:
                waiting[:0] = halves
            if in_a_row > PARTS:
                for rest in waiting:
                    await _gets_stuck(feed, catalog, rest, str(error))
                return
        else:
            in_a_row = 0
            feed.alive_at = catalog.clock.now()


async def _recorded(feed: Feed, catalog: Catalog, listing: Listing, report: Polled, window: Window) -> bool:
    """Write down what a window's listing told; False, and not covered, where not one row of it could be read."""
    readable = bool(listing.recordings or listing.failed) or not listing.rejected
    await record(feed, catalog, listing, report, window=window, cover=readable)
    if readable:
        feed.stuck = {w: s for w, s in feed.stuck.items() if not (window.start <= w.start and w.end <= window.end)}
    return readable


async def _gets_stuck(feed: Feed, catalog: Catalog, window: Window, why: str) -> None:
    """It can't be listed, now or any more: a gap in the ledger, tried again on its own schedule."""
    known = [s.attempts for w, s in feed.stuck.items() if w.start < window.end and window.start < w.end]
    attempts = max(known, default=0) + 1
    due_at = catalog.clock.now() + next_try(attempts, feed.options.retry, random.random())  # noqa: S311
    feed.stuck = {w: s for w, s in feed.stuck.items() if not (window.start <= w.start and w.end <= window.end)}
    feed.stuck[window] = Stuck(due_at, attempts, why)
    await catalog.uncover(feed.name, window)
    log.error("window.stuck", source=feed.name, window=str(window), error=why, again_at=due_at.isoformat())


async def listed(
    feed: Feed, window: Window, *, pause: float = 1.0, depth: int = 0, tries: int = TRIES
) -> AsyncIterator[tuple[Window, Listing]]:
    """What the source tells of the window; halved where it can't answer it whole.

    The older half comes first: a window may hold the lookback of a gap before the gap.
    """
    try:
        listing = await _ask(feed, window, pause, tries)
    except Overflow as error:
        halves = halve(window)
        if halves is None or (isinstance(error, TooSlow) and depth >= TRIES):
            raise
        log.info("window.halved", source=feed.name, window=str(window), reason=str(error))
        for half in halves:
            async for part in listed(feed, half, pause=pause, depth=depth + 1, tries=tries):
                yield part
    else:
        yield window, listing


async def _ask(feed: Feed, window: Window, pause: float, tries: int) -> Listing:
    for attempt in range(1, tries + 1):
        try:
            with span("list", source=feed.name, window=str(window)) as tell:
                listing = await feed.source.list(window)
                tell(listed=len(listing.recordings))
                return listing
        except Overflow:
            raise
        except TryAgain as error:
            asked = error.retry_after or timedelta()
            if attempt == tries or asked > timedelta(minutes=1):
                raise
            await asyncio.sleep(max(pause * 3 ** (attempt - 1) * (0.5 + random.random()), asked.total_seconds()))  # noqa: S311
    raise AssertionError("the last attempt returns or raises")


async def record(
    feed: Feed,
    catalog: Catalog,
    listing: Listing,
    report: Polled,
    *,
    window: Window | None = None,
    cover: bool = False,
    cursor: str | None = None,
    anew: bool = False,
) -> None:
    """Write down what a listing told. ``anew``: all of it counts as news, whatever the catalog holds."""
    unique = {recording.recording_id: recording for recording in listing.recordings}
    odd = [(recording, reason) for recording in unique.values() if (reason := recording.problem()) is not None]
    rejected = [Rejected(raw=json.dumps(r.raw, default=str)[:4096], reason=reason) for r, reason in odd]
    kept = [recording for recording in unique.values() if recording.problem() is None] if odd else list(unique.values())
    listing = Listing(kept, [*listing.rejected, *rejected])
    unknown = list(listing.recordings) if anew else await catalog.unknown(feed.name, listing.recordings)
    if unknown:
        # A recorder that stood here before may have given one of these ids to another call.
        await catalog.set_former_aside(feed.name, unknown)
    digests: dict[str, bytes] = {}
    if isinstance(feed.source, Details) and getattr(feed.source, "asks_details", True):
        # By their rows alone the next listing is to know them.
        digests = {recording.recording_id: recording.digest() for recording in unknown}
        unknown = await _detailed(feed.source, feed.gate.limit, unknown, digests)

    async def write(told: Listing, news: Sequence[Recording], **of: Any) -> None:
        recorded = await catalog.record(
            feed.name,
            told,
            news,
            digests=digests,
            listing_key=feed.source.listing_key,
            stores=list(feed.outlets),
            retention=feed.options.retention,
            window=window,
            **of,
        )
        report.add(recorded)
        if recorded.rejected:
            log.warning("rows.rejected", source=feed.name, count=recorded.rejected)

    if len(unknown) > 2 * FIRST:
        # Their transfers begin while the others are still being written.
        await write(Listing(unknown[:FIRST]), unknown[:FIRST], part=True)
        unknown = unknown[FIRST:]
    await write(listing, unknown, cover=cover, cursor=cursor)


async def _detailed(
    source: Details, width: int, news: Sequence[Recording], digests: dict[str, bytes]
) -> list[Recording]:
    """Each with its details. One whose details can't be had waits for them, and the next listing asks again.

    Raises TryAgain where not one can be had.
    """
    failures: list[SourceError] = []

    async def one(recording: Recording) -> Recording:
        try:
            return await source.detail(recording)
        except SourceError as error:
            failures.append(error)
            digests[recording.recording_id] = b"again"
            return _waiting(recording)

    detailed: list[Recording] = []
    step = max(1, width) * 4
    for start in range(0, len(news), step):
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(new)) for new in news[start : start + step]]
        except* CatalogDown as lost:
            raise lost.exceptions[0] from None
        detailed += [task.result() for task in tasks]
        if len(failures) == len(detailed) and isinstance(failures[-1], TryAgain):
            raise failures[-1]
    return detailed


def _waiting(recording: Recording) -> Recording:
    """The recording as its row told it, with nothing to fetch before its details are known."""
    media = (replace(m, availability=Availability.NOT_READY, ref={**m.ref, UNDETAILED: True}) for m in recording.media)
    return replace(recording, media=tuple(media))


async def _follow(feed: Feed, catalog: Catalog, cursor: str | None, report: Polled, budget: timedelta | None) -> None:
    began = catalog.clock.now()
    try:
        await _look_up_again(feed, catalog, report)
        more = True
        while more:
            chapter = await _next_chapter(feed, catalog, cursor)
            if chapter is None or (
                chapter.cursor == (cursor or "") and not chapter.listing.recordings and not chapter.listing.failed
            ):
                return
            # First: whoever is ended between the two asks once more, and forgets none.
            await _look_up_later(feed, catalog, chapter.listing.failed)
            await record(feed, catalog, chapter.listing, report, cursor=_bookmark(feed, chapter.cursor, began))
            more, cursor = chapter.more and chapter.cursor != cursor, chapter.cursor
            if budget is not None and catalog.clock.now() - began > budget:
                report.more = report.more or more
                return
    except _OF_A_WINDOW as error:
        report.error, report.down = str(error), not await _works(feed, catalog, error)


def _ids_from(feed: Feed) -> str | None:
    """The source whose call ids are looked up here, where the options name one."""
    return getattr(feed.options, "ids_from", None) if isinstance(feed.source, LooksUp) else None


def _bookmark(feed: Feed, cursor: str, now: datetime) -> str:
    """Where the next poll goes on; recent calls of another source are looked up again, for they may have grown."""
    if _ids_from(feed) is None:
        return cursor
    back = now - feed.options.lookback
    return min(cursor, back.isoformat(), key=lambda at: _place(at)[0])


def _place(cursor: str | None) -> tuple[datetime, str]:
    """A moment, and the last call id of that moment."""
    at, _, call_id = (cursor or "").partition(" ")
    try:
        return datetime.fromisoformat(at), call_id
    except ValueError:
        # None yet, or one of an ids_file that was followed before.
        return EPOCH, ""


async def _next_chapter(feed: Feed, catalog: Catalog, cursor: str | None) -> Chapter | None:
    """What to read next by cursor: the source's own, or another source's call ids to look up here."""
    other = _ids_from(feed)
    if other is None or not isinstance(feed.source, LooksUp):
        return await feed.source.follow(cursor) if isinstance(feed.source, Follows) else None
    found = await catalog.call_ids(other, *_place(cursor), 200)
    if not found:
        return None
    # Those that failed before are asked again by themselves.
    failed = await catalog.failed_lookups(feed.name, [call_id for call_id, _ in found])
    asked = [call_id for call_id, _ in found if call_id not in failed]
    listing = await _looked_up(feed, catalog, feed.source, asked) if asked else Listing()
    call_id, at = found[-1]
    return Chapter(listing, f"{at.isoformat()} {call_id}", more=len(found) == 200)


async def look_up(feed: Feed, catalog: Catalog, call_ids: Sequence[str]) -> Polled:
    """Record what the source knows of these calls. Raises SourceError where the recorder itself does not work."""
    report = Polled()
    if not isinstance(feed.source, LooksUp):
        raise BadData(f"a {feed.kind} source can't be asked for single call ids; use --from and --to")
    if await _asked(feed, catalog, report):
        return report
    await _ledger(feed, catalog)
    for start in range(0, len(call_ids), 50):
        listing = await _looked_up(feed, catalog, feed.source, call_ids[start : start + 50])
        await _look_up_later(feed, catalog, listing.failed)
        await record(feed, catalog, listing, report)
    await _name_lookups(feed, catalog, report)
    return report


async def _name_lookups(feed: Feed, catalog: Catalog, report: Polled) -> None:
    """Call ids that can't be looked up are said in each poll, asked for or not."""
    count, call_id, why = await catalog.lookup_trouble(feed.name)
    if count and report.error is None:
        others = f" (and {count - 1} more)" if count > 1 else ""
        report.error = f"call {call_id} can't be looked up: {why}{others}"


async def _looked_up(feed: Feed, catalog: Catalog, source: LooksUp, call_ids: Sequence[str]) -> Listing:
    """What the source knows of these calls; one by one where it can't tell of all. Raises where it does not work."""
    try:
        return await source.look_up(call_ids)
    except _OF_A_WINDOW as error:
        if not await _works(feed, catalog, error):
            raise
        if len(call_ids) == 1:
            return Listing(failed=[(call_ids[0], str(error))])
    listings = [await _looked_up(feed, catalog, source, [call_id]) for call_id in call_ids]
    return Listing(
        [r for listing in listings for r in listing.recordings],
        [r for listing in listings for r in listing.rejected],
        [f for listing in listings for f in listing.failed],
    )


async def _look_up_again(feed: Feed, catalog: Catalog, report: Polled) -> None:
    """The call ids that could not be looked up, and are due again: each alone, and no other waits for them."""
    if not isinstance(feed.source, LooksUp):
        return
    for call_id, attempts in await catalog.lookups(feed.name, LOOKUPS):
        listing = await _looked_up(feed, catalog, feed.source, [call_id])
        if listing.failed:
            await _look_up_later(feed, catalog, listing.failed, attempts)
        else:
            await record(feed, catalog, listing, report)
            await catalog.looked_up(feed.name, call_id)


async def _look_up_later(feed: Feed, catalog: Catalog, failed: Sequence[tuple[str, str]], attempts: int = 0) -> None:
    """Call ids and why they could not be looked up: kept, and asked again on their own schedule."""
    if failed:
        due_at = catalog.clock.now() + next_try(attempts + 1, feed.options.retry, random.random())  # noqa: S311
        log.warning("lookups.failed", source=feed.name, count=len(failed), error=failed[-1][1])
        await catalog.look_up_later(feed.name, failed, due_at)


async def pause_source(feed: Feed, catalog: Catalog, why: str) -> None:
    """Our account is refused: leave the source alone for a while, longer each time; its queue stays as it is."""
    if feed.paused_until is not None and catalog.clock.now() < feed.paused_until:
        # Another request that was under way heard it first.
        return
    feed.pauses += 1
    wait = min(timedelta(minutes=1) * 2 ** min(feed.pauses - 1, 10), timedelta(minutes=15))
    feed.paused_until, feed.paused_why, feed.welcome_at = catalog.clock.now() + wait, why, None
    await catalog.pause(feed.name, feed.paused_until, why)
    log.error("source.refused", source=feed.name, error=why, retry_in_s=wait.total_seconds())


async def resume_source(feed: Feed, catalog: Catalog) -> None:
    if feed.paused_until is not None or feed.pauses:
        log.info("source.welcome", source=feed.name, pauses=feed.pauses)
    feed.paused_until, feed.paused_why, feed.pauses = None, "", 0
    # Only a recorder that answers nothing has its breaker open, and it just listed.
    feed.health.worked()
    await catalog.pause(feed.name, None, None)


# -- transfer ----------------------------------------------------------------------------------------------------------


async def transfer(feed: Feed, claim: Claim, catalog: Catalog, spool: Spool) -> Download | Outcome:
    """Bring one medium home: obtain, check, put. Everything that can go wrong ends in an Outcome."""
    with spool.sink() as sink:
        try:
            spool.demand_room()
            with overheard() as heard:
                if (claim.error or "").startswith(MISMATCH):
                    claim = await _asked_anew(feed, claim, catalog)
                body, found = await obtain(feed, claim, sink, catalog, heard)
        except SourceError as error:
            answer = heard.fingerprint(sink.length, sink.sha256)
            return replace(await explain(feed, claim, catalog, error), answer=answer)
        except SpoolDown as error:
            return postponed(claim, catalog.clock.now() + timedelta(minutes=1), str(error))
        return await deliver(feed, claim, catalog, body, found)


async def _asked_anew(feed: Feed, claim: Claim, catalog: Catalog) -> Claim:
    """The claim with what its source tells of the medium now: what it told before did not fit the bytes.

    Raises SourceError; Doubtful where it is to be fetched by what is told now.
    """
    if not getattr(feed.source, "lists_by_time", True):
        return claim
    by_end = feed.source.listing_key is ListingKey.END and claim.ended_at is not None
    moment = claim.ended_at if by_end and claim.ended_at is not None else claim.started_at
    around = Window(moment - timedelta(seconds=1), moment + timedelta(seconds=1))
    listing = await feed.source.list(around)
    told = [r for r in listing.recordings if r.recording_id == claim.medium.recording_id]
    if told:
        await record(feed, catalog, Listing(told), Polled(), anew=True)
    medium = await catalog.medium(*claim.id)
    return replace(claim, medium=medium) if medium is not None else claim


async def obtain(feed: Feed, claim: Claim, sink: SpoolSink, catalog: Catalog, heard: Heard) -> tuple[Body, audio.Audio]:
    """The checked bytes: from a store that holds them already, else from the source. Raises SourceError."""
    for copy in claim.copies:
        outlet = feed.outlets.get(copy.store)
        if outlet is None:
            continue
        try:
            await outlet.store.get(copy.key, sink)
        except StoreError as error:
            log.warning("copy.unreadable", source=feed.name, store=copy.store, error=str(error))
        else:
            body = await sink.body()
            if body.sha256 == copy.sha256:
                return body, await inspected(body, claim.medium, feed)
        await sink.restart()
    if claim.medium.ref.get(UNDETAILED):
        raise NotReady("its details could not be read yet")
    with span("download", source=feed.name) as tell:
        async with _giving_way(feed, claim, heard):
            await feed.source.fetch(claim.medium, sink)
        body = await sink.body()
        tell(size=body.length)
    return body, await checked(feed, claim, body, catalog, sink.content_type)


@contextlib.asynccontextmanager
async def _giving_way(feed: Feed, claim: Claim, heard: Heard) -> AsyncIterator[None]:
    """A first attempt that stands still gives way to others that wait for the recorder; the next has all its time.

    Raises TooSlow.
    """
    known = feed.stillness * HURRIED or feed.options.timeout.total_seconds() * HURRIED_AT_FIRST
    patience = max(HURRIED_LEAST, known)
    if claim.attempts or claim.troubled or feed.hurries >= HURRIES or feed.options.timeout.total_seconds() <= patience:
        yield
        feed.stillness = max(feed.stillness * 0.9, heard.stillest)
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    try:
        async with asyncio.timeout(None) as limit:

            def look() -> None:
                nonlocal timer
                still = time.monotonic() - heard.moved_at if heard.moved_at is not None else 0.0
                # After one that gave way the next ones get half of it.
                if still > patience / (2 if feed.hurries else 1) and feed.gate.waiting:
                    limit.reschedule(loop.time())
                else:
                    timer = loop.call_later(patience / 8, look)

            timer = loop.call_later(patience / 2, look)
            try:
                yield
                feed.stillness = max(feed.stillness * 0.9, heard.stillest)
            finally:
                if timer is not None:
                    timer.cancel()
    except TimeoutError:
        feed.hurries += 1
        raise TooSlow("it stood still while others waited; the next try has all its time") from None


async def checked(feed: Feed, claim: Claim, body: Body, catalog: Catalog, told_type: str | None = None) -> audio.Audio:
    """What bytes from the source are, once they may be kept. Raises SourceError.

    ``told_type``: what their answer calls them.
    """
    medium = claim.medium
    if medium.content_type is None and told_type is not None:
        medium = replace(medium, content_type=told_type)
    found = await verified(medium, body, feed)
    accept(feed, claim, body, found, catalog.clock.now())
    await delivered(feed, catalog)
    return found


async def delivered(feed: Feed, catalog: Catalog) -> None:
    """Audio came: the account may have it."""
    feed.health.worked()
    feed.hurries, feed.delivered_at = 0, catalog.clock.now()
    refused, feed.refused, feed.refused_newest = feed.refused, set(), set()
    if len(refused) >= REFUSALS and feed.pauses:
        await catalog.forgive(refused, "refused", catalog.clock.now())
        await resume_source(feed, catalog)


async def verified(medium: Medium, body: Body, feed: Feed | None = None) -> audio.Audio:
    """What the bytes are. Raises Mismatch where they are not what the source promised, TryAgain where no audio.

    What it promised counts as far as the options of its source (of now) say.
    """
    if feed is not None and isinstance(feed.source, Expects):
        medium = feed.source.expected(medium)
    if medium.size is not None and body.length != medium.size:
        raise Mismatch(f"the source says {medium.size} bytes, {body.length} came")
    if medium.sha256 is not None and body.sha256 != medium.sha256.lower():
        raise Mismatch(f"the source says SHA-256 {medium.sha256[:12]}…, the bytes have {body.sha256[:12]}…")
    return await inspected(body, medium, feed)


async def inspected(body: Body, medium: Medium, feed: Feed | None) -> audio.Audio:
    how: dict[str, Any] = {"opaque": medium.opaque, "told_type": medium.content_type}
    if feed is not None and feed.options.audio is not None:
        how["raw"] = feed.options.audio
    if body.path is not None or body.length > 4 << 20:
        return await asyncio.to_thread(audio.inspect, body, **how)
    return audio.inspect(body, **how)


def evidence(found: audio.Audio, told: timedelta | None) -> tuple[tuple[Flag, ...], str | None]:
    """Why bytes can only be kept as evidence, and what was seen; ``told``: how long the source says that they last."""
    lasts = timedelta() if found.verdict is Verdict.EMPTY else found.duration
    flags: tuple[Flag, ...] = ()
    notes = []
    if found.verdict in {Verdict.UNFINISHED, Verdict.CUT}:
        flags = (Flag.UNFINISHED, Flag.UNCHECKED)
    elif found.verdict is Verdict.UNCHECKED:
        flags = (Flag.UNCHECKED,)
    if found.reason is not None:
        notes.append(found.reason)
    if told is not None and told > LONG_ENOUGH and lasts is not None and lasts < told * SHORT_BELOW:
        flags = (*flags, Flag.SHORT)
        notes.append(f"{lasts.total_seconds():.1f} s of audio, the source told of {told.total_seconds():.1f} s")
    return flags, "; ".join(notes) if flags or notes else None


def accept(feed: Feed, claim: Claim, body: Body, found: audio.Audio, now: datetime) -> None:
    """May these bytes be kept? Raises Empty, or Doubtful where they are to be looked at again.

    What may not be whole is waited for while the call is young, and kept once the same bytes came twice. The source's
    own hash, or the size of what nobody can check, stands for the second time.
    """
    flags, note = evidence(found, claim.medium.duration)
    if not flags:
        if found.verdict is Verdict.EMPTY:
            raise Empty(note or "it holds no audio")
        return
    young = YOUNG_IF_SHORT if Flag.SHORT in flags else YOUNG
    told = claim.medium.sha256 is not None or (found.verdict is Verdict.UNCHECKED and claim.medium.size is not None)
    came = claim.seen_at if claim.seen_sha256 == body.sha256 else None
    if _age(claim, now) < young or not (told or (came is not None and now - came >= TWICE)):
        what = "short" if Flag.SHORT in flags else found.verdict.value
        raise Doubtful(note or what, what=what, sha256=body.sha256)
    if found.verdict is Verdict.EMPTY and body.length == 0:
        raise Empty(note or "it holds no audio")
    log.warning("recording.evidence", source=feed.name, recording_id=claim.medium.recording_id, flags=flags, why=note)


def _age(claim: Claim, now: datetime) -> timedelta:
    """How long ago its call ended."""
    return max(now - (claim.ended_at or claim.started_at), timedelta())


async def deliver(feed: Feed, claim: Claim, catalog: Catalog, body: Body, found: audio.Audio) -> Download | Outcome:
    """Put the bytes into each store that lacks them; at least one taking them is a Download."""
    flags, note = evidence(found, claim.medium.duration)
    odd = audio.plausible(found, claim.medium.duration)
    if odd:
        log.info("recording.odd_duration", source=feed.name, recording_id=claim.medium.recording_id, detail=odd)
    copies = {c.store: c for c in claim.copies if c.sha256 == body.sha256}
    missing = [outlet for name, outlet in feed.outlets.items() if name in claim.stores and name not in copies]
    if len(missing) == 1:
        made = [await _put(feed, missing[0], claim, catalog, body, found.ext)]
    else:
        made = await asyncio.gather(*(_put(feed, outlet, claim, catalog, body, found.ext) for outlet in missing))
    problems = [result for result in made if isinstance(result, _Unput)]
    copies |= {result.store: result for result in made if isinstance(result, Copy)}
    stuck = catalog.clock.now() + STUCK
    lost = set(claim.stores) - set(feed.outlets) - set(copies)
    problems += [_Unput(f"store {name} is not in the config", stuck) for name in sorted(lost)]
    error = "; ".join(problem.why for problem in problems)
    due_at = max((problem.due_at for problem in problems), default=None)
    if not copies:
        of_object = any(problem.of_object for problem in problems)
        return (
            _refused_object(feed, claim, catalog, due_at or stuck, error)
            if of_object
            else postponed(claim, due_at or stuck, error)
        )
    return Download(
        claim=claim,
        sha256=body.sha256,
        size=body.length,
        content_type=found.content_type,
        duration=found.duration,
        coding=found.coding,
        flags=flags,
        note=note,
        copies=tuple(copies.values()),
        error=error or None,
        due_at=due_at,
    )


@dataclass(frozen=True, slots=True)
class _Unput:
    """Why a store did not take the bytes, and when to try again."""

    why: str
    due_at: datetime
    #: The store takes others, but not these.
    of_object: bool = False


def postponed(claim: Claim, due_at: datetime, why: str) -> Outcome:
    """Nothing is wrong with this medium: it is due again then, and no attempt is counted."""
    return Outcome(
        claim=claim,
        state=State.PENDING,
        due_at=due_at,
        error=why,
        attempts=claim.attempts,
        failing_since=claim.failing_since,
        what="store failed",
    )


def _refused_object(feed: Feed, claim: Claim, catalog: Catalog, due_at: datetime, why: str) -> Outcome:
    """The store does not take this one: an attempt, for it was downloaded; given up like any other."""
    now = catalog.clock.now()
    gives_up = now - (claim.failing_since or now) >= feed.options.retry.give_up_after
    return Outcome(
        claim=claim,
        state=State.FAILED if gives_up else State.PENDING,
        due_at=due_at,
        error=why,
        attempts=claim.attempts + 1,
        failing_since=claim.failing_since or now,
        what="store refused it",
    )


async def _put(feed: Feed, outlet: Outlet, claim: Claim, catalog: Catalog, body: Body, ext: str) -> Copy | _Unput:
    key = layout.media_key(
        outlet.prefix,
        claim.source,
        claim.started_at,
        claim.medium.recording_id,
        claim.medium.media_id,
        body.sha256,
        ext,
    )
    began = time.monotonic()
    try:
        with span("put", store=outlet.name, size=body.length):
            await outlet.store.put(key, body)
    except StoreError as error:
        outlet.failed_puts += 1
        until = await store_failed(outlet, catalog, error, key)
        if until is not None:
            return _Unput(f"store {outlet.name}: {error}", until)
        log.error("object.refused", store=outlet.name, key=key, error=str(error))
        wait = max(OBJECT_AGAIN, next_try(claim.attempts + 1, feed.options.retry, random.random()))  # noqa: S311
        return _Unput(f"store {outlet.name}: refused this object: {error}", catalog.clock.now() + wait, of_object=True)
    outlet.unput.worked()
    outlet.puts.add(time.monotonic() - began)
    outlet.bytes_put += body.length
    return Copy(store=outlet.name, key=key, size=body.length, sha256=body.sha256, archived_at=catalog.clock.now())


async def store_failed(outlet: Outlet, catalog: Catalog, error: StoreError, key: str) -> datetime | None:
    """Until when nothing more is put there; None where this object alone is to blame, and the others go on."""
    if not outlet.health.open(catalog.clock.now()):
        if not await concerns_store(outlet, error, key, outlet.unput):
            return None
        if not outlet.health.open(catalog.clock.now()):
            level = log.error if isinstance(error, StoreRefused) else log.warning
            level("store.down", store=outlet.name, error=str(error))
            # With a canary that works it may as well be these objects: the next ones are let through soon.
            wait = SPARED if outlet.unput.exceeded else None
            outlet.unput.worked()
            outlet.health.opens(catalog.clock.now(), str(error), wait=wait)
    return outlet.health.until


async def explain(feed: Feed, claim: Claim, catalog: Catalog, error: SourceError) -> Outcome:
    """What follows from a failure: the one place that decides (the table in docs/reliability.md)."""
    now = catalog.clock.now()
    jitter = random.random()  # noqa: S311 - spreads load, guards nothing

    def outcome(state: State, what: str, due_at: datetime = now, *, counts: bool = False) -> Outcome:
        return Outcome(
            claim=claim,
            state=state,
            due_at=due_at,
            error=f"{what}: {error}"[:500],
            attempts=claim.attempts + counts,
            failing_since=(claim.failing_since or now) if counts else claim.failing_since,
            what=what,
        )

    if isinstance(error, Refused):
        if await _welcome(feed, catalog):
            return await _refused(feed, claim, catalog, error, outcome)
        later = outcome(State.PENDING, "account refused", feed.paused_until or now + timedelta(minutes=1))
        return replace(later, troubled=claim.troubled)
    if isinstance(error, NotReady | Empty | Gone):
        # The recorder answered.
        feed.health.failures = 0
        return await _not_there(feed, claim, catalog, error, outcome)
    await _suspect(feed, catalog, error)
    asked = error.retry_after if isinstance(error, TryAgain) else None
    failing = now - (claim.failing_since or now)
    if failing >= feed.options.retry.give_up_after:
        return outcome(State.FAILED, "gave up", counts=True)
    wait = next_try(claim.attempts + 1, feed.options.retry, jitter, asked)
    return outcome(State.PENDING, MISMATCH if isinstance(error, Mismatch) else "failed", now + wait, counts=True)


async def _not_there(
    feed: Feed, claim: Claim, catalog: Catalog, error: SourceError, outcome: Callable[..., Outcome]
) -> Outcome:
    """No audio, none yet, none any more, or some that may not be whole."""
    now, jitter = catalog.clock.now(), random.random()  # noqa: S311
    age = _age(claim, now)
    if isinstance(error, Empty) and age > FRESH:
        ended = outcome(State.EMPTY, "empty")
        long = claim.medium.duration is not None and claim.medium.duration > LONG_ENOUGH
        return replace(ended, flags=(Flag.SHORT,), note=str(error)) if long else ended
    if isinstance(error, Gone):
        return outcome(State.GONE, "gone")
    if isinstance(error, Doubtful):
        again = error.sha256 == claim.seen_sha256
        # Other bytes each time, and of a call that ended long ago: that is a failure like any other.
        counts = not again and claim.seen_sha256 is not None and age > YOUNG_IF_SHORT
        young = age < (YOUNG_IF_SHORT if error.what == "short" else YOUNG)
        wait = max(TWICE, next_try(claim.attempts + 1, feed.options.retry, jitter)) if counts else TWICE
        due_at = now + (next_look(age, jitter) if young else wait)
        return replace(outcome(State.PENDING, error.what, due_at, counts=counts), seen=error.sha256)
    missing = await catalog.missing_since(feed.name, claim.medium.recording_id)
    if missing is not None and now - missing > GONE_AFTER:
        return outcome(State.GONE, "gone")
    return outcome(State.PENDING, "not ready", now + next_look(age, jitter))


async def _suspect(feed: Feed, catalog: Catalog, error: SourceError) -> None:
    """A request failed. After several in a row the recorder itself is asked; that alone opens its breaker."""
    asks = feed.health.suspects()
    if feed.health.failures >= OTHER_END_AFTER:
        feed.other_end_until = time.monotonic() + OTHER_END
    if not asks:
        return
    async with feed.logging_in:
        now = catalog.clock.now()
        if feed.health.failures < feed.health.allowed or feed.health.open(now):
            # Another one asked meanwhile.
            return
        try:
            works = await _works(feed, catalog, error)
        except Refused as refusal:
            await pause_source(feed, catalog, str(refusal))
            return
        if not works:
            return
        feed.health.failures = 0
        if isinstance(error, Busy):
            # It works, and wants fewer requests.
            feed.gate.refused()
            wait = min(max(error.retry_after or SPARED, SPARED), SPARED_AT_MOST)
            feed.health.opens(now, str(error), wait=wait)


async def heal(feed: Feed, catalog: Catalog) -> None:
    """The breaker's time is over: does the recorder work again?"""
    async with feed.logging_in:
        try:
            await feed.source.check()
        except Refused as refusal:
            # It answers: what follows is the account's.
            feed.health.worked()
            await pause_source(feed, catalog, str(refusal))
        except SourceError as error:
            feed.health.opens(catalog.clock.now(), str(error), getattr(error, "retry_after", None))
        else:
            feed.alive_at = catalog.clock.now()
            feed.health.worked()
            log.info("source.up", source=feed.name)


async def _refused(
    feed: Feed, claim: Claim, catalog: Catalog, error: Refused, outcome: Callable[..., Outcome]
) -> Outcome:
    """The account is welcome, this medium is refused: it alone, or all of them?

    Where several are refused and none is delivered in between, the next ones come from the other end of the queue.
    """
    feed.refused.add(claim.id)
    if claim.newest:
        feed.refused_newest.add(claim.id)
    now = catalog.clock.now()
    lately = feed.delivered_at is not None and now - feed.delivered_at < SILENT
    if len(feed.refused_newest) < SAMPLED or lately:
        if lately or (not feed.samples and await catalog.delivered(feed.name)):
            return outcome(State.FAILED, "refused", counts=True)
        # An account that never got any audio may not be meant to; and perhaps all are refused now.
        due_at = catalog.clock.now() + next_try(claim.attempts + 1, feed.options.retry, 0.5)
        return outcome(State.PENDING, "refused", due_at, counts=True)
    await pause_source(feed, catalog, f"the account may list recordings, but is refused the audio of each: {error}")
    # Behind the others, which may be allowed.
    due_at = (feed.paused_until or catalog.clock.now()) + timedelta(minutes=1)
    await catalog.forgive(feed.refused, "refused", due_at)
    return outcome(State.PENDING, "account refused", due_at)


async def _welcome(feed: Feed, catalog: Catalog) -> bool:
    """Was only this one item refused? Asks with a login, at most once a minute; a refused one pauses the source."""
    async with feed.logging_in:
        now = catalog.clock.now()
        if feed.paused_until is not None and now < feed.paused_until:
            return False
        if feed.welcome_at is not None and now - feed.welcome_at < timedelta(minutes=1):
            return True
        try:
            await feed.source.check()
        except Refused as refusal:
            await pause_source(feed, catalog, str(refusal))
            return False
        except SourceError as error:
            if not feed.health.open(now):
                feed.health.opens(now, str(error))
            return False
        feed.welcome_at = feed.alive_at = now
        return True


# -- commit ------------------------------------------------------------------------------------------------------------


async def commit(feeds: dict[str, Feed], catalog: Catalog, finished: Sequence[Download | Outcome]) -> dict[int, State]:
    """Write manifests, then the catalog; by token the states that took effect (a lost claim's is missing).

    Where a store could not take its manifest, its copies do not count yet: those media stay due.
    """
    downloads = [f for f in finished if isinstance(f, Download)]
    outcomes = [f for f in finished if isinstance(f, Outcome)]
    revisions: dict[tuple[str, str], int] = {}
    if downloads:
        by_recording: dict[tuple[str, str], list[Download]] = defaultdict(list)
        for download in downloads:
            by_recording[download.claim.id[:2]].append(download)
        known = await catalog.documents(sorted(by_recording))
        described = {
            key: (with_results(document, by_recording[key]), stores) for key, (document, _, stores) in known.items()
        }
        revisions = {key: revision for key, (_, revision, _) in known.items()}
        now = catalog.clock.now()
        # Made after the reading: it sorts behind a description that was begun before (see describe_changes).
        lost = await _describe(feeds, catalog, described, now, layout.ulid(now))
        downloads, without = _without(downloads, lost)
        outcomes += without
        revisions = {key: rev for key, rev in revisions.items() if not any(key == missed[:2] for missed in lost)}
    targets = {name: tuple(_hearers(feeds, name)) for name in feeds}
    return await catalog.settle(downloads, outcomes, revisions=revisions, targets=targets)


def _hearers(feeds: dict[str, Feed], source: str) -> list[str]:
    """Who wants to hear that a recording of this source is archived."""
    return [
        name
        for name, feed in feeds.items()
        if isinstance(feed.source, Acknowledges)
        and feed.source.acknowledges
        and (name == source or getattr(feed.source, "hears_all", False))
    ]


#: (source, recording_id, store) that no manifest could be written for, and when to try again.
_Lost: TypeAlias = dict[tuple[str, str, str], datetime]


async def _describe(
    feeds: dict[str, Feed],
    catalog: Catalog,
    described: dict[tuple[str, str], tuple[Document, list[str]]],
    now: datetime,
    stamp: str,
) -> _Lost:
    """One manifest per source and store; what could not be described where."""
    lines: dict[tuple[str, str], list[Document]] = defaultdict(list)
    lost: _Lost = {}
    for (source, recording_id), (document, stores) in described.items():
        for store in stores:
            if source not in feeds:
                # It left the config while its last media were on their way.
                lost[source, recording_id, store] = now
            elif store in feeds[source].outlets:
                lines[source, store].append(document)

    told = [_tell(feeds[of[0]], of[1], catalog, documents, now, stamp) for of, documents in lines.items()]
    for missed in await asyncio.gather(*told):
        lost |= missed
    return lost


async def _tell(
    feed: Feed, store: str, catalog: Catalog, documents: list[Document], now: datetime, stamp: str
) -> _Lost:
    """One manifest; in halves where the store does not take it whole."""
    outlet = feed.outlets[store]
    ids = [document["recording_id"] for document in documents]
    until = outlet.health.until if outlet.health.open(now) and not outlet.health.trying else None
    if until is None:
        try:
            await manifests.write(outlet.store, outlet.prefix, feed.name, documents, now, stamp)
        except StoreError as error:
            until = await store_failed(outlet, catalog, error, f"{feed.name} {ids[0]}")
            if until is None and len(ids) > 1:
                # Too long for it, perhaps, or one of them is at fault.
                half = len(ids) // 2
                first = await _tell(feed, store, catalog, documents[:half], now, layout.ulid(now))
                return first | await _tell(feed, store, catalog, documents[half:], now, layout.ulid(now))
            if until is None:
                until = _undescribable(outlet, feed, (feed.name, ids[0]), now, str(error))
        else:
            for recording_id in ids:
                outlet.undescribable.pop((feed.name, recording_id), None)
            # Not before: a store that takes audio and no manifests is of no use. Nor for what was put before it failed.
            if outlet.health.trying or not outlet.health.probing:
                outlet.health.worked()
            return {}
    return {(feed.name, recording_id, store): until for recording_id in ids}


def _undescribable(outlet: Outlet, feed: Feed, key: tuple[str, str], now: datetime, why: str) -> datetime:
    """The store refuses the description of this recording alone; when to try again."""
    known = outlet.undescribable.get(key)
    attempts = known.attempts + 1 if known is not None else 1
    due_at = now + next_try(attempts, feed.options.retry, random.random())  # noqa: S311
    outlet.undescribable[key] = Stuck(due_at, attempts, why)
    log.error("manifest.refused", store=outlet.name, source=key[0], recording_id=key[1], error=why)
    return due_at


def _without(downloads: Sequence[Download], lost: _Lost) -> tuple[list[Download], list[Outcome]]:
    """The downloads less the copies that no manifest describes; those with none left as outcomes."""
    kept, gone = [], []
    for d in downloads:
        source, recording_id, _ = d.claim.id
        missed = [lost[source, recording_id, c.store] for c in d.copies if (source, recording_id, c.store) in lost]
        if not missed:
            kept.append(d)
            continue
        copies = tuple(c for c in d.copies if (source, recording_id, c.store) not in lost)
        error = "no manifest could be written"
        if copies:
            kept.append(replace(d, copies=copies, error=error, due_at=max(missed)))
        else:
            gone.append(postponed(d.claim, max(missed), error))
    return kept, gone


async def describe_changes(
    feeds: dict[str, Feed], catalog: Catalog, *, new_after: timedelta = timedelta(), limit: int = 200
) -> int:
    """Write manifests for recordings that no manifest describes as they are; how many.

    New ones get ``new_after`` to be archived, which describes them anyhow.

    Meanwhile others may describe the same recordings, and this may end at any await. So that the last line about one
    in a store is never an old one for good: the ULID comes first, then the new revision, then the reading. Who
    commits what was read before that revision leaves the recording undescribed; who reads later has a later ULID.
    """
    done = 0
    async with catalog.describing:
        waiting = _waiting_descriptions(feeds, catalog.clock.now())
        while keys := await catalog.undescribed(
            list(feeds), limit + len(waiting), new_before=catalog.clock.now() - new_after
        ):
            found, keys = len(keys), [key for key in keys if key not in waiting]
            if not keys:
                break
            now = catalog.clock.now()
            stamp = layout.ulid(now)
            await catalog.revise(keys)
            known = await catalog.documents(keys)
            described = {key: (document, stores) for key, (document, _, stores) in known.items()}
            lost = await _describe(feeds, catalog, described, now, stamp)
            told = {key: rev for key, (_, rev, stores) in known.items() if not any((*key, s) in lost for s in stores)}
            ended = await catalog.described(told)
            done += ended
            # None: another process describes the same ones, and each would undo the other's for ever.
            if found < limit + len(waiting) or lost or not ended:
                break
    return done


def _waiting_descriptions(feeds: dict[str, Feed], now: datetime) -> set[tuple[str, str]]:
    """Recordings whose description a store refused, and that are not due again."""
    outlets = {id(o): o for feed in feeds.values() for o in feed.outlets.values()}.values()
    return {key for o in outlets for key, stuck in o.undescribable.items() if stuck.due_at > now}


async def tell_verified(feeds: dict[str, Feed], catalog: Catalog, *, limit: int = 5000) -> int:
    """Write into each store which copies were verified when, so that a rebuild knows; how many copies."""
    told = 0
    failed: set[str] = set()
    while untold := await catalog.untold_verified([name for name in feeds if name not in failed], limit):
        now = catalog.clock.now()
        by_source: dict[str, list[tuple[str, str, str, datetime]]] = defaultdict(list)
        for copy in untold:
            by_source[copy[0]].append(copy)
        for source, copies in by_source.items():
            try:
                for outlet in feeds[source].outlets.values():
                    await manifests.write_verified(
                        outlet.store, outlet.prefix, source, [copy[1:] for copy in copies], now
                    )
            except StoreError as error:
                await store_failed(outlet, catalog, error, f"_verified {source}")
                failed.add(source)
                continue
            await catalog.told_verified(copies)
            told += len(copies)
        if len(untold) < limit:
            break
    return told


async def tell_ledgers(feeds: dict[str, Feed], catalog: Catalog) -> int:
    """Write into each store what was listed, once all that was found is described there; how many ledgers."""
    told = 0
    for ledger in await catalog.untold_ledgers(list(feeds)):
        now = catalog.clock.now()
        outlets = feeds[ledger["source"]].outlets
        try:
            # One added later does not hold what was archived before (`copy` brings it there).
            for name in await catalog.whole(ledger["source"], list(outlets)):
                await manifests.write_ledger(outlets[name].store, outlets[name].prefix, ledger, now)
        except StoreError as error:
            await store_failed(outlets[name], catalog, error, f"_ledger {ledger['source']}")
        else:
            await catalog.told_ledger(ledger)
            told += 1
    return told
