"""`verify` and `rebuild`: what lies in the stores is read back, mended, and enough to make the catalog again."""

from __future__ import annotations

import json
import shutil
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from archiver.catalog.catalog import Catalog, Query
from archiver.errors import ConfigError
from archiver.model import Body, ListingKey
from archiver.proof import manifests
from archiver.service import report, wiring
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.genesys import GenesysSimulator
from archiver.simulators.imagicle import ImagicleSimulator
from archiver.simulators.noojee import NoojeeSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.sync import commit
from archiver.testing.stores import read
from archiver.upkeep import orphans
from archiver.upkeep import rebuild as rebuilding
from archiver.upkeep.rebuild import rebuild
from archiver.upkeep.verify import HEAD
from tests.engine import Rig, a_recorder, archiving, assert_archived


def two(folder: Path):
    return {name: {"kind": "file", "path": str(folder / name)} for name in ("one", "two")}


async def check(rig: Rig, store: str, *, even_if_empty: bool = False, **how):
    engine = rig.archive.engine()
    reader = wiring.verifier(rig.archive, engine, store)
    reader.even_if_empty = even_if_empty
    async with engine.shares.sharing():
        return await reader.stalest(**how)


@asynccontextmanager
async def archived(folder: Path, database: str, calls: int = 6, stores=None):
    async with archiving(folder, database, a_recorder(calls=calls, live=True), stores=stores) as rig:
        await rig.sync()
        yield rig


def spoil(path: Path, how: str) -> None:
    path.chmod(0o600)
    data = path.read_bytes()
    match how:
        case "flipped":
            path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "replaced":
            path.write_bytes(b"RIFF" * 10)
        case "deleted":
            path.unlink()


async def file_of(rig: Rig, store: str) -> tuple[str, Path]:
    key = min(await rig.media_keys(store))
    return key, Path(rig.archive.config.stores[store].options.path) / key


async def test_whole_copies_are_good_and_remembered_as_verified(tmp_path, database):
    async with archived(tmp_path, database) as rig:
        found = await check(rig, "disk")
        assert (found.read, found.good, found.bad, found.complete) == (6, 6, 0, True)
        for document in (await rig.documents()).values():
            assert all(c["verified_at"] for m in document["media"] for c in m["copies"])


async def test_what_earlier_versions_archived_gets_its_coding_when_it_is_read_back(tmp_path, database):
    sims = {"pbx": a_recorder(live=True), "hq": a_recorder(ChronicallSimulator, calls=2, live=True)}
    start = sims["pbx"].clock.now() - timedelta(minutes=30)
    # Longer than the head that is looked at, and shorter.
    sims["pbx"].add_call(start, timedelta(seconds=20), index=1)
    sims["pbx"].add_call(start - timedelta(minutes=1), timedelta(seconds=1), index=2)
    async with archiving(tmp_path, database, sims, stores=two(tmp_path)) as rig:
        await rig.sync()
        assert max(size for key, size in (await rig.objects("one")).items() if key.startswith("pbx")) > 2 * HEAD
        async with rig.catalog._connection() as c:
            await c.execute("UPDATE media SET coding = NULL")
        _, path = await file_of(rig, "one")
        spoil(path, "replaced")
        await check(rig, "one")
        codings = {
            name: [m["coding"] for d in (await rig.documents(name)).values() for m in d["media"]] for name in sims
        }
        assert set(codings["hq"]) == {"speex"}
        # Spoilt bytes say nothing, also where they were repaired.
        assert sorted(map(str, codings["pbx"])) == ["None", "pcm_s16le"]
        await check(rig, "two")
        assert [m["coding"] for d in (await rig.documents()).values() for m in d["media"]] == ["pcm_s16le"] * 2


@pytest.mark.parametrize("how", ["flipped", "cut", "replaced", "deleted"])
async def test_a_spoilt_copy_is_repaired_from_another_store(tmp_path, database, how):
    async with archived(tmp_path, database, stores=two(tmp_path)) as rig:
        key, path = await file_of(rig, "one")
        whole = path.read_bytes()
        spoil(path, how)
        await rig.sim.stop()
        found = await check(rig, "one")
        assert (found.bad, found.repaired, found.missing) == (1, 1, int(how == "deleted"))
        assert found.complete
        assert path.read_bytes() == whole
        recording = next(d for d in (await rig.documents()).values() if key in json.dumps(d))
        assert (await rig.happened(recording["recording_id"]))["copy repaired from store two"] == 1
        story = await report.why(rig.catalog, "pbx", recording["recording_id"])
        assert {"read back and found right", "right again"} <= {event["what"] for event in story["story"]}
        assert (await rig.status())["stores"]["one"]["bad"] == 0


