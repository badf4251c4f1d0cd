"""Runs an archive on a schedule until told to stop (`run`)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from apscheduler.job import Job
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from ..catalog.catalog import LONGEST_PAUSE, newest, other_version
from ..common import log as logs
from ..common.journal import notify
from ..common.words import reason_of
from ..errors import CatalogDown, ConfigError, Refused, SourceError, SpoolDown
from ..model import utc_text
from ..proof.note import ProofError
from ..settings import config
from ..settings.config import Stamp
from ..sync import commit, poll
from ..sync.feeds import Feed, Outlet, using
from ..upkeep import audit, certify
from . import conditions, identity, live, reload, report, searching, wiring
from .schedule import next_poll, period, trigger
from .watch import Watch
from .wiring import Archive

log = structlog.get_logger()

#: A stop waits so long for running transfers before it drops them; they are due again at once.
GRACE = 8.0
#: And so long in all, whatever hangs: nothing is lost by an end at any moment.
END = 9.5
#: How often the config file is looked at, in seconds; and how often one that was refused is tried again.
LOOK = 1.0
AGAIN = 30.0
#: A host's clock that goes back so far at once was set, in seconds.
STEP = 5.0
#: How often to look whether a day can be certified, in seconds.
CERTIFY = 3600.0
#: How often to look for what is wrong although nothing fails, in seconds.
WATCH = 300.0


async def _give_memory_back() -> None:
    """What failures left in cycles, and what malloc keeps between what is in use: else memory creeps up for days."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        # Of glibc; other C libraries do without. In a thread, for it may take a while, and lets others run meanwhile.
        await asyncio.to_thread(ctypes.CDLL(None).malloc_trim, 0)


