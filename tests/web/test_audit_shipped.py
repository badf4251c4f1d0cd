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
from archiver.upkeep import audit

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


@pytest.fixture
def later(catalog, monkeypatch):
    """So much later that no event is too young."""
    now = catalog.clock.now

    def forward():
        monkeypatch.setattr(catalog.clock, "now", lambda: now() + timedelta(days=3650))

    return forward


async def told(catalog):
    return [event async for event in face.all_events(catalog)]


async def test_each_event_goes_to_the_store_once_with_its_hash(catalog, outlet, tmp_path, later):
    await written(catalog, EVENT, EVENT)
    later()
    assert await audit.ship(catalog, {"disk": outlet}) == 2
    assert await audit.ship(catalog, {"disk": outlet}) == 0
    (file,) = files(tmp_path)
    assert file.relative_to(tmp_path / "store").parts[:2] == ("calls", "_audit")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == (await told(catalog))[::-1]
    await written(catalog, EVENT)
    assert await audit.ship(catalog, {"disk": outlet}) == 1
    assert len(files(tmp_path)) == 2


async def test_an_event_that_may_still_be_joined_by_an_older_one_waits(catalog, outlet, tmp_path, monkeypatch):
    await written(catalog, EVENT)
    (event,) = await told(catalog)
    began = face.datetime.fromisoformat(event["at"])
    monkeypatch.setattr(catalog.clock, "now", lambda: began + timedelta(seconds=59))
    assert await audit.ship(catalog, {"disk": outlet}) == 0
    monkeypatch.setattr(catalog.clock, "now", lambda: began + timedelta(seconds=61))
    assert await audit.ship(catalog, {"disk": outlet}) == 1


async def test_a_store_that_is_away_gets_it_later_and_holds_up_no_other(catalog, outlet, tmp_path, later, monkeypatch):
    await written(catalog, EVENT)
    later()
    away = Outlet("away", FileStore("away", FileStore.Options(kind="file", path=tmp_path / "other")), "")

    async def down(*_):
        raise StoreDown("no connection")

    with monkeypatch.context() as patched:
        patched.setattr(away.store, "put", down)
        assert await audit.ship(catalog, {"away": away, "disk": outlet}) == 1
    assert await audit.ship(catalog, {"away": away, "disk": outlet}) == 1
    assert len(list((tmp_path / "other").rglob("*.jsonl"))) == 1


async def test_what_a_store_holds_comes_back_into_an_empty_catalog_once(catalog, outlet, tmp_path, postgres, later):
    await written(catalog, EVENT, EVENT, EVENT)
    later()
    await audit.ship(catalog, {"disk": outlet})
    before = await told(catalog)
    url = postgres.create()
    empty = await Catalog.open(url)
    try:
        spool = Spool(tmp_path / "spool", 1 << 20, 0)
        for _ in range(2):
            assert await audit.read_back(empty, outlet, spool) == []
            assert await told(empty) == before
    finally:
        await empty.close()
        postgres.drop(url)


async def test_a_line_that_was_changed_is_told_and_not_taken(catalog, outlet, tmp_path, later):
    await written(catalog, EVENT)
    later()
    await audit.ship(catalog, {"disk": outlet})
    (file,) = files(tmp_path)
    file.chmod(0o600)
    file.write_text(file.read_text().replace("ada", "eve"))
    (problem,) = await audit.read_back(catalog, outlet, Spool(tmp_path / "spool", 1 << 20, 0))
    assert "1 of its lines are not as they were written" in problem
    assert {event["who"] for event in await told(catalog)} == {"ada"}
