"""This process's share of each source's concurrency, which holds over all processes: asked for, renewed, given back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import timedelta

import structlog

from ..catalog.catalog import Catalog
from ..errors import CatalogDown
from .lane import Lane

log = structlog.get_logger()

#: A share of a source's concurrency lasts so long without being renewed.
SHARE = timedelta(seconds=20)


def every(seconds: float, step: Callable[[], Awaitable[object]]) -> Callable[[], Coroutine[None, None, None]]:
    """A loop that takes the step again and again, also after the database was gone."""

    async def forever() -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await step()
            except CatalogDown as error:
                log.warning("catalog.down", error=str(error))

    return forever


class Shares:
    """Sets each source's gate to what this process may use of it."""

    def __init__(self, catalog: Catalog, lanes: Mapping[str, Lane], changed: Callable[[], None]) -> None:
        """``changed`` is called when there may be more to begin."""
        self.catalog = catalog
        self.lanes = lanes
        self._changed = changed
        #: By source when its share was asked for last (monotonic clock).
        self._held: dict[str, float] = {}
        #: Sources of which more was in use than this process's share; and those to be asked for at once.
        self._exceeded: set[str] = set()
        self._again: set[str] = set()
        self._wanted = asyncio.Event()
        self._asking = asyncio.Lock()
        self._polling: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def polling(self, name: str) -> AsyncIterator[None]:
        """Hold this process's share of a source while listing it."""
        self._polling[name] += 1
        try:
            await self.take([name])
            yield
        finally:
            self._polling[name] -= 1

    async def admitted(self, name: str) -> None:
        """Within :meth:`polling`, while shares are renewed: wait until others leave this process a share."""
        while name in self.lanes and self.lanes[name].feed.gate.limit < 1:  # noqa: ASYNC110 - shares have their rhythm
            await asyncio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def lending(self, name: str) -> AsyncIterator[None]:
        """While shares are renewed: one of a source, for a request beside the transfers."""
        async with self.polling(name):
            await self.admitted(name)
            yield

    @contextlib.asynccontextmanager
    async def sharing(self) -> AsyncIterator[None]:
        """Renew the shares that :meth:`lending` takes, where no engine runs."""
        keeping = asyncio.create_task(self.renew_forever())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            with contextlib.suppress(CatalogDown, TimeoutError):
                async with asyncio.timeout(3):
                    await self.give_back()

    @property
    def listing(self) -> bool:
        """Is a source being listed?"""
        return self._polling.total() > 0

    async def stay_alive(self) -> tuple[int, bool]:
        """Show that this process lives. Returns how many others died, and whether shares have to be asked for anew.

        Raises CatalogDown; then no share is left.
        """
        try:
            async with asyncio.timeout(SHARE.total_seconds() / 2):
                return await self.catalog.stay_alive()
        except (CatalogDown, TimeoutError) as error:
            # Others may take this process for dead: what it had of their limits is theirs now.
            for name in list(self._held):
                self._held.pop(name)
                if name in self.lanes:
                    self.lanes[name].feed.gate.limit = 0
            raise CatalogDown(str(error) or "the database does not answer") from error

    async def renew(self) -> None:
        """Ask again for what is in use, and give back what is not. Raises CatalogDown."""
        now = time.monotonic()
        for name, since in list(self._held.items()):
            lane = self.lanes.get(name)
            if lane is None or now - since > SHARE.total_seconds():
                # Not renewed in time (or no more ours): others may count on it.
                self._held.pop(name)
                if lane is not None:
                    lane.feed.gate.limit = 0
        moment = self.catalog.clock.now()
        active = [
            name
            for name, lane in self.lanes.items()
            if lane.waiting or lane.running or self._polling[name] or lane.waits(moment)
        ]
        await self.take(active)
        idle = [name for name in self._held if name not in active]
        if idle:
            for name in idle:
                self._held.pop(name)
            await self.catalog.unshare(idle)

    async def renew_forever(self) -> None:
        await every(SHARE.total_seconds() / 4, self.renew)()

    def holds(self, name: str) -> bool:
        return name in self._held

    async def take(self, names: Sequence[str]) -> None:
        """Ask for a share of each of these sources. Raises CatalogDown."""
        # One at a time: a later answer is not to be followed by an earlier one's limit.
        async with self._asking:
            feeds = {name: self.lanes[name].feed for name in names if name in self.lanes}
            if not feeds:
                return
            # What may begin until the answer is here counts as in use.
            used = {name: max(feed.gate.running, feed.gate.limit) for name, feed in feeds.items()}
            asked = {name: (feed.options.concurrency, used[name]) for name, feed in feeds.items()}
            began = time.monotonic()
            for name, slots in (await self.catalog.share(asked, SHARE)).items():
                feeds[name].gate.limit = slots
                self._held[name] = began
                if used[name] > slots:
                    self._exceeded.add(name)
        self._changed()
        self.give_way()

    def give_way(self) -> None:
        """What this process no longer uses beyond its share is for others: now that it has ended."""
        for name in list(self._exceeded):
            lane = self.lanes.get(name)
            if lane is None or lane.feed.gate.running <= lane.feed.gate.limit:
                self._exceeded.discard(name)
                self.take_soon(name)

    def take_soon(self, name: str) -> None:
        """Others changed their shares of this source: ask anew at once."""
        self._again.add(name)
        self._wanted.set()

    async def take_forever(self) -> None:
        """What :meth:`take_soon` names is asked for at once; the rest comes with the next renewal."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            names, self._again = self._again & self._held.keys(), set()
            try:
                await self.take(sorted(names))
            except CatalogDown as error:
                log.warning("catalog.down", error=str(error))

    async def give_back(self) -> None:
        """What this process holds is for others. Raises CatalogDown."""
        if self._held:
            await self.catalog.unshare(list(self._held))
