"""How a search is answered: with which of its filters it begins, so that the time does not grow with the archive.

Each way asks ``recordings`` with all conditions in the end; they differ in which calls they look at. A planner left
alone goes by averages: it walks the whole archive for what occurs once, or collects millions for a page of fifty.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ..model import holdable
from .query import Limits, Query, has_words, like, where_of

#: A filter that more names or calls fit than these is not the one to begin with.
FEW = 1000
#: For words so many of the newest calls are looked at first: what is frequent is among them. What is found there at
#: all may be found in so many more; only what is rare is left for the index of words, which knows no order.
NEWEST, NEWER = 2_000, 50_000

SOURCES = """SELECT name FROM sources"""

NUMBERS_ENDING = """
SELECT name FROM search_names WHERE kind = 'number' AND value >= $1 AND value < $2 LIMIT $3"""

NAMES_LIKE = """
SELECT name FROM search_names
WHERE kind = $1 AND value LIKE ANY(ARRAY(SELECT lower(t) FROM unnest($2::text[]) AS t)) LIMIT $3"""

NAMES_ARE = """
SELECT name FROM search_names
WHERE kind = $1 AND value = ANY(ARRAY(SELECT lower(t) FROM unnest($2::text[]) AS t)) LIMIT $3"""

NAMES_OF_NUMBERS = """
SELECT n.name FROM unnest($1::text[], $2::text[]) AS t (kind, value)
JOIN search_names n ON n.kind = t.kind AND n.value = t.value LIMIT $3"""

COUNT_CALLS = """
SELECT count(*) FROM (
    SELECT FROM unnest($1::integer[]) AS n (name) CROSS JOIN LATERAL (
        SELECT FROM search_postings p WHERE p.name = n.name AND p.started_at >= $2 AND p.started_at <= $3 LIMIT $4) AS p
    LIMIT $4) AS few"""

_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

Key = tuple[datetime, str, str]
_KEY = "r.started_at, r.source, r.recording_id"
_CALL = """CROSS JOIN LATERAL (SELECT * FROM search_calls WHERE call = k.call OFFSET 0) s"""
_RECORDING = """
CROSS JOIN LATERAL (
    SELECT * FROM recordings WHERE (source, recording_id) = (s.source, s.recording_id) OFFSET 0) r"""


def name_of_number(number: str) -> tuple[str, str]:
    """Kind and value of a number's name: its digits from the last to the first; itself, where it has none."""
    digits = re.sub("[^0-9]", "", number)
    return ("number", digits[::-1]) if digits else ("party", number)


