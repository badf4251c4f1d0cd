"""A poll: plan which windows to list, list each (in halves where that fails), save the rows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

import structlog

from ..catalog.catalog import Catalog
from ..common.traces import span
from ..errors import (
    Overflow,
    Refused,
    TooSlow,
    TryAgain,
)
from ..model import (
    Listing,
    Window,
)
from .failures import RecorderLost, pause_source, resume_source, works
from .feeds import REFUSALS, Feed, Stuck
from .lookups import OF_A_WINDOW, follow, look_up_later, name_lookups
from .record import Polled, awaits_answer, ledger_of, record
from .windows import Piece, cut, halve, next_try, plan, subtract

log = structlog.get_logger()

#: Parts of a window that fail in a row before the rest of it is left for later: a second of an hour takes twelve.
PARTS = 16
#: Listings of a window that are tried in place before the poll goes on without it.
TRIES = 3


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
    if await awaits_answer(feed, catalog, report):
        return report
    await catalog.expire_by(feed.name, feed.options.retention)
    ledger = await ledger_of(feed, catalog)
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
                await follow(feed, catalog, ledger.cursor, report, budget)
                await name_lookups(feed, catalog, report)
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
                await look_up_later(feed, catalog, listing.failed)
                if not await _recorded(feed, catalog, listing, report, piece):
                    await _gets_stuck(feed, catalog, piece, f"not one of its {len(listing.rejected)} rows can be read")
                report.windows += 1
        except OF_A_WINDOW as error:
            log.warning("window.failed", source=feed.name, window=str(part), error=str(error))
            if not await works(feed, catalog, error):
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
    """Save a window's rows; False, and the window is not covered, where not one row of it could be read."""
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
