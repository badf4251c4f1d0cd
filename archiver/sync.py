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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from . import audio, layout, manifests
from .catalog import Catalog, Document, Recorded, with_results
from .errors import (
    BadData,
    CatalogDown,
    Empty,
    Gone,
    NotReady,
    Overflow,
    Refused,
    SourceError,
    SpoolDown,
    StoreConflict,
    StoreError,
    StoreRefused,
    TooSlow,
    TryAgain,
)
from .http import Gate, overheard
from .model import (
    Availability,
    Body,
    Chapter,
    Claim,
    Copy,
    Download,
    Listing,
    Medium,
    Outcome,
    Recording,
    Rejected,
    State,
    Window,
)
from .options import SourceOptions
from .ports import Acknowledges, Details, FetchesBatches, Follows, LooksUp, Source, Store
from .spool import Spool, SpoolSink
from .tally import Timings
from .traces import span
from .windows import EPOCH, Piece, cut, halve, next_look, next_try, plan

log = structlog.get_logger()

#: A medium that its source neither lists nor delivers any more is gone after so long.
GONE_AFTER = timedelta(days=3)
#: A fresh file without audio may still be written.
FRESH = timedelta(minutes=15)
#: In a medium's ref: not to be fetched, for what its bytes must be is not known yet.
UNDETAILED = "undetailed"
#: What only an operator can mend is looked at again so often.
STUCK = timedelta(minutes=15)
#: So many media refused, and none delivered in between, are no matter of single recordings.
REFUSALS = 5
#: Listings of a window that are tried in place before the poll goes on without it.
TRIES = 3
#: Of a long listing so many recordings are written first, so that the stores need not wait for the others.
FIRST = 250


@dataclass(slots=True)
class Health:
    """A breaker: so many failures in a row open it, for longer each time; then one try decides."""

    allowed: int
    first: timedelta
    cap: timedelta
    failures: int = 0
    until: datetime | None = None
    why: str = ""
    #: There was a sign of life, and the one try that it allows decides.
    trying: bool = False

    def failed(self, now: datetime, why: str, asked: timedelta | None = None) -> None:
        self.failures += 1
        self.trying = False
        if self.failures >= self.allowed:
            doublings = min(self.failures - self.allowed, 20)
            self.until = now + max(min(self.cap, self.first * float(2**doublings)), asked or timedelta())
            self.why = why

    def worked(self) -> None:
        self.failures, self.until, self.why, self.trying = 0, None, "", False

    def open(self, now: datetime) -> bool:
        return self.until is not None and now < self.until

    @property
    def probing(self) -> bool:
        """Has it been open, and no try has worked since?"""
        return self.until is not None


@dataclass(slots=True)
class Outlet:
    """A store as the engine sees it."""

    name: str
    store: Store
    prefix: str
    health: Health = field(default_factory=lambda: Health(1, timedelta(seconds=2), timedelta(minutes=1)))
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
    health: Health = field(default_factory=lambda: Health(5, timedelta(seconds=30), timedelta(minutes=10)))
    #: The account is refused: nothing is asked before.
    paused_until: datetime | None = None
    paused_why: str = ""
    pauses: int = 0
    #: When the account was last seen to work, so that a refused item does not cost a login each.
    welcome_at: datetime | None = None
    logging_in: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: How many work with it (see :func:`hold`): one that left the config is closed after the last.
    users: int = 0
    #: The media that were refused since audio last came, though the account is welcome.
    refused: set[tuple[str, str, str]] = field(default_factory=set)
    #: The source, where it delivers many media in one answer.
    batches: FetchesBatches | None = field(init=False)

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
    await catalog.expire_by(feed.name, feed.options.retention)
    ledger = await catalog.source(
        feed.name, feed.kind, default_start=now - timedelta(hours=24), start=feed.options.start
    )
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
            if whole is not None:
                pieces = await _pieces(feed, catalog, ledger.covered, whole, relist=relist, recent=wanted is None)
                await _list_all(feed, catalog, pieces, report, budget, pause)
            if wanted is None:
                await _follow(feed, catalog, ledger.cursor, report, budget)
                if report.error is None and not report.more:
                    await _revisit(feed, catalog, report, pause)
        except Refused as refusal:
            await pause_source(feed, catalog, str(refusal))
            report.error = str(refusal)
            raise
        finally:
            if wanted is None:
                await catalog.polled(feed.name, report.error)
        if report.error is None and len(feed.refused) < REFUSALS:
            await resume_source(feed, catalog)
    return report


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
        horizon=catalog.clock.now() - feed.options.retention if feed.options.retention is not None else None,
    )


