"""The tables: which version they have, how they are brought to this one, whether archiving can work with them."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum, auto
from uuid import uuid4

import asyncpg
import structlog

from ..errors import CatalogForbidden, CatalogMisfit, CatalogPooled, with_advice
from .clock_set_back import ClockSetBack
from .database import WORDS
from .migrations import migrations, newest, other_version, tables, version_of

log = structlog.get_logger()

#: How often it is said that a migration is under way, in seconds.
PROGRESS = 10.0

#: The tables and sequences of ours ($1) that are not there, and those that the role may not use.
LACKING_TABLES = """
SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NULL ORDER BY 1"""

FORBIDDEN_TABLES = """
SELECT name FROM unnest($1::text[]) AS name JOIN pg_class c ON c.oid = to_regclass(name)
WHERE NOT CASE WHEN relkind = 'S' THEN has_sequence_privilege(c.oid, 'USAGE') ELSE
    has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
    AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE') END ORDER BY 1"""

#: Of no meaning to anybody, and undone at once.
TRY_WRITE = """INSERT INTO processes (process) VALUES ($1)"""

#: May the role change the tables, as a newer version of archiver needs to?
FOREIGN_TABLES = """
SELECT name FROM unnest($1::text[]) AS name JOIN pg_class c ON c.oid = to_regclass(name)
WHERE NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1"""


class Need(Enum):
    """Of the tables, before a command begins (see :meth:`Catalog.ready`)."""

    #: Any version, to be read as far as that goes; nothing is written.
    READABLE = auto()
    #: Of this version.
    SAME = auto()
    #: Of this version; made where the database is empty.
    MADE = auto()
    #: Brought up to this version.
    MIGRATED = auto()


