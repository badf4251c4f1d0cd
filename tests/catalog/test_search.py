"""Search: filled behind discovery, complete and in order whatever it begins with."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from archiver.catalog import found as found_
from archiver.catalog.catalog import Catalog, Limits, Query, migrations
from archiver.catalog.face import FaceCatalog
from archiver.model import ListingKey, Party
from tests.factories import a_listing, a_recording, at


async def tell(catalog, *recordings, source="hq"):
    listing = a_listing(*recordings)
    news = await catalog.unknown(source, listing.recordings)
    await catalog.record(source, listing, news, listing_key=ListingKey.START, stores=("main",))


@pytest.fixture
async def hq(catalog):
    await catalog.source("hq", "chronicall", default_start=at("00:00"), start=None)
    return catalog


@pytest.fixture
async def face(database, hq):
    opened = await FaceCatalog.open(database)
    yield opened
    await opened.close()


@pytest.fixture
async def db(database):
    connection = await asyncpg.connect(database, server_settings={"timezone": "UTC"})
    yield connection
    await connection.close()


async def found(catalog, **filters):
    return [d["recording_id"] async for d in catalog.find(Query(**filters))]


EVERYTHING = Limits()


async def seen(face, limits=EVERYTHING, limit=3, **filters):
    """All pages of it."""
    ids, after = [], None
    while True:
        rows, after = await face.look(limits, Query(**filters), limit, after=after)
        ids += [row["recording_id"] for row in rows]
        assert len(rows) == limit or after is None
        if after is None:
            return ids


async def drained(catalog):
    while await catalog.index():
        pass


def calls(count, **of):
    """Three calls a second each, so that pages end among those of one moment."""
    return [
        a_recording(
            recording_id=f"r{n:03}", started_at=at("10:00") + timedelta(seconds=n // 3),
            **{key: value(n) for key, value in of.items()},
        )
        for n in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("few", [0, 1000], ids=["common", "rare"])
@pytest.mark.parametrize("newest", [True, False], ids=["newest", "oldest"])
async def test_every_page_of_every_filter_is_what_reading_all_recordings_finds(face, hq, monkeypatch, few, newest):
    """Whichever filter it begins with, and whatever sizes its steps have."""
    monkeypatch.setattr(found_, "FEW", few)
    monkeypatch.setattr(found_, "NEWEST", 5)
    monkeypatch.setattr(found_, "NEWER", 20)
    await hq.source("branch", "chronicall", default_start=at("00:00"), start=None)
    told = calls(
        45,
        caller=lambda n: f"+4930{n % 7:04}",
        agent=lambda n: ("Joe Dalton (1573)", "Jane (1601)", None)[n % 3],
        queue=lambda n: "Hotline" if n % 2 else None,
        raw=lambda n: {"note": f"word{n % 5} each", "once": f"needle{n}"},
        parties=lambda n: (Party(number=f"+4930{n % 7:04}", role="caller"), Party(number="1573", role="agent"))
        if n % 4 == 0 else (),
    )  # fmt: skip
    await tell(hq, *told[::2])
    await tell(hq, *told[1::2], source="branch")
    await drained(hq)
    for limits in (
        Limits(), Limits(sources=("hq",)), Limits(queues=("hot*",)), Limits(agents=("1573", "nobody")),
        Limits(sources=("branch",), queues=("HOTLINE",)), Limits(agents=("joe*",)), Limits(agents=("nobody",)),
    ):  # fmt: skip
        for filters in (
            {}, {"source": "hq"}, {"number": "0003"}, {"number": "1573"}, {"agent": "dalt"}, {"agent": "j*n"},
            {"queue": "OTLIN"}, {"text": "needle8"}, {"text": "each word3"}, {"text": "needle*"}, {"text": "nowhere"},
            {"text": "word1", "agent": "jane"}, {"number": "0001", "queue": "hot", "text": "each"}, {"number": "999"},
            {"agent": "joe", "start": at("10:00:05"), "end": at("10:00:12")},
            {"text": "each", "start": at("10:00:05"), "end": at("10:00:12")},
        ):  # fmt: skip
            async with face._connection() as c:
                asked = found_.Asked(Query(newest=newest, **filters), limits, None)
                expected = [key[2] for key in await asked.slow(c, 100)]
            assert await seen(face, limits, 7, newest=newest, **filters) == expected, (limits, filters)


@pytest.mark.parametrize(
    ("typed", "ids"),
    [
        ({"number": "2079460018"}, ["in London", "national", "with a line"]),
        ({"number": "60018"}, ["in London", "national", "with a line"]),
        ({"number": "1573"}, ["extension"]),
        ({"text": "ÄRGER"}, ["words"]),
        ({"text": "reclam*"}, ["words"]),
        ({"text": "reclam"}, []),
        ({"text": "refund O'Neil"}, ["words"]),
        ({"text": "4711-b"}, ["words"]),
        ({"text": "first second"}, ["words"]),
        ({"text": ";"}, ["words"]),
        ({"agent": "o'ne"}, ["words"]),
        ({"agent": "external"}, []),
    ],
    ids=str,
)
async def test_what_people_type_is_found(hq, typed, ids):
    await tell(
        hq,
        a_recording(recording_id="in London", caller="+44 20 7946 0018"),
        a_recording(recording_id="national", callee="(020) 7946-0018"),
        a_recording(recording_id="with a line", parties=(Party(number="0002079460018", name="external"),)),
        a_recording(recording_id="extension", parties=(Party(number="1573", role="callee"),)),
        a_recording(
            recording_id="words",
            agent="Pat O'Neil",
            raw={"a": ["Ärger, RECLAMATION; refund"], "b": {"id": "4711-B"}, "c": "first\nsecond"},
        ),
    )
    assert sorted(await found(hq, **typed)) == sorted(ids)


async def test_the_same_digits_of_another_country_are_another_number(hq):
    """London's 020 7946 0018 and 207-946-0018 in Maine."""
    await hq.source("maine", "chronicall", default_start=at("00:00"), start=None)
    here = ("+44 20 7946 0018", "020 7946 0018", "0044 20 7946 0018", "44-2079460018", "2079460018")
    await tell(hq, *(a_recording(recording_id=number, caller=number) for number in here))
    await tell(hq, a_recording(recording_id="international", callee="+1 207 946 0018"))
    await tell(hq, a_recording(recording_id="national", caller="(207) 946-0018"), source="maine")
    await tell(hq, a_recording(recording_id="from Maine", caller="011 44 20 7946 0018"), source="maine")
    asked = {"number": "2079460018", "code": "44", "abroad": ("maine",)}
    assert sorted(await found(hq, **asked)) == sorted([*here, "from Maine"])


