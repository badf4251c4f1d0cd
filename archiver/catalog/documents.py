"""Recordings as the JSON that commands, pages and manifests show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ..model import holdable
from .found import Key
from .from_rows import Document, copy_document, copy_from, medium_document, recording_document
from .query import Limits, Query
from .searching import Searching

RECORDINGS_OF = """
SELECT r.*, s.kind FROM unnest($1::text[], $2::text[]) AS k (source, recording_id)
CROSS JOIN LATERAL (
    SELECT * FROM recordings WHERE (source, recording_id) = (k.source, k.recording_id) OFFSET 0) r
JOIN sources s ON s.name = r.source"""

COPIES_OF_RECORDINGS = """
SELECT c.* FROM unnest($1::text[], $2::text[]) AS k (source, recording_id)
CROSS JOIN LATERAL (
    SELECT store, key, source, recording_id, media_id, size, sha256, archived_at, verified_at FROM copies
    WHERE (source, recording_id) = (k.source, k.recording_id) OFFSET 0) c
ORDER BY archived_at, store"""

MEDIA_OF = """
SELECT m.* FROM unnest($1::text[], $2::text[]) AS k (source, recording_id)
CROSS JOIN LATERAL (
    SELECT source, recording_id, media_id, state, content_type, told_type, size, sha256, duration, coding, flags, note,
        attempts, error, stores
    FROM media WHERE (source, recording_id) = (k.source, k.recording_id) OFFSET 0) m
ORDER BY source, recording_id, media_id"""


class Documents(Searching):
    """Recordings with their media and copies."""

    async def documents(
        self, keys: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], tuple[Document, int, list[str]]]:
        """By (source, recording_id) the recording's JSON, its revision, and the stores its media are meant for."""
        async with self._connection() as c:
            return await self._documents(c, keys)

    async def _documents(
        self, c: Any, keys: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], tuple[Document, int, list[str]]]:
        unique = dict.fromkeys((holdable(k[0]), holdable(k[1])) for k in keys)
        columns = [k[0] for k in unique], [k[1] for k in unique]
        # As of one moment: what is archived between two questions would be told without its copies.
        async with c.transaction(isolation="repeatable_read", readonly=True):
            recordings, of_copies, of_media = [
                await c.fetch(statement, *columns) for statement in (RECORDINGS_OF, COPIES_OF_RECORDINGS, MEDIA_OF)
            ]
        copies: dict[tuple[str, str, str], list[Document]] = defaultdict(list)
        for row in of_copies:
            copies[row["source"], row["recording_id"], row["media_id"]].append(copy_document(copy_from(row)))
        media: dict[tuple[str, str], list[Document]] = defaultdict(list)
        stores: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in of_media:
            key = row["source"], row["recording_id"]
            media[key].append(medium_document(row, copies[(*key, row["media_id"])]))
            stores[key].update(row["stores"])
        return {
            (r["source"], r["recording_id"]): (
                recording_document(r, media[r["source"], r["recording_id"]]),
                r["revision"],
                sorted(stores[r["source"], r["recording_id"]]),
            )
            for r in recordings
        }

    async def find(self, query: Query) -> AsyncIterator[Document]:
        """Recordings by start, oldest first or newest; streamed in batches, so that the archive may be large."""
        behind = await self.caught_up()
        left = query.limit
        after: Key | None = None
        while left is None or left > 0:
            size = min(500, left) if left is not None else 500
            async with self._connection() as c:
                rows = await self._found(c, query, Limits(), size, after, behind, all_=True)
                found = await self._documents(c, [(r[1], r[2]) for r in rows])
            for row in rows:
                if (row[1], row[2]) in found:
                    yield found[row[1], row[2]][0]
            if len(rows) < size:
                return
            after = rows[-1]
            left = left - len(rows) if left is not None else None
