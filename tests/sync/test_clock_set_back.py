"""A clock that was ahead is set right: nothing waits for a moment that was reckoned by it, nothing later is covered."""

from __future__ import annotations

import time
from datetime import timedelta

from structlog.testing import capture_logs

from archiver.service import daemon
from tests.engine import HOUR, MINUTE, Rig, a_recorder, archiving, eventually
from tests.factories import NOON, ManualClock

AHEAD = timedelta(hours=2)


def ahead(rig: Rig, by: timedelta = AHEAD) -> None:
    """The database's clock goes wrong, or right again; time itself does not."""
    assert isinstance(rig.catalog.clock, ManualClock)
    rig.catalog.clock.advance(by)


async def value(rig: Rig, statement: str, *values: object) -> object:
    async with rig.catalog._connection() as c:
        return await c.fetchval(statement, *values)


async def test_what_was_reckoned_by_a_clock_two_hours_ahead_is_cut_when_it_is_set_right(tmp_path, database):
    async with archiving(tmp_path, database, a_recorder(calls=3), clock=ManualClock(), rate="100/s") as rig:
        await rig.poll()
        await rig.transfer()
        rig.advance(5 * MINUTE)
        late = rig.sim.add_call(rig.sim.clock.now() - MINUTE, timedelta(seconds=1))
        rig.sim.fault("status", "audio", times=20, value=500)
        ahead(rig)
        await rig.poll()
        await rig.transfer()
        now = NOON + 5 * MINUTE
        async with rig.catalog._connection() as c:
            await c.execute("UPDATE sources SET paused_until = $1, paused_why = 'x'", now + AHEAD + 15 * MINUTE)
            await c.execute("INSERT INTO shares VALUES ('pbx', gen_random_uuid(), 1, $1)", now + AHEAD + MINUTE)
        assert await value(rig, "SELECT upper(covered) FROM sources") > now + HOUR
        ahead(rig, -AHEAD)
        with capture_logs() as said:
            assert abs(await rig.catalog.set_right() - AHEAD) < MINUTE
        assert [line["event"] for line in said] == ["clock.set_back"]
        # Once is enough, whoever does it.
        assert await rig.catalog.set_right() is None
        assert await value(rig, "SELECT upper(covered) FROM sources") <= now
        assert await value(rig, "SELECT max(upper(span)) FROM listings") <= now
        assert await value(rig, "SELECT next_request_at FROM sources") <= now
        assert await value(rig, "SELECT polled_at FROM sources") == now
        assert await value(rig, "SELECT paused_until FROM sources") == now + 15 * MINUTE
        assert await value(rig, "SELECT until FROM shares") <= now + 2 * MINUTE
        due = await value(rig, "SELECT max(due_at) FROM media WHERE state = 'pending'")
        assert due is None or due <= now + HOUR
        # And what happened in the hours that the clock had left out is found.
        async with rig.catalog._connection() as c:
            await c.execute("DELETE FROM shares")
            await c.execute("UPDATE sources SET paused_until = NULL, paused_why = NULL")
        rig.sim.faults.clear()
        rig.sim.add_call(now + 30 * MINUTE, timedelta(seconds=1))
        rig.advance(HOUR)
        await rig.poll()
        await rig.transfer()
        assert await rig.states() == {"archived": 5}
        assert late in rig.sim.calls


async def test_a_clock_that_is_behind_for_days_drops_nothing_that_was_listed(tmp_path, database):
    """As without a battery: it is the clock of now that is wrong."""
    async with archiving(tmp_path, database, a_recorder(calls=1), clock=ManualClock(), window="24h") as rig:
        for _ in range(6):
            await rig.poll()
            rig.advance(timedelta(days=1))
        covered = await value(rig, "SELECT covered FROM sources")
        ahead(rig, -timedelta(days=5))
        with capture_logs() as said:
            assert await rig.catalog.set_right() is None
        assert [line["event"] for line in said] == ["clock.behind"]
        assert await value(rig, "SELECT covered FROM sources") == covered


async def test_a_clock_that_is_corrected_by_seconds_is_left_alone(tmp_path, database):
    async with archiving(tmp_path, database, a_recorder(calls=1), clock=ManualClock()) as rig:
        await rig.poll()
        ahead(rig, -timedelta(seconds=5))
        with capture_logs() as said:
            assert await rig.catalog.set_right() is None
        assert said == []


async def test_polls_go_on_when_the_hosts_clock_is_set_back(tmp_path, database, clock, monkeypatch):
    """The scheduler goes by it, and would wait for two hours."""
    async with archiving(tmp_path, database, a_recorder(calls=1), clock=clock) as rig, rig.running() as at_work:

        def done() -> int:
            return sum(at_work.engine.tally.polls["pbx"].counts)

        async def polled_again() -> bool:
            return done() > before

        before = 0
        await eventually(polled_again)
        # As if it had been set back: what is to come lies two hours ahead.
        for job in at_work._scheduler.get_jobs():
            job.modify(next_run_time=job.next_run_time + AHEAD)
        now = time.time
        monkeypatch.setattr(daemon.time, "time", lambda: now() - AHEAD.total_seconds())
        before = done() + 1
        with capture_logs() as said:
            await eventually(polled_again, within=60)
        assert "clock.host_set_back" in [line["event"] for line in said]
