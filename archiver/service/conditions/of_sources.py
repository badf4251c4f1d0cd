"""What can be wrong with a recorder, with our account there, and with what came from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

from ...catalog.catalog import Document
from ...common.words import number
from ...errors import WRONG_ZONE
from ...model import Flag, State, utc_text
from ...settings.config import Alerts
from ..facts import SourceView
from .base import Condition, Finding, Level, Of, Severity

HOUR, DAY = 3600.0, 86400.0
#: A row that nobody could read and that was listed within this time is news.
RECENT = HOUR


def _refused(view: SourceView, _: Alerts) -> Iterator[Finding]:
    if view.paused_why is not None and not view.paused_why.startswith(WRONG_ZONE):
        yield Finding(
            what=f"the recorder refuses the account: {view.paused_why}",
            told="our account is refused",
            do=f"mend the account or the options, then `archiver check`; {_tried_again(view)}",
        )


def _wrong_zone(view: SourceView, _: Alerts) -> Iterator[Finding]:
    if view.paused_why is not None and view.paused_why.startswith(WRONG_ZONE):
        yield Finding(
            what=view.paused_why,
            do=f"set timezone to the zone of the recorder's clock, then `archiver check`; {_tried_again(view)}",
        )


def _tried_again(view: SourceView) -> str:
    at = f" at {utc_text(view.paused_until)}" if view.paused_until is not None else ""
    return f"tried again by itself{at}"


def _never(view: SourceView, _: Alerts) -> Iterator[Finding]:
    if view.polled_at is None and not view.paused and not view.asked:
        yield Finding(
            what="it was never polled to the end",
            do=f"its first poll may still run; else `archiver run` (the daemon), or `archiver sync {view.name}` once",
        )


def _stale(view: SourceView, alerts: Alerts) -> Iterator[Finding]:
    if view.missed and view.polled_at is not None and not view.paused:
        yield Finding(
            what=f"it was last polled at {utc_text(view.polled_at)}",
            do="see that the daemon runs (`systemctl status archiver`, `archiver run`), or"
            f" `archiver sync {view.name}`",
        )
    elif view.polled_at is not None and view.overdue > alerts.stale.total_seconds():
        yield Finding(
            what=f"what happened in the last {view.lag / 60:.0f} minutes was not listed yet",
            do=f"see that the recorder answers (`archiver check`); `archiver sync {view.name}` lists it now",
        )


def _breaker(view: SourceView, _: Alerts) -> Iterator[Finding]:
    if view.breaker_why is not None:
        yield Finding(
            what=f"the recorder does not answer: {view.breaker_why}",
            told="the recorder does not answer; it is asked now and then",
            do="see that it runs and base_url is right, then `archiver check`; it is asked again by itself",
        )


#: As sync.poll writes it.
_WINDOW = re.compile(r"\[(\S+), (\S+)\): (.*)", re.DOTALL)


def _listing_fails(view: SourceView, _: Alerts) -> Iterator[Finding]:
    if view.error is None or view.paused or view.asked:
        return
    window = _WINDOW.fullmatch(view.error)
    if window is None:
        what, tries = f"the last poll had trouble: {view.error}", "`archiver check` tries now"
    else:
        start, end, why = window.groups()
        tries = f"`archiver backfill --source {view.name} --from {start} --to {end} --relist` tries now"
        what = f"its calls from {start} to {end} can't be listed: {why}"
    yield Finding(what=what, told="its last poll had trouble", do=f"tried again at each poll; {tries}")


def _look_ups(view: SourceView, _: Alerts) -> Iterator[Finding]:
    count, why = view.lookups
    if count:
        ids = number(count, "call id")
        yield Finding(
            what=f"{ids} can't be looked up: {why}",
            told=f"{ids} can't be looked up",
            do="tried again by itself, each on its own; see the log of the recorder",
        )


_TO_DO = {
    "quiet": "see that the recorder records, and that the account may see all of it; `archiver check` asks it now",
    "shrunk": "mend the account's rights, then `archiver check`; what is listed again comes by itself",
    "still": "see that the daemon runs (`systemctl status archiver`); `archiver sync {}` does it now",
    "short": "`archiver list --source {} --flag short` names the calls; listen to some, and see whether the recorder"
    " itself plays them whole",
    "untold": "see on the page of that recorder's kind in docs/sources what makes it tell call ids",
    "losing": "give the source more concurrency or rate, or have the recorder keep its calls for longer",
}


def _warned(view: SourceView, kind: str, *, named: bool) -> Iterator[Finding]:
    if kind in view.warnings:
        do = _TO_DO[kind].format(view.name)
        yield Finding(kind=kind if named else "", what=view.warnings[kind], do=do)


def _odd(view: SourceView, _: Alerts) -> Iterator[Finding]:
    for kind in ("quiet", "shrunk", "still", "untold"):
        yield from _warned(view, kind, named=True)


def _short(view: SourceView, _: Alerts) -> Iterator[Finding]:
    yield from _warned(view, "short", named=False)


def _losing(view: SourceView, _: Alerts) -> Iterator[Finding]:
    yield from _warned(view, "losing", named=False)


def _failed(view: SourceView, _: Alerts) -> Iterator[Finding]:
    count = view.count(State.FAILED)
    listed = f"`archiver list --source {view.name} --state failed` names the calls"
    do = f"{listed}; `archiver retry --source {view.name}` tries again"
    told = f"{count} media were given up; `archiver retry` tries again"
    reasons = [reason for reason in view.reasons if reason["state"] == State.FAILED]
    if count and not reasons:
        yield Finding(what=f"{number(count, 'medium', 'media')} failed", told=told, do=do)
    for reason in reasons if count else ():
        yield Finding(what=_reason(reason), told=told, do=do)


def _failing(view: SourceView, _: Alerts) -> Iterator[Finding]:
    do = f"tried again by itself; `archiver list --source {view.name} --state pending` names the calls"
    told = f"a recording has been failing for {view.failing / HOUR:.0f} hours"
    long, pending = view.failing > DAY, view.count(State.PENDING)
    reasons = [r for r in view.reasons if r["state"] == State.PENDING]
    for reason in reasons if pending else ():
        yield Finding(what=_reason(reason), told=told, do=do, news=long)
    if long and not (reasons and pending):
        yield Finding(what=told, do=do)


def _reason(reason: Document) -> str:
    return f"{number(reason['count'], 'medium', 'media')} {reason['state']}: {reason['error']}"


def _lag(view: SourceView, alerts: Alerts) -> Iterator[Finding]:
    if view.waiting > alerts.lag.total_seconds():
        yield Finding(
            what=f"a recording has been waiting for {view.waiting / HOUR:.1f} hours",
            do=f"see what it waits for: `archiver list --source {view.name} --state pending`; more concurrency or"
            " transfers, where more is coming than goes",
        )


def _rejected(view: SourceView, _: Alerts) -> Iterator[Finding]:
    if view.rejected:
        rows = number(view.rejected, "row of its listings", "rows of its listings")
        shows = f"`archiver rejected {view.name}` shows"
        recent = view.rejected_ago is not None and view.rejected_ago < RECENT
        told = f"rows that nobody can read were listed; {shows} them"
        yield Finding(what=f"{rows} could not be read", told=told, do=f"{shows} what came", news=recent)


def _gaps(view: SourceView, _: Alerts) -> Iterator[Finding]:
    if view.gaps and view.first_gap is not None:
        first = f"the first from {utc_text(view.first_gap.start)} to {utc_text(view.first_gap.end)}"
        yield Finding(
            what=f"{number(view.gaps, 'gap', 'gaps')} not listed yet, {first}",
            told=f"{view.gaps} gaps in the ledger, {view.gap_seconds / HOUR:.1f} hours, do not get smaller",
            do=f"listed by itself with the next polls; `archiver sync {view.name}` does it now",
            size=view.gap_seconds,
        )


#: What a flag says of a medium.
_FLAGGED = {
    Flag.UNFINISHED: "the end mark is missing, and perhaps the last seconds of the call",
    Flag.UNCHECKED: "nobody could check that it is whole audio",
    Flag.SHORT: "far less audio than the recorder told of",
}


def _flagged(view: SourceView, _: Alerts) -> Iterator[Finding]:
    for flag, words in _FLAGGED.items():
        count, lately = view.flagged.get(flag, (0, 0))
        if count:
            names = f"`archiver list --source {view.name} --flag {flag}` names the calls"
            yield Finding(
                kind=flag,
                what=f"{number(count, 'medium is', 'media are')} flagged {flag}: {words}",
                told=f"{lately} media archived in the last day are flagged {flag}; {names}",
                do=f"{names}; listen to them, and compare them with the recorder's",
                news=lately > 0,
            )


CONDITIONS = (
    Condition(
        name="SourceRefused",
        of=Of.SOURCE,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="the recorder refuses our account; it is left alone for a while",
        source=_refused,
        tried=True,
    ),
    Condition(
        name="WrongTimezone",
        of=Of.SOURCE,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="the recorder's ids prove `timezone` wrong; nothing is listed until it is right",
        source=_wrong_zone,
        tried=True,
    ),
    Condition(
        name="NeverPolled",
        of=Of.SOURCE,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="it was never polled",
        source=_never,
        idle=True,
        after=timedelta(minutes=30),
    ),
    Condition(
        name="SourceStale",
        of=Of.SOURCE,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="polls were left out, or new calls are not seen: 15 minutes past the schedule (`[alerts] stale`)",
        source=_stale,
        idle=True,
    ),
    Condition(
        name="BreakerOpen",
        of=Of.SOURCE,
        level=Level.ERROR,
        severity=Severity.WARNING,
        about="the recorder does not answer",
        source=_breaker,
        after=timedelta(minutes=10),
        tried=True,
    ),
    Condition(
        name="ListingFails",
        of=Of.SOURCE,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="the last poll, or a span of time, could not be listed",
        source=_listing_fails,
        after=timedelta(hours=1),
    ),
    Condition(
        name="LookupsFailing",
        of=Of.SOURCE,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="calls known by their id can't be looked up",
        source=_look_ups,
        after=timedelta(hours=6),
    ),
    Condition(
        name="SourceOdd",
        of=Of.SOURCE,
        level=Level.ERROR,
        severity=Severity.WARNING,
        about="an hour without its usual calls, a list that shrank, a queue that stands still, ids that do not come",
        source=_odd,
    ),
    Condition(
        name="AudioShort",
        of=Of.SOURCE,
        level=Level.ERROR,
        severity=Severity.WARNING,
        about="many recordings hold far less audio than told",
        source=_short,
    ),
    Condition(
        name="ExpiringUnarchived",
        of=Of.SOURCE,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="the recorder will delete recordings before they are archived",
        source=_losing,
    ),
    Condition(
        name="MediaFailed",
        of=Of.SOURCE,
        level=Level.ERROR,
        severity=Severity.WARNING,
        about="recordings were given up",
        source=_failed,
    ),
    Condition(
        name="MediaFailing",
        of=Of.SOURCE,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="recordings failed, and are tried again (alert: for a day)",
        source=_failing,
    ),
    Condition(
        name="ArchiveLag",
        of=Of.SOURCE,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="a recording has been waiting for four hours (`[alerts] lag`)",
        source=_lag,
        after=timedelta(minutes=30),
    ),
    Condition(
        name="RowsRejected",
        of=Of.SOURCE,
        level=Level.ERROR,
        severity=Severity.WARNING,
        about="rows of its listings can't be read (alert: within the last hour)",
        source=_rejected,
    ),
    Condition(
        name="LedgerGaps",
        of=Of.SOURCE,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="spans of time are not listed yet (alert: for six hours, and they get no smaller)",
        source=_gaps,
        after=timedelta(hours=6),
    ),
    Condition(
        name="MediaFlagged",
        of=Of.SOURCE,
        level=Level.NOTE,
        severity=Severity.INFO,
        about="recordings are kept as evidence, with a flag (alert: new ones of the last day)",
        source=_flagged,
    ),
)
