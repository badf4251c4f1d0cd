"""A daemon at work, and what it serves from one mishap to the next."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from archiver.service.daemon import Daemon
from tests.engine import MINUTE, Rig, a_recorder, archiving, eventually
from tests.prometheus import Scrape, Story, scrape, wrong

HTTP = {"http": {"listen": "127.0.0.1:0"}}


class Scene:
    """A daemon at work, and what it served from one mishap to the next."""

    def __init__(self, rig: Rig, daemon: Daemon) -> None:
        self.rig, self.daemon = rig, daemon
        self.stories: list[Story] = []
        self._calm: Scrape = {}
        self._calls = 0

    def call(self, count: int = 1) -> None:
        """New calls, each of its own length."""
        for _ in range(count):
            self._calls += 1
            start = self.rig.sim.clock.now() - MINUTE - timedelta(seconds=self._calls)
            self.rig.sim.add_call(start, timedelta(seconds=2), index=500 + self._calls)

    async def calm(self) -> Scrape:
        """Wait until nothing is wrong; what is served then."""

        async def so() -> bool:
            left = await wrong(self.daemon)
            if left & {"StoreDown", "BreakerOpen", "SourceRefused", "ArchiveLag", "MediaFailing", "LedgerGaps"}:
                # What was tried too early is tried again.
                self.rig.advance(timedelta(seconds=20))
            return not left

        await eventually(so, within=100, every=0.3)
        self._calm = await scrape(self.daemon)
        return self._calm

    async def troubled(self, *names: str) -> None:
        """Wait until these are wrong by the daemon's own alerts, and tell the story up to here."""

        async def so() -> bool:
            return set(names) <= await wrong(self.daemon)

        await eventually(so, within=60, every=0.1, why=f"{names} never came")
        await self.told(*names)

    async def told(self, *names: str) -> None:
        self.stories.append(Story(names, self._calm, await scrape(self.daemon), {}))

    async def over(self) -> None:
        """Wait until all is well again: the end of the stories that have none yet."""
        after = await self.calm()
        self.stories = [Story(s.alerts, s.before, s.during, s.after or after) for s in self.stories]


@asynccontextmanager
async def scene(folder: Path, database: str, clock: Any, **how: Any) -> AsyncIterator[Scene]:
    sim = a_recorder(calls=3)
    # Nothing is mended behind our back.
    top = HTTP | {"verify": {"enabled": False}} | how.pop("top", {})
    async with archiving(folder, database, sim, clock=clock, top=top, **how) as rig, rig.running() as daemon:

        async def listening() -> bool:
            return daemon.watch.address() is not None

        await eventually(listening)
        made = Scene(rig, daemon)

        async def archived() -> bool:
            return await rig.states() == {"archived": 3}

        await eventually(archived)
        await made.calm()
        yield made