class Daemon:
    """Polls every source on its schedule and transfers what is due, until it is told to stop."""

    def __init__(self, archive: Archive, *, log_level: str | None = None) -> None:
        """``log_level``: stands, whatever the config says."""
        self.archive = archive
        self.engine = archive.engine()
        self._log_level = log_level
        self.watch = Watch(archive, self.engine, notify)
        self._stop = asyncio.Event()
        # Only a metronome: what it calls sets an event; our own task group sees what a poll raises.
        self._scheduler = AsyncIOScheduler(timezone="UTC")
        #: By id of its jobs.
        self._rhythms: dict[str, str] = {}
        self._side: set[asyncio.Task[None]] = set()
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._asked = asyncio.Event()
        self._beacon = live.Beacon(archive.config.data_dir)
        self._started_at = self._loaded_at = archive.catalog.clock.now()
        self._changes: dict[str, tuple[str, ...]] = {}
        #: What other processes are told of what only this one sees.
        self._seen = self.watch.surveyor.seen().document()
        #: When which file (its SHA-256) was refused, and why; None where the live config is the one on disk.
        self.refused: tuple[datetime, str | None, list[str]] | None = None

    def stop(self) -> None:
        """End in order; called a second time: at once."""
        if self._stop.is_set():
            log.warning("stop.at_once")
            os._exit(1)
        self._stop.set()

    def _signalled(self) -> None:
        # A thread, for a loop that hangs would not see to it.
        limit = threading.Timer(END, os._exit, (0,))
        limit.daemon = True
        limit.start()
        self.stop()

    async def run(self) -> None:
        """Raises what ended it, where that was not :meth:`stop`; CatalogDown and StoreError from the start."""
        await wiring.prove_stores(self.archive)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGHUP, self._asked.set)
        try:
            async with asyncio.TaskGroup() as group:
                engine = group.create_task(self.engine.run(), name="engine")
                for name in self.archive.feeds:
                    self._start_polls(group, name)
                beside = [self._keep_database(), self.watch.run(), self._watch_over(), self._verify_forever()]
                beside.append(self._certify_forever())
                beside += [self._keep_config(group), searching.keep(self.archive.catalog)]
                for work in beside:
                    self._beside(group, work)
                self.watch.beat("schedule")
                self._ring(self._beat, "30s")
                self._ring(_give_memory_back, "60s")
                self._ring(self._ship_audit, "5m")
                self._scheduler.start()
                notify("READY=1")
                await self._say_who_is_who()
                log.info("daemon.ready", sources=sorted(self.archive.feeds), stores=sorted(self.archive.outlets))
                await self._stop.wait()
                notify("STOPPING=1")
                log.info("daemon.stopping", running=self.engine.busy)
                self.engine.stop()
                for task in self._side:
                    task.cancel()
                await asyncio.wait([engine], timeout=GRACE)
                engine.cancel()
        finally:
            self._beacon.close()
            if self._scheduler.running:
                self._scheduler.shutdown(wait=False)
        log.info("daemon.stopped")

    async def _beat(self) -> None:
        self.watch.beat("schedule")

    async def _ship_audit(self) -> None:
        """What the face wrote down goes to every store: it is not to be lost with the database."""
        with contextlib.suppress(CatalogDown):
            await audit.ship(self.archive.catalog, dict(self.archive.outlets))

    def _end_waits(self) -> None:
        """No source is paused for longer than one that is paused now."""
        latest = self.archive.catalog.clock.now() + LONGEST_PAUSE
        for feed in self.archive.feeds.values():
            feed.paused_until = min(feed.paused_until, latest) if feed.paused_until is not None else None
        self.engine.nudge()

    def _ring(self, what: Callable[[], Coroutine[Any, Any, None]], rhythm: str) -> Job:
        """Have the schedule call it. No plain function: it would call that in a thread, where no event may be set."""
        job = self._scheduler.add_job(what, trigger(rhythm), misfire_grace_time=None, coalesce=True, max_instances=1)
        self._rhythms[job.id] = rhythm
        return job

    def _beside(self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that ends with the daemon."""
        task = group.create_task(work)
        self._side.add(task)
        task.add_done_callback(self._side.discard)
        return task

    # -- the config --------------------------------------------------------------------------------------------------

    async def _keep_config(self, group: asyncio.TaskGroup) -> None:
        """Take the config anew on SIGHUP, on request, and where it changed on disk; a bad one leaves all as it is."""
        watch = reload.Watch(self.archive.config.files)
        tried = time.monotonic()
        while True:
            # Here, for the loop's own things are not to be looked at from a thread.
            self._seen = self.watch.surveyor.seen().document()
            self.watch.surveyor.stale_config = tuple(self.refused[2]) if self.refused is not None else ()
            requests, changed = await asyncio.to_thread(self._look_at_config, watch)
            again = self.refused is not None and time.monotonic() - tried > AGAIN
            if self._asked.is_set() or requests or changed or again:
                self._asked.clear()
                await self._reload(group, watch)
                tried = time.monotonic()
                await asyncio.to_thread(self._tell, requests)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._asked.wait()

    def _look_at_config(self, watch: reload.Watch) -> tuple[list[Path], bool]:
        self._tell([])
        return self._beacon.requests(), watch.changed()

    def _tell(self, answered: Sequence[Path]) -> None:
        """Others may know which config is live, and that their requests are answered."""
        asked = {name: feed.question for name, feed in self.archive.feeds.items() if feed.question is not None}
        how = self._loaded_at, self._started_at, self._changes, self.refused
        told = live.record(self.archive.config, *how, seen=self._seen, questions=asked)
        try:
            if self._beacon.lit():
                self._beacon.tell(told)
            for request in answered:
                request.unlink(missing_ok=True)
        except OSError as error:
            log.warning("beacon.failed", error=f"{self._beacon.folder}: {reason_of(error)}")

    async def _reload(self, group: asyncio.TaskGroup, watch: reload.Watch) -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        path, files = self.archive.config.path, dict[Path, Stamp]()
        try:
            new = await asyncio.to_thread(reload.read, path, files)
            logs.add_secrets(new.secrets)
            taken = await reload.take(self.archive, self.engine, new)
        except ConfigError as error:
            watch.files = files
            self._refuse(error.problems, await asyncio.to_thread(reload.digest, path))
        else:
            watch.files = files
            self._taken(group, taken)
            self._beside(group, self._say_who_is_who())
        notify("READY=1")

    def _refuse(self, problems: list[str], sha256: str | None) -> None:
        if self.refused is None or self.refused[1:] != (sha256, problems):
            for problem in problems:
                log.error("config.refused", error=problem)
            which = f"{(sha256 or 'none')[:12]} is not taken, the config loaded at {utc_text(self._loaded_at)} stays"
            log.error("config.kept", error=f"SHA-256 {which}")
        self.refused = self.archive.catalog.clock.now(), sha256, problems

    async def _say_who_is_who(self) -> None:
        """What a changed config may have made another recorder, or put out of reach."""
        with contextlib.suppress(CatalogDown):
            for problem in await identity.problems(self.archive.config, self.archive.catalog):
                if (condition := conditions.BY_NAME[problem["condition"]]).level is not conditions.Level.NOTE:
                    of = f"{condition.of} {problem['of']}".strip()
                    log.error("identity.problem", error=f"{of}: {problem['what']}", do=problem["do"])

    def _taken(self, group: asyncio.TaskGroup, taken: reload.Taken) -> None:
        new, changes = self.archive.config, taken.changes
        self._loaded_at, self.refused = self.archive.catalog.clock.now(), None
        if "log_level" in changes.settings_changed and self._log_level is None:
            logs.configure(level=new.log_level)
        for name in {*taken.renewed, *taken.stopped}:
            before = self._polls.pop(name, None)
            if before is not None:
                before.cancel()
            if name in taken.renewed:
                self._start_polls(group, name, before)
        if taken.retired:
            self._beside(group, self._retire(taken.retired))
        told = {kind: names for kind in changes.__slots__ if (names := getattr(changes, kind))}
        # Read again without an edit it is still the last edit's: the file was perhaps taken before anybody asked.
        self._changes = told or self._changes
        log.info("config.taken", sha256=new.sha256[:12], **told)
        for warning in config.warnings(new):
            log.warning("config.warning", error=warning)

    async def _retire(self, things: Sequence[Feed | Outlet]) -> None:
        """Close what the new config replaced, once all that began with it has ended."""
        while any(thing.users for thing in things):  # noqa: ASYNC110 - they have no common event
            await asyncio.sleep(0.2)
        await self.archive.close(*things)
        for name in {thing.name for thing in things if isinstance(thing, Feed)} & self.archive.feeds.keys():
            await self._aim(name)

    async def _aim(self, name: str) -> None:
        """What waits from before is meant for the stores that the config names now."""
        while name in self.archive.feeds:
            try:
                await self.archive.catalog.aim(name, list(self.archive.feeds[name].outlets))
            except CatalogDown as error:
                log.warning("catalog.down", error=str(error))
                await asyncio.sleep(LOOK)
            else:
                self.engine.nudge()
                return

    # -- polls -------------------------------------------------------------------------------------------------------

    def _start_polls(self, group: asyncio.TaskGroup, name: str, before: asyncio.Task[None] | None = None) -> None:
        self._polls[name] = self._beside(group, self._poll_on_schedule(name, before))

    async def _poll_on_schedule(self, name: str, before: asyncio.Task[None] | None) -> None:
        """Poll whenever the schedule says so, and at once at the start; an overrunning poll skips beats.

        ``before``: ends first, for it may hold the source.
        """
        if before is not None:
            await asyncio.wait([before])
        await self._aim(name)
        beat = asyncio.Event()
        beat.set()
        poll = self.archive.feeds[name].options.poll

        async def ring() -> None:
            beat.set()

        job = self._ring(ring, poll)
        schedule = f"schedule {name}"
        try:
            while True:
                # It moves again when the next poll is due: not rung by then it hangs, and the watchdog sees it.
                self.watch.beat(schedule, next_poll(poll, now := datetime.now(UTC)) - now)
                await beat.wait()
                beat.clear()
                # What hangs from now on is the poll's own beat to tell.
                self.watch.rest(schedule)
                try:
                    while await self._poll(name):
                        pass
                except SourceError as error:
                    self.engine.tally.failed_polls[name] += 1
                    if not isinstance(error, Refused):
                        log.warning("poll.failed", source=name, error=str(error))
                except CatalogDown as error:
                    log.warning("catalog.down", error=str(error))
        finally:
            self.watch.rest(schedule)
            with contextlib.suppress(JobLookupError):
                job.remove()
            del self._rhythms[job.id]

    async def _poll(self, name: str) -> bool:
        """One poll; True where there is more to list at once."""
        feed = self.archive.feeds[name]
        now = self.archive.catalog.clock.now()
        if (feed.paused_until and now < feed.paused_until) or feed.health.open(now):
            return False
        began = time.monotonic()
        with using(feed):
            async with self.engine.shares.polling(name):
                await self.engine.shares.admitted(name)
                with self.watch.working(f"poll {name}"):
                    polled = await poll.poll(feed, self.archive.catalog, budget=period(feed.options.poll))
        if polled.busy:
            return False
        self.engine.tally.polls[name].add(time.monotonic() - began)
        if polled.error is None:
            self.watch.round_done()
        else:
            self.engine.tally.failed_polls[name] += 1
        self.engine.progress_at = time.monotonic()
        self.engine.nudge()
        log.info(
            "poll.done",
            source=name,
            windows=polled.windows,
            listed=polled.listed,
            new=polled.new,
            changed=polled.changed,
            seconds=round(time.monotonic() - began, 3),
            error=polled.error,
        )
        return polled.more and not polled.down

    async def _verify_forever(self) -> None:
        """Read copies back, a part of the cycle at a time; one process at a time does it for a store."""
        catalog = self.archive.catalog
        pause = min(self.archive.config.verify.beat, timedelta(minutes=1))
        while True:
            await asyncio.sleep(pause.total_seconds())
            options = self.archive.config.verify
            pause = options.beat
            for name in list(self.archive.outlets) if options.enabled else ():
                if name not in self.archive.outlets:
                    # It left the config meanwhile.
                    continue
                verifier, feeds = wiring.verifier(self.archive, self.engine, name), dict(self.archive.feeds)
                try:
                    with using(*self.archive.outlets.values(), *feeds.values()):
                        async with catalog.only_one(f"verify:{name}") as mine:
                            if not mine:
                                continue
                            found = await verifier.due(options)
                            await catalog.verify_ended(name, found.error)
                            await commit.write_verified(feeds, catalog)
                            if found.read or found.error:
                                log.info("verify.done", store=name, read=found.read, bad=found.bad, error=found.error)
                except CatalogDown as error:
                    log.warning("catalog.down", error=str(error))

    async def _certify_forever(self) -> None:
        """Days whose lookback has passed get their certificates; each night those that were not complete, again."""
        archive = self.archive
        while True:
            await asyncio.sleep(CERTIFY)
            outlets, feeds = dict(archive.outlets), dict(archive.feeds)
            try:
                with using(*outlets.values(), *feeds.values()):
                    state = await archive.catalog.log_state()
                    late = state.run_at is None or archive.catalog.clock.now() - state.run_at > certify.NIGHTLY
                    nightly = late or state.error is not None
                    if nightly or await certify.any_due(archive.catalog, feeds):
                        how = archive.config, archive.catalog, archive.spool, outlets, feeds
                        await certify.certify(*how, thorough=nightly)
            except (CatalogDown, SpoolDown, ProofError) as error:
                # In `status` too, and tried again.
                log.warning("certificates.failed", error=str(error))

    async def _watch_over(self) -> None:
        """Say once what is wrong with a source although nothing fails, and when it is over."""
        said: set[tuple[str, str]] = set()
        while True:
            await asyncio.sleep(WATCH)
            try:
                document = await report.status(self.archive.config, self.archive.catalog)
            except CatalogDown as error:
                log.warning("catalog.down", error=str(error))
                continue
            told = {(n, w["kind"]): w["text"] for n, s in document["sources"].items() for w in s["warnings"]}
            self.watch.surveyor.told = document
            for source, kind in sorted(told.keys() - said):
                log.warning("source.warning", source=source, kind=kind, text=told[source, kind])
            for source, kind in sorted(said - told.keys()):
                log.info("source.warning_over", source=source, kind=kind)
            said = set(told)

    async def _keep_database(self) -> None:
        """An embedded PostgreSQL that was killed is started again; a jumping clock is set right."""
        checked = time.monotonic()
        ahead = time.time() - checked
        while True:
            await asyncio.sleep(1)
            before, ahead = ahead, time.time() - time.monotonic()
            if ahead < before - STEP:
                # The scheduler goes by this host's clock: it would wait until that is there once more.
                log.warning("clock.host_set_back", seconds=round(before - ahead))
                for job in self._scheduler.get_jobs():
                    # At once, so that what is to come next is reckoned anew, here and by the watchdog.
                    job.reschedule(trigger(self._rhythms[job.id]))
                    job.modify(next_run_time=datetime.now(UTC))
                checked = float("-inf")
            database = self.archive.database
            if database is not None and not database.alive():
                log.warning("database.restarting")
                with contextlib.suppress(CatalogDown):
                    await database.start()
            if time.monotonic() - checked > 30:
                checked = time.monotonic()
                version = 0
                with contextlib.suppress(CatalogDown):
                    await self.archive.catalog.ping()
                    if await self.archive.catalog.set_right() is not None:
                        self._end_waits()
                    version = await self.archive.catalog.version()
                if version > newest():
                    # A newer version has taken the tables over: what they mean now this one can't know.
                    raise other_version(version)
