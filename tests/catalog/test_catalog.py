"""The catalog against a real PostgreSQL: what is written together, who may write, what is found again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from archiver.catalog import discovery, drills, locks, to_rows
from archiver.catalog.catalog import Catalog, Query, Reading, migrations, with_results
from archiver.catalog.query import where_of
from archiver.catalog.schema import statements
from archiver.errors import CatalogDown
from archiver.model import (
    Availability,
    CallEvent,
    Claim,
    Copy,
    Direction,
    Download,
    Flag,
    ListingKey,
    Outcome,
    Party,
    Recording,
    Rejected,
    State,
    Window,
    holdable,
    holdable_tree,
)
from tests.engine import eventually
from tests.factories import NOON, ManualClock, a_listing, a_medium, a_recording, a_window, at

LEASE = timedelta(minutes=2)
SHA = "5f" * 32
HQ = "hq"
#: The catalog's statements by their names.
SQL = SimpleNamespace(**statements(Catalog))


# -- what the tests say --------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def db(database):
    """A connection beside the catalog's own."""
    connection = await asyncpg.connect(database, timeout=20, server_settings={"timezone": "UTC"})
    yield connection
    connection.terminate()


@pytest_asyncio.fixture
async def hq(catalog):
    """The catalog, with a source named hq."""
    await catalog.source(HQ, "chronicall", default_start=at("17T00:00"), start=None)
    return catalog


@contextlib.asynccontextmanager
async def another(database: str, clock: ManualClock):
    """Another process's catalog."""
    catalog = await Catalog.open(database, clock=clock)
    try:
        yield catalog
    finally:
        await catalog.close()


async def tell(
    catalog: Catalog,
    *recordings: Recording,
    source: str = HQ,
    window: Window | None = None,
    cover: bool = True,
    stores: tuple[str, ...] = ("main",),
    rejected: tuple[Rejected, ...] = (),
    key: ListingKey = ListingKey.START,
    cursor: str | None = None,
):
    """A listing as a poll records it."""
    listing = a_listing(*recordings, rejected=rejected)
    news = await catalog.unknown(source, listing.recordings)
    return await catalog.record(
        source, listing, news, listing_key=key, stores=stores, window=window, cover=cover, cursor=cursor
    )


async def claim(catalog: Catalog, count: int = 10, source: str = HQ) -> list[Claim]:
    return await catalog.claim({source: count}, LEASE)


def a_copy(claim: Claim, store: str = "main", sha256: str = SHA, size: int = 10) -> Copy:
    key = f"{claim.source}/{claim.medium.recording_id}/{claim.medium.media_id}-{sha256[:12]}.wav"
    return Copy(store=store, key=key, size=size, sha256=sha256, archived_at=NOON)


def a_download(claim: Claim, *stores: str, sha256: str = SHA, size: int = 10, **changes: Any) -> Download:
    copies = tuple(a_copy(claim, store, sha256, size) for store in stores or claim.stores)
    return Download(
        **{
            "claim": claim, "sha256": sha256, "size": size, "content_type": "audio/wav",
            "duration": timedelta(seconds=60), "copies": copies,
        } | changes
    )  # fmt: skip


def an_outcome(claim: Claim, state: State = State.FAILED, **changes: Any) -> Outcome:
    return Outcome(
        **{
            "claim": claim, "state": state, "due_at": NOON, "error": "it broke", "attempts": claim.attempts + 1,
            "failing_since": NOON, "what": "failed",
        } | changes
    )  # fmt: skip


async def settle(catalog: Catalog, *finished: Download | Outcome, **how: Any) -> dict[tuple[str, str, str], State]:
    """By id, where the catalog tells by token."""
    states = await catalog.settle(
        [f for f in finished if isinstance(f, Download)],
        [f for f in finished if isinstance(f, Outcome)],
        revisions=how.get("revisions", {}),
        targets=how.get("targets", {}),
    )
    assert set(states) <= {f.claim.token for f in finished}
    return {f.claim.id: states[f.claim.token] for f in finished if f.claim.token in states}


async def archived(catalog: Catalog, *recordings: Recording, **how: Any) -> None:
    """These recordings, with all their media in their stores."""
    await tell(catalog, *recordings, **how)
    await settle(catalog, *(a_download(c) for c in await claim(catalog, 1000, how.get("source", HQ))))


async def media(db, columns: str = "state", recording_id: str | None = None) -> list[Any]:
    rows = await db.fetch(
        f"SELECT {columns} FROM media WHERE $1::text IS NULL OR recording_id = $1 ORDER BY recording_id, media_id",
        recording_id,
    )
    return [row[0] if len(row) == 1 else tuple(row) for row in rows]


async def tokens(db) -> list[int]:
    return [row[0] for row in await db.fetch("SELECT token FROM claims ORDER BY token")]


async def covered(catalog: Catalog, source: str = HQ) -> tuple[Window, ...]:
    return (await catalog.sources([source]))[0]["covered"]


async def document(catalog: Catalog, recording_id: str, source: str = HQ) -> dict[str, Any]:
    return (await catalog.documents([(source, recording_id)]))[source, recording_id][0]


async def revision(catalog: Catalog, recording: Recording) -> int:
    return (await catalog.documents([(HQ, recording.recording_id)]))[HQ, recording.recording_id][1]


async def found(catalog: Catalog, **filters: Any) -> list[str]:
    return [d["recording_id"] async for d in catalog.find(Query(**filters))]


@contextlib.asynccontextmanager
async def spoilt(db, table: str):
    """Meanwhile no transaction that wrote to this table can be committed."""
    await db.execute(
        f"""
        CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'spoilt'; END $$;
        CREATE CONSTRAINT TRIGGER spoiling AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION spoil();
        """
    )
    yield
    await db.execute("DROP FUNCTION spoil CASCADE")


async def happened(catalog: Catalog, recording_id: str) -> list[str]:
    return [entry["what"] for entry in await catalog.history(HQ, recording_id)]


# -- schema ----------------------------------------------------------------------------------------------------------


class TestSchema:
    def test_the_statements_of_all_chapters_are_seen_and_no_two_have_the_same_name(self):
        named: dict[str, set[str]] = {}
        for chapter in {chapter.__module__ for chapter in Catalog.__mro__}:
            for name, value in vars(sys.modules[chapter]).items():
                if name.isupper() and isinstance(value, str):
                    named.setdefault(name, set()).add(value)
        assert [name for name, values in named.items() if len(values) > 1] == []
        assert len(statements(Catalog)) > 100

    async def test_every_statement_prepares(self, db, subtests):
        # A drill compares two schemas; here one stands for both.
        async with db.transaction():
            await db.execute(drills.DRILLED.replace("$1", "'disk'").format(schema="public"))
            of_drills = {name: value for name, value in vars(drills).items() if name.startswith("DRILL_")}
            for name, statement in (statements(Catalog) | of_drills).items():
                with subtests.test(name):
                    async with db.transaction():
                        await db.prepare(statement.replace("{schema}", "public"))
            await db.execute("DROP TABLE drilled")

    async def test_an_empty_database_has_version_0(self, postgres):
        postgres.execute("CREATE DATABASE bare")
        url = postgres.url_of("bare")
        try:
            async with another(url, ManualClock()) as first, another(url, ManualClock()) as second:
                assert await first.version() == 0
                applied = await asyncio.gather(first.migrate(), second.migrate(), first.migrate())
                assert sorted(name for names in applied for name in names) == [name for _, name, _ in migrations()]
                assert await first.version() == migrations()[-1][0]
                assert await second.migrate() == []
                # An older program, after a newer one.
                newer = migrations()[-1][0] + 1
                async with first._connection() as connection:
                    await connection.execute("INSERT INTO schema_version (version, name) VALUES ($1, 'newer')", newer)
                with pytest.raises(CatalogDown, match=f"the database has schema {newer}, and this version knows"):
                    await first.migrate()
        finally:
            postgres.drop(url)

    async def test_what_an_older_version_archived_is_there_after_an_upgrade(self, postgres):
        postgres.execute("CREATE DATABASE older")
        url = postgres.url_of("older")
        _, name, text = migrations()[0]
        old = """
            INSERT INTO sources (name, kind, start_at) VALUES ('hq', 'xivo', now());
            INSERT INTO recordings
                (source, recording_id, key_at, started_at, direction, raw, digest, first_listed_at)
                SELECT 'hq', id, now(), now(), 'unknown', '{}', '', now()
                FROM unnest('{a,b,c}'::text[]) AS id;
            INSERT INTO media (source, recording_id, media_id, due_at, claim, attempts, stores)
                VALUES ('hq', 'c', 'audio', '2026-03-01 12:02Z', nextval('claims'), 3, '{disk}');
            INSERT INTO media (source, recording_id, media_id, state, due_at, stores, held, size, sha256, archived_at)
                SELECT 'hq', id, 'audio', 'archived', now(), '{disk}', '{disk}', 1, repeat('a', 64), now()
                FROM unnest('{a,b}'::text[]) AS id;
            INSERT INTO copies (store, key, source, recording_id, media_id, size, sha256, archived_at, verified_at)
                VALUES ('disk', 'k/a', 'hq', 'a', 'audio', 1, repeat('a', 64), '2026-01-01', '2026-03-01'),
                       ('disk', 'k/b', 'hq', 'b', 'audio', 1, repeat('a', 64), '2026-02-01', NULL)"""
        try:
            connection = await asyncpg.connect(url)
            await connection.execute(text)
            await connection.execute(
                "CREATE TABLE schema_version (version integer PRIMARY KEY, name text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT now())"
            )
            await connection.execute("INSERT INTO schema_version VALUES (1, $1)", name)
            await connection.execute(old)
            await connection.close()
            async with another(url, ManualClock()) as newer:
                assert await newer.version() == 1
                assert await newer.migrate() == [name for _, name, _ in migrations()[1:]]
                # What was verified before is not read again before the rest, and the stores hear of it.
                long_after = datetime(2030, 1, 1, tzinfo=UTC)
                stalest = await newer.stalest("disk", None, long_after, (datetime.min.replace(tzinfo=UTC), ""), 9)
                assert [copy.key for _, copy, _ in stalest] == ["k/b", "k/a"]
                assert [told[:3] for told in await newer.untold_verified(["hq"], 9)] == [("hq", "disk", "k/a")]
                # What was in hand when its process ended is due when its lease would have ended.
                newer.clock.set(datetime(2026, 3, 1, 12, 2, tzinfo=UTC) - timedelta(microseconds=1))
                assert await claim(newer) == []
                newer.clock.advance(timedelta(microseconds=1))
                (held,) = await claim(newer)
                assert (held.medium.recording_id, held.attempts) == ("c", 3)
                assert await settle(newer, a_download(held)) == {held.id: State.ARCHIVED}
        finally:
            postgres.drop(url)

    def test_migrations_are_numbered_without_a_gap(self):
        assert [number for number, _, _ in migrations()] == list(range(1, len(migrations()) + 1))

    async def test_the_database_itself_refuses_a_state_without_its_facts(self, hq, db, subtests):
        await tell(hq, a_recording())
        facts = "size = 1, sha256 = repeat('a', 64), archived_at = now()"
        for change in (
            "state = 'archived'",
            f"state = 'archived', {facts}",
            f"state = 'archived', {facts}, held = '{{other}}'",
            "state = 'archived', size = 1, archived_at = now(), held = '{main}'",
            "state = 'archived', size = 1, sha256 = 'short', archived_at = now(), held = '{main}'",
            f"state = 'pending', {facts}, held = '{{main}}'",
            "state = 'lost'",
            "stores = '{}'",
        ):
            with subtests.test(change), pytest.raises(asyncpg.CheckViolationError):
                await db.execute(f"UPDATE media SET {change}")
        await db.execute(f"UPDATE media SET state = 'archived', {facts}, held = '{{main,other}}'")


# -- discovery -------------------------------------------------------------------------------------------------------


class TestSource:
    async def test_a_start_is_kept_until_the_config_names_another(self, catalog):
        async def start(default: str, configured: str | None) -> datetime:
            ledger = await catalog.source(
                HQ, "xivo", default_start=at(default), start=at(configured) if configured else None
            )
            return ledger.start_at

        assert await start("10:00", None) == at("10:00")
        assert await start("11:00", None) == at("10:00")
        assert await start("11:00", "09:00") == at("09:00")
        assert await start("11:00", None) == at("09:00")

    async def test_a_pause_and_a_poll_are_remembered(self, hq):
        await hq.pause(HQ, at("13:00"), "it answered 401\0")
        await hq.polled(HQ, "time-out\ud800")
        ledger = await hq.source(HQ, "chronicall", default_start=NOON, start=None)
        assert (ledger.paused_until, ledger.paused_why) == (at("13:00"), "it answered 401\\u0000")
        (row,) = await hq.sources()
        assert (row["polled_at"], row["poll_error"]) == (NOON, "time-out\\ud800")
        await hq.pause(HQ, None, None)
        await hq.polled(HQ, None)
        (row,) = await hq.sources()
        assert (row["paused_until"], row["paused_why"], row["poll_error"]) == (None, None, None)