@pytest.mark.parametrize("how", ["flipped", "cut", "deleted"])
async def test_without_another_store_the_source_gives_the_bytes_again(tmp_path, database, how):
    async with archived(tmp_path, database) as rig:
        _, path = await file_of(rig, "disk")
        whole = path.read_bytes()
        spoil(path, how)
        found = await check(rig, "disk")
        assert found.complete
        assert path.read_bytes() == whole


async def test_what_nobody_can_repair_stays_known_as_bad_until_it_is_right_again(tmp_path, database):
    async with archived(tmp_path, database) as rig:
        _, path = await file_of(rig, "disk")
        whole = path.read_bytes()
        spoil(path, "flipped")
        await rig.sim.stop()
        found = await check(rig, "disk")
        assert not found.complete
        assert (await rig.status())["stores"]["disk"]["bad"] == 1
        path.write_bytes(whole)
        assert (await check(rig, "disk")).complete
        assert (await rig.status())["stores"]["disk"]["bad"] == 0


async def test_a_copy_is_never_repaired_with_bytes_that_are_spoilt_too(tmp_path, database):
    async with archived(tmp_path, database, calls=1, stores=two(tmp_path)) as rig:
        for store in ("one", "two"):
            spoil((await file_of(rig, store))[1], "flipped")
        await rig.sim.stop()
        assert not (await check(rig, "one")).complete


async def test_a_budget_reads_the_longest_unread_first_and_goes_on_there(tmp_path, database):
    async with archived(tmp_path, database, calls=30) as rig:
        read = 0
        for _ in range(40):
            found = await check(rig, "disk", budget=1)
            read += found.read
            unread = sum(
                c["verified_at"] is None
                for d in (await rig.documents()).values()
                for m in d["media"]
                for c in m["copies"]
            )
            if not unread:
                break
        assert unread == 0
        assert read < 30 + 8, "what was read is not read again before the rest"


async def test_a_store_without_a_single_copy_is_taken_for_another_disk_and_left_alone(tmp_path, database):
    async with archived(tmp_path, database, stores=two(tmp_path)) as rig:
        shutil.rmtree(tmp_path / "one")
        (tmp_path / "one").mkdir()
        found = await check(rig, "one")
        assert found.error
        assert (found.bad, found.repaired) == (0, 0)
        assert await rig.media_keys("one") == []
        assert (await check(rig, "one", even_if_empty=True)).complete
        assert len(await rig.media_keys("one")) == 6


async def test_a_store_that_is_lost_is_said_and_no_copy_is_called_bad(tmp_path, database):
    async with archived(tmp_path, database) as rig:
        shutil.move(tmp_path / "disk", tmp_path / "away")
        (tmp_path / "disk").write_text("a file in the way")
        found = await check(rig, "disk")
        assert found.error
        assert found.bad == 0


# -- rebuild -----------------------------------------------------------------------------------------------------------


async def everything(catalog: Catalog) -> list[str]:
    return [json.dumps(d) async for d in catalog.find(Query())]


async def remade(rig: Rig, database: str, store: str, *, same: bool = True, seen: list | None = None):
    """The lines of `list --json` before and after the catalog was dropped and made again from that store."""
    before = await everything(rig.catalog)
    ledgers = {row["name"]: (row["covered"], row["cursor"]) for row in await rig.catalog.sources()}
    totals = await rig.catalog.totals()
    if seen is not None:
        seen += [before, ledgers]
    async with rig.catalog._connection() as c:
        await c.execute("TRUNCATE sources, recordings, media, copies, totals, listings, history, rejected CASCADE")
    keys = {name: feed.source.listing_key for name, feed in rig.archive.feeds.items()}
    report = await rebuild(rig.catalog, rig.archive.outlets[store], keys, rig.archive.spool)
    after = {row["name"]: (row["covered"], row["cursor"]) for row in await rig.catalog.sources()}
    assert not same or await rig.catalog.totals() == totals
    return before, await everything(rig.catalog), ledgers, after, report


