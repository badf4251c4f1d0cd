"""What became of claimed media: archived, failed, gone. Also who wants to hear of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from ..model import Copy, Download, Outcome, State, holdable
from .database import Database, repeated
from .descriptions import mark_described
from .history import remember
from .sql_parts import OURS
from .to_rows import download_columns, outcome_columns

SETTLE_ARCHIVED = f"""
WITH ended AS (DELETE FROM claims c{OURS} RETURNING c.*)
UPDATE media m SET state = CASE WHEN m.stores <@ t.held THEN 'archived' ELSE 'pending' END,
    held = t.held, size = t.size, sha256 = t.sha256, content_type = t.content_type, duration = t.duration,
    coding = t.coding, flags = t.flags, note = t.note, troubled = t.error IS NOT NULL, seen_sha256 = NULL,
    seen_at = NULL, archived_at = CASE WHEN m.stores <@ t.held THEN $10::timestamptz END, due_at = t.due_at,
    error = t.error, attempts = m.attempts + 1, failing_since = NULL
FROM (SELECT ended.*, u.size, u.sha256, u.content_type, u.duration, string_to_array(u.held, ',') AS held, u.due_at,
             u.error, u.coding, string_to_array(u.flags, ',') AS flags, u.note
      FROM unnest($4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::interval[], $9::text[], $11::timestamptz[],
                  $12::text[], $13::text[], $14::text[], $15::text[])
      AS u (token, size, sha256, content_type, duration, held, due_at, error, coding, flags, note)
      JOIN ended USING (token)) t
WHERE (m.source, m.recording_id, m.media_id, m.generation) = (t.source, t.recording_id, t.media_id, t.generation)
    AND m.state = 'pending'
RETURNING t.token, m.state"""

TOUCH_RECORDINGS = """
UPDATE recordings r SET revision = r.revision + 1, undescribed = true
FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::text[])) AS t (source, recording_id)
WHERE (r.source, r.recording_id) = (t.source, t.recording_id)"""

SETTLE_OTHERS = f"""
WITH ended AS (DELETE FROM claims c{OURS} RETURNING c.*)
UPDATE media m SET state = u.state, due_at = u.due_at, error = u.error, attempts = u.attempts,
    failing_since = u.failing_since, troubled = u.troubled, flags = string_to_array(u.flags, ','), note = u.note,
    seen_sha256 = coalesce(u.seen, m.seen_sha256),
    seen_at = CASE WHEN u.seen IS NULL OR u.seen = m.seen_sha256 THEN m.seen_at ELSE $14 END
FROM unnest($4::bigint[], $5::text[], $6::timestamptz[], $7::text[], $8::int[], $9::timestamptz[], $10::bool[],
            $11::text[], $12::text[], $13::text[])
    AS u (token, state, due_at, error, attempts, failing_since, troubled, seen, flags, note) JOIN ended t USING (token)
WHERE (m.source, m.recording_id, m.media_id, m.generation) = (t.source, t.recording_id, t.media_id, t.generation)
    AND m.state = 'pending'
RETURNING t.token, m.state"""

OUTBOX_ADD = """
INSERT INTO outbox (target, source, recording_id, due_at)
SELECT t.target, t.source, t.recording_id, $4 FROM unnest($1::text[], $2::text[], $3::text[])
    AS t (target, source, recording_id)
WHERE (SELECT bool_and(m.state <> 'pending') AND bool_or(m.state = 'archived') FROM media m
       WHERE m.source = t.source AND m.recording_id = t.recording_id)
ON CONFLICT (target, source, recording_id) DO UPDATE SET due_at = excluded.due_at, attempts = 0, error = NULL"""

OUTBOX_DUE = """
UPDATE outbox o SET due_at = $3 FROM (
    SELECT target, source, recording_id FROM outbox WHERE target = $1 AND due_at <= $2
    ORDER BY due_at LIMIT $4 FOR UPDATE SKIP LOCKED) t
WHERE (o.target, o.source, o.recording_id) = (t.target, t.source, t.recording_id)
RETURNING o.source, o.recording_id, o.attempts"""

OUTBOX_DONE = """DELETE FROM outbox WHERE target = $1 AND source = $2 AND recording_id = $3"""
OUTBOX_LATER = """
UPDATE outbox SET due_at = $4, attempts = attempts + 1, error = $5
WHERE target = $1 AND source = $2 AND recording_id = $3"""

ADD_COPIES = """
INSERT INTO copies (store, key, source, recording_id, media_id, size, sha256, archived_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[],
    $8::timestamptz[])
