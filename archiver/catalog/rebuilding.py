"""The catalog made again from what a store tells."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import asyncpg

from .database import Database, repeated
from .discovery import EXISTING
from .from_rows import Document
from .to_rows import (
    REBUILT_COPY_COLUMNS,
    REBUILT_MEDIUM_COLUMNS,
    REBUILT_RECORDING_COLUMNS,
    Retold,
    by_column,
    copy_in,
    moment_from,
    multirange,
)

IS_EMPTY = """SELECT NOT EXISTS (SELECT FROM recordings) AND NOT EXISTS (SELECT FROM copies)"""

REBUILD_SOURCE = """
INSERT INTO sources (name, kind, start_at, covered, cursor, origin, account) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (name) DO UPDATE SET kind = $2, start_at = $3, covered = sources.covered + $4, cursor = $5, origin = $6,
    account = $7"""

REBUILDING = """SELECT store, after, manifests, lines, recordings, damaged, distrusted FROM rebuilding"""

#: Where no ledger tells since when it is archived, it is since the first call that is known.
REBUILD_KIND = """
INSERT INTO sources (name, kind, start_at) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, start_at = least(sources.start_at, excluded.start_at)"""

REBUILD_RECORDINGS = """
INSERT INTO recordings AS r (source, recording_id, key_at, started_at, ended_at, duration, call_id, direction, caller,
    callee, agent, queue, parties, events, attributes, raw, flags, digest, first_listed_at, missing_since, undescribed)
SELECT t.source, t.recording_id, t.key_at::timestamptz, t.started_at::timestamptz, t.ended_at::timestamptz,
    t.duration::interval, t.call_id, t.direction, t.caller, t.callee, t.agent, t.queue, t.parties::jsonb,
    t.events::jsonb, t.attributes::jsonb, t.raw::json, t.flags::text[], t.digest::bytea, t.now::timestamptz,
    t.missing_since::timestamptz, t.undescribed::bool
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::text[],
    $19::text[], $20::text[], $21::text[])
    AS t (source, recording_id, key_at, started_at, ended_at, duration, call_id, direction, caller, callee, agent,
          queue, parties, events, attributes, raw, flags, digest, now, missing_since, undescribed)
ON CONFLICT (source, recording_id) DO UPDATE SET
    key_at = excluded.key_at, started_at = excluded.started_at, ended_at = excluded.ended_at,
    duration = excluded.duration, call_id = excluded.call_id, direction = excluded.direction, caller = excluded.caller,
    callee = excluded.callee, agent = excluded.agent, queue = excluded.queue, parties = excluded.parties,
    events = excluded.events, attributes = excluded.attributes, raw = excluded.raw, flags = excluded.flags,
    missing_since = excluded.missing_since"""

REBUILD_MEDIA = """
INSERT INTO media AS m (source, recording_id, media_id, state, due_at, attempts, error, stores, held, size, sha256,
    content_type, duration, coding, flags, note, archived_at)
SELECT t.source, t.recording_id, t.media_id, t.state, t.due_at::timestamptz, t.attempts::int, t.error,
    t.stores::text[], t.held::text[], t.size::bigint, t.sha256, t.content_type, t.duration::interval, t.coding,
    t.flags::text[], t.note, t.archived_at::timestamptz
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[])
    AS t (source, recording_id, media_id, state, due_at, attempts, error, stores, held, size, sha256, content_type,
          duration, coding, flags, note, archived_at)
ON CONFLICT (source, recording_id, media_id) DO UPDATE SET
    state = excluded.state, attempts = excluded.attempts, error = excluded.error, stores = excluded.stores,
    held = excluded.held, size = excluded.size, sha256 = excluded.sha256, content_type = excluded.content_type,
    duration = excluded.duration, coding = excluded.coding, flags = excluded.flags, note = excluded.note,
    archived_at = excluded.archived_at
WHERE NOT (m.state = 'archived' AND excluded.state = 'pending' AND excluded.sha256 IS NULL)"""

REBUILD_COPIES = """
INSERT INTO copies (source, recording_id, media_id, store, key, size, sha256, archived_at, verified_at, read_at)
SELECT t.source, t.recording_id, t.media_id, t.store, t.key, t.size::bigint, t.sha256, t.archived_at::timestamptz,
    t.verified_at::timestamptz, t.read_at::timestamptz
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[])
    AS t (source, recording_id, media_id, store, key, size, sha256, archived_at, verified_at, read_at)
