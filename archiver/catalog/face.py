"""What the face asks of the database: calls within somebody's scope, who is logged in, who did what.

Calls are read in read-only transactions, everything within three seconds; the only tables written to are its own.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from ..errors import CatalogBusy
from ..model import holdable, holdable_tree, utc_text
from ..proof.layout import ulid
from .catalog import Catalog, Document, Query, without_salt
from .query import Limits

#: Of a statement, in milliseconds.
PATIENCE = 3000
#: Rows of a page.
PAGE = 50
TOO_LONG = "this search takes too long: name a shorter span, or another filter"

ADD_SESSION = """
INSERT INTO sessions (id, name, account, address, since, seen) VALUES ($1, $2, $3, $4, $5, $5)
"""
USE_SESSION = """
UPDATE sessions SET seen = $2 WHERE id = $1 AND seen > $3 AND since > $4
RETURNING name, account, address, since
"""
SESSIONS_OF = "SELECT id, address, since, seen FROM sessions WHERE name = $1 AND seen > $2 ORDER BY seen DESC"
END_SESSION = "DELETE FROM sessions WHERE id = $1 AND name = $2"
CLEAR_SESSIONS = "DELETE FROM sessions WHERE seen < $1"
ADD_AUDIT = """
INSERT INTO audit (id, at, who, role, means, address, action, source, recording_id, reason, case_number, outcome,
    details)
