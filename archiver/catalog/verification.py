"""Copies that are read back: which are due, what was found, what was put right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ..model import Copy, holdable, utc_text
from .database import Database, repeated
from .from_rows import Document, finding_document, looked_at_from
from .history import remember
from .to_rows import by_column, optional_text

STALEST = """
SELECT store, key, source, recording_id, media_id, size, sha256, archived_at, verified_at,
    coalesce(read_at, archived_at) AS looked_at FROM copies
WHERE store = $1 AND ($2::text IS NULL OR source = $2) AND coalesce(read_at, archived_at) < $3
    AND (coalesce(read_at, archived_at), key) > ($4, $5)
ORDER BY coalesce(read_at, archived_at), key LIMIT $6"""

BAD_ONES = """
SELECT store, key, source, recording_id, media_id, size, sha256, archived_at, verified_at,
    coalesce(read_at, archived_at) AS looked_at FROM copies
WHERE store = $1 AND bad IS NOT NULL AND coalesce(read_at, archived_at) < $2
ORDER BY coalesce(read_at, archived_at), key LIMIT $3"""

UNCODED = """
SELECT m.source, m.recording_id, m.media_id
FROM unnest($1::text[], $2::text[], $3::text[]) AS k (source, recording_id, media_id)
CROSS JOIN LATERAL (
    SELECT source, recording_id, media_id, coding FROM media
    WHERE (source, recording_id, media_id) = (k.source, k.recording_id, k.media_id) OFFSET 0) m
WHERE m.coding IS NULL"""

NEWEST_COPIES = """
SELECT key FROM copies WHERE store = $1 AND bad IS NULL ORDER BY coalesce(read_at, archived_at) DESC LIMIT $2"""

SET_ASIDE = """UPDATE copies SET read_at = $3 WHERE store = $1 AND key = ANY($2)"""

REPAIRED = """
SELECT key, max(repaired_at) AS at FROM findings WHERE store = $1 AND key = ANY($2) AND repaired_at IS NOT NULL
GROUP BY key"""

FOUND = """
INSERT INTO findings AS f (store, key, problem, first_at, last_at)
SELECT $1, t.key, t.problem, $4, $4 FROM unnest($2::text[], $3::text[]) AS t (key, problem)
ON CONFLICT (store, key, problem) DO UPDATE SET
    last_at = $4, times = f.times + 1, repaired_at = NULL, repaired_by = NULL"""

RIGHT_AGAIN = """
UPDATE findings f SET repaired_at = $4, repaired_by = t.by FROM unnest($2::text[], $3::text[]) AS t (key, by)
WHERE (f.store, f.key) = ($1, t.key) AND f.repaired_at IS NULL"""

READ_SINCE = """
SELECT coalesce(sum(size), 0)::bigint FROM copies
WHERE store = $1 AND coalesce(read_at, archived_at) > $2 AND read_at > $2"""

VERIFIED = """
UPDATE copies c SET verified_at = coalesce(t.verified_at, c.verified_at), bad = t.bad, read_at = $5,
    untold = c.untold OR t.verified_at IS NOT NULL
FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[]) AS t (store, key, verified_at, bad)
WHERE (c.store, c.key) = (t.store, t.key)"""

#: An older copy may hold other bytes than the medium has now.
CODED = """
UPDATE media m SET coding = t.coding
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    AS t (source, recording_id, media_id, sha256, coding)
WHERE (m.source, m.recording_id, m.media_id, m.sha256) = (t.source, t.recording_id, t.media_id, t.sha256)
    AND m.coding IS NULL"""

ADD_VERIFICATION = """
INSERT INTO verifications AS v (store, day, read, bytes, seconds, bad, repaired)
VALUES ($1, ($2::timestamptz AT TIME ZONE 'UTC')::date, $3, $4, $5, $6, $7)
ON CONFLICT (store, day) DO UPDATE SET read = v.read + excluded.read, bytes = v.bytes + excluded.bytes,
    seconds = v.seconds + excluded.seconds, bad = v.bad + excluded.bad, repaired = v.repaired + excluded.repaired"""

VERIFY_ERROR = """
INSERT INTO verifications (store, day, error) VALUES ($1, ($2::timestamptz AT TIME ZONE 'UTC')::date, $3)
ON CONFLICT (store, day) DO UPDATE SET error = excluded.error"""

VERIFICATION = """
SELECT read, bytes, seconds, error FROM verifications
WHERE store = $1 AND day = ($2::timestamptz AT TIME ZONE 'UTC')::date"""

OLDEST = """
SELECT coalesce(read_at, archived_at) FROM copies WHERE store = $1 ORDER BY coalesce(read_at, archived_at) LIMIT 1"""

OVERDUE = """SELECT count(*), coalesce(sum(size), 0)::bigint FROM copies
WHERE store = $1 AND coalesce(read_at, archived_at) < $2"""

FINDINGS_COUNT = """
SELECT count(*) AS found, count(repaired_at) AS repaired FROM findings
WHERE store = $1 AND (repaired_at IS NULL OR last_at > $2)"""

FINDINGS = """
SELECT f.store, f.key, f.problem, f.first_at, f.last_at, f.times, f.repaired_at, f.repaired_by, c.source,
    c.recording_id, c.media_id
