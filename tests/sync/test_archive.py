"""Whole passes: from every recorder into every kind of store, and what a recorder changes afterwards."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points

import asyncpg
import pytest

from archiver.service.once import Summary
from archiver.simulators.base import AGENTS, Simulator
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.genesys import GenesysSimulator, recording_id
from archiver.simulators.imagicle import ImagicleSimulator
from archiver.simulators.noojee import NoojeeSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.sync import record
from tests import servers
from tests.engine import (
    HOUR,
    MINUTE,
    Rig,
    a_recorder,
    archiving,
    assert_archived,
    dav_table,
    eventually,
    kinds,
    s3_table,
)
from tests.factories import NOON

SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module", autouse=True)
def seaweed() -> Iterator[servers.Seaweed]:
    """Started first and used last: its first seconds are slow."""
    with servers.seaweed() as server:
        yield server


@pytest.fixture(scope="module")
def apache() -> Iterator[servers.Apache]:
    with servers.apache() as server:
        yield server


def simulator(kind: str) -> type[Simulator]:
    return {e.name: e.load() for e in entry_points(group="archiver.simulators")}[kind]


def test_every_recorder_has_a_simulator_to_be_archived_from():
    assert [e.name for e in sorted(entry_points(group="archiver.simulators"))] == list(kinds())


async def test_a_batch_recorder_hands_over_many_media_in_one_answer(tmp_path, database, clock):
    class InZips(ChronicallSimulator):
        fetch = "zip"

    sim = a_recorder(InZips, 30)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        media = await assert_archived(rig)
    assert sim.count("audio") == 0
    assert 1 <= sim.count("zip") < media / 5


@asynccontextmanager
async def written_in_part(rig: Rig, database: str) -> AsyncIterator[asyncio.Task[dict[str, Summary]]]:
    """A pass whose first ten recordings are archived, while nobody can write that a window was listed."""

    async def ten() -> bool:
        return await rig.states() == {"archived": 10}

    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("LOCK TABLE listings IN ACCESS EXCLUSIVE MODE")
        running = asyncio.create_task(rig.sync())
        await eventually(ten)
        yield running
    await other.close()


async def test_transfers_begin_while_a_long_listing_is_still_being_written(tmp_path, database, clock, monkeypatch):
    monkeypatch.setattr(record, "FIRST", 10)
    sim = a_recorder(calls=60)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        async with written_in_part(rig, database) as running:
            (ledger,) = await rig.catalog.sources(["pbx"])
            assert ledger["covered"] == ()
        (summary,) = (await running).values()
        assert (summary.polled.listed, summary.polled.new, summary.polled.changed) == (60, 60, 0)
        assert summary.archived == await assert_archived(rig) == 60


async def test_who_is_ended_after_the_first_part_of_a_listing_lists_it_again_and_takes_nothing_for_gone(
    tmp_path, database, clock, monkeypatch
):
    monkeypatch.setattr(record, "FIRST", 10)
    sim = a_recorder(calls=60)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        async with written_in_part(rig, database) as running:
            first = set(await rig.documents())
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        (summary,) = (await rig.sync()).values()
        assert (summary.polled.listed, summary.polled.new, summary.polled.changed) == (60, 50, 0)
        assert summary.polled.missing == 0
        assert await assert_archived(rig) == 60
        # What came with the first part is missed too, once its window is listed without it.
        rig.advance(MINUTE)
        gone = next(call for call in sim.calls if XivoSimulator.file_id(call) in first)
        gone.deleted_at = NOON
        (summary,) = (await rig.sync()).values()
        assert summary.polled.missing == 1


async def test_a_late_row_is_found_by_the_lookback(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    sim.add_call(NOON - 90 * MINUTE, 4 * SECOND, listed_at=NOON + 5 * MINUTE)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        assert await assert_archived(rig) == 3
        rig.advance(10 * MINUTE)
        (summary,) = (await rig.sync()).values()
        assert summary.polled.new == summary.archived == 1
        assert await assert_archived(rig) == 4


async def test_changed_metadata_is_a_new_manifest_line_and_no_new_download(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        before, asked = await rig.media_keys("disk"), sim.count("audio")
        sim.calls[1].note = "a complaint, see case 4711"
        rig.advance(SECOND)
        (summary,) = (await rig.sync()).values()
        assert (summary.polled.changed, summary.archived) == (1, 0)
        assert await assert_archived(rig) == 3
        assert sim.count("audio") == asked
        assert await rig.media_keys("disk") == before
        lines = await rig.manifest_lines("disk")
        assert sorted(map(len, lines.values())) == [1, 1, 2]
        first, second = lines[XivoSimulator.file_id(sim.calls[1])]
        assert "note" not in first["attributes"]
        assert second["attributes"]["note"] == "a complaint, see case 4711"
        assert first["media"] == second["media"]


@pytest.mark.parametrize("kind", [ImagicleSimulator, ChronicallSimulator])
async def test_another_size_or_hash_is_new_content_and_lies_beside_the_first(tmp_path, database, clock, kind):
    sim = a_recorder(kind, 3)
    call = sim.calls[1]
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        media = await assert_archived(rig)
        ((changed, before),) = sim.expected(call).items()
        (first,) = (await rig.medium(changed))["copies"]
        if kind is ImagicleSimulator:
            # Only the details tell size and hash, and they are read when a row changes.
            call.agent = next(agent for agent in AGENTS if agent != call.agent)
            call.extra["format"] = "wav"
            sim._facts.clear()
        else:
            call.duration += SECOND
        rig.advance(SECOND)
        await rig.sync()
        assert await assert_archived(rig) == media
        copies = (await rig.medium(changed))["copies"]
        assert len(copies) == 2
        assert copies[0] == first
        assert [(tmp_path / "disk" / first["key"]).read_bytes()] == list(before.audio.values())
        assert sim.count("audio") == media + 1
        assert len(await rig.media_keys("disk")) == media + 1


async def test_a_recording_may_gain_media_later(tmp_path, database, clock):
    sim = a_recorder(GenesysSimulator, 2)
    sim.calls[0].extra["later"] = [(NOON + 5 * MINUTE, 4)]
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        assert await assert_archived(rig) == 2
        rig.advance(10 * MINUTE)
        await rig.sync()
        assert await assert_archived(rig) == 3
        assert len((await rig.documents())[recording_id(sim.calls[0])]["media"]) == 2
        assert sim.count("audio") == 3


async def test_a_row_that_vanishes_is_kept_and_said_and_may_come_back(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    gone = XivoSimulator.file_id(sim.calls[1])
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        held, asked = sim.truth(), sim.count("audio")
        rig.advance(MINUTE)
        sim.calls[1].deleted_at = NOON
        (summary,) = (await rig.sync()).values()
        assert summary.polled.missing == 1
        assert {i: d["missing_since"] for i, d in (await rig.documents()).items() if d["missing_since"]} == {
            gone: "2024-05-18T12:01:00.000Z"
        }
        # Archived it was, archived it stays, and the manifest says since when the recorder has it no more.
        assert await assert_archived(rig, truth=held) == 3
        assert (await rig.manifest_lines("disk"))[gone][-1]["missing_since"] == "2024-05-18T12:01:00.000Z"

        rig.advance(MINUTE)
        sim.calls[1].deleted_at = None
        await rig.sync()
        assert await assert_archived(rig) == 3
        assert (await rig.documents())[gone]["missing_since"] is None
        assert (await rig.manifest_lines("disk"))[gone][-1]["missing_since"] is None
        assert sim.count("audio") == asked
        assert await rig.happened(gone) == {"no longer listed": 1, "listed again": 1}


async def test_rows_told_twice_count_once(tmp_path, database, clock):
    sim = a_recorder(calls=5)
    async with archiving(tmp_path, database, sim, clock=clock, window="20m") as rig:
        sim.fault("same_page", "list", times=-1)
        await rig.poll()
        sim.faults.clear()
        (summary,) = (await rig.sync()).values()
        assert summary.polled.new == 0
        assert await assert_archived(rig) == sim.count("audio") == 5


@pytest.mark.parametrize(
    ("kind", "window"), [(XivoSimulator, "10m"), (ChronicallSimulator, "7m"), (ImagicleSimulator, "13m")]
)
async def test_a_call_that_straddles_windows_is_archived_once(tmp_path, database, clock, kind, window):
    sim = a_recorder(kind)
    for n in range(6):
        sim.add_call(NOON - 60 * MINUTE + n * 9 * MINUTE, 12 * MINUTE - n * MINUTE, extra={"format": "mp3"})
    async with archiving(tmp_path, database, sim, clock=clock, window=window, longest_call="20m") as rig:
        (summary,) = (await rig.sync()).values()
        media = await assert_archived(rig)
        assert sim.count("audio") == media == summary.archived
        assert summary.polled.windows > 12


async def test_rows_of_the_future_and_of_1970_are_kept_flagged_and_move_nothing(tmp_path, database, clock):
    sim = a_recorder(ChronicallSimulator, 3)
    sim.rule = "after"
    future = sim.add_call(datetime(2099, 1, 1, tzinfo=UTC), 3 * SECOND, listed_at=NOON, ready_at=NOON, index=5)
    ancient = sim.add_call(datetime(1970, 1, 1, tzinfo=UTC) + SECOND, 3 * SECOND, index=6)
    # A recorder with a broken clock tells of them in any window.
    sim._within = lambda start, end: [p for c in sim.listed() for p in sim.parts(c)]
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        await assert_archived(rig)
        flags = {d["raw"]["startTime"]: d["flags"] for d in (await rig.documents()).values() if d["flags"]}
        assert flags == {
            int(future.start.timestamp() * 1000): ["future"],
            int(ancient.start.timestamp() * 1000): ["ancient"],
        }
        folders = {k.rsplit("/", 2)[0] for k in await rig.media_keys("disk")}
        assert folders == {"pbx/1970/01/01", "pbx/2024/05/18", "pbx/2099/01/01"}
        status = (await rig.status())["sources"]["pbx"]
        assert status["covered_to"] == "2024-05-18T11:59:59.000Z"
        assert (status["gaps"], status["lag"]) == ([], 1.0)
        # Not taken for deleted by windows that could not hold them, nor asked for again.
        asked = sim.count("audio")
        rig.advance(HOUR)
        (summary,) = (await rig.sync()).values()
        assert (summary.polled.missing, summary.polled.new, sim.count("audio")) == (0, 0, asked)
        assert (await rig.status())["sources"]["pbx"]["covered_to"] == "2024-05-18T12:59:59.000Z"


async def test_a_row_nobody_can_read_is_counted_and_shown_and_holds_nothing_up(tmp_path, database, clock):
    sim = a_recorder(calls=4)
    bad = {"id": "xivocc_gateway-1.2", "start": "the day before yesterday", "duration": "00:01:00"}
    async with archiving(tmp_path, database, sim, clock=clock, window="6h") as rig:
        sim.fault("bad_row", "list", times=1, value=bad)
        (summary,) = (await rig.sync()).values()
        assert await assert_archived(rig) == 4
        assert not summary.complete
        assert summary.polled.rejected == 1
        (shown,) = await rig.catalog.rejected("pbx")
        assert '"the day before yesterday"' in shown["raw"]
        assert "time can't be read" in shown["reason"]
        assert (await rig.status())["sources"]["pbx"]["rejected_rows"] == 1


async def test_a_noojee_call_is_one_recording_with_a_medium_a_leg(tmp_path, database, clock):
    sim = a_recorder(NoojeeSimulator)
    sim.add_call(NOON - 30 * MINUTE, 9 * SECOND, extra={"legs": 4})
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        assert await assert_archived(rig) == 4
        assert len(await rig.documents()) == 1


@pytest.mark.parametrize("kind", kinds())
async def test_every_recorder_into_file_s3_and_webdav_at_once(kind, tmp_path, database, clock, seaweed, apache):
    sim = a_recorder(simulator(kind), 12)
    stores = {
        "disk": {"kind": "file", "path": str(tmp_path / "disk"), "prefix": "on/disk/"},
        "s3": s3_table(seaweed, f"calls-{kind}", prefix="archive/"),
        "dav": dav_table(apache, f"{kind}/"),
    }
    async with archiving(tmp_path, database, sim, stores=stores, clock=clock) as rig:
        (summary,) = (await rig.sync()).values()
        media = await assert_archived(rig)
        assert media >= 12
        assert summary.complete
        assert (summary.polled.new, summary.archived, summary.pending) == (len(sim.truth()), media, 0)
        assert summary.bytes == sum(len(a) for e in sim.truth().values() for a in e.audio.values())
        assert sum(1 for s in sim.seen if s.on == "audio" and s.status == 200) == media
        totals = await rig.catalog.totals()
        assert totals == {("pbx", store): (media, summary.bytes) for store in ("", "disk", "s3", "dav")}

        before = {store: await rig.objects(store) for store in stores}
        asked = sim.count("audio"), sim.count("detail")
        assert asked[1] == (len(sim.truth()) if kind == "imagicle" else 0)
        (again,) = (await rig.sync()).values()
        assert again.complete
        assert (again.polled.new, again.polled.changed, again.archived) == (0, 0, 0)
        assert (sim.count("audio"), sim.count("detail")) == asked, "what is known is not asked for again"
        assert {store: await rig.objects(store) for store in stores} == before
