"""Both nights of a year in which clocks change, polled from end to end: every call, at its true moment, no gap."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from archiver.simulators import genesys
from archiver.simulators.base import Call, Expected, Simulator
from archiver.simulators.base import Clock as RecorderClock
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.genesys import GenesysSimulator
from archiver.simulators.imagicle import ImagicleSimulator
from archiver.simulators.noojee import NoojeeSimulator
from archiver.simulators.xivo import XivoSimulator
from tests.engine import HOUR, MINUTE, archiving, assert_archived, kinds
from tests.sync.test_week import TickingClock

YEAR = 2024
#: Not a divisor of an hour, so that windows end anywhere in it.
STEP = 37 * MINUTE
#: The hour that is doubled or skipped, and some more.
AROUND = 65 * MINUTE


class LocalImagicle(ImagicleSimulator):
    """A suite whose times carry no zone; of an hour that comes twice the first is taken (docs/sources/imagicle.md)."""

    timezone = "America/Denver"

    def _row(self, call: Call) -> dict[str, Any]:
        return {**super()._row(call), "startTime": self._naive(call).isoformat()}

    def expected(self, call: Call) -> dict[str, Expected]:
        start = self._naive(call).replace(tzinfo=ZoneInfo(self.timezone), fold=0).astimezone(UTC)
        moved = {"started_at": start, "ended_at": start + call.duration}
        return {i: replace(e, fields={**e.fields, **moved}) for i, e in super().expected(call).items()}

    def _naive(self, call: Call) -> datetime:
        return call.start.astimezone(ZoneInfo(self.timezone)).replace(tzinfo=None)


class OffsetGenesys(GenesysSimulator):
    """Its times are those of a place, each with the offset of its moment (-0700, -0600)."""


RECORDERS: dict[str, type[Simulator]] = {
    "chronicall": ChronicallSimulator,
    "xivo": XivoSimulator,
    "imagicle": ImagicleSimulator,
    "noojee": NoojeeSimulator,
    "genesys-with-offsets": OffsetGenesys,
}
#: Without zones Imagicle can't be right in a doubled hour, so one zone shows what it does. The last zone's clock jumps
#: by half an hour, which only a listing by the hour of that clock minds.
ZONES = {
    "Europe/Paris": RECORDERS,
    "America/Denver": {**RECORDERS, "imagicle-without-zones": LocalImagicle},
    "Australia/Melbourne": RECORDERS,
    "Australia/Lord_Howe": {"noojee": NoojeeSimulator},
}


def nights(zone: str) -> list[datetime]:
    """The moments of the year at which the zone's clock jumps, in UTC."""
    hours = [datetime(YEAR, 1, 1, tzinfo=UTC) + n * HOUR for n in range(366 * 24)]
    offsets = [hour.astimezone(ZoneInfo(zone)).utcoffset() for hour in hours]
    return [later for later, a, b in zip(hours[1:], offsets, offsets[1:], strict=False) if a != b]


CASES = [
    pytest.param(zone, night, id=f"{zone}, {night.astimezone(ZoneInfo(zone)):%B}")
    for zone in ZONES
    for night in nights(zone)
]


def test_every_recorder_and_two_nights_of_each_zone_are_here():
    assert {kind.kind for kind in RECORDERS.values()} == set(kinds())
    assert len(CASES) == 2 * len(ZONES)


@pytest.mark.parametrize(("zone", "night"), CASES)
async def test_a_call_each_minute_through_a_clock_change_is_archived_at_its_true_moment(
    zone, night, tmp_path, database, monkeypatch
):
    begin, end = night - AROUND, night + AROUND
    sims = {name: kind(seed=3, clock=RecorderClock(begin - MINUTE, speed=0)) for name, kind in ZONES[zone].items()}
    for sim in sims.values():
        if hasattr(sim, "timezone"):
            sim.timezone = zone
        for minute in range(int(2 * AROUND / MINUTE)):
            sim.add_call(begin + minute * MINUTE + timedelta(milliseconds=37), timedelta(seconds=1.5))
    monkeypatch.setattr(genesys, "time_text", lambda at: _with_offset(at, ZoneInfo(zone)))
    clock = TickingClock(begin - MINUTE)
    start = begin - 10 * MINUTE
    # What is listed twice would hide a mistake.
    options = {"timezone": zone, "start": start, "window": "1h", "lookback": "0s", "timeout": "60s"}
    async with archiving(tmp_path, database, sims, clock=clock, **options) as rig:
        while clock.now() < end + 5 * MINUTE:
            rig.advance(STEP)
            for name in sims:
                assert (await rig.poll(name)).error is None
        await rig.transfer()

        rows = {row["name"]: row for row in await rig.catalog.sources()}
        for name, sim in sims.items():
            assert await assert_archived(rig, name) >= len(sim.calls) == 130
            (covered,) = rows[name]["covered"]
            assert covered.start == start
            assert covered.end > end
            assert not await rig.catalog.rejected(name)
            if not isinstance(sim, LocalImagicle):
                told = [document["started_at"] for document in (await rig.documents(name)).values()]
                true = {call.start.replace(microsecond=0) for call in sim.calls}
                assert {_near(datetime.fromisoformat(t), sim) for t in told} == true, name


def _near(told: datetime, sim: Simulator) -> datetime:
    """The moment at which the call of that moment truly began; a leg may begin a second later, a second event too."""
    return max(at for call in sim.calls if (at := call.start.replace(microsecond=0)) <= told)


def _with_offset(at: datetime, zone: ZoneInfo) -> str:
    local = at.astimezone(zone)
    return local.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}{local:%z}"
