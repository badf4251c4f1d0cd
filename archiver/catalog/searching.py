"""What calls are found by: tables that are filled behind discovery, and how a search uses them.

Triggers (sql/0010_search.sql) note each recording that is new or has changed, in the transaction that wrote it.
:meth:`Searching.index` works that off, and what was there before, from the newest to the oldest. A search asks these
tables which calls come into question, and ``recordings`` whether each does: they make it fast and never decide.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..errors import CatalogDown
from .database import Database, repeated
from .found import Asked, Key, name_of_number
from .query import Limits, Query, agents_of

#: Recordings of a batch: a second of work, about.
BATCH = 1000
#: As many as a search itself may take in, where nobody else does.
CAUGHT_UP = 500

MINE = """SELECT pg_try_advisory_xact_lock(hashtextextended('search', 8410))"""

#: Waits for locks less long than PostgreSQL does before it ends one who waits in a deadlock: it may be another.
#: And few rows are looked up one by one, however many the planner takes them for: else it reads whole tables for them.
CAREFUL = """
SET LOCAL lock_timeout = '500ms'; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off"""

PENDING_CALLS = """SELECT id, source, ids FROM search_pending ORDER BY id LIMIT $1"""

DONE_CALLS = """DELETE FROM search_pending WHERE id = ANY($1)"""

#: The lock keeps who deletes one waiting until its words are in the index, and so are deleted with it.
TOLD_CALLS = """
SELECT r.source, r.recording_id, r.caller, r.callee, r.agent, r.queue, r.parties
FROM (SELECT * FROM unnest($1::text[], $2::text[]) AS t (source, recording_id) ORDER BY 1, 2) AS k
CROSS JOIN LATERAL (
    SELECT source, recording_id, caller, callee, agent, queue, parties FROM recordings
    WHERE (source, recording_id) = (k.source, k.recording_id) OFFSET 0 FOR KEY SHARE) r
ORDER BY r.source, r.recording_id"""

BACKLOG = """SELECT before FROM search_backlog"""

#: All that began at the last one's moment, too.
BACKLOG_CALLS = """
SELECT source, recording_id, started_at FROM recordings
WHERE started_at < $1 ORDER BY started_at DESC FETCH FIRST $2 ROWS WITH TIES"""

LESS_BACKLOG = """UPDATE search_backlog SET before = $1"""

NO_BACKLOG = """DELETE FROM search_backlog"""

ADD_NAMES = """
INSERT INTO search_names (kind, value)
SELECT DISTINCT t.kind, CASE WHEN t.kind IN ('agent', 'queue') THEN lower(t.value) ELSE t.value END
FROM unnest($1::text[], $2::text[]) AS t (kind, value)
EXCEPT SELECT n.kind, n.value FROM unnest($1::text[], $2::text[]) AS t (kind, value)
JOIN search_names n ON n.kind = t.kind
    AND n.value = CASE WHEN t.kind IN ('agent', 'queue') THEN lower(t.value) ELSE t.value END"""

NAMES = """
SELECT t.kind, t.value, n.name FROM unnest($1::text[], $2::text[]) AS t (kind, value)
JOIN search_names n ON n.kind = t.kind
    AND n.value = CASE WHEN t.kind IN ('agent', 'queue') THEN lower(t.value) ELSE t.value END"""

NO_POSTINGS = """
WITH known AS (
    SELECT c.call, c.started_at, c.names FROM unnest($1::text[], $2::text[]) AS k (source, recording_id)
    JOIN search_calls c USING (source, recording_id)),
names AS (SELECT k.call, k.started_at, n.name FROM known k CROSS JOIN LATERAL unnest(k.names) AS n (name)),
orphans AS (INSERT INTO search_orphans SELECT DISTINCT name FROM names)
DELETE FROM search_postings p USING names n
WHERE p.name = n.name AND p.started_at = n.started_at AND p.call = n.call"""

ADD_CALLS = """
INSERT INTO search_calls AS c (source, recording_id, started_at, names, words)
SELECT r.source, r.recording_id, r.started_at, t.names::integer[], search_words_of(r)
FROM unnest($1::text[], $2::text[], $3::text[]) AS t (source, recording_id, names)
JOIN recordings r USING (source, recording_id)
ON CONFLICT (source, recording_id) DO UPDATE SET
    started_at = excluded.started_at, names = excluded.names, words = excluded.words"""

ADD_POSTINGS = """
INSERT INTO search_postings (name, started_at, call)
SELECT n.name, c.started_at, c.call FROM unnest($1::text[], $2::text[]) AS k (source, recording_id)
JOIN search_calls c USING (source, recording_id) CROSS JOIN LATERAL unnest(c.names) AS n (name)
ON CONFLICT DO NOTHING"""

NO_ORPHANS = """
WITH freed AS (DELETE FROM search_orphans RETURNING name)
DELETE FROM search_names n WHERE n.name IN (SELECT name FROM freed)
    AND NOT EXISTS (SELECT FROM search_postings p WHERE p.name = n.name)"""

WAITING_CALLS = """
SELECT EXISTS (SELECT FROM search_pending) OR EXISTS (SELECT FROM search_backlog)
        OR EXISTS (SELECT FROM search_orphans),
    coalesce((SELECT at > clock_timestamp() - interval '5 s' FROM search_pending ORDER BY id DESC LIMIT 1), false)"""

BEHIND = """
SELECT (SELECT greatest(0, extract(epoch FROM clock_timestamp() - at))::float FROM search_pending ORDER BY id LIMIT 1),
    (SELECT least(before, clock_timestamp()) FROM search_backlog)"""


@dataclass(frozen=True, slots=True)
class Behind:
    """How far the search is behind what is archived."""

    #: Since when something waits that is new or has changed; None: nothing does.
    seconds: float | None = None
    #: What began before this moment, and was archived by an older version, is not found yet; None: all is.
    before: datetime | None = None

    @property
    def complete(self) -> bool:
        return self.seconds is None and self.before is None


def names_of(call: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Kinds and values of all names that a recording's row is found by. Values are texts of at most 500 characters."""
    parties = [party for party in call["parties"] if isinstance(party, dict)]
    numbers = [call["caller"], call["callee"], *(party.get("number") for party in parties)]
    names = {name_of_number(number[:500]) for number in numbers if isinstance(number, str) and number}
    names |= {("agent", agent[:500]) for agent in (call["agent"], *agents_of(parties)) if agent}
    return names | ({("queue", call["queue"][:500])} if call["queue"] else set())


