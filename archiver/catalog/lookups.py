"""Call ids: those that are looked up in another source, and those whose look-up failed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ..model import holdable
from .database import Database

LOOKUPS = """
SELECT call_id, attempts FROM lookups WHERE source = $1 AND due_at <= $2 ORDER BY due_at, call_id LIMIT $3"""

FAILED_LOOKUPS = """SELECT call_id FROM lookups WHERE source = $1 AND call_id = ANY($2)"""

LOOKUP_TROUBLE = """
SELECT call_id, error, count(*) OVER () AS count FROM lookups
WHERE source = $1 ORDER BY attempts DESC, call_id LIMIT 1"""

LOOK_UP_LATER = """
INSERT INTO lookups AS l (source, call_id, due_at, error)
SELECT $1, t.call_id, $4, t.error FROM unnest($2::text[], $3::text[]) AS t (call_id, error)
ON CONFLICT (source, call_id) DO UPDATE SET due_at = $4, attempts = l.attempts + 1, error = excluded.error"""

LOOKED_UP = """DELETE FROM lookups WHERE source = $1 AND call_id = $2"""

#: A call id may be learnt, or the call go on, long after its recording was first listed: that is a change.
CALL_IDS = """
SELECT call_id, max(at) AS at FROM (
    SELECT call_id, first_listed_at AS at FROM recordings WHERE source = $1 AND first_listed_at >= $2
    UNION ALL
    SELECT r.call_id, h.last_at FROM history h JOIN recordings r USING (source, recording_id)
    WHERE h.source = $1 AND h.media_id = '' AND h.what = 'changed' AND h.last_at >= $2
) AS known
WHERE call_id IS NOT NULL AND (at, call_id) > ($2, $3) GROUP BY call_id ORDER BY 2, 1 LIMIT $4"""

TELLS_NO_CALL_IDS = """
SELECT EXISTS (SELECT FROM recordings WHERE source = $1)
    AND NOT EXISTS (SELECT FROM recordings WHERE source = $1 AND call_id IS NOT NULL)"""


class Lookups(Database):
    """Look-ups that are due again."""

    async def lookups(self, source: str, limit: int) -> list[tuple[str, int]]:
        """Call ids that could not be looked up and are due again, and how often it was tried."""
        async with self._connection() as c:
            return [(row[0], row[1]) for row in await c.fetch(LOOKUPS, source, self.clock.now(), limit)]

    async def failed_lookups(self, source: str, call_ids: Sequence[str]) -> set[str]:
        """Those of these call ids that could not be looked up, due again or not."""
        async with self._connection() as c:
            rows = await c.fetch(FAILED_LOOKUPS, source, [holdable(call_id) for call_id in call_ids])
        return {row[0] for row in rows}

    async def lookup_trouble(self, source: str) -> tuple[int, str, str]:
        """How many call ids can't be looked up; one of them, and why."""
        async with self._connection() as c:
            row = await c.fetchrow(LOOKUP_TROUBLE, source)
        return (row["count"], row["call_id"], row["error"]) if row else (0, "", "")

    async def look_up_later(self, source: str, failed: Sequence[tuple[str, str]], due_at: datetime) -> None:
        """These call ids could not be looked up, for that reason: they are due again then."""
        reasons = {holdable(call_id): holdable(why)[:500] for call_id, why in failed}
        async with self._connection() as c:
            await c.execute(LOOK_UP_LATER, source, list(reasons), list(reasons.values()), due_at)

    async def looked_up(self, source: str, call_id: str) -> None:
        """This call id was looked up: it is not due again."""
        async with self._connection() as c:
            await c.execute(LOOKED_UP, source, holdable(call_id))

    async def call_ids(self, source: str, after: datetime, beyond: str, limit: int) -> list[tuple[str, datetime]]:
        """Call ids of another source in the order in which they became known or their calls last changed.

        One listing makes many known in the same moment: ``beyond`` is the last id of the moment ``after``.
        """
        async with self._connection() as c:
            return [(row[0], row[1]) for row in await c.fetch(CALL_IDS, source, after, beyond, limit)]

    async def tells_no_call_ids(self, source: str) -> bool:
        """Has it recordings, and not one of them a call id?"""
        async with self._connection() as c:
            return bool(await c.fetchval(TELLS_NO_CALL_IDS, source))
