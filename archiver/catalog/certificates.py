"""Certificates: the log's entries as far as this catalog knows them, and what a day's certificate tells of."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime

from ..model import Window, holdable
from .database import Database, repeated
from .documents import Documents
from .from_rows import Document

LOG_STATE = """
SELECT c.size, c.note, c.adopt, c.run_at, c.error, (SELECT coalesce(max(position) + 1, 0) FROM certificates) AS entries
FROM (SELECT 1) AS one LEFT JOIN checkpoint c ON true"""

TAKE = """
INSERT INTO certificates (position, entry, source, day, revision, complete)
SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::text[], $4::date[], $5::int[], $6::bool[])"""

REPLACE = """
UPDATE certificates c SET replaced = true
FROM (SELECT source, day, max(revision) AS newest FROM certificates
      WHERE (source, day) IN (SELECT * FROM unnest($1::text[], $2::date[])) GROUP BY 1, 2) n
WHERE c.source = n.source AND c.day = n.day AND c.revision < n.newest AND NOT c.replaced"""

ADVANCE = """
INSERT INTO checkpoint (size, note) VALUES ($1, $2)
ON CONFLICT (one) DO UPDATE SET size = excluded.size, note = excluded.note, adopt = false"""

RAN = """
INSERT INTO checkpoint (run_at, error) VALUES ($1, $2)
ON CONFLICT (one) DO UPDATE SET run_at = coalesce(excluded.run_at, checkpoint.run_at), error = excluded.error"""

ADOPT = """INSERT INTO checkpoint (adopt) VALUES (true) ON CONFLICT (one) DO UPDATE SET adopt = true"""

ENTRIES = """SELECT entry FROM certificates WHERE position >= $1 AND position < $2 ORDER BY position"""

NEWEST_OF_SOURCE = """
SELECT entry FROM certificates WHERE source = $1 ORDER BY position DESC LIMIT 1"""

NEWEST_OF_DAY = """
SELECT entry, revision FROM certificates WHERE source = $1 AND day = $2 ORDER BY revision DESC LIMIT 1"""

#: Of the day that a recording's listing key is in, under the newest checkpoint.
FOR_RECORDING = """
SELECT c.position, c.entry FROM certificates c
JOIN recordings r ON c.source = r.source AND c.day = (r.key_at AT TIME ZONE 'UTC')::date
WHERE r.source = $1 AND r.recording_id = $2 AND c.position < (SELECT size FROM checkpoint)
ORDER BY c.revision DESC LIMIT 1"""

CERTIFIED = """SELECT min(day), max(day) FROM certificates WHERE source = $1"""

#: $3: also those that were not complete, or can't be any more: of what is pending, and what nobody could read.
AGAIN = """
SELECT day FROM certify_again WHERE source = $1 AND day <= $2
UNION
SELECT day FROM certificates WHERE source = $1 AND day <= $2 AND NOT complete AND NOT replaced AND $3
UNION
SELECT DISTINCT (r.key_at AT TIME ZONE 'UTC')::date FROM media m JOIN recordings r USING (source, recording_id)
WHERE m.source = $1 AND m.state = 'pending' AND $3
UNION
SELECT DISTINCT generate_series(
    (lower(span) AT TIME ZONE 'UTC')::date, (upper(span) AT TIME ZONE 'UTC')::date, '1 day')::date
FROM rejected WHERE source = $1 AND span IS NOT NULL AND $3"""

MARKS = """SELECT marks FROM certify_again WHERE source = $1 AND day = $2"""

#: Not those that came while it was looked at.
LOOKED_AT = """DELETE FROM certify_again WHERE source = $1 AND day = $2 AND marks = $3"""

#: First versions gave none; what is written again tells of it.
HANDLES = """
UPDATE recordings SET handle = DEFAULT, salt = DEFAULT, undescribed = true, revision = revision + 1
WHERE source = $1 AND key_at >= $2 AND key_at < $3 AND handle IS NULL"""

OF_DAY = """
SELECT source, recording_id FROM recordings WHERE source = $1 AND key_at >= $2 AND key_at < $3 ORDER BY handle"""

LISTINGS = """
SELECT coalesce(sum(times), 0)::bigint AS times, min(first_at) AS first_at, max(last_at) AS last_at,
    coalesce(sum(listed), 0)::bigint AS rows
