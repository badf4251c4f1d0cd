"""How many requests to one recorder run at once, how fast they start, and how they were answered."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from time import monotonic

from ..common.tally import Timings
from ..errors import CatalogDown
from .pace import Pace


class Gate:
    """Bounds how many requests run at once (``limit`` may change while they do) and how fast they start.

    With a ``pace`` fewer run than the limit allows where more would only wait at the recorder.
    """

    def __init__(
        self, limit: int, reserve: Callable[[], Awaitable[timedelta]] | None = None, pace: Pace | None = None
    ) -> None:
        self._limit = limit
        #: Takes the next place in the rate and says how long to wait for it.
        self.reserve = reserve
        #: Over all processes: how long until a listing may begin; that one ended, and how long to pause now.
        self.listing_wait: Callable[[], Awaitable[timedelta]] | None = None
        self.listing_ended: Callable[[timedelta], Awaitable[None]] | None = None
        self._listing_at = float("-inf")
        self._pace = pace
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.running = 0
        #: How many have started since the beginning.
        self.started = 0
        #: How many were answered with each status, how many broke, and how long the first byte took.
        self.answers: Counter[int] = Counter()
        self.broken = 0
        self.latency = Timings()
        #: When something last came or went, by the monotonic clock.
        self.active_at = monotonic()

    @property
    def limit(self) -> int:
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        """Let at most so many run; those already under way finish."""
        self._limit = limit
        self._admit()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def room(self) -> int:
        """How many more may start now."""
        width = self._limit if self._pace is None else min(self._limit, self._pace.width)
        return max(0, width - self.running)

    def answered(self, seconds: float) -> None:
        """The answer to a request for audio began so long after it."""
        if self._pace is not None:
            self._pace.answered(seconds, self._limit)
            self._admit()

    def refused(self) -> None:
        """The recorder says that it is asked too much."""
        if self._pace is not None:
            self._pace.refused()

    def _admit(self) -> None:
        while self._waiters and self.room:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.running += 1
                waiter.set_result(None)

    def _leave(self) -> None:
        self.running -= 1
        self._admit()

    async def _enter(self) -> None:
        if self.room and not self._waiters:
            self.running += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave()
            raise

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place, and for the moment at which the rate allows to begin."""
        await self._enter()
        try:
            if self.reserve is not None:
                pause = await self.reserve()
                if pause > timedelta():
                    await asyncio.sleep(pause.total_seconds())
            self.started += 1
            self.active_at = monotonic()
            yield
        except OSError:
            self.broken += 1
            raise
        finally:
            self.active_at = monotonic()
            self._leave()

    @asynccontextmanager
    async def listing(self, pause: timedelta) -> AsyncIterator[None]:
        """Begins no sooner than ``pause`` after the end of the last one, whichever process that was in."""
        wait = timedelta(seconds=max(0.0, self._listing_at - monotonic()))
        if self.listing_wait is not None:
            wait = max(wait, await self.listing_wait())
        # Another host's clock may be wrong.
        await asyncio.sleep(min(wait, pause).total_seconds())
        try:
            yield
        finally:
            self._listing_at = monotonic() + pause.total_seconds()
            if self.listing_ended is not None:
                with suppress(CatalogDown):
                    await self.listing_ended(pause)

    def count(self, status: int, seconds: float) -> None:
        """An answer came, so long after its request."""
        self.answers[status] += 1
        self.latency.add(seconds)
