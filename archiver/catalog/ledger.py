"""What is known of a source as a whole: since when, which windows are listed, where its feed stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ..model import Window, holdable
from .database import Database
from .from_rows import windows_from

#: A window is listed again so long after its first listing.
REVISIT_AFTER = (timedelta(hours=1), timedelta(days=1), timedelta(days=7))

#: Whom it is bound to stays until somebody says otherwise (BIND).
UPSERT_SOURCE = """
INSERT INTO sources AS s (name, kind, start_at, origin, account) VALUES ($1, $2, $3, $5, $6)
ON CONFLICT (name) DO UPDATE SET start_at = coalesce($4, s.start_at), origin = coalesce(s.origin, excluded.origin),
    kind = CASE WHEN s.origin IS NULL AND excluded.origin IS NOT NULL THEN excluded.kind ELSE s.kind END,
    account = CASE WHEN s.origin IS NULL THEN excluded.account ELSE s.account END
RETURNING start_at, covered, cursor, paused_until, paused_why"""

SOURCES = """
SELECT name, kind, start_at, covered, cursor, polled_at, poll_error, paused_until, paused_why, origin, account
FROM sources WHERE $1::text[] IS NULL OR name = ANY($1) ORDER BY name"""

#: By the facts of the ledger alone: nobody keeps a calendar. $4: how long before the retention ends.
REVISITS = """
SELECT lower(span) AS start, upper(span) AS "end" FROM listings l
WHERE source = $1 AND last_at < (
    SELECT max(due) FROM (
        SELECT l.first_at + t.after AS due FROM unnest($3::interval[]) AS t (after)
        UNION ALL
        SELECT lower(l.span) + $4::interval - $5::interval WHERE upper(l.span) + $4::interval > $2) AS dues
    WHERE due <= $2)
ORDER BY lower(span) LIMIT $6"""

REVISITED = """UPDATE listings SET last_at = $4 WHERE source = $1 AND span = tstzrange($2, $3)"""

UNCOVER = """UPDATE sources SET covered = covered - tstzmultirange(tstzrange($2, $3)) WHERE name = $1"""

POLLED = """UPDATE sources SET polled_at = $2, poll_error = $3 WHERE name = $1"""

PAUSE = """UPDATE sources SET paused_until = $2, paused_why = $3 WHERE name = $1"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What the catalog knows of one source."""

    start_at: datetime
    covered: tuple[Window, ...]
    cursor: str | None
    paused_until: datetime | None = None
    paused_why: str | None = None


class Ledgers(Database):
    """A source's ledger, and what is to be listed again."""

    async def source(
        self,
        name: str,
        kind: str,
        *,
        default_start: datetime,
        start: datetime | None,
        origin: str | None = None,
        account: str | None = None,
    ) -> Ledger:
        """The source's ledger, made where there is none; a configured ``start`` replaces the stored one.

        Where it is bound to nobody yet it is from now on to that kind, ``origin`` and ``account``.
        """
        async with self._connection() as c:
            row = await c.fetchrow(UPSERT_SOURCE, name, kind, start or default_start, start, origin, account)
        return ledger_from(row)

    async def sources(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Rows of SOURCES, by name; ``covered`` as windows. None: all of them."""
        async with self._connection() as c:
            return [dict(row) | {"covered": windows_from(row["covered"])} for row in await c.fetch(SOURCES, names)]

    async def revisits(self, source: str, retention: timedelta | None, limit: int = 24) -> list[Window]:
        """Windows to list again: so long after their first listing, and before the source's retention ends."""
        async with self._connection() as c:
            margin = min(timedelta(days=2), retention / 4) if retention is not None else None
            rows = await c.fetch(REVISITS, source, self.clock.now(), REVISIT_AFTER, retention, margin, limit)
        return [Window(row["start"], row["end"]) for row in rows]

    async def revisited(self, source: str, window: Window) -> None:
        """All of that window was listed again."""
        async with self._connection() as c:
            await c.execute(REVISITED, source, window.start, window.end, self.clock.now())

    async def uncover(self, source: str, window: Window) -> None:
        """That window can't be listed (any more): it is a gap."""
        async with self._connection() as c:
            await c.execute(UNCOVER, source, window.start, window.end)

    async def polled(self, source: str, error: str | None) -> None:
        """The source was polled just now; why that failed, if it did."""
        async with self._connection() as c:
            await c.execute(POLLED, source, self.clock.now(), holdable(error) if error else None)

    async def pause(self, source: str, until: datetime | None, why: str | None) -> None:
        """The source refuses our account: leave it alone until then (None: no longer)."""
        async with self._connection() as c:
            await c.execute(PAUSE, source, until, holdable(why) if why else None)


def ledger_from(row: Any) -> Ledger:
    """A ledger, of a row of UPSERT_SOURCE."""
    return Ledger(
        start_at=row["start_at"],
        covered=windows_from(row["covered"]),
        cursor=row["cursor"],
        paused_until=row["paused_until"],
        paused_why=row["paused_why"],
    )
