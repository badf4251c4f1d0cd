"""To whom belongs what is known: a recorder that was replaced or renamed, a store that was renamed or moved."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import cast

from ..model import Recording, holdable
from .database import repeated
from .history import remember
from .ledger import Ledgers
from .sql_parts import PENDING
from .to_rows import by_column
from .watching import Watching

#: The reason of what was not archived when its recorder was replaced.
REPLACED_WHY = "its recorder was replaced before it was archived"

#: Does anything lie in a store that is none of these?
ELSEWHERE = """SELECT EXISTS (SELECT FROM totals WHERE store <> '' AND count > 0 AND NOT store = ANY($1))"""

#: Archived media of which no copy lies in these stores, by the stores in which copies lie.
STRANDED = """
WITH s AS (SELECT held, count(*) AS n FROM media WHERE state = 'archived' AND NOT held && $1::text[] GROUP BY held)
SELECT coalesce((SELECT sum(n) FROM s), 0)::bigint AS count,
    array(SELECT DISTINCT unnest(held) FROM s) AS stores"""

KEPT_IN = """SELECT key, min(store) FROM copies WHERE store = ANY($1) AND key = ANY($2) GROUP BY key"""

#: Some copies of a store: its newest, and some by their names.
SOME_COPIES = """
(SELECT key, size FROM copies WHERE store = $1 AND bad IS NULL ORDER BY coalesce(read_at, archived_at) DESC LIMIT 5)
UNION (SELECT key, size FROM copies WHERE store = $1 AND bad IS NULL ORDER BY key LIMIT 5)
UNION (SELECT key, size FROM copies WHERE store = $1 AND bad IS NULL ORDER BY key DESC LIMIT 5)"""

#: Recordings that are no longer listed, and those of them that another one of the same moment stands for.
OTHER_IDS = """
SELECT count(*) AS missing, count(*) FILTER (WHERE EXISTS (
    SELECT FROM recordings n WHERE n.source = r.source AND n.started_at = r.started_at AND n.missing_since IS NULL
        AND n.recording_id <> r.recording_id AND n.first_listed_at > r.first_listed_at)) AS again
FROM recordings r WHERE source = $1 AND key_at >= $2 AND missing_since IS NOT NULL"""

RENAME_STORE = (
    # Put a second time under its new name, before anybody said that it is the same place: one copy, not two.
    "DELETE FROM copies c WHERE store = $1 AND EXISTS (SELECT FROM copies n WHERE n.store = $2 AND n.key = c.key)",
    """UPDATE recordings r SET undescribed = true, revision = revision + 1
WHERE EXISTS (SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id
              AND ($1 = ANY(m.stores) OR $1 = ANY(m.held)) AND $1 <> $2)""",
    "UPDATE copies SET store = $2 WHERE store = $1",
    """UPDATE media SET stores = array(SELECT DISTINCT unnest(array_replace(stores, $1, $2))),
    held = array(SELECT DISTINCT unnest(array_replace(held, $1, $2))) WHERE $1 = ANY(stores) OR $1 = ANY(held)""",
    """INSERT INTO verifications AS v SELECT $2, day, read, bytes, seconds, bad, repaired, error FROM verifications
WHERE store = $1 ON CONFLICT (store, day) DO UPDATE SET read = v.read + excluded.read, bytes = v.bytes + excluded.bytes,
    seconds = v.seconds + excluded.seconds, bad = v.bad + excluded.bad, repaired = v.repaired + excluded.repaired""",
    "DELETE FROM verifications WHERE store = $1 AND store <> $2",
    "DELETE FROM totals WHERE store IN ($1, $2)",
    """INSERT INTO totals SELECT source, store, count(*), sum(size) FROM copies WHERE store = $2 AND store <> $1
GROUP BY source, store""",
    "INSERT INTO stores SELECT $2, marker FROM stores WHERE name = $1 ON CONFLICT (name) DO NOTHING",
    "DELETE FROM stores WHERE name = $1 AND name <> $2",
    """UPDATE audit SET stores = array(SELECT DISTINCT unnest(array_replace(stores, $1, $2)))
WHERE $1 = ANY(stores)""",
    "UPDATE audit_stores SET store = $2 WHERE store = $1 AND NOT EXISTS (SELECT FROM audit_stores WHERE store = $2)",
    "UPDATE sources SET told = NULL WHERE $1::text <> $2::text",
)

RENAME_SOURCE = (
    "DELETE FROM sources WHERE name = $2 AND name <> $1",
    """INSERT INTO sources (name, kind, start_at, covered, cursor, polled_at, retention, origin, account)
