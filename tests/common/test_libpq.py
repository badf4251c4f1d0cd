"""PostgreSQL's URLs as its own tools take them, and poolers before it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from archiver.catalog.catalog import Catalog, Need
from archiver.common import libpq
from archiver.errors import CatalogDown, CatalogPooled, CatalogRefused, advice
from archiver.simulators.chronicall import ChronicallSimulator
from tests import commands, servers

HOUR = timedelta(hours=1)


async def shown(url: str, *settings: str) -> list[str]:
    """What the server's settings are in a connection to that URL."""
    catalog = await Catalog.open(url, size=1)
    try:
        async with catalog._connection() as c:
            return [await c.fetchval(f"SHOW {name}") for name in settings]
    finally:
        await catalog.close()


@pytest.mark.parametrize(
    "parameter",
    [
        "channel_binding=prefer", "channel_binding=disable", "gssencmode=prefer", "gssencmode=disable",
        "connect_timeout=5", "connect_timeout=0", "application_name=mine", "fallback_application_name=mine",
        "keepalives=1", "keepalives_idle=30", "tcp_user_timeout=1000", "client_encoding=auto", "sslcompression=0",
        "target_session_attrs=read-write", "target_session_attrs=any", "sslmode=prefer", "sslmode=disable",
        "krbsrvname=postgres", "load_balance_hosts=random", "sslsni=1", "replication=false", "timezone=Europe/Paris",
        "pgbouncer=true", "options=-c%20search_path%3Dpublic", "options=--search-path%3Dpublic", "jit=off",
        "gssdelegation=0", "min_protocol_version=3.0", "sslcertmode=allow", "passfile=/none",
    ],
)  # fmt: skip
async def test_what_postgresqls_own_tools_take_is_taken(database, parameter):
    own = ("timezone", "client_encoding", "tcp_keepalives_idle")
    assert (await shown(f"{database}&{parameter}", *own))[:2] == ["UTC", "UTF8"]


@pytest.mark.parametrize(
    ("parameter", "word"),
    [
        ("channel_binding=require", "channel_binding=prefer"), ("gssencmode=require", "gssencmode=disable"),
        ("hostaddr=127.0.0.1", "in place of the host name"), ("replication=database", "leave replication out"),
        ("require_auth=scram-sha-256", "leave require_auth out"), ("connect_timeout=soon", "whole number"),
        ("options=-W", "settings only"), ("sslrootcert=system&sslmode=require", "sslmode=verify-full"),
        ("requirepeer=postgres", "leave requirepeer out"),
    ],
)  # fmt: skip
def test_what_archiver_can_not_do_is_an_error_that_says_what_to_write(parameter, word):
    with pytest.raises(ValueError, match=word):
        libpq.read(f"postgresql://archiver@db/archiver?{parameter}")


def test_options_are_read_as_the_servers_command_line_is():
    target = libpq.read(r"postgresql://a@b/c?options=-c%20work_mem%3D1MB%20-csearch_path%3Da%5C%20b&connect_timeout=1")
    assert target.settings == {"work_mem": "1MB", "search_path": "a b"}
    assert target.timeout == 2.0
    assert target.url == "postgresql://a@b/c"


def test_certificates_of_public_authorities_are_asked_for_as_libpq_has_it():
    target = libpq.read("postgresql://a@b/c?sslmode=verify-full&sslrootcert=system")
    assert target.public
    assert "ssl" not in target.url


