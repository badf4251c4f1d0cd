"""Counts for status, metrics and alerts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ..model import Window
from .database import Database
from .from_rows import Document, flagged_from, windows_from
from .ledger import SOURCES
from .sql_parts import PENDING, UNCLAIMED, UNFINISHED

#: What was archived within this time is recent.
LATELY = timedelta(days=1)

#: Media that are not archived are counted by these; the words of failures.explain.
REASON_CLASSES = (
    "failed",
    "mismatch",
    "not ready",
    "unfinished",
    "unchecked",
    "cut",
    "short",
    "account refused",
    "refused",
    "gave up",
    "gone",
    "empty",
    "asked for again",
)

EXPIRING = f"""
SELECT date_bin('1 hour', expires_at, '2000-01-01Z') AS hour, count(*) AS count FROM media
WHERE source = $1 AND ({PENDING} OR state = 'failed') AND expires_at IS NOT NULL GROUP BY 1 ORDER BY 1"""

ARCHIVED_SINCE = """
SELECT count(DISTINCT (recording_id, media_id)) AS count, min(archived_at) AS first FROM copies
WHERE store = ANY($1) AND source = $2 AND coalesce(read_at, archived_at) > $3 AND archived_at > $3"""

IN_WINDOWS = """
SELECT w.n, (SELECT count(*) FROM recordings r WHERE r.source = $1 AND r.key_at >= w.start AND r.key_at < w.end)
FROM unnest($2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS w (start, "end", n) ORDER BY w.n"""

SHRUNK = """
SELECT count(*) AS known, count(missing_since) AS missing, min(missing_since) AS since FROM recordings
WHERE source = $1 AND key_at >= $2 AND by_window"""

STILL = f"""
SELECT count(*) AS count, min(due_at) AS since FROM media
WHERE source = $2 AND {PENDING} AND due_at <= $3 AND NOT urgent AND {UNCLAIMED}"""

COUNTS_WITHIN = f"""
SELECT m.state, count(*) AS count, min(m.due_at) AS due_at FROM media m JOIN recordings r USING (source, recording_id)
WHERE {UNFINISHED} AND m.source = $1 AND r.key_at >= $2 AND r.key_at < $3 GROUP BY m.state"""

COUNTS = f"""
SELECT source, state, count(*) AS count, min(due_at) AS due_at FROM media
WHERE {UNFINISHED} AND ($1::text[] IS NULL OR source = ANY($1)) GROUP BY source, state"""

REASONS = f"""
SELECT source, state, error, count(*) AS count FROM media
WHERE ({PENDING} OR state = 'failed') AND error IS NOT NULL AND ($1::text[] IS NULL OR source = ANY($1))
GROUP BY source, state, error ORDER BY count DESC LIMIT 50"""

#: How many are kept as evidence, and how many of these since then.
FLAGGED = """
SELECT source, flag, count(*) AS count, count(*) FILTER (WHERE archived_at > $1) AS lately
FROM media CROSS JOIN LATERAL unnest(flags) AS flag
WHERE flags <> '{}' AND ($2::text[] IS NULL OR source = ANY($2)) GROUP BY source, flag"""

#: Of what some stores did not take yet: which, and why; as sync.deliver writes it, several reasons in one.
_UNPUT = """
LATERAL (SELECT split_part(part, ': ', 1) AS store, substr(part, strpos(part, ': ') + 2) AS error
         FROM regexp_split_to_table(substr(m.error, 7), '; store ') AS part WHERE strpos(part, ': ') > 0) u"""

WAITING_FOR = f"""
SELECT u.store, count(*) AS count, mode() WITHIN GROUP (ORDER BY u.error) AS error FROM media m CROSS JOIN {_UNPUT}
WHERE {PENDING} AND m.error LIKE 'store %' AND u.store = ANY($1) GROUP BY u.store"""

WAITING_FOR_IT = f"""
SELECT m.source, m.recording_id, m.media_id, u.error FROM media m CROSS JOIN {_UNPUT}
WHERE {PENDING} AND m.error LIKE 'store %' AND u.store = $1 ORDER BY m.source, m.recording_id, m.media_id LIMIT $2"""

#: The reasons are classes, not messages: those of failures.explain; all that has no class of its own is "other".
QUEUE = f"""
SELECT source, state, CASE WHEN error IS NULL THEN 'new' WHEN class = ANY($1) THEN class
        WHEN error LIKE 'store %' OR error LIKE 'no manifest%' THEN 'store failed' ELSE 'other' END AS reason,
    count(*) AS count, min(failing_since) AS failing_since
FROM (SELECT source, state, error, failing_since, split_part(error, ':', 1) AS class FROM media
      WHERE {UNFINISHED}) m
GROUP BY 1, 2, 3"""

#: Of what has not failed by itself. Whatever waits longest is due first, and so a look at the first few tells.
_FIRST = """
    SELECT source, recording_id FROM media m
    WHERE m.source = s.source AND state = 'pending' AND {of} AND failing_since IS NULL
        AND coalesce(error, '') NOT LIKE 'not ready%'
    ORDER BY due_at LIMIT 500"""
WAITING = f"""
SELECT s.source, min(r.first_listed_at) AS since
FROM unnest($1::text[]) AS s (source), LATERAL (
    ({_FIRST.format(of="NOT troubled")}) UNION ALL ({_FIRST.format(of="troubled")})) m
JOIN recordings r ON (r.source, r.recording_id) = (m.source, m.recording_id)
GROUP BY s.source"""

TOTALS = """SELECT source, store, count, bytes FROM totals"""
REJECTED_COUNTS = """SELECT source, count(*) AS count, max(last_at) AS last_at FROM rejected GROUP BY source"""

BAD = """SELECT source, store, count(*) AS count FROM copies WHERE bad IS NOT NULL GROUP BY source, store"""

UNVERIFIED = """
SELECT s.store, (SELECT coalesce(read_at, archived_at) FROM copies c WHERE c.store = s.store
                 ORDER BY coalesce(read_at, archived_at), key LIMIT 1) AS since
FROM unnest($1::text[]) AS s (store)"""

LOOKUPS_FAILING = """
SELECT source, count(*) AS count, (array_agg(error ORDER BY due_at, call_id))[1] AS error FROM lookups
WHERE $1::text[] IS NULL OR source = ANY($1) GROUP BY source"""

DELIVERED = """SELECT EXISTS (SELECT FROM totals WHERE source = $1 AND count > 0)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What the watching is made of, as the database had it at one moment."""

    at: datetime
    #: Rows of SOURCES by name.
    sources: Mapping[str, Mapping[str, Any]]
    #: By (source, state, reason) unfinished media, and since when the first of them has been failing.
    queue: Mapping[tuple[str, str, str], tuple[int, datetime | None]]
    #: By source when the longest waiting medium that never failed was first listed.
    waiting: Mapping[str, datetime]
    #: By (source, store) copies and bytes; the store '' stands for archived media.
    totals: Mapping[tuple[str, str], tuple[int, int]]
    #: By source how many rows could not be read, and when the last was seen.
    rejected: Mapping[str, tuple[int, datetime]]
    #: By source and flag how many media are kept as evidence, and how many of these were archived lately.
    flagged: Mapping[tuple[str, str], tuple[int, int]]
    #: By store how many copies are known to be bad, and when the one longest unread was last read or made.
    bad: Mapping[str, int]
    unverified: Mapping[str, datetime]
    #: By source how many call ids can't be looked up, and why the first of them can't.
    lookups: Mapping[str, tuple[int, str]]


class Watching(Database):
    """Nothing here writes."""

    async def expiring(self, source: str) -> list[tuple[datetime, int]]:
        """By hour in which the source deletes them, how many media are not archived."""
        async with self._connection() as c:
            return [(row["hour"], row["count"]) for row in await c.fetch(EXPIRING, source)]

    async def archived_since(self, source: str, stores: Sequence[str], since: datetime) -> tuple[int, datetime | None]:
        """How many media were archived since then, and when the first of them."""
        async with self._connection() as c:
            row = await c.fetchrow(ARCHIVED_SINCE, list(stores), source, since)
        return row["count"], row["first"]

    async def counts_in(self, source: str, windows: Sequence[Window]) -> list[int]:
        """How many recordings of a source lie in each window."""
        async with self._connection() as c:
            rows = await c.fetch(IN_WINDOWS, source, [w.start for w in windows], [w.end for w in windows])
        return [row[1] for row in rows]

    async def shrunk(self, source: str, since: datetime) -> tuple[int, int, datetime | None]:
        """Of a source's recordings since then: known, no longer listed, and since when the first of these."""
        async with self._connection() as c:
            row = await c.fetchrow(SHRUNK, source, since)
        return row["known"], row["missing"], row["since"]

    async def standing(self, source: str, since: datetime) -> tuple[int, datetime | None]:
        """How many media have been due since then or longer and nobody has them in hand; since when the first."""
        async with self._connection() as c:
            row = await c.fetchrow(STILL, self.clock.now(), source, since)
        return row["count"], row["since"]

    async def counts(
        self, sources: Sequence[str] | None = None, within: Window | None = None
    ) -> dict[str, dict[str, tuple[int, datetime]]]:
        """By source and state (all but archived) how many media, and when the first is due.

        ``within`` needs exactly one source: only its recordings of that window count.
        """
        counted: dict[str, dict[str, tuple[int, datetime]]] = defaultdict(dict)
        async with self._connection() as c:
            if within is not None and sources is not None:
                for row in await c.fetch(COUNTS_WITHIN, sources[0], within.start, within.end):
                    counted[sources[0]][row["state"]] = (row["count"], row["due_at"])
            else:
                for row in await c.fetch(COUNTS, sources):
                    counted[row["source"]][row["state"]] = (row["count"], row["due_at"])
        return counted

    async def reasons(self, sources: Sequence[str] | None = None) -> list[Document]:
        """Why media are pending or failed: the commonest reasons first."""
        async with self._connection() as c:
            return [dict(row) for row in await c.fetch(REASONS, sources)]

    async def flagged(
        self, since: datetime, sources: Sequence[str] | None = None
    ) -> dict[tuple[str, str], tuple[int, int]]:
        """By source and flag how many media are kept as evidence, and how many of these were archived since then."""
        async with self._connection() as c:
            return flagged_from(await c.fetch(FLAGGED, since, sources))

    async def waiting_for(self, stores: Sequence[str], limit: int = 5) -> dict[str, Document]:
        """By store what it did not take yet: how many media, the commonest reason, and some of them with theirs."""
        told: dict[str, Document] = {}
        async with self._connection() as c:
            for row in await c.fetch(WAITING_FOR, list(stores)):
                media = [dict(medium) for medium in await c.fetch(WAITING_FOR_IT, row["store"], limit)]
                told[row["store"]] = {"count": row["count"], "error": row["error"], "media": media}
        return told

    async def numbers(self, sources: Sequence[str], stores: Sequence[str]) -> Numbers:
        """All that watching needs, in one go."""
        async with self._connection() as c:
            ledgers = await c.fetch(SOURCES, list(sources))
            queue = await c.fetch(QUEUE, REASON_CLASSES)
            waiting = await c.fetch(WAITING, list(sources))
            totals = await c.fetch(TOTALS)
            rejected = await c.fetch(REJECTED_COUNTS)
            flagged = await c.fetch(FLAGGED, self.clock.now() - LATELY, list(sources))
            bad = await c.fetch(BAD)
            unverified = await c.fetch(UNVERIFIED, list(stores))
            lookups = await c.fetch(LOOKUPS_FAILING, list(sources))
        spoilt: Counter[str] = Counter()
        for row in bad:
            spoilt[row["store"]] += row["count"]
        return Numbers(
            at=self.clock.now(),
            sources={r["name"]: dict(r) | {"covered": windows_from(r["covered"])} for r in ledgers},
            queue={(r["source"], r["state"], r["reason"]): (r["count"], r["failing_since"]) for r in queue},
            waiting={r["source"]: r["since"] for r in waiting},
            totals={(r["source"], r["store"]): (r["count"], r["bytes"]) for r in totals},
            rejected={r["source"]: (r["count"], r["last_at"]) for r in rejected},
            flagged=flagged_from(flagged),
            bad=spoilt,
            unverified={r["store"]: r["since"] for r in unverified if r["since"] is not None},
            lookups={r["source"]: (r["count"], r["error"]) for r in lookups},
        )

    async def totals(self) -> dict[tuple[str, str], tuple[int, int]]:
        """By (source, store) copies and bytes; the store '' stands for archived media."""
        async with self._connection() as c:
            return {(r[0], r[1]): (r[2], r[3]) for r in await c.fetch(TOTALS)}

    async def rejected_counts(self) -> dict[str, int]:
        """By source how many rows of listings could not be read."""
        async with self._connection() as c:
            return {row["source"]: row["count"] for row in await c.fetch(REJECTED_COUNTS)}

    async def bad_copies(self) -> dict[tuple[str, str], int]:
        """By (source, store) how many copies are known to be bad."""
        async with self._connection() as c:
            return {(r["source"], r["store"]): r["count"] for r in await c.fetch(BAD)}

    async def delivered(self, source: str) -> bool:
        """Was any medium of this source ever archived?"""
        async with self._connection() as c:
            return bool(await c.fetchval(DELIVERED, source))
