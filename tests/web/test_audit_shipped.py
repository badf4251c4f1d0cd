"""The audit outlives the database: it goes to every store, and `rebuild` reads it back."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from archiver.audio.spool import Spool
from archiver.catalog import face
from archiver.catalog.catalog import Catalog
from archiver.errors import StoreDown
from archiver.stores.file import FileStore
from archiver.sync.feeds import Outlet
from archiver.upkeep import audit, renaming

EVENT = face.Event(
    who="ada", role="compliance", means="session", address="::1", action="listen", source="hq", recording_id="x\u2028y",
    reason="a \"quoted\" reason", case="C-1", details={"media_id": "m"},
)  # fmt: skip


@pytest.fixture
def outlet(tmp_path):
    options = FileStore.Options(kind="file", path=tmp_path / "store", prefix="calls/")
    return Outlet("disk", FileStore("disk", options), "calls/")


def files(tmp_path):
    return sorted((tmp_path / "store").rglob("_audit/**/*.jsonl"))


async def written(catalog, *events):
    for event in events:
        await face.write_down(catalog, event)


async def in_store(tmp_path):
    return [json.loads(line)["event"] for file in files(tmp_path) for line in file.read_text().splitlines()]


async def told(catalog):
    return [event async for event in face.all_events(catalog)]


async def test_each_event_goes_to_the_store_once_with_its_hash(catalog, outlet, tmp_path):
    await written(catalog, EVENT, EVENT)
    assert await audit.ship(catalog, {"disk": outlet}) == 2
    assert await audit.ship(catalog, {"disk": outlet}) == 0
    (file,) = files(tmp_path)
    assert file.relative_to(tmp_path / "store").parts[:2] == ("calls", "_audit")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == (await told(catalog))[::-1]
    await written(catalog, EVENT)
    assert await audit.ship(catalog, {"disk": outlet}) == 1
    assert len(files(tmp_path)) == 2


async def test_what_a_clock_wrote_that_was_set_back_goes_too(catalog, outlet, tmp_path, monkeypatch):
    await written(catalog, EVENT)
    assert await audit.ship(catalog, {"disk": outlet}) == 1
    now = catalog.clock.now()
    monkeypatch.setattr(catalog.clock, "now", lambda: now - timedelta(days=3650))
    await written(catalog, EVENT)
    assert await audit.ship(catalog, {"disk": outlet}) == 1
    assert await audit.ship(catalog, {"disk": outlet}) == 0
    assert sorted(e["id"] for e in await in_store(tmp_path)) == sorted(e["id"] for e in await told(catalog))


async def test_what_was_committed_late_goes_too(catalog, outlet):
    async with catalog._transaction() as late:
        await late.execute(face.ADD_AUDIT, *face._row(catalog, EVENT))
        await written(catalog, EVENT)
        assert await audit.ship(catalog, {"disk": outlet}) == 1
    assert await audit.ship(catalog, {"disk": outlet}) == 1


async def test_a_store_that_is_new_gets_all_and_one_that_comes_back_what_it_lacks(catalog, outlet, tmp_path):
    other = Outlet("other", FileStore("other", FileStore.Options(kind="file", path=tmp_path / "other")), "")
    await written(catalog, EVENT, EVENT)
    assert await audit.ship(catalog, {"disk": outlet}) == 2
    assert await audit.ship(catalog, {"disk": outlet, "other": other}) == 2
    await written(catalog, EVENT)
    assert await audit.ship(catalog, {"disk": outlet}) == 1
    assert await audit.ship(catalog, {"disk": outlet}) == 0
    assert await audit.ship(catalog, {"disk": outlet, "other": other}) == 1
    assert await audit.ship(catalog, {"disk": outlet, "other": other}) == 0


async def test_what_every_store_holds_is_looked_at_no_more(catalog, outlet):
    await written(catalog, EVENT)
    for due in (1, 1, 0):
        async with catalog._connection() as c:
            assert await c.fetchval("SELECT count(*) FROM audit WHERE due") == due
        await audit.ship(catalog, {"disk": outlet})


async def test_a_store_under_another_name_gets_nothing_twice(catalog, outlet):
    await written(catalog, EVENT)
    await audit.ship(catalog, {"disk": outlet})
    await catalog.rename_store("disk", "tape")
    outlet = Outlet("tape", outlet.store, outlet.prefix)
    assert await audit.ship(catalog, {"tape": outlet}) == 0


async def test_a_store_that_is_away_gets_it_later_and_holds_up_no_other(catalog, outlet, tmp_path, monkeypatch):
    await written(catalog, EVENT)
    away = Outlet("away", FileStore("away", FileStore.Options(kind="file", path=tmp_path / "other")), "")

    async def down(*_):
        raise StoreDown("no connection")

    with monkeypatch.context() as patched:
        patched.setattr(away.store, "put", down)
        assert await audit.ship(catalog, {"away": away, "disk": outlet}) == 1
    assert await audit.ship(catalog, {"away": away, "disk": outlet}) == 1
    assert len(list((tmp_path / "other").rglob("*.jsonl"))) == 1


async def test_what_a_store_holds_comes_back_into_an_empty_catalog_once(catalog, outlet, tmp_path, postgres):
    await written(catalog, EVENT, EVENT, EVENT)
    await audit.ship(catalog, {"disk": outlet})
    before = await told(catalog)
    url = postgres.create()
    empty = await Catalog.open(url)
    try:
        spool = Spool(tmp_path / "spool", 1 << 20, 0)
        for _ in range(2):
            assert await audit.read_back(empty, outlet, spool) == []
            assert await told(empty) == before
        # Nor does that store get once more what it told.
        assert await audit.ship(empty, {"disk": outlet}) == 0
    finally:
        await empty.close()
        postgres.drop(url)


async def test_who_heard_the_calls_of_a_renamed_source_is_known_under_its_new_name_also_after_a_rebuild(
    catalog, outlet, tmp_path, postgres
):
    await catalog.adopt("hq", "xivo", "http://pbx", None, start=None)
    await written(catalog, EVENT)
    await audit.ship(catalog, {"disk": outlet})
    await renaming.rename_source(catalog, {"disk": outlet}, {}, "hq", "paris")
    assert [event["source"] for event in await told(catalog)] == ["paris"]
    assert await audit.ship(catalog, {"disk": outlet}) == 0, "what a store holds stays as it was written"
    # Another recorder gets the name that is free now.
    await written(catalog, EVENT)
    await audit.ship(catalog, {"disk": outlet})
    now = await told(catalog)
    assert [event["source"] for event in now] == ["hq", "paris"]
    url = postgres.create()
    empty = await Catalog.open(url)
    try:
        assert await audit.read_back(empty, outlet, Spool(tmp_path / "spool", 1 << 20, 0)) == []
        assert await told(empty) == now
    finally:
        await empty.close()
        postgres.drop(url)


async def test_a_line_that_was_changed_is_told_and_not_taken(catalog, outlet, tmp_path):
    await written(catalog, EVENT)
    await audit.ship(catalog, {"disk": outlet})
    (file,) = files(tmp_path)
    file.chmod(0o600)
    file.write_text(file.read_text().replace("ada", "eve"))
    (problem,) = await audit.read_back(catalog, outlet, Spool(tmp_path / "spool", 1 << 20, 0))
    assert "1 of its lines are not as they were written" in problem
    assert {event["who"] for event in await told(catalog)} == {"ada"}