FROM listings WHERE source = $1 AND span && tstzrange($2, $3)"""

UNREADABLE = """SELECT count(*) FROM rejected WHERE source = $1 AND span && tstzrange($2, $3)"""

FIRST_KEY = """SELECT min(key_at) FROM recordings WHERE source = $1"""

#: Of the newest certificate of each day.
STATUS = """
SELECT source, day, revision, complete, position, entry FROM certificates
WHERE source IS NOT NULL AND NOT replaced AND ($1::text[] IS NULL OR source = ANY($1))
    AND ($2::date IS NULL OR day >= $2) AND ($3::date IS NULL OR day <= $3)
ORDER BY source, day"""

LAST_DAYS = """
SELECT s.name, (SELECT max(day) FROM certificates c WHERE c.source = s.name) FROM unnest($1::text[]) AS s (name)"""

INCOMPLETE = """
SELECT source, count(*), min(day) FROM certificates
WHERE NOT complete AND NOT replaced AND source = ANY($1) GROUP BY source"""

#: So many recordings are read at once.
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class LogState:
    """What the catalog knows of the log."""

    #: Entries under the newest checkpoint, and its note; and all that are known: the rest waits for the next.
    size: int
    note: bytes | None
    entries: int
    adopt: bool
    run_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the log, and what of it is looked for. ``source``: None where it is no certificate."""

    entry: bytes
    source: str | None = None
    day: date | None = None
    revision: int | None = None
    complete: bool | None = None

    @classmethod
    def read(cls, entry: bytes) -> Entry:
        """An entry as a log tells of it."""
        told = json.loads(entry)
        if not str(told.get("type", "")).startswith("archiver/certificate/"):
            return cls(entry)
        day = date.fromisoformat(told["day"])
        return cls(entry, told["source"], day, told["revision"], told["complete"])


@dataclass(frozen=True, slots=True)
class Placed:
    """An entry and its place in the log."""

    position: int
    entry: bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """How a span was listed: times, first and last, rows of all answers, rows that nobody could read."""

    times: int
    first_at: datetime | None
    last_at: datetime | None
    rows: int
    unreadable: int


