"""Audio that nobody can vouch for: waited for while its call is young, then kept as evidence, never called good."""

from __future__ import annotations

import struct
from datetime import timedelta

import pytest

from archiver.simulators import audio
from archiver.simulators.base import Call
from archiver.simulators.base import Clock as RecorderClock
from archiver.simulators.xivo import XivoSimulator
from tests.engine import HOUR, MINUTE, archiving, assert_archived
from tests.factories import NOON

DAY = timedelta(days=1)
TOLD = timedelta(minutes=23)


class Odd(XivoSimulator):
    """A recorder whose files are what the test says."""

    def __init__(self, *bodies: bytes, lasting: timedelta = timedelta(seconds=4)) -> None:
        super().__init__(seed=7, clock=RecorderClock(NOON, speed=0))
        self.bodies = list(bodies)
        for number in range(len(bodies)):
            self.add_call(NOON - lasting - (number + 2) * MINUTE, lasting)

    def sound(self, call: Call, kind: str) -> bytes:
        return self.bodies[self.calls.index(call)]

    def id(self, number: int = 0) -> str:
        return self.file_id(self.calls[number])


def unended(ogg: bytes) -> bytes:
    """The Ogg file as a killed writer leaves it: whole pages, and none that says it is the last."""
    return ogg[: ogg.rindex(b"OggS")]


def opened(wav: bytes) -> bytes:
    """The WAV as Asterisk leaves it when it is killed in a call: sizes of zero, audio behind."""
    data = wav.index(b"data") + 4
    return wav[:4] + bytes(4) + wav[8:data] + bytes(4) + wav[data + 4 :]


def a_wav(seconds: float = 4.0) -> bytes:
    return audio.make("wav", seconds=seconds, seed="evidence")


def a_spx(seconds: float = 4.0) -> bytes:
    return audio.make("spx", seconds=seconds, seed="evidence")


def header_only() -> bytes:
    return (
        b"RIFF"
        + struct.pack("<I", 36)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
        + b"data"
        + bytes(4)
    )


async def test_a_file_without_its_end_is_waited_for_and_then_kept_as_evidence(tmp_path, database, clock, subtests):
    kinds = {"ogg": unended(a_spx()), "wav": opened(a_wav()), "cut": a_wav()[:-2000]}
    sim = Odd(*kinds.values())
    async with archiving(tmp_path, database, sim, clock=clock, timeout="5s") as rig:
        await rig.sync()
        # While the call is young its writer may still be at work.
        assert await rig.states() == {"pending": 3}
        assert {m["attempts"] for d in (await rig.documents()).values() for m in d["media"]} == {0}
        assert rig.feed.health.failures == 0
        for _ in range(12):
            rig.advance(5 * MINUTE)
            await rig.sync()
        looks = sim.count("audio")
        assert looks <= 3 * 12
        rig.advance(HOUR)
        await rig.sync()
        rig.advance(11 * MINUTE)
        await rig.sync()
        assert await rig.states() == {"archived": 3}
        for number, (kind, body) in enumerate(kinds.items()):
            with subtests.test(kind):
                medium = await rig.medium(sim.id(number))
                assert medium["flags"] == ["unfinished", "unchecked"]
                assert medium["note"]
                assert medium["size"] == len(body)
        status = (await rig.status())["sources"]["pbx"]
        assert status["flags"] == {"unfinished": 3, "unchecked": 3, "short": 0}
        # Every store says it too.
        (line,) = (await rig.manifest_lines("disk"))[sim.id()][-1:]
        assert line["media"][0]["flags"] == ["unfinished", "unchecked"]
        assert sim.count("audio") <= looks + 2 * 3


async def test_an_old_call_s_unfinished_file_is_kept_after_ten_minutes(tmp_path, database, clock):
    sim = Odd(unended(a_spx()))
    clock.advance(30 * DAY)
    sim.clock.advance(30 * DAY)
    async with archiving(tmp_path, database, sim, clock=clock, start=NOON - DAY) as rig:
        await rig.sync()
        assert (await rig.medium())["error"].startswith("unfinished: ")
        rig.advance(11 * MINUTE)
        await rig.sync()
        assert (await rig.medium())["flags"] == ["unfinished", "unchecked"]
        assert sim.count("audio") == 2


async def test_a_file_that_its_writer_finishes_is_archived_as_good(tmp_path, database, clock):
    sim = Odd(unended(a_spx()))
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        assert (await rig.medium())["state"] == "pending"
        sim.bodies[0] = a_spx()
        rig.advance(5 * MINUTE)
        await rig.sync()
        medium = await rig.medium()
        assert (medium["state"], medium["flags"], medium["note"]) == ("archived", [], None)


async def test_bytes_that_differ_each_time_are_not_kept_and_cost_ever_less(tmp_path, database, clock):
    sim = Odd(unended(a_spx()))
    clock.advance(30 * DAY)
    sim.clock.advance(30 * DAY)
    async with archiving(tmp_path, database, sim, clock=clock, start=NOON - DAY, retry={"cap": "6h"}) as rig:
        for turn in range(48):
            sim.bodies[0] = unended(audio.make("spx", seconds=4.0, seed=f"turn {turn}"))
            await rig.sync()
            rig.advance(30 * MINUTE)
        medium = await rig.medium()
        assert (medium["state"], medium["copies"]) == ("pending", [])
        assert sim.count("audio") < 20


