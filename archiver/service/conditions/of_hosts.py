"""What can be wrong with the daemon, its host, its config and its database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from ..facts import Survey, places
from .base import Condition, Finding, Level, Of, Severity

#: Of a disk, free.
SCARCE = 0.05


def _down(survey: Survey) -> Iterator[Finding]:
    # Who goes on without a daemon (`archiver sync` by a timer) lists in time.
    if survey.died and any(source.missed for source in survey.sources.values()):
        yield Finding(
            what="the daemon of this host was killed, and was not started again",
            do="`systemctl start archiver` (or `archiver run`); `journalctl -u archiver` tells why it ended",
        )


def _stuck(survey: Survey) -> Iterator[Finding]:
    for part in survey.stuck:
        what = f"{part} has not moved for too long"
        yield Finding(of=part, what=what, do="`systemctl restart archiver`, and please report it: it is a defect")


def _disk_full(survey: Survey) -> Iterator[Finding]:
    for place, (free, total), reserve in places(survey):
        if free < max(SCARCE * total, reserve):
            what = f"its disk is nearly full: {free / 1e9:.1f} GB free"
            what += f", and {reserve / 1e9:.1f} GB stay free (reserve): nothing is put there" if free < reserve else ""
            yield Finding(of=place, what=what, do="make room there, or give it a larger disk")


def _config(survey: Survey) -> Iterator[Finding]:
    do = "`archiver check --offline` reads the file, `archiver reload` has the daemon take it"
    for line in survey.stale_config:
        yield Finding(of="config", what=f"the daemon does not run with the config on disk: {line}", do=do)


def _heartbeat(survey: Survey) -> Iterator[Finding]:
    if survey.heartbeat_missing:
        yield Finding(
            what="the heartbeat was not taken for more than an hour",
            do="`heartbeat.failed` in the log says why; without such a line something else is wrong here",
        )


def _undelivered(survey: Survey) -> Iterator[Finding]:
    if survey.undelivered:
        yield Finding(
            what="neither the webhook nor the mail server takes the alerts",
            do="`alert.undelivered` in the log says why; mend [alerts], or what it names",
        )


def _database(survey: Survey) -> Iterator[Finding]:
    if survey.database is not None:
        what, _, do = survey.database.partition(" → ")
        yield Finding(what=what, do=do or "see that PostgreSQL runs, then `archiver check`", told=survey.database)


CONDITIONS = (
    Condition(
        name="Down",
        of=Of.HOST,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="no daemon answers",
        host=_down,
        local=True,
        idle=True,
        outside=True,
    ),
    Condition(
        name="Stuck",
        of=Of.HOST,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="a part of the daemon has not moved for too long",
        host=_stuck,
        local=True,
        unready="stuck: {}",
    ),
    Condition(
        name="DiskFull",
        of=Of.HOST,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="less than 5 %, or than the `reserve`, of the disk of `data_dir` (spool, embedded database) or of a file"
        " store is free",
        host=_disk_full,
        local=True,
    ),
    Condition(
        name="ConfigNotLoaded",
        of=Of.CONFIG,
        level=Level.ERROR,
        severity=Severity.WARNING,
        about="the daemon runs with another config than the one on disk",
        host=_config,
        local=True,
    ),
    Condition(
        name="HeartbeatMissing",
        of=Of.HOST,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="the monitor outside has taken no heartbeat for an hour",
        host=_heartbeat,
        local=True,
    ),
    Condition(
        name="AlertsUndelivered",
        of=Of.HOST,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="nobody takes the alerts",
        host=_undelivered,
        after=timedelta(minutes=15),
        local=True,
    ),
    Condition(
        name="DatabaseDown",
        of=Of.DATABASE,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="it does not answer, takes no write, lacks tables, or its disk is nearly full",
        host=_database,
        local=True,
        unready="database",
        tried=True,
    ),
)