class Certificates(Documents, Database):
    """The log's copy, and the days to certify."""

    async def log_state(self) -> LogState:
        async with self._connection() as c:
            row = await c.fetchrow(LOG_STATE)
        return LogState(row["size"] or 0, row["note"], row["entries"], bool(row["adopt"]), row["run_at"], row["error"])

    @repeated
    async def take_entries(self, first: int, entries: Sequence[Entry]) -> None:
        """The log goes on with these, from that place on."""
        async with self._transaction() as c:
            places = range(first, first + len(entries))
            await c.execute(
                TAKE,
                [*places],
                [e.entry for e in entries],
                [e.source for e in entries],
                [e.day for e in entries],
                [e.revision for e in entries],
                [e.complete for e in entries],
            )
            days = [(e.source, e.day) for e in entries if e.source is not None]
            await c.execute(REPLACE, [source for source, _ in days], [day for _, day in days])

    async def forget_entries(self, first: int) -> None:
        """What is known of the log from that place on is another's."""
        async with self._transaction() as c:
            await c.execute("DELETE FROM certificates WHERE position >= $1", first)

    async def advance(self, size: int, note: bytes | None) -> None:
        """A store holds the log up to there, under this checkpoint."""
        async with self._connection() as c:
            await c.execute(ADVANCE, size, note)

    async def certified(self, at: datetime | None, error: str | None) -> None:
        """Certificates were issued, or why that failed. ``at``: None where not all days were looked at."""
        async with self._connection() as c:
            await c.execute(RAN, at, error)

    async def adopt_log(self) -> None:
        """This catalog was made again from a store: it takes the log as the stores hold it."""
        async with self._connection() as c:
            await c.execute(ADOPT)

    async def entries(self, first: int, last: int) -> list[bytes]:
        """The bytes of the log's entries [first, last)."""
        async with self._connection() as c:
            return [row[0] for row in await c.fetch(ENTRIES, first, last)]

    async def newest_certificate(self, source: str) -> bytes | None:
        """The source's last entry in the log, of whatever day."""
        async with self._connection() as c:
            found: bytes | None = await c.fetchval(NEWEST_OF_SOURCE, source)
        return found

    async def certificate_of(self, source: str, day: date) -> tuple[bytes, int] | None:
        """The newest of that day: its entry and revision."""
        async with self._connection() as c:
            row = await c.fetchrow(NEWEST_OF_DAY, source, day)
        return (row[0], row[1]) if row is not None else None

    async def certificate_for(self, source: str, recording_id: str) -> Placed | None:
        """The newest certificate, under the newest checkpoint, of the day that the recording belongs to."""
        async with self._connection() as c:
            row = await c.fetchrow(FOR_RECORDING, holdable(source), holdable(recording_id))
        return Placed(row["position"], row["entry"]) if row is not None else None

    async def certified_days(self, source: str) -> tuple[date, date] | None:
        """The first and the last day that has a certificate."""
        async with self._connection() as c:
            row = await c.fetchrow(CERTIFIED, source)
        return (row[0], row[1]) if row[0] is not None else None

    async def days_again(self, source: str, until: date, *, incomplete: bool) -> set[date]:
        """Days to be looked at again; ``incomplete``: also those that were not complete, or may be so no more."""
        async with self._connection() as c:
            return {row[0] for row in await c.fetch(AGAIN, source, until, incomplete)}

    async def marks(self, source: str, day: date) -> int:
        """How often something of a certified day has changed; to be asked before the day is looked at."""
        async with self._connection() as c:
            found: int | None = await c.fetchval(MARKS, source, day)
        return found or 0

    async def looked_at(self, source: str, day: date, marks: int) -> None:
        """So many changes of that day are certified, or are none."""
        async with self._connection() as c:
            await c.execute(LOOKED_AT, source, day, marks)

    async def first_key(self, source: str) -> datetime | None:
        """The listing key of the source's first recording."""
        async with self._connection() as c:
            found: datetime | None = await c.fetchval(FIRST_KEY, source)
        return found

    async def give_handles(self, source: str, span: Window) -> None:
        """Recordings that an earlier version took in have a handle from now on, and are described again with it."""
        async with self.describing, self._connection() as c:
            await c.execute(HANDLES, source, span.start, span.end)

    @asynccontextmanager
    async def of_day(self, source: str, span: Window) -> AsyncIterator[AsyncIterator[list[Document]]]:
        """The recordings' JSON whose listing key is in the span, ascending by handle, as of one moment; in pages."""
        async with self._connection() as c, c.transaction(isolation="repeatable_read", readonly=True):
            cursor = await c.cursor(OF_DAY, source, span.start, span.end)

            async def pages() -> AsyncIterator[list[Document]]:
                while rows := await cursor.fetch(_PAGE):
                    keys = [(row[0], row[1]) for row in rows]
                    found = await self._documents(c, keys)
                    yield [found[key][0] for key in keys]

            yield pages()

    async def heard(self, source: str, span: Window) -> Heard:
        """How often and when windows that reach into the span were listed."""
        async with self._connection() as c:
            row = await c.fetchrow(LISTINGS, source, span.start, span.end)
            unreadable = await c.fetchval(UNREADABLE, source, span.start, span.end)
        return Heard(row["times"], row["first_at"], row["last_at"], row["rows"], unreadable)

    async def certificates(
        self, sources: Sequence[str] | None, first: date | None = None, last: date | None = None
    ) -> list[Document]:
        """The newest certificate of each source and day: source, day, revision, complete, position, entry."""
        async with self._connection() as c:
            return [dict(row) for row in await c.fetch(STATUS, sources, first, last)]

    async def last_days(self, sources: Sequence[str]) -> dict[str, date | None]:
        """By source the last day that has a certificate."""
        async with self._connection() as c:
            return {row[0]: row[1] for row in await c.fetch(LAST_DAYS, list(sources))}

    async def incomplete_days(self, sources: Sequence[str]) -> dict[str, tuple[int, date]]:
        """By source how many days are certified as not complete, where any is, and the first of them."""
        async with self._connection() as c:
            return {row[0]: (row[1], row[2]) for row in await c.fetch(INCOMPLETE, list(sources))}
