"""Which media are due, and which process has them in hand: a claim is a lease on one medium."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast

from ..model import Claim, Copy, Medium, State
from .database import Database, repeated
from .from_rows import claim_from, copy_from, medium_from
from .history import remember
from .sql_parts import OURS, UNCLAIMED
from .to_rows import by_column, claim_columns

#: A claim leaves the medium's row as it is and so costs no writing into its indexes, of which a big archive has many
#: pages. Who looked at what is due before another's claim was committed finds it when it would write its own.
_CLAIMED = """
claimed AS (
    INSERT INTO claims AS c (source, recording_id, media_id, generation, until, holder)
    SELECT source, recording_id, media_id, generation, $2, $3 FROM due
    ON CONFLICT (source, recording_id, media_id) DO UPDATE SET
        token = excluded.token, generation = excluded.generation, until = excluded.until, holder = excluded.holder
    WHERE c.until <= $1 OR c.generation <> excluded.generation
    RETURNING source, recording_id, media_id, token)"""
_CLAIMS = """
SELECT m.source, m.recording_id, m.media_id, claimed.token, m.attempts, m.failing_since, m.told_size, m.told_sha256,
    m.told_duration, m.told_type, m.opaque, m.urgent, m.ref, m.stores, m.held, m.sha256, m.error, m.troubled,
    m.seen_sha256, m.seen_at, r.started_at, r.ended_at
FROM due m JOIN claimed USING (source, recording_id, media_id) JOIN recordings r USING (source, recording_id)"""

CLAIM = f"""
WITH due AS (
    SELECT m.* FROM unnest($4::text[], $5::int[]) AS want (source, count)
    CROSS JOIN LATERAL (
        SELECT * FROM media
        WHERE media.source = want.source AND state = 'pending' AND NOT troubled AND due_at <= $1 AND {UNCLAIMED}
        ORDER BY due_at LIMIT want.count FOR UPDATE SKIP LOCKED) m),{_CLAIMED}{_CLAIMS}"""

#: What failed when it was last tried, or was not ready.
CLAIM_TROUBLED = CLAIM.replace("NOT troubled", "troubled")

#: From the other end of the queue.
CLAIM_NEWEST = CLAIM.replace("ORDER BY due_at", "ORDER BY due_at DESC")

#: Of sources that delete by age: what expires first.
CLAIM_EXPIRING = CLAIM.replace("due_at <= $1", "due_at <= $1 AND expires_at IS NOT NULL").replace(
    "ORDER BY due_at", "ORDER BY (NOT urgent), expires_at"
)

#: And these from the other end.
CLAIM_EXPIRING_NEWEST = CLAIM_EXPIRING.replace(
    "ORDER BY (NOT urgent), expires_at", "ORDER BY (NOT urgent) DESC, expires_at DESC"
)

#: Of each source's two queues the first.
_FIRST_DUE = " UNION ALL ".join(
    f"""
    SELECT m.* FROM unnest($2::text[]) AS s (name)
    CROSS JOIN LATERAL (
        SELECT source, due_at FROM media WHERE source = s.name AND state = 'pending' AND {which} AND {UNCLAIMED}
        ORDER BY due_at LIMIT 1) m"""
    for which in ("NOT troubled", "troubled")
)

DUE = f"""
SELECT source, min(due_at) AS due_at FROM ({_FIRST_DUE}
    UNION ALL
    SELECT source, until FROM claims WHERE source = ANY($2) AND until > $1 AND token <> ALL($3::bigint[])) AS due
GROUP BY source"""

LEASED = """SELECT max(until) FROM claims WHERE until > $1 AND source = ANY($2)"""

#: One medium that nobody has in hand, whatever became of it before.
CLAIM_ONE = f"""
WITH due AS (
    SELECT * FROM media WHERE (source, recording_id, media_id) = ($4, $5, $6) AND state <> 'archived' FOR UPDATE
),{_CLAIMED},
woken AS (
    UPDATE media m SET state = 'pending', due_at = $1 FROM claimed t
    WHERE (m.source, m.recording_id, m.media_id) = (t.source, t.recording_id, t.media_id) AND m.state <> 'pending'
){_CLAIMS}"""

MEDIUM = """
SELECT recording_id, media_id, told_size, told_sha256, told_duration, told_type, opaque, urgent, ref FROM media
WHERE source = $1 AND recording_id = $2 AND media_id = $3"""

RENEW = f"""UPDATE claims c SET until = $5{OURS.replace("USING", "FROM")}"""

RELEASE = f"""DELETE FROM claims c{OURS}"""

RETRY = """
UPDATE media SET state = 'pending', due_at = $3, error = 'asked for again', failing_since = NULL, attempts = 0,
    troubled = false, flags = '{}', note = NULL
WHERE state = $2 AND ($1::text IS NULL OR source = $1) RETURNING source, recording_id, media_id"""

FORGIVE = """
UPDATE media m SET state = 'pending', due_at = $5 FROM unnest($1::text[], $2::text[], $3::text[]) AS t(s, r, i)
WHERE (m.source, m.recording_id, m.media_id) = (t.s, t.r, t.i) AND m.state = 'failed' AND m.error LIKE $4"""

#: Each by its index, whatever PostgreSQL knows or guesses of the table (OFFSET 0 keeps it from choosing another way).
COPIES_OF = """
SELECT c.* FROM unnest($1::text[], $2::text[], $3::text[]) AS k (source, recording_id, media_id)
CROSS JOIN LATERAL (
    SELECT store, key, source, recording_id, media_id, size, sha256, archived_at, verified_at FROM copies
    WHERE (source, recording_id, media_id) = (k.source, k.recording_id, k.media_id) OFFSET 0) c