class TestRecord:
    async def test_new_unchanged_and_changed_recordings_are_told_apart(self, hq):
        one, other = a_recording(), a_recording()
        assert len(await hq.unknown(HQ, [one, other])) == 2
        first = await tell(hq, one, other)
        assert (first.listed, first.new, first.changed) == (2, 2, 0)
        again = await tell(hq, one, other)
        assert (again.listed, again.new, again.changed) == (2, 0, 0)
        changed = await tell(hq, one, replace(other, caller="+49 30 1", raw={"changed": True}))
        assert (changed.listed, changed.new, changed.changed) == (2, 0, 1)
        assert (await document(hq, other.recording_id))["caller"] == "+49 30 1"
        assert await happened(hq, other.recording_id) == ["changed"]
        assert await happened(hq, one.recording_id) == []

    async def test_ids_of_two_sources_do_not_meet(self, hq, db):
        await hq.source("branch", "xivo", default_start=NOON, start=None)
        recording = a_recording()
        await tell(hq, recording)
        assert len(await hq.unknown("branch", [recording])) == 1
        assert (await tell(hq, recording, source="branch")).new == 1
        assert await db.fetchval("SELECT count(*) FROM recordings") == 2

    async def test_rows_and_window_come_together(self, hq):
        await tell(hq, a_recording(), window=a_window("11:00", "12:00"))
        assert await covered(hq) == (a_window("11:00", "12:00"),)

    async def test_a_listing_that_breaks_midway_leaves_neither_rows_nor_window(self, hq, db):
        good = a_recording()
        bad = a_recording(media=(a_medium(recording_id="bad", size=-1),), recording_id="bad")
        with pytest.raises(asyncpg.CheckViolationError):
            await tell(hq, good, bad, window=a_window("11:00", "12:00"), cursor="next")
        assert await db.fetchval("SELECT count(*) FROM recordings") == 0
        assert await db.fetchval("SELECT count(*) FROM listings") == 0
        assert await covered(hq) == ()
        assert (await hq.sources())[0]["cursor"] is None

    @pytest.mark.parametrize("table", ["recordings", "media", "sources", "listings", "rejected"])
    async def test_a_listing_whose_commit_fails_leaves_nothing_whichever_part_it_was(self, hq, db, table):
        async with spoilt(db, table):
            with pytest.raises(asyncpg.RaiseError):
                await tell(
                    hq, a_recording(), window=a_window("11:00", "12:00"), cursor="7",
                    rejected=(Rejected(raw="?", reason="odd"),),
                )  # fmt: skip
        for each in ("recordings", "media", "listings", "rejected"):
            assert await db.fetchval(f"SELECT count(*) FROM {each}") == 0
        assert await covered(hq) == ()
        assert (await hq.sources())[0]["cursor"] is None

    async def test_a_cursor_moves_with_its_rows(self, hq):
        await tell(hq, a_recording(), cursor="7")
        assert (await hq.sources())[0]["cursor"] == "7"
        await tell(hq, a_recording())
        assert (await hq.sources())[0]["cursor"] == "7"

    async def test_a_window_that_may_not_join_is_listed_and_stays_a_gap(self, hq, db):
        await tell(hq, a_recording(), window=a_window("11:00", "12:00"), cover=False)
        assert await covered(hq) == ()
        assert await db.fetchval("SELECT count(*) FROM recordings") == 1

    async def test_the_ledger_is_compact_to_the_microsecond(self, hq):
        edge = at("11:00").replace(microsecond=123_457)
        for start, end in ((edge, at("12:00")), (at("10:00"), edge), (at("08:00"), at("09:00"))):
            await tell(hq, window=Window(start, end))
        assert await covered(hq) == (a_window("08:00", "09:00"), a_window("10:00", "12:00"))
        await tell(hq, window=Window(at("09:00") + timedelta(microseconds=1), at("10:00")))
        assert await covered(hq) == (
            a_window("08:00", "09:00"),
            Window(at("09:00") + timedelta(microseconds=1), at("12:00")),
        )
        await tell(hq, window=Window(at("09:00"), at("09:00") + timedelta(microseconds=1)))
        assert await covered(hq) == (a_window("08:00", "12:00"),)

    async def test_one_id_twice_in_one_listing_is_one_recording(self, hq):
        one = a_recording()
        recorded = await tell(hq, one, replace(one, caller="later"))
        assert recorded.new == 1
        assert (await document(hq, one.recording_id))["caller"] == "later"

    async def test_ids_that_postgresql_cannot_tell_apart_are_one_recording(self, hq):
        await tell(hq, a_recording(recording_id="x\0"), a_recording(recording_id="x\\u0000"))
        assert len(await found(hq)) == 1

    async def test_one_media_id_twice_in_one_recording_is_one_medium(self, hq, db):
        await tell(hq, a_recording(recording_id="r", media=(a_medium(recording_id="r"), a_medium(recording_id="r"))))
        assert await media(db) == ["pending"]

    async def test_more_recordings_than_one_statement_takes(self, hq, monkeypatch):
        monkeypatch.setattr(to_rows, "ROWS", 7)
        monkeypatch.setattr(to_rows, "FEW", 3)
        monkeypatch.setattr(discovery, "IDS", 20)
        recordings = [a_recording() for _ in range(50)]
        assert (await tell(hq, *recordings)).new == 50
        assert await hq.unknown(HQ, recordings) == []
        assert (await tell(hq, *(replace(r, caller="1", raw={"caller": "1"}) for r in recordings))).changed == 50

    async def test_long_rows_are_taken_in_few_at_a_time(self, hq, monkeypatch):
        monkeypatch.setattr(to_rows, "ROWS_BYTES", 5000)
        monkeypatch.setattr(to_rows, "FEW", 3)
        taken: list[int] = []
        chunk = to_rows.Telling._chunk
        monkeypatch.setattr(
            to_rows.Telling, "_chunk", lambda telling, news: [taken.append(len(news)), chunk(telling, news)][1]
        )
        recordings = [a_recording(raw={"said": "x" * (990 if n < 30 else 10)}) for n in range(90)]
        assert (await tell(hq, *recordings)).new == 90
        assert sum(taken) == 90
        assert taken[:5] == [3, 5, 5, 5, 5]
        assert max(taken) > 30

    async def test_a_recording_that_grew_has_its_new_medium_due(self, hq, db):
        one = a_recording()
        await archived(hq, one)
        grown = replace(
            one, media=(*one.media, a_medium(recording_id=one.recording_id, media_id="m2")), raw={"media": 2}
        )
        await tell(hq, grown)
        assert await media(db) == ["archived", "pending"]

    async def test_metadata_that_changed_is_described_again_but_not_fetched_again(self, hq, db):
        one = a_recording()
        await archived(hq, one)
        await hq.described({(HQ, one.recording_id): await revision(hq, one)})
        assert await hq.undescribed([HQ], 10) == []
        await tell(hq, replace(one, agent="Joe", raw={"agent": "Joe"}))
        assert await media(db) == ["archived"]
        assert await hq.undescribed([HQ], 10) == [(HQ, one.recording_id)]

    async def test_the_call_id_of_a_row_that_names_none_is_kept(self, hq):
        one = a_recording(call_id="c1")
        await tell(hq, one)
        await tell(hq, replace(one, call_id=None, raw={"short": True}))
        assert (await document(hq, one.recording_id))["call_id"] == "c1"

    async def test_a_future_or_ancient_moment_is_flagged_and_moves_nothing(self, hq):
        moments = {
            "future": NOON + timedelta(hours=18), "soon": NOON + timedelta(minutes=30),
            "ancient": datetime(1970, 1, 1, tzinfo=UTC), "far": datetime(9999, 12, 31, tzinfo=UTC),
        }  # fmt: skip
        await tell(
            hq,
            *(a_recording(recording_id=i, started_at=m, ended_at=None) for i, m in moments.items()),
            window=a_window("10:00", "12:00"),
        )
        flags = {d["recording_id"]: d["flags"] async for d in hq.find(Query())}
        assert flags == {"future": ["future"], "soon": [], "ancient": ["ancient"], "far": ["future"]}
        assert await covered(hq) == (a_window("10:00", "12:00"),)

    async def test_the_listing_key_decides_which_windows_should_hold_a_call(self, hq):
        long = a_recording(started_at=at("09:00"), ended_at=at("11:30"))
        await tell(hq, long, key=ListingKey.END, window=a_window("11:00", "12:00"))
        assert (await tell(hq, window=a_window("09:00", "10:00"), key=ListingKey.END)).missing == 0
        assert (await tell(hq, window=a_window("11:00", "12:00"), key=ListingKey.END)).missing == 1


class TestRejected:
    async def test_a_row_that_nobody_could_read_is_kept_and_counted(self, hq):
        bad = Rejected(raw='{"start": "\0\ud800"}', reason="no date\0")
        recorded = await tell(hq, a_recording(), window=a_window("11:00", "12:00"), rejected=(bad,))
        assert (recorded.listed, recorded.rejected) == (1, 1)
        assert await covered(hq) == (a_window("11:00", "12:00"),)
        assert await hq.rejected_counts() == {HQ: 1}
        (kept,) = await hq.rejected(HQ)
        assert (kept["raw"], kept["reason"], kept["times"]) == ('{"start": "\\u0000\\ud800"}', "no date\\u0000", 1)

    async def test_the_same_row_again_only_counts(self, hq, clock):
        bad = Rejected(raw="x", reason="no date")
        await tell(hq, rejected=(bad, bad))
        clock.advance(hours=1)
        await tell(hq, rejected=(bad, Rejected(raw="y", reason="no id")), window=a_window("11:00", "12:00"))
        assert await hq.rejected_counts() == {HQ: 2}
        kept = {row["raw"]: row for row in await hq.rejected(HQ)}
        assert kept["x"]["times"] == 2
        assert (kept["x"]["first_at"], kept["x"]["last_at"]) == ("2024-05-18T12:00:00.000Z", "2024-05-18T13:00:00.000Z")


class TestMissing:
    """Recordings that their source no longer lists."""

    window = a_window("11:00", "12:00")

    async def test_what_a_window_no_longer_lists_is_marked_once(self, hq, clock):
        one, other = a_recording(), a_recording()
        await tell(hq, one, other, window=self.window)
        clock.advance(minutes=5)
        assert (await tell(hq, one, window=self.window)).missing == 1
        clock.advance(minutes=5)
        assert (await tell(hq, one, window=self.window)).missing == 0
        assert (await document(hq, other.recording_id))["missing_since"] == "2024-05-18T12:05:00.000Z"
        assert await hq.missing_since(HQ, other.recording_id) == at("12:05")
        assert await hq.missing_since(HQ, one.recording_id) is None
        assert await happened(hq, other.recording_id) == ["no longer listed"]

    async def test_a_window_says_nothing_of_what_lies_outside_it(self, hq):
        edge = a_recording(started_at=at("12:00"))
        await tell(hq, edge, window=a_window("12:00", "13:00"))
        assert (await tell(hq, window=self.window)).missing == 0
        assert (await tell(hq, window=a_window("12:00", "13:00"))).missing == 1

    async def test_a_look_up_says_nothing_of_the_rest(self, hq):
        await tell(hq, a_recording(), window=self.window)
        assert (await tell(hq, a_recording())).missing == 0

    async def test_what_no_window_ever_listed_is_not_missed_by_one(self, hq):
        """It came by a cursor or a call id."""
        one = a_recording()
        await tell(hq, one)
        assert (await tell(hq, window=self.window)).missing == 0
        await tell(hq, one, window=self.window)
        assert (await tell(hq, window=self.window)).missing == 1

    async def test_what_is_listed_again_is_no_longer_missing_and_due_at_once(self, hq, db, clock):
        one = a_recording()
        await tell(hq, one, window=self.window)
        (c,) = await claim(hq)
        await settle(hq, an_outcome(c, State.PENDING, due_at=at("18:00")))
        await tell(hq, window=self.window)
        clock.advance(minutes=5)
        await tell(hq, one, window=self.window)
        assert await hq.missing_since(HQ, one.recording_id) is None
        assert await media(db, "due_at") == [at("12:05")]
        assert "listed again" in await happened(hq, one.recording_id)

    @pytest.mark.parametrize("state", [State.GONE, State.EMPTY])
    @pytest.mark.parametrize("changed", [False, True], ids=["same row", "other row"])
    async def test_what_was_gone_and_is_listed_again_is_fetched_again(self, hq, db, state, changed):
        one = a_recording()
        await tell(hq, one, window=self.window)
        (c,) = await claim(hq)
        await settle(hq, an_outcome(c, state))
        await tell(hq, window=self.window)
        await tell(hq, replace(one, raw={"back": True}) if changed else one, window=self.window)
        assert await media(db, "state, attempts, error") == [("pending", 0, None)]

    async def test_what_the_source_lists_as_deleted_stays_gone_when_it_is_listed_again(self, hq, db):
        medium = a_medium(recording_id="r", availability=Availability.DELETED)
        one = a_recording(recording_id="r", media=(medium,))
        for recordings in ([one], [], [one]):
            await tell(hq, *recordings, window=self.window)
        assert await hq.missing_since(HQ, "r") is None
        assert await media(db) == ["gone"]

    async def test_what_is_archived_stays_so_whether_listed_or_not(self, hq, db):
        one = a_recording()
        await archived(hq, one, window=self.window)
        await tell(hq, window=self.window)
        await tell(hq, one, window=self.window)
        assert await media(db) == ["archived"]
        assert set(await hq.undescribed([HQ], 10)) == {(HQ, one.recording_id)}

    async def test_a_window_with_unreadable_rows_marks_nothing_missing(self, hq):
        """The row that can't be read may be the one that is not seen."""
        one = a_recording()
        await tell(hq, one, window=self.window)
        recorded = await tell(hq, window=self.window, rejected=(Rejected(raw="?", reason="no id"),))
        assert recorded.missing == 0
        assert await hq.missing_since(HQ, one.recording_id) is None


