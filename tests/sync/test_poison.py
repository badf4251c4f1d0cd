"""Single bad things among good ones: nothing good waits for them, and none costs more than its own schedule."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import timedelta

import pytest

from archiver.errors import ArchiverError, Scope
from archiver.simulators.base import Simulator
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.imagicle import ImagicleSimulator
from archiver.simulators.xivo import XivoSimulator
from tests.commands import ROOT
from tests.engine import HOUR, MINUTE, Rig, a_recorder, archiving, eventually, s3_table
from tests.factories import NOON
from tests.refusing import Refusing
from tests.servers import seaweed as a_seaweed

BAD, GOOD = 40, 120
DAY = timedelta(days=1)


def every_error() -> list[type[ArchiverError]]:
    found, left = [], [ArchiverError]
    while left:
        kind = left.pop()
        found.append(kind)
        left += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == "archiver.errors" and kind is not ArchiverError]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_says_whom_it_concerns(kind):
    assert isinstance(kind.scope, Scope)
    # In the page that says what follows from it.
    assert kind.__doc__


def poisoned(kind: type[Simulator], live: bool = False) -> tuple[Simulator, list[str]]:
    """A recorder with bad calls and younger good ones; how the requests for the bad ones' audio are told."""
    sim = a_recorder(kind, live=live)
    now = sim.clock.now().replace(microsecond=0)
    sim.add_calls(now - 5 * HOUR, now - 4 * HOUR, BAD, longest=2.0)
    bad = [next(iter(sim.expected(call))) for call in sim.calls]
    sim.add_calls(now - 3 * HOUR, now - HOUR, GOOD, longest=2.0)
    return sim, bad


def asked(sim: Simulator, bad: list[str]) -> Counter[str]:
    """How often the audio of each bad one was asked for."""
    paths = [f"{seen.path}?{seen.query}".lower() for seen in sim.seen if seen.on == "audio"]
    return Counter({name: sum(name.lower() in path for path in paths) for name in bad})


FAULTS = [
    ("status", 500),
    ("status", 502),
    ("status", 503),
    ("status", 404),
    ("status", 403),
    ("html", None),
    ("truncate", None),
    ("clean_cut", None),
    ("reset", None),
    ("flip", None),
    ("empty", None),
    ("header_only", None),
    ("stall", None),
]


@pytest.mark.parametrize(("fault", "value"), FAULTS, ids=lambda given: str(given))
async def test_recordings_that_can_t_be_had_keep_no_other_waiting(fault, value, tmp_path, database):
    sim, bad = poisoned(ImagicleSimulator, live=True)
    for name in bad:
        # It tells some ids in the other case.
        for told in {name.lower(), name.upper()}:
            sim.fault(fault, "audio", times=-1, match=told, value=value)
    how = {"retention": "30d", "start": sim.clock.now() - DAY, "retry": {"first": "10m"}}
    async with archiving(tmp_path, database, sim, **how) as rig, rig.running() as daemon:
        await eventually(lambda: _archived(rig, GOOD), within=60)
        # Who asks for fewer requests gets none for a moment.
        assert rig.feed.health.until is None or value == 503
        assert rig.feed.paused_until is None
        # Each bad one was asked for once at the most meanwhile (a GET whose connection breaks is repeated by HTTP).
        assert max(asked(sim, bad).values()) <= (2 if fault == "reset" else 1)
        del daemon


async def test_a_recorder_that_is_slow_is_learnt_and_loses_few_first_attempts(tmp_path, database, monkeypatch):
    monkeypatch.setattr("archiver.sync.transfer.PATIENCE_LEAST", 0.1)
    sim = ImagicleSimulator()
    sim.add_calls(sim.clock.now() - DAY, sim.clock.now() - HOUR, 24, longest=30)
    sim.fault("drip", "audio", times=-1, value=0.2)
    how = {"start": sim.clock.now() - 2 * DAY, "retry": {"first": "1s"}, "timeout": "3s"}
    async with archiving(tmp_path, database, sim, **how) as rig, rig.running():
        await eventually(lambda: _archived(rig, 24), within=60)
        # Five give way, and those beside them, before it counts as slow; with the first that comes its pace is known.
        requests = sum(seen.on == "audio" for seen in sim.seen)
        assert 24 < requests <= 24 + 12
        assert rig.feed.longest_pause > 0.15


async def _archived(rig: Rig, count: int) -> bool:
    return (await rig.catalog.totals()).get(("pbx", ""), (0, 0))[0] >= count


async def test_what_fails_for_ever_is_asked_for_no_more_often_than_its_schedule_says(tmp_path, database, clock):
    """Attempts and bytes of an item and day are bounded: exponential from ``first`` to ``cap``."""
    sim, bad = poisoned(XivoSimulator)
    faults = {"status": (bad[:10], 500), "html": (bad[10:20], None), "truncate": (bad[20:30], None)}
    for kind, (names, value) in faults.items():
        for name in names:
            sim.fault(kind, "audio", times=-1, match=name, value=value)
    how = {"retention": "30d", "start": NOON - DAY, "retry": {"first": "30s", "cap": "6h", "give_up_after": "14d"}}
    async with archiving(tmp_path, database, sim, clock=clock, **how) as rig:
        await rig.sync()
        assert (await rig.states())["archived"] == GOOD + 10
        for _ in range(60):
            rig.advance(MINUTE)
            await rig.sync()
        first_hour = asked(sim, bad[:30])
        # 0, 30 s, 1, 2, 4, 8, 16, 32 min … each up to a quarter sooner.
        assert max(first_hour.values()) <= 8
        for _ in range(23):
            rig.advance(HOUR)
            await rig.sync()
        assert max(asked(sim, bad[:30]).values()) <= 8 + 6
        assert (await rig.states())["pending"] == 30


