"""What the stores are told: which recordings, ledgers and verifications no manifest describes as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from ..model import utc_text
from .database import Database, repeated
from .from_rows import Document, windows_from
from .sql_parts import UNCLAIMED
from .to_rows import multirange

UNDESCRIBED = """
SELECT source, recording_id FROM recordings
WHERE undescribed AND source = ANY($1) AND (revision > 1 OR first_listed_at < $3) LIMIT $2"""

REVISE = """
WITH was AS (
    SELECT source, recording_id, undescribed FROM recordings
    WHERE (source, recording_id) IN (SELECT * FROM unnest($1::text[], $2::text[])) ORDER BY 1, 2 FOR UPDATE),
revised AS (
    UPDATE recordings SET revision = revision + 1, undescribed = true
    WHERE (source, recording_id) IN (SELECT source, recording_id FROM was))
SELECT source, recording_id FROM was WHERE NOT undescribed"""

#: Nothing where a recording is not described yet: a ledger in a store must not claim what that store does not tell.
UNTOLD = """
SELECT name, kind, start_at, covered, cursor, origin, account FROM sources
WHERE name = ANY($1) AND told IS DISTINCT FROM concat(covered, cursor)
    AND NOT EXISTS (SELECT FROM recordings r WHERE r.source = sources.name AND r.undescribed)"""

#: Of these stores those that every medium of the source is meant for: what is there describes all of it.
WHOLE = """
SELECT s.name FROM unnest($2::text[]) AS s (name)
WHERE NOT EXISTS (SELECT FROM media WHERE source = $1 AND NOT s.name = ANY(stores))"""

#: What waits goes where the config says now; what is under way ends as it began.
AIM = f"""
UPDATE media SET stores = $3, due_at = CASE WHEN state = 'pending' AND $3 <@ held THEN $1 ELSE due_at END
WHERE source = $2 AND (state = 'pending' OR state = 'failed') AND NOT (stores <@ $3 AND stores @> $3) AND {UNCLAIMED}"""

UNTELL = """UPDATE sources SET told = NULL WHERE name = $1"""

TOLD = """UPDATE sources SET told = concat($2::tstzmultirange, $3::text) WHERE name = $1"""

UNTOLD_VERIFIED = """
SELECT source, store, key, verified_at FROM copies WHERE untold AND source = ANY($1)
ORDER BY source, store, verified_at LIMIT $2"""

TOLD_VERIFIED = """
UPDATE copies c SET untold = false FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS t (store, key, verified_at)
WHERE (c.store, c.key, c.verified_at) = (t.store, t.key, t.verified_at)"""

DESCRIBED = """
UPDATE recordings r SET revision = r.revision + t.step, undescribed = (r.revision <> t.revision)
FROM unnest($1::text[], $2::text[], $3::int[], $4::int[]) AS t (source, recording_id, revision, step)
WHERE (r.source, r.recording_id) = (t.source, t.recording_id)
RETURNING NOT r.undescribed"""


#: A day that has a certificate is looked at again where something of it was described anew.
CERTIFY_AGAIN = """
INSERT INTO certify_again AS a (source, day)
SELECT DISTINCT c.source, c.day
FROM unnest($1::text[], $2::text[]) AS t (source, recording_id)
JOIN recordings r ON (r.source, r.recording_id) = (t.source, t.recording_id)
JOIN certificates c ON (c.source, c.day) = (r.source, (r.key_at AT TIME ZONE 'UTC')::date)
ORDER BY 1, 2
ON CONFLICT (source, day) DO UPDATE SET marks = a.marks + 1"""


class Descriptions(Database):
    """What is described, and what is not yet."""

    @repeated
    async def described(self, revisions: Mapping[tuple[str, str], int]) -> int:
        """Manifests now hold these revisions; of how many that is still the newest."""
        async with self._connection() as c:
            return await mark_described(c, revisions, step=0)

    async def undescribed(
        self, sources: Sequence[str], limit: int, *, new_before: datetime | None = None
    ) -> list[tuple[str, str]]:
        """Recordings that no manifest describes as they are: changed ones, and new ones listed before that moment."""
        async with self._connection() as c:
            before = new_before or self.clock.now() + timedelta(days=1)
            return [(row[0], row[1]) for row in await c.fetch(UNDESCRIBED, list(sources), limit, before)]

    @repeated
    async def revise(self, keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """A new revision of each: who read an earlier one can't say any more that a manifest describes it.

        Returns those that manifests described as they are until now.
        """
        async with self._connection() as c:
            return [(row[0], row[1]) for row in await c.fetch(REVISE, [k[0] for k in keys], [k[1] for k in keys])]

    async def untold_ledgers(self, sources: Sequence[str]) -> list[Document]:
        """Ledgers that the stores were not told of yet, where every recording that they cover is described."""
        async with self._connection() as c:
            rows = await c.fetch(UNTOLD, list(sources))
        return [
            {
                "source": row["name"],
                "kind": row["kind"],
                "start": utc_text(row["start_at"]),
                "covered": [[utc_text(w.start), utc_text(w.end)] for w in windows_from(row["covered"])],
                "cursor": row["cursor"],
                "origin": row["origin"],
                "account": row["account"],
            }
            for row in rows
        ]

    async def whole(self, source: str, stores: Sequence[str]) -> list[str]:
        """Those of these stores that every medium of the source is meant for."""
        async with self._connection() as c:
            return [row[0] for row in await c.fetch(WHOLE, source, list(stores))]

    @repeated
    async def aim(self, source: str, stores: Sequence[str]) -> None:
        """The source's stores are these from now on, also for what was listed before and is not archived yet."""
        async with self._connection() as c:
            await c.execute(AIM, self.clock.now(), source, list(stores))

    async def untell(self, source: str) -> None:
        """The stores are to be told the source's ledger again."""
        async with self._connection() as c:
            await c.execute(UNTELL, source)

    async def told_ledger(self, ledger: Document) -> None:
        """The stores hold that ledger now."""
        async with self._connection() as c:
            await c.execute(TOLD, ledger["source"], multirange(ledger["covered"]), ledger["cursor"])

    async def untold_verified(self, sources: Sequence[str], limit: int) -> list[tuple[str, str, str, datetime]]:
        """Verified copies that the stores were not told of yet: (source, store, key, verified at), in that order."""
        async with self._connection() as c:
            return [(r[0], r[1], r[2], r[3]) for r in await c.fetch(UNTOLD_VERIFIED, list(sources), limit)]

    @repeated
    async def told_verified(self, copies: Sequence[tuple[str, str, str, datetime]]) -> None:
        """The stores hold these now."""
        async with self._connection() as c:
            await c.execute(TOLD_VERIFIED, [k[1] for k in copies], [k[2] for k in copies], [k[3] for k in copies])


async def mark_described(c: Any, revisions: Mapping[tuple[str, str], int], *, step: int) -> int:
    """Manifests hold these revisions (-1: none).

    Of how many that is still the newest. ``step``: added to what the catalog has.
    """
    keys = sorted(revisions)
    await c.execute(CERTIFY_AGAIN, [k[0] for k in keys], [k[1] for k in keys])
    rows = await c.fetch(
        DESCRIBED, [k[0] for k in keys], [k[1] for k in keys], [revisions[k] for k in keys], [step] * len(keys)
    )
    return sum(row[0] for row in rows)
