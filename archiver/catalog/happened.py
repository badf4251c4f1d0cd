"""What happened in a span of time, and what is known of one moment: for `report` and `why --at`. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

#: Each counts by source, or by store, what came about in [$1, $2).
LISTED = """
SELECT source, count(*) AS windows, sum(listed) AS listed FROM listings WHERE last_at >= $1 AND last_at < $2
GROUP BY source"""
FOUND = """
SELECT source, count(*) AS new FROM recordings WHERE first_listed_at >= $1 AND first_listed_at < $2 GROUP BY source"""
#: Healed: archived after it had failed or waited for a store.
ARCHIVED = """
SELECT m.source, count(*) AS archived, coalesce(sum(m.size), 0)::bigint AS bytes,
    count(*) FILTER (WHERE EXISTS (
        SELECT FROM history h WHERE (h.source, h.recording_id, h.media_id) = (m.source, m.recording_id, m.media_id)
            AND h.what <> ALL($3::text[]) AND h.first_at <= m.archived_at)) AS healed
FROM media m WHERE m.archived_at >= $1 AND m.archived_at < $2 GROUP BY m.source"""
#: Media that stand so at the end of the span's attempts.
ENDED = """
SELECT h.source, m.state, count(DISTINCT (h.recording_id, h.media_id)) AS count
FROM history h JOIN media m USING (source, recording_id, media_id)
WHERE h.last_at >= $1 AND h.last_at < $2 AND m.state IN ('failed', 'gone', 'empty') GROUP BY h.source, m.state"""
TROUBLED = """
SELECT h.source, h.what, count(DISTINCT (h.recording_id, h.media_id)) AS media, max(h.detail) AS example
FROM history h WHERE h.last_at >= $1 AND h.last_at < $2 AND h.media_id <> '' AND h.what <> ALL($3::text[])
GROUP BY h.source, h.what ORDER BY h.source, media DESC, h.what"""
UNREADABLE = """
SELECT source, count(*) AS rejected FROM rejected WHERE last_at >= $1 AND last_at < $2 GROUP BY source"""
COPIED = """
SELECT store, count(*) AS copies, coalesce(sum(size), 0)::bigint AS bytes FROM copies
WHERE archived_at >= $1 AND archived_at < $2 GROUP BY store"""
READ_BACK = """
SELECT store, count(*) AS verified FROM copies WHERE read_at >= $1 AND read_at < $2 GROUP BY store"""
REPAIRED = """
SELECT store, count(*) FILTER (WHERE last_at >= $1 AND last_at < $2) AS damaged,
    count(*) FILTER (WHERE repaired_at >= $1 AND repaired_at < $2) AS repaired
FROM findings WHERE (last_at >= $1 AND last_at < $2) OR (repaired_at >= $1 AND repaired_at < $2) GROUP BY store"""

#: What history tells of media that went as it should.
NO_TROUBLE = ("not ready", "changed", "listed again", "no longer listed", "asked for again", "gone", "empty")

AROUND = """
SELECT lower(span) AS "from", upper(span) AS "to", first_at, last_at, times, listed, rejected FROM listings
WHERE source = $1 AND span @> $2::timestamptz ORDER BY first_at"""
#: Calls that ran at $2, or began or ended within $3 of it. By their listing key: that is indexed.
CALLS = """
SELECT recording_id FROM recordings
WHERE source = $1 AND key_at BETWEEN $2::timestamptz - $4::interval AND $2::timestamptz + $4::interval
    AND started_at <= $2::timestamptz + $3::interval
    AND coalesce(ended_at, started_at + coalesce(duration, '0')) >= $2::timestamptz - $3::interval
ORDER BY abs(extract(epoch FROM started_at - $2::timestamptz)), recording_id LIMIT $5"""
ROWS = """
SELECT reason, first_at, last_at, times FROM rejected WHERE source = $1 AND (span @> $2::timestamptz OR span IS NULL)
ORDER BY last_at DESC LIMIT 20"""


async def happened(c: Any, start: datetime, end: datetime) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """By source, and by store, what came about in [start, end): counts, bytes, and what went wrong how often."""
    sources: dict[str, dict[str, Any]] = {}
    stores: dict[str, dict[str, Any]] = {}

    def put(into: dict[str, dict[str, Any]], row: Mapping[str, Any], of: str) -> None:
        into.setdefault(row[of], {}).update({k: int(v) for k, v in row.items() if k != of})

    for statement in (LISTED, FOUND, UNREADABLE):
        for row in await c.fetch(statement, start, end):
            put(sources, row, "source")
    for row in await c.fetch(ARCHIVED, start, end, [*NO_TROUBLE]):
        put(sources, row, "source")
    for row in await c.fetch(ENDED, start, end):
        sources.setdefault(row["source"], {})[row["state"]] = row["count"]
    for row in await c.fetch(TROUBLED, start, end, [*NO_TROUBLE]):
        trouble = {"what": row["what"], "media": row["media"], "example": row["example"] or None}
        sources.setdefault(row["source"], {}).setdefault("trouble", []).append(trouble)
    for statement in (COPIED, READ_BACK, REPAIRED):
        for row in await c.fetch(statement, start, end):
            put(stores, row, "store")
    return sources, stores


async def around(
    c: Any, source: str, at: datetime, near: timedelta, longest: timedelta, most: int
) -> tuple[list[dict[str, Any]], list[str], list[dict[str, Any]]]:
    """The windows that held a moment, the ids of calls near it (nearest first), and rows that could not be read.

    ``longest``: so far from the moment lies the listing key of a call that is near it, at the most.
    """
    windows = [dict(row) for row in await c.fetch(AROUND, source, at)]
    calls = [row["recording_id"] for row in await c.fetch(CALLS, source, at, near, longest, most)]
    return windows, calls, [dict(row) for row in await c.fetch(ROWS, source, at)]