@pytest.mark.parametrize("body", [b"", header_only()], ids=["nothing", "header only"])
async def test_a_recording_of_nothing_is_empty_once_it_is_old_and_says_nothing_of_the_recorder(
    body, tmp_path, database, clock
):
    sim = Odd(*[body] * 8)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        assert await rig.states() == {"pending": 8}
        assert (rig.feed.health.failures, rig.feed.health.until) == (0, None)
        for _ in range(4):
            rig.advance(10 * MINUTE)
            await rig.sync()
        assert await rig.states() == {"empty": 8}
        assert {m["attempts"] for d in (await rig.documents()).values() for m in d["media"]} == {0}


@pytest.mark.parametrize("body", [header_only(), a_wav(30.0)], ids=["header only", "seconds"])
async def test_seconds_of_audio_for_a_long_call_are_asked_again_for_a_day_and_then_kept_and_flagged(
    body, tmp_path, database, clock
):
    sim = Odd(body, lasting=TOLD)
    async with archiving(tmp_path, database, sim, clock=clock, lookback="30m") as rig:
        await rig.sync()
        for _ in range(23):
            assert (await rig.medium())["state"] == "pending"
            assert (await rig.medium())["error"].startswith("short: ")
            rig.advance(HOUR)
            await rig.sync()
        assert sim.count("audio") <= 20
        for _ in range(3):
            rig.advance(3 * HOUR)
            await rig.sync()
        medium = await rig.medium()
        assert (medium["state"], medium["flags"]) == ("archived", ["short"])
        assert "1380.0 s" in medium["note"]
        assert (await rig.status())["sources"]["pbx"]["flags"]["short"] == 1


async def test_nothing_for_a_long_call_is_empty_after_a_day_and_flagged(tmp_path, database, clock):
    sim = Odd(b"", lasting=TOLD)
    async with archiving(tmp_path, database, sim, clock=clock, lookback="30m") as rig:
        for _ in range(36):
            await rig.sync()
            rig.advance(HOUR)
        medium = await rig.medium()
        assert (medium["state"], medium["flags"]) == ("empty", ["short"])


async def test_a_container_that_nobody_knows_is_kept_as_it_is_and_flagged(tmp_path, database, clock):
    sim = Odd(b"\x07\x13vendor's own\x00\xff" * 100)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        assert (await rig.medium())["error"].startswith("unchecked: ")
        rig.advance(2 * HOUR)
        await rig.sync()
        medium = await rig.medium()
        assert (medium["state"], medium["flags"]) == ("archived", ["unchecked"])
        assert medium["copies"][0]["key"].endswith(".bin")


async def test_a_page_is_never_kept_however_often_it_comes(tmp_path, database, clock):
    sim = Odd(b"<!DOCTYPE html><html><body>Please log in</body></html>")
    async with archiving(tmp_path, database, sim, clock=clock, retry={"give_up_after": "2d"}) as rig:
        for _ in range(10):
            await rig.sync()
            rig.advance(6 * HOUR)
        medium = await rig.medium()
        assert (medium["state"], medium["copies"]) == ("failed", [])


async def test_audio_without_a_container_is_archived_where_the_config_says_what_it_is(tmp_path, database, clock):
    sim = Odd(bytes(range(256)) * 125)
    async with archiving(tmp_path, database, sim, clock=clock, audio="raw:ulaw:8000") as rig:
        await rig.sync()
        medium = await rig.medium()
        assert (medium["state"], medium["coding"], medium["duration"], medium["flags"]) == ("archived", "ulaw", 4.0, [])
        assert medium["copies"][0]["key"].endswith(".ulaw")


async def test_a_copy_in_one_store_is_taken_to_the_other_with_its_flags(tmp_path, database, clock):
    sim = Odd(unended(a_spx()))
    clock.advance(DAY)
    sim.clock.advance(DAY)
    stores = {name: {"kind": "file", "path": str(tmp_path / name)} for name in ("near", "far")}
    async with archiving(tmp_path, database, sim, clock=clock, stores=stores, start=NOON - DAY) as rig:
        await rig.sync()
        (tmp_path / "far").rename(tmp_path / "aside")
        (tmp_path / "far").write_bytes(b"")
        rig.advance(11 * MINUTE)
        await rig.transfer()
        medium = await rig.medium()
        assert ([c["store"] for c in medium["copies"]], medium["state"]) == (["near"], "pending")
        (tmp_path / "far").unlink()
        (tmp_path / "aside").rename(tmp_path / "far")
        rig.advance(HOUR)
        await rig.sync()
        medium = await rig.medium()
        assert (medium["state"], medium["flags"]) == ("archived", ["unfinished", "unchecked"])
        assert sim.count("audio") == 2
        assert await assert_archived(rig) == 1