class TestAvailability:
    @pytest.mark.parametrize(
        ("told", "state", "error"),
        [
            (Availability.READY, "pending", None),
            (Availability.NOT_READY, "pending", "not ready: the source says so"),
            (Availability.DELETED, "gone", "the source says that it was deleted"),
            (Availability.EMPTY, "empty", "the source holds no audio for it"),
        ],
    )
    async def test_what_the_source_says_is_where_a_medium_begins(self, hq, db, told, state, error):
        await tell(hq, a_recording(recording_id="r", media=(a_medium(recording_id="r", availability=told),)))
        assert await media(db, "state, error") == [(state, error)]
        due = await claim(hq)
        assert len(due) == (told is Availability.READY)

    async def test_a_medium_that_becomes_ready_is_due_at_once(self, hq, clock):
        def told(availability):
            return a_recording(recording_id="r", media=(a_medium(recording_id="r", availability=availability),))

        await tell(hq, told(Availability.NOT_READY))
        assert await claim(hq) == []
        assert await hq.doubtful(HQ, NOON) == [at("11:30")]
        clock.advance(seconds=10)
        await tell(hq, told(Availability.READY))
        assert len(await claim(hq)) == 1
        assert await hq.doubtful(HQ, NOON) == []

    @pytest.mark.parametrize("told", [Availability.DELETED, Availability.EMPTY])
    async def test_a_medium_that_is_deleted_before_it_was_fetched_ends(self, hq, db, told):
        one = a_recording(recording_id="r")
        await tell(hq, one)
        (c,) = await claim(hq)
        await tell(hq, replace(one, media=(a_medium(recording_id="r", availability=told),)))
        assert await media(db) == [told.value.replace("deleted", "gone")]
        assert await settle(hq, an_outcome(c, State.PENDING)) == {}

    async def test_a_medium_that_is_deleted_after_it_was_archived_stays_archived(self, hq, db):
        one = a_recording(recording_id="r")
        await archived(hq, one)
        await tell(hq, replace(one, media=(a_medium(recording_id="r", availability=Availability.DELETED),)))
        assert await media(db) == ["archived"]

    async def test_what_is_urgent_is_claimed_first(self, hq):
        await tell(hq, *(a_recording() for _ in range(5)))
        await tell(hq, a_recording(recording_id="u", media=(a_medium(recording_id="u", urgent=True),)))
        assert [c.medium.recording_id for c in await claim(hq, 1)] == ["u"]


