"""A clock that was ahead and was set back: what was reckoned by it is cut."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import structlog

from .database import Database

log = structlog.get_logger()

#: A clock that was ahead by more was wrong; by less it is corrected all the time.
AHEAD_BY = timedelta(seconds=30)
#: No lease (of media, of a share) is longer, and no pause of a source.
LONGEST_LEASE, LONGEST_PAUSE = timedelta(minutes=2), timedelta(minutes=15)
CLOCK_WORDS = "it was ahead: waits that it made too long are cut, and what it covered too early is listed again"

#: How far the clock was ahead once of what it says now ($1): nothing can have been polled, or be covered, later; and
#: over how long it was so.
AHEAD = """
SELECT max(at) - $1 AS back,
    (SELECT coalesce(max(first_at) - min(first_at), '0') FROM listings WHERE first_at > $1) AS lasted
FROM sources, unnest(ARRAY[polled_at, upper(covered)]) AS at WHERE at > $1"""

#: What was listed of a time that is still to come is listed when it has come. A start that nobody configured moves too.
SET_BACK_SOURCES = """
UPDATE sources SET covered = covered * tstzmultirange(tstzrange(NULL, $1)), polled_at = least(polled_at, $1),
    paused_until = least(paused_until, $3), next_request_at = least(next_request_at, $1),
    next_listing_at = least(next_listing_at, $1),
    start_at = CASE WHEN start_at > $1 - interval '1 day' THEN start_at - $2::interval ELSE start_at END"""

SET_BACK_LISTINGS = """
WITH of_later AS (DELETE FROM listings WHERE upper(span) > $1)
UPDATE listings SET first_at = least(first_at, $1), last_at = least(last_at, $1)
WHERE greatest(first_at, last_at) > $1 AND upper(span) <= $1"""

SET_BACK_CLAIMS = """UPDATE claims SET until = $1 WHERE until > $1"""
SET_BACK_SHARES = """UPDATE shares SET until = $1 WHERE until > $1"""

#: What was to begin later begins so much sooner ($2).
SET_BACK_MEDIA = """
UPDATE media SET due_at = greatest($1, due_at - $2::interval), failing_since = least(failing_since, $1)
WHERE state = 'pending' AND due_at > $1"""
SET_BACK_OUTBOX = """UPDATE outbox SET due_at = greatest($1, due_at - $2::interval) WHERE due_at > $1"""
SET_BACK_LOOKUPS = """UPDATE lookups SET due_at = greatest($1, due_at - $2::interval) WHERE due_at > $1"""


class ClockSetBack(Database):
    """What follows when the clock was ahead."""

    async def set_right(self) -> timedelta | None:
        """Where the clock was ahead and has been set back: cut what was reckoned by it. How far that was; None: not so.

        Any process may do it, any number of times: what is cut is no longer ahead.
        """
        now = self.clock.now()
        async with self._connection() as c:
            if _ahead(await c.fetchrow(AHEAD, now)) is None:
                return None
        async with self._transaction() as c:
            await c.execute("SELECT pg_advisory_xact_lock(hashtext('archiver.clock'))")
            if (back := _ahead(await c.fetchrow(AHEAD, now))) is None:
                return None
            await c.execute(SET_BACK_SOURCES, now, back, now + LONGEST_PAUSE, timeout=600)
            await c.execute(SET_BACK_LISTINGS, now, timeout=600)
            for statement in (SET_BACK_CLAIMS, SET_BACK_SHARES):
                await c.execute(statement, now + LONGEST_LEASE, timeout=600)
            for statement in (SET_BACK_MEDIA, SET_BACK_OUTBOX, SET_BACK_LOOKUPS):
                await c.execute(statement, now, back, timeout=600)
        log.warning("clock.set_back", seconds=round(back.total_seconds()), error=CLOCK_WORDS)
        return back


def _ahead(row: Any) -> timedelta | None:
    """How far the clock was ahead, where it was."""
    back: timedelta | None = row["back"]
    if back is None or back < AHEAD_BY:
        return None
    if back > timedelta(days=1) and row["lasted"] > back / 2:
        # All those days went by one after the other: it is the clock of now that is wrong.
        log.error(
            "clock.behind", seconds=round(back.total_seconds()), error="set the clock of the database's host right"
        )
        return None
    return back
