"""Keeps the algorithm running: claims what is due, starts transfers, commits in groups, renews leases, heals.

Nothing here decides what may begin next (lane.Lane does), what a failure means (failures.explain does) or what is
written (commit.commit does).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

import structlog

from ..audio.spool import Spool
from ..catalog.catalog import Catalog
from ..common.traces import span
from ..errors import CatalogDown
from ..model import Claim, Download, Outcome, State
from . import commit, failures, transfer
from .acknowledge import acknowledge
from .feeds import Feed, Outlet, release, retain, using
from .lane import SOON, Lane, Tally
from .shares import Shares, every

log = structlog.get_logger()

#: A claim lasts so long without being renewed; a killed process's media are due again after it.
LEASE = timedelta(minutes=2)
#: How often a process shows that it lives and looks for dead ones, in seconds.
ALIVE = 1.0
#: A group of finished media is committed when it has so many, or when the oldest has waited so long.
GROUP = 100
GATHER = 1.0
#: So many groups are committed at once: most of a commit is waiting, for a store's manifest and for the database.
COMMITS = 2
#: A new recording is described to the stores after so long, archived or not.
UNDESCRIBED = timedelta(minutes=10)
#: How often the stores learn what was listed, in seconds; at the end of a run they do in any case.
LEDGERS = 3600.0
#: How often idle loops look around, in seconds.
LOOK = 2.0


class Engine:
    """Transfers what is due of these feeds until it is stopped; several processes share one queue."""

    def __init__(self, catalog: Catalog, feeds: Mapping[str, Feed], spool: Spool, *, transfers: int = 32) -> None:
        self.catalog = catalog
        self.spool = spool
        self.transfers = transfers
        self.lanes = {name: Lane(feed) for name, feed in feeds.items()}
        self.tally = Tally()
        #: Called with each finished medium once it is committed.
        self.on_settled: Callable[[Download | Outcome, State], None] | None = None
        self._wake = asyncio.Event()
        self.shares = Shares(catalog, self.lanes, self._wake.set)
        #: Each with the source that it came from: a new config may have replaced that one meanwhile.
        self._results: asyncio.Queue[tuple[Feed, Download | Outcome]] = asyncio.Queue(maxsize=GROUP * 4)
        self._gathering = asyncio.Lock()
        self._claims: dict[int, Claim] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._looked = 0.0
        self._stopping = False
        self._freed = asyncio.Event()
        self.progress_at = time.monotonic()
        #: By name what is under way of the engine's own work, and when it last moved (monotonic clock).
        self.beats: dict[str, float] = {}

    # -- for the daemon ----------------------------------------------------------------------------------------------

    @property
    def feeds(self) -> dict[str, Feed]:
        return {name: lane.feed for name, lane in self.lanes.items()}

    def put(self, feed: Feed) -> None:
        """Work on a source from now on; in place of the one of that name, whose running transfers go on with it."""
        if feed.name in self.lanes:
            self.lanes[feed.name].feed = feed
        else:
            self.lanes[feed.name] = Lane(feed)
        self.nudge()

    async def remove(self, name: str) -> None:
        """Stop working on a source; what runs is finished, what waits is given back."""
        lane = self.lanes.pop(name, None)
        if lane is not None:
            await self._give_back(lane.queue)
            await self._give_back(lane.behind)

    def nudge(self) -> None:
        """Something new is due."""
        self._looked = 0.0
        for lane in self.lanes.values():
            lane.exhausted_at = float("-inf")
        self._wake.set()

    def stop(self) -> None:
        """Start nothing more; :meth:`run` returns once what runs is committed."""
        self._stopping = True
        self._wake.set()

    @property
    def busy(self) -> int:
        return len(self._running)

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self, *, until: Callable[[], datetime | None] | None = None) -> None:
        """Transfer until stopped; with ``until``, until nothing is due before that moment.

        ``until`` returns None while more may still be found.
        """
        self.catalog.on_listed = self.nudge
        self.catalog.on_shared = self.shares.take_soon
        try:
            with contextlib.suppress(CatalogDown):
                await self.catalog.stay_alive()
            async with asyncio.TaskGroup() as group:
                loops = {
                    "renew": every(LEASE.total_seconds() / 4, self._renew),
                    "alive": every(ALIVE, self._stay_alive),
                    "share": self.shares.renew_forever,
                    "acknowledge": every(LOOK, self._acknowledge),
                    "describe": every(5.0, self._describe),
                    "ledgers": every(LEDGERS, self._write_ledgers),
                }
                side = [group.create_task(loop(), name=name) for name, loop in loops.items()]
                commits = [f"commit {n + 1}" for n in range(COMMITS)]
                side += [group.create_task(self._commit_forever(name), name=name) for name in commits]
                side.append(group.create_task(self.shares.take_forever(), name="settle"))
                side.append(group.create_task(self._heal_forever(group), name="heal"))
                starting = group.create_task(self._start_freed(group), name="start")
                try:
                    await self._dispatch(group, until)
                    starting.cancel()
                    await self._finish()
                finally:
                    for task in side:
                        task.cancel()
        finally:
            self.catalog.on_listed = self.catalog.on_shared = None
            await self._abandon()

    async def _dispatch(self, group: asyncio.TaskGroup, until: Callable[[], datetime | None] | None) -> None:
        while not self._stopping:
            self._wake.clear()
            self.beats["dispatch"] = time.monotonic()
            try:
                await self._refresh()
                claimed = await self._claim()
            except CatalogDown as error:
                log.warning("catalog.down", error=str(error))
                await self._pause(LOOK)
                continue
            started = self._start(group)
            if claimed or started:
                continue
            now = self.catalog.clock.now()
            patience = LOOK
            if until is not None and not self._running and self._results.empty() and not self._claims:
                last = until()
                if last is not None and self._next(now) > last:
                    # Look once more, past what we remember, before saying that nothing is due.
                    self._looked = 0.0
                    await self._refresh()
                    if self._next(now) > last:
                        return
                elif last is not None:
                    patience, self._looked = SOON, 0.0
            # What is due already waits for a slot, and its release wakes us.
            await self._pause(min(patience, max(0.05, (self._next(now) - now).total_seconds())))

    async def _pause(self, seconds: float) -> None:
        # Not wait_for: Python 3.11's loses a cancellation that comes together with what it waits for.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _next(self, now: datetime) -> datetime:
        """When the next medium can be transferred, as far as is known."""
        moments = (
            max(lane.due_at, lane.blocked(now) or lane.due_at)
            for lane in self.lanes.values()
            if lane.due_at is not None
        )
        return min(moments, default=now + timedelta(days=36500))

    async def _refresh(self) -> None:
        """What is due, asked again every ``LOOK`` seconds: other processes find and finish work too."""
        if time.monotonic() - self._looked < LOOK:
            return
        # Before it is asked: what becomes due meanwhile is asked for again.
        self._looked = time.monotonic()
        due = await self.catalog.due(list(self.lanes), list(self._claims))
        for name, lane in self.lanes.items():
            lane.due_at = due.get(name)

    async def _wanted(self) -> dict[str, int]:
        """How many more media to claim of each source."""
        now = self.catalog.clock.now()
        wanted: dict[str, int] = {}
        free = self.transfers * 8 - sum(lane.waiting + lane.running for lane in self.lanes.values())
        # A copy: sources may come and go while this waits.
        for name, lane in list(self.lanes.items()):
            # Where several in a row are refused, the next ones are to come from the other end of the queue.
            sampling = lane.feed.samples and any(not claim.newest for claim in lane.queue)
            if lane.blocked(now) is not None or sampling:
                if lane.waiting:
                    await self._give_back(lane.queue)
                    await self._give_back(lane.behind)
                    self._looked = 0.0
                continue
            if not lane.waits(now):
                continue
            if not self.shares.holds(name):
                await self.shares.take([name])
            room = min(lane.room(), max(free, lane.batch if lane.running == 0 else 0))
            # Fewer, larger claims: not before what waits is little.
            if room > 0 and len(lane.queue) <= lane.feed.gate.limit * lane.batch:
                wanted[name] = room
                free -= room
        return {name: room for name, room in wanted.items() if name in self.lanes}

    async def _claim(self) -> int:
        wanted = await self._wanted()
        if not wanted:
            return 0
        feeds = {name: self.lanes[name].feed for name in wanted}
        claims = await self.catalog.claim(
            wanted,
            LEASE,
            [name for name, feed in feeds.items() if feed.options.retention is not None],
            newest=[name for name, feed in feeds.items() if feed.samples],
            troubled={name: self.lanes[name].room_behind() for name in wanted},
        )
        got = Counter(claim.source for claim in claims)
        for name, count in wanted.items():
            if (lane := self.lanes.get(name)) is None:
                continue
            lane.claimed()
            if got[name] < count:
                lane.exhausted_at = time.monotonic()
                # Nothing more is due, or another process claimed some of these at the same moment.
                lane.due_at, self._looked = None, 0.0
        for claim in claims:
            self._claims[claim.token] = claim
            if claim.source in self.lanes:
                lane = self.lanes[claim.source]
                (lane.behind if claim.troubled else lane.queue).append(claim)
        await self._give_back([claim for claim in claims if claim.source not in self.lanes])
        return len(claims)

    def _start(self, group: asyncio.TaskGroup) -> int:
        started = 0
        now = self.catalog.clock.now()
        for lane in self.lanes.values():
            while lane.waiting and lane.running < lane.slots() and len(self._running) < self.transfers:
                if lane.blocked(now) is not None or not (claims := lane.next_claims()):
                    break
                lane.running += 1
                task = group.create_task(self._work(lane, claims))
                self._running.add(task)
                task.add_done_callback(self._ended)
                started += 1
        return started

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self.shares.give_way()
        self._freed.set()
        self._wake.set()

    async def _start_freed(self, group: asyncio.TaskGroup) -> None:
        """Fill freed slots while the dispatcher waits for a claim. Of the group: where that ends, nothing begins."""
        while True:
            await self._freed.wait()
            self._freed.clear()
            if not self._stopping:
                self._start(group)

    async def _work(self, lane: Lane, claims: list[Claim]) -> None:
        feed, taken, started = lane.feed, claims, time.monotonic()
        try:
            with using(feed):
                if len(claims) > 1 and feed.batches is not None:
                    claims = await transfer.transfer_batch(
                        feed, feed.batches, claims, self.catalog, self.spool, partial(self._deliver, feed)
                    )
                for claim in claims:
                    began = time.monotonic()
                    result = await transfer.transfer(feed, claim, self.catalog, self.spool)
                    self.tally.transfers[claim.source].add(time.monotonic() - began)
                    await self._deliver(feed, result)
        except CatalogDown as error:
            # The leases run out by themselves.
            log.warning("catalog.down", error=str(error))
            for claim in claims:
                self._claims.pop(claim.token, None)
        finally:
            lane.ended(taken, time.monotonic() - started)

    async def _deliver(self, feed: Feed, finished: Download | Outcome) -> None:
        """To the committer, which lets go of the source."""
        retain(feed)
        await self._results.put((feed, finished))

    # -- commit ------------------------------------------------------------------------------------------------------

    async def _commit_forever(self, name: str) -> None:
        while True:
            async with self._gathering:
                group = await self._gathered()
            await self._commit(group, name)

    async def _gathered(self) -> list[tuple[Feed, Download | Outcome]]:
        group = [await self._results.get()]
        began = time.monotonic()
        while len(group) < GROUP:
            left = GATHER - (time.monotonic() - began)
            # With nothing else on its way there is nothing to wait for.
            if left <= 0 or (self._results.empty() and not self._running):
                break
            if not self._results.empty():
                group.append(self._results.get_nowait())
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, 0.1)):
                    group.append(await self._results.get())
        return group

    async def _commit(self, group: Sequence[tuple[Feed, Download | Outcome]], name: str) -> None:
        """Each by the source and stores that it passed through, although a new config may have replaced them."""
        while group:
            feeds = {feed.name: feed for feed, _ in group}
            await self._commit_of(feeds, [finished for feed, finished in group if feed is feeds[feed.name]], name)
            release(*(feed for feed, _ in group if feed is feeds[feed.name]))
            group = [(feed, finished) for feed, finished in group if feed is not feeds[feed.name]]

    async def _commit_of(self, feeds: Mapping[str, Feed], group: Sequence[Download | Outcome], name: str) -> None:
        pause = 0.2
        while True:
            self.beats[name] = time.monotonic()
            try:
                with span("commit", media=len(group)):
                    settled = await commit.commit({**self.feeds, **feeds}, self.catalog, group)
                break
            except CatalogDown as error:
                log.warning("catalog.down", error=str(error), waiting=len(group))
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
        self.progress_at = time.monotonic()
        self.beats.pop(name, None)
        for finished in group:
            self._claims.pop(finished.claim.token, None)
            state = settled.get(finished.claim.token)
            if state is None:
                log.warning("claim.lost", source=finished.claim.source, recording_id=finished.claim.medium.recording_id)
                continue
            self._note(finished, state)
        self._wake.set()

    def _note(self, finished: Download | Outcome, state: State) -> None:
        claim = finished.claim
        self.tally.states[claim.source, state] += 1
        whole = "archived" if state is State.ARCHIVED else "stored in part"
        self.tally.outcomes[claim.source, finished.what if isinstance(finished, Outcome) else whole] += 1
        who = {"source": claim.source, "recording_id": claim.medium.recording_id, "media_id": claim.medium.media_id}
        if isinstance(finished, Download):
            if state is State.ARCHIVED:
                self.tally.bytes[claim.source] += finished.size
                log.info("recording.archived", **who, bytes=finished.size, sha256=finished.sha256[:12])
            else:
                log.warning("recording.stored_in_part", **who, error=finished.error or "a manifest is missing")
        elif state is State.PENDING:
            log.info("recording.deferred", **who, error=finished.error, due_at=finished.due_at.isoformat())
        else:
            level = log.warning if state is State.FAILED else log.info
            level(f"recording.{state.value}", **who, error=finished.error)
        lane = self.lanes.get(claim.source)
        if lane is not None and state is State.PENDING:
            self._looked = 0.0
        if self.on_settled is not None:
            self.on_settled(finished, state)

    # -- side tasks --------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        if self._claims:
            await self.catalog.renew(list(self._claims.values()), LEASE)

    async def _stay_alive(self) -> None:
        dead, uneven = await self.shares.stay_alive()
        if dead:
            log.info("process.dead", count=dead)
            self.nudge()
        if dead or uneven:
            await self.shares.renew()

    async def _heal_forever(self, group: asyncio.TaskGroup) -> None:
        """Who failed as a whole is asked whether it works again: no download is spent on finding out.

        Each by itself, for one that does not answer may not keep the others from being asked.
        """
        asking: set[int] = set()

        async def ask(key: int, thing: Feed | Outlet) -> None:
            try:
                with using(thing):
                    await self._heal(thing)
            except CatalogDown as error:
                log.warning("catalog.down", error=str(error))
            finally:
                asking.discard(key)

        while True:
            await asyncio.sleep(0.5)
            now = self.catalog.clock.now()
            things: dict[int, Feed | Outlet] = {id(lane.feed): lane.feed for lane in self.lanes.values()}
            for lane in self.lanes.values():
                things |= {id(outlet): outlet for outlet in lane.feed.outlets.values() if not outlet.health.trying}
            for key, thing in things.items():
                if thing.health.probing and not thing.health.open(now) and key not in asking:
                    asking.add(key)
                    group.create_task(ask(key, thing))

    async def _heal(self, thing: Feed | Outlet) -> None:
        if isinstance(thing, Outlet):
            if not await failures.heal_store(thing, self.catalog):
                return
        else:
            async with self.shares.lending(thing.name):
                await failures.heal(thing, self.catalog)
        self.nudge()

    async def _acknowledge(self) -> None:
        await acknowledge(self.feeds, self.catalog, self.shares, LEASE)

    async def _describe(self) -> None:
        feeds = self.feeds
        with using(*feeds.values()):
            await commit.describe_changes(feeds, self.catalog, new_after=UNDESCRIBED)

    async def _write_ledgers(self) -> None:
        """The stores learn what was listed; what was found there is described to them first."""
        feeds = self.feeds
        with using(*feeds.values()):
            await commit.describe_changes(feeds, self.catalog)
            await commit.write_ledgers(feeds, self.catalog)
            await commit.write_verified(feeds, self.catalog)

    # -- the end -----------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Wait for what runs and its commit; then describe and tell what is left."""
        self.beats.pop("dispatch", None)
        for lane in self.lanes.values():
            await self._give_back(lane.queue)
            await self._give_back(lane.behind)
        while self._running or self._claims:
            self._wake.clear()
            await self._pause(0.1)
        with contextlib.suppress(CatalogDown):
            await self._write_ledgers()
            await self._acknowledge()

    async def _give_back(self, queue: deque[Claim] | list[Claim]) -> None:
        claims = list(queue)
        if claims:
            queue.clear()
            for claim in claims:
                self._claims.pop(claim.token, None)
            with contextlib.suppress(CatalogDown):
                await self.catalog.release(claims)

    async def _abandon(self) -> None:
        """Whatever ended the run: leases and shares go back at once, where the database still answers."""
        claims = list(self._claims.values())
        self._claims.clear()
        with contextlib.suppress(CatalogDown, TimeoutError):
            async with asyncio.timeout(3):
                if claims:
                    await self.catalog.release(claims)
                await self.shares.give_back()