FROM findings f JOIN copies c USING (store, key)
WHERE f.store = $1 AND (f.repaired_at IS NULL OR f.last_at > $2)
ORDER BY f.repaired_at IS NULL DESC, f.last_at DESC, f.key LIMIT $3"""

FINDINGS_OF = """
SELECT f.store, f.key, f.problem, f.first_at, f.last_at, f.times, f.repaired_at, f.repaired_by, c.media_id
FROM findings f JOIN copies c USING (store, key) WHERE c.source = $1 AND c.recording_id = $2 ORDER BY f.first_at"""

KNOWN_KEYS = """SELECT key FROM copies WHERE store = $1 AND key = ANY($2)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What reading one copy back found."""

    identity: tuple[str, str, str]
    copy: Copy
    #: What was wrong; None: nothing.
    problem: str | None = None
    #: Who gave the right bytes, where that put it right.
    mended_by: str | None = None
    #: How its samples are coded, where the catalog did not know and its bytes are whole.
    coding: str | None = None

    @property
    def right(self) -> bool:
        """Is it as it should be now?"""
        return self.problem is None or self.mended_by is not None


class Verification(Database):
    """What reading back found."""

    async def stalest(
        self, store: str, source: str | None, before: datetime, after: tuple[datetime, str], limit: int
    ) -> list[tuple[tuple[str, str, str], Copy, datetime]]:
        """Copies of a store last read (or made) before a moment, and when; the longest ago first, from a place on."""
        async with self._connection() as c:
            return looked_at_from(await c.fetch(STALEST, store, source, before, *after, limit))

    async def bad_ones(
        self, store: str, before: datetime, limit: int
    ) -> list[tuple[tuple[str, str, str], Copy, datetime]]:
        """Copies known to be bad that were last read before a moment, and when; the longest ago first."""
        async with self._connection() as c:
            return looked_at_from(await c.fetch(BAD_ONES, store, before, limit))

    async def uncoded(self, ids: Sequence[tuple[str, str, str]]) -> set[tuple[str, str, str]]:
        """Those media of which it is not known how their samples are coded: earlier versions did not ask."""
        async with self._connection() as c:
            return {(row[0], row[1], row[2]) for row in await c.fetch(UNCODED, *by_column(list(ids), 3))}

    async def newest_copies(self, store: str, count: int) -> list[str]:
        """Keys of the copies that were read or made last, and are not known to be bad."""
        async with self._connection() as c:
            return [row[0] for row in await c.fetch(NEWEST_COPIES, store, count)]

    async def set_aside(self, store: str, keys: Sequence[str]) -> None:
        """These copies can't be read now, and nothing is wrong with them: they are looked at again after all others."""
        async with self._connection() as c:
            await c.execute(SET_ASIDE, store, list(keys), self.clock.now())

    async def repaired(self, store: str, keys: Sequence[str]) -> dict[str, datetime]:
        """When each of these copies was last put right, where that ever was."""
        async with self._connection() as c:
            return {row[0]: row[1] for row in await c.fetch(REPAIRED, store, list(keys))}

    @repeated
    async def described_again(self, store: str, keys: Sequence[str], problem: str, at: datetime) -> None:
        """Of these copies that are there no manifest told; one does since then."""
        async with self._transaction() as c:
            await c.execute(FOUND, store, list(keys), [problem] * len(keys), at)
            await c.execute(RIGHT_AGAIN, store, list(keys), ["a new manifest"] * len(keys), at)

    async def read_since(self, store: str, moment: datetime) -> int:
        """Bytes of the copies that were read back since then."""
        async with self._connection() as c:
            return int(await c.fetchval(READ_SINCE, store, moment))

    @repeated
    async def verified(self, store: str, readings: Sequence[Reading], seconds: float) -> None:
        """What reading copies of a store back found, and how long it took."""
        now = self.clock.now()
        async with self._transaction() as c:
            await c.execute(
                VERIFIED,
                [store] * len(readings),
                [r.copy.key for r in readings],
                [now if r.right else None for r in readings],
                [None if r.right else optional_text(r.problem) for r in readings],
                now,
            )
            coded = [(*r.identity, r.copy.sha256, r.coding) for r in readings if r.coding is not None]
            if coded:
                await c.execute(CODED, *by_column(sorted(coded), 5))
            wrong = [r for r in readings if r.problem is not None]
            right = [r for r in readings if r.right]
            if wrong:
                await c.execute(
                    FOUND, store, [r.copy.key for r in wrong], [optional_text(r.problem) for r in wrong], now
                )
            by = [r.mended_by or "found right when read again" for r in right]
            await c.execute(RIGHT_AGAIN, store, [r.copy.key for r in right], by, now)
            odd = [
                (
                    *r.identity,
                    f"copy repaired from {r.mended_by}" if r.mended_by else "copy bad",
                    f"store {store}: {r.problem}",
                )
                for r in wrong
            ]
            await remember(c, now, odd)
            counts = len(readings), sum(r.copy.size for r in readings), seconds, len(wrong)
            await c.execute(ADD_VERIFICATION, store, now, *counts, sum(r.right for r in wrong))

    async def verify_ended(self, store: str, error: str | None) -> None:
        """Why a store could not be read on, if so."""
        async with self._connection() as c:
            await c.execute(VERIFY_ERROR, store, self.clock.now(), optional_text(error))

    async def verification(self, store: str) -> tuple[int, int, float]:
        """What was read of a store today (UTC): copies, bytes, seconds."""
        async with self._connection() as c:
            row = await c.fetchrow(VERIFICATION, store, self.clock.now())
        return (row["read"], row["bytes"], row["seconds"]) if row else (0, 0, 0.0)

    async def verify_state(self, store: str, overdue: datetime, since: datetime, limit: int = 5) -> Document:
        """How far reading back has come, and what it found wrong: unrepaired, or since then."""
        async with self._connection() as c:
            oldest = await c.fetchval(OLDEST, store)
            late = await c.fetchrow(OVERDUE, store, overdue)
            today = await c.fetchrow(VERIFICATION, store, self.clock.now())
            found = await c.fetchrow(FINDINGS_COUNT, store, since)
            rows = await c.fetch(FINDINGS, store, since, limit)
        return {
            "oldest_read_at": utc_text(oldest) if oldest else None,
            "overdue": late[0],
            "overdue_bytes": late[1],
            "read_today": today["read"] if today else 0,
            "bytes_today": today["bytes"] if today else 0,
            "error": today["error"] if today else None,
            "found": found["found"],
            "repaired": found["repaired"],
            "findings": [
                {n: row[n] for n in ("source", "recording_id", "media_id")} | finding_document(row) for row in rows
            ],
        }

    async def findings_of(self, source: str, recording_id: str) -> list[Document]:
        """What was ever wrong with a recording's copies."""
        async with self._connection() as c:
            rows = await c.fetch(FINDINGS_OF, holdable(source), holdable(recording_id))
        return [{"media_id": row["media_id"], "store": row["store"]} | finding_document(row) for row in rows]

    async def unknown_keys(self, store: str, keys: Sequence[str]) -> list[str]:
        """Those keys of a store that belong to no copy."""
        async with self._connection() as c:
            known = {row[0] for row in await c.fetch(KNOWN_KEYS, store, [holdable(key) for key in keys])}
        return [key for key in keys if key not in known]