async def _revisit(feed: Feed, catalog: Catalog, report: Polled, pause: float) -> None:
    """List again what is due for it by its first listing, or by the end of the source's retention."""
    for window in await catalog.revisits(feed.name, feed.options.retention):
        await _list_all(feed, catalog, [Piece(part) for part in cut(window, feed.options.window)], report, None, pause)
        if report.error is not None or report.more:
            return
        await catalog.revisited(feed.name, window)


async def _list_all(
    feed: Feed, catalog: Catalog, pieces: Sequence[Piece], report: Polled, budget: timedelta | None, pause: float
) -> None:
    failed: list[Window] = []
    in_a_row = history = 0
    began: datetime | None = None
    newest = max((piece.window.end for piece in pieces), default=None)
    for piece in pieces:
        # Neither what is listed again nor the newest moments may use up the time that older gaps are to get.
        if piece.opens and began is None:
            began = catalog.clock.now()
        if budget is not None and began is not None and history and catalog.clock.now() - began > budget:
            report.more = True
            return
        # A gap whose lookback could not be listed stays open, or what came late there would never be seen.
        cover = not any(lost.start < g.end and g.start < lost.end for g in piece.guards for lost in failed)
        try:
            await _list(feed, catalog, piece.window, report, cover=cover, pause=pause)
        except (TryAgain, NotReady, BadData, Gone, Empty) as error:
            failed.append(piece.window)
            in_a_row += 1
            report.error = f"{piece.window}: {error}"
            log.warning("window.failed", source=feed.name, window=str(piece.window), error=str(error))
            if in_a_row >= TRIES and not await _alive(feed):
                feed.health.failed(catalog.clock.now(), str(error), getattr(error, "retry_after", None))
                report.more = True
                return
        else:
            in_a_row = 0
        # Nor one window that never works keep the others from being tried.
        history += bool(piece.opens) and piece.window.end != newest and in_a_row in {0, TRIES}
    report.more = report.more or bool(failed)


async def _alive(feed: Feed) -> bool:
    try:
        await feed.source.check()
    except Refused:
        raise
    except SourceError:
        return False
    return True


async def _list(feed: Feed, catalog: Catalog, window: Window, report: Polled, *, cover: bool, pause: float) -> None:
    """One window to its natural end, each part of it recorded as it comes."""
    async for part, listing in listed(feed, window, pause=pause):
        await record(feed, catalog, listing, report, window=part, cover=cover)
        report.windows += 1


async def listed(
    feed: Feed, window: Window, *, pause: float = 1.0, depth: int = 0
) -> AsyncIterator[tuple[Window, Listing]]:
    """What the source tells of the window; halved where it can't answer it whole.

    The older half comes first: a window may hold the lookback of a gap before the gap.
    """
    try:
        listing = await _ask(feed, window, pause)
    except Overflow as error:
        halves = halve(window)
        if halves is None or (isinstance(error, TooSlow) and depth >= TRIES):
            raise
        log.info("window.halved", source=feed.name, window=str(window), reason=str(error))
        for half in halves:
            async for part in listed(feed, half, pause=pause, depth=depth + 1):
                yield part
    else:
        yield window, listing