ON CONFLICT (store, key) DO UPDATE SET
    archived_at = excluded.archived_at, verified_at = excluded.verified_at, read_at = excluded.verified_at"""

REBUILT_SO_FAR = """
INSERT INTO rebuilding VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (store) DO UPDATE SET after = excluded.after, manifests = excluded.manifests, lines = excluded.lines,
    recordings = excluded.recordings, damaged = excluded.damaged, distrusted = excluded.distrusted"""

NOTED = """
UPDATE copies c SET verified_at = $3, read_at = $3 FROM unnest($2::text[]) AS t (key)
WHERE c.store = $1 AND c.key = t.key AND (c.verified_at IS NULL OR c.verified_at < $3)"""

REBUILD_TOTALS = """
INSERT INTO totals (source, store, count, bytes)
SELECT source, store, count(*), sum(size) FROM copies GROUP BY source, store
UNION ALL
SELECT source, '', count(*), sum(size) FROM media WHERE state = 'archived' GROUP BY source
ON CONFLICT (source, store) DO UPDATE SET count = excluded.count, bytes = excluded.bytes"""

#: What is not finished must be listed again, for a manifest does not tell how to fetch it.
UNCOVER_UNFINISHED = """
UPDATE sources s SET covered = s.covered - coalesce((
    SELECT range_agg(tstzrange(date_trunc('hour', r.key_at), date_trunc('hour', r.key_at) + interval '1 hour'))
    FROM recordings r JOIN media m USING (source, recording_id)
    WHERE r.source = s.name AND (m.state = 'pending' OR m.state = 'failed')), '{}')"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildProgress:
    """How far a rebuild from a store has come: its last manifest, and what was read so far."""

    store: str
    after: str = ""
    manifests: int = 0
    lines: int = 0
    recordings: int = 0
    damaged: Sequence[str] = ()
    distrusted: Sequence[str] = ()


class Rebuilding(Database):
    """One batch of manifests is one transaction."""

    async def is_empty(self) -> bool:
        """Does the catalog hold neither a recording nor a copy?"""
        async with self._connection() as c:
            return bool(await c.fetchval(IS_EMPTY))

    async def rebuild_ledger(self, ledger: Document) -> None:
        """A ledger as a store told it: its windows are added to those that are known."""
        async with self._connection() as c:
            await c.execute(
                REBUILD_SOURCE,
                ledger["source"],
                ledger["kind"],
                moment_from(ledger["start"]),
                multirange(ledger["covered"]),
                ledger["cursor"],
                ledger.get("origin"),
                ledger.get("account"),
            )

    async def rebuilding(self) -> RebuildProgress | None:
        """How far a rebuild has come that was begun and not ended."""
        async with self._connection() as c:
            row = await c.fetchrow(REBUILDING)
        return RebuildProgress(**dict(row)) if row else None

    @repeated
    async def rebuild(self, retold: Retold, progress: RebuildProgress) -> RebuildProgress:
        """Recordings as manifests told them and (in the same transaction) how far it has come.

        Returns the progress with those counted that were not known before.
        """
        async with self._transaction() as c:
            known: set[tuple[str, str]] = set()
            for name, (kind, first) in retold.sources.items():
                await c.execute(REBUILD_KIND, name, kind, moment_from(first))
                ids = [recording_id for source, recording_id in retold.told if source == name]
                known |= {(name, row[0]) for row in await c.fetch(EXISTING, name, ids)}
            copied, again = retold.copied, retold.rows(())
            if known:
                copied, again = await asyncio.to_thread(retold.apart, known)
            await copy_in(c, "recordings", REBUILT_RECORDING_COLUMNS, copied[0])
            await copy_in(c, "media", REBUILT_MEDIUM_COLUMNS, copied[1])
            await c.execute(REBUILD_RECORDINGS, *by_column(list(again[0]), len(REBUILT_RECORDING_COLUMNS)))
            await c.execute(REBUILD_MEDIA, *by_column(list(again[1]), len(REBUILT_MEDIUM_COLUMNS)))
            try:
                async with c.transaction():
                    await copy_in(c, "copies", REBUILT_COPY_COLUMNS, copied[2])
            except asyncpg.UniqueViolationError:
                # A copy of that name is there, of another recording.
                again = retold.rows(retold.told.values())
            await c.execute(REBUILD_COPIES, *by_column(list(again[2]), len(REBUILT_COPY_COLUMNS)))
            new = len(retold.told) - len(known)
            progress = replace(progress, recordings=progress.recordings + new)
            await c.execute(REBUILT_SO_FAR, *(getattr(progress, name) for name in RebuildProgress.__slots__))
        return progress

    async def rebuild_verified(self, store: str, keys: Sequence[str], moment: datetime) -> None:
        """These copies were verified then."""
        async with self._connection() as c:
            await c.execute(NOTED, store, list(keys), moment)

    async def rebuilt(self) -> None:
        """The last step: sums, and what must be listed again."""
        async with self._transaction() as c:
            await c.execute(REBUILD_TOTALS)
            await c.execute(UNCOVER_UNFINISHED)
            await c.execute("DELETE FROM rebuilding")
