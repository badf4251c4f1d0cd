"""A failure of one object is told from that of its store: by what it says, by a canary, by how many fail in a row."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import pytest_asyncio

from archiver.common.scope import IN_A_ROW, Row, concerns_store
from archiver.errors import ObjectFailed, SpoolDown, StoreDown, StoreError, StoreMissing
from archiver.stores.file import FileOptions, FileStore
from archiver.sync.feeds import Outlet
from archiver.testing.stores import read


@pytest_asyncio.fixture
async def outlet(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    store = FileStore("disk", FileOptions(kind="file", path=tmp_path / "disk"))
    yield Outlet("disk", store, "")
    await store.close()


async def fails(outlet: Outlet, key: str) -> StoreError:
    """A folder lies under its name; told as by a server that says no more than that it failed."""
    (outlet.store.options.path / key).mkdir(exist_ok=True)
    with pytest.raises(StoreError) as failed:
        await read(outlet.store, key)
    return StoreDown(str(failed.value))


async def test_what_fails_while_a_canary_works_is_the_objects(outlet):
    assert not await concerns_store(outlet, await fails(outlet, "a"), "a", Row())
    assert not await concerns_store(outlet, await fails(outlet, "a")), "also where nobody counts"


async def test_what_fails_together_with_the_canary_is_the_stores(outlet):
    failed = await fails(outlet, "a")
    shutil.rmtree(outlet.store.options.path)
    outlet.store.options.path.write_text("a file in the way")
    assert await concerns_store(outlet, failed, "a", Row())
    assert await concerns_store(outlet, failed)


async def test_several_objects_in_a_row_are_the_store_and_one_that_works_in_between_ends_the_row(outlet):
    row = Row()
    for _ in range(2 * IN_A_ROW):
        assert not await concerns_store(outlet, await fails(outlet, "the same"), "the same", row)
    for number in range(IN_A_ROW - 2):
        assert not await concerns_store(outlet, await fails(outlet, f"{number}"), f"{number}", row)
    row.worked()
    for number in range(IN_A_ROW):
        said = await concerns_store(outlet, await fails(outlet, f"{number}"), f"{number}", row)
        assert said == (number == IN_A_ROW - 1)


@pytest.mark.parametrize("error", [ObjectFailed("cold"), StoreMissing("none"), SpoolDown("full")])
async def test_what_says_itself_whom_it_concerns_is_believed_without_a_canary(outlet, error):
    shutil.rmtree(outlet.store.options.path)
    outlet.store.options.path.write_text("a file in the way")
    row = Row()
    assert not any([await concerns_store(outlet, error, f"{number}", row) for number in range(2 * IN_A_ROW)])


class Counting:
    """A store whose canary is counted; nothing else is asked of it."""

    def __init__(self) -> None:
        self.asked = 0

    async def alive(self) -> None:
        self.asked += 1
        await asyncio.sleep(0.01)


async def test_what_fails_at_once_shares_a_canary():
    store = Counting()
    row = Row()
    outlet = Outlet("disk", store, "")
    said = await asyncio.gather(*(concerns_store(outlet, StoreDown("500"), "one", row) for _ in range(50)))
    assert not any(said)
    assert store.asked <= 3
