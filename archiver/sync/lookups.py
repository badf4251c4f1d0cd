"""Sources that are listed by a cursor or by call ids. An id that fails is asked for again later."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog

from ..catalog.catalog import Catalog
from ..errors import (
    BadData,
    Empty,
    Gone,
    NotReady,
    TryAgain,
)
from ..model import (
    Chapter,
    Listing,
)
from ..ports import Follows, LooksUp
from .failures import works
from .feeds import Feed
from .record import Polled, awaits_answer, ledger_of, record
from .windows import EPOCH, next_try

log = structlog.get_logger()

#: Call ids that could not be looked up are asked for again, so many to a poll.
LOOKUPS = 50


#: What may be wrong with one window while its recorder works.
OF_A_WINDOW = (TryAgain, NotReady, BadData, Gone, Empty)


async def follow(feed: Feed, catalog: Catalog, cursor: str | None, report: Polled, budget: timedelta | None) -> None:
    """List on from the cursor to the end, or until ``budget`` is used up; failures stand in ``report``."""
    began = catalog.clock.now()
    try:
        await look_up_again(feed, catalog, report)
        more = True
        while more:
            chapter = await _next_chapter(feed, catalog, cursor)
            if chapter is None or (
                chapter.cursor == (cursor or "") and not chapter.listing.recordings and not chapter.listing.failed
            ):
                return
            # First: whoever is ended between the two asks once more, and forgets none.
            await look_up_later(feed, catalog, chapter.listing.failed)
            await record(feed, catalog, chapter.listing, report, cursor=_bookmark(feed, chapter.cursor, began))
            more, cursor = chapter.more and chapter.cursor != cursor, chapter.cursor
            if budget is not None and catalog.clock.now() - began > budget:
                report.more = report.more or more
                return
    except OF_A_WINDOW as error:
        report.error, report.down = str(error), not await works(feed, catalog, error)


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
    if await awaits_answer(feed, catalog, report):
        return report
    await ledger_of(feed, catalog)
    for start in range(0, len(call_ids), 50):
        listing = await _looked_up(feed, catalog, feed.source, call_ids[start : start + 50])
        await look_up_later(feed, catalog, listing.failed)
        await record(feed, catalog, listing, report)
    await name_lookups(feed, catalog, report)
    return report


async def name_lookups(feed: Feed, catalog: Catalog, report: Polled) -> None:
    """Each poll reports call ids that can't be looked up, whether it asked for them or not."""
    count, call_id, why = await catalog.lookup_trouble(feed.name)
    if count and report.error is None:
        others = f" (and {count - 1} more)" if count > 1 else ""
        report.error = f"call {call_id} can't be looked up: {why}{others}"


async def _looked_up(feed: Feed, catalog: Catalog, source: LooksUp, call_ids: Sequence[str]) -> Listing:
    """What the source knows of these calls; one by one where it can't tell of all. Raises where it does not work."""
    try:
        return await source.look_up(call_ids)
    except OF_A_WINDOW as error:
        if not await works(feed, catalog, error):
            raise
        if len(call_ids) == 1:
            return Listing(failed=[(call_ids[0], str(error))])
    listings = [await _looked_up(feed, catalog, source, [call_id]) for call_id in call_ids]
    return Listing(
        [r for listing in listings for r in listing.recordings],
        [r for listing in listings for r in listing.rejected],
        [f for listing in listings for f in listing.failed],
    )


async def look_up_again(feed: Feed, catalog: Catalog, report: Polled) -> None:
    """The call ids that could not be looked up, and are due again: each alone, and no other waits for them."""
    if not isinstance(feed.source, LooksUp):
        return
    for call_id, attempts in await catalog.lookups(feed.name, LOOKUPS):
        listing = await _looked_up(feed, catalog, feed.source, [call_id])
        if listing.failed:
            await look_up_later(feed, catalog, listing.failed, attempts)
        else:
            await record(feed, catalog, listing, report)
            await catalog.looked_up(feed.name, call_id)


async def look_up_later(feed: Feed, catalog: Catalog, failed: Sequence[tuple[str, str]], attempts: int = 0) -> None:
    """Call ids and why they could not be looked up: kept, and asked again on their own schedule."""
    if failed:
        due_at = catalog.clock.now() + next_try(attempts + 1, feed.options.retry, random.random())  # noqa: S311
        log.warning("lookups.failed", source=feed.name, count=len(failed), error=failed[-1][1])
        await catalog.look_up_later(feed.name, failed, due_at)