class Schema(ClockSetBack):
    """See that the tables are as this program needs them."""

    async def version(self) -> int:
        """The schema's version; 0 where there is none."""
        async with self._connection() as c:
            return await version_of(c)

    async def ready(self, need: Need, tell: Callable[[str, float], None] | None = None) -> None:
        """See that the tables are as what follows needs them. Raises CatalogDown, of the class that tells why not.

        ``tell``: as for :meth:`migrate`.
        """
        if need is not Need.READABLE:
            await self.prove_locks()
        version = await self.version()
        if need is Need.MIGRATED or (need is Need.MADE and not version):
            await self.migrate(tell)
        elif not version:
            empty = CatalogMisfit("the database has no tables yet", "`archiver run`, `sync` or `migrate` makes them")
            # As good as not there.
            empty.lasting = False
            raise empty
        elif version != newest():
            self._other = version
            if need is not Need.READABLE:
                raise other_version(version)
            log.warning("schema.other", error=with_advice(other_version(version)))
        if need is not Need.READABLE:
            await self.prove()
            await self.set_right()
        self._proven = True

    async def prove(self) -> None:
        """Try what archiving needs: our tables, our rights, a small write that is undone. Raises CatalogDown."""
        async with self._undone() as c:
            if (version := await version_of(c)) != newest():
                raise other_version(version)
            if lacking := [row[0] for row in await c.fetch(LACKING_TABLES, tables())]:
                raise CatalogMisfit(f"the database lacks tables of ours: {', '.join(lacking)}")
            if forbidden := [row[0] for row in await c.fetch(FORBIDDEN_TABLES, tables())]:
                raise CatalogForbidden(f"{WORDS[CatalogForbidden]}: it may not read and write {', '.join(forbidden)}")
            await c.execute(TRY_WRITE, uuid4())

    async def check(self) -> str:
        """Try all that archiving needs, longer than :meth:`prove` does; what was found. Raises CatalogDown."""
        await self.prove_locks()
        version = await self.version()
        if not version:
            # All is made, and undone: rights and the server's age show.
            async with self._undone() as c:
                for _, _, text in migrations():
                    await c.execute(text, timeout=60)
            return "still empty"
        if version > newest():
            raise other_version(version)
        if version < newest():
            async with self._undone() as c:
                if foreign := [row[0] for row in await c.fetch(FOREIGN_TABLES, tables())]:
                    raise CatalogForbidden(f"{WORDS[CatalogForbidden]}: others own {', '.join(foreign)}")
                await c.execute("CREATE TABLE archiver_probe (); DROP TABLE archiver_probe")
            return f"schema version {version}; `archiver run` or `migrate` brings it to {newest()}"
        await self.prove()
        async with self._undone() as c:
            for name, statement in statements(type(self)).items():
                try:
                    await c.prepare(statement)
                except asyncpg.SyntaxOrAccessError as error:
                    raise CatalogMisfit(f"a table is not as version {version} has it ({name}): {error}") from error
        return f"schema version {version}"

    async def prove_locks(self) -> None:
        """A lock must hold for as long as its connection: behind some poolers it does not. Raises CatalogPooled."""
        what = str(uuid4())
        async with self._own() as one, self._own() as other:
            first = await one.fetchval("SELECT pg_backend_pid()")
            await one.fetchval("SELECT pg_advisory_lock(hashtextextended($1, 8410))", what)
            for _ in range(2):
                async with other.transaction():
                    # The pooler may give it the very session that the first has just left.
                    taken = await other.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 8410))", what)
                    same = await one.fetchval("SELECT pg_backend_pid()") == first
                if taken or not same:
                    raise CatalogPooled(
                        "locks do not hold in this database: a pooler gives each transaction another session"
                    )

    async def migrate(self, tell: Callable[[str, float], None] | None = None) -> list[str]:
        """Apply what is missing, each file in one transaction, one process at a time; the names applied.

        It may take as long as it takes; ``tell`` hears now and then which file is at work, and for how many seconds.
        Raises CatalogDown where the schema is newer than this program.
        """
        if (version := await self.version()) > newest():
            raise other_version(version)
        if version == newest():
            return []
        applied = []
        # Of its own, for no statement here has a time limit: begun anew it would only take as long again.
        async with self._own(command_timeout=None) as c:
            await c.execute(
                "SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false)"
            )
            for number, name, text in migrations():
                began = time.monotonic()
                async with c.transaction(), _telling(tell, name):
                    await c.execute("SELECT pg_advisory_xact_lock(hashtext('archiver.migrate'))")
                    await c.execute(
                        "CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY, name text NOT NULL,"
                        " applied_at timestamptz NOT NULL DEFAULT now())"
                    )
                    if await c.fetchval("SELECT true FROM schema_version WHERE version = $1", number):
                        continue
                    await c.execute(text)
                    await c.execute("INSERT INTO schema_version (version, name) VALUES ($1, $2)", number, name)
                applied.append(name)
                log.info("schema.migrated", file=name, seconds=round(time.monotonic() - began, 1))
        return applied


def statements(catalog: type[Schema]) -> dict[str, str]:
    """Every statement of the catalog's chapters that can be prepared as it stands, by its name there."""
    prepared = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
    found: dict[str, str] = {}
    for module in {chapter.__module__ for chapter in catalog.__mro__}:
        for name, value in vars(sys.modules[module]).items():
            several = value if isinstance(value, tuple) else (value,)
            # Parts of others begin with _, and a drill's tables are there while it runs only.
            if not name.isupper() or name.startswith(("_", "DRILL")):
                continue
            for number, one in enumerate(several):
                if isinstance(one, str) and prepared.match(one):
                    found[name if several == (value,) else f"{name}_{number}"] = one
    return found


@asynccontextmanager
async def _telling(tell: Callable[[str, float], None] | None, name: str) -> AsyncIterator[None]:
    async def forever() -> None:
        began = time.monotonic()
        while tell is not None:
            await asyncio.sleep(PROGRESS)
            tell(name, time.monotonic() - began)

    telling = asyncio.create_task(forever())
    try:
        yield
    finally:
        telling.cancel()
