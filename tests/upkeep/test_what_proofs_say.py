"""What the proofs say and exit with: what they did not look at, and names that nobody knows."""

from __future__ import annotations

import asyncio
import shutil
from datetime import UTC, datetime, timedelta

import pytest_asyncio

from archiver.simulators.xivo import XivoSimulator
from tests import commands
from tests.commands import HOUR


@pytest_asyncio.fixture
async def place(tmp_path, database):
    """An archive of six calls of the last hour, in one of its two stores."""
    async with commands.place(tmp_path, database) as place:
        place.config["stores"]["spare"] = {"kind": "file", "path": "spare"}
        hq = await place.add("hq", XivoSimulator(), stores=["disk"])
        for minutes in range(10, 40, 5):
            hq.add_call(datetime.now(UTC) - timedelta(minutes=minutes), timedelta(seconds=2))
        await place.run("sync")
        yield place


async def test_unknown_names_are_wrong_usage_and_the_nearest_name_is_told(place):
    lines = {
        "sync hqq": ("source", "hq"),
        "backfill --source hqq --from 2024-05-17 --to 2024-05-18": ("source", "hq"),
        "retry --source hqq": ("source", "hq"),
        "reconcile --source hqq --from 2024-05-17 --to 2024-05-18": ("source", "hq"),
        "list --source hqq": ("source", "hq"),
        "show hqq 1": ("source", "hq"),
        "why hqq 1": ("source", "hq"),
        "get hqq 1 -o out": ("source", "hq"),
        "rejected hqq": ("source", "hq"),
        "verify --source hqq": ("source", "hq"),
        "verify --store dsik": ("store", "disk"),
        "verify --orphans --store dsik": ("store", "disk"),
        "rebuild --store dsik": ("store", "disk"),
        "rebuild --drill --store dsik": ("store", "disk"),
        "copy --to spaer": ("store", "spare"),
        "copy --to spare --source hqq": ("source", "hq"),
    }
    several = list(lines)
    for some in (several[:8], several[8:]):
        for line, done in zip(
            some, await asyncio.gather(*(place.run(*line.split(), code=2) for line in some)), strict=True
        ):
            what, nearest = lines[line]
            assert f'there is no {what} "' in done.err, done
            assert f'the nearest is "{nearest}"' in done.err, done
            assert not done.raw, done


async def test_what_only_reads_still_knows_a_source_that_has_left_the_config(place):
    place.config["sources"]["other"] = place.config["sources"].pop("hq")
    assert len((await place.run("list", "--source", "hq", "--json")).rows) == 6
    assert (await place.json("verify", "--source", "hq"))["stores"]["disk"]["good"] == 6


async def test_verify_that_reads_nothing_says_so_and_is_no_success(place):
    done = await place.run("verify", "--store", "spare", code=1)
    assert "nothing was read" in done.out
    assert "every copy" not in done.out
    assert (await place.json("verify", "--store", "spare", code=1))["complete"] is False
    both = await place.run("verify")
    assert "spare: it holds no copy that could be read" in both.out
    assert "every copy that was read is good" in both.out


async def test_verify_tells_what_it_wrote_again_and_then_all_is_well(place):
    shutil.rmtree(place.store / "_manifests")
    shutil.rmtree(place.store / "_ledger")
    told = await place.json("verify")
    assert (told["complete"], told["stores"]["disk"]["undescribed"], told["stores"]["disk"]["described"]) == (
        True,
        6,
        6,
    )
    assert any(key.startswith("_ledger/hq/") for key in place.objects())
    assert "described by no manifest" not in (await place.run("verify")).out
    drill = await place.json("rebuild", "--drill", "--store", "disk")
    assert (drill["compared"], drill["same"], drill["complete"]) == (6, 6, True)


async def test_a_drill_says_what_it_left_out_and_one_that_compares_nothing_is_no_success(place):
    hq = place.simulators["hq"]
    hq.add_call(datetime.now(UTC) - timedelta(minutes=5), timedelta(seconds=2))
    hq.fault("status", "audio", value=500, times=-1)
    await place.run("sync", code=1)
    done = await place.run("rebuild", "--drill", "--store", "disk")
    assert "6 recordings compared, 6 the same" in done.out
    assert "1 of 7 not compared: 1 not archived yet" in done.out
    nothing = await place.run("rebuild", "--drill", "--store", "spare", code=1)
    assert "7 of 7 not compared: " in nothing.out
    assert "nothing was compared" in nothing.out
    assert (await place.json("rebuild", "--drill", "--store", "spare", code=1))["left_out"]


async def test_reconcile_of_a_time_that_was_never_archived_is_no_success(place):
    done = await place.run("reconcile", "--source", "hq", "--from", "2024-05-17", "--to", "2024-05-18", code=1)
    assert "nothing of this time was ever listed before" in done.out
    recent = (datetime.now(UTC) - HOUR).isoformat(), datetime.now(UTC).isoformat()
    told = await place.json("reconcile", "--source", "hq", "--from", recent[0], "--to", recent[1])
    assert (told["listed"], told["same"], told["failed"]) == (6, 6, [])


async def test_a_rebuild_without_a_single_manifest_is_no_success(place, postgres):
    shutil.rmtree(place.store / "_manifests")
    empty = postgres.create()
    place.config["database"]["url"] = empty
    try:
        done = await place.run("rebuild", "--store", "disk", code=1)
        assert "is this the right bucket and prefix?" in done.err
        told = await place.json("rebuild", "--store", "spare", code=1)
        assert (told["complete"], told["recordings"], len(told["untold"])) == (False, 0, 1)
    finally:
        postgres.drop(empty)


async def test_verify_and_copy_name_what_cant_be_read_and_go_on(place):
    paths = sorted((place.store / "hq").rglob("*.wav"))
    paths[0].unlink()
    paths[0].mkdir()
    done = await place.run("verify", "--store", "disk", code=1)
    assert f"{paths[0].relative_to(place.store)}: it can't be read" in done.out
    told = await place.json("verify", "--store", "disk", code=1)
    assert {n: told["stores"]["disk"][n] for n in ("read", "good", "bad", "unreadable", "error")} == {
        "read": 6,
        "good": 5,
        "bad": 1,
        "unreadable": 1,
        "error": None,
    }
    told = await place.json("copy", "--to", "spare", code=1)
    assert (told["sources"]["hq"]["copies"], told["error"], len(told["findings"])) == (5, None, 1)
