"""Limits and rates of a source over all processes: shares of its requests, places in its rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from .database import Database
from .locks import SHARED, TELL

UNSHARE = """
WITH gone AS (DELETE FROM shares WHERE process = $1 AND source = ANY($2) RETURNING source)
SELECT pg_notify($3, $4 || source) FROM gone
WHERE EXISTS (SELECT FROM shares s WHERE s.source = gone.source AND s.process <> $1)"""

RESERVE = """
UPDATE sources SET next_request_at = greatest(next_request_at, $2) + $3::interval WHERE name = $1
RETURNING next_request_at - $3::interval AS at"""

LISTING_AT = """SELECT next_listing_at FROM sources WHERE name = $1 AND next_listing_at > $2"""
LISTING_ENDED = """UPDATE sources SET next_listing_at = greatest(next_listing_at, $2) WHERE name = $1"""


class Shares(Database):
    """Each process leases its share."""

    async def share(self, wanted: Mapping[str, tuple[int, int]], lease: timedelta) -> dict[str, int]:
        """By source this process's share of ``(limit, in use)`` requests, leased; limits hold over all processes.

        What is in use and exceeds the share stays its own until it asks again. The others hear of it when that may
        change their shares (:attr:`on_shared`).
        """
        now = self.clock.now()
        names = sorted(wanted)
        shares = {}
        async with self._transaction() as c:
            await c.execute("SELECT pg_advisory_xact_lock(hashtext('archiver.shares'))")
            await c.execute("DELETE FROM shares WHERE until < $1", now)
            found = {
                row["source"]: (row["slots"], row["peers"], row["rank"], row["mine"])
                for row in await c.fetch(
                    "SELECT source, coalesce(sum(slots) FILTER (WHERE process <> $1), 0)::int AS slots,"
                    " count(*) FILTER (WHERE process <> $1)::int AS peers,"
                    " count(*) FILTER (WHERE process < $1)::int AS rank,"
                    " max(slots) FILTER (WHERE process = $1) AS mine"
                    " FROM shares WHERE source = ANY($2) GROUP BY source",
                    self.process,
                    names,
                )
            }
            for name in names:
                limit, in_use = wanted[name]
                taken, peers, rank, before = found.get(name, (0, 0, 0, None))
                # What does not divide goes to the first of them.
                fair = limit // (peers + 1) + (rank < limit % (peers + 1))
                shares[name] = max(min(fair, limit - taken), 0)
                slots = max(shares[name], min(in_use, limit - taken))
                await c.execute(
                    "INSERT INTO shares VALUES ($1, $2, $3, $4)"
                    " ON CONFLICT (source, process) DO UPDATE SET slots = excluded.slots, until = excluded.until",
                    name,
                    self.process,
                    slots,
                    now + lease,
                )
                if peers and (before is None or slots < before):
                    await c.execute(TELL, SHARED, f"{self.process} {name}")
        return shares

    async def unshare(self, sources: Sequence[str]) -> None:
        """Give the shares back."""
        async with self._connection() as c:
            await c.execute(UNSHARE, self.process, list(sources), SHARED, f"{self.process} ")

    async def reserve(self, source: str, interval: timedelta) -> timedelta:
        """Take the next place in a source's rate; how long to wait for it."""
        now = self.clock.now()
        async with self._connection() as c:
            at = await c.fetchval(RESERVE, source, now, interval)
        return max(at - now, timedelta()) if at is not None else timedelta()

    async def listing_wait(self, source: str) -> timedelta:
        """How long until the source's next listing may begin, whoever made the last one."""
        now = self.clock.now()
        async with self._connection() as c:
            at = await c.fetchval(LISTING_AT, source, now)
        return at - now if at is not None else timedelta()

    async def listing_ended(self, source: str, pause: timedelta) -> None:
        """The next one may begin after that pause."""
        async with self._connection() as c:
            await c.execute(LISTING_ENDED, source, self.clock.now() + pause)