SELECT $2, kind, start_at, covered, cursor, polled_at, retention, origin, account FROM sources WHERE name = $1""",
    *(
        f"UPDATE {table} SET source = $2 WHERE source = $1"
        for table in ("listings", "rejected", "lookups", "search_pending")
    ),
    "DELETE FROM claims WHERE source IN ($1, $2)",
    "DELETE FROM shares WHERE source IN ($1, $2)",
    "DELETE FROM totals WHERE source = $2 AND source <> $1",
    *(f"UPDATE {table} SET source = $2 WHERE source = $1" for table in ("media", "copies", "history", "totals")),
    "UPDATE outbox SET source = $2 WHERE source = $1",
    # Who heard what. Lines in the stores stay as they were written; who reads them back knows of the renaming.
    "UPDATE audit SET source = $2 WHERE source = $1",
    "UPDATE outbox SET target = $2 WHERE target = $1",
    """UPDATE recordings SET source = $2, undescribed = true, revision = revision + 1 WHERE source = $1""",
    "DELETE FROM sources WHERE name = $1 AND name <> $2",
)

BIND = """
UPDATE sources SET kind = $2, origin = $3, account = $4, told = NULL, poll_error = NULL WHERE name = $1"""

#: Another recorder stands behind the name: nothing of it was listed.
REPLACED = (
    """UPDATE sources SET covered = '{}', cursor = NULL, told = NULL, polled_at = NULL, poll_error = NULL,
    paused_until = NULL, paused_why = NULL WHERE name = $1""",
    "DELETE FROM listings WHERE source = $1",
    "DELETE FROM lookups WHERE source = $1",
    "DELETE FROM claims WHERE source = $1",
    """UPDATE recordings SET former = true, by_window = false, missing_since = NULL WHERE source = $1""",
)

#: What of the old one was not archived, and can't be any more.
LOST_WITH_IT = f"""
WITH lost AS (
    UPDATE media SET state = 'gone', error = $2
    WHERE source = $1 AND ({PENDING} OR state = 'failed') RETURNING source, recording_id, media_id),
told AS (
    -- Listed again, from whomever, it is news.
    UPDATE recordings r SET digest = '', undescribed = true, revision = revision + 1
    FROM (SELECT DISTINCT source, recording_id FROM lost) AS l
    WHERE (r.source, r.recording_id) = (l.source, l.recording_id))
SELECT source, recording_id, media_id FROM lost"""

HAS_FORMER = """SELECT EXISTS (SELECT FROM recordings WHERE source = $1 AND former)"""

#: Of an earlier recorder, with the ids that are told now; is it the same call (of a recorder that was moved)?
FORMER = """
SELECT r.recording_id,
    (r.started_at, r.caller, r.callee) IS NOT DISTINCT FROM (t.started_at, t.caller, t.callee) AS same
FROM unnest($2::text[], $3::timestamptz[], $4::text[], $5::text[]) AS t (recording_id, started_at, caller, callee)
JOIN recordings r ON r.source = $1 AND r.recording_id = t.recording_id WHERE r.former ORDER BY 1"""

SET_RECORDING_ASIDE = (
    """UPDATE recordings SET recording_id = $3, undescribed = true, revision = revision + 1
WHERE source = $1 AND recording_id = $2""",
    *(
        f"UPDATE {table} SET recording_id = $3 WHERE source = $1 AND recording_id = $2"
        for table in ("media", "copies", "history", "outbox", "audit")
    ),
)

#: What could not be had from the old recorder can be had from the new one.
STILL_THERE = (
    """UPDATE recordings SET former = false
WHERE source = $1 AND recording_id = ANY($2) AND first_listed_at <= $3""",
    f"""UPDATE media SET state = 'pending', error = NULL, due_at = $3
