"""A week of all five recorders at once: everything goes wrong on the way, nothing is lost, nothing is doubled."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from archiver.simulators.base import Clock as RecorderClock
from archiver.simulators.base import Simulator
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.genesys import GenesysSimulator
from archiver.simulators.imagicle import ImagicleSimulator
from archiver.simulators.noojee import NoojeeSimulator
from archiver.simulators.xivo import XivoSimulator
from archiver.sync import poll
from tests import servers
from tests.engine import HOUR, MINUTE, Rig, a_recorder, archiving, assert_archived, kinds, s3_table
from tests.factories import NOON, ManualClock

DAY = 24 * HOUR
END = NOON + 7 * DAY
CALLS = 40
#: What a recorder may do wrong: kind, where, how often, value.
FAULTS = (
    ("status", "list", 1, 503),
    ("status", "list", 4, 500),
    ("reset", "list", 1, None),
    ("torn", "list", 1, None),
    ("html", "list", 1, None),
    ("truncate", "list", 2, None),
    ("stall", "list", 1, None),
    ("status", "audio", 3, 503),
    ("reset", "audio", 2, None),
    ("truncate", "audio", 2, None),
    ("clean_cut", "audio", 2, None),
    ("html", "audio", 2, None),
    ("json", "audio", 1, None),
    ("mislabel", "audio", 2, None),
    ("retry_after", "audio", 1, 60),
    ("stall", "audio", 1, None),
)
#: Where the recorder tells a hash, or the container has checksums, a changed byte is seen.
HASHED = ("imagicle", "chronicall")
#: The requests beside listing and audio.
OTHERS = {"imagicle": "detail", "noojee": "unique_id"}
SIMULATORS = (ChronicallSimulator, XivoSimulator, ImagicleSimulator, NoojeeSimulator, GenesysSimulator)


@pytest.fixture(scope="module")
def seaweed() -> Iterator[servers.Seaweed]:
    with servers.seaweed() as server:
        yield server


class TickingClock(ManualClock):
    """Never tells the same millisecond twice, so that manifests have an order."""

    def now(self) -> datetime:
        return self.advance(milliseconds=1)


def a_week(kind: type[Simulator], seed: int, *, late: bool = True) -> Simulator:
    """A recorder at the beginning of its week, with what will come: late rows, late audio, calls over every edge."""
    sim = kind(seed=seed, clock=RecorderClock(NOON, speed=0))
    sim.add_calls(NOON, END - 5 * HOUR, CALLS - 4, longest=4)
    for call in sim.calls[::9] if late else ():
        call.listed_at = call.end + 2 * HOUR
        call.ready_at = call.listed_at
    for call in sim.calls[4::9]:
        call.ready_at = call.end + 30 * MINUTE
    for day in range(4):
        sim.add_call(NOON + day * DAY + 12 * HOUR - MINUTE, timedelta(seconds=95.5))
    if sim.kind == "genesys" and late:
        for call in sim.calls[5::12]:
            call.extra["later"] = [(call.end + 2 * HOUR, 2.0)]
    return sim


class Week:
    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.engine = rig.archive.engine()
        self.dice = random.Random(seed)

    async def live(self) -> None:
        """Hours pass, uneven ones; what went wrong is left to the next look."""
        rig = self.rig
        while rig.catalog.clock.now() < END:
            rig.advance(min(self.dice.choice((5, 9, 10)) * HOUR, END - rig.catalog.clock.now()))
            outage = NOON + 3 * DAY < rig.catalog.clock.now() < NOON + 3 * DAY + 30 * HOUR
            for name, sim in rig.sims.items():
                self.spoil(sim)
                if (name == "xivo" and outage) is (sim._runner is not None):
                    await (sim.stop() if outage else sim.start())
            await self.look()

    async def heal(self) -> None:
        """The recorders behave; give what is due again its time."""
        for sim in self.rig.sims.values():
            sim.faults.clear()
        for _ in range(3):
            self.rig.advance(2 * HOUR)
            await self.look()

    def spoil(self, sim: Simulator) -> None:
        faults = self.dice.sample(FAULTS, 3)
        if sim.kind in HASHED and self.dice.random() < 0.3:
            faults.append(("flip", "audio", 1, None))
        if sim.kind in OTHERS and self.dice.random() < 0.3:
            faults.append((self.dice.choice(("reset", "torn")), OTHERS[sim.kind], 1, None))
        for kind, on, times, value in faults:
            sim.fault(kind, on, times=times, value=value)

    async def look(self) -> None:
        async def polled(name: str) -> None:
            async with self.engine.shares.polling(name):
                await poll.poll(self.rig.archive.feeds[name], self.rig.catalog, pause=0.001)

        async with asyncio.TaskGroup() as group:
            for name in self.rig.sims:
                group.create_task(polled(name))
        await self.engine.run(until=self.rig.catalog.clock.now)


async def test_a_week_of_faults_loses_nothing_and_doubles_nothing(tmp_path, database, seaweed):
    sims = {kind.kind: a_week(kind, seed) for seed, kind in enumerate(SIMULATORS, 1)}
    assert sorted(sims) == list(kinds())
    stores = {
        "disk": {"kind": "file", "path": str(tmp_path / "disk")},
        "s3": s3_table(seaweed, "week", prefix="archive/"),
    }
    options = {
        "start": NOON,
        "window": "4h",
        "lookback": "11h",
        "timeout": "300ms",
        "retry": {"first": "100ms", "cap": "1m"},
    }
    async with archiving(tmp_path, database, sims, stores=stores, clock=TickingClock(), **options) as rig:
        week = Week(rig, seed=5)
        await week.live()
        hits = Counter((f.kind, f.on) for sim in sims.values() for f in sim.faults if f.hits)
        await week.heal()

        media = sum([await assert_archived(rig, name) for name in sims])
        recordings = sum(len(sim.truth()) for sim in sims.values())
        assert recordings >= len(sims) * CALLS
        for store, table in stores.items():
            folders = [key.removeprefix(table.get("prefix", "")).split("/")[0] for key in await rig.objects(store)]
            assert sum(folder in sims for folder in folders) == media, store
            assert {folder for folder in folders if not folder.startswith("_")} == set(sims), store
        for row in await rig.catalog.sources():
            (covered,) = row["covered"]
            assert covered.start == NOON
            assert covered.end > END
            assert await rig.states(row["name"]) == {
                "archived": sum(len(e.audio) for e in sims[row["name"]].truth().values())
            }

    assert {kind for kind, _ in hits} == {kind for kind, *_ in FAULTS} | {"flip"}
    assert {on for _, on in hits} == {"list", "audio", *OTHERS.values()}


async def test_without_a_lookback_no_window_is_forgotten_either(tmp_path, database):
    """What is listed twice hides what was not listed when it should have been."""
    sims = {kind.kind: a_week(kind, seed, late=False) for seed, kind in enumerate(SIMULATORS[:3], 1)}
    options = {"start": NOON, "window": "1h", "lookback": "0s", "timeout": "300ms", "retry": {"first": "100ms"}}
    async with archiving(tmp_path, database, sims, clock=TickingClock(), **options) as rig:
        week = Week(rig, seed=6)
        await week.live()
        await week.heal()
        for name, sim in sims.items():
            assert await assert_archived(rig, name) >= len(sim.calls)


@pytest.mark.parametrize("calls", [9, 10, 11])
async def test_what_waits_behind_an_open_breaker_is_given_back(calls, tmp_path, database, clock):
    """Also where nothing else of the source is due: a pass would wait for what nobody may fetch."""
    sim = a_recorder(XivoSimulator, calls)
    async with archiving(tmp_path, database, sim, clock=clock) as rig:
        await rig.poll()
        # It was seen to work a while ago.
        rig.advance(timedelta(minutes=1))
        fault = sim.fault("status", value=500, times=-1)
        await asyncio.wait_for(rig.transfer(), 20)
        assert rig.feed.health.open(clock.now())
        fault.times = 0
        rig.advance(HOUR)
        await asyncio.wait_for(rig.transfer(), 20)
        assert await assert_archived(rig) == calls
