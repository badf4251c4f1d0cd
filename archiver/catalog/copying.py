"""Copies into a store that came later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from ..model import Copy
from .claims import copies_by_medium
from .database import Database, repeated
from .descriptions import mark_described
from .results import add_totals, insert_copies
from .sql_parts import UNCLAIMED, UNFINISHED

#: What is archived, and not in this store.
LACKING = """
SELECT m.source, m.recording_id, m.media_id, m.sha256, r.started_at
FROM media m JOIN recordings r USING (source, recording_id)
WHERE m.state = 'archived' AND NOT $1 = ANY(m.held) AND ($2::text IS NULL OR m.source = $2)
    AND ($3::timestamptz IS NULL OR r.started_at >= $3) AND ($4::timestamptz IS NULL OR r.started_at < $4)
    AND (m.source, m.recording_id, m.media_id) > ($5, $6, $7)
ORDER BY m.source, m.recording_id, m.media_id LIMIT $8"""

#: A store of the source (in $6) is from now on meant to hold it; another merely does.
HOLD = """
UPDATE media m SET held = array_append(m.held, $1),
    stores = CASE WHEN m.source = ANY($6) AND NOT $1 = ANY(m.stores) THEN array_append(m.stores, $1) ELSE m.stores END
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[]) AS t (source, recording_id, media_id, sha256)
WHERE (m.source, m.recording_id, m.media_id, m.sha256) = (t.source, t.recording_id, t.media_id, t.sha256)
    AND m.state = 'archived' AND NOT $1 = ANY(m.held)"""

#: What is not archived is to be described there too, and then the ledger.
WIDEN = f"""
WITH wider AS (
    UPDATE media SET stores = array_append(stores, $3)
    WHERE source = $2 AND {UNFINISHED} AND NOT $3 = ANY(stores) AND {UNCLAIMED} RETURNING recording_id),
heard AS (UPDATE sources SET told = NULL WHERE name = $2)
UPDATE recordings SET undescribed = true, revision = revision + 1
WHERE source = $2 AND recording_id IN (SELECT recording_id FROM wider)"""


class Copying(Database):
    """What a store lacks, and gets."""

    async def lacking(
        self,
        store: str,
        source: str | None,
        started: tuple[datetime | None, datetime | None],
        after: tuple[str, str, str],
        limit: int,
    ) -> list[tuple[tuple[str, str, str], str, datetime, list[Copy]]]:
        """Media that are archived, but not in this store, by id from ``after`` on: id, SHA-256, start, copies.

        ``started``: half-open; None: any.
        """
        async with self._connection() as c:
            rows = await c.fetch(LACKING, store, source, *started, *after, limit)
            copies = await copies_by_medium(c, rows) if rows else {}
        ids = [(r["source"], r["recording_id"], r["media_id"]) for r in rows]
        return [(i, r["sha256"], r["started_at"], copies.get(i, [])) for i, r in zip(ids, rows, strict=True)]

    @repeated
    async def copied(
        self,
        store: str,
        copies: Sequence[tuple[Copy, tuple[str, str, str]]],
        *,
        meant: Sequence[str],
        revisions: Mapping[tuple[str, str], int],
    ) -> None:
        """The store holds these copies, and a manifest there tells so; ``meant``: the sources whose store it is.

        ``revisions``: of the descriptions that every store holds now.
        """
        async with self._transaction() as c:
            added = await insert_copies(c, copies)
            columns = [[identity[n] for _, identity in copies] for n in range(3)]
            await c.execute(HOLD, store, *columns, [copy.sha256 for copy, _ in copies], list(meant))
            touched = sorted({identity[:2] for _, identity in copies})
            await mark_described(c, {t: revisions.get(t, -1) for t in touched}, step=1)
            await add_totals(c, added)

    @repeated
    async def widen(self, source: str, store: str) -> None:
        """All that the store lacks of the source now is what is not archived: that is described there too."""
        async with self._connection() as c:
            await c.execute(WIDEN, self.clock.now(), source, store)