class Asked:
    """One page of a search."""

    def __init__(self, query: Query, limits: Limits, after: Key | None) -> None:
        self.query, self.limits, self.after = query, limits, after
        self._order, self._beyond = (" DESC", "<") if query.newest else ("", ">")
        self._by = f"ORDER BY r.started_at{self._order}, r.source{self._order}, r.recording_id{self._order}"
        #: Those that it is limited to; empty: all.
        self._sources = [query.source] if query.source is not None else list(limits.sources)
        self._sources = [holdable(name) for name in self._sources]
        self._words = has_words(query.text)
        start, end = query.start, query.end
        if after is not None and query.newest:
            end = min(end, after[0]) if end is not None else after[0]
        elif after is not None:
            start = max(start, after[0]) if start is not None else after[0]
        self._span: list[Any] = [start or _FIRST, end or _LAST]

    @property
    def narrow(self) -> bool:
        """Is anything asked for that recordings have no index for?"""
        query, limits = self.query, self.limits
        return any((query.number, query.agent, query.queue, self._words, limits.agents, limits.queues))

    @property
    def _otherwise(self) -> bool:
        """Is anything asked for that recordings or media have an index for, or that nearly all calls fit?"""
        q = self.query
        return any((q.caller, q.callee, q.state, q.flag, q.direction, q.longer_than, q.shorter_than, q.text))

    def _conditions(self, words: str) -> tuple[str, list[Any]]:
        where, values = where_of(self.query, words)
        where += self.limits.conditions(values)
        if self.after is not None:
            n = len(values)
            where.append(f"({_KEY}) {self._beyond} (${n + 1}, ${n + 2}, ${n + 3})")
            values += self.after
        return " AND ".join(where) or "true", values

    async def slow(self, c: Any, limit: int) -> list[Key]:
        """By the start of the calls alone."""
        where, values = self._conditions("search_words_of(r)")
        return await _keys(c, f"SELECT {_KEY} FROM recordings r WHERE {where} {self._by} LIMIT {limit}", values)

    async def fast(self, c: Any, limit: int) -> list[Key]:
        """By what is rarest of what is asked for."""
        names, count = await self._rarest(c)
        if not count:
            return []
        if names is not None and count <= FEW:
            return await self._of(c, names, limit)
        if self._words:
            found, more = await self._walk(c, names, limit, NEWEST)
            if found and more:
                found, more = await self._walk(c, names, limit, NEWER)
            return found if not more else await self._with_words(c, limit)
        if names is None and (self.narrow or self._otherwise or not self._sources):
            return await self.slow(c, limit)
        return (await self._walk(c, names, limit, None))[0]

    async def _rarest(self, c: Any) -> tuple[list[int] | None, int]:
        """The names that one of the filters stands for, and how many calls have one of them.

        None: none of the filters has few names. A count above FEW is not the true one.
        """
        best: list[int] | None = None
        least = FEW + 1
        for asked in await self._names(c):
            if len(asked) > FEW:
                continue
            count = await c.fetchval(COUNT_CALLS, asked, *self._span, FEW + 1) if asked else 0
            if best is None or count < least:
                best, least = asked, count
        return best, least

    async def _names(self, c: Any) -> list[list[int]]:
        """For each filter the names that it stands for; one more than FEW: too many."""
        query, limits, found = self.query, self.limits, []
        if query.number is not None:
            ending = query.number[::-1]
            # What sorts after all digits.
            found.append(await _names(c, NUMBERS_ENDING, ending, ending + ":"))
        for kind, asked in (("agent", query.agent), ("queue", query.queue)):
            if asked is not None:
                found.append(await _names(c, NAMES_LIKE, kind, [f"%{like(asked)}%"]))
        for kind, several in (("queue", limits.queues), ("agent", limits.agents)):
            if several:
                exact = [holdable(one) for one in several if "*" not in one]
                names = await _names(c, NAMES_ARE, kind, exact)
                if patterns := [like(one) for one in several if "*" in one]:
                    names += await _names(c, NAMES_LIKE, kind, patterns)
                if kind == "agent" and exact:
                    numbers = [name_of_number(one) for one in exact]
                    names += await _names(c, NAMES_OF_NUMBERS, [n[0] for n in numbers], [n[1] for n in numbers])
                found.append(names)
        return found

    async def _of(self, c: Any, names: Sequence[int], limit: int) -> list[Key]:
        """Among the few calls of these names."""
        where, values = self._conditions("s.words")
        n = len(values)
        statement = f"""
WITH k AS MATERIALIZED (
    SELECT DISTINCT p.call FROM unnest(${n + 1}::integer[]) AS n (name) CROSS JOIN LATERAL (
        SELECT call FROM search_postings p
        WHERE p.name = n.name AND p.started_at >= ${n + 2} AND p.started_at <= ${n + 3} OFFSET 0) AS p)
SELECT {_KEY} FROM k {_CALL} {_RECORDING} WHERE {where} {self._by} LIMIT {limit}"""
        return await _keys(c, statement, [*values, list(names), *self._span])

    async def _with_words(self, c: Any, limit: int) -> list[Key]:
        """Among the calls that have the words: few, for none of the newest has."""
        where, values = self._conditions("s.words")
        n = len(values)
        statement = f"""
WITH s AS MATERIALIZED (
    SELECT source, recording_id, started_at, words FROM search_calls s WHERE words @@ search_query(${n + 1}))
SELECT {_KEY} FROM s {_RECORDING}
WHERE s.started_at >= ${n + 2} AND s.started_at <= ${n + 3} AND {where} {self._by} LIMIT {limit}"""
        return await _keys(c, statement, [*values, holdable(self.query.text or ""), *self._span])

    async def _walk(self, c: Any, names: Sequence[int] | None, limit: int, most: int | None) -> tuple[list[Key], bool]:
        """In order of time through the calls of these names, else of the sources, else of all: ``most`` of them.

        Returns what was found, and whether there may be more that was not looked at.
        """
        where, values = self._conditions("s.words")
        order = self._order
        first_of, beyond = (">=", "'-infinity'") if self.query.newest else ("<=", "'infinity'")
        n = len(values)
        of, kind, table = "name", "integer", "search_postings"
        keys: Sequence[Any] = names or []
        if names is None:
            of, kind, table = "source", "text", "search_calls"
            keys = self._sources or [row[0] for row in await c.fetch(SOURCES)]
        found: list[Key] = []
        span, many, seen = list(self._span), most or limit + 10, 0
        # The end of the first rows that a few of each have: what lies beyond it is not among the first rows of all.
        each = 2 * many // max(1, len(keys)) + 2
        first = True
        while True:
            bound = ("<=" if first else "<"), (">=" if first else ">")
            low = f"p.started_at {'>=' if self.query.newest else bound[1]} ${n + 2}"
            high = f"p.started_at {bound[0] if self.query.newest else '<='} ${n + 3}"
            several = f"unnest(${n + 1}::{kind}[]) AS n ({of})"
            statement = f"""
WITH bound AS MATERIALIZED (
    SELECT p.started_at FROM {several} CROSS JOIN LATERAL (
        SELECT p.started_at FROM {table} p WHERE p.{of} = n.{of} AND {low} AND {high}
        ORDER BY p.started_at{order} LIMIT {each}) AS p
    ORDER BY p.started_at{order} OFFSET {many - 1} LIMIT 1),
all_ AS MATERIALIZED (
    SELECT p.started_at, p.call FROM {several} CROSS JOIN LATERAL (
        SELECT p.started_at, p.call FROM {table} p WHERE p.{of} = n.{of} AND {low} AND {high}
            AND p.started_at {first_of} coalesce((SELECT started_at FROM bound), {beyond})
        ORDER BY p.started_at{order} FETCH FIRST {many} ROWS WITH TIES) AS p),
edge AS MATERIALIZED (SELECT started_at FROM all_ ORDER BY started_at{order} OFFSET {many - 1} LIMIT 1),
k AS MATERIALIZED (
    SELECT DISTINCT call FROM all_ WHERE NOT EXISTS (SELECT FROM edge)
        OR started_at {first_of} (SELECT started_at FROM edge)),
found AS MATERIALIZED (SELECT {_KEY} FROM k {_CALL} {_RECORDING} WHERE {where} {self._by} LIMIT {limit - len(found)})
SELECT {_KEY}, e.started_at AS edge
FROM (SELECT 1) AS one LEFT JOIN edge e ON true LEFT JOIN found r ON true {self._by}"""
            rows = await c.fetch(statement, *values, keys, *span)
            found += [(row[0], row[1], row[2]) for row in rows if row[0] is not None]
            if rows[0]["edge"] is None or len(found) >= limit:
                return found, False
            span[1 if self.query.newest else 0] = rows[0]["edge"]
            seen, many, first = seen + many, min(many * 4, 20_000), False
            if most is not None and seen >= most:
                return found, True


async def _names(c: Any, statement: str, *values: Any) -> list[int]:
    return [row[0] for row in await c.fetch(statement, *values, FEW + 1)]


async def _keys(c: Any, statement: str, values: Sequence[Any]) -> list[Key]:
    return [(row[0], row[1], row[2]) for row in await c.fetch(statement, *values)]
