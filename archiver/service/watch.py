"""The daemon watched: served by HTTP, told to systemd, to a monitor outside (heartbeat) and to people (alerts)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta

import structlog

from ..common.words import span
from ..model import State
from ..settings.config import Alerts
from ..sync.engine import Engine
from .alerts import Alerter
from .conditions import unready
from .delivery import Undelivered, ping
from .facts import Survey
from .survey import Surveyor
from .wiring import Archive

log = structlog.get_logger()

#: How often systemd is told, in seconds, and how often problems are looked for.
TELL, LOOK = 5.0, 15.0
#: Between two heartbeats at least, in seconds.
HEARTBEATS = 60.0
#: A heartbeat is missing after so many seconds.
MISSING = 3600.0


class Watch:
    """Runs beside the daemon's work, and asks it nothing that could hold it up."""

    def __init__(self, archive: Archive, engine: Engine, notify: Callable[[str], None]) -> None:
        self.archive = archive
        self.engine = engine
        self.surveyor = Surveyor(archive, engine, sent=self._unheard)
        self.alerter = Alerter(archive.config.data_dir / "alerts.json")
        #: Where the HTTP server listens, while it does.
        self.address: Callable[[], tuple[str, int] | None] = lambda: None
        self._notify = notify
        self._round = asyncio.Event()
        self._began = time.monotonic()
        self._heartbeat_at: float | None = None

    # -- for the daemon ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def working(self, name: str) -> Iterator[None]:
        """What is under way must move: the watchdog is not fed while it hangs."""
        self.surveyor.beats[name] = time.monotonic()
        try:
            yield
        finally:
            self.surveyor.beats.pop(name, None)

    def beat(self, name: str, until: timedelta = timedelta()) -> None:
        """It has moved, and will again; ``until`` then it need not."""
        self.surveyor.beats[name] = time.monotonic() + until.total_seconds()

    def rest(self, name: str) -> None:
        """It need not move any more."""
        self.surveyor.beats.pop(name, None)

    def round_done(self) -> None:
        """A source was listed, and all went well."""
        self._round.set()

    async def run(self) -> None:
        """Until cancelled."""
        parts = [self._feed_watchdog, self._tell_status, self._send_heartbeats, self._tell_problems]
        async with asyncio.TaskGroup() as group:
            if self.archive.config.http_listen is not None:
                # Here, for the commands that serve nothing need not wait for its import.
                from .health import Server

                server = Server(self.archive.config.http_listen, self.surveyor, self._sent)
                self.address = lambda: server.address
                parts.append(server.serve)
            for part in parts:
                group.create_task(self._kept(part), name=part.__name__)

    async def _kept(self, part: Callable[[], Coroutine[None, None, None]]) -> None:
        """A defect in the watching is loud, and no reason to stop archiving."""
        while True:
            try:
                await part()
            except Exception:
                log.exception("watch.failed", part=part.__name__)
            await asyncio.sleep(LOOK)

    # -- the parts ---------------------------------------------------------------------------------------------------

    async def _feed_watchdog(self) -> None:
        """By progress: a daemon whose loop, or any part of whose work, hangs is not fed."""
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        every = min(TELL, int(microseconds) / 4e6) if microseconds.isdigit() else TELL
        while True:
            stuck = sorted(self.surveyor.stuck())
            if stuck:
                log.error("daemon.stuck", parts=stuck)
            else:
                self._notify("WATCHDOG=1")
            await asyncio.sleep(every)

    async def _tell_status(self) -> None:
        while True:
            await asyncio.sleep(TELL)
            if "NOTIFY_SOCKET" in os.environ:
                alerts = self.archive.config.alerts
                self._notify(f"STATUS={status_line(await self.surveyor.look(), alerts, self.engine)}")

    async def _send_heartbeats(self) -> None:
        while True:
            await self._round.wait()
            self._round.clear()
            url = self.archive.config.heartbeat_url
            # What was just listed counts.
            self.surveyor.forget()
            if url is None or not fresh(await self.surveyor.look(), self.archive.config.alerts):
                continue
            try:
                await ping(url, self.archive.config.alerts.proxy)
            except Undelivered as error:
                log.warning("heartbeat.failed", error=str(error))
            else:
                log.debug("heartbeat.sent")
                self._heartbeat_at = time.monotonic()
                await asyncio.sleep(HEARTBEATS)

    async def _tell_problems(self) -> None:
        await self.alerter.load()
        while True:
            if self.archive.config.alerts.told:
                await self.alerter.tell(await self.surveyor.look(), self.archive.config.alerts)
            await asyncio.sleep(LOOK)

    def _unheard(self) -> tuple[bool, bool]:
        """Is the heartbeat missing, and did the last news reach nobody?"""
        age = self._sent()["archiver_heartbeat_age_seconds"]
        return age is not None and age > MISSING, self.archive.config.alerts.told and self.alerter.failing

    def _sent(self) -> dict[str, float | None]:
        """By metric what it tells, of what is switched on."""
        config = self.archive.config
        since = self._heartbeat_at if self._heartbeat_at is not None else self._began
        return {
            "archiver_heartbeat_age_seconds": time.monotonic() - since if config.heartbeat_url is not None else None,
            "archiver_alerts_undelivered": float(self.alerter.failing) if config.alerts.told else None,
        }


def fresh(survey: Survey, alerts: Alerts) -> bool:
    """Is what the daemon is for being done: every source listed in time (or so), and every store taking?"""
    late = alerts.stale.total_seconds()
    ill = any(s.overdue > late or s.paused or s.breaker_open for s in survey.sources.values())
    return not ill and not any(unready(survey, alerts))


def status_line(survey: Survey, alerts: Alerts, engine: Engine) -> str:
    """What `systemctl status` shows: how late, how much waits, what is wrong."""
    archived = sum(n for (_, state), n in engine.tally.states.items() if state is State.ARCHIVED)
    waiting = sum(source.count(State.PENDING) for source in survey.sources.values())
    latest = max(survey.sources.values(), key=lambda source: source.lag, default=None)
    parts = [f"{archived} archived since start", f"{waiting} waiting", f"{engine.busy} transfers running"]
    if latest is not None:
        parts.insert(0, f"lag {span(latest.lag)} ({latest.name})")
    because = list(unready(survey, alerts))
    return ", ".join(parts) + (f"; not ready: {', '.join(because)}" if because else "")