class TestFilling:
    async def test_what_was_committed_late_is_not_passed_over(self, hq, db, database):
        """A long listing is begun first and ends last."""
        await tell(hq, a_recording(recording_id="template", caller="+1"))
        late = await asyncpg.connect(database)
        columns = "key_at, started_at, direction, caller, digest, first_listed_at"
        copy = f"INSERT INTO recordings (source, recording_id, {columns}) SELECT source, $1, {columns} FROM recordings"
        transaction = late.transaction()
        await transaction.start()
        await late.execute(f"{copy} WHERE recording_id = 'template'", "late")
        await db.execute(f"{copy} WHERE recording_id = 'template'", "early")
        await drained(hq)
        assert await db.fetchval("SELECT count(*) FROM search_calls") == 2
        await transaction.commit()
        await late.close()
        await drained(hq)
        assert await db.fetchval("SELECT count(*) FROM search_calls") == 3
        assert (await hq.behind()).complete

    async def test_what_is_told_otherwise_is_found_as_it_is_now(self, hq, db):
        await tell(hq, a_recording(recording_id="r", caller="+49301", agent="Joe", raw={"x": "before"}))
        assert await found(hq, number="49301", text="before", agent="joe") == ["r"]
        await tell(hq, a_recording(recording_id="r", caller="+49302", agent="Jane", raw={"x": "after"}))
        assert await found(hq, number="49302", text="after", agent="jane") == ["r"]
        for gone in ({"number": "49301"}, {"text": "before"}, {"agent": "joe"}):
            assert await found(hq, **gone) == []
        assert await db.fetchval("SELECT count(*) FROM search_names WHERE value IN ('10394', 'joe')") == 0

    async def test_what_is_deleted_leaves_nothing(self, hq, db):
        await tell(hq, a_recording(recording_id="r", caller="+49301", agent="Joe", queue="Q"))
        await drained(hq)
        await db.execute("DELETE FROM media; DELETE FROM recordings")
        await drained(hq)
        for table in ("calls", "postings", "names", "pending", "orphans"):
            assert await db.fetchval(f"SELECT count(*) FROM search_{table}") == 0, table

    async def test_another_id_and_another_name_of_the_source_are_found(self, hq, db):
        await tell(hq, a_recording(recording_id="r", agent="Joe"), a_recording(recording_id="s", agent="Joe"))
        await drained(hq)
        await tell(hq, a_recording(recording_id="waiting", agent="Joe"))
        await db.execute("UPDATE recordings SET recording_id = 'aside' WHERE recording_id = 'r'")
        await hq.rename_source("hq", "new")
        assert sorted(await found(hq, agent="joe", source="new")) == ["aside", "s", "waiting"]
        assert await found(hq, text="aside") == ["aside"]
        assert await db.fetchval("SELECT count(*) FROM search_calls") == 3

    async def test_killed_at_any_moment_it_goes_on(self, hq, db, monkeypatch):
        await tell(hq, *calls(30, agent=lambda n: "Joe"))
        step = Catalog._take_in

        async def dies(self, c, keys):
            await step(self, c, keys)
            raise asyncio.CancelledError

        monkeypatch.setattr(Catalog, "_take_in", dies)
        with pytest.raises(asyncio.CancelledError):
            await hq.index()
        monkeypatch.undo()
        assert await db.fetchval("SELECT count(*) FROM search_calls") == 0
        await drained(hq)
        assert len(await found(hq, agent="joe")) == 30

    async def test_one_process_at_a_time_fills_it(self, hq, db):
        await tell(hq, *calls(3))
        transaction = db.transaction()
        await transaction.start()
        assert await db.fetchval("SELECT pg_try_advisory_xact_lock(hashtextextended('search', 8410))")
        assert await hq.index() is None
        await transaction.rollback()
        assert await hq.index() == 3

    async def test_whoever_searches_without_a_daemon_finds_what_was_just_archived(self, hq, face):
        await tell(hq, a_recording(recording_id="r", agent="Joe"))
        assert await seen(face, agent="joe") == ["r"]
        assert (await face.behind()).complete

    async def test_list_tells_all_even_while_the_search_is_far_behind(self, hq, db, face):
        await tell(hq, *calls(9, agent=lambda n: "Joe", raw=lambda n: {"x": "word"}))
        transaction = db.transaction()
        await transaction.start()
        await db.fetchval("SELECT pg_try_advisory_xact_lock(hashtextextended('search', 8410))")
        assert len(await found(hq, agent="joe", text="word")) == 9
        assert await seen(face, agent="joe") == []
        assert not (await face.behind()).complete
        await transaction.rollback()
        assert len(await seen(face, agent="joe")) == 9