async def test_who_is_ended_by_a_deadlock_begins_again_and_nobody_hears_of_it(hq, db):
    await tell(hq, a_recording(recording_id="a"), a_recording(recording_id="b"))
    # Not this one.
    await db.execute("SET deadlock_timeout = '60s'")
    touch = "UPDATE recordings SET flags = '{touched}' WHERE recording_id = $1"
    async with asyncio.timeout(60):
        async with db.transaction():
            await db.execute(touch, "b")
            revising = asyncio.create_task(hq.revise([(HQ, "a"), (HQ, "b")]))
            waiting = (
                "SELECT true FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            while not await db.fetchval(waiting):
                await asyncio.sleep(0.01)
            await db.execute(touch, "a")
        await revising
    assert [row[0] for row in await db.fetch("SELECT revision FROM recordings")] == [2, 2]


async def test_what_another_found_missing_after_we_looked_and_before_we_wrote_is_back(hq, db):
    one = a_recording()
    await tell(hq, one, window=a_window("10:00", "14:00"))
    await db.execute("UPDATE recordings SET missing_since = now()")
    # It was not missing when we looked, and so is no news.
    await hq.record(HQ, a_listing(one), [], listing_key=ListingKey.START, stores=("main",))
    assert await db.fetchval("SELECT missing_since FROM recordings") is None


@pytest.mark.parametrize("between", ["RECORDINGS_OF", "COPIES_OF_RECORDINGS", "MEDIA_OF"])
async def test_what_a_document_tells_is_of_one_moment(hq, database, clock, monkeypatch, between):
    """Else a manifest tells of a medium that is archived and has no copy."""
    fetch = asyncpg.Connection.fetch
    one = a_recording()
    await tell(hq, one)
    (due,) = await claim(hq)
    async with another(database, clock) as other:
        happened = asyncio.Event()

        async def watched(connection, statement, *values, **how):
            rows = await fetch(connection, statement, *values, **how)
            if statement == getattr(SQL, between) and not happened.is_set():
                happened.set()
                await settle(other, a_download(due))
            return rows

        with monkeypatch.context() as patched:
            patched.setattr(asyncpg.Connection, "fetch", watched)
            told = (await document(hq, one.recording_id))["media"][0]
    assert happened.is_set()
    assert (told["state"] == "archived") == bool(told["copies"])
    assert (await document(hq, one.recording_id))["state"] == "archived"


async def test_two_that_find_the_same_recordings_at_once_add_them_once(hq, db, database, clock):
    found = [a_recording(recording_id=name) for name in "abcd"]
    async with another(database, clock) as other:
        async with asyncio.timeout(60), db.transaction():
            await db.execute("LOCK TABLE media IN EXCLUSIVE MODE")
            both = [asyncio.create_task(tell(catalog, *found)) for catalog in (hq, other)]
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            # One waits for the table, the other to know whether the first one's rows will be there.
            while await db.fetchval(waiting) < 2:
                await asyncio.sleep(0.01)
        recorded = await asyncio.gather(*both)
    assert sorted(done.new for done in recorded) == [0, 4]
    assert await db.fetchval("SELECT array_agg(recording_id ORDER BY recording_id) FROM recordings") == [
        "a",
        "b",
        "c",
        "d",
    ]
    assert len(await media(db)) == 4


async def test_any_text_is_held_as_it_was_told_whether_it_is_new_or_told_again(hq):
    rnd = random.Random(3)
    texts = [
        "".join(rnd.choices("\\\t\n\r\0\0f\0r\0nNxb.\"{},'\x1f\x7fé\u2028\ud800😀", k=rnd.randrange(1, 30)))
        for _ in range(300)
    ]
    texts += ["\\N", "\\.", "\\", "NULL", "\0n", "\0", ""]
    first = [
        a_recording(recording_id=f"r{n}", caller=text, raw={text: [text]}, attributes={"said": text})
        for n, text in enumerate(texts)
    ]
    again = [replace(recording, raw=recording.raw | {"again": 1}) for recording in first]
    for told in (first, again):
        await tell(hq, *told)
        for recording in told:
            held = await document(hq, recording.recording_id)
            assert held["caller"] == holdable(recording.caller)
            assert held["attributes"] == holdable_tree(recording.attributes)
            assert held["raw"] == holdable_tree(recording.raw)


class TestChangedContent:
    """Changed content is a new copy beside the old one."""

    def told(self, **medium: Any) -> Recording:
        return a_recording(recording_id="r", media=(a_medium(recording_id="r", **medium),))

    @pytest.mark.parametrize("change", [{"size": 20}, {"sha256": "bb" * 32}], ids=["size", "hash"])
    async def test_an_archived_medium_is_fetched_again_and_its_old_copy_kept(self, hq, db, change):
        old = {"size": 10, "sha256": "aa" * 32}
        await archived(hq, self.told(**old))
        await tell(hq, self.told(**old | change))
        assert await media(db, "state, held, sha256, attempts") == [("pending", [], None, 0)]
        (c,) = await claim(hq)
        assert c.copies == ()
        assert await settle(hq, a_download(c, sha256="cc" * 32, size=20)) == {c.id: State.ARCHIVED}
        copies = (await document(hq, "r"))["media"][0]["copies"]
        assert [copy["sha256"][:2] for copy in copies] == ["5f", "cc"]
        assert await media(db, "sha256") == ["cc" * 32]

    async def test_a_size_that_is_told_for_the_first_time_changes_nothing(self, hq, db):
        await archived(hq, self.told())
        await tell(hq, self.told(size=10, sha256=SHA))
        assert await media(db) == ["archived"]

    async def test_bytes_that_were_told_otherwise_while_they_came_do_not_count(self, hq, db):
        await tell(hq, self.told(size=10))
        (c,) = await claim(hq)
        await tell(hq, self.told(size=20))
        assert await settle(hq, a_download(c)) == {}
        (again,) = await claim(hq)
        assert again.medium.size == 20

    async def test_a_medium_that_only_some_stores_hold_is_fetched_anew(self, hq, db):
        await tell(hq, self.told(size=10), stores=("main", "spare"))
        (c,) = await claim(hq)
        await settle(hq, a_download(c, "main", error="spare is down"))
        await tell(hq, self.told(size=20), stores=("main", "spare"))
        (again,) = await claim(hq)
        assert again.copies == ()
        assert await settle(hq, a_download(again, sha256="cc" * 32, size=20)) == {c.id: State.ARCHIVED}


class TestHostileText:
    """What PostgreSQL can't hold, in every text a vendor sends."""

    odd = "a\0b\ud800c\U0001f600"
    held = "a\\u0000b\\ud800c\U0001f600"

    async def test_every_text_of_a_recording_survives(self, hq):
        odd = self.odd
        recording = a_recording(
            recording_id=odd, call_id=odd, caller=odd, callee=odd, agent=odd, queue=odd,
            parties=(Party(number=odd, name=odd, user=odd, role=odd),),
            events=(CallEvent(at=NOON, event=odd, party=odd),),
            attributes={odd: odd}, raw={odd: [odd, {"deep": odd}]},
            media=(a_medium(recording_id=odd, media_id=odd, sha256=odd, content_type=odd, ref={odd: odd}),),
        )  # fmt: skip
        await tell(hq, recording, window=a_window("11:00", "12:00"))
        told = await document(hq, self.held)
        assert {told[f] for f in ("recording_id", "call_id", "caller", "callee", "agent", "queue")} == {self.held}
        assert told["parties"] == [dict.fromkeys(("number", "name", "user", "role"), self.held)]
        assert told["events"] == [{"at": "2024-05-18T12:00:00.000Z", "event": self.held, "party": self.held}]
        assert told["attributes"] == {self.held: self.held}
        assert told["raw"] == {self.held: [self.held, {"deep": self.held}]}
        (c,) = await claim(hq)
        assert (c.medium.media_id, c.medium.content_type, c.medium.ref) == (
            self.held, self.held, {self.held: self.held},
        )  # fmt: skip
        assert await hq.unknown(HQ, [recording]) == []
        await settle(hq, an_outcome(c, error=odd, what="failed"))
        assert (await hq.history(HQ, self.held))[0]["detail"] == self.held

    async def test_raw_keeps_its_order_and_its_numbers(self, hq):
        raw = {"z": 1, "a": [3, 1, 2], "m": {"y": 1.50, "b": 10**30}, "e": "é\\u0000 as written"}
        await tell(hq, a_recording(recording_id="r", raw=raw))
        assert json.dumps((await document(hq, "r"))["raw"]) == json.dumps(raw)

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")], ids=str)
    async def test_numbers_that_json_does_not_know_do_not_stop_a_listing(self, hq, number):
        """Python reads NaN where it should not."""
        await tell(hq, a_recording(recording_id="r", raw={"v": [number]}, attributes={"v": number}))
        told = await document(hq, "r")
        assert told["raw"] == {"v": [str(number)]}
        assert told["attributes"] == {"v": str(number)}

    async def test_an_event_of_another_zone_is_brought_to_utc(self, hq):
        moment = datetime.fromisoformat("2024-05-18T14:00:00+02:00")
        await tell(hq, a_recording(recording_id="r", events=(CallEvent(at=moment, event="left"),)))
        assert (await document(hq, "r"))["events"][0]["at"] == "2024-05-18T12:00:00.000Z"

    async def test_what_a_user_asks_for_may_hold_it_too(self, hq):
        await tell(hq, a_recording(recording_id=self.odd, caller=self.odd, raw={"x": self.odd}))
        assert await hq.documents([(HQ, "\0")]) == {}
        assert await hq.history(HQ, "\0") == []
        assert await hq.listings(HQ, "\0") is None
        assert await found(hq, caller="\0") == []
        assert await found(hq, caller=self.odd) == [self.held]
        assert await found(hq, caller="a\0*") == [self.held]
        assert await found(hq, text="\0b") == [self.held]
        assert await found(hq, source="\ud800") == []


# -- transfer ----------------------------------------------------------------------------------------------------------


class TestClaim:
    async def test_two_processes_never_get_the_same(self, hq, database, clock):
        """Who chose what another was just claiming gets fewer than there are, and asks again."""
        await tell(hq, *(a_recording() for _ in range(60)))
        batches = []

        async def take(catalog: Catalog) -> None:
            while batch := await claim(catalog, 7):
                batches.append(batch)

        async with another(database, clock) as other:
            await asyncio.gather(*(take(c) for _ in range(5) for c in (hq, other)))
        ids = [c.id for batch in batches for c in batch]
        assert len(ids) == len(set(ids)) == 60
        assert len({c.token for batch in batches for c in batch}) == 60

    async def test_a_claim_that_another_transaction_holds_is_passed_over(self, hq, db):
        await tell(hq, a_recording(), a_recording())
        async with db.transaction():
            locked = await db.fetchval("SELECT recording_id FROM media LIMIT 1 FOR UPDATE")
            async with asyncio.timeout(5):
                claims = await claim(hq)
        assert [c.medium.recording_id for c in claims] != [locked]
        assert len(claims) == 1

    async def test_it_takes_what_is_due_oldest_first_up_to_the_count_of_each_source(self, hq, clock):
        await hq.source("branch", "xivo", default_start=NOON, start=None)
        for source in (HQ, "branch"):
            for n in range(3):
                await tell(hq, a_recording(recording_id=f"{source}{n}"), source=source)
                clock.advance(seconds=1)
        claims = await hq.claim({HQ: 2, "branch": 1}, LEASE)
        assert sorted(c.medium.recording_id for c in claims) == ["branch0", "hq0", "hq1"]
        assert await hq.claim({"nowhere": 5}, LEASE) == []

    async def test_what_is_due_later_waits(self, hq, clock):
        await tell(hq, a_recording())
        await settle(hq, an_outcome((await claim(hq))[0], State.PENDING, due_at=at("12:10")))
        assert await hq.due([HQ]) == {HQ: at("12:10")}
        clock.set(at("12:10") - timedelta(microseconds=1))
        assert await claim(hq) == []
        clock.set(at("12:10"))
        assert len(await claim(hq)) == 1

    async def test_it_carries_what_a_transfer_needs(self, hq):
        medium = a_medium(
            recording_id="r", size=7, sha256="ab", duration=timedelta(seconds=3), content_type="audio/x", opaque=True,
            urgent=True, ref={"path": ["x", 1]},
        )  # fmt: skip
        one = a_recording(recording_id="r", media=(medium,))
        await tell(hq, one, stores=("main", "spare"))
        (c,) = await claim(hq)
        assert c.medium == medium
        assert (c.source, c.started_at, c.ended_at) == (HQ, one.started_at, one.ended_at)
        assert (c.attempts, c.failing_since, c.stores, c.copies) == (0, None, ("main", "spare"), ())

    async def test_a_lease_that_ends_gives_it_back_and_fences_the_first_holder(self, hq, clock):
        await tell(hq, a_recording())
        (first,) = await claim(hq)
        clock.advance(LEASE - timedelta(seconds=1))
        assert await claim(hq) == []
        clock.advance(seconds=1)
        (second,) = await claim(hq)
        assert second.id == first.id
        assert second.token != first.token
        assert await settle(hq, a_download(first)) == {}
        assert await settle(hq, a_download(second)) == {second.id: State.ARCHIVED}

    async def test_what_another_claimed_since_we_looked_is_left_to_it(self, hq, db, clock):
        await tell(hq, a_recording(), a_recording())
        async with db.transaction():
            await db.execute(
                "INSERT INTO claims (source, recording_id, media_id, generation, until, holder)"
                " SELECT source, recording_id, media_id, 0, $1, $2 FROM media ORDER BY recording_id LIMIT 1",
                clock.now() + LEASE,
                uuid4(),
            )
            ours = asyncio.create_task(claim(hq))
            await asyncio.sleep(0.3)
            assert not ours.done()
        (one,) = await ours
        assert one.token == (await tokens(db))[-1]
        assert await claim(hq) == []

    async def test_content_that_changed_while_it_was_claimed_is_due_at_once_and_the_old_one_is_refused(self, hq, db):
        await tell(hq, a_recording(recording_id="r", media=(a_medium(recording_id="r", size=10),)))
        (first,) = await claim(hq)
        await tell(hq, a_recording(recording_id="r", media=(a_medium(recording_id="r", size=11),)))
        (second,) = await claim(hq)
        assert second.medium.size == 11
        assert await settle(hq, a_download(first)) == {}
        assert await tokens(db) == [second.token]
        assert await settle(hq, a_download(second, size=11)) == {second.id: State.ARCHIVED}

    async def test_one_medium_claimed_twice_by_one_process_counts_once_and_is_described_again(self, hq, clock):
        recording = a_recording()
        await tell(hq, recording)
        (first,) = await claim(hq)
        clock.advance(LEASE)
        (second,) = await claim(hq)
        known = {(HQ, recording.recording_id): await revision(hq, recording)}
        # As it may be after an outage of the database: both were waiting for it.
        settled = await hq.settle([a_download(first), a_download(second)], [], revisions=known, targets={})
        assert settled == {second.token: State.ARCHIVED}
        assert (await hq.totals())[HQ, ""] == (1, 10)
        # What the refused one wrote into its manifest is not to be the last word.
        assert await hq.undescribed([HQ], 10) == [(HQ, recording.recording_id)]

    async def test_a_renewed_lease_holds(self, hq, clock):
        await tell(hq, a_recording(), a_recording())
        kept, lost = await claim(hq)
        clock.advance(minutes=1)
        await hq.renew([kept], LEASE)
        clock.advance(minutes=1, seconds=30)
        (again,) = await claim(hq)
        assert again.id == lost.id
        await hq.renew([lost], timedelta(hours=9))
        assert await hq.due([HQ]) == {HQ: at("12:03")}
        assert await hq.due([HQ], [kept.token]) == {HQ: clock.now() + LEASE}
        assert await hq.due([HQ], [kept.token, again.token]) == {}

    async def test_a_released_claim_is_due_at_once_untouched(self, hq, db):
        await tell(hq, a_recording())
        before = await media(db, "*")
        (c,) = await claim(hq)
        await hq.release([c])
        assert await media(db, "*") == before
        assert await hq.due([HQ]) == {HQ: NOON}
        assert await claim(hq)

    async def test_one_that_failed_can_be_claimed_by_name_and_counts(self, hq):
        await tell(hq, a_recording(recording_id="r"))
        await settle(hq, an_outcome((await claim(hq))[0], State.FAILED))
        assert await claim(hq) == []
        named = await hq.claim_one(HQ, "r", "m1", LEASE)
        assert await hq.claim_one(HQ, "r", "m1", LEASE) is None
        assert await settle(hq, a_download(named)) == {named.id: State.ARCHIVED}
        assert await hq.claim_one(HQ, "r", "m1", LEASE) is None

    async def test_what_is_in_hand_ends_where_it_began_to_go(self, hq, db):
        await tell(hq, a_recording(recording_id="a"), a_recording(recording_id="b"))
        (held,) = await claim(hq, 1)
        await hq.aim(HQ, ["other"])
        assert await media(db, "recording_id, stores") == [
            (i, ["main"] if i == held.medium.recording_id else ["other"]) for i in ("a", "b")
        ]

    async def test_who_leaves_keeps_nothing_claimed(self, hq, database, clock):
        await tell(hq, a_recording(), a_recording())
        kept, _ = await claim(hq)
        await hq.release([kept])
        async with another(database, clock) as interrupted:
            # It was told to stop while PostgreSQL committed: nobody has heard of this claim.
            assert len(await claim(interrupted)) == 1
        (free,) = await claim(hq)
        assert free.id == kept.id

    async def test_a_lost_claim_releases_nothing(self, hq, clock):
        await tell(hq, a_recording())
        (first,) = await claim(hq)
        clock.advance(LEASE)
        await claim(hq)
        await hq.release([first])
        assert await claim(hq) == []

    async def test_when_the_last_lease_ends_is_known(self, hq, clock):
        await tell(hq, a_recording(), a_recording())
        assert await hq.leased([HQ]) is None
        _, second = await claim(hq)
        clock.advance(minutes=1)
        await hq.renew([second], LEASE)
        assert await hq.leased([HQ]) == at("12:03")
        assert await hq.leased(["branch"]) is None
        await hq.release([second])
        assert await hq.leased([HQ]) == at("12:02")
        clock.set(at("12:02"))
        assert await hq.leased([HQ]) is None

    async def test_a_medium_is_found_with_what_is_needed_to_fetch_it_again(self, hq):
        medium = a_medium(recording_id="r", size=7, ref={"path": "x"}, urgent=True)
        await tell(hq, a_recording(recording_id="r", media=(medium,)))
        assert await hq.medium(HQ, "r", "m1") == medium
        assert await hq.medium(HQ, "r", "m2") is None

    async def test_nothing_is_due_where_nothing_is_pending(self, hq):
        await archived(hq, a_recording())
        assert await hq.due([HQ, "nowhere"]) == {}


class TestDeath:
    async def test_that_shares_are_uneven_is_seen_by_all_until_they_are_not(self, hq, database, clock):
        async def uneven() -> list[bool]:
            return [(await c.stay_alive())[1] for c in (hq, other)]

        async with another(database, clock) as other:
            assert await hq.share({HQ: (4, 0), "branch": (2, 0)}, LEASE) == {HQ: 4, "branch": 2}
            assert await uneven() == [False, False]
            assert await other.share({HQ: (4, 0)}, LEASE) == {HQ: 0}
            assert await uneven() == [True, True]
            # What runs is finished first.
            assert await hq.share({HQ: (4, 4)}, LEASE) == {HQ: 2}
            assert await other.share({HQ: (4, 0)}, LEASE) == {HQ: 0}
            assert await hq.share({HQ: (4, 3)}, LEASE) == {HQ: 2}
            assert await other.share({HQ: (4, 0)}, LEASE) == {HQ: 1}
            assert await uneven() == [True, True]
            assert await hq.share({HQ: (4, 2)}, LEASE) == {HQ: 2}
            assert await other.share({HQ: (4, 0)}, LEASE) == {HQ: 2}
            assert await uneven() == [False, False]
            # One place can't be divided: who has none is told soon when the other gives it up.
            assert await other.share({"branch": (1, 0)}, LEASE) == {"branch": 0}
            assert await uneven() == [True, True]

    async def test_what_a_dead_process_had_is_free_at_once_and_its_late_commit_is_refused(
        self, hq, database, clock, monkeypatch
    ):
        monkeypatch.setattr(locks, "SETTLING", timedelta())
        await tell(hq, a_recording())
        first = await Catalog.open(database, clock=clock)
        await first.stay_alive()
        assert await first.share({HQ: (1, 1)}, LEASE) == {HQ: 1}
        (held,) = await claim(first)
        assert await hq.stay_alive() == (0, False)
        assert await claim(hq) == []
        # As by kill -9: the server sees its connections end, and nothing else.
        first._locks.terminate()
        first._pool.terminate()

        async def freed():
            return (await hq.stay_alive())[0]

        assert await eventually(freed) == 1
        assert await hq.share({HQ: (1, 0)}, LEASE) == {HQ: 1}
        (again,) = await claim(hq)
        late = await Catalog.open(database, clock=clock)
        assert await settle(late, a_download(held)) == {}
        await late.close()
        assert await settle(hq, a_download(again)) == {again.id: State.ARCHIVED}

    async def test_a_process_that_lost_its_lock_alone_is_not_taken_for_dead(self, hq, database, clock, monkeypatch):
        monkeypatch.setattr(locks, "SETTLING", timedelta())
        async with another(database, clock) as first:
            await first.stay_alive()
            await first._locks.close()
            assert await hq.stay_alive() == (0, False)
            await first.stay_alive()
            assert not first._locks.is_closed()


class TestSettle:
    async def test_a_download_in_every_store_is_archived(self, hq, db):
        await tell(hq, a_recording(recording_id="r"), stores=("main", "spare"))
        (c,) = await claim(hq)
        assert await settle(hq, a_download(c)) == {c.id: State.ARCHIVED}
        assert await media(db, "state, held, size, sha256, content_type, duration, archived_at, attempts") == [
            ("archived", ["main", "spare"], 10, SHA, "audio/wav", timedelta(seconds=60), NOON, 1)
        ]
        assert await tokens(db) == []
        assert [c.store for c in await hq.copies_of(HQ, "r", "m1")] == ["main", "spare"]
        assert await hq.totals() == {(HQ, ""): (1, 10), (HQ, "main"): (1, 10), (HQ, "spare"): (1, 10)}

    async def test_a_download_in_some_stores_stays_due_and_is_finished_without_a_second_copy(self, hq, db, clock):
        await tell(hq, a_recording(recording_id="r"), stores=("main", "spare"))
        (c,) = await claim(hq)
        part = a_download(c, "main", error="spare is down", due_at=at("12:05"))
        assert await settle(hq, part) == {c.id: State.PENDING}
        assert await media(db, "state, due_at, held, error, archived_at") == [
            ("pending", at("12:05"), ["main"], "spare is down", None)
        ]
        assert await hq.totals() == {(HQ, "main"): (1, 10)}
        assert await happened(hq, "r") == ["stored in part"]
        clock.set(at("12:05"))
        (again,) = await claim(hq)
        assert [copy.store for copy in again.copies] == ["main"]
        whole = replace(a_download(again), copies=(*again.copies, a_copy(again, "spare")))
        assert await settle(hq, whole) == {c.id: State.ARCHIVED}
        assert await db.fetchval("SELECT count(*) FROM copies") == 2
        assert await hq.totals() == {(HQ, ""): (1, 10), (HQ, "main"): (1, 10), (HQ, "spare"): (1, 10)}

    async def test_a_download_under_a_lost_claim_writes_nothing(self, hq, db, clock):
        await tell(hq, a_recording(recording_id="r"))
        (first,) = await claim(hq)
        clock.advance(LEASE)
        (second,) = await claim(hq)
        before = await document(hq, "r"), await hq.totals()
        lost = a_download(first, sha256="cc" * 32)
        assert await settle(hq, lost, targets={HQ: ["pbx"]}) == {}
        assert (await document(hq, "r"), await hq.totals()) == before
        assert await db.fetchval("SELECT count(*) FROM copies") == 0
        assert await db.fetchval("SELECT count(*) FROM outbox") == 0
        assert await tokens(db) == [second.token]

    async def test_an_outcome_under_a_lost_claim_writes_nothing(self, hq, db, clock):
        await tell(hq, a_recording(recording_id="r"))
        (first,) = await claim(hq)
        clock.advance(LEASE)
        (second,) = await claim(hq)
        assert await settle(hq, an_outcome(first, State.GONE)) == {}
        assert await media(db, "state, error") == [("pending", None)]
        assert await tokens(db) == [second.token]
        assert await happened(hq, "r") == []

    async def test_a_lost_claim_among_others_does_not_hold_them_up(self, hq, db, clock):
        await tell(hq, *(a_recording() for _ in range(4)))
        lost, *_ = await claim(hq)
        clock.advance(LEASE)
        good = await claim(hq)
        done = await settle(
            hq, a_download(lost), *(a_download(c) for c in good[:2]), *(an_outcome(c) for c in good[2:])
        )
        assert Counter(done.values()) == {State.ARCHIVED: 2, State.FAILED: 2}

    async def test_settling_twice_counts_once(self, hq):
        await tell(hq, a_recording())
        (c,) = await claim(hq)
        await settle(hq, a_download(c))
        assert await settle(hq, a_download(c)) == {}
        assert await hq.totals() == {(HQ, ""): (1, 10), (HQ, "main"): (1, 10)}

    async def test_a_settle_that_breaks_midway_writes_nothing(self, hq, db):
        await tell(hq, a_recording(), a_recording())
        one, other = await claim(hq)
        with pytest.raises(asyncpg.PostgresError):
            await settle(hq, a_download(one), replace(a_download(other), copies=(a_copy(other, sha256="short"),)))
        assert await media(db) == ["pending", "pending"]
        assert await hq.totals() == {}
        assert await db.fetchval("SELECT count(*) FROM copies") == 0

    @pytest.mark.parametrize("table", ["media", "copies", "totals", "history", "outbox"])
    async def test_a_settle_whose_commit_fails_writes_nothing_whichever_part_it_was(self, hq, db, table):
        await tell(hq, a_recording(), a_recording())
        one, other = await claim(hq)
        async with spoilt(db, table):
            with pytest.raises(asyncpg.RaiseError):
                await settle(hq, a_download(one), an_outcome(other), targets={HQ: ["pbx"]})
        assert await media(db) == ["pending", "pending"]
        for each in ("copies", "totals", "history", "outbox"):
            assert await db.fetchval(f"SELECT count(*) FROM {each}") == 0
        assert len(await settle(hq, a_download(one), an_outcome(other))) == 2

    @pytest.mark.parametrize("state", [State.PENDING, State.FAILED, State.GONE, State.EMPTY])
    async def test_an_outcome_is_written_down_as_it_is(self, hq, db, state):
        one = a_recording(recording_id="r")
        await tell(hq, one)
        await hq.described({(HQ, "r"): await revision(hq, one)})
        (c,) = await claim(hq)
        outcome = an_outcome(c, state, due_at=at("12:30"), attempts=3, failing_since=at("11:00"), what="why")
        assert await settle(hq, outcome) == {c.id: state}
        assert await media(db, "state, due_at, error, attempts, failing_since") == [
            (state.value, at("12:30"), "it broke", 3, at("11:00"))
        ]
        assert await tokens(db) == []
        assert await happened(hq, "r") == ["why"]
        assert bool(await hq.undescribed([HQ], 5)) is (state is not State.PENDING)

    async def test_a_group_settles_in_any_order_beside_another(self, hq, database, clock):
        await tell(hq, *(a_recording() for _ in range(80)))
        claims = await claim(hq, 100)
        async with another(database, clock) as other:
            done = await asyncio.gather(
                settle(hq, *(a_download(c) for c in claims[:40])),
                settle(other, *(a_download(c) for c in reversed(claims[40:]))),
                tell(hq, *(a_recording(recording_id=c.medium.recording_id, raw={"x": 1}) for c in claims)),
            )
        # No told size changed, so that no claim is lost, whoever comes first.
        assert sum(map(len, done[:2])) == 80
        assert (await hq.totals())[HQ, ""] == (80, 800)

    async def test_a_new_recording_gets_a_while_to_be_archived_before_it_is_described(self, hq, clock):
        one, other = a_recording(), a_recording()
        await tell(hq, one)
        clock.advance(minutes=5)
        await tell(hq, other)
        assert await hq.undescribed([HQ], 5, new_before=at("12:04")) == [(HQ, one.recording_id)]
        await tell(hq, replace(other, raw={"changed": 1}))
        assert len(await hq.undescribed([HQ], 5, new_before=at("12:04"))) == 2
        assert len(await hq.undescribed([HQ], 5)) == 2
        assert len(await hq.undescribed([HQ], 1)) == 1
        assert await hq.undescribed(["branch"], 5) == []

    async def test_a_manifest_that_held_an_older_revision_is_written_again(self, hq):
        one = a_recording()
        await tell(hq, one)
        (c,) = await claim(hq)
        seen = await revision(hq, one)
        await tell(hq, replace(one, raw={"changed": 1}))
        await settle(hq, a_download(c), revisions={c.id[:2]: seen})
        assert await hq.undescribed([HQ], 5) == [c.id[:2]]

    async def test_a_manifest_that_held_the_last_revision_is_enough(self, hq):
        one = a_recording()
        await tell(hq, one)
        (c,) = await claim(hq)
        await settle(hq, a_download(c), revisions={c.id[:2]: await revision(hq, one)})
        assert await hq.undescribed([HQ], 5) == []

    async def test_a_change_while_a_manifest_is_written_is_not_lost(self, hq):
        one = a_recording()
        await archived(hq, one)
        seen = await revision(hq, one)
        await tell(hq, replace(one, raw={"changed": 1}))
        await hq.described({(HQ, one.recording_id): seen})
        assert await hq.undescribed([HQ], 5) == [(HQ, one.recording_id)]
        await hq.described({(HQ, one.recording_id): await revision(hq, one)})
        assert await hq.undescribed([HQ], 5) == []


class TestHistory:
    async def test_the_same_thing_again_only_counts(self, hq, clock):
        await tell(hq, a_recording(recording_id="r"))
        for _ in range(3):
            (c,) = await claim(hq)
            await settle(hq, an_outcome(c, State.PENDING, due_at=clock.now()))
            clock.advance(minutes=1)
        (c,) = await claim(hq)
        await settle(hq, an_outcome(c, State.GONE, what="gone", error="404"))
        failed, gone = await hq.history(HQ, "r")
        assert failed == {
            "media_id": "m1", "what": "failed", "detail": "it broke", "answer": None, "times": 3,
            "first_at": "2024-05-18T12:00:00.000Z", "last_at": "2024-05-18T12:02:00.000Z",
        }  # fmt: skip
        assert (gone["what"], gone["detail"], gone["times"]) == ("gone", "404", 1)

    async def test_a_long_id_is_found_again(self, hq):
        one = a_recording(recording_id="r" * 600)
        await tell(hq, one)
        await tell(hq, replace(one, raw={"changed": 1}))
        assert await happened(hq, one.recording_id) == ["changed"]

    async def test_the_windows_that_should_have_seen_a_call_are_told(self, hq, clock):
        await tell(hq, a_recording(recording_id="r"), a_recording(), window=a_window("11:30", "11:45"))
        clock.advance(minutes=5)
        await tell(hq, window=a_window("11:30", "11:45"), rejected=(Rejected(raw="?", reason="odd"),))
        await tell(hq, window=a_window("11:45", "12:00"))
        first_listed, missing_since, windows = await hq.listings(HQ, "r")
        assert (first_listed, missing_since) == (NOON, None)
        assert windows == [
            {
                "start": "2024-05-18T11:30:00.000Z", "end": "2024-05-18T11:45:00.000Z", "times": 2, "listed": 0,
                "rejected": 1, "first_at": "2024-05-18T12:00:00.000Z", "last_at": "2024-05-18T12:05:00.000Z",
            }
        ]  # fmt: skip
        assert await hq.listings(HQ, "nobody") is None

    async def test_a_window_takes_the_place_of_those_within_it(self, hq, clock, db):
        for end in ("11:20", "11:40", "12:00"):
            await tell(hq, window=a_window("11:00", end))
            clock.advance(minutes=5)
        rows = await db.fetch("SELECT lower(span), upper(span), first_at, last_at, times FROM listings")
        assert [tuple(row) for row in rows] == [(at("11:00"), NOON, NOON, at("12:10"), 3)]


class TestRetry:
    @pytest.mark.parametrize("state", [State.FAILED, State.GONE, State.EMPTY])
    async def test_what_gave_up_is_due_again_now(self, hq, db, state):
        await tell(hq, a_recording(), a_recording(), a_recording())
        await hq.source("branch", "xivo", default_start=NOON, start=None)
        await tell(hq, a_recording(), source="branch")
        one, other, kept = await claim(hq)
        (elsewhere,) = await claim(hq, source="branch")
        await settle(hq, *(an_outcome(c, state) for c in (one, other, elsewhere)), a_download(kept))
        assert await hq.retry("nowhere", state) == 0
        assert await hq.retry(HQ, state) == 2
        assert {c.id for c in await claim(hq)} == {one.id, other.id}
        assert await hq.retry(None, state) == 1
        assert "asked for again" in await happened(hq, one.medium.recording_id)

    async def test_it_starts_counting_from_nothing(self, hq, db):
        await tell(hq, a_recording())
        (c,) = await claim(hq)
        await settle(hq, an_outcome(c, State.FAILED, attempts=40))
        await hq.retry(None, State.FAILED)
        assert await media(db, "attempts, failing_since, due_at") == [(0, None, NOON)]


class TestOutbox:
    async def test_an_archived_recording_is_told_once_all_its_media_are_settled(self, hq):
        two = tuple(a_medium(recording_id="r", media_id=m) for m in ("m1", "m2"))
        await tell(hq, a_recording(recording_id="r", media=two))
        one, other = await claim(hq)
        await settle(hq, a_download(one), targets={HQ: ["pbx"]})
        assert await hq.outbox("pbx", LEASE, 10) == []
        await settle(hq, a_download(other), targets={HQ: ["pbx"]})
        assert await hq.outbox("other", LEASE, 10) == []
        assert await hq.outbox("pbx", LEASE, 10) == [(HQ, "r", 0)]
        assert await hq.outbox("pbx", LEASE, 10) == []

    async def test_a_recording_whose_last_medium_is_gone_is_told_too(self, hq):
        two = tuple(a_medium(recording_id="r", media_id=m) for m in ("m1", "m2"))
        await tell(hq, a_recording(recording_id="r", media=two))
        one, other = await claim(hq)
        await settle(hq, a_download(one), targets={HQ: ["pbx"]})
        await settle(hq, an_outcome(other, State.GONE), targets={HQ: ["pbx"]})
        assert await hq.outbox("pbx", LEASE, 10) == [(HQ, "r", 0)]

    async def test_a_recording_of_which_nothing_is_archived_is_not_told(self, hq):
        await tell(hq, a_recording())
        (c,) = await claim(hq)
        await settle(hq, an_outcome(c, State.GONE), targets={HQ: ["pbx"]})
        assert await hq.outbox("pbx", LEASE, 10) == []

    async def test_what_could_not_be_told_comes_again_later(self, hq, clock):
        await tell(hq, a_recording(recording_id="r"))
        (c,) = await claim(hq)
        await settle(hq, a_download(c), targets={HQ: ["pbx"]})
        await hq.outbox("pbx", LEASE, 10)
        await hq.tell_later("pbx", HQ, "r", at("12:10"), "time-out\0" + "x" * 900)
        assert await hq.outbox("pbx", LEASE, 10) == []
        clock.set(at("12:10"))
        assert await hq.outbox("pbx", LEASE, 10) == [(HQ, "r", 1)]
        clock.advance(LEASE)
        assert await hq.outbox("pbx", LEASE, 10) == [(HQ, "r", 1)]
        await hq.told("pbx", HQ, "r")
        clock.advance(days=1)
        assert await hq.outbox("pbx", LEASE, 10) == []

    async def test_two_processes_do_not_tell_the_same(self, hq, database, clock):
        await tell(hq, *(a_recording() for _ in range(20)))
        await settle(hq, *(a_download(c) for c in await claim(hq, 50)), targets={HQ: ["pbx"]})
        async with another(database, clock) as other:
            told = await asyncio.gather(*(c.outbox("pbx", LEASE, 7) for _ in range(2) for c in (hq, other)))
        ids = [i for batch in told for _, i, _ in batch]
        assert len(ids) == len(set(ids)) == 20


# -- over all processes ----------------------------------------------------------------------------------------------


class TestReserve:
    async def test_places_add_up_over_two_processes(self, hq, database, clock):
        step = timedelta(seconds=3)
        async with another(database, clock) as other:
            waits = await asyncio.gather(*(c.reserve(HQ, step) for _ in range(5) for c in (hq, other)))
        assert sorted(waits) == [n * step for n in range(10)]

    async def test_what_was_not_used_is_not_saved_up(self, hq, clock):
        step = timedelta(seconds=3)
        assert await hq.reserve(HQ, step) == timedelta()
        clock.advance(seconds=2)
        assert await hq.reserve(HQ, step) == timedelta(seconds=1)
        clock.advance(hours=1)
        assert await hq.reserve(HQ, step) == timedelta()
        assert await hq.reserve(HQ, step) == step

    async def test_sources_do_not_wait_for_each_other(self, hq):
        await hq.source("branch", "xivo", default_start=NOON, start=None)
        await hq.reserve(HQ, timedelta(hours=1))
        assert await hq.reserve("branch", timedelta(hours=1)) == timedelta()
        assert await hq.reserve("unknown", timedelta(hours=1)) == timedelta()


class TestShare:
    lease = timedelta(seconds=20)

    @pytest_asyncio.fixture
    async def three(self, database, clock):
        async with contextlib.AsyncExitStack() as stack:
            yield [await stack.enter_async_context(another(database, clock)) for _ in range(3)]

    async def share(self, catalog: Catalog, limit: int, running: int = 0) -> int:
        return (await catalog.share({HQ: (limit, running)}, self.lease))[HQ]

    async def test_one_process_has_all(self, catalog):
        assert await self.share(catalog, 4) == 4
        assert await self.share(catalog, 4, running=4) == 4

    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 7, 10])
    async def test_three_processes_share_all_fairly_once_they_know_of_each_other(self, three, limit):
        for _ in range(4):
            shares = [await self.share(c, limit) for c in three]
        assert sum(shares) == limit
        assert max(shares) - min(shares) <= 1

    @pytest.mark.parametrize("limit", [1, 2, 4, 7])
    async def test_what_runs_never_exceeds_the_limit(self, three, limit):
        """Each runs as much as it may, and lets go of what it may no longer only slowly."""
        running = [0, 0, 0]
        for turn in range(60):
            n = (turn * 7 + turn // 5) % 3
            share = await self.share(three[n], limit, running[n])
            running[n] = max(share, running[n] - 1)
            assert sum(running) <= limit
        assert sum(running) == limit

    async def test_a_dead_process_s_share_returns_after_its_lease(self, three, clock):
        for _ in range(2):
            shares = [await self.share(c, 6) for c in three[:2]]
        assert shares == [3, 3]
        clock.advance(self.lease)
        assert await self.share(three[0], 6) == 3
        clock.advance(microseconds=1)
        assert await self.share(three[0], 6) == 6

    async def test_a_share_given_back_is_free_at_once(self, three):
        for _ in range(2):
            shares = [await self.share(c, 6) for c in three[:2]]
        assert shares == [3, 3]
        await three[1].unshare([HQ])
        assert await self.share(three[0], 6) == 6

    async def test_sources_are_shared_apart(self, three):
        await three[0].share({HQ: (4, 0)}, self.lease)
        assert await three[1].share({"branch": (2, 0), HQ: (4, 0)}, self.lease) == {"branch": 2, HQ: 0}

    async def test_who_has_a_share_of_a_source_hears_what_may_change_it_and_nothing_else(self, three, db):
        heard: list[tuple[int, str]] = []
        for number, each in enumerate(three):
            each.on_shared = lambda source, number=number: heard.append((number, source))
            # It listens on the connection that holds its locks.
            await each.stay_alive()

        async def hears(*wanted: tuple[int, str]) -> None:
            # What was told before is here before this.
            await db.execute("SELECT pg_notify('archiver_shared', 'nobody mark')")

            async def marked() -> bool:
                return [source for _, source in heard].count("mark") == 3

            await eventually(marked)
            assert sorted(told for told in heard if told[1] != "mark") == sorted(wanted)
            heard.clear()

        def all_but(number: int) -> list[tuple[int, str]]:
            return [(n, HQ) for n in range(3) if n != number]

        assert await self.share(three[0], 4) == 4
        await hears()
        assert await self.share(three[1], 4) == 0
        await hears(*all_but(1))
        # The same again, in use as before, more than before.
        assert await self.share(three[0], 4, running=4) == 2
        assert await self.share(three[1], 4) == 0
        await hears()
        assert await self.share(three[0], 4, running=3) == 2
        await hears(*all_but(0))
        assert await self.share(three[1], 4) == 1
        assert await self.share(three[0], 4) == 2
        await hears(*all_but(0))
        await three[0].unshare([HQ, "branch"])
        await hears(*all_but(0))
        await three[1].unshare([HQ])
        await hears()

    async def test_shares_taken_at_once_do_not_exceed_the_limit(self, three):
        for _ in range(5):
            shares = await asyncio.gather(*(self.share(c, 5) for c in three))
        assert sum(shares) <= 5


class TestOnlyOne:
    async def test_a_second_process_does_not_get_it_until_the_first_leaves(self, catalog, database, clock):
        async with another(database, clock) as other:
            async with catalog.only_one("poll:hq") as mine:
                assert mine
                async with other.only_one("poll:hq") as theirs, other.only_one("poll:branch") as second:
                    assert (theirs, second) == (False, True)
            async with other.only_one("poll:hq") as theirs:
                assert theirs

    async def test_not_even_within_one_process_two_get_it(self, catalog):
        async with catalog.only_one("poll:hq") as mine:
            async with catalog.only_one("poll:hq") as again:
                assert (mine, again) == (True, False)
            async with catalog.only_one("poll:hq") as again:
                assert not again
        async with catalog.only_one("poll:hq") as mine:
            assert mine

    async def test_an_error_inside_lets_go_of_it(self, catalog, database, clock):
        with pytest.raises(ZeroDivisionError):
            async with catalog.only_one("poll:hq"):
                raise ZeroDivisionError
        async with another(database, clock) as other, other.only_one("poll:hq") as theirs:
            assert theirs

    async def test_a_cancelled_holder_lets_go_of_it(self, catalog, database, clock):
        inside = asyncio.Event()

        async def hold():
            async with catalog.only_one("poll:hq"):
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(hold())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with another(database, clock) as other, other.only_one("poll:hq") as theirs:
            assert theirs

    async def test_the_death_of_its_connection_lets_go_of_it(self, catalog, database, clock, db):
        async with another(database, clock) as other:
            async with catalog.only_one("poll:hq") as mine:
                assert mine
                await db.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
                )
                await until(lambda: db.fetchval("SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')"))
                async with other.only_one("poll:hq") as theirs:
                    assert theirs
            async with catalog.only_one("poll:hq") as mine:
                assert mine

    async def test_a_killed_process_lets_go_of_it(self, database, clock, catalog):
        async with another(database, clock) as dying, dying.only_one("poll:hq") as mine:
            assert mine
            dying._locks.terminate()

            async def free() -> bool:
                async with catalog.only_one("poll:hq") as theirs:
                    return theirs

            await until(free)


