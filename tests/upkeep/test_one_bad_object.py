"""One object that can't be read, listed or put is a finding: whoever reads or copies a store goes on behind it."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest

from archiver.catalog.catalog import Catalog
from archiver.errors import StoreError
from archiver.model import Body, Window
from archiver.proof import layout
from archiver.service import wiring
from archiver.settings.options import VerifyOptions
from archiver.upkeep import orphans
from archiver.upkeep import rebuild as rebuilding
from archiver.upkeep.copying import Copier
from archiver.upkeep.rebuild import Drilled, Rebuilt, drill, rebuild
from archiver.upkeep.reconcile import Reconciled, reconcile
from tests.engine import Rig, a_recorder, archiving, dav_table, s3_table
from tests.factories import NOON, ManualClock
from tests.refusing import Refusing
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


@pytest.fixture
async def proxy(seaweed):
    async with Refusing(seaweed.s3_url).serving() as proxy:
        yield proxy


def folder(path: Path):
    return {"kind": "file", "path": str(path)}


@asynccontextmanager
async def archived(tmp_path: Path, database: str, calls: int = 12, **how):
    async with archiving(tmp_path, database, a_recorder(calls=calls, live="clock" not in how), **how) as rig:
        await rig.sync()
        assert await rig.states() == {"archived": calls}
        yield rig


async def check(rig: Rig, store: str, **how):
    engine = rig.archive.engine()
    reader = wiring.verifier(rig.archive, engine, store)
    reader.even_if_empty = how.pop("even_if_empty", False)
    async with engine.shares.sharing():
        return await reader.stalest(**how)


async def file_of(rig: Rig, store: str, number: int = 0) -> Path:
    return Path(rig.archive.config.stores[store].options.path) / sorted(await rig.media_keys(store))[number]


# -- verify ------------------------------------------------------------------------------------------------------------


async def test_a_folder_under_the_name_of_a_copy_is_a_finding_and_all_others_are_read(tmp_path, database):
    async with archived(tmp_path, database, stores={"disk": folder(tmp_path / "disk")}) as rig:
        path = await file_of(rig, "disk")
        path.unlink()
        path.mkdir()
        (path / "something").write_text("of somebody else")
        found = await check(rig, "disk")
        assert found.error is None
        assert (found.good, found.bad, found.unreadable, found.repaired, found.complete) == (11, 1, 1, 0, False)
        assert [path.name in line for line in found.findings] == [True]
        assert (path / "something").exists(), "what is there is nobody's to delete"
        assert (await rig.status())["stores"]["disk"]["bad"] == 1
        shutil.rmtree(path)
        found = await check(rig, "disk")
        assert (found.good, found.missing, found.repaired, found.complete) == (11, 1, 1, True)


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (403, "AccessDenied"), (400, "InvalidArgument")])
async def test_an_object_that_an_s3_server_does_not_give_is_a_finding_and_stays_as_it_is(
    tmp_path, database, seaweed, proxy, status, code
):
    bucket = f"ungiven-{status}"
    table = s3_table(seaweed, bucket, endpoint_url=proxy.url)
    stores = {"disk": folder(tmp_path / "disk"), "cloud": table}
    async with archived(tmp_path, database, stores=stores) as rig:
        keys = sorted(await rig.media_keys("cloud"))
        proxy.refuse(keys[2].rsplit("/", 1)[1], "GET", status=status, code=code)
        found = await check(rig, "cloud")
        assert found.error is None
        assert (found.good, found.bad, found.unreadable, found.repaired, found.complete) == (11, 1, 1, 0, False)
        assert keys[2] in found.findings[0]
        assert "can't be read" in found.findings[0]
        proxy.refuses.clear()
        assert sorted(await rig.media_keys("cloud")) == keys, "it was not deleted to be put again"
        assert (await check(rig, "cloud")).complete
        assert (await rig.status())["stores"]["cloud"]["bad"] == 0


async def test_a_webdav_file_that_its_server_may_not_read_is_a_finding(tmp_path, database, apache):
    stores = {"disk": folder(tmp_path / "disk"), "dav": dav_table(apache, "unreadable/")}
    async with archived(tmp_path, database, stores=stores) as rig:
        key = sorted(await rig.media_keys("dav"))[5]
        (apache.files / key).chmod(0)
        found = await check(rig, "dav")
        assert (found.error, found.good, found.bad, found.unreadable) == (None, 11, 1, 1)


async def test_copies_in_a_cold_class_are_counted_apart_and_are_not_damaged(tmp_path, database, seaweed, proxy):
    stores = {"cloud": s3_table(seaweed, "cold", endpoint_url=proxy.url)}
    async with archived(tmp_path, database, stores=stores) as rig:
        keys = sorted(await rig.media_keys("cloud"))
        for key in keys[:7]:
            proxy.refuse(key.rsplit("/", 1)[1], "GET", status=403, code="InvalidObjectState")
        found = await check(rig, "cloud")
        assert (found.error, found.read, found.good, found.bad, found.cold) == (None, 5, 5, 0, 7)
        assert found.complete
        assert found.findings == []
        status = await rig.status()
        assert (status["stores"]["cloud"]["bad"], status["stores"]["cloud"]["verify"]["found"]) == (0, 0)
        verified = [c["verified_at"] for d in (await rig.documents()).values() for m in d["media"] for c in m["copies"]]
        assert verified.count(None) == 7, "nobody read them"


async def test_many_unreadable_copies_in_a_row_are_findings_too_while_another_can_be_read(
    tmp_path, database, seaweed, proxy
):
    stores = {"cloud": s3_table(seaweed, "many", endpoint_url=proxy.url)}
    async with archived(tmp_path, database, calls=30, stores=stores) as rig:
        async with rig.catalog._connection() as c:
            keys = [r[0] for r in await c.fetch("SELECT key FROM copies ORDER BY archived_at, key")]
        for key in keys[:20]:
            proxy.refuse(key.rsplit("/", 1)[1], "GET")
        found = await check(rig, "cloud")
        assert (found.error, found.read, found.good, found.unreadable) == (None, 30, 10, 20)


async def test_where_no_copy_can_be_read_it_is_the_store_and_no_copy_is_called_bad(tmp_path, database, seaweed, proxy):
    stores = {"cloud": s3_table(seaweed, "none", endpoint_url=proxy.url)}
    async with archived(tmp_path, database, stores=stores) as rig:
        proxy.refuse("/pbx/", "GET")
        found = await check(rig, "cloud")
        assert found.error
        assert (found.bad, found.complete) == (0, False)
        assert (await rig.status())["stores"]["cloud"]["bad"] == 0


async def test_a_store_that_takes_nothing_is_read_back_all_the_same(tmp_path, database, seaweed, proxy):
    stores = {"cloud": s3_table(seaweed, "full", endpoint_url=proxy.url)}
    async with archived(tmp_path, database, stores=stores) as rig:
        proxy.refuse("/", "PUT", status=507, code="XMinioStorageFull")
        found = await check(rig, "cloud")
        assert (found.error, found.good, found.complete) == (None, 12, True)
        proxy.refuse(max(await rig.media_keys("cloud")).rsplit("/", 1)[1], "GET")
        found = await check(rig, "cloud")
        assert (found.error, found.good, found.unreadable) == (None, 11, 1)


async def test_the_daemons_cycle_goes_on_behind_a_copy_that_cant_be_read_and_comes_back_to_it(
    tmp_path, database, seaweed, proxy
):
    stores = {"cloud": s3_table(seaweed, "cycle", endpoint_url=proxy.url)}
    async with archived(tmp_path, database, stores=stores, clock=ManualClock()) as rig:
        key = min(await rig.media_keys("cloud"))
        proxy.refuse(key.rsplit("/", 1)[1], "GET")

        async def due():
            engine = rig.archive.engine()
            async with engine.shares.sharing():
                return await wiring.verifier(rig.archive, engine, "cloud").due(VerifyOptions(cycle=8 * DAY))

        rig.advance(100 * DAY)
        found = await due()
        assert (found.error, found.read, found.good, found.bad) == (None, 12, 11, 1)
        rig.advance(2 * DAY)
        assert (await due()).bad == 1, "tried again"
        proxy.refuses.clear()
        rig.advance(2 * DAY)
        found = await due()
        assert (found.bad, (await rig.status())["stores"]["cloud"]["bad"]) == (0, 0)


# -- what a store says of itself ---------------------------------------------------------------------------------------


async def described(rig: Rig, store: str) -> int:
    return len(await rig.manifest_lines(store))


async def test_a_store_that_lost_its_manifests_is_told_all_of_it_again(tmp_path, database):
    stores = {name: folder(tmp_path / name) for name in ("one", "two")}
    async with archived(tmp_path, database, stores=stores) as rig:
        other = await rig.manifest_lines("two")
        shutil.rmtree(tmp_path / "one/_manifests")
        shutil.rmtree(tmp_path / "one/_ledger")
        found = await check(rig, "one")
        assert (found.good, found.undescribed, found.described, found.complete) == (12, 12, 12, True)
        assert [line for line in found.findings if "described by no manifest" in line]
        assert await described(rig, "one") == 12
        assert await rig.manifest_lines("two") == other, "the other store lacked nothing"
        found = await check(rig, "one")
        assert (found.undescribed, found.findings) == (0, [])
        await rig.sync()
        assert [key for key in await rig.objects("one") if key.startswith("_ledger/")]
        read = (await rig.status())["stores"]["one"]["verify"]
        assert (read["found"], read["repaired"]) == (12, 12)


async def test_what_is_described_at_another_time_than_expected_is_found_and_not_described_again(tmp_path, database):
    async with archived(tmp_path, database, clock=ManualClock()) as rig:
        shutil.rmtree(tmp_path / "disk/_manifests")
        rig.advance(10 * DAY)
        assert (await check(rig, "disk")).described == 12
        # As after a rebuild: the catalog does not know any more that it was described later.
        async with rig.catalog._connection() as c:
            await c.execute("DELETE FROM findings")
        rig.advance(10 * DAY)
        found = await check(rig, "disk")
        assert (found.good, found.undescribed) == (12, 0)


async def test_one_lost_manifest_is_written_again_and_nothing_else_is(tmp_path, database):
    async with archiving(tmp_path, database, a_recorder(live=True)) as rig:
        for _ in range(4):
            now = rig.sim.clock.now()
            rig.sim.add_calls(now - timedelta(minutes=50), now - timedelta(minutes=5), 3, longest=3)
            await rig.sync()
        assert (await check(rig, "disk")).undescribed == 0
        before = await rig.manifest_lines("disk")
        keys = sorted(k for k in await rig.objects("disk") if k.startswith("_manifests/"))
        (tmp_path / "disk" / keys[1]).unlink()
        left = await described(rig, "disk")
        assert left < len(before)
        found = await check(rig, "disk")
        assert (found.undescribed, found.described, found.complete) == (len(before) - left, len(before) - left, True)
        after = await rig.manifest_lines("disk")
        assert after.keys() == before.keys()
        assert sum(map(len, after.values())) <= sum(map(len, before.values())) + 3


async def test_a_manifest_that_cant_be_read_is_told_and_what_it_told_is_told_again(tmp_path, database, apache):
    stores = {"dav": dav_table(apache, "untold/")}
    async with archived(tmp_path, database, stores=stores) as rig:
        keys = sorted(k for k in await rig.objects("dav") if "/_manifests/" in k)
        for key in keys:
            (apache.files / key).chmod(0)
        found = await check(rig, "dav")
        assert (found.error, found.good, found.undescribed, found.described) == (None, 12, 12, 12)
        assert all(any(key in line for line in found.findings) for key in keys)


async def test_a_lost_store_gets_media_and_manifests_back(tmp_path, database):
    stores = {name: folder(tmp_path / name) for name in ("one", "two")}
    async with archived(tmp_path, database, stores=stores) as rig:
        shutil.rmtree(tmp_path / "one")
        (tmp_path / "one").mkdir()
        found = await check(rig, "one", even_if_empty=True)
        assert (found.missing, found.repaired, found.undescribed, found.described) == (12, 12, 12, 12)
        assert found.complete
        assert await described(rig, "one") == 12
        assert (await check(rig, "one")).undescribed == 0


async def test_the_daemon_tells_a_store_again_what_it_lost_and_searches_all_manifests_once_a_day(tmp_path, database):
    async with archived(tmp_path, database, clock=ManualClock()) as rig:

        async def due_after(hours: int):
            rig.advance(timedelta(hours=hours))
            engine = rig.archive.engine()
            async with engine.shares.sharing():
                found = await wiring.verifier(rig.archive, engine, "disk").due(VerifyOptions(cycle=timedelta(hours=8)))
            assert found.read == 12
            return found.undescribed, found.described

        assert await due_after(9) == (0, 0)
        shutil.rmtree(tmp_path / "disk/_manifests")
        assert await due_after(9) == (12, 12)
        assert await due_after(9) == (0, 0)
        shutil.rmtree(tmp_path / "disk/_manifests")
        assert await due_after(9) == (0, 0), "they are not forgotten"
        assert await due_after(9) == (12, 12)
        assert await due_after(9) == (0, 0)
        assert await described(rig, "disk") == 12


# -- orphans -----------------------------------------------------------------------------------------------------------


async def look_for_orphans(rig: Rig, store: str) -> orphans.Orphans:
    return await orphans.find(rig.catalog, rig.archive.outlets[store], rig.archive.feeds, rig.archive.spool)


async def forget(rig: Rig, key: str) -> None:
    """As after a kill between the put and the commit."""
    async with rig.catalog._connection() as c:
        row = (await c.fetch("DELETE FROM copies WHERE key = $1 RETURNING recording_id", key))[0]
        await c.execute(
            "UPDATE media SET state = 'gone', held = '{}', size = NULL, sha256 = NULL, archived_at = NULL"
            " WHERE recording_id = $1",
            row[0],
        )


async def test_a_folder_that_cant_be_listed_and_an_object_that_cant_be_read_do_not_end_the_search_for_orphans(
    tmp_path, database, apache
):
    async with archived(tmp_path, database, stores={"dav": dav_table(apache, "orphans/")}) as rig:
        keys = sorted(await rig.media_keys("dav"))
        for key in (keys[2], keys[-1]):
            await forget(rig, key)
        (apache.files / keys[0]).parent.chmod(0)
        (apache.files / keys[2]).chmod(0)
        found = await look_for_orphans(rig, "dav")
        assert found.error is None
        assert [folder for folder, _ in found.unlisted] == [keys[0].rpartition("/")[0] + "/"]
        assert [(key, "can't be read" in why) for key, _, why in found.left] == [(keys[2], True)]
        assert found.adopted == [keys[-1]]
        assert found.objects == 11
        assert not found.complete
        (apache.files / keys[0]).parent.chmod(0o755)
        (apache.files / keys[2]).chmod(0o644)
        found = await look_for_orphans(rig, "dav")
        assert (found.adopted, found.left, found.complete) == ([keys[2]], [], True)


async def test_a_folder_that_an_s3_server_cant_list_does_not_end_the_search_for_orphans(
    tmp_path, database, seaweed, proxy
):
    table = s3_table(seaweed, "unlisted", endpoint_url=proxy.url)
    async with archived(tmp_path, database, stores={"cloud": table}) as rig:
        keys = sorted(await rig.media_keys("cloud"))
        await forget(rig, keys[-1])
        bad = keys[0].rpartition("/")[0] + "/"
        # One entry that the server stumbles over: any listing of what lies above it fails, too.
        parts = bad.split("/")
        for depth in range(len(parts)):
            above = quote("/".join(parts[:depth]) + "/" * (depth > 0), safe="")
            proxy.refuse(f"prefix={above}&max-keys=1000&encoding-type", "GET")
        proxy.refuse(f"prefix={quote(bad, safe='')}&max-keys=1000&delimiter", "GET")
        found = await look_for_orphans(rig, "cloud")
        assert found.error is None
        assert [folder for folder, _ in found.unlisted] == [bad]
        assert (found.adopted, found.left, found.objects) == ([keys[-1]], [], 11)


async def test_a_store_whose_root_cant_be_listed_is_lost_to_the_search_for_orphans(tmp_path, database, apache):
    async with archived(tmp_path, database, stores={"dav": dav_table(apache, "rootless/")}) as rig:
        (apache.files / "rootless").chmod(0)
        try:
            found = await look_for_orphans(rig, "dav")
        finally:
            (apache.files / "rootless").chmod(0o755)
        assert found.error
        assert not found.complete


# -- copy --------------------------------------------------------------------------------------------------------------


def copier(rig: Rig) -> Copier:
    archive = rig.archive
    return Copier(
        catalog=archive.catalog,
        target=archive.outlets["far"],
        outlets=archive.outlets,
        spool=archive.spool,
        meant={"pbx"},
    )


@asynccontextmanager
async def later(tmp_path: Path, database: str, near, far, calls: int = 12):
    """Archived in one store, and another added afterwards; both recorders are the same."""
    sim = a_recorder(calls=calls, live=True)
    async with archiving(tmp_path, database, sim, stores={"near": near}) as rig:
        await rig.sync()
    await sim.start()
    async with archiving(tmp_path, database, sim, stores={"near": near, "far": far}) as rig:
        yield rig


@pytest.mark.parametrize(("status", "code"), [(413, "EntityTooLarge"), (500, "InternalError"), (403, "AccessDenied")])
async def test_copy_goes_on_behind_an_object_that_the_target_refuses(tmp_path, database, seaweed, proxy, status, code):
    far = s3_table(seaweed, f"refuses-{status}", endpoint_url=proxy.url)
    async with later(tmp_path, database, folder(tmp_path / "near"), far) as rig:
        key = min(await rig.media_keys("near"))
        proxy.refuse(key.rsplit("/", 1)[1], "PUT", status=status, code=code)
        report = await copier(rig).copy()
        assert report.error is None
        assert (report.sources["pbx"].copies, report.sources["pbx"].failed, len(report.findings)) == (11, 1, 1)
        assert not report.complete
        report = await copier(rig).copy()
        assert (report.sources["pbx"].failed, len(proxy.refused) >= 2) == (1, True), "tried again"
        proxy.refuses.clear()
        report = await copier(rig).copy()
        assert (report.sources["pbx"].copies, report.complete) == (1, True)
        assert len(await rig.manifest_lines("far")) == 12


async def test_copy_goes_on_behind_an_object_that_the_giver_does_not_give(tmp_path, database):
    async with later(tmp_path, database, folder(tmp_path / "near"), folder(tmp_path / "far")) as rig:
        path = await file_of(rig, "near")
        path.unlink()
        path.mkdir()
        report = await copier(rig).copy()
        assert (report.error, report.sources["pbx"].copies, len(report.findings)) == (None, 11, 1)


async def test_copy_ends_where_the_target_takes_nothing_more(tmp_path, database, seaweed, proxy):
    far = s3_table(seaweed, "takes-nothing", endpoint_url=proxy.url)
    async with later(tmp_path, database, folder(tmp_path / "near"), far, calls=60) as rig:
        proxy.refuse("/pbx/", "PUT")
        report = await copier(rig).copy()
        assert report.error
        assert len(report.findings) < 60


async def test_copy_writes_shorter_manifests_where_the_target_refuses_a_long_one(tmp_path, database, seaweed, proxy):
    far = s3_table(seaweed, "short-ones", endpoint_url=proxy.url)
    async with later(tmp_path, database, folder(tmp_path / "near"), far, calls=20) as rig:
        proxy.refuse("_manifests", "PUT", status=413, code="EntityTooLarge", longer_than=8000)
        report = await copier(rig).copy()
        assert proxy.refused
        assert (report.error, report.findings, report.sources["pbx"].copies) == (None, [], 20)
        assert len(await rig.manifest_lines("far")) == 20


# -- rebuild and drill -------------------------------------------------------------------------------------------------


def listing_keys(rig: Rig):
    return {name: feed.source.listing_key for name, feed in rig.archive.feeds.items()}


async def remade(rig: Rig, store: str) -> Rebuilt:
    """The catalog, dropped and made again from that store."""
    async with rig.catalog._connection() as c:
        await c.execute("TRUNCATE sources, recordings, media, copies, totals, listings, history, rejected CASCADE")
    return await rebuild(rig.catalog, rig.archive.outlets[store], listing_keys(rig), rig.archive.spool)


async def drilled(rig: Rig, store: str) -> Drilled:
    return await drill(rig.catalog, rig.archive.outlets[store], listing_keys(rig), rig.archive.spool)


@asynccontextmanager
async def several_manifests(tmp_path: Path, database: str, count: int = 4, **how):
    """Three calls in each manifest."""
    async with archiving(tmp_path, database, a_recorder(live=True), **how) as rig:
        for _ in range(count):
            now = rig.sim.clock.now()
            rig.sim.add_calls(now - timedelta(minutes=50), now - timedelta(minutes=5), 3, longest=3)
            await rig.sync()
        yield rig


async def manifests_of(rig: Rig, store: str) -> list[str]:
    return sorted(key for key in await rig.objects(store) if "_manifests/" in key)


async def test_a_manifest_that_cant_be_read_costs_its_own_lines_only_and_its_source_is_distrusted(
    tmp_path, database, apache
):
    async with several_manifests(tmp_path, database, stores={"dav": dav_table(apache, "one-manifest/")}) as rig:
        key = (await manifests_of(rig, "dav"))[1]
        (apache.files / key).chmod(0)
        report = await drilled(rig, "dav")
        assert (report.missing, report.complete) == (3, False)
        assert [key in line for line in report.damaged] == [True]
        report = await remade(rig, "dav")
        assert (report.recordings, report.complete) == (9, False)
        assert [key in line and "can't be read" in line for line in report.damaged] == [True]
        (source,) = await rig.catalog.sources()
        assert source["covered"] == (), "listed again, or the lost lines would never be found"
        await rig.sync()
        assert await rig.states() == {"archived": 12}


async def test_a_folder_of_manifests_that_cant_be_listed_is_told_at_once_and_the_others_are_read(
    tmp_path, database, apache
):
    sims = {name: a_recorder(calls=6, live=True, seed=seed) for seed, name in enumerate(("pbx", "hq"))}
    async with archiving(tmp_path, database, sims, stores={"dav": dav_table(apache, "one-folder/")}) as rig:
        await rig.sync()
        folders = {key.rpartition("/")[0] for key in await manifests_of(rig, "dav") if "/hq/" in key}
        for path in folders:
            (apache.files / path).chmod(0)
        report = await remade(rig, "dav")
        assert report.recordings == 6
        assert sorted(line.split(":")[0] for line in report.damaged) == sorted(f"{path}/" for path in folders)
        covered = {row["name"]: row["covered"] for row in await rig.catalog.sources()}
        assert covered["pbx"]
        assert not covered["hq"]


async def test_a_rebuild_that_stopped_behind_a_folder_that_cant_be_listed_still_tells_of_it(
    tmp_path, database, apache, monkeypatch
):
    sims = {name: a_recorder(calls=6, live=True, seed=seed) for seed, name in enumerate(("pbx", "hq"))}
    async with archiving(tmp_path, database, sims, stores={"dav": dav_table(apache, "stopped/")}) as rig:
        await rig.sync()
        for path in {key.rpartition("/")[0] for key in await manifests_of(rig, "dav") if "/hq/" in key}:
            (apache.files / path).chmod(0)
        monkeypatch.setattr(rebuilding, "BATCH", 1)
        monkeypatch.setattr(Catalog, "rebuilt", killed)
        with pytest.raises(ZeroDivisionError):
            await remade(rig, "dav")
        monkeypatch.undo()
        report = await rebuild(rig.catalog, rig.archive.outlets["dav"], listing_keys(rig), rig.archive.spool)
        assert report.resumed
        assert [("/hq/" in line, "can't be listed" in line) for line in report.damaged] == [(True, True)]
        assert not {row["name"]: row["covered"] for row in await rig.catalog.sources()}["hq"]


async def killed(_: Catalog) -> None:
    raise ZeroDivisionError


async def test_a_ledger_that_cant_be_read_is_told_and_an_older_one_is_used(tmp_path, database, apache):
    async with several_manifests(tmp_path, database, stores={"dav": dav_table(apache, "ledger/")}) as rig:
        ledgers = sorted(key for key in await rig.objects("dav") if "_ledger/" in key)
        assert len(ledgers) > 1
        (apache.files / ledgers[-1]).chmod(0)
        report = await remade(rig, "dav")
        assert [ledgers[-1] in line for line in report.damaged] == [True]
        assert (await rig.catalog.sources())[0]["covered"]


async def test_many_unreadable_manifests_in_a_row_are_damaged_ones_while_another_can_be_read(
    tmp_path, database, seaweed, proxy
):
    table = s3_table(seaweed, "row-of-manifests", endpoint_url=proxy.url)
    async with several_manifests(tmp_path, database, 9, stores={"cloud": table}) as rig:
        keys = await manifests_of(rig, "cloud")
        for key in keys[1:-1]:
            proxy.refuse(key.rsplit("/", 1)[1], "GET")
        report = await remade(rig, "cloud")
        assert len(report.damaged) == len(keys) - 2
        assert report.recordings >= 6


async def test_manifests_none_of_which_can_be_read_end_a_rebuild_which_then_goes_on(tmp_path, database, seaweed, proxy):
    table = s3_table(seaweed, "no-manifest-read", endpoint_url=proxy.url)
    async with several_manifests(tmp_path, database, 6, stores={"cloud": table}) as rig:
        for key in await manifests_of(rig, "cloud"):
            proxy.refuse(key.rsplit("/", 1)[1], "GET")
        with pytest.raises(StoreError):
            await remade(rig, "cloud")
        proxy.refuses.clear()
        report = await rebuild(rig.catalog, rig.archive.outlets["cloud"], listing_keys(rig), rig.archive.spool)
        assert (report.recordings, report.damaged) == (18, [])


async def test_a_rebuild_that_finds_no_manifest_is_not_complete_and_asks_for_the_right_place(tmp_path, database):
    async with archived(tmp_path, database) as rig:
        shutil.rmtree(tmp_path / "disk/_manifests")
        report = await remade(rig, "disk")
        assert not report.complete
        (line,) = report.untold
        assert f"no manifest below {tmp_path}/disk/_manifests; is this the right bucket and prefix?" in line
        assert line.endswith("Objects lie there that no manifest describes")
        shutil.rmtree(tmp_path / "disk")
        (tmp_path / "disk").mkdir()
        report = await remade(rig, "disk")
        assert not report.complete
        assert report.untold[0].endswith("is this the right bucket and prefix?")


async def test_a_rebuild_tells_of_a_source_whose_media_no_manifest_describes(tmp_path, database):
    sims = {name: a_recorder(calls=3, live=True, seed=seed) for seed, name in enumerate(("pbx", "hq"))}
    async with archiving(tmp_path, database, sims) as rig:
        await rig.sync()
        shutil.rmtree(tmp_path / "disk/_manifests/hq")
        report = await remade(rig, "disk")
        assert report.recordings == 3
        assert report.untold == ["source hq: its media lie there, and no manifest describes them"]
        assert not report.complete


async def test_a_drill_tells_what_it_left_out(tmp_path, database):
    sim = a_recorder(calls=6, live=True)
    sim.fault("status", "audio", value=500, times=-1, match=next(iter(sim.truth())))
    async with archiving(tmp_path, database, sim) as rig:
        await rig.sync()
        report = await drilled(rig, "disk")
        assert (report.compared, report.same, report.complete) == (5, 5, True)
        assert report.left_out == {"not archived yet": 1}


async def test_a_drill_of_a_store_that_came_later_compares_nothing_and_that_proves_nothing(tmp_path, database):
    async with later(tmp_path, database, folder(tmp_path / "near"), folder(tmp_path / "far")) as rig:
        report = await drilled(rig, "far")
        assert report.left_out == {"not meant for this store": 12}
        assert (report.compared, report.complete) == (0, False)
        assert (await drilled(rig, "near")).complete


# -- reconcile ---------------------------------------------------------------------------------------------------------


HOURS = Window(NOON - timedelta(hours=6), NOON - timedelta(minutes=2))


async def compared(rig: Rig, wanted: Window = HOURS, **how) -> Reconciled:
    engine = rig.archive.engine()
    async with engine.shares.sharing(), engine.shares.lending("pbx"):
        return await reconcile(rig.feed, rig.catalog, wanted, pause=0.001, **{"dry_run": True, **how})


@asynccontextmanager
async def six_hours(tmp_path: Path, database: str):
    sim = a_recorder(calls=4)
    sim.add_calls(HOURS.start, HOURS.end, 8, longest=3)
    async with archiving(tmp_path, database, sim, clock=ManualClock(), window="1h", start=HOURS.start) as rig:
        await rig.sync()
        assert await rig.states() == {"archived": 12}
        yield rig


async def test_a_window_that_cant_be_listed_is_told_and_the_others_are_compared(tmp_path, database):
    async with six_hours(tmp_path, database) as rig:
        assert (await compared(rig)).complete
        rig.sim.fault("status", "list", value=500, times=3)
        report = await compared(rig)
        assert report.error is None
        assert (len(report.failed), report.windows, report.complete) == (1, 5, False)
        assert "no_longer_there" not in report.failed[0]
        assert not report.no_longer_there, "what was not listed is not gone"


async def test_a_recorder_that_does_not_answer_ends_the_comparison(tmp_path, database):
    async with six_hours(tmp_path, database) as rig:
        await rig.sim.stop()
        report = await compared(rig)
        assert report.error
        assert (len(report.failed), report.windows) == (1, 0)


async def test_a_time_that_was_never_listed_is_said_to_be_so_and_is_no_success(tmp_path, database):
    async with six_hours(tmp_path, database) as rig:
        before = Window(HOURS.start - 2 * DAY, HOURS.start - DAY)
        report = await compared(rig, before)
        assert (report.all_new, report.complete) == (True, False)
        assert report.new == [before]
        report = await compared(rig, Window(HOURS.start - timedelta(hours=1), HOURS.end))
        assert report.new == [Window(HOURS.start - timedelta(hours=1), HOURS.start)]
        assert (report.all_new, report.complete) == (False, True)
        await compared(rig, before, dry_run=False)
        assert (await compared(rig, before)).complete, "listed now, and both sides hold nothing"


async def test_what_archiver_itself_keeps_in_a_store_is_no_orphan(tmp_path, database):
    async with archived(tmp_path, database) as rig:
        store = rig.archive.outlets["disk"].store
        for folder in layout.OURS:
            await store.put(f"{folder}2024/05/18/01J00000000000000000000000.jsonl", Body.of(b"{}\n"))
        found = await look_for_orphans(rig, "disk")
        assert (found.left, found.complete) == ([], True)
        assert found.objects == len(await rig.media_keys("disk"))
