"""How the archive fares: one look at the database and at this process, from which all watching is made.

``/metrics``, ``/readyz``, systemd's status line, the heartbeat and the alerts say the same because they ask here.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from .catalog import Numbers
from .engine import Engine
from .errors import CatalogDown, with_advice
from .model import State, Window
from .schedule import next_poll
from .sync import Feed, Outlet
from .windows import merge, subtract
from .wiring import Archive

#: The database gets so long to answer; nobody waits longer for a survey.
PATIENCE = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceView:
    """One enabled source. Durations in seconds."""

    name: str
    kind: str
    #: The age of the newest closed window, and how far that is past its time by the schedule.
    lag: float
    overdue: float
    gaps: int
    gap_seconds: float
    #: Unfinished media by state and reason; archived ones.
    queue: Mapping[tuple[str, str], int]
    archived: int
    bytes: int
    #: By flag how many media are kept as evidence, and how many of these were archived in the last day.
    flagged: Mapping[str, tuple[int, int]]
    #: How long the longest waiting medium has been waiting, and the longest failing one failing.
    waiting: float
    failing: float
    rejected: int
    #: How long ago a row was last seen that nobody could read; None: never.
    rejected_ago: float | None
    #: What alarms.watch says of it, by kind.
    warnings: Mapping[str, str]
    poll_error: bool
    paused: bool
    breaker_open: bool
    #: Requests that may run at once in this process.
    slots: int

    def count(self, state: State) -> int:
        return sum(count for (of, _), count in self.queue.items() if of == state)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreView:
    name: str
    up: bool
    copies: int
    bytes: int
    bad: int
    #: How long ago the copy that was longest unread was last read back (or made), in seconds; None without copies.
    unverified: float | None
    #: How far that is past the cycle of [verify].
    verify_overdue: float
    #: Free and all bytes of the disk, where it is one of this host's.
    disk: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Where ``database`` tells of an error the numbers are the last known, their ages as of now."""

    at: datetime
    database: str | None
    sources: Mapping[str, SourceView]
    stores: Mapping[str, StoreView]
    #: Parts of the daemon that are under way and have not moved for too long.
    stuck: tuple[str, ...]
    #: Free and all bytes of the disk that holds data_dir.
    disk: tuple[int, int] | None

    def unready(self) -> Iterator[str]:
        """Why it can't work just now, by name; nothing: it can."""
        if self.database is not None:
            yield "database"
        yield from (f"store {name}" for name, store in self.stores.items() if not store.up)
        yield from (f"stuck: {name}" for name in self.stuck)

    def fresh(self, stale: timedelta) -> bool:
        """Is what the daemon is for being done: every source listed in time (or so), and every store taking?"""
        late = stale.total_seconds()
        ill = any(s.overdue > late or s.paused or s.breaker_open for s in self.sources.values())
        return not ill and not any(self.unready())


