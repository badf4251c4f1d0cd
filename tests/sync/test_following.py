"""What no listing by time tells, archived all the same: channel events, ids from a file, another source's call ids."""

import hashlib
import json
from typing import Any

from archiver.model import Direction
from archiver.simulators.base import Call
from archiver.simulators.base import Clock as RecorderClock
from archiver.simulators.noojee import NoojeeSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.sync import lookups
from tests.engine import HOUR, MINUTE, archiving, assert_archived
from tests.factories import NOON


class Events(XivoSimulator):
    """Archived with its channel events."""

    def options(self) -> dict[str, Any]:
        return {**super().options(), "cel": True}


class Beside(Events):
    """Its call ids are the unique ids of the recorder beside it."""

    @staticmethod
    def call_id(call: Call) -> str:
        return f"{int(call.start.timestamp())}.{call.index}"


class Fed(NoojeeSimulator):
    """Has no listing: it is told which calls there are."""

    auth = "hash"
    listing = "none"
    ids: dict[str, str]

    def options(self) -> dict[str, Any]:
        return {**super().options(), **self.ids}


def at_noon(kind):
    return kind(seed=7, clock=RecorderClock(NOON, speed=0))


async def test_channel_events_are_archived_like_audio_and_find_the_calls_nobody_answered(tmp_path, database, clock):
    sim = at_noon(Events)
    sim.add_calls(NOON - HOUR, NOON - 5 * MINUTE, 3)
    missed = sim.add_call(NOON - 30 * MINUTE, MINUTE, extra={"answered": False})
    sim.truth = lambda: {sim.file_id(call): sim.told_of(call) for call in sim.calls}
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        (summary,) = (await rig.sync()).values()
        assert summary.complete
        documents = await rig.documents()
        (events,) = (d for i, d in documents.items() if i.startswith("cel-"))
        assert set(documents) == {events["recording_id"], *sim.truth()}
        assert documents[sim.file_id(missed)]["attributes"]["status"] == "abandoned"
        assert {d["call_id"] for d in documents.values()} == {None, *map(sim.call_id, sim.calls)}
        (medium,) = events["media"]
        lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in sim.cel).encode()
        assert (medium["state"], medium["content_type"]) == ("archived", "application/x-ndjson")
        assert medium["sha256"] == hashlib.sha256(lines).hexdigest()
        for call in sim.calls:
            (medium,) = documents[sim.file_id(call)]["media"]
            assert medium["sha256"] == hashlib.sha256(sim.sound(call, "wav")).hexdigest()
        asked = sim.count("audio"), sim.count("look_up")
        rig.advance(MINUTE)
        await rig.sync()
        assert (sim.count("audio"), sim.count("look_up")) == asked
        assert len(await rig.documents()) == len(documents)


async def test_an_archived_call_is_marked_at_the_recorder_once(tmp_path, database, clock):
    sim = at_noon(XivoSimulator)
    sim.tells_call_data_id = True
    sim.add_calls(NOON - HOUR, NOON - 5 * MINUTE, 3)
    async with archiving(tmp_path, database, sim, clock=clock, attach="archived") as rig:
        await rig.sync()
        told = {i: d["media"][0]["copies"][0]["archived_at"] for i, d in (await rig.documents()).items()}
        assert sim.attached == {call.index: {"archived": told[sim.file_id(call)]} for call in sim.calls}
        rig.advance(MINUTE)
        await rig.sync()
        assert (sim.count("attach"), sim.count("audio")) == (3, 3)


async def test_a_file_of_ids_is_followed_over_restarts(tmp_path, database, clock):
    ids = tmp_path / "ids"
    sim = at_noon(Fed)
    sim.ids = {"ids_file": str(ids)}
    sim.add_calls(NOON - HOUR, NOON - 20 * MINUTE, 4)
    ids.write_text(f"{sim.unique_id(sim.calls[0])}\n")
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        assert await assert_archived(rig, truth=sim.expected(sim.calls[0])) >= 1
    with ids.open("a") as file:
        file.write("".join(f"{sim.unique_id(call)}\n" for call in sim.calls[1:]))
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        await assert_archived(rig)
        assert sim.count("unique_id") == len(sim.calls)