@pytest.mark.parametrize("store", ["one", "two"])
async def test_the_catalog_comes_back_from_any_one_store_byte_for_byte(tmp_path, database, store):
    sims = {
        "xivo": a_recorder(XivoSimulator, 12, live=True),
        "noojee": a_recorder(NoojeeSimulator, 8, live=True),
        "genesys": a_recorder(GenesysSimulator, 8, live=True),
    }
    # Named in another order than the alphabet's, which a list keeps.
    stores = dict(reversed(two(tmp_path).items()))
    async with archiving(tmp_path, database, sims, stores=stores) as rig:
        await rig.sync()
        before, after, ledgers, ledgers_after, report = await remade(rig, database, store)
        assert len(before) >= 20
        assert before == after
        assert ledgers == ledgers_after
        assert report.damaged == []
        before_requests = {name: sim.count("audio") for name, sim in sims.items()}
        await rig.sync()
        assert {name: sim.count("audio") for name, sim in sims.items()} == before_requests, "nothing is fetched again"


async def test_a_store_that_was_lost_and_filled_again_describes_itself_again(tmp_path, database):
    async with archived(tmp_path, database, stores=two(tmp_path)) as rig:
        shutil.rmtree(tmp_path / "one")
        (tmp_path / "one").mkdir()
        assert (await check(rig, "one", even_if_empty=True)).complete
        await rig.sync()
        before, after, *_ = await remade(rig, database, "one", same=False)
        assert len(before) == 6
        assert [json.loads(line)["recording_id"] for line in after] == [
            json.loads(line)["recording_id"] for line in before
        ]
        assert {json.loads(line)["state"] for line in after} == {"archived"}


async def test_a_copy_that_counted_only_later_comes_back_as_it_counted(tmp_path, database):
    async with archived(tmp_path, database, calls=0, stores=two(tmp_path)) as rig:
        blocked = tmp_path / "one/_manifests"
        blocked.mkdir(parents=True)
        (blocked / "pbx").write_text("no folder")
        rig.sim.add_calls(rig.sim.clock.now() - timedelta(minutes=20), rig.sim.clock.now() - timedelta(minutes=10), 4)
        await rig.poll()
        await rig.transfer()
        assert (await rig.states()) == {"pending": 4}, "one store has no manifest of it"
        (blocked / "pbx").unlink()
        await rig.sync(wait=timedelta(seconds=60))
        assert (await rig.states()) == {"archived": 4}
        for store in ("two", "one"):
            before, after, *_ = await remade(rig, database, store)
            assert before == after


async def test_what_changed_at_the_recorder_meanwhile_is_fetched_after_a_rebuild(tmp_path, database):
    sim = a_recorder(ImagicleSimulator, 3, live=True)
    async with archiving(tmp_path, database, sim) as rig:
        await rig.sync()
        await remade(rig, database, "disk")
        sim.calls[1].extra["format"] = "wav"
        sim._facts.clear()
        await rig.sync()
        await assert_archived(rig)
        assert sim.count("audio") == 4, "nothing else is fetched again"


async def test_what_was_not_archived_yet_is_found_again_after_a_rebuild(tmp_path, database):
    sim = a_recorder(calls=8, live=True)
    sim.fault("status", "audio", value=500, times=-1, match="13003")
    async with archiving(tmp_path, database, sim) as rig:
        await rig.sync()
        assert (await rig.states()).get("pending") == 1
        sim.faults.clear()
        before, after, _, ledgers, _ = await remade(rig, database, "disk")
        assert len(before) == len(after)
        # By itself, not only thanks to a lookback: no manifest tells how to fetch it.
        (waiting,) = [d for d in map(json.loads, after) if d["state"] != "archived"]
        moment = datetime.fromisoformat(waiting["started_at"])
        assert not any(window.start <= moment < window.end for window in ledgers["pbx"][0])
        await rig.sync(wait=timedelta(seconds=5))
        assert await rig.states() == {"archived": 8}


async def test_gone_and_metadata_changes_survive_a_rebuild(tmp_path, database):
    async with archived(tmp_path, database) as rig:
        call = rig.sim.calls[0]
        call.agent = ("Somebody Else", "1999")
        await rig.sync()
        before, after, *_ = await remade(rig, database, "disk")
        assert before == after
        assert any("Somebody Else" in row for row in after)


