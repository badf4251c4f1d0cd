"""What is wrong, in words, and who was told of it: one message a problem, and one when it is over.

Each problem has a rule of the same name in monitoring/archiver.rules.yml and a section in docs/monitoring.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import structlog

from .config import Alerts
from .delivery import Undelivered, send_mail, send_webhook
from .model import State, utc_text
from .survey import SourceView, StoreView, Survey

log = structlog.get_logger()

#: Between two tries to deliver, at first and at most.
AGAIN, LONGEST = timedelta(seconds=15), timedelta(minutes=10)
HOUR, DAY = 3600.0, 86400.0
#: A row that nobody could read and that was listed within this time is news.
RECENT = HOUR
#: Of a disk, free.
SCARCE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    name: str
    #: The source or store; "" for the daemon as a whole.
    subject: str = ""
    severity: Literal["critical", "warning", "info"] = "warning"
    text: str
    #: How long it must last before anybody is told; None: as the config says.
    after: timedelta | None = None
    #: Where this shrinks, it is being mended, and the wait begins anew.
    level: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.name} {self.subject}".strip()


def problems(survey: Survey, alerts: Alerts) -> Iterator[Problem]:
    """What is wrong now. While the database is away, that is all that can be said of what it holds."""
    for part in survey.stuck:
        yield Problem(name="Stuck", subject=part, severity="critical", text=f"{part} has not moved for too long")
    for store in survey.stores.values():
        if not store.up:
            text = "it does not take what is put"
            yield Problem(name="StoreDown", subject=store.name, severity="critical", text=text)
    for place, disk in {"data_dir": survey.disk, **{name: s.disk for name, s in survey.stores.items()}}.items():
        if disk is not None and disk[0] < SCARCE * disk[1]:
            text = f"its disk is nearly full: {disk[0] / 1e9:.1f} GB free"
            yield Problem(name="DiskFull", subject=place, severity="critical", text=text)
    if survey.database is not None:
        yield Problem(name="DatabaseDown", severity="critical", text=survey.database)
        return
    for source in survey.sources.values():
        yield from _of_source(source, alerts)
        yield from _of_what_came(source)
    for store in survey.stores.values():
        yield from _of_store(store)


def _of_source(view: SourceView, alerts: Alerts) -> Iterator[Problem]:
    name = view.name
    if view.paused:
        yield Problem(name="SourceRefused", subject=name, severity="critical", text="our account is refused")
    if view.overdue > alerts.stale.total_seconds():
        text = f"what happened in the last {view.lag / 60:.0f} minutes was not listed yet"
        yield Problem(name="SourceStale", subject=name, severity="critical", text=text)
    if view.breaker_open:
        text = "many requests in a row failed; it is asked now and then"
        yield Problem(name="BreakerOpen", subject=name, text=text, after=timedelta(minutes=10))
    if view.gaps:
        text = f"{view.gaps} gaps in the ledger, {view.gap_seconds / HOUR:.1f} hours, do not get smaller"
        after, level = timedelta(hours=6), view.gap_seconds
        yield Problem(name="LedgerGaps", subject=name, text=text, after=after, level=level)
    if view.waiting > alerts.lag.total_seconds():
        text = f"a recording has been waiting for {view.waiting / HOUR:.1f} hours"
        yield Problem(name="ArchiveLag", subject=name, text=text, after=timedelta(minutes=30))
    if view.failing > DAY:
        text = f"a recording has been failing for {view.failing / HOUR:.0f} hours"
        yield Problem(name="MediaFailing", subject=name, text=text)
    if failed := view.count(State.FAILED):
        yield Problem(
            name="MediaFailed", subject=name, text=f"{failed} media were given up; `archiver retry` tries again"
        )


def _of_what_came(view: SourceView) -> Iterator[Problem]:
    """What is odd although nothing fails."""
    name = view.name
    for kind, text in view.warnings.items():
        if kind == "losing":
            yield Problem(name="ExpiringUnarchived", subject=name, severity="critical", text=text)
        elif kind == "short":
            yield Problem(name="AudioShort", subject=name, text=text)
        else:
            yield Problem(name="SourceOdd", subject=f"{name} {kind}", text=text)
    for flag, (_, lately) in view.flagged.items():
        if lately:
            what = f"{lately} media archived in the last day are flagged {flag}"
            text = f"{what}; `archiver list --source {name} --flag {flag}` names the calls"
            yield Problem(name="MediaFlagged", subject=f"{name} {flag}", severity="info", text=text)
    if view.rejected_ago is not None and view.rejected_ago < RECENT:
        text = f"rows that nobody can read were listed; `archiver rejected {name}` shows them"
        yield Problem(name="RowsRejected", subject=name, text=text)


def _of_store(view: StoreView) -> Iterator[Problem]:
    name = view.name
    if view.bad:
        text = f"{view.bad} copies are bad or missing; `archiver verify --store {name}` repairs them"
        yield Problem(name="BadCopies", subject=name, severity="critical", text=text)
    if view.verify_overdue > DAY:
        text = f"copies were not read back for {(view.unverified or 0) / DAY:.0f} days; see [verify] budget"
        yield Problem(name="VerificationOverdue", subject=name, text=text)


#: Problems that can be seen without the database.
_LOCAL = {"Stuck", "DiskFull", "StoreDown", "DatabaseDown"}


@dataclass(slots=True, kw_only=True)
class Known:
    """A problem as it was last seen. Times as JSON has them."""

    name: str
    subject: str
    severity: str
    text: str
    level: float
    since: str
    seen: str
    #: When somebody was told of it, if so.
    told: str | None = None


class Alerter:
    """Remembers who was told of what, over restarts, in a file below data_dir."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Known] = {}
        #: Tries in a row that reached nobody, and when the next one is.
        self._tries = 0
        self._due: datetime | None = None

    @property
    def failing(self) -> bool:
        """Did the last news reach nobody?"""
        return self._tries > 0

    async def load(self) -> None:
        """What was told before the last stop; a file that can't be read is as good as none."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            found = json.loads(await asyncio.to_thread(self._path.read_text, "utf-8"))
            self._known = {str(key): Known(**entry) for key, entry in found.items()}

    async def tell(self, survey: Survey, alerts: Alerts) -> None:
        """Send what is new and what is over, if anything; what reached nobody is tried again later."""
        before = self._written()
        now = survey.at
        found = list(problems(survey, alerts))
        new = self._note(found, alerts, now)
        here = {problem.key for problem in found}
        over = {
            key: entry
            for key, entry in self._known.items()
            # Held for a while: what comes and goes is one problem.
            if key not in here
            and now - datetime.fromisoformat(entry.seen) >= alerts.after
            and (survey.database is None or entry.name in _LOCAL)
        }
        news = [_news("firing", entry) for entry in new]
        news += [_news("resolved", entry) for entry in over.values() if entry.told is not None]
        if not news:
            self._tries, self._due = 0, None
        sent = not news or await self._deliver(news, alerts, now)
        if sent:
            for entry in new:
                entry.told = utc_text(now)
        for key, entry in over.items():
            if sent or entry.told is None:
                del self._known[key]
        if self._written() != before:
            await asyncio.to_thread(self._save)

    def _note(self, found: Sequence[Problem], alerts: Alerts, now: datetime) -> list[Known]:
        """What has lasted long enough to be told, and was not."""
        new = []
        for p in found:
            known = self._known.get(p.key)
            since, told = (known.since, known.told) if known is not None else (utc_text(now), None)
            if known is not None and told is None and p.level < known.level:
                since = utc_text(now)
            entry = self._known[p.key] = Known(
                name=p.name,
                subject=p.subject,
                severity=p.severity,
                text=p.text,
                level=p.level,
                since=since,
                seen=utc_text(now),
                told=told,
            )
            lasts = now - datetime.fromisoformat(since)
            if told is None and lasts >= (alerts.after if p.after is None else p.after):
                new.append(entry)
        return new

    async def _deliver(self, news: Sequence[dict[str, str]], alerts: Alerts, now: datetime) -> bool:
        """To every address; True where one of them took it."""
        if self._due is not None and now < self._due:
            return False
        text = "\n".join(each["text"] for each in news)
        ways = []
        if alerts.webhook is not None:
            ways.append(send_webhook(alerts.webhook, {"text": text, "alerts": list(news)}))
        if alerts.email is not None:
            more = f" (and {len(news) - 1} more)" if len(news) > 1 else ""
            ways.append(send_mail(alerts.email, f"{news[0]['text'].splitlines()[0]}{more}", text))
        took = 0
        for answer in await asyncio.gather(*ways, return_exceptions=True):
            if answer is None:
                took += 1
            elif isinstance(answer, Undelivered):
                log.warning("alert.undelivered", error=str(answer))
            else:
                raise answer
        if not took:
            self._due = now + min(LONGEST, AGAIN * 2 ** min(self._tries, 10))
            self._tries += 1
            return False
        self._tries, self._due = 0, None
        for each in news:
            log.info("alert.sent", alert=each["alert"], about=each["subject"], status=each["status"])
        return True

    def _written(self) -> str:
        return json.dumps({key: asdict(entry) for key, entry in self._known.items()})

    def _save(self) -> None:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".alerts.")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self._written())
            Path(name).replace(self._path)


def _news(status: Literal["firing", "resolved"], entry: Known) -> dict[str, str]:
    about = f"{entry.name} {entry.subject}".strip()
    what = f"{entry.severity}: {entry.text}" if status == "firing" else f"over; it began at {entry.since[:19]}Z"
    host = socket.gethostname()
    return {
        "status": status,
        "alert": entry.name,
        "subject": entry.subject,
        "severity": entry.severity,
        "summary": entry.text,
        "since": entry.since,
        "host": host,
        "runbook": f"docs/monitoring.md#{entry.name.lower()}",
        "text": f"[archiver on {host}] {about}: {what}",
    }