async def test_call_ids_of_another_recorder_are_looked_up(tmp_path, database, clock):
    """Also of a call longer than what is looked up again: its id is learnt, and its legs are told, at its end."""
    other, sim = at_noon(Beside), at_noon(Fed)
    sim.ids = {"ids_from": "other"}
    for recorder in (other, sim):
        recorder.add_calls(NOON - HOUR, NOON - 5 * MINUTE, 5)
        long = recorder.add_call(NOON - MINUTE, 6 * MINUTE, listed_at=NOON - MINUTE, direction=Direction.INBOUND)
    options = {"lookback": "1m", "longest_call": "8h"}
    async with archiving(tmp_path, database, {"other": other, "pbx": sim}, clock=clock, **options) as rig:

        async def go_by(minutes: int) -> None:
            """What the one learns in a pass the other may look up in the next only."""
            rig.advance(minutes * MINUTE)
            await rig.sync()
            await rig.sync()

        await go_by(0)
        assert set(await rig.documents()) == {sim.unique_id(call) for call in sim.calls[:5]}
        assert other.file_id(long) in await rig.documents("other")
        for recorder in (other, sim):
            recorder.add_call(NOON + MINUTE, MINUTE)
        await go_by(3)
        assert len(await rig.documents()) == 6
        await go_by(3)
        assert await assert_archived(rig) >= len(sim.truth()) == 7
        await go_by(3)
        asked = sim.count("unique_id")
        await go_by(3)
        assert sim.count("unique_id") == asked, "long settled"


async def test_a_recorder_that_tells_no_call_ids_is_warned_about(tmp_path, database, clock):
    """Nothing fails, and nothing would ever come."""
    other, sim = at_noon(XivoSimulator), at_noon(Fed)
    sim.ids = {"ids_from": "other"}
    async with archiving(tmp_path, database, {"other": other, "pbx": sim}, clock=clock) as rig:
        await rig.sync()
        assert (await rig.status())["sources"]["pbx"]["warnings"] == []
        call = other.add_call(NOON - 3 * MINUTE, MINUTE)
        await rig.sync()
        warned = (await rig.status())["sources"]
        assert [w["kind"] for w in warned["pbx"]["warnings"]] == ["untold"]
        assert warned["other"]["warnings"] == []
        await lookups.look_up(rig.archive.feeds["other"], rig.catalog, [other.call_id(call)])
        assert (await rig.status())["sources"]["pbx"]["warnings"] == []


async def test_a_call_id_that_errs_each_time_holds_up_no_other_and_is_asked_again_by_itself(tmp_path, database, clock):
    other, sim = at_noon(Beside), at_noon(Fed)
    sim.ids = {"ids_from": "other"}
    for recorder in (other, sim):
        recorder.add_calls(NOON - HOUR, NOON - 5 * MINUTE, 6)
    bad = sim.unique_id(sim.calls[2])
    fault = sim.fault("status", "unique_id", times=-1, value=500, match=bad)
    async with archiving(tmp_path, database, {"other": other, "pbx": sim}, clock=clock) as rig:
        await rig.sync()
        await rig.sync()
        assert set(await rig.documents()) == {sim.unique_id(call) for call in sim.calls} - {bad}
        # Those that come later are found too, and the bad one on its own schedule only.
        for recorder in (other, sim):
            recorder.add_call(NOON + MINUTE, MINUTE)
        hits = fault.hits
        rig.advance(5 * MINUTE)
        await rig.sync()
        await rig.sync()
        assert len(await rig.documents()) == 6
        assert hits < fault.hits <= hits + 2
        assert bad in ((await rig.status())["sources"]["pbx"]["last_error"] or "")
        fault.times = 0
        rig.advance(HOUR)
        await rig.sync()
        assert len(await rig.documents()) == 7
        await assert_archived(rig)
