"""A real PostgreSQL for the tests: one server a test process, a fresh database a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import pytest
import pytest_asyncio

from archiver.catalog.catalog import Catalog
from archiver.catalog.embedded import Embedded
from tests.factories import ManualClock

# `make test` says the same each time; HYPOTHESIS_PROFILE=explore looks for what it has not seen yet.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("explore", derandomize=False, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# In the background of a script they would be started with Ctrl-C ignored, and so would what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# So that its assertions tell what differs.
pytest.register_assert_rewrite("tests.engine")

# Those that wait longest begin first, so that no worker is left alone with them at the end.
_LONGEST = [
    "embedded",
    "kill",
    "week",
    "hosts",
    "outages",
    "chaos",
    "story",
    "cli",
    "reload",
    "clock_changes",
    "rules",
    "people",
    "demo",
    "monitoring",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)

    items.sort(key=rank)


_FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "autovacuum": "off"}
_TEMPLATE = "migrated"


class Postgres:
    """The server, driven from a loop of its own so that any test and any fixture can use it."""

    def __init__(self) -> None:
        # Short, unlike pytest's own, so that the socket fits, and open to the account the server runs under.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self.folder.chmod(0o755)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="postgres", daemon=True)
        self._thread.start()
        self._watchdog = self._watch()
        self._made = 0
        self._admin: Any = None
        self.start()
        self.run(self._make_template())

    def start(self) -> None:
        self._embedded = Embedded(self.folder / "db", _FAST)
        self.url = self.run(self._embedded.start())
        self._admin = self.run(asyncpg.connect(self.url, timeout=20))

    def stop(self) -> None:
        self.run(self._admin.close(timeout=5))
        self.run(self._embedded.stop())

    def create(self) -> str:
        """The URL of a new, migrated database."""
        self._made += 1
        name = f"test_{self._made}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        return self.url_of(name)

    def drop(self, url: str) -> None:
        name = url.split("?")[0].rpartition("/")[2]
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        self.run(self._admin.execute(statement))

    def url_of(self, name: str) -> str:
        before, after = self.url.split("?")
        return f"{before.rpartition('/')[0]}/{name}?{after}"

    def end(self) -> None:
        try:
            self.stop()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._watchdog.communicate()
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        """Wait for something that is done on the server's loop."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(120)

    async def _make_template(self) -> None:
        await self._admin.execute(f"CREATE DATABASE {_TEMPLATE}")
        catalog = await Catalog.open(self.url_of(_TEMPLATE), size=1)
        try:
            await catalog.migrate()
        finally:
            await catalog.close()

    def _watch(self) -> subprocess.Popen[bytes]:
        """Ends the server when this process is gone, however it went: then the pipe to it breaks."""
        folder = shlex.quote(str(self.folder))
        script = (
            f"cat >/dev/null; pid=$(head -n 1 {folder}/db/pgdata/postmaster.pid 2>/dev/null)"
            f' && kill -QUIT "$pid" && sleep 1; rm -rf {folder}'
        )
        return subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; each process of a parallel run has its own."""
    server = Postgres()
    try:
        yield server
    finally:
        server.end()


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The URL of a fresh, migrated database."""
    url = postgres.create()
    yield url
    postgres.drop(url)


@pytest.fixture
def clock() -> ManualClock:
    """Noon of 18 May 2024, UTC, until a test moves it."""
    return ManualClock()


@pytest_asyncio.fixture
async def catalog(database: str, clock: ManualClock) -> AsyncIterator[Catalog]:
    """An open catalog on a fresh database; its clock stands still."""
    opened = await Catalog.open(database, clock=clock)
    yield opened
    with contextlib.suppress(OSError):
        await opened.close()