class Searching(Database):
    """The tables of the search, filled and asked."""

    # -- filling -----------------------------------------------------------------------------------------------------

    @repeated
    async def index(self, limit: int = BATCH) -> int | None:
        """Take in some recordings that are new or have changed, or else some that were there before.

        How many; 0: all is done. None: another process is at it. Raises CatalogBusy where who holds a recording does
        not let go of it soon.
        """
        async with self._transaction() as c:
            return await self._index(c, limit)

    async def _index(self, c: Any, limit: int, *, backlog: bool = True) -> int | None:
        if not await c.fetchval(MINE):
            return None
        await c.execute(CAREFUL)
        keys, done = list[tuple[str, str]](), list[int]()
        for row in await c.fetch(PENDING_CALLS, limit):
            if keys and len(keys) + len(row["ids"]) > limit:
                break
            keys += [(row["source"], id_) for id_ in row["ids"]]
            done.append(row["id"])
        if keys:
            await self._take_in(c, keys)
            await c.execute(DONE_CALLS, done)
        elif backlog and (before := await c.fetchval(BACKLOG)) is not None:
            rows = await c.fetch(BACKLOG_CALLS, before, limit)
            keys = [(row[0], row[1]) for row in rows]
            await self._take_in(c, keys)
            await (c.execute(LESS_BACKLOG, rows[-1][2]) if rows else c.execute(NO_BACKLOG))
        await c.execute(NO_ORPHANS)
        return len(keys)

    async def _take_in(self, c: Any, keys: Sequence[tuple[str, str]]) -> None:
        calls = await c.fetch(TOLD_CALLS, *_columns(dict.fromkeys(keys)))
        names = {(row["source"], row["recording_id"]): names_of(row) for row in calls}
        told = sorted({name for some in names.values() for name in some})
        await c.execute(ADD_NAMES, *_columns(told))
        known = {(row[0], row[1]): row[2] for row in await c.fetch(NAMES, *_columns(told))}
        columns = _columns(names)
        await c.execute(NO_POSTINGS, *columns)
        arrays = [
            "{" + ",".join(str(n) for n in sorted({known[name] for name in some})) + "}" for some in names.values()
        ]
        await c.execute(ADD_CALLS, *columns, arrays)
        await c.execute(ADD_POSTINGS, *columns)

    async def waiting(self) -> tuple[bool, bool]:
        """Is there anything to take in? Has some of it come within the last seconds: are calls being listed?"""
        async with self._connection() as c:
            row = await c.fetchrow(WAITING_CALLS)
        return row[0], row[1]

    async def behind(self) -> Behind:
        """How far the search is behind."""
        async with self._connection() as c:
            return Behind(*await c.fetchrow(BEHIND))

    async def caught_up(self) -> Behind:
        """As :meth:`behind`, after the little that may wait was taken in, where nobody else does that."""
        found = await self.behind()
        if found.seconds is None:
            return found
        # A standby takes nothing in, nor a role that may only read; and who waits for others does so elsewhere.
        with contextlib.suppress(CatalogDown):
            async with self._writing() as c:
                await self._index(c, CAUGHT_UP, backlog=False)
        return await self.behind()

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[Any]:
        async with self._transaction() as c:
            await c.execute("SET TRANSACTION READ WRITE")
            yield c

    # -- asking ------------------------------------------------------------------------------------------------------

    async def _found(
        self, c: Any, query: Query, limits: Limits, limit: int, after: Key | None, behind: Behind, *, all_: bool = False
    ) -> list[Key]:
        """So many of the calls in scope that fit, in order, behind that place.

        ``all_``: those, too, that the search does not find yet, however long it takes.
        """
        asked = Asked(query, limits, after)
        if behind.complete or (asked.narrow and not all_):
            return await asked.fast(c, limit)
        return await asked.slow(c, limit)


def _columns(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    pairs = list(rows)
    return [[row[0] for row in pairs], [row[1] for row in pairs]]