async def test_when_copies_were_verified_survives_a_rebuild_from_any_store(tmp_path, database):
    async with archived(tmp_path, database, stores=two(tmp_path)) as rig:
        await check(rig, "one")
        await commit.write_verified(rig.archive.feeds, rig.catalog)
        before, after, *_ = await remade(rig, database, "two")
        assert before == after
        copies = [c for row in after for m in json.loads(row)["media"] for c in m["copies"]]
        assert all((c["verified_at"] is not None) == (c["store"] == "one") for c in copies)


async def test_a_rebuild_that_is_killed_goes_on_where_it_stopped(tmp_path, database, monkeypatch):
    async with archiving(tmp_path, database, a_recorder(live=True), stores=two(tmp_path)) as rig:
        for _ in range(5):
            # A manifest each.
            now = rig.sim.clock.now()
            rig.sim.add_calls(now - timedelta(minutes=50), now - timedelta(minutes=5), 3, longest=3)
            await rig.sync()
        monkeypatch.setattr(rebuilding, "BATCH", 1)
        whole, done = Catalog.rebuild, 0

        async def until_killed(*args):
            nonlocal done
            if done == 2:
                raise ZeroDivisionError
            done += 1
            return await whole(*args)

        monkeypatch.setattr(Catalog, "rebuild", until_killed)
        read = []
        with pytest.raises(ZeroDivisionError):
            await remade(rig, database, "one", seen=read)
        monkeypatch.setattr(Catalog, "rebuild", whole)
        before, ledgers = read
        with pytest.raises(ConfigError, match="end it first with `archiver rebuild --store one`"):
            await rig.sync()
        keys = {"pbx": rig.feed.source.listing_key}
        with pytest.raises(ConfigError, match="store one was interrupted"):
            await rebuild(rig.catalog, rig.archive.outlets["two"], keys, rig.archive.spool)
        report = await rebuild(rig.catalog, rig.archive.outlets["one"], keys, rig.archive.spool)
        assert report.resumed
        assert report.recordings == 15
        assert await everything(rig.catalog) == before
        assert {row["name"]: (row["covered"], row["cursor"]) for row in await rig.catalog.sources()} == ledgers
        await rig.sync()


async def drilled(rig: Rig, store: str = "disk", sample: int | None = None):
    keys = {name: feed.source.listing_key for name, feed in rig.archive.feeds.items()}
    return await rebuilding.drill(rig.catalog, rig.archive.outlets[store], keys, rig.archive.spool, sample=sample)


async def test_a_drill_compares_a_rebuild_with_the_live_catalog_and_changes_nothing(tmp_path, database):
    async with archived(tmp_path, database) as rig:
        await check(rig, "disk")
        before = await everything(rig.catalog)
        report = await drilled(rig)
        assert (report.compared, report.same, report.complete) == (6, 6, True)
        assert (await drilled(rig, sample=2)).compared == 2
        async with rig.catalog._connection() as c:
            one, other = [r[0] for r in await c.fetch("SELECT recording_id FROM recordings ORDER BY 1 LIMIT 2")]
            await c.execute("UPDATE recordings SET agent = 'Somebody Else' WHERE recording_id = $1", one)
            await c.execute("DELETE FROM recordings WHERE recording_id = $1", other)
            await c.execute("UPDATE sources SET covered = '{}'")
        report = await drilled(rig)
        assert not report.complete
        assert (report.compared, report.same, report.different, report.unknown) == (5, 4, 1, 1)
        assert {(n["recording_id"], n["problem"]) for n in report.names} == {
            (one, "other agent"),
            (other, "unknown here"),
        }
        assert report.ledgers == ["pbx"]
        for key in [k for k in await rig.objects("disk") if k.startswith("_manifests/")]:
            await rig.archive.outlets["disk"].store.delete(key)
        report = await drilled(rig)
        assert (report.missing, report.same) == (5, 0)
        assert len(await everything(rig.catalog)) == len(before) - 1
        async with rig.catalog._connection() as c:
            assert await c.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'archiver%'") == 0