WHERE source = $1 AND recording_id = ANY($2) AND state = 'gone' AND error = '{REPLACED_WHY}'""",
)

MARKER = """SELECT marker FROM stores WHERE name = $1"""
MARK = """INSERT INTO stores (name, marker) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET marker = excluded.marker"""
HOLDS = """SELECT EXISTS (SELECT FROM copies WHERE store = $1)"""


class Identity(Ledgers, Watching):
    """Bindings of sources and stores."""

    async def stranded(self, stores: Sequence[str]) -> tuple[int, list[str]]:
        """Of how many archived media no copy lies in these stores, and in which other ones they lie."""
        async with self._connection() as c:
            # `status` stays quick: all media are looked at only where something lies elsewhere.
            if not await c.fetchval(ELSEWHERE, list(stores)):
                return 0, []
            row = await c.fetchrow(STRANDED, list(stores), timeout=600)
            return row["count"], sorted(filter(None, row["stores"]))

    async def kept_elsewhere(self, known: Collection[str], keys: Sequence[str]) -> dict[str, str]:
        """By key, where it is that of a copy in a store that is none of the known ones, the name of that store."""
        stores = sorted({store for _, store in await self.totals()} - {"", *known})
        if not stores:
            return {}
        async with self._connection() as c:
            return {row[0]: row[1] for row in await c.fetch(KEPT_IN, stores, [holdable(key) for key in keys])}

    async def some_copies(self, store: str) -> dict[str, int]:
        """By key the sizes of a few of the store's copies."""
        async with self._connection() as c:
            return {row[0]: row[1] for row in await c.fetch(SOME_COPIES, store)}

    async def other_ids(self, source: str, since: datetime) -> tuple[int, int]:
        """Recordings since then that are no longer listed, and how many of them came back with another id."""
        async with self._connection() as c:
            row = await c.fetchrow(OTHER_IDS, source, since)
            return row["missing"], row["again"]

    async def recordings_of(self, source: str) -> int:
        """How many recordings of a source are known."""
        async with self._connection() as c:
            return int(await c.fetchval("SELECT count(*) FROM recordings WHERE source = $1", source, timeout=600))

    @repeated
    async def rename_store(self, old: str, new: str) -> None:
        """What is held, or meant to be held, in one store is in the other; every recording of it is to be told anew."""
        async with self._transaction() as c:
            for statement in RENAME_STORE:
                await c.execute(statement, old, new, timeout=7200)

    @repeated
    async def rename_source(self, old: str, new: str) -> None:
        """All of a source is another's, of which no recording is known; every one of them is to be told anew."""
        async with self._transaction() as c:
            for statement in RENAME_SOURCE:
                await c.execute(statement, old, new, timeout=7200)

    @repeated
    async def bind(self, source: str, kind: str, origin: str, account: str | None) -> None:
        """What was listed of the source so far was listed from there."""
        async with self._connection() as c:
            await c.execute(BIND, source, kind, origin, account)

    async def adopt(self, source: str, kind: str, origin: str, account: str | None, *, start: datetime | None) -> None:
        """A source of which nothing is known yet is bound before its first poll."""
        default = self.clock.now() - timedelta(hours=24)
        await self.source(source, kind, default_start=default, start=start, origin=origin, account=account)

    @repeated
    async def replaced(self, source: str, kind: str, origin: str, account: str | None) -> int:
        """Another recorder is there: nothing of it is listed yet. How many media of the old one were never archived.

        They are gone, with REPLACED_WHY as reason; what is archived stays.
        """
        now = self.clock.now()
        async with self._transaction() as c:
            for statement in REPLACED:
                await c.execute(statement, source, timeout=3600)
            lost = await c.fetch(LOST_WITH_IT, source, REPLACED_WHY, timeout=3600)
            await remember(c, now, [(*row, "gone", REPLACED_WHY) for row in lost])
            await c.execute(BIND, source, kind, origin, account)
        return len(lost)

    @repeated
    async def set_former_aside(self, source: str, told: Sequence[Recording]) -> list[str]:
        """Recordings of an earlier recorder whose ids other calls have now get another id; which ones."""
        now = self.clock.now()
        async with self._transaction() as c:
            # A listing may be long, and few recorders were ever replaced.
            if not await c.fetchval(HAS_FORMER, source):
                return []
            rows = await c.fetch(
                FORMER, source, *by_column([(r.recording_id, r.started_at, r.caller, r.callee) for r in told], 4)
            )
            found = [row["recording_id"] for row in rows if not row["same"]]
            for recording_id in found:
                for statement in SET_RECORDING_ASIDE:
                    await c.execute(statement, source, recording_id, f"{recording_id}~{now:%Y%m%dT%H%M%S}")
            if same := [row["recording_id"] for row in rows if row["same"]]:
                for statement in STILL_THERE:
                    await c.execute(statement, source, same, now)
        return found

    async def marker(self, store: str) -> str | None:
        """The id of the folder that the store is."""
        async with self._connection() as c:
            return cast("str | None", await c.fetchval(MARKER, store))

    async def mark(self, store: str, marker: str) -> None:
        """The store is the folder with that id."""
        async with self._connection() as c:
            await c.execute(MARK, store, marker)

    async def holds(self, store: str) -> bool:
        """Is any copy known there?"""
        async with self._connection() as c:
            return bool(await c.fetchval(HOLDS, store))
