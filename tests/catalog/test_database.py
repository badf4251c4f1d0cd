"""What a database may do to us: each in one line with a remedy that helps, and the right exit code, no traceback."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from structlog.testing import capture_logs

from archiver.catalog import database, schema
from archiver.catalog.catalog import Catalog, Need, migrations, newest
from archiver.catalog.embedded import Embedded
from archiver.errors import (
    CatalogBusy,
    CatalogDamaged,
    CatalogDown,
    CatalogForbidden,
    CatalogFull,
    CatalogMisfit,
    CatalogReadOnly,
    CatalogRefused,
    advice,
)
from archiver.service import wiring
from archiver.settings import config
from archiver.simulators.chronicall import ChronicallSimulator
from tests import commands, servers
from tests.commands import Finished, Place
from tests.conftest import Postgres

HOUR = timedelta(hours=1)


@pytest.fixture
async def place(tmp_path: Path, database: str) -> AsyncIterator[Place]:
    async with commands.place(tmp_path, database) as made:
        await made.add("hq", ChronicallSimulator())
        yield made


@pytest.fixture
def make(postgres: Postgres) -> Iterator[Callable[..., str]]:
    """A bare database of that name, and what is to be done there as its owner; its URL."""
    made: list[str] = []

    def bare(name: str, *statements: str) -> str:
        postgres.execute(f"CREATE DATABASE {name}")
        made.append(postgres.url_of(name))
        postgres.run(executed(made[-1], *statements))
        return made[-1]

    yield bare
    for url in made:
        postgres.drop(url)


async def executed(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def as_role(url: str, role: str) -> str:
    return url.replace("//archiver@", f"//{role}@")


def one_line(done: Finished) -> str:
    """The last word on standard error: what is wrong, and what to do."""
    assert "Traceback" not in done.err
    line = done.err.splitlines()[-1]
    assert line.startswith("archiver: ")
    assert " → " in line
    return line


async def told(place: Place, code: int, *words: str, lines: tuple[str, ...] = ("sync", "run")) -> None:
    """These commands and `check` say so, each in a line; `sync` and `run` end with that code."""
    for line in lines:
        said = one_line(await place.run(line, code=code))
        assert all(word in said for word in words), said
    checked = await place.run("check", code=3)
    (line,) = [line for line in checked.out.splitlines() if " database: " in line]
    assert line.startswith("FAILED")
    assert all(word in line for word in words), line


# -- what is wrong from the start ------------------------------------------------------------------------------------


async def test_a_role_that_may_make_no_tables_is_told_by_check_before_the_first_start(place, make, postgres):
    url = make("bare_1", "CREATE ROLE poor LOGIN", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    try:
        place.config["database"]["url"] = as_role(url, "poor")
        await told(place, 2, "permission denied for schema public", "own the database")
    finally:
        postgres.drop(url)
        postgres.execute("DROP ROLE poor")


async def test_a_role_that_may_only_read_is_told_what_it_may_not_write(place, postgres):
    await executed(place.database, "CREATE ROLE reader LOGIN", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    try:
        place.config["database"]["url"] = as_role(place.database, "reader")
        await told(place, 2, "it may not read and write", "media", "own the database")
        # But it may look.
        await place.run("status")
        assert (await place.run("list", "--json")).rows == []
        assert "own the database" in one_line(await place.run("retry", code=2))
    finally:
        await executed(place.database, "DROP OWNED BY reader", "DROP ROLE reader")


async def test_a_standby_is_read_and_never_written(place):
    """A standby refuses writes as a database that is set read-only does (25006)."""
    name = place.database.split("?")[0].rpartition("/")[2]
    await executed(place.database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await told(place, 3, "can only be read", "target_session_attrs=read-write")
    assert (await place.json("status"))["sources"].keys() == {"hq"}
    assert "can only be read" in one_line(await place.run("verify", code=3))


async def test_a_real_standby_is_looked_at_and_the_primary_is_found_among_several_hosts(tmp_path):
    with servers.postgres() as primary:
        primary.execute("CREATE DATABASE archiver")
        async with commands.place(tmp_path, primary.url()) as place:
            hq = await place.add("hq", ChronicallSimulator())
            hq.add_call(datetime.now(UTC) - HOUR, timedelta(seconds=1))
            await place.run("sync")
            with servers.standby(primary) as standby:
                place.config["database"]["url"] = standby.url
                assert (await place.json("status"))["sources"]["hq"]["archived"] == 2
                assert len((await place.run("list", "--json")).rows) == 2
                await told(place, 3, "can only be read", "target_session_attrs=read-write")
                # The standby first, which is passed over.
                hosts = f"127.0.0.1:{standby.url.rpartition(':')[2].partition('/')[0]},127.0.0.1:{primary.port}"
                both = f"postgresql://archiver@{hosts}/archiver?target_session_attrs=read-write"
                place.config["database"]["url"] = both
                await place.run("sync")
                assert "ok      database" in (await place.run("check")).out
                place.config["database"]["url"] = f"{standby.url}?target_session_attrs=read-write"
                said = one_line(await place.run("sync", code=3))
                assert "no host of [database] url is as target_session_attrs wants it" in said


async def test_a_dropped_table_ends_the_daemon_for_good_and_names_the_table(place):
    await executed(place.database, "DROP TABLE copies CASCADE")
    await told(place, 2, "lacks tables of ours: copies", "archiver rebuild")


async def test_a_table_that_lacks_a_column_is_found_by_check(place):
    await executed(place.database, "ALTER TABLE media DROP COLUMN told_size")
    checked = await place.run("check", code=3)
    assert "told_size" in checked.out


async def test_a_wrong_name_of_the_database_or_its_user_ends_the_daemon_for_good(place, postgres):
    place.config["database"]["url"] = postgres.url_of("nobody_made_it")
    await told(place, 2, "does not exist", "createdb")
    place.config["database"]["url"] = as_role(place.database, "nobody")
    await told(place, 2, 'role "nobody" does not exist', "mend user, password and database name")


async def test_a_limit_on_connections_is_no_reason_to_look_whether_postgresql_runs(place, postgres):
    await executed(place.database, "CREATE ROLE crowded LOGIN SUPERUSER CONNECTION LIMIT 0")
    postgres.execute("ALTER ROLE crowded NOSUPERUSER")
    try:
        place.config["database"]["url"] = as_role(place.database, "crowded")
        await told(place, 3, "too many connections", "raise max_connections")
    finally:
        postgres.execute("DROP ROLE crowded")


async def test_what_a_url_asks_of_the_server_and_it_does_not_know_is_a_config_error(place):
    place.config["database"]["url"] = f"{place.database}&statement_timeuot=5"
    await told(place, 2, "statement_timeuot", "leave that parameter out")


async def test_a_database_lost_on_the_way_ends_a_sync_with_1(place, postgres):
    hq = place.simulators["hq"]
    hq.add_call(datetime.now(UTC) - HOUR, timedelta(seconds=1))
    hq.fault("slow", "list", value=3.0)
    name = place.database.split("?")[0].rpartition("/")[2]
    running = await place.start("sync")
    await commands.until(lambda: hq.count("list") > 0)
    # As an administrator does for maintenance.
    postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    postgres.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    )
    try:
        done = await running.end()
        assert done.code == 1, done
        one_line(done)
    finally:
        postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


# -- every class of error --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sqlstate", "kind", "remedy"),
    [
        ("53100", CatalogFull, "make room"), ("53200", CatalogBusy, "memory"), ("53400", CatalogBusy, "limits"),
        ("53300", CatalogBusy, "max_connections"), ("57014", CatalogBusy, "statement_timeout"),
        ("55P03", CatalogBusy, "locks"),
        ("57P01", CatalogDown, "see that PostgreSQL runs"), ("57P02", CatalogDown, "PostgreSQL runs"),
        ("57P03", CatalogDown, "wait"), ("57P05", CatalogDown, "idle_session_timeout"),
        ("25006", CatalogReadOnly, "primary"),
        ("25P03", CatalogBusy, "idle_in_transaction_session_timeout"), ("28P01", CatalogRefused, "password"),
        ("28000", CatalogRefused, "user"), ("3D000", CatalogRefused, "createdb"), ("57P04", CatalogRefused, "dropped"),
        ("42501", CatalogForbidden, "own"), ("42P01", CatalogMisfit, "rebuild"), ("42703", CatalogMisfit, "rebuild"),
        ("58030", CatalogDamaged, "disk"), ("58P01", CatalogDamaged, "disk"), ("XX001", CatalogDamaged, "restore"),
        ("XX000", CatalogDamaged, "log"), ("40P01", CatalogDown, "again"), ("08006", CatalogDown, "PostgreSQL runs"),
        ("3F000", CatalogMisfit, "search_path"), ("54000", CatalogBusy, "limits"),
    ],
)  # fmt: skip
async def test_each_class_of_errors_has_its_words_and_its_remedy(catalog, sqlstate, kind, remedy):
    with pytest.raises(CatalogDown) as raised:
        async with catalog._connection() as c:
            await c.execute(f"DO $$ BEGIN RAISE EXCEPTION 'as it said' USING ERRCODE = '{sqlstate}'; END $$")
    assert type(raised.value) is kind
    assert str(raised.value).endswith(": as it said")
    assert remedy in advice(raised.value)
    # The next one finds all as it was.
    await catalog.ping()


@pytest.mark.parametrize("sqlstate", ["42601", "22003", "23505", "23514"])
async def test_what_is_a_defect_of_ours_is_called_nothing_else(catalog, sqlstate):
    with pytest.raises(asyncpg.PostgresError):
        async with catalog._connection() as c:
            await c.execute(f"DO $$ BEGIN RAISE EXCEPTION 'oh' USING ERRCODE = '{sqlstate}'; END $$")


# -- a daemon under way ----------------------------------------------------------------------------------------------


async def test_a_daemon_survives_a_lost_table_says_so_and_goes_on_when_it_is_back(place):
    hq = place.simulators["hq"]
    place.config["sources"]["hq"] |= {"poll": "1s"}
    daemon = await place.start("run")
    await daemon.said("poll.done")
    await executed(place.database, "ALTER TABLE media RENAME TO mislaid")
    await daemon.said("the tables of the database are not as this version needs them")
    assert not daemon.over
    await executed(place.database, "ALTER TABLE mislaid RENAME TO media")
    hq.add_call(datetime.now(UTC) - timedelta(minutes=1), timedelta(seconds=1))
    await daemon.said("recording.archived")
    done = await daemon.end(signal.SIGTERM)
    assert done.code == 0
    assert "Traceback" not in done.err


# -- other versions --------------------------------------------------------------------------------------------------


async def older(url: str) -> None:
    """A database as the version before this one left it."""
    connection = await asyncpg.connect(url)
    try:
        for number, name, text in migrations()[:-1]:
            await connection.execute(text)
            if number == 1:
                await connection.execute(
                    "CREATE TABLE schema_version (version integer PRIMARY KEY, name text NOT NULL,"
                    " applied_at timestamptz NOT NULL DEFAULT now())"
                )
            await connection.execute("INSERT INTO schema_version VALUES ($1, $2)", number, name)
    finally:
        await connection.close()


async def version_of(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT max(version) FROM schema_version"))
    finally:
        await connection.close()


async def test_commands_that_look_leave_an_older_schema_as_it_is_and_name_what_changes_it(place, make):
    url = make("older_1")
    await older(url)
    place.config["database"]["url"] = url
    looks = [("status",), ("list",), ("show", "hq", "x"), ("why", "hq", "x"), ("rejected", "hq"), ("retry",)]
    looks += [
        ("verify",),
        ("get", "hq", "x", "-o", "-"),
        ("copy", "--to", "disk"),
        ("rebuild", "--store", "disk", "--drill"),
    ]
    for line in looks:
        done = await place.run(*line, code=None)
        if done.code:
            assert "archiver migrate" in done.err or "no recording" in done.err, done
    checked = await place.run("check")
    assert f"schema version {newest() - 1}" in checked.out
    assert await version_of(url) == newest() - 1
    await place.run("sync")
    assert await version_of(url) == newest()
    await place.run("status")


async def test_a_newer_schema_is_read_as_far_as_that_goes_and_written_by_nobody(place, postgres):
    await executed(place.database, f"INSERT INTO schema_version (version, name) VALUES ({newest() + 1}, 'newer')")
    status = await place.run("status")
    assert "run the newer version" in status.err
    assert (await place.run("list", "--json")).rows == []
    for line in (["run"], ["sync"], ["verify"], ["retry"]):
        said = one_line(await place.run(*line, code=2))
        assert f"the database has schema {newest() + 1}" in said
        assert "run the newer version" in said


async def test_commands_that_look_make_no_tables_in_an_empty_database(place, make):
    url = make("empty_2")
    place.config["database"]["url"] = url
    for line in (["status"], ["list"], ["verify"], ["retry"]):
        said = one_line(await place.run(*line, code=3))
        assert "has no tables yet" in said
        assert "`archiver run`" in said
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    await connection.close()
    await place.run("sync")
    await place.run("status")


async def test_a_migration_takes_as_long_as_it_takes_and_systemd_is_told_to_wait(tmp_path, make, monkeypatch):
    """With a time limit it would begin anew for ever: what it has done is undone with it."""
    url = make("older_2")
    await older(url)
    monkeypatch.setattr(database, "PATIENCE", 1.0)
    monkeypatch.setattr(schema, "PROGRESS", 0.1)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    async with commands.place(tmp_path, f"{url}&options=-cstatement_timeout%3D500ms") as place:
        await place.add("hq", ChronicallSimulator())
        loaded = config.load(place.write())
        reader = await asyncpg.connect(url)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, capture_logs() as said:
            systemd.bind(str(tmp_path / "notify"))
            systemd.setblocking(False)
            reading = reader.transaction()
            await reading.start()
            # That it is done can't be written down yet; what version it has can be read.
            await reader.execute("LOCK TABLE schema_version IN SHARE ROW EXCLUSIVE MODE")
            migrating = asyncio.create_task(migrated(loaded))
            await asyncio.sleep(3)
            assert not migrating.done()
            await reading.rollback()
            await migrating
            assert "EXTEND_TIMEOUT_USEC=" in systemd.recv(1000).decode()
        await reader.close()
    told = [line for line in said if line["event"] == "schema.migrating"]
    assert told[0]["file"] == migrations()[-1][1]
    assert await version_of(url) == newest()


async def migrated(loaded: config.Config) -> None:
    async with wiring.opened_catalog(loaded, Need.MIGRATED):
        pass


async def test_check_finds_everything_in_an_empty_database_and_leaves_it_so(make):
    url = make("empty_3")
    catalog = await Catalog.open(url, size=1)
    try:
        assert await catalog.check() == "still empty"
        assert await catalog.version() == 0
        await catalog.ready(Need.MIGRATED)
        assert await catalog.check() == f"schema version {newest()}"
    finally:
        await catalog.close()


# -- the embedded one's disk -----------------------------------------------------------------------------------------


async def test_check_says_when_the_disk_of_the_embedded_database_is_nearly_full(tmp_path, monkeypatch):
    usage = type("Usage", (), {"total": 100 << 30, "free": 1 << 30})
    monkeypatch.setattr("archiver.catalog.embedded.shutil.disk_usage", lambda _: usage)
    with pytest.raises(CatalogFull, match=r"1\.1 GB left.* needs 2\.1 GB") as raised:
        Embedded(tmp_path).check_room()
    assert "make room" in advice(raised.value)
    usage.free = 3 << 30
    Embedded(tmp_path).check_room()


async def test_nothing_of_what_is_tried_stays(catalog, database):
    for _ in range(3):
        await catalog.prove()
    rows = await commands.tables(database)
    assert rows["processes"] == []
