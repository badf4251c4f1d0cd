"""What listings told: recordings that are new, have changed, or are no longer listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..model import Listing, ListingKey, Recording, Window, holdable, utc_text
from .database import Database, repeated
from .from_rows import Document, overall
from .history import remember
from .locks import LISTED, TELL
from .sql_parts import UNFINISHED
from .to_rows import MEDIUM_COLUMNS, RECORDING_COLUMNS, Telling, batched, by_column, copy_in, unique_rejects

#: Ids to one question.
IDS = 10_000

KNOWN = """
SELECT recording_id, digest, call_id, missing_since IS NOT NULL AS missing FROM recordings
WHERE source = $1 AND recording_id = ANY($2)"""

EXISTING = """SELECT recording_id FROM recordings WHERE source = $1 AND recording_id = ANY($2)"""

RETURNED = """
UPDATE recordings SET missing_since = NULL, revision = revision + 1, undescribed = true
WHERE source = $1 AND recording_id = ANY($2) AND missing_since IS NOT NULL RETURNING recording_id"""

WAKE_RETURNED = """
UPDATE media SET due_at = $3 WHERE source = $1 AND recording_id = ANY($2) AND state = 'pending'"""

MISSING = """
UPDATE recordings SET missing_since = $5, revision = revision + 1, undescribed = true
WHERE source = $1 AND key_at >= $2 AND key_at < $3 AND by_window AND missing_since IS NULL
    AND NOT EXISTS (SELECT FROM unnest($4::text[]) AS seen (id) WHERE seen.id = recording_id)
RETURNING recording_id"""

UPSERT_RECORDINGS = """
INSERT INTO recordings AS r (source, recording_id, key_at, started_at, ended_at, duration, call_id, direction, caller,
    callee, agent, queue, parties, events, attributes, raw, flags, digest, first_listed_at, by_window)
SELECT t.source, t.recording_id, t.key_at::timestamptz, t.started_at::timestamptz, t.ended_at::timestamptz,
    t.duration::interval, t.call_id, t.direction, t.caller, t.callee, t.agent, t.queue, t.parties::jsonb,
    t.events::jsonb, t.attributes::jsonb, t.raw::json, t.flags::text[], t.digest::bytea, t.now::timestamptz,
    t.by_window::bool
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::text[],
    $19::text[], $20::text[])
    AS t (source, recording_id, key_at, started_at, ended_at, duration, call_id, direction, caller, callee, agent,
          queue, parties, events, attributes, raw, flags, digest, now, by_window)
ORDER BY t.recording_id
ON CONFLICT (source, recording_id) DO UPDATE SET
    key_at = excluded.key_at, started_at = excluded.started_at, ended_at = excluded.ended_at,
    duration = excluded.duration, call_id = coalesce(excluded.call_id, r.call_id), direction = excluded.direction,
    caller = excluded.caller, callee = excluded.callee, agent = excluded.agent, queue = excluded.queue,
    parties = excluded.parties, events = excluded.events, attributes = excluded.attributes, raw = excluded.raw,
    flags = excluded.flags, digest = excluded.digest, missing_since = NULL, revision = r.revision + 1,
    undescribed = true, by_window = r.by_window OR excluded.by_window"""

#: What failed keeps its own schedule, however often its row changes. A told size or hash that changed is new content:
#: what is archived is fetched again, the old copy stays beside it; what is on its way (claimed, or held by some stores
#: only) starts anew. Where nothing was told before (a manifest does not say it), what is told now is compared with what
#: is held.
UPSERT_MEDIA = """
INSERT INTO media AS m (source, recording_id, media_id, state, due_at, error, told_size, told_sha256, told_duration,
    told_type, opaque, urgent, ref, stores)
SELECT t.source, t.recording_id, t.media_id, t.state, t.due_at::timestamptz, t.error, t.told_size::bigint,
    t.told_sha256, t.told_duration::interval, t.told_type, t.opaque::bool, t.urgent::bool, t.ref::jsonb,
    t.stores::text[]
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[])
    AS t (source, recording_id, media_id, state, due_at, error, told_size, told_sha256, told_duration, told_type,
          opaque, urgent, ref, stores)
