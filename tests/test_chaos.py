"""The chaos run in small (``make chaos`` is the whole): processes die, connections break, and nothing is lost."""

import pytest

from tests.chaos import plan, run


@pytest.mark.timeout(900)
async def test_a_short_storm_loses_nothing_doubles_nothing_and_can_be_rebuilt():
    report = await run.run(20260521, recordings=100, kills=16, seconds=10, patience=400, hurry=True)
    told = "\n".join([*(f"{name}: {value}" for name, value in report.rows()), *report.wrong, *report.crashes])
    assert report.good, told
    assert report.recordings == 100, told
    assert report.kills.total() == 16, told
    assert (report.refused, report.unreadable) == (2, 1), told
    assert report.bad >= 2, told
    assert report.rebuilt == {"main": True, "dav": True}, told


def test_a_seed_repeats_its_storm_and_another_does_not():
    events = plan.plan(7, kills=210, seconds=300)
    assert events == plan.plan(7, kills=210, seconds=300)
    assert events != plan.plan(8, kills=210, seconds=300)
    killed = [event.whom for event in events if event.what in {"kill", *plan.DEATHS}]
    assert len(killed) == 210
    assert set(killed) == set(plan.KILLS)
    assert {event.what for event in events} == {"stop", *plan.DEATHS, *plan.TROUBLES}
    assert max(event.lasting for event in events) <= 30