VALUES ($1, clock_timestamp(), $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
"""
_AUDIT = """
SELECT id, at, who, role, means, address, action, source, recording_id, reason, case_number, outcome, details
FROM audit a
WHERE ($1::text IS NULL OR who = $1) AND ($2::text IS NULL OR action = $2)
    AND ($3::timestamptz IS NULL OR at >= $3) AND ($4::timestamptz IS NULL OR at < $4)
    AND ($5::text IS NULL OR recording_id = $5) AND ($6::text IS NULL OR source = $6)
    AND ($7::timestamptz IS NULL OR (at, id) < ($7, $8))
"""

UNSHIPPED = """
SELECT id, at, who, role, means, address, action, source, recording_id, reason, case_number, outcome, details
FROM audit
WHERE due AND NOT $1::text = ANY(stores)
ORDER BY id
LIMIT $2
"""
SHIPPED = "UPDATE audit SET stores = stores || $1::text WHERE id = ANY($2::text[])"
EXPECTED = "SELECT coalesce(array_agg(store), '{}') FROM audit_stores"
EXPECT = (
    "UPDATE audit SET due = NOT due WHERE due = (stores @> $1::text[])",
    "DELETE FROM audit_stores WHERE NOT store = ANY($1::text[])",
    "INSERT INTO audit_stores (store) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING",
)
SETTLE = "UPDATE audit SET due = false WHERE due AND stores @> $1::text[]"
TAKE_AUDIT = """
INSERT INTO audit AS a (id, at, who, role, means, address, action, source, recording_id, reason, case_number, outcome,
    details, stores)
SELECT DISTINCT ON (e->>'id') e->>'id', (e->>'at')::timestamptz, e->>'who', e->>'role', e->>'means', e->>'address',
    e->>'action', e->>'source', e->>'recording_id', e->>'reason', e->>'case', e->>'outcome', e->'details',
    ARRAY[$2::text]
FROM jsonb_array_elements($1::jsonb) e
ON CONFLICT (id) DO UPDATE SET stores = a.stores || excluded.stores WHERE NOT a.stores @> excluded.stores
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that was done."""

    who: str
    role: str
    means: str
    address: str
    action: str
    source: str | None = None
    recording_id: str | None = None
    reason: str | None = None
    case: str | None = None
    outcome: str = "ok"
    details: Mapping[str, Any] = field(default_factory=dict)


class FaceCatalog(Catalog):
    """A catalog whose every statement ends within three seconds, and which writes to the face's tables alone."""

    async def _prepare(self, connection: Any) -> None:
        await super()._prepare(connection)
        await connection.execute(f"SET statement_timeout = {PATIENCE}; SET default_transaction_read_only = on")
        # What is looked for decides how: a plan for anything takes what is rare for what is frequent.
        await connection.execute("SET plan_cache_mode = force_custom_plan")

    # -- calls -------------------------------------------------------------------------------------------------------

    async def look(
        self, limits: Limits, query: Query, limit: int = PAGE, *, after: str | None = None
    ) -> tuple[list[Document], str | None]:
        """A page of calls in scope, and where the next one begins.

        Raises ValueError for a bad place, and where it takes longer than three seconds.
        """
        place: Any = _place(after, 3) if after is not None else None
        behind = await self.caught_up()
        try:
            async with asyncio.timeout(PATIENCE / 1000), self._connection() as c:
                keys = await self._found(c, query, limits, limit + 1, place, behind)
                found = await self._documents(c, [(key[1], key[2]) for key in keys[:limit]])
        except TimeoutError:
            raise ValueError(TOO_LONG) from None
        except CatalogBusy as busy:
            if type(busy.__cause__) is not asyncpg.QueryCanceledError:
                raise
            raise ValueError(TOO_LONG) from None
        shown = [without_salt(found[key[1:]][0]) for key in keys[:limit] if key[1:] in found]
        last = keys[limit - 1] if len(keys) > limit else None
        return shown, _as_place(utc_text(last[0]), last[1], last[2]) if last is not None else None

    async def call(self, limits: Limits, source: str, recording_id: str) -> tuple[Document, int] | None:
        """One call's JSON and revision; None where there is none, or where it is out of scope."""
        values: list[Any] = [holdable(source), holdable(recording_id)]
        where = ["r.source = $1", "r.recording_id = $2", *limits.conditions(values)]
        async with self._connection() as c:
            if await c.fetchval(f"SELECT true FROM recordings r WHERE {' AND '.join(where)}", *values) is None:
                return None
            found = await self._documents(c, [(source, recording_id)])
        told = found.get((values[0], values[1]))
        return (without_salt(told[0]), told[1]) if told is not None else None

    # -- log-ins -----------------------------------------------------------------------------------------------------

    async def log_in(self, id_: bytes, name: str, account: bytes, address: str, idle: timedelta) -> None:
        """A new session; those that nobody used any more go."""
        now = self.clock.now()
        async with self._writing() as c:
            await c.execute(CLEAR_SESSIONS, now - idle)
            await c.execute(ADD_SESSION, id_, name, account, address, now)

    async def session(self, id_: bytes, idle: timedelta, longest: timedelta) -> Mapping[str, Any] | None:
        """The session's name, account, address and beginning, now used again; None where it has ended."""
        now = self.clock.now()
        async with self._writing() as c:
            row: Mapping[str, Any] | None = await c.fetchrow(USE_SESSION, id_, now, now - idle, now - longest)
            return row

    async def sessions_of(self, name: str, idle: timedelta) -> Sequence[Mapping[str, Any]]:
        """Those that somebody has, the last used first."""
        async with self._connection() as c:
            rows: Sequence[Mapping[str, Any]] = await c.fetch(SESSIONS_OF, name, self.clock.now() - idle)
            return rows

    async def log_out(self, id_: bytes, name: str) -> None:
        """This session of theirs has ended."""
        async with self._writing() as c:
            await c.execute(END_SESSION, id_, name)

    # -- audit -------------------------------------------------------------------------------------------------------

    async def write_down(self, event: Event) -> None:
        """Written down for good when this returns."""
        async with self._writing() as c:
            await c.execute(ADD_AUDIT, *_row(self, event))

    async def audit(
        self,
        *,
        who: str | None = None,
        action: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        source: str | None = None,
        recording_id: str | None = None,
        seen_by: tuple[Limits, str] | None = None,
        after: str | None = None,
        limit: int = PAGE,
    ) -> tuple[list[Document], str | None]:
        """A page of events, newest first, and where the next one begins. Raises ValueError for a bad place.

        ``seen_by``: limits to events about calls in this scope, and those of this account itself.
        """
        place = _place(after, 2) if after is not None else (None, None)
        values = [*_filters(who, action, start, end, recording_id, source), *place]
        where = seen_by[0].of_events(values, seen_by[1]) if seen_by is not None else []
        async with self._connection() as c:
            rows = await c.fetch(_newest(where, limit + 1), *values)
        last = rows[limit - 1] if len(rows) > limit else None
        next_ = _as_place(utc_text(last["at"]), last["id"]) if last is not None else None
        return [_event_document(row) for row in rows[:limit]], next_


async def write_down(catalog: Catalog, *events: Event) -> None:
    """The same for a command, which has a catalog that may write: all of them or none."""
    async with catalog._transaction() as c:
        await c.executemany(ADD_AUDIT, [_row(catalog, event) for event in events])


async def all_events(
    catalog: Catalog,
    *,
    who: str | None = None,
    action: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    source: str | None = None,
    recording_id: str | None = None,
) -> AsyncIterator[Document]:
    """Every event that fits, newest first."""
    place: tuple[Any, Any] = (None, None)
    while True:
        async with catalog._connection() as c:
            rows = await c.fetch(_newest([], 500), *_filters(who, action, start, end, recording_id, source), *place)
        for row in rows:
            yield _event_document(row)
        if len(rows) < 500:
            return
        place = rows[-1]["at"], rows[-1]["id"]


async def expect(catalog: Catalog, stores: Sequence[str]) -> None:
    """Each of these stores is to hold every event: what one of them lacks is due."""
    async with catalog._transaction() as c:
        if set(await c.fetchval(EXPECTED)) == set(stores):
            await c.execute(SETTLE, list(stores))
            return
        for statement in EXPECT:
            await c.execute(statement, list(stores), timeout=7200)


async def unshipped(catalog: Catalog, store: str, limit: int) -> list[Document]:
    """Events that a store does not hold yet."""
    async with catalog._connection() as c:
        return [_event_document(row) for row in await c.fetch(UNSHIPPED, store, limit)]


async def shipped(catalog: Catalog, store: str, ids: Sequence[str]) -> None:
    """The store holds these events."""
    async with catalog._transaction() as c:
        await c.execute(SHIPPED, store, list(ids))


async def take(catalog: Catalog, store: str, events: Sequence[Document]) -> None:
    """Events that a store told; those that are here already stay as they are."""
    async with catalog._transaction() as c:
        await c.execute(TAKE_AUDIT, list(events), store)


def _row(catalog: Catalog, event: Event) -> list[Any]:
    texts = (event.source, event.recording_id, event.reason, event.case)
    return [
        ulid(catalog.clock.now()),
        *(holdable(text) for text in (event.who, event.role, event.means, event.address, event.action)),
        *(holdable(text) if text is not None else None for text in texts),
        event.outcome,
        holdable_tree(dict(event.details)),
    ]


def _newest(where: list[str], limit: int) -> str:
    return f"{_AUDIT}{''.join(f' AND {each}' for each in where)} ORDER BY at DESC, id DESC LIMIT {limit}"


def _filters(*given: Any) -> list[Any]:
    return [holdable(value) if isinstance(value, str) else value for value in given]


def _event_document(row: Mapping[str, Any]) -> Document:
    told = {**dict(row), "at": utc_text(row["at"])}
    told["case"] = told.pop("case_number")
    return told


def _as_place(*parts: str) -> str:
    """Where a page begins, as a text for an address."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def _place(text: str, count: int) -> tuple[Any, ...]:
    """Raises ValueError where it is none of ours."""
    try:
        at, *rest = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if len(rest) != count - 1 or not all(isinstance(part, str) for part in rest):
            raise ValueError
        return datetime.fromisoformat(at).astimezone(UTC), *map(holdable, rest)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise ValueError("the address of this page is damaged; search again") from None
