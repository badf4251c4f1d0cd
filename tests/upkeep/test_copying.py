"""`copy`: a store that was added later gets what was archived before, as if it had always been there."""

import asyncio
import json

import pytest

from archiver.catalog.catalog import Catalog
from archiver.errors import CatalogDown, StoreDown
from archiver.model import State
from archiver.service import wiring
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.upkeep import rebuild
from archiver.upkeep.copying import Copier
from tests import commands
from tests.commands import HOUR
from tests.engine import a_recorder, archiving, assert_archived, audio_requests


def stores(tmp_path, *names):
    return {name: {"kind": "file", "path": str(tmp_path / name), "prefix": f"of-{name}/"} for name in names}


def copier(rig, **how):
    archive = rig.archive
    return Copier(
        catalog=archive.catalog,
        target=archive.outlets["far"],
        outlets=archive.outlets,
        spool=archive.spool,
        **{"meant": {"pbx"}} | how,
    )


async def test_what_was_archived_before_a_store_was_added_is_brought_there_and_described(
    tmp_path, database, clock, postgres
):
    sim = a_recorder(calls=6)
    # One that ends without audio: there is nothing to copy of it, but it is told.
    sim.fault("header_only", "audio", times=-1, match=next(iter(sim.truth())))
    async with archiving(tmp_path, database, sim, stores=stores(tmp_path, "near"), clock=clock) as rig:
        await rig.sync()
        assert await rig.states() == {"archived": 5, "empty": 1}
        asked = audio_requests(sim)
    async with archiving(tmp_path, database, sim, stores=stores(tmp_path, "near", "far"), clock=clock) as rig:
        sim.add_calls(clock.now() - HOUR / 2, clock.now() - HOUR / 4, 1)
        # More is covered than before, so that there is a ledger to tell.
        rig.advance(HOUR)
        await rig.sync()
        # What the new store does not tell, its ledger must not claim.
        ledgers = {store: [key for key in await rig.objects(store) if "_ledger/" in key] for store in ("near", "far")}
        assert [len(ledgers["near"]), ledgers["far"]] == [2, []]
        assert (await rig.status())["stores"]["far"]["lacking"] == 5
        report = await copier(rig).copy()
        assert (report.complete, report.sources["pbx"].copies, report.sources["pbx"].failed) == (True, 5, 0)
        await wiring.describe_all(rig.archive, "far", ["pbx"])
        assert (await rig.status())["stores"]["far"]["lacking"] == 0
        empty = next(d["recording_id"] for d in (await rig.documents()).values() if d["state"] == "empty")
        sim.faults.clear()
        await rig.catalog.retry("pbx", State.EMPTY)
        await rig.sync()
        assert await assert_archived(rig) == 7
        assert {path: audio_requests(sim)[path] for path in asked} == asked | {
            path: count + 1 for path, count in asked.items() if empty in path
        }
        # Once more there is nothing to do.
        before = await rig.objects("far")
        assert (await copier(rig).copy()).sources == {}
        assert await rig.objects("far") == before
        known = await rig.documents()

        other = postgres.create()
        catalog = await Catalog.open(other, clock=clock)
        try:
            far = rig.archive.outlets["far"]
            keys = {"pbx": rig.feed.source.listing_key}
            await rebuild.rebuild(catalog, far, keys, rig.archive.spool)
            rebuilt = await catalog.documents([("pbx", r) for r in known])
            told = {k[1]: d["media"][0]["copies"] for k, (d, _, _) in rebuilt.items()}
            assert told == {k: d["media"][0]["copies"] for k, d in known.items()}
            (ledger,) = await catalog.sources(["pbx"])
            assert ledger["covered"] == (await rig.catalog.sources(["pbx"]))[0]["covered"]
        finally:
            await catalog.close()
            postgres.drop(other)


async def test_a_copy_that_was_broken_off_goes_on_where_it_stopped(tmp_path, database, clock, monkeypatch):
    sim = a_recorder(calls=4)
    async with archiving(tmp_path, database, sim, stores=stores(tmp_path, "near"), clock=clock) as rig:
        await rig.sync()
    async with archiving(tmp_path, database, sim, stores=stores(tmp_path, "near", "far"), clock=clock) as rig:
        monkeypatch.setattr("archiver.upkeep.copying.PAGE", 2)
        copied, calls = rig.catalog.copied, []

        async def lost(*args, **how):
            calls.append(args)
            if len(calls) == 2:
                raise CatalogDown("killed between manifest and catalog")
            await copied(*args, **how)

        monkeypatch.setattr(rig.catalog, "copied", lost)
        with pytest.raises(CatalogDown):
            await copier(rig).copy()
        report = await copier(rig).copy()
        assert (report.complete, report.sources["pbx"].copies) == (True, 2)
        assert await assert_archived(rig) == 4
        assert (await rig.catalog.totals())["pbx", "far"][0] == 4


