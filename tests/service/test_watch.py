"""What is noticed although nothing fails: lists that change late, a race against deletion, silence."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from rich.console import Console

from archiver.catalog.catalog import Catalog
from archiver.commands import render
from archiver.simulators.xivo import XivoSimulator
from archiver.sync.windows import last_hours, losses, plan
from archiver.upkeep.reconcile import reconcile
from tests import commands
from tests.engine import Rig, a_recorder, archiving
from tests.factories import NOON, ManualClock, a_window

HOUR, DAY, WEEK = timedelta(hours=1), timedelta(days=1), timedelta(days=7)
ONE_DAY = a_window("18T00:00", "18T12:00")


def printed(document) -> str:
    console = Console(file=io.StringIO(), width=250)
    render.status(console, document)
    return console.file.getvalue()


async def warned(rig: Rig) -> dict[str, str]:
    """By kind what `status` warns of, in JSON and for people alike."""
    document = await rig.status()
    told = {w["kind"]: w["text"] for w in document["sources"]["pbx"]["warnings"]}
    assert all(text in printed(document) for text in told.values())
    return told


# -- listed again --------------------------------------------------------------------------------------------------


async def test_reconcile_compares_both_ways_and_what_is_missing_here_falls_due(tmp_path, database):
    async with archiving(tmp_path, database, a_recorder(calls=6), clock=ManualClock()) as rig:
        await rig.sync()
        rig.feed.gate.limit = 4

        async def compared(**how):
            return await reconcile(rig.feed, rig.catalog, ONE_DAY, **{"dry_run": True, **how})

        assert (await compared()).complete
        first = set(await rig.documents())
        late = rig.sim.add_call(NOON - 30 * HOUR / 60, timedelta(seconds=2))
        changed, gone = rig.sim.calls[0], rig.sim.calls.pop(1)
        changed.agent = ("Somebody Else", "1999")
        (late_id,), (changed_id,), (gone_id,) = (set(rig.sim.expected(c)) for c in (late, changed, gone))
        for dry_run in (True, False):
            report = await compared(dry_run=dry_run)
            assert (set(report.not_here), set(report.changed)) == ({late_id}, {changed_id})
            assert set(report.no_longer_there) == {gone_id}
            assert not report.complete
            assert (late_id in await rig.documents()) is not dry_run
        report = await compared()
        assert (report.not_here, report.changed) == ({}, {})
        assert report.no_longer_there[gone_id]["state"] == "archived"
        assert report.no_longer_there[gone_id]["missing_since"]
        assert not report.complete or late_id in await rig.documents()
        await rig.transfer()
        assert (await compared()).complete, "archived before it went away"
        assert set(await rig.documents()) == first | {late_id}


async def test_what_turns_up_a_week_late_is_found_by_the_visits_of_its_window(tmp_path, database):
    async with archiving(tmp_path, database, a_recorder(), clock=ManualClock(), lookback="1h", window="24h") as rig:
        await rig.poll()
        found = []
        for wait in (HOUR * 2, DAY, WEEK):
            rig.sim.add_call(NOON - 2 * HOUR, timedelta(seconds=2))
            rig.advance(wait)
            await rig.poll()
            found.append(len(await rig.documents()))
        assert found == [1, 2, 3]
        rig.sim.seen.clear()
        await rig.poll()
        listed = rig.sim.count("list")
        rig.advance(timedelta(minutes=1))
        rig.sim.seen.clear()
        await rig.poll()
        assert rig.sim.count("list") <= listed, "each visit is made once"


async def test_before_the_retention_ends_a_window_is_visited_once_more(tmp_path, database):
    how = {"clock": ManualClock(), "lookback": "1h", "window": "24h", "retention": "40d"}
    async with archiving(tmp_path, database, a_recorder(), **how) as rig:
        await rig.poll()
        rig.advance(8 * DAY)
        await rig.poll()
        rig.sim.add_call(NOON - 2 * HOUR, timedelta(seconds=2))
        rig.advance(29 * DAY)
        while (await rig.poll()).more:
            pass
        assert await rig.documents() == {}
        rig.advance(DAY + 12 * HOUR)
        await rig.poll()
        assert len(await rig.documents()) == 1


# -- the race against deletion -----------------------------------------------------------------------------------------


def test_what_expires_first_is_listed_first_but_for_the_newest_piece():
    wanted = a_window("18T00:00", "18T06:00")
    pieces = plan((), wanted, longest=HOUR, lookback=timedelta(), recent=False, horizon=NOON - 10 * HOUR)
    assert [p.window.start.hour for p in pieces] == [5, 2, 3, 4, 1, 0]


def test_losses_count_what_no_rate_can_save():
    hours = [(NOON + n * HOUR, 10) for n in range(4)]
    assert losses(hours, 1.0, NOON) == (10, NOON)
    assert losses(hours, 0.0, NOON) == (40, NOON)
    assert losses([], 0.0, NOON) == (0, None)
    assert losses([(NOON + HOUR, 100)], 100 / 3600, NOON) == (0, None)
    assert losses([(NOON + HOUR, 101)], 100 / 3600, NOON) == (1, NOON + HOUR)


async def test_what_expires_first_is_fetched_first_and_what_will_be_lost_is_told(tmp_path, database):
    how = {"clock": ManualClock(), "start": NOON - 3 * DAY, "window": "24h", "retention": "3d"}
    async with archiving(tmp_path, database, a_recorder(), **how) as rig:
        for n in range(20):
            rig.sim.add_call(NOON - 3 * DAY + (n + 1) * 3 * HOUR, timedelta(seconds=2))
        while (await rig.poll()).more:
            pass
        claims = await rig.catalog.claim({"pbx": 5}, HOUR, ["pbx"])
        starts = sorted(d["started_at"] for d in (await rig.documents()).values())
        assert sorted(c.started_at.isoformat()[:19] for c in claims) == [s[:19] for s in starts[:5]]
        await rig.catalog.release(claims)
        status = await rig.status()
        race = status["sources"]["pbx"]["retention"]
        assert (race["waiting"], race["per_hour"], race["would_be_lost"]) == (20, 0.0, 20)
        assert race["first_lost_at"] == "2024-05-18T15:00:00.000Z"
        assert "20 of 20 waiting media will be lost" in (await warned(rig))["losing"]
        await rig.transfer()
        assert await rig.states() == {"archived": 20}
        assert (await rig.status())["sources"]["pbx"]["retention"]["would_be_lost"] == 0
        assert "losing" not in await warned(rig)


# -- silence ----------------------------------------------------------------------------------------------------


def test_the_same_local_hour_of_the_weeks_before_stays_the_same_through_a_clock_change():
    zone = ZoneInfo("America/Denver")
    rows = last_hours(datetime(2024, 3, 12, 18, 30, tzinfo=UTC), zone, 24, 2)
    assert len(rows) == 24
    assert {w.start.astimezone(zone).hour for w in rows[0]} == {11}
    assert [w.start.hour for w in rows[0]] == [17, 18, 18]


async def test_an_hour_without_calls_where_there_always_are_some_is_told_in_status_and_check(tmp_path, database):
    recorder = a_recorder()
    for week in range(1, 7):
        for n in range(5):
            recorder.add_call(NOON - week * WEEK - HOUR + n * 6 * HOUR / 60, timedelta(seconds=2))
    how = {"clock": ManualClock(), "start": NOON - 6 * WEEK - DAY, "window": "14d"}
    async with archiving(tmp_path, database, recorder, **how) as rig:
        while (await rig.poll()).more:
            pass
        await rig.transfer()
        assert "quiet" not in await warned(rig), "the hour before noon is not over"
        rig.advance(timedelta(minutes=5))
        await rig.poll()
        text = (await warned(rig))["quiet"]
        assert "only 0 calls from 2024-05-18T11:00:00.000Z to 2024-05-18T12:00:00.000Z" in text
        assert "of the last 6 weeks had 5 to 5" in text
        rig.advance(2 * DAY)
        await rig.poll()
        assert "quiet" not in await warned(rig), "over after a day"


async def test_an_archive_that_is_young_or_seldom_used_is_never_called_quiet(tmp_path, database):
    recorder = a_recorder()
    for week in range(1, 7):
        recorder.add_call(NOON - week * WEEK - HOUR / 2, timedelta(seconds=2))
    for week in range(1, 3):
        for n in range(9):
            recorder.add_call(NOON - week * WEEK - 3 * HOUR + n * HOUR / 60, timedelta(seconds=2))
    how = {"clock": ManualClock(), "start": NOON - 6 * WEEK - DAY, "window": "14d"}
    async with archiving(tmp_path, database, recorder, **how) as rig:
        rig.advance(timedelta(minutes=5))
        while (await rig.poll()).more:
            pass
        assert "quiet" not in await warned(rig)


async def test_a_list_that_shrank_is_told_until_it_is_whole_again(tmp_path, database):
    async with archiving(tmp_path, database, a_recorder(calls=12), clock=ManualClock()) as rig:
        await rig.sync()
        assert await warned(rig) == {}
        hidden = rig.sim.calls[:4]
        rig.sim.calls = rig.sim.calls[4:]
        await rig.poll()
        assert "4 of the 12 newest recordings are no longer listed" in (await warned(rig))["shrunk"]
        rig.sim.calls += hidden
        await rig.poll()
        assert await warned(rig) == {}


async def test_a_queue_that_stands_still_is_told(tmp_path, database):
    async with archiving(tmp_path, database, a_recorder(calls=3), clock=ManualClock()) as rig:
        await rig.poll()
        assert await warned(rig) == {}
        rig.advance(2 * HOUR)
        assert "the queue stands still: 3 media due since 2024-05-18T12:00" in (await warned(rig))["still"]
        await rig.transfer()
        assert "still" not in await warned(rig)


async def test_many_recordings_with_far_less_audio_than_told_are_an_alarm_and_a_few_are_not(tmp_path, database):
    async with archiving(tmp_path, database, a_recorder(calls=99), clock=ManualClock()) as rig:
        await rig.sync()
        await rig.mark("short", 4)
        assert await warned(rig) == {}
        # One in twenty of 99.
        await rig.mark("short", 5)
        assert "5 of the 99 media archived in the last day" in (await warned(rig))["short"]
        await rig.mark("unchecked", 99)
        assert await warned(rig) == {}
        # 5 of 100 are not more than one in twenty.
        rig.sim.add_call(NOON - 4 * timedelta(minutes=1), timedelta(seconds=2), index=500)
        await rig.sync()
        assert await rig.states() == {"archived": 100}
        await rig.mark(None, 100)
        await rig.mark("short", 5)
        assert await warned(rig) == {}
        await rig.mark("short", 6)
        assert "6 of the 100" in (await warned(rig))["short"]
        # Those of yesterday say nothing of today, and remain counted.
        rig.advance(DAY)
        assert "short" not in await warned(rig)
        document = await rig.status()
        assert document["sources"]["pbx"]["flags"]["short"] == 6
        assert "6 media are flagged short" in printed(document)


async def test_check_exits_with_1_and_names_what_status_warns_of(tmp_path, database):
    async with commands.place(tmp_path, database) as place:
        hq = await place.add("hq", XivoSimulator())
        hq.add_call(datetime.now(UTC) - HOUR, timedelta(seconds=2))
        hq.fault("status", "audio", value=500, times=-1)
        await place.run("sync", code=1)
        assert "WARNING" not in (await place.run("check")).out
        catalog = await Catalog.open(database)
        async with catalog._connection() as c:
            await c.execute("UPDATE media SET due_at = due_at - interval '2 hours'")
        await catalog.close()
        line = "WARNING source hq: the queue stands still: 1 media due since"
        assert line in (await place.run("check", code=1)).out
        told = await place.json("check", code=1)
        assert [c["what"] for c in told["checks"] if c["warning"]] == ["source hq"]
        compared = ("reconcile", "--source", "hq", "--from", "2024-05-17", "--to", "2024-05-18")
        assert (await place.json(*compared, code=1))["never_listed"], "nothing of that day was ever archived"