async def _ask(feed: Feed, window: Window, pause: float) -> Listing:
    for attempt in range(1, TRIES + 1):
        try:
            with span("list", source=feed.name, window=str(window)) as tell:
                listing = await feed.source.list(window)
                tell(listed=len(listing.recordings))
                return listing
        except Overflow:
            raise
        except TryAgain as error:
            asked = error.retry_after or timedelta()
            if attempt == TRIES or asked > timedelta(minutes=1):
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
) -> None:
    unique = {recording.recording_id: recording for recording in listing.recordings}
    odd = [(recording, reason) for recording in unique.values() if (reason := recording.problem()) is not None]
    rejected = [Rejected(raw=json.dumps(r.raw, default=str)[:4096], reason=reason) for r, reason in odd]
    kept = [recording for recording in unique.values() if recording.problem() is None] if odd else list(unique.values())
    listing = Listing(kept, [*listing.rejected, *rejected])
    unknown = await catalog.unknown(feed.name, listing.recordings)
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
    more = True
    while more:
        try:
            chapter = await _next_chapter(feed, catalog, cursor)
        except (TryAgain, NotReady, BadData, Gone, Empty) as error:
            report.error = str(error)
            return
        if chapter is None or (chapter.cursor == (cursor or "") and not chapter.listing.recordings):
            return
        await record(feed, catalog, chapter.listing, report, cursor=_bookmark(feed, chapter.cursor, began))
        more, cursor = chapter.more and chapter.cursor != cursor, chapter.cursor
        if budget is not None and catalog.clock.now() - began > budget:
            report.more = report.more or more
            return


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
    listing = await feed.source.look_up([call_id for call_id, _ in found])
    call_id, at = found[-1]
    return Chapter(listing, f"{at.isoformat()} {call_id}", more=len(found) == 200)


async def look_up(feed: Feed, catalog: Catalog, call_ids: Sequence[str]) -> Polled:
    """Record what the source knows of these calls. Raises SourceError."""
    report = Polled()
    if not isinstance(feed.source, LooksUp):
        raise BadData(f"a {feed.kind} source can't be asked for single call ids; use --from and --to")
    now = catalog.clock.now()
    await catalog.source(feed.name, feed.kind, default_start=now - timedelta(hours=24), start=feed.options.start)
    for start in range(0, len(call_ids), 50):
        await record(feed, catalog, await feed.source.look_up(call_ids[start : start + 50]), report)
    return report


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
    if not feed.health.probing:
        # That it lists does not show that it delivers: a download opened the breaker, and a download closes it.
        feed.health.worked()
    await catalog.pause(feed.name, None, None)


# -- transfer ----------------------------------------------------------------------------------------------------------


async def transfer(feed: Feed, claim: Claim, catalog: Catalog, spool: Spool) -> Download | Outcome:
    """Bring one medium home: obtain, check, put. Everything that can go wrong ends in an Outcome."""
    with spool.sink() as sink:
        try:
            with overheard() as heard:
                body, found = await obtain(feed, claim, sink, catalog)
        except SourceError as error:
            answer = heard.fingerprint(sink.length, sink.sha256)
            return replace(await explain(feed, claim, catalog, error), answer=answer)
        except SpoolDown as error:
            return postponed(claim, catalog.clock.now() + timedelta(minutes=1), str(error))
        return await deliver(feed, claim, catalog, body, found)


async def obtain(feed: Feed, claim: Claim, sink: SpoolSink, catalog: Catalog) -> tuple[Body, audio.Audio]:
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
                return body, await _inspect(body, claim.medium)
        await sink.restart()
    if claim.medium.ref.get(UNDETAILED):
        raise NotReady("its details could not be read yet")
    with span("download", source=feed.name) as tell:
        await feed.source.fetch(claim.medium, sink)
        body = await sink.body()
        tell(size=body.length)
    found = await verified(claim.medium, body)
    await delivered(feed, catalog)
    return body, found


async def delivered(feed: Feed, catalog: Catalog) -> None:
    """Audio came: the account may have it."""
    feed.health.worked()
    refused, feed.refused = feed.refused, set()
    if len(refused) >= REFUSALS:
        await catalog.forgive(refused, "refused", catalog.clock.now())
        await resume_source(feed, catalog)


async def verified(medium: Medium, body: Body) -> audio.Audio:
    """What the bytes are. Raises TryAgain where they are not what the source promised, Empty without audio."""
    if medium.size is not None and body.length != medium.size:
        raise TryAgain(f"the source says {medium.size} bytes, {body.length} came")
    if medium.sha256 is not None and body.sha256 != medium.sha256.lower():
        raise TryAgain(f"the source says SHA-256 {medium.sha256[:12]}…, the bytes have {body.sha256[:12]}…")
    return await _inspect(body, medium)


async def _inspect(body: Body, medium: Medium) -> audio.Audio:
    how: dict[str, Any] = {"opaque": medium.opaque, "told_type": medium.content_type}
    if body.path is not None or body.length > 4 << 20:
        return await asyncio.to_thread(audio.inspect, body, **how)
    return audio.inspect(body, **how)


