"""A rebuild tried out in a schema of its own, beside the live catalog."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Generic, Self, TypeVar
from uuid import uuid4

from ..proof import manifests
from .database import Database
from .locks import Locks
from .schema import Schema

#: The catalog as its caller knows it.
C = TypeVar("C", bound=Database)

#: {schema} is a name of ours. What is not described, or not finished, no store could tell.
DRILLED = """
CREATE TABLE {schema}.drilled AS SELECT source, recording_id, revision FROM recordings r
WHERE NOT undescribed
    AND NOT EXISTS (SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id
                    AND (m.state = 'pending' OR NOT $1 = ANY(m.stores)))
    AND EXISTS (SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id)"""

#: What a drill leaves out, and why.
DRILL_LEFT = """
SELECT why, count(*) FROM (
    SELECT CASE WHEN NOT EXISTS (SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id)
            THEN 'without media'
        WHEN EXISTS (SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id
                     AND m.state = 'pending') THEN 'not archived yet'
        WHEN EXISTS (SELECT FROM media m WHERE m.source = r.source AND m.recording_id = r.recording_id
                     AND NOT $1 = ANY(m.stores)) THEN 'not meant for this store'
        WHEN undescribed THEN 'not described yet' END AS why
    FROM recordings r) AS one
WHERE why IS NOT NULL GROUP BY why ORDER BY why"""

DRILL_KEYS = """
SELECT d.source, d.recording_id, r.revision = d.revision AND NOT r.undescribed AS same
FROM {schema}.drilled d JOIN recordings r USING (source, recording_id)
WHERE (d.source, d.recording_id) > ($1, $2) ORDER BY d.source, d.recording_id LIMIT $3"""

DRILL_WANTED = """
SELECT source, recording_id FROM drilled
WHERE (source, recording_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))"""

DRILL_UNKNOWN = """
SELECT source, recording_id FROM {schema}.recordings s
WHERE NOT EXISTS (SELECT FROM recordings r WHERE r.source = s.source AND r.recording_id = s.recording_id)
ORDER BY source, recording_id LIMIT $1"""


class Drill(Generic[C]):
    """A rebuild tried out in a schema of its own, to be compared with the live catalog."""

    def __init__(self, live: C, scratch: C, schema: str, left_out: Mapping[str, int], *, sampled: bool) -> None:
        self.live = live
        self.scratch = scratch
        self.sampled = sampled
        #: How many recordings no store could tell, by reason.
        self.left_out = dict(left_out)
        self._schema = schema

    async def wanted(self, told: Sequence[manifests.Recording]) -> Sequence[manifests.Recording]:
        """Those that the sample holds."""
        if not self.sampled:
            return told
        async with self.scratch._connection() as c:
            columns = [r.source for r in told], [r.recording_id for r in told]
            wanted = {(row[0], row[1]) for row in await c.fetch(DRILL_WANTED, *columns)}
        return [r for r in told if (r.source, r.recording_id) in wanted]

    async def keys(self, after: tuple[str, str], limit: int) -> list[tuple[str, str, bool]]:
        """What must be there again, from a place on; False where it changed meanwhile."""
        async with self.live._connection() as c:
            rows = await c.fetch(DRILL_KEYS.format(schema=self._schema), *after, limit)
        return [(row[0], row[1], row[2]) for row in rows]

    async def unknown(self, limit: int) -> list[tuple[str, str]]:
        """Recordings that the store tells of and the live catalog does not know."""
        async with self.live._connection() as c:
            return [(row[0], row[1]) for row in await c.fetch(DRILL_UNKNOWN.format(schema=self._schema), limit)]


class Drills(Locks, Schema):
    """A scratch catalog, gone afterwards."""

    @asynccontextmanager
    async def drill(self, store: str, sample: int | None) -> AsyncIterator[Drill[Self] | None]:
        """A scratch catalog beside this one, and which of its recordings a rebuild from a store must give again.

        ``sample``: so many of them, by chance; None: all. It is gone afterwards. None where another drill runs.
        """
        async with self.only_one("drill") as mine:
            if not mine:
                yield None
                return
            schema = f"archiver_drill_{uuid4().hex[:12]}"
            chance = f" ORDER BY random() LIMIT {int(sample)}" if sample is not None else ""
            async with self._transaction() as c:
                # A killed one's remains.
                for row in await c.fetch("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'archiver\\_drill\\_%'"):
                    await c.execute(f"DROP SCHEMA {row[0]} CASCADE")
                await c.execute(f"CREATE SCHEMA {schema}")
                await c.execute(DRILLED.format(schema=schema) + chance, store, timeout=3600)
                left_out = {row[0]: row[1] for row in await c.fetch(DRILL_LEFT, store, timeout=3600)}
                await c.execute(f"CREATE UNIQUE INDEX ON {schema}.drilled (source, recording_id)", timeout=3600)
            scratch = await type(self).open(self._url, clock=self.clock, size=2, schema=schema)
            try:
                await scratch.migrate()
                yield Drill(self, scratch, schema, left_out, sampled=sample is not None)
            finally:
                await scratch.close()
                async with self._connection() as c:
                    await c.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE", timeout=600)