ORDER BY t.recording_id, t.media_id
ON CONFLICT (source, recording_id, media_id) DO UPDATE SET
    told_size = excluded.told_size, told_sha256 = excluded.told_sha256, told_duration = excluded.told_duration,
    told_type = excluded.told_type, opaque = excluded.opaque, urgent = excluded.urgent, ref = excluded.ref,
    (state, due_at, error, generation, attempts, failing_since, held, size, sha256, archived_at, troubled, seen_sha256,
     seen_at, coding, flags, note) = (
        SELECT CASE WHEN again THEN 'pending' WHEN ends THEN excluded.state ELSE m.state END,
               CASE WHEN again OR fresh THEN excluded.due_at ELSE m.due_at END,
               CASE WHEN again OR ends OR fresh THEN excluded.error ELSE m.error END,
               m.generation + (again OR ends)::int,
               CASE WHEN again THEN 0 ELSE m.attempts END,
               CASE WHEN again OR ends THEN NULL ELSE m.failing_since END,
               CASE WHEN again THEN '{}' ELSE m.held END,
               CASE WHEN again THEN NULL ELSE m.size END,
               CASE WHEN again THEN NULL ELSE m.sha256 END,
               CASE WHEN again THEN NULL ELSE m.archived_at END,
               m.troubled AND NOT (again OR fresh),
               CASE WHEN again THEN NULL ELSE m.seen_sha256 END,
               CASE WHEN again THEN NULL ELSE m.seen_at END,
               CASE WHEN again THEN NULL ELSE m.coding END,
               CASE WHEN again THEN '{}' ELSE m.flags END,
               CASE WHEN again THEN NULL ELSE m.note END
        FROM (SELECT m.state = 'pending' AND (NOT m.troubled OR m.attempts = 0 AND m.error LIKE 'not ready%')
                         AS fresh, excluded.state = 'pending' AND (
                         m.state IN ('gone', 'empty')
                         OR (m.state IN ('archived', 'pending') AND (
                             coalesce(coalesce(lower(m.told_sha256), m.sha256) <> lower(excluded.told_sha256), false)
                             OR coalesce(coalesce(m.told_size, m.size) <> excluded.told_size, false))))
                         AS again,
                     excluded.state <> 'pending' AND m.state IN ('pending', 'failed') AS ends) AS change)"""

EXPIRES = f"""
UPDATE media m SET expires_at = r.started_at + $2::interval FROM recordings r
WHERE m.source = $1 AND r.source = $1 AND r.recording_id = m.recording_id AND {UNFINISHED}
    AND ($3::text[] IS NULL OR m.recording_id = ANY($3))"""

BY_WINDOW = """
UPDATE recordings SET by_window = true WHERE source = $1 AND recording_id = ANY($2) AND NOT by_window"""

ADD_LISTING = """
WITH swallowed AS (
    DELETE FROM listings WHERE source = $1 AND span <@ tstzrange($2, $3) AND span <> tstzrange($2, $3)
        AND lower(span) >= $2 AND lower(span) < $3
    RETURNING first_at, times)
INSERT INTO listings AS l (source, span, first_at, last_at, times, listed, rejected)
SELECT $1, tstzrange($2, $3), coalesce((SELECT min(first_at) FROM swallowed), $4), $4,
       1 + coalesce((SELECT sum(times) FROM swallowed), 0), $5, $6
ON CONFLICT (source, span) DO UPDATE SET
    last_at = $4, times = l.times + excluded.times, listed = excluded.listed, rejected = excluded.rejected"""

REJECT = """
INSERT INTO rejected AS r (source, digest, raw, reason, span, first_at, last_at)
SELECT $1, t.digest, t.raw, t.reason, tstzrange($5, $6), $7, $7
FROM unnest($2::bytea[], $3::text[], $4::text[]) AS t (digest, raw, reason) ORDER BY t.digest
ON CONFLICT (source, digest) DO UPDATE SET last_at = $7, times = r.times + 1, reason = excluded.reason"""

ADD_COVERED = """
UPDATE sources SET covered = covered + tstzmultirange(tstzrange($2, $3)) WHERE name = $1"""

CURSOR = """UPDATE sources SET cursor = $2 WHERE name = $1"""

DOUBTFUL = """
SELECT DISTINCT r.key_at FROM media m JOIN recordings r USING (source, recording_id)
WHERE m.source = $1 AND m.state = 'pending' AND r.missing_since IS NULL AND r.key_at < $2 AND m.error LIKE 'not ready%'
ORDER BY r.key_at DESC LIMIT 24"""

EXPIRE_BY = """
UPDATE sources SET retention = $2 WHERE name = $1 AND retention IS DISTINCT FROM $2 RETURNING true"""

WITHIN = """
SELECT r.recording_id, r.started_at, r.missing_since, array_agg(m.state) AS states
FROM recordings r LEFT JOIN media m USING (source, recording_id)
WHERE r.source = $1 AND r.key_at >= $2 AND r.key_at < $3 AND r.by_window
GROUP BY r.source, r.recording_id ORDER BY r.started_at, r.recording_id"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What one listing changed. Counts are recordings."""

    listed: int = 0
    new: int = 0
    changed: int = 0
    missing: int = 0
    rejected: int = 0