async def test_a_spoilt_original_is_not_copied_and_holds_no_other_up(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, stores=stores(tmp_path, "near"), clock=clock) as rig:
        await rig.sync()
        spoilt, *_ = await rig.media_keys("near")
        path = tmp_path / "near" / spoilt
        path.chmod(0o600)
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    async with archiving(tmp_path, database, sim, stores=stores(tmp_path, "near", "far"), clock=clock) as rig:
        report = await copier(rig).copy()
        assert (report.complete, report.sources["pbx"].copies, report.sources["pbx"].failed) == (False, 2, 1)
        (line,) = report.findings
        assert "other bytes than were archived" in line
        assert len(await rig.media_keys("far")) == 2
        path.write_bytes(good)
        assert (await copier(rig).copy()).complete
        assert await assert_archived(rig) == 3


async def test_a_store_of_no_source_only_holds_its_copies(tmp_path, database, clock):
    sim = a_recorder(calls=2)
    async with archiving(tmp_path, database, sim, stores=stores(tmp_path, "near", "far"), clock=clock) as rig:
        del rig.feed.outlets["far"]
        await rig.sync()
        assert (await copier(rig, meant=set()).copy()).complete
        media = [await rig.medium(recording_id) for recording_id in await rig.documents()]
        assert [{c["store"] for c in m["copies"]} for m in media] == [{"near", "far"}] * 2
        # Another's content is not waited for there.
        assert [m["stores"] for m in media] == [["near"]] * 2
        assert len(await rig.manifest_lines("far")) == 2


async def test_a_store_that_fails_ends_the_copy_with_its_reason(tmp_path, database, clock, monkeypatch):
    sim = a_recorder(calls=2)
    async with archiving(tmp_path, database, sim, stores=stores(tmp_path, "near"), clock=clock) as rig:
        await rig.sync()
    async with archiving(tmp_path, database, sim, stores=stores(tmp_path, "near", "far"), clock=clock) as rig:

        async def full(key, body):
            raise StoreDown("the disk is full")

        with monkeypatch.context() as broken:
            broken.setattr(rig.archive.outlets["far"].store, "put", full)
            report = await copier(rig).copy()
        assert report.error == "store far: the disk is full"
        assert (await rig.catalog.totals()).get(("pbx", "far")) is None
        assert (await copier(rig).copy()).complete
        assert await assert_archived(rig) == 2


async def test_the_command_copies_and_says_so(tmp_path, database):
    async with commands.place(tmp_path, database) as place:
        hq = await place.add("hq", ChronicallSimulator())
        hq.add_calls(hq.clock.now() - 2 * HOUR, hq.clock.now() - HOUR, 3, shortest=1, longest=2)
        await place.run("sync")
        place.config["stores"]["later"] = {"kind": "file", "path": "later"}
        hint = await place.run("status")
        count = len(place.truth())
        assert f"later: {count} media were archived before it was a store of their source" in hint.out
        assert "`archiver copy --to later`" in hint.out
        wrong, copied = await asyncio.gather(
            place.run("copy", "--to", "latter", code=2), place.json("copy", "--to", "later")
        )
        assert 'there is no store "latter"' in wrong.err
        assert copied["sources"]["hq"] == {"copies": count, "bytes": copied["sources"]["hq"]["bytes"], "failed": 0}
        assert (copied["store"], copied["complete"], copied["findings"]) == ("later", True, [])
        again = await place.run("copy", "--to", "later", "--from", "2020-01-01", "--until", "2100-01-01")
        assert "complete: later holds all that was asked for" in again.out
        audio = set(place.truth().values())
        held = {p.read_bytes() for p in (tmp_path / "later" / "hq").rglob("*") if p.is_file()}
        assert held == audio
        lines = [json.loads(row) for p in (tmp_path / "later").rglob("*.jsonl") for row in p.read_text().splitlines()]
        assert {line["recording_id"] for line in lines} == set(hq.truth())
