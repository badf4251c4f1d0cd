"""What is wrong, in words, and who was told of it: one message a problem, and one when it is over.

What can be wrong is listed in conditions/.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import structlog

from ..model import utc_text
from ..settings.config import Alerts
from .conditions import CONDITIONS, found
from .delivery import Undelivered, send_mail, send_webhook
from .facts import Survey

log = structlog.get_logger()

#: Between two tries to deliver, at first and at most.
AGAIN, LONGEST = timedelta(seconds=15), timedelta(minutes=10)

#: Conditions that can be seen without the database.
_LOCAL = {condition.name for condition in CONDITIONS if condition.local}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    name: str
    #: The source or store; "" for the daemon as a whole.
    subject: str = ""
    severity: str
    text: str
    #: How long it must last before anybody is told; None: as the config says.
    after: timedelta | None = None
    #: Where this shrinks, it is being mended, and the wait begins anew.
    level: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.name} {self.subject}".strip()


def problems(survey: Survey, alerts: Alerts) -> list[Problem]:
    """What people are to be told of: the conditions that hold now and are news."""
    told: dict[str, Problem] = {}
    for each in found(survey, alerts):
        condition, finding = each.condition, each.finding
        if finding.news:
            problem = Problem(
                name=condition.name,
                subject=each.subject,
                severity=condition.severity.value,
                text=finding.told or finding.what,
                after=condition.after,
                level=finding.size,
            )
            told.setdefault(problem.key, problem)
    return list(told.values())


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
        here = problems(survey, alerts)
        new = self._note(here, alerts, now)
        keys = {problem.key for problem in here}
        over = {
            key: entry
            for key, entry in self._known.items()
            # Held for a while: what comes and goes is one problem.
            if key not in keys
            and now - datetime.fromisoformat(entry.seen) >= alerts.after
            and (not survey.blind or entry.name in _LOCAL)
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

    def _note(self, here: Sequence[Problem], alerts: Alerts, now: datetime) -> list[Known]:
        """What has lasted long enough to be told, and was not."""
        new = []
        for p in here:
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
            ways.append(send_webhook(alerts.webhook, {"text": text, "alerts": list(news)}, alerts.proxy))
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