async def deliver(feed: Feed, claim: Claim, catalog: Catalog, body: Body, found: audio.Audio) -> Download | Outcome:
    """Put the bytes into each store that lacks them; at least one taking them is a Download."""
    odd = audio.plausible(found, claim.medium.duration)
    if odd:
        log.info("recording.odd_duration", source=feed.name, recording_id=claim.medium.recording_id, detail=odd)
    copies = {c.store: c for c in claim.copies if c.sha256 == body.sha256}
    missing = [outlet for name, outlet in feed.outlets.items() if name in claim.stores and name not in copies]
    if len(missing) == 1:
        made = [await _put(missing[0], claim, catalog, body, found.ext)]
    else:
        made = await asyncio.gather(*(_put(outlet, claim, catalog, body, found.ext) for outlet in missing))
    problems = [result for result in made if isinstance(result, _Unput)]
    copies |= {result.store: result for result in made if isinstance(result, Copy)}
    stuck = catalog.clock.now() + STUCK
    lost = set(claim.stores) - set(feed.outlets) - set(copies)
    problems += [_Unput(f"store {name} is not in the config", stuck) for name in sorted(lost)]
    error = "; ".join(problem.why for problem in problems)
    due_at = max((problem.due_at for problem in problems), default=None)
    if not copies:
        return postponed(claim, due_at or stuck, error)
    return Download(
        claim=claim,
        sha256=body.sha256,
        size=body.length,
        content_type=found.content_type,
        duration=found.duration,
        copies=tuple(copies.values()),
        error=error or None,
        due_at=due_at,
    )


@dataclass(frozen=True, slots=True)
class _Unput:
    """Why a store did not take the bytes, and when to try again."""

    why: str
    due_at: datetime


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


async def _put(outlet: Outlet, claim: Claim, catalog: Catalog, body: Body, ext: str) -> Copy | _Unput:
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
    except StoreConflict as error:
        outlet.failed_puts += 1
        log.error("store.conflict", store=outlet.name, key=key, error=str(error))
        return _Unput(f"store {outlet.name}: {error}", catalog.clock.now() + STUCK)
    except StoreError as error:
        outlet.failed_puts += 1
        now = catalog.clock.now()
        store_failed(outlet, now, error)
        return _Unput(f"store {outlet.name}: {error}", outlet.health.until or now + timedelta(minutes=1))
    outlet.puts.add(time.monotonic() - began)
    outlet.bytes_put += body.length
    return Copy(store=outlet.name, key=key, size=body.length, sha256=body.sha256, archived_at=catalog.clock.now())


def store_failed(outlet: Outlet, now: datetime, error: StoreError) -> None:
    if not outlet.health.open(now):
        level = log.error if isinstance(error, StoreRefused) else log.warning
        level("store.down", store=outlet.name, error=str(error))
        outlet.health.failed(now, str(error))


async def explain(feed: Feed, claim: Claim, catalog: Catalog, error: SourceError) -> Outcome:
    """What follows from a failure: the one place that decides (the table in docs/reliability.md)."""
    now = catalog.clock.now()
    age = max(now - (claim.ended_at or claim.started_at), timedelta())
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

    if isinstance(error, Empty) and age > FRESH:
        return outcome(State.EMPTY, "empty")
    if isinstance(error, Gone):
        return outcome(State.GONE, "gone")
    if isinstance(error, NotReady | Empty):
        missing = await catalog.missing_since(feed.name, claim.medium.recording_id)
        if missing is not None and now - missing > GONE_AFTER:
            return outcome(State.GONE, "gone")
        return outcome(State.PENDING, "not ready", now + next_look(age, jitter))
    if isinstance(error, Refused):
        if await _welcome(feed, catalog):
            return await _refused(feed, claim, catalog, error, outcome)
        return outcome(State.PENDING, "account refused", feed.paused_until or now + timedelta(minutes=1))
    asked = error.retry_after if isinstance(error, TryAgain) else None
    feed.health.failed(now, str(error), asked)
    failing = now - (claim.failing_since or now)
    if failing >= feed.options.retry.give_up_after:
        return outcome(State.FAILED, "gave up", counts=True)
    wait = next_try(claim.attempts + 1, feed.options.retry, jitter, asked)
    return outcome(State.PENDING, "failed", now + wait, counts=True)


