"""How the archive fares: one look at the database and at this process, from which all watching is made.

``/metrics``, ``/readyz``, systemd's status line, the heartbeat and the alerts say the same because they ask here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from ..catalog.catalog import Document, Numbers
from ..common import disks
from ..errors import CatalogDown, with_advice
from ..sync.engine import Engine
from ..sync.feeds import Feed, Outlet
from .facts import Seen, SourceView, StoreView, Survey, part, source_view, store_view
from .wiring import Archive

#: The database gets so long to answer; nobody waits longer for a survey.
PATIENCE = 8.0


@dataclass(slots=True)
class Surveyor:
    """Asks the database at most once in ``keep`` (and twenty times as long as the answer took)."""

    archive: Archive
    engine: Engine
    #: By name what is under way in the daemon, and when it last moved (monotonic clock).
    beats: dict[str, float] = field(default_factory=dict)
    #: What `status` said last (report.status): it asks for more than can be asked every few seconds.
    told: Document | None = None
    #: Why the daemon does not run with the config on disk.
    stale_config: tuple[str, ...] = ()
    #: Is the heartbeat missing, and did the last news reach nobody?
    sent: Callable[[], tuple[bool, bool]] = lambda: (False, False)
    keep: timedelta = timedelta(seconds=5)
    #: What has not moved for so long is stuck; every await outside has a shorter time-out.
    stuck_after: timedelta = timedelta(minutes=10)
    #: Of a source's own, so many at least.
    timeouts: int = 3
    _numbers: Numbers | None = None
    _database: str | None = None
    _rooms: Mapping[Path, disks.Room] = field(default_factory=dict)
    _fresh_until: float = float("-inf")
    _began: datetime | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self) -> Survey:
        """How it is now; the database's part may be a few seconds old. Raises nothing."""
        async with self._turn:
            if time.monotonic() >= self._fresh_until:
                await self._ask()
        now = self.archive.catalog.clock.now()
        self._began = self._began or now
        seen = self.seen()
        return Survey(
            at=now,
            database=seen.database,
            blind=seen.database is not None,
            sources={name: self._source(feed, now) for name, feed in self.archive.feeds.items()},
            stores={name: self._store(outlet, now) for name, outlet in self.archive.outlets.items()},
            stuck=seen.stuck,
            disk=self._rooms.get(self.archive.config.data_dir),
            reserve=self.archive.config.reserve,
            stale_config=self.stale_config,
            identity=tuple(self.told["identity"]) if self.told is not None else (),
            heartbeat_missing=seen.heartbeat_missing,
            undelivered=seen.undelivered,
        )

    def seen(self) -> Seen:
        """What nobody else can know; without asking anyone."""
        feeds, outlets = self.archive.feeds, self.archive.outlets
        missing, undelivered = self.sent()
        return Seen(
            database=self._database,
            stuck=tuple(sorted(self.stuck())),
            sources={name: feed.health.why for name, feed in feeds.items() if feed.health.probing},
            stores={name: outlet.health.why for name, outlet in outlets.items() if outlet.health.probing},
            heartbeat_missing=missing,
            undelivered=undelivered,
        )

    def forget(self) -> None:
        """The next look asks anew."""
        self._fresh_until = float("-inf")

    def stuck(self) -> Iterator[str]:
        """What has not moved for too long; without asking anyone."""
        now = time.monotonic()
        for name, moved in {**self.engine.beats, **self.beats}.items():
            patience = self.stuck_after
            feed = self.archive.feeds.get(name.removeprefix("poll "))
            if feed is not None:
                # A listing moves as long as its requests do.
                moved = max(moved, feed.gate.active_at)
                patience = max(patience, self.timeouts * feed.options.timeout)
            if now - moved > patience.total_seconds():
                yield name

    async def _ask(self) -> None:
        began = time.monotonic()
        catalog = self.archive.catalog
        try:
            async with asyncio.timeout(PATIENCE):
                await catalog.prove()
                if self.archive.database is not None:
                    self.archive.database.check_room()
                self._numbers = await catalog.numbers(list(self.archive.feeds), list(self.archive.outlets))
            self._database = None
        except CatalogDown as error:
            self._database = with_advice(error)
        except TimeoutError:
            self._database = f"the database did not answer within {PATIENCE:g} s"
        took = time.monotonic() - began
        paths = [path for outlet in self.archive.outlets.values() if (path := _path(outlet))]
        self._rooms = await disks.rooms([self.archive.config.data_dir, *paths])
        pause = 20 * took if self._database is None else 0.0
        self._fresh_until = time.monotonic() + max(self.keep.total_seconds(), pause)

    def _source(self, feed: Feed, now: datetime) -> SourceView:
        return source_view(
            feed.name,
            feed.options,
            self._numbers,
            now,
            began=self._began or now,
            stores=self.archive.outlets,
            told=part(self.told, "sources", feed.name),
            paused=(feed.paused_why, feed.paused_until) if feed.paused_until is not None else None,
            breaker_why=feed.health.why if feed.health.probing else None,
            slots=feed.gate.limit,
        )

    def _store(self, outlet: Outlet, now: datetime) -> StoreView:
        path = _path(outlet)
        return store_view(
            outlet.name,
            self._numbers,
            now,
            self.archive.config.verify,
            told=part(self.told, "stores", outlet.name),
            down_why=outlet.health.why if outlet.health.probing else None,
            disk=self._rooms.get(path) if path else None,
            reserve=getattr(getattr(outlet.store, "options", None), "reserve", None),
        )


def _path(outlet: Outlet) -> Path | None:
    path = outlet.store.location("").get("path")
    return Path(path) if path else None
