"""What the archive proves by itself: the daemon reads copies back and mends them in each kind of store, and says so."""

from __future__ import annotations

import asyncio
import io
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from rich.console import Console

from archiver.catalog.catalog import Catalog
from archiver.commands import render
from archiver.model import Body
from archiver.ports import Locks
from archiver.service import wiring
from archiver.settings.options import VerifyOptions
from archiver.testing.stores import read
from tests.engine import Rig, a_recorder, archiving, dav_table, eventually, s3_table
from tests.factories import ManualClock
from tests.servers import apache as an_apache
from tests.servers import seaweed as a_seaweed

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def seaweed():
    with a_seaweed() as server:
        yield server


@pytest.fixture(scope="module")
def apache():
    with an_apache() as server:
        yield server


def told(document) -> str:
    """What `archiver status` prints."""
    console = Console(file=io.StringIO(), width=250)
    render.status(console, document)
    return console.file.getvalue()


async def spoil(rig: Rig, store: str, key: str, how: str) -> bytes:
    """Spoil an object behind the archive's back; the bytes that it held."""
    there = rig.archive.outlets[store].store
    whole = await read(there, key)
    await there.delete(key)
    if how == "flipped":
        await there.put(key, Body.of(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]))
    elif how == "cut":
        await there.put(key, Body.of(whole[: len(whole) // 2]))
    return whole


@asynccontextmanager
async def archived(folder, database, calls=6, clock=None, **how):
    async with archiving(folder, database, a_recorder(calls=calls, live=clock is None), clock=clock, **how) as rig:
        await rig.sync()
        yield rig


async def due(rig: Rig, store: str = "disk", **options):
    """One beat of the daemon's verify job."""
    engine = rig.archive.engine()
    async with engine.shares.sharing():
        return await wiring.verifier(rig.archive, engine, store).due(VerifyOptions(**options))


async def test_flipped_deleted_and_cut_copies_in_each_kind_of_store_are_mended_by_the_daemon_and_told_in_status(
    tmp_path, database, seaweed, apache
):
    stores = {
        "disk": {"kind": "file", "path": str(tmp_path / "disk")},
        "bucket": s3_table(seaweed, "proof"),
        "dav": dav_table(apache, "proof/"),
    }
    problems = {"deleted": "missing", "flipped": "other bytes (SHA-256)", "cut": " in place of "}
    async with archived(tmp_path, database, calls=9, stores=stores, top={"verify": {"cycle": "2s"}}) as rig:
        spoilt = {}
        for n, store in enumerate(stores):
            keys = await rig.media_keys(store)
            for m, how in enumerate(problems):
                # Another recording each: of each two stores still hold the right bytes.
                key = keys[n * 3 + m]
                spoilt[store, key] = (await spoil(rig, store, key, how), how)
        async with rig.running():

            async def all_found():
                status = await rig.status()
                return all(s["verify"]["repaired"] == 3 for s in status["stores"].values()) and status

            status = await eventually(all_found, within=60)
        for (store, key), (whole, how) in spoilt.items():
            assert await read(rig.archive.outlets[store].store, key) == whole
            (finding,) = [f for f in status["stores"][store]["verify"]["findings"] if f["key"] == key]
            assert problems[how] in finding["problem"]
            assert finding["repaired_by"].startswith("store ")
            assert finding["repaired_at"]
            assert finding["recording_id"] in key
            assert any(key in line and problems[how] in line for line in told(status).splitlines())
        for store in stores:
            verify = status["stores"][store]["verify"]
            assert (verify["found"], verify["repaired"], status["stores"][store]["bad"]) == (3, 3, 0)
            assert f"{store}: verify found 3 spoilt copies, 3 of them repaired" in told(status)


async def test_a_lost_or_short_object_lock_is_found_and_set_again(tmp_path, database, seaweed):
    seaweed.make_bucket("vault", object_lock=True)
    table = {**s3_table(seaweed, "unused"), "bucket": "vault"}
    locked = {**table, "object_lock": {"mode": "GOVERNANCE", "days": 3}}
    async with archived(tmp_path, database, calls=3, stores={"vault": locked}) as rig:
        outlet = rig.archive.outlets["vault"]
        first, second, third = await rig.media_keys("vault")
        cls, options = type(outlet.store), outlet.store.options
        for key, lock in ((first, None), (second, options.object_lock.model_copy(update={"days": 1}))):
            other = cls("other", options.model_copy(update={"object_lock": lock}))
            whole = await read(other, key)
            await other.delete(key)
            await other.put(key, Body.of(whole))
            await other.close()
        assert isinstance(outlet.store, Locks)
        engine = rig.archive.engine()
        async with engine.shares.sharing():
            found = await wiring.verifier(rig.archive, engine, "vault").stalest()
        assert (found.read, found.good, found.bad, found.repaired) == (3, 1, 2, 2)
        status = await rig.status()
        problems = {f["key"]: f["problem"] for f in status["stores"]["vault"]["verify"]["findings"]}
        assert problems[first] == "not locked against deletion"
        assert problems[second].startswith("locked until ")
        assert "repaired by locking it again" in told(status)
        now = rig.catalog.clock.now()
        assert [await outlet.store.lock_problem(key, now) for key in (first, second, third)] == [None] * 3


async def test_the_cycle_reads_everything_in_its_time_a_part_a_day_and_nothing_fresh(tmp_path, database):
    async with archived(tmp_path, database, calls=24, clock=ManualClock()) as rig:
        assert (await due(rig, cycle=8 * DAY)).read == 0, "what was put just now is not read yet"
        read = []
        for _ in range(16):
            rig.advance(DAY)
            read.append((await due(rig, cycle=8 * DAY)).read)
            oldest = min(v["oldest_read_at"] for v in [(await rig.status())["stores"]["disk"]["verify"]])
            assert oldest > (rig.catalog.clock.now() - 8 * DAY).isoformat()
        assert sum(read[:8]) >= 24
        assert max(read) < 24, "not everything at once"


async def test_a_budget_holds_whatever_is_due_and_status_says_that_it_is_too_small(tmp_path, database):
    async with archived(tmp_path, database, calls=24, clock=ManualClock()) as rig:
        objects, keys = await rig.objects("disk"), await rig.media_keys("disk")
        size = sum(objects[key] for key in keys)
        rig.advance(100 * DAY)
        read = 0
        for _ in range(3):
            read += (await due(rig, cycle=8 * DAY, budget=1)).read
        assert 0 < read <= 8, "one page of the day, and no more before the next"
        rig.advance(DAY)
        assert (await due(rig, cycle=8 * DAY, budget=1)).read > 0
        assert (await due(rig, cycle=8 * DAY, budget=DAY)).read > 0, "a time"
        rig.archive.config = replace(rig.archive.config, verify=VerifyOptions(cycle=8 * DAY, budget=size // 20))
        status = await rig.status()
        assert "the verify budget takes" in status["stores"]["disk"]["verify"]["behind"]
        assert "disk: the verify budget takes" in told(status)


async def test_copies_that_nobody_can_mend_hold_no_other_up_and_are_mended_once_somebody_can(tmp_path, database):
    async with archived(tmp_path, database, calls=16, clock=ManualClock()) as rig:
        keys = await rig.media_keys("disk")
        await rig.sim.stop()
        for key in keys[:9]:
            await spoil(rig, "disk", key, "deleted")
        rig.advance(100 * DAY)
        found = await due(rig, cycle=8 * DAY)
        assert (found.read, found.bad, found.repaired, found.error) == (16, 9, 0, None)
        status = await rig.status()
        assert status["stores"]["disk"]["verify"]["found"] == 9
        assert "9 copies are bad or missing" in told(status)
        await rig.sim.start()
        rig.advance(DAY * 2)
        found = await due(rig, cycle=8 * DAY)
        assert (found.bad, found.repaired) == (9, 9)
        assert (await rig.status())["stores"]["disk"]["verify"]["repaired"] == 9


async def test_a_repair_from_the_source_waits_for_a_share_of_its_concurrency(tmp_path, database):
    async with archived(tmp_path, database, calls=1, concurrency=1) as rig:
        (key,) = await rig.media_keys("disk")
        whole = await spoil(rig, "disk", key, "deleted")
        other = await Catalog.open(database)
        assert await other.share({"pbx": (1, 1)}, DAY) == {"pbx": 1}
        engine = rig.archive.engine()
        async with engine.shares.sharing():
            reading = asyncio.create_task(wiring.verifier(rig.archive, engine, "disk").stalest())
            await eventually(lambda: waiting(rig), every=0.2)
            assert rig.sim.count("audio") == 1
            await other.unshare(["pbx"])
            assert (await reading).repaired == 1
        await other.close()
        assert await read(rig.archive.outlets["disk"].store, key) == whole


async def waiting(rig: Rig) -> bool:
    """Does it stand in line for the source?"""
    async with rig.catalog._connection() as c:
        return bool(await c.fetchval("SELECT count(*) = 2 FROM shares WHERE source = 'pbx'"))
