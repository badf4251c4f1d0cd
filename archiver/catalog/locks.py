"""Locks over all processes, which processes live, and what they tell each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg

from ..errors import CatalogDown
from .database import Database, repeated

#: After the server's start its processes get so long to connect again.
SETTLING = timedelta(seconds=20)

#: A channel on which processes hear of each other's listings (NOTIFY, delivered when the transaction is committed).
LISTED = "archiver_listed"

#: And that one has come, has left or needs less than it did, where others have a share of the same source.
SHARED = "archiver_shared"

#: Dead is who neither holds its lock nor has any connection; after the server's own start all are to connect first.
FREE_DEAD = """
WITH dead AS (
    DELETE FROM processes p WHERE p.process <> $1 AND pg_postmaster_start_time() < clock_timestamp() - $2::interval
        AND NOT EXISTS (
            SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended('process:' || p.process, 8410))
        AND NOT EXISTS (
            SELECT FROM pg_stat_activity a
            WHERE a.datname = current_database() AND a.application_name = 'archiver ' || p.process)
    RETURNING p.process), unshared AS (
    DELETE FROM shares s USING dead WHERE s.process = dead.process), freed AS (
    DELETE FROM claims c USING dead WHERE c.holder = dead.process)
SELECT (SELECT count(*) FROM dead) AS dead, EXISTS (
    SELECT FROM shares mine JOIN shares other USING (source)
    WHERE mine.process = $1 AND other.process <> $1
        AND (least(mine.slots, other.slots) = 0 OR abs(mine.slots - other.slots) > 1)) AS uneven"""

TELL = "SELECT pg_notify($1, $2)"


class Locks(Database):
    """One connection holds the locks of this process."""

    @asynccontextmanager
    async def only_one(self, what: str) -> AsyncIterator[bool]:
        """Hold the lock of that name over all processes while inside; False where another holds it.

        The lock lives on a connection of its own (a pooled one gives up its locks when it is returned) and ends
        with it.
        """
        if what in self._held:
            # PostgreSQL gives a session what it has once more.
            yield False
            return
        self._held.add(what)
        try:
            taken = await self._lock("SELECT pg_try_advisory_lock(hashtextextended($1, 8410))", what)
            try:
                yield taken
            finally:
                if taken:
                    await asyncio.shield(self._unlock(what))
        finally:
            self._held.discard(what)

    async def _lock(self, statement: str, what: str) -> bool:
        async with self._locking:
            with self._translated():
                if self._locks is None or self._locks.is_closed():
                    with self._translated(connecting=True):
                        self._locks = await asyncpg.connect(**self._how(command_timeout=30))
                        await self._prepare(self._locks)
                    await self._locks.add_listener(LISTED, self._heard)
                    await self._locks.add_listener(SHARED, self._heard_of_share)
                return bool(await self._locks.fetchval(statement, what))

    def _heard(self, *_: object) -> None:
        if self.on_listed is not None:
            self.on_listed()

    def _heard_of_share(self, _connection: object, _pid: int, _channel: str, told: object) -> None:
        process, _, source = str(told).partition(" ")
        if self.on_shared is not None and process != str(self.process):
            self.on_shared(source)

    async def _unlock(self, what: str) -> None:
        try:
            await self._lock("SELECT pg_advisory_unlock(hashtextextended($1, 8410))", what)
        except CatalogDown:
            # The lock is to die with its connection, which may only have been slow.
            locks, self._locks = self._locks, None
            if locks is not None:
                locks.terminate()

    @repeated
    async def stay_alive(self) -> tuple[int, bool]:
        """Show that this process lives, and free at once what those held that are dead.

        Returns how many these were, and whether this process and another have uneven shares of a source.
        A process that was only cut off commits nothing late: the claims that it had are no longer its own.
        """
        me = f"process:{self.process}"
        lost = self._locks is None or self._locks.is_closed()
        if lost or not self._announced:
            await self._lock("SELECT pg_try_advisory_lock(hashtextextended($1, 8410))", me)
            async with self._connection() as c:
                await c.execute("INSERT INTO processes VALUES ($1) ON CONFLICT DO NOTHING", self.process)
            self._announced = True
        async with self._connection() as c:
            row = await c.fetchrow(FREE_DEAD, self.process, SETTLING)
        return row["dead"], row["uneven"]
