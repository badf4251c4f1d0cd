"""The catalog against a real PostgreSQL: what is written together, who may write, what is found again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

import archiver.catalog as module
from archiver.catalog import Catalog, Query, migrations, with_results
from archiver.errors import CatalogDown
from archiver.model import (
    Availability,
    CallEvent,
    Claim,
    Copy,
    Direction,
    Download,
    Listing,
    ListingKey,
    Outcome,
    Party,
    Recording,
    Rejected,
    State,
    Window,
)
from tests.factories import NOON, ManualClock, a_listing, a_medium, a_recording, a_window, at

LEASE = timedelta(minutes=2)
SHA = "5f" * 32
HQ = "hq"


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
    news = [(r, r.digest()) for r in await catalog.unknown(source, listing.recordings)]
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
    return await catalog.settle(
        [f for f in finished if isinstance(f, Download)],
        [f for f in finished if isinstance(f, Outcome)],
        revisions=how.get("revisions", {}),
        targets=how.get("targets", {}),
    )


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


async def covered(catalog: Catalog, source: str = HQ) -> tuple[Window, ...]:
    return (await catalog.sources([source]))[0]["covered"]


async def document(catalog: Catalog, recording_id: str, source: str = HQ) -> dict[str, Any]:
    return (await catalog.documents([(source, recording_id)]))[source, recording_id][0]


async def found(catalog: Catalog, **filters: Any) -> list[str]:
    return [d["recording_id"] async for d in catalog.find(Query(**filters))]


async def happened(catalog: Catalog, recording_id: str) -> list[str]:
    return [entry["what"] for entry in await catalog.history(HQ, recording_id)]


# -- schema ----------------------------------------------------------------------------------------------------------

STATEMENTS = {
    name: value
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", value)
}


class TestSchema:
    def test_the_statements_are_seen(self):
        assert len(STATEMENTS) > 30

    @pytest.mark.parametrize("name", sorted(STATEMENTS))
    async def test_every_statement_prepares(self, db, name):
        await db.prepare(STATEMENTS[name])

    async def test_an_empty_database_has_version_0(self, postgres):
        postgres.execute("CREATE DATABASE bare")
        url = postgres.url_of("bare")
        try:
            async with another(url, ManualClock()) as first, another(url, ManualClock()) as second:
                assert await first.version() == 0
                applied = await asyncio.gather(first.migrate(), second.migrate(), first.migrate())
                assert sorted(map(len, applied)) == [0, 0, len(migrations())]
                assert await first.version() == migrations()[-1][0]
                assert await second.migrate() == []
        finally:
            postgres.drop(url)

    def test_migrations_are_numbered_without_a_gap(self):
        assert [number for number, _, _ in migrations()] == list(range(1, len(migrations()) + 1))

    @pytest.mark.parametrize(
        "change",
        [
            "state = 'archived'",
            "state = 'archived', size = 1, sha256 = repeat('a', 64), archived_at = now()",
            "state = 'archived', size = 1, sha256 = repeat('a', 64), archived_at = now(), held = '{other}'",
            "state = 'archived', size = 1, archived_at = now(), held = '{main}'",
            "state = 'archived', size = 1, sha256 = 'short', archived_at = now(), held = '{main}'",
            "state = 'pending', size = 1, sha256 = repeat('a', 64), archived_at = now(), held = '{main}'",
            "state = 'failed', claim = 1",
            "state = 'lost'",
            "stores = '{}'",
        ],
    )
    async def test_the_database_itself_refuses_a_state_without_its_facts(self, hq, db, change):
        await tell(hq, a_recording())
        with pytest.raises(asyncpg.CheckViolationError):
            await db.execute(f"UPDATE media SET {change}")


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
        monkeypatch.setattr(module, "ROWS", 7)
        recordings = [a_recording() for _ in range(50)]
        assert (await tell(hq, *recordings)).new == 50
        assert await hq.unknown(HQ, recordings) == []

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
        await tell(hq, long, key=ListingKey.END)
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
        await tell(hq, edge)
        assert (await tell(hq, window=self.window)).missing == 0
        assert (await tell(hq, window=a_window("12:00", "13:00"))).missing == 1

    async def test_a_look_up_says_nothing_of_the_rest(self, hq):
        await tell(hq, a_recording())
        assert (await tell(hq, a_recording())).missing == 0

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
        assert await media(db, "state, claim") == [(told.value.replace("deleted", "gone"), None)]
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


async def revision(catalog: Catalog, recording: Recording) -> int:
    return (await catalog.documents([(HQ, recording.recording_id)]))[HQ, recording.recording_id][1]