async def test_a_drill_wonders_at_another_flag_and_not_at_a_coding_that_earlier_versions_did_not_write(
    tmp_path, database
):
    async with archived(tmp_path, database, calls=4) as rig:
        async with rig.catalog._connection() as c:
            one, other, third, fourth = [r[0] for r in await c.fetch("SELECT recording_id FROM recordings ORDER BY 1")]
            await c.execute("UPDATE media SET coding = NULL")
        as_before = {key: [without_oddities(line) for line in lines] for key, lines in (await lines_of(rig)).items()}
        await tell_again(rig, as_before)
        assert (await drilled(rig)).complete
        async with rig.catalog._connection() as c:
            await c.execute("UPDATE media SET coding = 'ulaw' WHERE recording_id = $1", one)
            await c.execute("UPDATE media SET flags = '{short}' WHERE recording_id = $1", other)
            await c.execute("UPDATE media SET note = 'odd' WHERE recording_id = $1", third)
        report = await drilled(rig)
        assert (report.same, report.different) == (2, 2)
        assert {n["recording_id"] for n in report.names} == {other, third}
        # A coding that is told must be the right one.
        as_before[fourth][-1]["media"][0]["coding"] = "gsm"
        await tell_again(rig, as_before)
        assert fourth in {n["recording_id"] for n in (await drilled(rig)).names}


async def lines_of(rig: Rig):
    return await rig.manifest_lines("disk")


def without_oddities(document):
    """The line as an earlier version wrote it."""
    bare = json.loads(json.dumps(document))
    for medium in bare["media"]:
        for name in ("coding", "flags", "note"):
            medium.pop(name, None)
    return bare


async def tell_again(rig: Rig, lines) -> None:
    """These lines in place of all manifests of the store."""
    store = rig.archive.outlets["disk"].store
    for key in [k for k in await rig.objects("disk") if k.startswith("_manifests/")]:
        await store.delete(key)
    told = [document for of in lines.values() for document in of]
    await manifests.write(store, "", "pbx", told, rig.catalog.clock.now(), "0" * 26)


async def test_bytes_without_a_description_are_adopted_where_they_are_waited_for_and_else_listed(tmp_path, database):
    async with archived(tmp_path, database, calls=3, stores=two(tmp_path)) as rig:
        keys = await rig.media_keys("one")
        # As after a kill between the put and the commit; and then the recorder deletes the call.
        async with rig.catalog._connection() as c:
            for key in keys[:2]:
                row = (await c.fetch("DELETE FROM copies WHERE key = $1 RETURNING recording_id", key))[0]
                await c.execute(
                    "UPDATE media SET state = 'gone', held = '{}', size = NULL, sha256 = NULL, archived_at = NULL"
                    " WHERE recording_id = $1",
                    row[0],
                )
        store = rig.archive.outlets["one"].store
        await store.delete(keys[0])
        data = await read(store, keys[1])
        strange = keys[1].rsplit("/", 2)[0] + "/unheard-of/audio-" + "0" * 12 + ".wav"
        await store.put(strange, Body.of(data))
        await rig.archive.outlets["two"].store.delete(keys[1])
        rig.sim.calls.clear()
        found = {
            name: await orphans.find(rig.catalog, outlet, rig.archive.feeds, rig.archive.spool)
            for name, outlet in rig.archive.outlets.items()
        }
        assert found["one"].adopted == [keys[1]]
        assert found["one"].left == [(strange, len(data), "of a recording that is not in the catalog")]
        assert found["two"].adopted == [keys[0]]
        assert found["two"].left == []
        assert await rig.states() == {"archived": 3}
        assert (await check(rig, "one")).good == 3
        assert (await check(rig, "two")).good == 3
        assert (await drilled(rig, "two")).complete


async def test_rebuild_refuses_a_catalog_that_holds_something(tmp_path, database):
    async with archived(tmp_path, database, calls=1) as rig:
        with pytest.raises(ConfigError, match="not empty"):
            await rebuild(rig.catalog, rig.archive.outlets["disk"], {"pbx": ListingKey.START}, rig.archive.spool)


async def test_a_damaged_manifest_costs_its_own_lines_only_and_is_named(tmp_path, database):
    async with archived(tmp_path, database) as rig:
        manifests = sorted(k for k in await rig.objects("disk") if k.startswith("_manifests/"))
        path = tmp_path / "disk" / manifests[0]
        path.chmod(0o600)
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0][: len(lines[0]) // 2] + b"\n" + b"".join(lines[1:]))
        before, after, _, ledgers, report = await remade(rig, database, "disk", same=False)
        assert len(after) == len(before) - 1
        assert len(report.damaged) == 1
        assert manifests[0] in report.damaged[0]
        assert ledgers == {"pbx": ((), None)}, "listed again, or the lost line would never be found"
        await rig.sync()
        assert len(await rig.documents()) == len(before)