async def mark(db, recording_id: str, coding: str | None, *flags: str, note: str | None = None) -> None:
    """What walking a recording's bytes said of them."""
    await db.execute(
        "UPDATE media SET coding = $2, flags = $3, note = $4 WHERE recording_id = $1", recording_id, coding, flags, note
    )


async def test_a_coding_that_is_not_known_is_filled_in_by_a_copy_of_what_the_medium_holds_now(hq, db):
    await tell(hq, *(a_recording(recording_id=f"r{n}") for n in range(4)))
    claims = sorted(await claim(hq), key=lambda c: c.id)
    await settle(hq, *(a_download(c) for c in claims))
    await mark(db, "r3", "gsm")
    ids = [c.id for c in claims]
    assert await hq.uncoded([*ids, (HQ, "nobody", "m1")]) == set(ids[:3])
    read = [Reading(identity=c.id, copy=a_copy(c), coding="ulaw") for c in claims]
    read[1] = replace(read[1], coding=None)
    read[2] = replace(read[2], copy=a_copy(claims[2], sha256="6a" * 32))
    before = await revision(hq, a_recording(recording_id="r0"))
    await hq.verified("main", read, 1.0)
    assert [(await document(hq, f"r{n}"))["media"][0]["coding"] for n in range(4)] == ["ulaw", None, None, "gsm"]
    # Nothing new for a manifest: no line is written again for it.
    assert await revision(hq, a_recording(recording_id="r0")) == before


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not await true():
            await asyncio.sleep(0.01)


