"""What happened to a recording: its history, the listings that should have seen it, rows that can't be read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from ..model import holdable, utc_text
from . import happened as happenings
from .database import Database
from .from_rows import Document

HISTORY_OF = """
SELECT media_id, what, detail, answer, first_at, last_at, times FROM history
WHERE source = $1 AND recording_id = $2 ORDER BY first_at, last_at"""

LISTINGS_OF = """
SELECT lower(span) AS start, upper(span) AS "end", first_at, last_at, times, listed, rejected FROM listings
WHERE source = $1 AND span @> $2::timestamptz ORDER BY first_at"""

REJECTED = """
SELECT raw, reason, span, first_at, last_at, times FROM rejected WHERE source = $1 ORDER BY last_at DESC LIMIT $2"""

MISSING_SINCE = """SELECT missing_since FROM recordings WHERE source = $1 AND recording_id = $2"""

HISTORY = """
INSERT INTO history AS h (source, recording_id, media_id, what, detail, answer, first_at, last_at, times)
SELECT t.source, t.recording_id, t.media_id, t.what, t.detail, max(t.answer), $7, $7, count(*)
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
    AS t (source, recording_id, media_id, what, detail, answer)
GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
ON CONFLICT (source, recording_id, media_id, what, detail) DO UPDATE SET
    last_at = excluded.last_at, times = h.times + excluded.times, answer = coalesce(excluded.answer, h.answer)"""


class History(Database):
    """What happened, oldest first."""

    async def history(self, source: str, recording_id: str) -> list[Document]:
        """What happened to a recording and its media, oldest first."""
        async with self._connection() as c:
            return [
                {
                    "media_id": row["media_id"] or None,
                    "what": row["what"],
                    "detail": row["detail"] or None,
                    "answer": row["answer"],
                    "first_at": utc_text(row["first_at"]),
                    "last_at": utc_text(row["last_at"]),
                    "times": row["times"],
                }
                for row in await c.fetch(HISTORY_OF, holdable(source), holdable(recording_id))
            ]

    async def listings(self, source: str, recording_id: str) -> tuple[datetime, datetime | None, list[Document]] | None:
        """When a recording was first listed and has been missing since, and the windows that should have seen it."""
        async with self._connection() as c:
            row = await c.fetchrow(
                "SELECT key_at, first_listed_at, missing_since FROM recordings WHERE source = $1 AND recording_id = $2",
                holdable(source),
                holdable(recording_id),
            )
            if row is None:
                return None
            windows = [
                {k: utc_text(v) if isinstance(v, datetime) else v for k, v in window.items()}
                for window in await c.fetch(LISTINGS_OF, source, row["key_at"])
            ]
        return row["first_listed_at"], row["missing_since"], windows

    async def happened(self, start: datetime, end: datetime) -> tuple[dict[str, Document], dict[str, Document]]:
        """By source, and by store, what came about in [start, end): counts and bytes."""
        async with self._connection() as c, c.transaction(isolation="repeatable_read", readonly=True):
            return await happenings.happened(c, start, end)

    async def around(
        self, source: str, at: datetime, near: timedelta, longest: timedelta, most: int
    ) -> tuple[list[Document], list[str], list[Document]]:
        """The windows that held a moment, the ids of calls near it, and rows of its listings that can't be read."""
        async with self._connection() as c:
            return await happenings.around(c, holdable(source), at, near, longest, most)

    async def rejected(self, source: str, limit: int = 20) -> list[Document]:
        """Rows of a source's listings that could not be read, the last seen first."""
        async with self._connection() as c:
            return [
                {
                    "raw": r["raw"],
                    "reason": r["reason"],
                    "first_at": utc_text(r["first_at"]),
                    "last_at": utc_text(r["last_at"]),
                    "times": r["times"],
                }
                for r in await c.fetch(REJECTED, source, limit)
            ]

    async def missing_since(self, source: str, recording_id: str) -> datetime | None:
        """Since when a recording is no longer listed; None where it is, or is not known."""
        async with self._connection() as c:
            return cast("datetime | None", await c.fetchval(MISSING_SINCE, source, recording_id))


async def remember(
    c: Any,
    now: datetime,
    events: Sequence[tuple[str, str, str, str, str]],
    answers: Sequence[str | None] | None = None,
) -> None:
    """Add events: (source, recording_id, media_id, what, detail), and what was answered to each."""
    if events:
        columns = [[holdable(event[i])[: 500 if i > 2 else None] for event in events] for i in range(5)]
        await c.execute(HISTORY, *columns, answers or [None] * len(events), now)