async def test_what_was_archived_before_there_was_a_search_is_found_newest_first(postgres, clock):
    """A database of schema 8 with recordings in it is brought up to date by its migration alone."""
    postgres.execute("CREATE DATABASE before_search")
    url = postgres.url_of("before_search")
    db = await asyncpg.connect(url)
    for number, name, text in migrations():
        if number > 9:
            break
        await db.execute(text)
        if number == 1:
            await db.execute(
                "CREATE TABLE schema_version (version integer PRIMARY KEY, name text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT now())"
            )
        await db.execute("INSERT INTO schema_version VALUES ($1, $2)", number, name)
    catalog = await Catalog.open(url, clock=clock)
    await catalog.source("hq", "chronicall", default_start=at("00:00"), start=None)
    await tell(catalog, *calls(10, agent=lambda n: "Joe", caller=lambda n: "+4930123"))
    assert await db.fetchval("SELECT count(*) FROM recordings") == 10
    await catalog.migrate()
    before = await catalog.behind()
    assert before.before is not None
    # What comes from now on goes before.
    await tell(catalog, a_recording(recording_id="new", agent="Joe", started_at=at("09:00")))
    assert await catalog.index(4) == 1
    assert await catalog.index(4) == 4
    ids = [row[0] for row in await db.fetch("SELECT recording_id FROM search_calls ORDER BY 1")]
    assert ids == ["new", "r006", "r007", "r008", "r009"]
    assert (await catalog.behind()).before == at("10:00:02")
    assert len(await found(catalog, agent="joe", number="30123")) == 10
    await drained(catalog)
    assert (await catalog.behind()).complete
    assert len(await found(catalog, agent="joe")) == 11
    await catalog.close()
    await db.close()
    postgres.drop(url)