ORDER BY archived_at, store"""


class Claims(Database):
    """The queue of media."""

    async def due(self, sources: Sequence[str], in_hand: Collection[int] = ()) -> dict[str, datetime]:
        """By source, when its next medium is due (past or future) beside those claimed by the tokens ``in_hand``.

        A claim whose answer never came is not among these: its medium is due when the lease ends.
        """
        async with self._connection() as c:
            return {row[0]: row[1] for row in await c.fetch(DUE, self.clock.now(), list(sources), list(in_hand))}

    async def leased(self, sources: Sequence[str]) -> datetime | None:
        """Until when the last of what these sources' processes have in hand is theirs; None where that is nothing."""
        async with self._connection() as c:
            return cast("datetime | None", await c.fetchval(LEASED, self.clock.now(), list(sources)))

    @repeated
    async def claim(
        self,
        wanted: Mapping[str, int],
        lease: timedelta,
        expiring: Collection[str] = (),
        *,
        newest: Collection[str] = (),
        troubled: Mapping[str, tuple[int, int]] | None = None,
    ) -> list[Claim]:
        """Lease so many due media of each source to this process; of ``expiring`` sources what they delete first.

        What failed before comes behind what never did: ``troubled`` says by source how many of those there may be at
        the most, and at the least although others wait (where they are due); None: as many as there is room for.
        ``newest``: sources whose queue is taken from its other end.
        """
        now = self.clock.now()
        self._claims = True
        async with self._transaction() as c:
            mine = now, now + lease, self.process

            async def take(statement: str, most: Mapping[str, int]) -> list[Any]:
                most = {name: count for name, count in most.items() if count > 0}
                return await c.fetch(statement, *mine, list(most), list(most.values())) if most else []

            def left(rows: Sequence[Any]) -> dict[str, int]:
                got = Counter(row["source"] for row in rows)
                return {name: count - got[name] for name, count in wanted.items()}

            other = {n: count for n, count in wanted.items() if n in newest}
            rows = await take(CLAIM_EXPIRING_NEWEST, {n: count for n, count in other.items() if n in expiring})
            rows += await take(CLAIM_NEWEST, {n: count for n, count in left(rows).items() if n in other})
            sampled = {row["token"] for row in rows}
            rows += await take(CLAIM_EXPIRING, {n: count for n, count in left(rows).items() if n in expiring})
            rows += await take(CLAIM, left(rows))
            behind = left(rows)
            for name, (most, least) in (troubled or {}).items():
                behind[name] = min(most, max(behind[name], least))
            rows += await take(CLAIM_TROUBLED, behind)
            partial = [row for row in rows if row["held"]]
            held = await copies_by_medium(c, partial) if partial else {}
        claims = [claim_from(row, held) for row in rows]
        return [replace(claim, newest=claim.token in sampled) for claim in claims] if sampled else claims

    @repeated
    async def claim_one(self, source: str, recording_id: str, media_id: str, lease: timedelta) -> Claim | None:
        """Lease this medium, due or not, unless it is archived or another has it in hand."""
        now = self.clock.now()
        self._claims = True
        async with self._transaction() as c:
            row = await c.fetchrow(CLAIM_ONE, now, now + lease, self.process, source, recording_id, media_id)
            held = await copies_by_medium(c, [row]) if row else {}
        return claim_from(row, held) if row else None

    async def copies_of(self, source: str, recording_id: str, media_id: str) -> list[Copy]:
        """The copies of a medium, oldest first."""
        async with self._connection() as c:
            row = {"source": source, "recording_id": recording_id, "media_id": media_id}
            return (await copies_by_medium(c, [row])).get((source, recording_id, media_id), [])

    async def medium(self, source: str, recording_id: str, media_id: str) -> Medium | None:
        """A medium with what is needed to fetch it again."""
        async with self._connection() as c:
            row = await c.fetchrow(MEDIUM, source, recording_id, media_id)
        return medium_from(row) if row else None

    @repeated
    async def renew(self, claims: Sequence[Claim], lease: timedelta) -> None:
        """These claims are this process's for that long from now on.

        Those that are no longer its own stay as they are.
        """
        async with self._connection() as c:
            await c.execute(RENEW, *claim_columns(claims), self.clock.now() + lease)

    @repeated
    async def release(self, claims: Sequence[Claim]) -> None:
        """Give claims back untouched: due as they were."""
        async with self._connection() as c:
            await c.execute(RELEASE, *claim_columns(claims))

    @repeated
    async def retry(self, source: str | None, state: State) -> int:
        """Make media of that state due again now; how many."""
        now = self.clock.now()
        async with self._transaction() as c:
            rows = await c.fetch(RETRY, source, state.value, now)
            await remember(c, now, [(r[0], r[1], r[2], "asked for again", f"was {state.value}") for r in rows])
        return len(rows)

    @repeated
    async def forgive(self, ids: Iterable[tuple[str, str, str]], what: str, due_at: datetime) -> None:
        """Make those of the media due then that failed for that reason, though not one of them was to blame."""
        async with self._connection() as c:
            await c.execute(FORGIVE, *by_column(list(ids), 3), f"{what}: %", due_at)


async def copies_by_medium(c: Any, rows: Sequence[Any]) -> dict[tuple[str, str, str], list[Copy]]:
    """By (source, recording_id, media_id) the copies of these rows' media, oldest first."""
    copies: dict[tuple[str, str, str], list[Copy]] = defaultdict(list)
    ids = dict.fromkeys((row["source"], row["recording_id"], row["media_id"]) for row in rows)
    for row in await c.fetch(COPIES_OF, *by_column(list(ids), 3)):
        copies[row["source"], row["recording_id"], row["media_id"]].append(copy_from(row))
    return copies
