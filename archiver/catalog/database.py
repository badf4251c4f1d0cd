"""The connections to PostgreSQL that every chapter of the catalog shares, and what its errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, Self, TypeVar
from uuid import UUID, uuid4

import asyncpg

from ..common import libpq
from ..common.clock import Clock
from ..errors import (
    CatalogBusy,
    CatalogDamaged,
    CatalogDown,
    CatalogForbidden,
    CatalogFull,
    CatalogMisfit,
    CatalogPooled,
    CatalogReadOnly,
    CatalogRefused,
)
from . import sqlstates
from .migrations import other_version
from .to_rows import dump_json

T = TypeVar("T")
#: A statement may take so long, in seconds; but for a migration's.
PATIENCE = 60.0

#: A host that is cut off says no farewell: the server finds out by asking, and lets go of its locks and transactions.
#: It asks nothing while an answer of its own is on the way: that it would send again for a quarter of an hour.
KEEPALIVES = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25000",
}

P = ParamSpec("P")

#: Beside what PostgreSQL itself says (sqlstates.py): what its driver says where a connection died.
_LOST = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresConnectionError)

#: How a message begins.
WORDS: dict[type[CatalogDown], str] = {
    CatalogBusy: "the database has nothing left for archiver",
    CatalogDamaged: "the database is damaged, or its disk is",
    CatalogDown: "the database can't be reached",
    CatalogForbidden: "the role of [database] url lacks rights",
    CatalogFull: "the disk of the database is full",
    CatalogMisfit: "the tables of the database are not as this version needs them",
    CatalogPooled: "a pooler stands before the database, and does not keep a session together",
    CatalogReadOnly: "the database can only be read",
    CatalogRefused: "the database refuses [database] url",
}

#: Also claims that were made while their maker was interrupted, of which nobody heard.
LEAVE = """
WITH freed AS (DELETE FROM claims WHERE holder = $1)
DELETE FROM processes WHERE process = $1"""


def repeated(transaction: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Begin again where PostgreSQL ended a deadlock by us: a listing and a commit may want the same rows crosswise.

    Also where another inserted a row that was not there when we looked: now it is.
    """

    @functools.wraps(transaction)
    async def repeated(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(5):
            try:
                return await transaction(*args, **kwargs)
            except asyncpg.UniqueViolationError:
                continue
            except CatalogDown as error:
                if not isinstance(error.__cause__, asyncpg.DeadlockDetectedError | asyncpg.SerializationError):
                    raise
        return await transaction(*args, **kwargs)

    return repeated


class Database:
    """A pool of connections; each chapter of the catalog adds its methods to it."""

    def __init__(
        self,
        url: str,
        pool: Any = None,
        clock: Clock | None = None,
        process: UUID | None = None,
        schema: str | None = None,
    ) -> None:
        self._url = url
        self.clock = clock or Clock()
        #: Identifies this process among those that share the database.
        self.process = process or uuid4()
        self._pool = pool
        self._target = _target(url)
        self._settings = KEEPALIVES | self._target.settings | ({"search_path": schema} if schema else {})
        #: The schema's version where it is not ours; it explains what fails.
        self._other: int | None = None
        #: It was found good: what fails from now on was lost on the way.
        self._proven = False
        self._locks: Any = None
        #: Called when any process, this one too, has written down recordings that are new or have changed.
        self.on_listed: Callable[[], None] | None = None
        #: Called with a source of which another process has come for a share, has left, or needs less than before.
        self.on_shared: Callable[[str], None] | None = None
        self._held: set[str] = set()
        self._announced = False
        self._claims = False
        self._locking = asyncio.Lock()
        #: One description of changes at a time: two would undo what each other marks.
        self.describing = asyncio.Lock()

    @classmethod
    async def open(cls, url: str, *, clock: Clock | None = None, size: int = 6, schema: str | None = None) -> Self:
        """Connect; to the tables of that schema, where one is named. Raises CatalogDown."""
        catalog = cls(url, clock=clock, schema=schema)
        with catalog._translated(connecting=True):
            how = catalog._how(command_timeout=PATIENCE)
            catalog._pool = await asyncpg.create_pool(
                min_size=1, max_size=size, init=catalog._prepare, reset=_nothing, **how
            )
        await catalog.ping()
        return catalog

    def _how(self, *, command_timeout: float | None) -> dict[str, Any]:
        """How to connect. A pooler knows these two settings; the others are set afterwards."""
        target, how = self._target, dict[str, Any]()
        if target.public:
            how["ssl"] = ssl.create_default_context()
        how["server_settings"] = {"timezone": "UTC", "application_name": f"archiver {self.process}"}
        return {"dsn": target.url, "timeout": target.timeout, "command_timeout": command_timeout, **how}

    async def _prepare(self, connection: Any) -> None:
        await connection.execute(
            f"SELECT {', '.join(f'set_config({_literal(n)}, {_literal(v)}, false)' for n, v in self._settings.items())}"
        )
        for kind in ("json", "jsonb"):
            await connection.set_type_codec(kind, encoder=dump_json, decoder=json.loads, schema="pg_catalog")

    @asynccontextmanager
    async def _own(self, *, command_timeout: float | None = 30) -> AsyncIterator[Any]:
        """A connection beside the pool's."""
        with self._translated(connecting=True):
            connection = await asyncpg.connect(**self._how(command_timeout=command_timeout))
        if command_timeout is None:
            # Nothing else would tell that the server is gone.
            _keep_alive(connection)
        try:
            with self._translated(connecting=True):
                await self._prepare(connection)
            with self._translated():
                yield connection
        finally:
            connection.terminate()

    async def close(self) -> None:
        """Give back what this process holds, then end all connections. Takes seven seconds at the most."""
        if self._announced or self._claims:
            with contextlib.suppress(CatalogDown, TimeoutError):
                async with asyncio.timeout(2), self._connection() as c:
                    await c.execute(LEAVE, self.process)
        if self._locks is not None:
            self._locks.terminate()
        try:
            await asyncio.wait_for(self._pool.close(), 5)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        with self._translated():
            async with self._pool.acquire(timeout=30) as connection:
                yield connection

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        async with self._connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def _undone(self) -> AsyncIterator[Any]:
        """A transaction of which nothing stays."""
        async with self._connection() as connection:
            undone = connection.transaction()
            await undone.start()
            try:
                yield connection
            finally:
                await undone.rollback()

    async def ping(self) -> None:
        """Is it there? Sets the clock by it."""
        async with self._connection() as c:
            now = await c.fetchval("SELECT clock_timestamp()")
        if type(self.clock) is Clock:
            self.clock.set(now)

    @contextlib.contextmanager
    def _translated(self, *, connecting: bool = False) -> Iterator[None]:
        """Turns what has its cause outside of us into CatalogDown, of the class that tells whose it is."""
        try:
            yield
        except CatalogDown:
            raise
        except Exception as error:
            down = self._down(error, connecting=connecting)
            if down is None:
                raise
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # asyncpg may answer a cancellation with a time-out; swallowed, it would keep a stop waiting for ever.
                raise asyncio.CancelledError from error
            down.lost = self._proven
            raise down from error

    def _down(self, error: Exception, *, connecting: bool) -> CatalogDown | None:
        """What it says of the database; None: nothing, it is a defect of ours."""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        found = sqlstates.meaning(error, connecting=connecting)
        if found is not None:
            if found.kind is CatalogMisfit and self._other is not None:
                return other_version(self._other)
            return found.kind(f"{WORDS[found.kind]}: {reason}", found.remedy)
        if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
            return CatalogReadOnly("no host of [database] url is as target_session_attrs wants it")
        if connecting and isinstance(error, ValueError):
            # Its text quotes the URL, password included, where it is not asyncpg's own.
            ours = isinstance(error, asyncpg.ClientConfigurationError)
            return CatalogRefused(
                f"[database] url can't be used: {reason}"
                if ours
                else "database.url can't be read; a password's special characters are %-encoded"
            )
        if isinstance(error, TimeoutError):
            return CatalogDown("the database can't be reached: it did not answer in time")
        return CatalogDown(f"the database can't be reached: {reason}") if isinstance(error, _LOST) else None


async def _nothing(_: Any) -> None:
    """Nothing here outlasts its transaction, so a connection needs no query more before its next user."""


def _keep_alive(connection: Any) -> None:
    """Have the kernel ask whether the other host is still there, as the server does of us."""
    found = connection._transport.get_extra_info("socket")
    # Not of a Unix socket, nor on every system.
    with contextlib.suppress(OSError, AttributeError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, option in (("idle", "TCP_KEEPIDLE"), ("interval", "TCP_KEEPINTVL"), ("count", "TCP_KEEPCNT")):
            value = int(KEEPALIVES[f"tcp_keepalives_{name}"])
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _target(url: str) -> libpq.Target:
    try:
        return libpq.read(url)
    except ValueError as error:
        raise CatalogRefused(f"[database] url: {error}", "mend [database] url, then `archiver check`") from None


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
