"""The daemon keeps the search up to date."""

from __future__ import annotations

import asyncio

import pytest

from archiver.catalog.catalog import Query
from archiver.errors import CatalogDown
from archiver.model import ListingKey
from archiver.service import searching
from tests.factories import a_listing, a_recording, at


@pytest.fixture
async def hq(catalog):
    await catalog.source("hq", "chronicall", default_start=at("00:00"), start=None)
    listing = a_listing(*(a_recording(recording_id=f"r{n}", agent="Joe") for n in range(30)))
    await catalog.record("hq", listing, listing.recordings, listing_key=ListingKey.START, stores=("main",))
    return catalog


async def filled(catalog):
    async with asyncio.timeout(60):
        while not (await catalog.behind()).complete:
            await asyncio.sleep(0.05)


async def test_what_was_listed_is_found_soon_also_after_a_database_that_was_away(hq, monkeypatch):
    monkeypatch.setattr(searching, "LOOK", 0.05)
    monkeypatch.setattr(searching, "AGAIN", 0.05)
    index, failed = hq.index, False

    async def away():
        nonlocal failed
        if not failed:
            failed = True
            raise CatalogDown("away")
        return await index()

    monkeypatch.setattr(hq, "index", away)
    keeping = asyncio.create_task(searching.keep(hq))
    await filled(hq)
    keeping.cancel()
    assert failed
    assert len([d async for d in hq.find(Query(agent="joe"))]) == 30


async def test_a_sync_takes_in_what_no_daemon_does(hq):
    await searching.some(hq)
    assert (await hq.behind()).complete