ON CONFLICT (store, key) DO NOTHING RETURNING source, store, size"""

ADD_TOTALS = """
INSERT INTO totals AS o (source, store, count, bytes)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) ORDER BY 1, 2
ON CONFLICT (source, store) DO UPDATE SET count = o.count + excluded.count, bytes = o.bytes + excluded.bytes"""


class Results(Database):
    """Finished media are committed in one transaction."""

    @repeated
    async def settle(
        self,
        downloads: Sequence[Download],
        outcomes: Sequence[Outcome],
        *,
        revisions: Mapping[tuple[str, str], int],
        targets: Mapping[str, Sequence[str]],
    ) -> dict[int, State]:
        """Commit finished media in one transaction; by the claim's token the states that took effect.

        A claim that is no longer the row's is refused: its token is missing from the answer. ``revisions`` are those
        of the descriptions that the manifests hold; ``targets`` by source who wants to hear of what is archived.
        """
        now = self.clock.now()
        settled: dict[int, State] = {}
        async with self._transaction() as c:
            if downloads:
                downloads = sorted(downloads, key=lambda d: d.claim.id)
                rows = await c.fetch(SETTLE_ARCHIVED, *download_columns(downloads, now))
                settled |= {row[0]: State(row[1]) for row in rows}
                await self._add_copies(c, [d for d in downloads if d.claim.token in settled], settled, revisions, now)
                # Their manifests are written and may sort last: what counts is described once more.
                lost = [d.claim for d in downloads if d.claim.token not in settled]
                if lost:
                    await c.execute(TOUCH_RECORDINGS, [x.source for x in lost], [x.medium.recording_id for x in lost])
            if outcomes:
                outcomes = sorted(outcomes, key=lambda o: o.claim.id)
                rows = await c.fetch(SETTLE_OTHERS, *outcome_columns(outcomes, now))
                settled |= {row[0]: State(row[1]) for row in rows}
                kept = [o for o in outcomes if o.claim.token in settled]
                await remember(c, now, [(*o.claim.id, o.what, o.error or "") for o in kept], [o.answer for o in kept])
                ended = [o.claim for o in kept if o.state is not State.PENDING]
                await c.execute(TOUCH_RECORDINGS, [e.source for e in ended], [e.medium.recording_id for e in ended])
            claims = [d.claim for d in downloads] + [o.claim for o in outcomes]
            ended_ids = {x.id[:2] for x in claims if settled.get(x.token, State.PENDING) is not State.PENDING}
            hearers = [(target, *i) for i in sorted(ended_ids) for target in targets.get(i[0], ())]
            if hearers:
                await c.execute(OUTBOX_ADD, *([h[n] for h in hearers] for n in range(3)), now)
        return settled

    async def _add_copies(
        self,
        c: Any,
        downloads: Sequence[Download],
        settled: Mapping[int, State],
        revisions: Mapping[tuple[str, str], int],
        now: datetime,
    ) -> None:
        done = [d for d in downloads if settled[d.claim.token] is State.ARCHIVED]
        copies = [(copy, d.claim.id) for d in downloads for copy in d.copies]
        added = await insert_copies(c, copies)
        touched = sorted({d.claim.id[:2] for d in downloads})
        await mark_described(c, {t: revisions.get(t, -1) for t in touched}, step=1)
        late = [d for d in downloads if settled[d.claim.token] is not State.ARCHIVED]
        await remember(c, now, [(*d.claim.id, "stored in part", d.error or "") for d in late])
        await add_totals(c, [*added, *((d.claim.source, "", d.size) for d in done)])

    async def outbox(self, target: str, lease: timedelta, limit: int) -> list[tuple[str, str, int]]:
        """Recordings to tell ``target`` about: (source, recording_id, attempts), leased."""
        now = self.clock.now()
        async with self._connection() as c:
            return [(r[0], r[1], r[2]) for r in await c.fetch(OUTBOX_DUE, target, now, now + lease, limit)]

    async def told(self, target: str, source: str, recording_id: str) -> None:
        """``target`` has heard of the recording."""
        async with self._connection() as c:
            await c.execute(OUTBOX_DONE, target, source, recording_id)

    async def tell_later(self, target: str, source: str, recording_id: str, due_at: datetime, error: str) -> None:
        """``target`` could not be told, for that reason: it is due again then."""
        async with self._connection() as c:
            await c.execute(OUTBOX_LATER, target, source, recording_id, due_at, holdable(error)[:500])


async def insert_copies(c: Any, copies: Sequence[tuple[Copy, tuple[str, str, str]]]) -> list[tuple[str, str, int]]:
    """Copies, each with its medium's id; (source, store, size) of those that are new."""
    rows = await c.fetch(
        ADD_COPIES,
        [copy.store for copy, _ in copies],
        [copy.key for copy, _ in copies],
        *([identity[i] for _, identity in copies] for i in range(3)),
        [copy.size for copy, _ in copies],
        [copy.sha256 for copy, _ in copies],
        [copy.archived_at for copy, _ in copies],
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def add_totals(c: Any, added: Sequence[tuple[str, str, int]]) -> None:
    """Late in a transaction: until its end nobody else's counts of the same source can enter."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for source, store, size in added:
        sums[source, store][0] += 1
        sums[source, store][1] += size
    if sums:
        await c.execute(
            ADD_TOTALS,
            [k[0] for k in sums],
            [k[1] for k in sums],
            [v[0] for v in sums.values()],
            [v[1] for v in sums.values()],
        )