async def _refused(
    feed: Feed, claim: Claim, catalog: Catalog, error: Refused, outcome: Callable[..., Outcome]
) -> Outcome:
    """The account is welcome, this medium is refused: it alone or, where none is delivered in between, all of them?"""
    feed.refused.add(claim.id)
    if len(feed.refused) < REFUSALS:
        if await catalog.delivered(feed.name):
            return outcome(State.FAILED, "refused", counts=True)
        # An account that never got any audio may not be meant to.
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
            feed.health.failed(now, str(error))
            return False
        feed.welcome_at = now
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
        lost = await _describe(feeds, described, now, layout.ulid(now))
        downloads, without = _without(downloads, lost)
        outcomes += without
        if lost:
            revisions = {key: revision for key, revision in revisions.items() if key[0] not in {s for s, _ in lost}}
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


async def _describe(
    feeds: dict[str, Feed],
    described: dict[tuple[str, str], tuple[Document, list[str]]],
    now: datetime,
    stamp: str,
) -> dict[tuple[str, str], datetime]:
    """One manifest per source and store; the (source, store) pairs that failed, and when to try them again."""
    lines: dict[tuple[str, str], list[Document]] = defaultdict(list)
    lost: dict[tuple[str, str], datetime] = {}
    for (source, _), (document, stores) in described.items():
        for store in stores:
            if source not in feeds:
                # It left the config while its last media were on their way.
                lost[source, store] = now
            elif store in feeds[source].outlets:
                lines[source, store].append(document)

    async def one(source: str, store: str, documents: list[Document]) -> None:
        outlet = feeds[source].outlets[store]
        try:
            await manifests.write(outlet.store, outlet.prefix, source, documents, now, stamp)
        except StoreError as error:
            store_failed(outlet, now, error)
            lost[source, store] = outlet.health.until or now + timedelta(seconds=10)
            return
        # Not before: a store that takes audio and no manifests is of no use. Nor for what was put before it failed.
        if outlet.health.trying or not outlet.health.probing:
            outlet.health.worked()

    await asyncio.gather(*(one(source, store, documents) for (source, store), documents in lines.items()))
    return lost


def _without(
    downloads: Sequence[Download], lost: Mapping[tuple[str, str], datetime]
) -> tuple[list[Download], list[Outcome]]:
    """The downloads less the copies that no manifest describes; those with none left as outcomes."""
    kept, gone = [], []
    for d in downloads:
        copies = tuple(c for c in d.copies if (d.claim.source, c.store) not in lost)
        if len(copies) == len(d.copies):
            kept.append(d)
            continue
        due_at = max(lost[d.claim.source, c.store] for c in d.copies if (d.claim.source, c.store) in lost)
        error = "no manifest could be written"
        if copies:
            kept.append(replace(d, copies=copies, error=error, due_at=due_at))
        else:
            gone.append(postponed(d.claim, due_at, error))
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
        while keys := await catalog.undescribed(list(feeds), limit, new_before=catalog.clock.now() - new_after):
            now = catalog.clock.now()
            stamp = layout.ulid(now)
            await catalog.revise(keys)
            known = await catalog.documents(keys)
            described = {key: (document, stores) for key, (document, _, stores) in known.items()}
            lost = await _describe(feeds, described, now, stamp)
            told = {key: rev for key, (_, rev, stores) in known.items() if not any((key[0], s) in lost for s in stores)}
            ended = await catalog.described(told)
            done += ended
            # None: another process describes the same ones, and each would undo the other's for ever.
            if len(keys) < limit or lost or not ended:
                break
    return done


async def tell_verified(feeds: dict[str, Feed], catalog: Catalog, *, limit: int = 5000) -> int:
    """Write into each store which copies were verified when, so that a rebuild knows; how many copies."""
    told = 0
    while untold := await catalog.untold_verified(list(feeds), limit):
        now = catalog.clock.now()
        by_source: dict[str, list[tuple[str, str, str, datetime]]] = defaultdict(list)
        for copy in untold:
            by_source[copy[0]].append(copy)
        for source, copies in by_source.items():
            for outlet in feeds[source].outlets.values():
                try:
                    await manifests.write_verified(
                        outlet.store, outlet.prefix, source, [copy[1:] for copy in copies], now
                    )
                except StoreError as error:
                    store_failed(outlet, now, error)
                    return told
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
            store_failed(outlets[name], now, error)
        else:
            await catalog.told_ledger(ledger)
            told += 1
    return told
