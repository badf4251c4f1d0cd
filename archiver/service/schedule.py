"""When a source is polled: its ``poll`` option, a duration or a cron expression, as APScheduler's trigger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from ..settings.options import duration

#: A poll that is so much later than its schedule says was not made.
LATE = timedelta(minutes=10)
NEVER = datetime.max.replace(tzinfo=UTC)


def trigger(poll: str) -> BaseTrigger:
    """A duration or a cron expression as APScheduler's trigger."""
    if len(poll.split()) == 5:
        return CronTrigger.from_crontab(poll, timezone="UTC")
    return IntervalTrigger(seconds=duration(poll).total_seconds())


def period(poll: str) -> timedelta:
    """How long a poll may take before newer windows deserve a look again."""
    return timedelta(minutes=5) if len(poll.split()) == 5 else duration(poll)


def next_poll(poll: str, after: datetime) -> datetime:
    """The first moment past ``after`` at which the schedule polls."""
    if len(poll.split()) != 5:
        return after + duration(poll)
    # None where the expression names a day that never comes.
    return trigger(poll).get_next_fire_time(None, after + timedelta(seconds=1)) or NEVER


def late(poll: str, polled_at: datetime, now: datetime) -> bool:
    """Has a poll been left out? One may take as long as the next beat is away."""
    due = next_poll(poll, polled_at)
    return due < NEVER and now - LATE > next_poll(poll, due)
