"""A simulated recorder in a process of its own, ``python -m tests.chaos.recorder '{"kind": …}'``.

What it holds is a pure function of its arguments.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from urllib.parse import quote

from archiver.simulators.base import Simulator
from archiver.simulators.chronicall import ChronicallSimulator
from archiver.simulators.genesys import GenesysSimulator
from archiver.simulators.imagicle import ImagicleSimulator
from archiver.simulators.noojee import NoojeeSimulator
from archiver.simulators.xivo import XivoSimulator

SIMULATORS: dict[str, type[Simulator]] = {
    each.kind: each
    for each in (ChronicallSimulator, XivoSimulator, ImagicleSimulator, NoojeeSimulator, GenesysSimulator)
}
#: What a recorder does wrong, how often, and with what. A changed byte is seen only where there is a hash to see it by.
FAULTS = (
    ("status", "list", 0.02, 503),
    ("torn", "list", 0.01, None),
    ("reset", "list", 0.01, None),
    ("html", "list", 0.005, None),
    ("stall", "list", 0.003, None),
    ("status", "audio", 0.01, 500),
    ("reset", "audio", 0.005, None),
    ("truncate", "audio", 0.01, None),
    ("clean_cut", "audio", 0.005, None),
    ("html", "audio", 0.005, None),
    ("json", "audio", 0.003, None),
    ("retry_after", "audio", 0.005, 1),
    ("mislabel", "audio", 0.005, None),
    ("drip", "audio", 0.005, 0.02),
    ("stall", "audio", 0.002, None),
    ("torn", "detail", 0.005, None),
    ("reset", "unique_id", 0.005, None),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """``began``: the moment that every call is told from. ``lasting``: for so many seconds new calls come in."""

    kind: str
    seed: int
    recordings: int
    began: str
    lasting: float
    port: int = 0
    #: How often it was started before; its faults fall otherwise each time. Below zero: none.
    start: int = -1
    address: str = "127.0.0.1"
    #: Seconds between the pieces of each download, where it is a slow one.
    drip: float = 0.0
    #: Of how many calls one's audio can't be had, as long as anything goes wrong; 0: of none.
    bad_each: int = 0

    def text(self) -> str:
        return json.dumps(asdict(self))


def made(settings: Settings) -> Simulator:
    """The recorder with its calls: half of them old, half come while it runs, some of these late."""
    sim = SIMULATORS[settings.kind](seed=settings.seed)
    sim._port, sim.address = settings.port, settings.address
    began = datetime.fromisoformat(settings.began)
    dice = random.Random(f"{settings.seed}/{settings.kind}")
    # Every fourth call of Chronicall has two recordings.
    count = settings.recordings * 4 // 5 if settings.kind == "chronicall" else settings.recordings
    sim.add_calls(began - timedelta(hours=8), began - timedelta(seconds=30), count // 2, shortest=1, longest=3)
    for _ in range(count - count // 2):
        length = timedelta(seconds=round(dice.uniform(1, 3), 3))
        shown = began + timedelta(milliseconds=int(dice.uniform(0, settings.lasting) * 1000))
        late = timedelta(seconds=dice.choice((0, 0, 0, 0, 5, 40)))
        call = sim.add_call(shown - late - length, length, listed_at=shown, ready_at=shown)
        if settings.kind == "genesys" and dice.random() < 0.1:
            call.extra["later"] = [(shown + timedelta(seconds=dice.uniform(0.02, 0.1) * settings.lasting), 2.0)]
    return sim


#: How the audio of a bad call is answered.
BADLY: tuple[tuple[str, int | None], ...] = (("status", 500), ("html", None), ("truncate", None), ("status", 404))


def bad(sim: Simulator, settings: Settings) -> list[str]:
    """The recordings whose audio can't be had: all of calls that were told before it began."""
    began = datetime.fromisoformat(settings.began)
    # These are half of them: what is told later is not known when it starts.
    calls = (
        [c for c in sim.calls if c.listed_at <= began][:: max(1, settings.bad_each // 2)] if settings.bad_each else []
    )
    return [name for call in calls for name in sim.expected(call)]


def spoil(sim: Simulator, dice: random.Random, settings: Settings) -> None:
    sim.random = dice
    for number, name in enumerate(bad(sim, settings)):
        kind, value = BADLY[number % len(BADLY)]
        # Some are told in the other case, or with characters that an address can't have.
        for told in {name, name.lower(), name.upper(), quote(name, safe="")}:
            sim.fault(kind, "audio", times=-1, match=told, value=value)
    for kind, on, chance, value in FAULTS:
        sim.fault(kind, on, times=-1, chance=chance, value=value)
    if sim.kind in {"imagicle", "chronicall"}:
        sim.fault("flip", "audio", times=-1, chance=0.005)


async def serve(settings: Settings) -> None:
    sim = made(settings)
    if settings.start >= 0:
        spoil(sim, random.Random(f"{settings.seed}/{settings.kind}/{settings.start}"), settings)
    if settings.drip:
        sim.fault("drip", "audio", times=-1, value=settings.drip)
    await sim.start()
    hits: dict[str, int] = {}
    while True:
        await asyncio.sleep(0.5)
        # So that a kill loses little of what is counted.
        now = {f"{f.kind} {f.on}": f.hits for f in sim.faults if f.hits}
        if now != hits:
            hits = now
            print(json.dumps(hits), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(Settings(**json.loads(sys.argv[1]))))