@dataclass(slots=True)
class Surveyor:
    """Asks the database at most once in ``keep`` (and twenty times as long as the answer took)."""

    archive: Archive
    engine: Engine
    #: By name what is under way in the daemon, and when it last moved (monotonic clock).
    beats: dict[str, float] = field(default_factory=dict)
    #: What alarms.watch said last, by source and kind.
    warnings: Mapping[tuple[str, str], str] = field(default_factory=dict)
    keep: timedelta = timedelta(seconds=5)
    #: What has not moved for so long is stuck; every await outside has a shorter time-out.
    stuck_after: timedelta = timedelta(minutes=10)
    #: Of a source's own, so many at least.
    timeouts: int = 3
    _numbers: Numbers | None = None
    _database: str | None = None
    _disks: dict[Path, tuple[int, int] | None] = field(default_factory=dict)
    _measuring: dict[Path, asyncio.Task[tuple[int, int] | None]] = field(default_factory=dict)
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
        numbers = self._numbers
        return Survey(
            at=now,
            database=self._database,
            sources={name: self._source(feed, numbers, now) for name, feed in self.archive.feeds.items()},
            stores={name: self._store(outlet, numbers, now) for name, outlet in self.archive.outlets.items()},
            stuck=tuple(sorted(self.stuck())),
            disk=self._disks.get(self.archive.config.data_dir),
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
        await self._measure()
        pause = 20 * took if self._database is None else 0.0
        self._fresh_until = time.monotonic() + max(self.keep.total_seconds(), pause)

    async def _measure(self) -> None:
        """The disks; one that hangs (a lost network share) holds up nothing, and one thread at most."""
        for path in {self.archive.config.data_dir, *(p for o in self.archive.outlets.values() if (p := _path(o)))}:
            if path not in self._measuring:
                self._measuring[path] = asyncio.create_task(asyncio.to_thread(_usage, path))
            done, _ = await asyncio.wait([self._measuring[path]], timeout=1)
            self._disks[path] = self._measuring.pop(path).result() if done else None

    def _source(self, feed: Feed, numbers: Numbers | None, now: datetime) -> SourceView:
        name = feed.name
        row = numbers.sources.get(name) if numbers else None
        covered = merge(row["covered"]) if row else []
        start = row["start_at"] if row else self._began or now
        newest = covered[-1].end if covered else start
        gaps = subtract([Window(start, newest)], covered) if covered and start < newest else []
        due = next_poll(feed.options.poll, newest + feed.options.settle)
        queue = {(s, r): v for (of, s, r), v in numbers.queue.items() if of == name} if numbers else {}
        failing = [since for count, since in queue.values() if since is not None]
        archived = numbers.totals.get((name, ""), (0, 0)) if numbers else (0, 0)
        rejected = numbers.rejected.get(name) if numbers else None
        waiting = numbers.waiting.get(name) if numbers else None
        return SourceView(
            name=name,
            kind=feed.kind,
            lag=_age(newest, now),
            overdue=_age(due, now),
            gaps=len(gaps),
            gap_seconds=sum(gap.length.total_seconds() for gap in gaps),
            queue={key: count for key, (count, _) in queue.items()},
            archived=archived[0],
            bytes=archived[1],
            flagged={flag: n for (of, flag), n in numbers.flagged.items() if of == name} if numbers else {},
            waiting=_age(waiting, now) if waiting is not None else 0.0,
            failing=_age(min(failing), now) if failing else 0.0,
            rejected=rejected[0] if rejected else 0,
            rejected_ago=_age(rejected[1], now) if rejected else None,
            warnings={kind: text for (of, kind), text in self.warnings.items() if of == name},
            poll_error=bool(row and row["poll_error"]),
            paused=feed.paused_until is not None or bool(row and row["paused_until"]),
            breaker_open=feed.health.probing,
            slots=feed.gate.limit,
        )

    def _store(self, outlet: Outlet, numbers: Numbers | None, now: datetime) -> StoreView:
        held = [value for (_, of), value in numbers.totals.items() if of == outlet.name] if numbers else []
        unverified = numbers.unverified.get(outlet.name) if numbers else None
        verify = self.archive.config.verify
        path = _path(outlet)
        return StoreView(
            name=outlet.name,
            up=not outlet.health.probing,
            copies=sum(count for count, _ in held),
            bytes=sum(size for _, size in held),
            bad=numbers.bad.get(outlet.name, 0) if numbers else 0,
            unverified=_age(unverified, now) if unverified is not None else None,
            verify_overdue=_age(unverified + verify.cycle + verify.period, now) if unverified is not None else 0.0,
            disk=self._disks.get(path) if path else None,
        )


def _age(moment: datetime, now: datetime) -> float:
    return max(0.0, (now - moment).total_seconds())


def _usage(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(path)
        return usage.free, usage.total
    return None


def _path(outlet: Outlet) -> Path | None:
    path = outlet.store.location("").get("path")
    return Path(path) if path else None