# -- reading -----------------------------------------------------------------------------------------------------------


class TestDocument:
    async def test_it_is_the_contract_s(self, hq, db):
        one = a_recording(
            recording_id="7", call_id=None, started_at=at("17T11:45:32"), ended_at=at("17T11:46:21"),
            duration=timedelta(seconds=48.974), direction=Direction.INBOUND, caller="+16504668888",
            callee="+14155551234", agent="Joe Dalton (1573)", queue="hotline (3556)",
            parties=(Party(number="+14103585834", name="N", user="U", role="agent"),),
            events=(CallEvent(at=at("17T11:46:00"), event="left", party="+14103585834"),),
            attributes={"color": "green"}, raw={"b": 1, "a": None},
            media=(a_medium(recording_id="7", content_type="audio/told"),),
        )  # fmt: skip
        await tell(hq, one)
        before = await document(hq, "7")
        assert (before["state"], before["media"][0]["content_type"]) == ("pending", "audio/told")
        (c,) = await claim(hq)
        copy = replace(a_copy(c, size=960_044), key="archive/hq/2024/05/17/7/m1-5f5f5f5f5f5f.wav")
        download = replace(a_download(c, size=960_044), copies=(copy,), coding="pcm_s16le")
        await settle(hq, download)
        await mark(db, "7", "pcm_s16le")
        told = await document(hq, "7")
        assert told == {
            "source": HQ, "kind": "chronicall", "recording_id": "7", "call_id": None, "state": "archived",
            "started_at": "2024-05-17T11:45:32.000Z", "ended_at": "2024-05-17T11:46:21.000Z", "duration": 48.974,
            "direction": "inbound", "caller": "+16504668888", "callee": "+14155551234",
            "agent": "Joe Dalton (1573)", "queue": "hotline (3556)",
            "parties": [{"number": "+14103585834", "name": "N", "user": "U", "role": "agent"}],
            "events": [{"at": "2024-05-17T11:46:00.000Z", "event": "left", "party": "+14103585834"}],
            "attributes": {"color": "green"}, "flags": [], "missing_since": None,
            "media": [
                {
                    "media_id": "m1", "state": "archived", "content_type": "audio/wav", "size": 960_044,
                    "sha256": SHA, "duration": 60.0, "coding": "pcm_s16le", "flags": [], "note": None,
                    "attempts": 1, "error": None, "stores": ["main"],
                    "copies": [
                        {
                            "store": "main", "key": "archive/hq/2024/05/17/7/m1-5f5f5f5f5f5f.wav", "size": 960_044,
                            "sha256": SHA, "archived_at": "2024-05-18T12:00:00.000Z", "verified_at": None,
                        }
                    ],
                }
            ],
            "raw": {"b": 1, "a": None},
        }  # fmt: skip
        # What a manifest says before the commit is what the catalog says after it.
        assert with_results(before, [download]) == told
        json.dumps(told)

    async def test_what_is_odd_about_a_medium_is_told_by_the_manifest_as_by_the_catalog(self, hq, db):
        await tell(hq, a_recording(recording_id="7"))
        before = await document(hq, "7")
        told = before["media"][0]
        assert (told["coding"], told["flags"], told["note"]) == (None, [], None)
        (c,) = await claim(hq)
        odd: dict[str, Any] = {"coding": "gsm", "flags": (Flag.UNFINISHED, Flag.SHORT), "note": "3 s of 23 min"}
        download = a_download(c, **odd)
        await settle(hq, download)
        await mark(db, "7", "gsm", "unfinished", "short", note="3 s of 23 min")
        told = (await document(hq, "7"))["media"][0]
        assert (told["coding"], told["flags"], told["note"]) == ("gsm", ["unfinished", "short"], "3 s of 23 min")
        assert with_results(before, [download])["media"][0] == told

    @pytest.mark.parametrize(
        ("states", "overall"),
        [
            ([State.ARCHIVED, State.ARCHIVED], "archived"), ([State.ARCHIVED, State.EMPTY], "empty"),
            ([State.GONE, State.EMPTY], "gone"), ([State.PENDING, State.GONE], "pending"),
            ([State.FAILED, State.PENDING], "failed"), ([], "empty"),
        ],
    )  # fmt: skip
    async def test_its_state_is_that_of_its_least_finished_medium(self, hq, states, overall):
        ids = [f"m{n}" for n in range(len(states))]
        parts = tuple(a_medium(recording_id="r", media_id=i) for i in ids)
        await tell(hq, a_recording(recording_id="r", media=parts))
        for c in await claim(hq):
            state = states[ids.index(c.medium.media_id)]
            await settle(hq, a_download(c) if state is State.ARCHIVED else an_outcome(c, state))
        assert (await document(hq, "r"))["state"] == overall
        for state in State:
            assert await found(hq, state=state.value) == (["r"] if state == overall else [])

    async def test_several_are_told_at_once_with_the_stores_they_are_meant_for(self, hq):
        await tell(hq, a_recording(recording_id="a"), stores=("main",))
        await tell(hq, a_recording(recording_id="b"), stores=("spare", "main"))
        told = await hq.documents([(HQ, "a"), (HQ, "b"), (HQ, "nobody")])
        assert {key[1]: stores for key, (_, _, stores) in told.items()} == {"a": ["main"], "b": ["main", "spare"]}


