"""Keeps the algorithm running: claims what is due, starts transfers, commits in groups, renews, shares, tells.

Nothing here decides what a failure means (failures.explain does) or what is written (commit.commit does).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from ..audio.spool import Spool, SpoolSink
from ..catalog.catalog import Catalog, Document
from ..common.scope import canary
from ..common.tally import Timings
from ..common.traces import span
from ..errors import CatalogDown, Scope, SourceError, SpoolDown
from ..model import Claim, Download, Outcome, State
from ..ports import Acknowledges, FetchesBatches
from . import commit, failures, transfer
from .feeds import Feed, Outlet, release, retain, using
from .windows import next_try

log = structlog.get_logger()

#: A claim lasts so long without being renewed; a killed process's media are due again after it.
LEASE = timedelta(minutes=2)
#: A share of a source's concurrency lasts so long without being renewed.
SHARE = timedelta(seconds=20)
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
#: Claims are for the next so many seconds at the rate of late, where that is more than keeps every slot busy.
AHEAD = 0.25
#: What failed before gets one turn to so many of others that wait, and as much less of the source's time.
SPARING = 9
#: How often idle loops look around, in seconds.
LOOK = 2.0
#: What waits for an answer (Feed.question) is looked at again so often; each poll asks whether it came.
ASKED = timedelta(seconds=10)
#: And a run that has nothing to do until another process has finished, or what failed is due again.
SOON = 0.5


@dataclass(slots=True)
class Lane:
    """One source's media on their way through this process."""

    feed: Feed
    queue: deque[Claim] = field(default_factory=deque)
    #: What failed before: it starts only where it takes nothing from what never did (see :meth:`next_claims`).
    behind: deque[Claim] = field(default_factory=deque)
    running: int = 0
    #: Of these, how many failed before; and from when on one more may take the place of what never did (monotonic).
    running_behind: int = 0
    spared_at: float = 0.0
    #: How many that never failed were begun since one that did.
    fresh: int = 0
    #: When a claim last found nothing that never failed (monotonic).
    exhausted_at: float = float("-inf")
    due_at: datetime | None = None
    #: How many were begun since the last claim, when that was (monotonic clock), and how many a second before it.
    begun: int = 0
    claimed_at: float = 0.0
    rate: float = 0.0

    @property
    def batch(self) -> int:
        return self.feed.batches.batch if self.feed.batches is not None else 1

    @property
    def waiting(self) -> int:
        """How many are claimed and not begun."""
        return len(self.queue) + len(self.behind)

    def blocked(self, now: datetime) -> datetime | None:
        """Until when nothing of this source can be transferred, if so; what is over there is healed first."""
        feed = self.feed
        until = [o.health.until for o in feed.outlets.values() if o.health.probing and not o.health.trying]
        until += [feed.health.until] if feed.health.probing else []
        until += [feed.paused_until] if feed.paused_until and now < feed.paused_until else []
        # Asked again with each poll.
        until += [now + ASKED] if feed.question is not None else []
        moments = [moment for moment in until if moment is not None]
        return max(moments) if moments else None

    def waits(self, now: datetime) -> bool:
        """Is something due that could be transferred?"""
        if self.due_at is None or self.due_at > now or self.blocked(now) is not None:
            return False
        # Is all that is due what failed before, and no room for it?
        return self.room_behind()[0] > 0 or time.monotonic() > self.exhausted_at + SOON

    def slots(self) -> int:
        """How many transfers may run. The gate bounds their requests; twice as many keep it busy during puts.

        But not of a recorder that just failed: those waiting at the gate would ask it although the breaker opened.
        """
        return self.feed.gate.limit * (1 if self.feed.health.failures else 2)

    def slots_behind(self) -> int:
        """How many of these what failed before may take: half of the requests stay free for what never did."""
        return max(1, self.feed.gate.limit // 2)

    def room(self) -> int:
        """How many more media to claim: enough to keep every slot busy while the next claim is under way.

        But no more than others would have to wait for long.
        """
        if any(o.health.trying for o in self.feed.outlets.values()):
            return 1 - self.running - self.waiting
        most = max(self.feed.gate.limit * 5 * self.batch, int(self.rate * AHEAD))
        return most - self.running - self.waiting

    def room_behind(self) -> tuple[int, int]:
        """How many that failed before to claim at the most, and at the least although others wait."""
        if any(o.health.trying for o in self.feed.outlets.values()):
            return self.room(), 0
        most = 2 * self.slots_behind() - self.running_behind - len(self.behind)
        return max(0, most), int(most > 0 and not self.running_behind and not self.behind and self._may_spare())

    def _may_spare(self) -> bool:
        return self.fresh >= SPARING and time.monotonic() >= self.spared_at

    def next_claims(self) -> list[Claim]:
        """What to begin next: one claim, or as many fresh ones as the source delivers in one answer; or nothing yet.

        What failed before gets a tenth of the turns and of the time while others wait; then half of the slots.
        """
        spared = self.behind and not self.running_behind and self._may_spare()
        if self.queue and self.feed.samples and not self.queue[0].newest:
            # Others are tried first; these are about to be given back.
            return []
        if self.queue and not spared:
            claims = [self.queue.popleft()]
            self.fresh += 1
        elif self.behind and self.running_behind < self.slots_behind():
            self.running_behind += 1
            self.fresh = 0
            claims = [self.behind.popleft()]
        else:
            return []
        self.begun += 1
        while self.batch > 1 and self.queue and len(claims) < self.batch:
            if claims[-1].attempts or claims[-1].copies or self.queue[0].attempts or self.queue[0].copies:
                break
            claims.append(self.queue.popleft())
            self.begun += 1
        return claims

    def ended(self, claims: Sequence[Claim], seconds: float) -> None:
        """What :meth:`next_claims` gave is done."""
        self.running -= 1
        if claims[0].troubled:
            self.running_behind -= 1
            self.spared_at = time.monotonic() + SPARING * seconds

    def claimed(self) -> None:
        now = time.monotonic()
        self.rate, self.begun, self.claimed_at = self.begun / (now - self.claimed_at), 0, now


@dataclass(slots=True)
class Tally:
    """What happened to media since the engine began, by source."""

    states: Counter[tuple[str, State]] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    #: How attempts ended: archived, stored in part, or what the history calls it.
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: How long transfers and polls took.
    transfers: defaultdict[str, Timings] = field(default_factory=lambda: defaultdict(Timings))
    polls: defaultdict[str, Timings] = field(default_factory=lambda: defaultdict(Timings))
    #: Polls that ended with an error.
    failed_polls: Counter[str] = field(default_factory=Counter)


def _about(claim: Claim) -> dict[str, str]:
    return {"source": claim.source, "recording_id": claim.medium.recording_id}


def _came(result: Download | Outcome) -> dict[str, str | int]:
    """What a span tells of how a transfer ended; not why, for that is others' text."""
    if isinstance(result, Outcome):
        return {"outcome": result.what}
    return {"outcome": "stored in part" if result.error else "stored", "size": result.size}


class Engine:
    """Transfers what is due of these feeds until told to stop; several processes share one queue."""

    def __init__(self, catalog: Catalog, feeds: Mapping[str, Feed], spool: Spool, *, transfers: int = 32) -> None:
        self.catalog = catalog
        self.spool = spool
        self.transfers = transfers
        self.lanes = {name: Lane(feed) for name, feed in feeds.items()}
        self.tally = Tally()
        #: Called with each finished medium once it is committed.
        self.on_settled: Callable[[Download | Outcome, State], None] | None = None
        self._wake = asyncio.Event()
        #: Each with the source that it came from: a new config may have replaced that one meanwhile.
        self._results: asyncio.Queue[tuple[Feed, Download | Outcome]] = asyncio.Queue(maxsize=GROUP * 4)
        self._gathering = asyncio.Lock()
        self._claims: dict[int, Claim] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._looked = 0.0
        self._stopping = False
        self._freed = asyncio.Event()
        self._shared: dict[str, float] = {}
        #: Sources of which more was in use than this process's share; and whose shares are to be settled anew.
        self._exceeded: set[str] = set()
        self._unsettled: set[str] = set()
        self._settling = asyncio.Event()
        self._asking = asyncio.Lock()
        self._polling: Counter[str] = Counter()
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

    @property
    def listing(self) -> bool:
        return self._polling.total() > 0

    @contextlib.asynccontextmanager
    async def polling(self, name: str) -> AsyncIterator[None]:
        """Hold this process's share of a source while listing it."""
        self._polling[name] += 1
        try:
            await self._share([name])
            yield
        finally:
            self._polling[name] -= 1

    async def admitted(self, name: str) -> None:
        """Within :meth:`polling`, while :meth:`run` runs: wait until others leave this process a share."""
        while name in self.lanes and self.lanes[name].feed.gate.limit < 1:  # noqa: ASYNC110 - shares have their rhythm
            await asyncio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def lending(self, name: str) -> AsyncIterator[None]:
        """While :meth:`run` or :meth:`sharing` runs: a share of a source, for a request beside the transfers."""
        async with self.polling(name):
            await self.admitted(name)
            yield

    @contextlib.asynccontextmanager
    async def sharing(self) -> AsyncIterator[None]:
        """Keep the shares that :meth:`lending` takes, where nothing is transferred."""
        keeping = asyncio.create_task(self._every(SHARE.total_seconds() / 4, self._share_active)())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await self._abandon()

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self, *, until: Callable[[], datetime | None] | None = None) -> None:
        """Transfer until stopped; with ``until``, until nothing is due before that moment.

        ``until`` returns None while more may still be found.
        """
        self.catalog.on_listed = self.nudge
        self.catalog.on_shared = self._unsettle
        try:
            with contextlib.suppress(CatalogDown):
                await self.catalog.stay_alive()
            async with asyncio.TaskGroup() as group:
                loops = {
                    "renew": self._every(LEASE.total_seconds() / 4, self._renew),
                    "alive": self._every(ALIVE, self._stay_alive),
                    "share": self._every(SHARE.total_seconds() / 4, self._share_active),
                    "tell": self._every(LOOK, self._tell),
                    "describe": self._every(5.0, self._describe),
                    "ledgers": self._every(LEDGERS, self._tell_ledgers),
                }
                side = [group.create_task(loop(), name=name) for name, loop in loops.items()]
                commits = [f"commit {n + 1}" for n in range(COMMITS)]
                side += [group.create_task(self._commit_forever(name), name=name) for name in commits]
                side.append(group.create_task(self._settle_forever(), name="settle"))
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
            if name not in self._shared:
                await self._share([name])
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
        self._give_way()
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
                    claims = await self._work_batch(feed, feed.batches, claims)
                for claim in claims:
                    began = time.monotonic()
                    with span("transfer", **_about(claim)) as tell:
                        result = await transfer.transfer(feed, claim, self.catalog, self.spool)
                        tell(**_came(result))
                    self.tally.transfers[claim.source].add(time.monotonic() - began)
                    await self._deliver(feed, result)
        except CatalogDown as error:
            # The leases run out by themselves.
            log.warning("catalog.down", error=str(error))
            for claim in claims:
                self._claims.pop(claim.token, None)
        finally:
            lane.ended(taken, time.monotonic() - started)

    async def _work_batch(self, feed: Feed, source: FetchesBatches, claims: list[Claim]) -> list[Claim]:
        """Many media in one answer; returns the claims that it did not hold."""
        async with contextlib.AsyncExitStack() as stack:
            sinks = {c.medium.recording_id: stack.enter_context(self.spool.sink()) for c in claims}
            try:
                self.spool.demand_room()
                with span("download", source=feed.name, media=len(claims)):
                    delivered = await source.fetch_batch([c.medium for c in claims], sinks)
            except (SourceError, SpoolDown) as error:
                log.info("batch.failed", source=feed.name, error=str(error))
                return claims
            for claim in claims:
                if claim.medium.recording_id in delivered:
                    with span("transfer", **_about(claim)) as tell:
                        result = await self._check_and_deliver(feed, claim, sinks)
                        tell(**_came(result))
                    await self._deliver(feed, result)
            return [c for c in claims if c.medium.recording_id not in delivered]

    async def _deliver(self, feed: Feed, finished: Download | Outcome) -> None:
        """To the committer, which lets go of the source."""
        retain(feed)
        await self._results.put((feed, finished))

    async def _check_and_deliver(self, feed: Feed, claim: Claim, sinks: Mapping[str, SpoolSink]) -> Download | Outcome:
        sink = sinks[claim.medium.recording_id]
        try:
            body = await sink.body()
            found = await transfer.checked(feed, claim, body, self.catalog, sink.content_type)
        except SourceError as error:
            return await failures.explain(feed, claim, self.catalog, error)
        except SpoolDown as error:
            return failures.postponed(claim, self.catalog.clock.now() + timedelta(minutes=1), str(error))
        return await transfer.deliver(feed, claim, self.catalog, body, found)

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

    def _every(
        self, seconds: float, step: Callable[[], Awaitable[object]]
    ) -> Callable[[], Coroutine[None, None, None]]:
        async def forever() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    await step()
                except CatalogDown as error:
                    log.warning("catalog.down", error=str(error))

        return forever

    async def _renew(self) -> None:
        if self._claims:
            await self.catalog.renew(list(self._claims.values()), LEASE)

    async def _stay_alive(self) -> None:
        try:
            async with asyncio.timeout(SHARE.total_seconds() / 2):
                dead, uneven = await self.catalog.stay_alive()
        except (CatalogDown, TimeoutError) as error:
            # Others may take this process for dead: what it had of their limits is theirs now.
            for name in list(self._shared):
                self._shared.pop(name)
                if name in self.lanes:
                    self.lanes[name].feed.gate.limit = 0
            raise CatalogDown(str(error) or "the database does not answer") from error
        if dead:
            log.info("process.dead", count=dead)
            self.nudge()
        if dead or uneven:
            await self._share_active()

    async def _share_active(self) -> None:
        now = time.monotonic()
        for name, since in list(self._shared.items()):
            lane = self.lanes.get(name)
            if lane is None or now - since > SHARE.total_seconds():
                # Not renewed in time (or no more ours): others may count on it.
                self._shared.pop(name)
                if lane is not None:
                    lane.feed.gate.limit = 0
        moment = self.catalog.clock.now()
        active = [
            name
            for name, lane in self.lanes.items()
            if lane.waiting or lane.running or self._polling[name] or lane.waits(moment)
        ]
        await self._share(active)
        idle = [name for name in self._shared if name not in active]
        if idle:
            for name in idle:
                self._shared.pop(name)
            await self.catalog.unshare(idle)

    async def _share(self, names: Sequence[str]) -> None:
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
                self._shared[name] = began
                if used[name] > slots:
                    self._exceeded.add(name)
        self._wake.set()
        self._give_way()

    def _give_way(self) -> None:
        """What this process no longer uses beyond its share is for others: now that it has ended."""
        for name in list(self._exceeded):
            lane = self.lanes.get(name)
            if lane is None or lane.feed.gate.running <= lane.feed.gate.limit:
                self._exceeded.discard(name)
                self._unsettle(name)

    def _unsettle(self, name: str) -> None:
        self._unsettled.add(name)
        self._settling.set()

    async def _settle_forever(self) -> None:
        """Shares of which others are told, or told us, are settled at once; the rest comes with the next beat."""
        while True:
            await self._settling.wait()
            self._settling.clear()
            names, self._unsettled = self._unsettled & self._shared.keys(), set()
            try:
                await self._share(sorted(names))
            except CatalogDown as error:
                log.warning("catalog.down", error=str(error))

    async def _heal_forever(self, group: asyncio.TaskGroup) -> None:
        """Who failed as a whole is asked whether it works again: no download is spent on finding out.

        Each by itself, for one that does not answer may not keep the others from being asked.
        """
        asking: set[int] = set()

        async def ask(key: int, thing: Feed | Outlet) -> None:
            try:
                with using(thing):
                    await (self._heal_feed(thing) if isinstance(thing, Feed) else self._heal_outlet(thing))
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

    async def _heal_outlet(self, outlet: Outlet) -> None:
        error = await canary(outlet.store)
        if error is not None:
            outlet.health.opens(self.catalog.clock.now(), str(error))
            return
        # A canary is small: it fits on a disk that is full for recordings.
        outlet.health.trying = True
        log.info("store.up", store=outlet.name)
        self.nudge()

    async def _heal_feed(self, feed: Feed) -> None:
        async with self.lending(feed.name):
            await failures.heal(feed, self.catalog)
        self.nudge()

    async def _describe(self) -> None:
        feeds = self.feeds
        with using(*feeds.values()):
            await commit.describe_changes(feeds, self.catalog, new_after=UNDESCRIBED)

    async def _tell_ledgers(self) -> None:
        """The stores learn what was listed; what was found there is described to them first."""
        feeds = self.feeds
        with using(*feeds.values()):
            await commit.describe_changes(feeds, self.catalog)
            await commit.tell_ledgers(feeds, self.catalog)
            await commit.tell_verified(feeds, self.catalog)

    async def _tell(self) -> None:
        """Each by itself: one that is slow to hear may not keep the others from hearing."""
        await asyncio.gather(*(self._tell_feed(feed) for feed in self.feeds.values()))

    async def _tell_feed(self, feed: Feed) -> None:
        source = feed.source
        if not isinstance(source, Acknowledges) or not source.acknowledges:
            return
        if feed.question or feed.paused_until or feed.health.open(self.catalog.clock.now()):
            return
        with using(feed):
            for of, recording_id, attempts in await self.catalog.outbox(feed.name, LEASE, 50):
                document = (await self.catalog.documents([(of, recording_id)])).get((of, recording_id))
                try:
                    async with self.polling(feed.name):
                        if document is not None:
                            await source.acknowledge(self._located(document[0]))
                    await self.catalog.told(feed.name, of, recording_id)
                except SourceError as error:
                    later = next_try(attempts + 1, feed.options.retry, 0.5)
                    due_at = self.catalog.clock.now() + later
                    await self.catalog.tell_later(feed.name, of, recording_id, due_at, str(error))
                    log.info("acknowledge.deferred", source=feed.name, recording_id=recording_id, error=str(error))
                    if error.scope is not Scope.ITEM:
                        # The rest of these is due again when their lease ends.
                        return

    def _located(self, document: Document) -> Document:
        """The document with each copy's place, as others reach it."""
        outlets = {name: o for lane in self.lanes.values() for name, o in lane.feed.outlets.items()}
        media = []
        for medium in document["media"]:
            copies = [
                copy | {"location": outlets[copy["store"]].store.location(copy["key"])}
                if copy["store"] in outlets
                else copy
                for copy in medium["copies"]
            ]
            media.append(medium | {"copies": copies})
        return document | {"media": media}

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
            await self._tell_ledgers()
            await self._tell()

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
                if self._shared:
                    await self.catalog.unshare(list(self._shared))