async def test_a_row_that_changes_with_each_listing_does_not_hasten_what_fails(tmp_path, database, clock):
    sim = a_recorder(ChronicallSimulator, 3)
    (name,) = sim.expected(sim.calls[1])
    async with archiving(tmp_path, database, sim, clock=clock, retry={"first": "10m", "cap": "1h"}) as rig:
        sim.fault("status", "audio", times=-1, value=500, match=str(name))
        await rig.sync()
        for turn in range(5):
            sim.calls[1].extra["row"] = {"played": turn}
            rig.advance(MINUTE)
            assert (await rig.poll()).changed == 1
            await rig.transfer()
        assert asked(sim, [str(name)])[str(name)] == 1


async def test_what_failed_before_gets_its_turn_although_others_keep_coming(tmp_path, database, clock):
    sim = a_recorder(calls=3)
    (name,) = sim.expected(sim.calls[0])
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        fault = sim.fault("status", "audio", times=-1, value=500, match=name)
        await rig.sync()
        fault.times = 0
        rig.advance(MINUTE)
        sim.add_calls(NOON - HOUR, NOON - 5 * MINUTE, 60, longest=1.0)
        await rig.poll(relist=True)
        order = []
        engine = rig.archive.engine()
        engine.on_settled = lambda finished, _: order.append(finished.claim.medium.recording_id)
        await engine.run(until=clock.now)
        assert len(order) == 61
        assert 0 < order.index(name) < 60


async def test_a_download_that_stands_still_gives_way_and_has_all_its_time_later(tmp_path, database):
    """First attempts give way to those that wait; the next try of the same is as patient as ``timeout`` says."""
    sim, bad = poisoned(XivoSimulator, live=True)
    for name in bad:
        sim.fault("stall", "audio", times=-1, match=name)
    how = {"start": sim.clock.now() - DAY, "settle": "1s", "timeout": "60s", "concurrency": 4}
    began = time.monotonic()
    async with archiving(tmp_path, database, sim, **how) as rig:
        await rig.poll()
        running = asyncio.create_task(rig.archive.engine().run(until=lambda: None))
        await eventually(lambda: _archived(rig, GOOD), within=55)
        # Each bad one by itself would have taken a minute.
        assert time.monotonic() - began < 60
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_breaker_s_time_is_the_recorder_s_not_an_item_s(tmp_path, database, clock):
    """429 with a long Retry-After for one recording delays that recording alone."""
    sim = a_recorder(calls=10)
    (name,) = sim.expected(sim.calls[0])
    sim.fault("retry_after", "audio", times=-1, match=name, value=7200)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.sync()
        assert await rig.states() == {"archived": 9, "pending": 1}
        rig.advance(timedelta(minutes=110))
        await rig.sync()
        assert asked(sim, [name])[name] == 1
        rig.advance(timedelta(minutes=20))
        await rig.sync()
        assert asked(sim, [name])[name] == 2


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_the_page_on_reliability_says_whom_each_error_concerns(kind):
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if f"`{kind.__name__}`" in line and line.startswith("| ")]
    words = {Scope.ITEM: "medium or the window", Scope.OBJECT: "one object", Scope.HOST: "this machine"}
    assert len(rows) == 1
    assert words.get(kind.scope, kind.scope.value) in rows[0].split("|")[1]


@pytest.fixture(scope="module")
def seaweed():
    with a_seaweed() as server:
        yield server


@pytest.mark.parametrize(
    ("status", "code"),
    [(413, "EntityTooLarge"), (403, "AccessDenied"), (400, "InvalidRequest"), (500, "InternalError")],
)
async def test_an_object_that_a_store_refuses_keeps_no_other_waiting(status, code, tmp_path, database, clock, seaweed):
    """It is downloaded and put as often as its own schedule says, and named in ``status``."""
    sim = a_recorder(calls=30)
    (name,) = sim.expected(sim.calls[0])
    async with Refusing(seaweed.s3_url).serving() as proxy:
        proxy.refuse(name, "PUT", status=status, code=code)
        stores = {"main": s3_table(seaweed, f"one-refused-{status}", endpoint_url=proxy.url)}
        async with archiving(tmp_path, database, sim, stores=stores, clock=clock, concurrency=2) as rig:
            await rig.sync()
            assert await rig.states() == {"archived": 29, "pending": 1}
            medium = await rig.medium(name)
            assert medium["error"].startswith("store main: refused this object: ")
            assert rig.archive.outlets["main"].health.until is None
            for _ in range(5):
                rig.advance(10 * MINUTE)
                await rig.sync()
            assert asked(sim, [name])[name] == 1
            assert "refused this object" in (await rig.status())["stores"]["main"]["waiting"]["error"]
            for _ in range(6):
                rig.advance(HOUR)
                await rig.sync()
            # From an hour on, longer each time.
            assert asked(sim, [name])[name] <= 7
            proxy.refuses.clear()
            rig.advance(timedelta(hours=7))
            await rig.sync()
            assert await rig.states() == {"archived": 30}


async def test_what_failed_is_claimed_behind_what_never_did(tmp_path, database, clock):
    sim = a_recorder(calls=1)
    (old,) = sim.expected(sim.calls[0])
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        sim.fault("status", "audio", times=1, match=old, value=500)
        await rig.sync()
        rig.advance(MINUTE)
        # It has been due for long when others come.
        new = [sim.add_call(clock.now() - MINUTE, timedelta(seconds=2)) for _ in range(2)]
        await rig.poll()
        claimed = [(await rig.catalog.claim({"pbx": 1}, MINUTE))[0] for _ in range(3)]
        names = [claim.medium.recording_id for claim in claimed]
        assert sorted(names[:2]) == sorted(name for call in new for name in sim.expected(call))
        assert names[2] == old