class Discovery(Database):
    """A listing's rows are written in one transaction."""

    async def unknown(self, source: str, recordings: Sequence[Recording]) -> list[Recording]:
        """Those that the catalog does not hold, or holds otherwise than the source tells them now."""
        known: dict[str, tuple[bytes, str | None]] = {}
        async with self._connection() as c:
            for some in batched([holdable(r.recording_id) for r in recordings], IDS):
                rows = await c.fetch(KNOWN, source, some)
                # What was missing is told anew: its media may have been given up as gone.
                known |= {row["recording_id"]: (row["digest"], row["call_id"]) for row in rows if not row["missing"]}

        def is_news(recording: Recording) -> bool:
            if (row := known.get(holdable(recording.recording_id))) is None:
                return True
            digest, call_id = row
            # A call id is told only where one asked for it; it adds to what the plain row said.
            return digest != recording.digest() or (recording.call_id is not None and call_id is None)

        return [recording for recording in recordings if is_news(recording)]

    @repeated
    async def record(
        self,
        source: str,
        listing: Listing,
        news: Sequence[Recording],
        *,
        digests: Mapping[str, bytes] | None = None,
        listing_key: ListingKey,
        stores: Sequence[str],
        retention: timedelta | None = None,
        window: Window | None = None,
        part: bool = False,
        cover: bool = False,
        cursor: str | None = None,
    ) -> Recorded:
        """A listing's rows and, with ``cover``, its window's place in the ledger: in one transaction.

        ``part``: some rows of a listing that comes whole in a moment; of what these lack nothing is said.
        ``news`` are the recordings that are new or changed, details included; ``digests`` by id those of the rows of
        such as were told more than their row. Of a recording that is told twice the last telling counts.
        """
        now = self.clock.now()
        listed_ids = [holdable(r.recording_id) for r in listing.recordings]
        told = {holdable(new.recording_id): new for new in news}
        new = changed = 0
        missing: list[str] = []
        back: set[str] = set()
        async with self._transaction() as c:
            known: set[str] = set()
            for some in batched(list(told), IDS):
                known |= {row[0] for row in await c.fetch(EXISTING, source, some)}
            there = [i for i in listed_ids if i in known or i not in told]
            if there:
                back = {row[0] for row in await c.fetch(RETURNED, source, there)}
                if back:
                    await c.execute(WAKE_RETURNED, source, list(back), now)
                    await c.execute(TELL, LISTED, "")
                    await remember(c, now, [(source, i, "", "listed again", "") for i in back])
            if window is not None and not part and not listing.rejected:
                # Else the row that nobody could read may be the one that is not seen. Before the new ones are there,
                # none of which is missing.
                gone = await c.fetch(MISSING, source, window.start, window.end, listed_ids, now)
                missing = [row[0] for row in gone]
            telling = Telling(source, listing_key, now, window is not None, stores, digests or {}, known)
            async for ids, fresh, told_again, _ in telling.chunks(list(told.values())):
                new += len(ids) - len(told_again[0])
                await c.execute(TELL, LISTED, "")
                await copy_in(c, "recordings", RECORDING_COLUMNS, fresh[0])
                await copy_in(c, "media", MEDIUM_COLUMNS, fresh[1])
                if told_again[0]:
                    await c.execute(UPSERT_RECORDINGS, *by_column(told_again[0], len(RECORDING_COLUMNS)))
                    await c.execute(UPSERT_MEDIA, *by_column(told_again[1], len(MEDIUM_COLUMNS)))
                if retention is not None:
                    await c.execute(EXPIRES, source, retention, ids)
                changes = [i for i in ids if i in known and i not in back]
                changed += len(changes)
                await remember(c, now, [(source, i, "", "changed", "") for i in changes])
            if window is not None and not part:
                await c.execute(BY_WINDOW, source, [i for i in listed_ids if i not in told])
                await remember(c, now, [(source, i, "", "no longer listed", "") for i in missing])
                await c.execute(
                    ADD_LISTING, source, window.start, window.end, now, len(listed_ids), len(listing.rejected)
                )
            if listing.rejected:
                raws = [holdable(r.raw) for r in listing.rejected]
                await c.execute(
                    REJECT,
                    source,
                    *unique_rejects(raws, [holdable(r.reason) for r in listing.rejected]),
                    window.start if window else None,
                    window.end if window else None,
                    now,
                )
            if cover and window is not None:
                await c.execute(ADD_COVERED, source, window.start, window.end)
            if cursor is not None:
                await c.execute(CURSOR, source, cursor)
        return Recorded(
            listed=0 if part else len(listed_ids),
            new=new,
            changed=changed,
            missing=len(missing),
            rejected=len(listing.rejected),
        )

    async def doubtful(self, source: str, before: datetime) -> list[datetime]:
        """Listing keys of media that were promised and are not there, too old for the lookback to list again."""
        async with self._connection() as c:
            return [row[0] for row in await c.fetch(DOUBTFUL, source, before)]

    async def expire_by(self, source: str, retention: timedelta | None) -> None:
        """The source's retention is that from now on."""
        async with self._transaction() as c:
            if await c.fetchval(EXPIRE_BY, source, retention):
                await c.execute(EXPIRES, source, retention, None)

    async def within(self, source: str, window: Window) -> list[Document]:
        """What the source's listing of a window should tell of: ids, starts, states, and since when it is missing."""
        async with self._connection() as c:
            rows = await c.fetch(WITHIN, source, window.start, window.end)
        return [
            {
                "recording_id": row["recording_id"],
                "started_at": utc_text(row["started_at"]),
                "state": overall(state for state in row["states"] if state is not None),
                "missing_since": utc_text(row["missing_since"]) if row["missing_since"] else None,
            }
            for row in rows
        ]

    async def kept(self, source: str, recording_ids: Sequence[str]) -> set[str]:
        """Those ids that the catalog holds."""
        async with self._connection() as c:
            return {row["recording_id"] for row in await c.fetch(KNOWN, source, list(recording_ids))}