@pytest.mark.parametrize(
    ("parameter", "word"),
    [
        ("statement_timeuot=5", "statement_timeuot"), ("statement_timeout=never", "statement_timeout"),
        ("sslmode=always", "sslmode"), ("sslmode=verify-full", "root certificate"),
        ("target_session_attrs=best", "target_session_attrs"), ("options=-cno_such=1", "no_such"),
    ],
)  # fmt: skip
async def test_a_parameter_that_nobody_takes_is_one_line_and_a_config_error(database, parameter, word, monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(CatalogRefused, match=word):
        await shown(f"{database}&{parameter}")


async def test_a_config_with_such_a_url_is_refused_with_what_to_write_and_what_is_left_out_is_told(tmp_path, database):
    async with commands.place(tmp_path, f"{database}&channel_binding=require") as place:
        await place.add("hq", ChronicallSimulator())
        refused = await place.run("check", "--offline", code=2)
        assert "database.url: channel_binding: archiver can't bind" in refused.err
        place.config["database"]["url"] = f"{database}&application_name=mine"
        told = await place.run("check")
        assert "database.url: leave out application_name: archiver names its connections itself" in told.err
        assert "ok      database" in told.out


# -- poolers -----------------------------------------------------------------------------------------------------------


async def test_behind_a_pooler_that_keeps_sessions_together_all_works(tmp_path: Path, database: str):
    with servers.bouncer(database, "session") as bouncer:
        async with commands.place(tmp_path, bouncer.url) as place:
            hq = await place.add("hq", ChronicallSimulator())
            hq.add_call(datetime.now(UTC) - HOUR, timedelta(seconds=1))
            assert "ok      database" in (await place.run("check")).out
            await place.run("sync")
            assert await place.held() == place.truth()
        assert await shown(f"{bouncer.url}?options=-cjit%3Doff", "jit", "timezone") == ["off", "UTC"]


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pooler_whose_locks_do_not_hold_is_found_before_anything_is_archived(tmp_path, database, mode):
    with servers.bouncer(database, mode) as bouncer:
        async with commands.place(tmp_path, bouncer.url) as place:
            hq = await place.add("hq", ChronicallSimulator())
            hq.add_call(datetime.now(UTC) - HOUR, timedelta(seconds=1))
            for line in ("run", "sync"):
                done = await place.run(line, code=2)
                assert "pool" in done.err.splitlines()[-1]
                assert "pool_mode = session" in done.err.splitlines()[-1]
            checked = await place.run("check", code=3)
            assert "pool_mode = session" in checked.out
            assert hq.count("audio") == 0


async def test_a_lock_that_does_not_hold_is_found_also_where_statements_are_prepared(database):
    """Poolers of today keep prepared statements over sessions; the lock is lost all the same."""
    with servers.bouncer(database, "transaction", "max_client_conn = 50") as bouncer:
        catalog = Catalog(f"{bouncer.url}?jit=off")
        catalog._how = _simple(catalog._how)  # type: ignore[method-assign]
        with pytest.raises(CatalogDown) as raised:
            await catalog.prove_locks()
        assert "pool_mode" in advice(raised.value)


def _simple(how):
    def unprepared(*, command_timeout):
        return how(command_timeout=command_timeout) | {"statement_cache_size": 0}

    return unprepared


@pytest.mark.parametrize("how", ["plain", "md5", "scram-sha-256"])
async def test_a_wrong_password_is_a_config_error_and_repeated_nowhere(database, how):
    with servers.bouncer(database, "session", f"auth_type = {how}") as bouncer:
        for password in ("very-wrong", ""):
            with pytest.raises(CatalogRefused) as raised:
                await shown(bouncer.url.replace("archiver@", f"archiver:{password}@"), "timezone")
            assert "password" in advice(raised.value)
            assert "very-wrong" not in str(raised.value)
        assert await shown(bouncer.url.replace("archiver@", "archiver:right@"), "timezone") == ["UTC"]


async def test_a_pooler_without_room_or_without_its_server_is_away_for_now(database):
    with servers.bouncer(database, "session", "max_client_conn = 1") as bouncer:
        catalog = await Catalog.open(bouncer.url, size=1)
        try:
            with pytest.raises(CatalogDown, match="no more connections allowed") as raised:
                await catalog.ready(Need.SAME)
            assert not raised.value.lasting
            assert not isinstance(raised.value, CatalogPooled)
        finally:
            await catalog.close()
