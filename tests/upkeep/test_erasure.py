"""What docs/security.md says of erasure: what is removed by hand comes back while the recorder has the call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest_asyncio

from archiver.simulators.xivo import XivoSimulator
from tests import commands
from tests.commands import DAY, WHOLE_DAY


@pytest_asyncio.fixture
async def place(tmp_path: Path, database: str) -> AsyncIterator[commands.Place]:
    async with commands.place(tmp_path, database) as made:
        sim = await made.add("hq", XivoSimulator(), start=DAY)
        for i in range(3):
            sim.add_call(DAY + timedelta(minutes=10 * i), timedelta(seconds=2), caller=f"+1555010{i}")
        await made.run("backfill", "--source", "hq", *WHOLE_DAY)
        yield made


async def remove(place: commands.Place) -> tuple[str, Path, str]:
    """The first recording's object, as the page says: by the key that `show` tells. Returns id, path and number."""
    (row, *_) = (await place.run("list", "--json")).rows
    shown = await place.json("show", "hq", row["recording_id"])
    (medium,) = shown["media"]
    path = place.store / medium["copies"][0]["key"]
    path.unlink()
    return row["recording_id"], path, row["caller"]


async def test_an_object_that_was_removed_is_fetched_again_while_the_recorder_has_the_call(place):
    _, path, _ = await remove(place)
    await place.run("verify")
    assert path.is_file()


async def test_of_a_call_that_the_recorder_deleted_the_number_stays_and_its_copy_is_told_as_missing(place):
    recording_id, path, number = await remove(place)
    await place.simulators["hq"].stop()
    told = await place.json("verify", code=1)
    assert not path.exists()
    assert told["stores"]["disk"]["missing"] == 1
    assert (await place.json("show", "hq", recording_id))["caller"] == number
    manifests = b"".join(data for key, data in place.objects().items() if key.startswith("_manifests/"))
    assert number.encode() in manifests


def test_the_page_promises_no_erasure():
    page = (commands.ROOT / "docs" / "security.md").read_text("utf-8")
    assert "has no command that erases" in page
    assert "That is no complete erasure." in page