class TestFind:
    @pytest_asyncio.fixture
    async def calls(self, hq):
        await hq.source("branch", "xivo", default_start=NOON, start=None)
        one = a_recording(
            recording_id="one", started_at=at("10:00"), caller="+4930111", callee="200", direction=Direction.INBOUND,
            raw={"note": "Grüße 100%", "id": "one"}, attributes={"Straße": "lang_er"}, agent="Joe", queue="hot",
        )  # fmt: skip
        two = a_recording(
            recording_id="two", started_at=at("11:00"), caller="+4930112", callee="201", direction=Direction.OUTBOUND,
            call_id="C_2",
        )  # fmt: skip
        six = a_recording(recording_id="six", started_at=at("12:00"), caller="4930*", callee=None)
        await tell(hq, one, two)
        await tell(hq, six, source="branch")
        return hq

    async def test_filters(self, calls, subtests):
        wanted = [
            ({}, ["one", "two", "six"]), ({"source": HQ}, ["one", "two"]), ({"source": "branch"}, ["six"]),
            ({"start": at("11:00")}, ["two", "six"]), ({"end": at("11:00")}, ["one"]),
            ({"start": at("11:00"), "end": at("12:00")}, ["two"]), ({"caller": "+4930111"}, ["one"]),
            ({"caller": "+49301*"}, ["one", "two"]), ({"caller": "*30*"}, ["one", "two", "six"]),
            ({"caller": "+493011_"}, []), ({"caller": "+4930%"}, []), ({"caller": "4930*"}, ["six"]),
            ({"callee": "20?"}, []), ({"callee": "*1"}, ["two"]), ({"direction": "outbound"}, ["two"]),
            ({"direction": "unknown"}, ["six"]), ({"state": "pending"}, ["one", "two", "six"]),
            ({"state": "archived"}, []), ({"text": "grüße"}, ["one"]), ({"text": "100%"}, ["one"]),
            ({"text": "g%e"}, []), ({"text": "LANG_ER"}, ["one"]), ({"text": "langxer"}, []),
            ({"text": "straße"}, ["one"]), ({"text": "c_2"}, ["two"]), ({"text": "joe"}, ["one"]),
            ({"text": "*"}, ["six"]), ({"limit": 2}, ["one", "two"]), ({"limit": 0}, []),
            ({"source": HQ, "caller": "*2", "direction": "outbound", "text": "two"}, ["two"]),
        ]  # fmt: skip
        for filters, ids in wanted:
            with subtests.test(str(filters)):
                assert await found(calls, **filters) == ids

    async def test_a_flag_of_any_medium_finds_its_recording(self, calls, db):
        await mark(db, "one", None, "unchecked")
        await mark(db, "six", "gsm", "short", "unfinished")
        for flag, ids in {"unchecked": ["one"], "short": ["six"], "unfinished": ["six"], "other": []}.items():
            assert await found(calls, flag=flag) == ids
        assert await found(calls, flag="short", source=HQ) == []

    async def test_it_streams_past_one_batch(self, hq, db):
        await many(db, 1203)
        ids = await found(hq)
        assert len(ids) == len(set(ids)) == 1203
        assert ids == sorted(ids)
        assert len(await found(hq, limit=700)) == 700
        assert len(await found(hq, limit=500)) == 500

    async def test_calls_that_began_at_the_same_moment_are_all_found(self, hq, db):
        await many(db, 1100, step="0 seconds")
        assert len(set(await found(hq))) == 1100

    async def test_one_can_stop_reading_early(self, hq, db):
        await many(db, 600)
        async with contextlib.aclosing(hq.find(Query())) as documents:
            async for _ in documents:
                break
        assert len(await found(hq, limit=3)) == 3


class TestCounts:
    async def test_states_reasons_and_totals(self, hq):
        await hq.source("branch", "xivo", default_start=NOON, start=None)
        await tell(hq, *(a_recording() for _ in range(6)))
        await tell(hq, a_recording(started_at=at("09:00")), source="branch")
        claims = await claim(hq, 5)
        ends = (State.FAILED, State.FAILED, State.GONE, State.PENDING)
        await settle(hq, a_download(claims[4]), *(an_outcome(c, s) for c, s in zip(claims, ends, strict=False)))
        counted = await hq.counts()
        assert {s: n for s, (n, _) in counted[HQ].items()} == {"failed": 2, "gone": 1, "pending": 2}
        assert {s: n for s, (n, _) in counted["branch"].items()} == {"pending": 1}
        assert list(await hq.counts([HQ])) == [HQ]
        within = await hq.counts([HQ], a_window("11:00", "12:00"))
        assert {s: n for s, (n, _) in within[HQ].items()} == {"failed": 2, "gone": 1, "pending": 2}
        assert await hq.counts([HQ], a_window("10:00", "11:00")) == {}
        assert [(r["state"], r["error"], r["count"]) for r in await hq.reasons([HQ])] == [
            ("failed", "it broke", 2), ("pending", "it broke", 1),
        ]  # fmt: skip

    async def test_flags_are_counted_and_those_of_what_was_archived_lately(self, hq, db, clock):
        await hq.source("branch", "xivo", default_start=NOON, start=None)
        await tell(hq, *(a_recording(recording_id=f"r{n}") for n in range(6)))
        await tell(hq, a_recording(recording_id="b"), source="branch")
        assert await hq.flagged(NOON) == {}
        claims = await claim(hq, 3)
        await settle(hq, *(a_download(c) for c in claims))
        await mark(db, "r0", None, "short")
        await mark(db, "r1", None, "short", "unchecked")
        # Some stores lack it.
        await mark(db, "b", None, "unfinished")
        await db.execute("UPDATE media SET archived_at = $1 WHERE recording_id = 'r0'", NOON - timedelta(days=2))
        assert await hq.flagged(NOON - timedelta(days=1)) == {
            (HQ, "short"): (2, 1), (HQ, "unchecked"): (1, 1), ("branch", "unfinished"): (1, 0),
        }  # fmt: skip
        assert await hq.flagged(NOON, ["branch"]) == {("branch", "unfinished"): (1, 0)}
        numbers = await hq.numbers([HQ, "branch"], ["main"])
        assert numbers.flagged == await hq.flagged(NOON - timedelta(days=1))

    async def test_what_waits_for_a_store_is_counted_with_its_commonest_reason_and_named(self, hq, db):
        await tell(hq, *(a_recording(recording_id=f"r{n}") for n in range(6)))
        assert await hq.waiting_for(["main", "dav"]) == {}
        for n, error in enumerate(
            [
                "store main: refused this object: it answered 413",
                "store dav: no connection; store main: refused this object: it answered 413",
                "store main: refused this object: it answered 400",
                "store mainland: refused",
                "store main is not in the config",
                "it says store main: no",
            ]
        ):
            await db.execute("UPDATE media SET error = $2 WHERE recording_id = $1", f"r{n}", error)
        await db.execute("UPDATE media SET troubled = true WHERE recording_id = 'r1'")
        told = await hq.waiting_for(["main", "dav"], 2)
        assert told["main"] == {
            "count": 3,
            "error": "refused this object: it answered 413",
            "media": [
                {"source": HQ, "recording_id": "r0", "media_id": "m1", "error": "refused this object: it answered 413"},
                {"source": HQ, "recording_id": "r1", "media_id": "m1", "error": "refused this object: it answered 413"},
            ],
        }
        assert (told["dav"]["count"], told["dav"]["error"]) == (1, "no connection")
        assert set(told) == {"main", "dav"}

    async def test_call_ids_come_in_the_order_in_which_they_became_known(self, hq, clock):
        for n, call_id in enumerate(["c3", "c1", None, "c2", "c1"]):
            clock.advance(seconds=1)
            await tell(hq, a_recording(recording_id=f"r{n}", call_id=call_id))
        known = await hq.call_ids(HQ, datetime.min.replace(tzinfo=UTC), "", 10)
        assert [call_id for call_id, _ in known] == ["c3", "c2", "c1"]
        assert [c for c, _ in await hq.call_ids(HQ, known[0][1], "c3", 1)] == ["c2"]

    async def test_of_call_ids_that_became_known_in_one_moment_none_is_passed_over(self, hq):
        await tell(hq, *(a_recording(recording_id=f"r{n}", call_id=f"c{n}") for n in range(7)))
        seen, at, beyond = [], datetime.min.replace(tzinfo=UTC), ""
        while found := await hq.call_ids(HQ, at, beyond, 3):
            seen += [call_id for call_id, _ in found]
            beyond, at = found[-1]
        assert seen == [f"c{n}" for n in range(7)]

    async def test_a_call_id_that_is_learnt_later_becomes_known_then(self, hq, clock):
        await tell(hq, a_recording(recording_id="r1"))
        learnt = clock.advance(seconds=9)
        await tell(hq, a_recording(recording_id="r1", call_id="c1"))
        assert await hq.call_ids(HQ, learnt - timedelta(seconds=1), "", 10) == [("c1", learnt)]


async def many(db, count: int, *, source: str = HQ, step: str = "1 second") -> None:
    """So many recordings with one pending medium each, straight into the tables."""
    await db.execute(
        f"""
        INSERT INTO recordings (source, recording_id, key_at, started_at, direction, digest, first_listed_at)
        SELECT '{source}', 'r' || lpad(n::text, 8, '0'), t, t, 'inbound', '\\x00', now()
        FROM generate_series(1, {count}) n, LATERAL (SELECT '2024-01-01Z'::timestamptz + n * interval '{step}' AS t) x
        """
    )
    await db.execute(
        f"""
        INSERT INTO media (source, recording_id, media_id, due_at, stores)
        SELECT '{source}', 'r' || lpad(n::text, 8, '0'), 'm1', '2024-05-01Z'::timestamptz + n * interval '1 second',
            '{{main}}' FROM generate_series(1, {count}) n
        """
    )


# -- the database goes away ------------------------------------------------------------------------------------------


class TestLostDatabase:
    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://archiver@127.0.0.1:1/x", "postgresql://archiver@/x?host=/nowhere", "nonsense",
            "postgresql://archiver:sec/ret@host/db", "postgresql://archiver:geheim@127.0.0.1:port/x", "",
            "http://127.0.0.1/",
        ],
    )  # fmt: skip
    async def test_a_url_that_leads_nowhere_is_one_clear_error(self, url, monkeypatch):
        monkeypatch.setenv("PGHOST", "/nowhere")
        with pytest.raises(CatalogDown) as raised:
            await Catalog.open(url)
        assert not re.search("sec|geheim", str(raised.value))

    async def test_a_database_that_does_not_exist_is_one_clear_error(self, postgres):
        with pytest.raises(CatalogDown, match="does not exist"):
            await Catalog.open(postgres.url_of("nobody"))

    async def test_a_connection_that_is_killed_midway_is_an_error_and_the_next_call_works(self, hq, db):
        await tell(hq, a_recording())
        with pytest.raises(CatalogDown):  # noqa: PT012
            async with hq._transaction() as c:
                await c.execute("UPDATE media SET error = 'half done'")
                await db.execute("SELECT pg_terminate_backend($1)", c.get_server_pid())
                await c.execute("UPDATE media SET error = 'done'")
        assert await media(db, "error") == [None]
        assert len(await claim(hq)) == 1

    async def test_after_all_connections_were_killed_every_call_works_again_soon(self, hq, db):
        await asyncio.gather(*(hq.ping() for _ in range(6)))
        await db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        for _ in range(12):
            with contextlib.suppress(CatalogDown):
                await hq.ping()
        await asyncio.gather(*(hq.ping() for _ in range(6)))

    async def test_a_server_that_stops_is_an_error_and_its_return_is_noticed(self, postgres, hq, db):
        await tell(hq, a_recording(recording_id="r"))
        async with hq.only_one("poll:hq"):
            postgres.stop()
            for call in (hq.ping(), claim(hq), tell(hq, a_recording()), document(hq, "r"), hq.reserve(HQ, LEASE)):
                with pytest.raises(CatalogDown):
                    await call
            with pytest.raises(CatalogDown):
                async with hq.only_one("poll:branch"):
                    pass
        postgres.start()
        await hq.ping()
        assert (await document(hq, "r"))["recording_id"] == "r"
        assert len(await claim(hq)) == 1
        async with hq.only_one("poll:hq") as mine:
            assert mine

    async def test_a_catalog_closes_although_its_server_is_gone(self, postgres, database, clock):
        opened = await Catalog.open(database, clock=clock)
        postgres.stop()
        try:
            async with asyncio.timeout(8):
                await opened.close()
        finally:
            postgres.start()

    async def test_a_cancelled_call_leaves_a_catalog_that_works(self, hq, db):
        await tell(hq, a_recording())
        async with db.transaction():
            await db.execute("LOCK TABLE media")
            waiting = [asyncio.create_task(claim(hq)) for _ in range(8)]
            await asyncio.sleep(0.05)
            for task in waiting:
                task.cancel()
            ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert [e for e in ended if not isinstance(e, asyncio.CancelledError)] == []
        assert len(await claim(hq)) == 1

    async def test_a_cancellation_that_asyncpg_answers_with_a_time_out_stays_a_cancellation(self):
        async def cancelled() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                with Catalog("postgresql://x")._translated():
                    raise TimeoutError from None

        task = asyncio.create_task(cancelled())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# -- plans -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_database(postgres):
    """The URL of a database with 20,000 recordings, most of them archived."""
    url = postgres.create()
    postgres.run(fill(url))
    yield url
    postgres.drop(url)


async def fill(url: str) -> None:
    async with another(url, ManualClock()) as catalog:
        for source in (HQ, "branch"):
            await catalog.source(source, "xivo", default_start=NOON, start=None)
        async with catalog._connection() as db:
            for source in (HQ, "branch"):
                await many(db, 10_000, source=source)
            await db.execute(
                "UPDATE media SET state = 'archived', held = stores, size = 1, sha256 = repeat('a', 64),"
                " archived_at = now() WHERE right(recording_id, 1) <> '7'"
            )
            await db.execute("UPDATE recordings SET caller = '+1415' || right(recording_id, 7)")
            await db.execute(
                "INSERT INTO copies (store, key, source, recording_id, media_id, size, sha256, archived_at)"
                " SELECT 'main', source || recording_id, source, recording_id, media_id, 1, sha256, now()"
                " FROM media WHERE state = 'archived'"
            )
            await db.execute("VACUUM ANALYZE")


class TestPlans:
    """With many rows no hot statement reads a whole table."""

    @pytest_asyncio.fixture
    async def large(self, large_database):
        connection = await asyncpg.connect(large_database, timeout=20)
        yield connection
        connection.terminate()

    async def plan(self, db, statement: str, *values: Any) -> str:
        async with db.transaction():
            rows = await db.fetch("EXPLAIN " + statement, *values)
        return "\n".join(row[0] for row in rows)

    async def test_the_queue(self, large, subtests):
        keys = [[HQ] * 50, [f"r{n:08}" for n in range(50)], ["m1"] * 50, list(range(50))]
        plans = {
            "claim": await self.plan(large, SQL.CLAIM, NOON, NOON + LEASE, uuid4(), [HQ, "branch"], [20, 20]),
            "due": await self.plan(large, SQL.DUE, NOON, [HQ, "branch"], [1, 2]),
            "renew": await self.plan(large, SQL.RENEW, *keys, NOON),
            "release": await self.plan(large, SQL.RELEASE, *keys),
            "settle": await self.plan(
                large,
                SQL.SETTLE_OTHERS,
                *keys,
                ["pending"] * 50,
                [NOON] * 50,
                [None] * 50,
                [0] * 50,
                [None] * 50,
                [True] * 50,
                [SHA] * 50,
                [""] * 50,
                [None] * 50,
                NOON,
            ),
            "settle archived": await self.plan(
                large,
                SQL.SETTLE_ARCHIVED,
                *keys,
                [1] * 50,
                [SHA] * 50,
                ["audio/wav"] * 50,
                [None] * 50,
                ["main"] * 50,
                NOON,
                [NOON] * 50,
                [None] * 50,
                ["gsm"] * 50,
                [""] * 50,
                [None] * 50,
            ),
            "claim troubled": await self.plan(
                large, SQL.CLAIM_TROUBLED, NOON, NOON + LEASE, uuid4(), [HQ, "branch"], [20, 20]
            ),
            "claim newest": await self.plan(
                large, SQL.CLAIM_NEWEST, NOON, NOON + LEASE, uuid4(), [HQ, "branch"], [20, 20]
            ),
            "copies": await self.plan(large, SQL.COPIES_OF, *keys[:3]),
            "uncoded": await self.plan(large, SQL.UNCODED, *keys[:3]),
            "coded": await self.plan(large, SQL.CODED, *keys[:3], [SHA] * 50, ["gsm"] * 50),
            "doubtful": await self.plan(large, SQL.DOUBTFUL, HQ, NOON),
        }
        for name, plan in plans.items():
            with subtests.test(name):
                assert not re.search(r"Seq Scan on (media|recordings|copies)", plan), plan
        assert "media_due" in plans["claim"]
        assert "Index Scan Backward using media_due" in plans["claim newest"]
        assert "media_troubled" in plans["claim troubled"]
        assert "media_due" in plans["due"]
        assert "media_doubtful" in plans["doubtful"]

    async def test_what_is_unfinished(self, large, subtests):
        """A tenth of these rows is: few enough only where there are more."""
        asked = {
            "counts": (SQL.COUNTS, None),
            "counts of a source": (SQL.COUNTS, [HQ]),
            "queue": (SQL.QUEUE, ["failed"]),
            "widen": (SQL.WIDEN, NOON, HQ, "other"),
            "expires": (SQL.EXPIRES, HQ, timedelta(days=90), None),
        }
        await large.execute("SET enable_seqscan = off")
        for name, (statement, *values) in asked.items():
            with subtests.test(name):
                plan = await self.plan(large, statement, *values)
                assert "Index Scan on media_due" in plan, plan
                assert "Index Scan on media_ended" in plan, plan

    async def test_discovery(self, large, subtests):
        ids = [f"r{n:08}" for n in range(200)]
        window = a_window("10:00", "10:10")
        plans = {
            "known": await self.plan(large, SQL.KNOWN, HQ, ids),
            "missing": await self.plan(large, SQL.MISSING, HQ, window.start, window.end, ids, NOON),
            "returned": await self.plan(large, SQL.RETURNED, HQ, ids),
            "wake": await self.plan(large, SQL.WAKE_RETURNED, HQ, ids, NOON),
            "undescribed": await self.plan(large, SQL.UNDESCRIBED, [HQ], 200, NOON),
            "recordings": await self.plan(large, SQL.RECORDINGS_OF, [HQ] * 200, ids),
            "media": await self.plan(large, SQL.MEDIA_OF, [HQ] * 200, ids),
            "existing": await self.plan(large, SQL.EXISTING, HQ, ids),
            "upsert": await self.plan(large, SQL.UPSERT_RECORDINGS, *[["x"]] * 20),
            "upsert of media": await self.plan(large, SQL.UPSERT_MEDIA, *[["x"]] * 14),
        }
        assert "Conflict Arbiter Indexes: recordings_pkey" in plans["upsert"]
        assert "Conflict Arbiter Indexes: media_pkey" in plans["upsert of media"]
        for name, plan in plans.items():
            with subtests.test(name):
                assert not re.search(r"Seq Scan on (media|recordings)", plan), plan

    async def test_what_is_flagged(self, large):
        """Few are; a search for them by their calls' starts would read all the others."""
        where, values = where_of(Query(flag="short"))
        listed = f"SELECT r.recording_id FROM recordings r WHERE {where[0]} ORDER BY r.started_at LIMIT 500"
        undone = large.transaction()
        await undone.start()
        try:
            await large.execute("UPDATE media SET flags = '{short}' WHERE recording_id LIKE '%1234'")
            await large.execute("ANALYZE media")
            counted = [(SQL.FLAGGED, NOON, sources) for sources in (None, [HQ])]
            for statement, *arguments in (*counted, (listed, *values)):
                plan = await self.plan(large, statement, *arguments)
                assert "media_flagged" in plan, plan
                assert not re.search(r"Seq Scan on (media|recordings)", plan), plan
        finally:
            await undone.rollback()

    async def test_what_is_pending_troubled_or_not(self, large, subtests):
        asked = {
            "for a store": (SQL.WAITING_FOR, ["main"]),
            "for a store, by name": (SQL.WAITING_FOR_IT, "main", 5),
            "reasons": (SQL.REASONS, None),
            "expiring": (SQL.EXPIRING, HQ),
            "standing still": (SQL.STILL, NOON, HQ, NOON),
            "longest": (SQL.WAITING, [HQ, "branch"]),
        }
        await large.execute("SET enable_seqscan = off")
        for name, (statement, *values) in asked.items():
            with subtests.test(name):
                plan = await self.plan(large, statement, *values)
                assert re.search("media_(due|expiring)", plan), plan
                assert "media_troubled" in plan, plan

    async def test_lists(self, large, large_database, clock, subtests, monkeypatch):
        asked: list[tuple[Any, ...]] = []
        fetch = asyncpg.Connection.fetch

        async def watched(connection, statement, *values, **how):
            asked.append((statement, *values))
            return await fetch(connection, statement, *values, **how)

        monkeypatch.setattr(asyncpg.Connection, "fetch", watched)
        for query in (
            Query(limit=50),
            Query(source=HQ, limit=50),
            Query(start=at("10:00"), end=at("10:10")),
            Query(source=HQ, start=at("10:00")),
            Query(source=HQ, state="failed"),
            Query(caller="+1415555*", limit=50),
        ):
            with subtests.test(str(query)):
                asked.clear()
                async with another(large_database, clock) as catalog:
                    async for _ in catalog.find(query):
                        break
                assert any("ORDER BY r.started_at" in statement for statement, *_ in asked)
                for statement, *values in list(asked):
                    plan = await self.plan(large, statement, *values)
                    assert not re.search(r"Seq Scan on (media|recordings|copies)", plan), plan
                    if query.caller and "ORDER BY r.started_at" in statement:
                        assert "recordings_by_caller" in plan
