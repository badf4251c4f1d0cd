"""What can be wrong with a store and with what it holds."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...catalog.catalog import Document
from ...common.words import number
from ...errors import FULL
from ..facts import StoreView
from .base import Condition, Finding, Level, Of, Severity

DAY = 86400.0
#: How a store's error begins where it is one object that it does not take (sync.deliver).
REFUSED = "refused this object"


def _is_full(why: str) -> bool:
    return re.search(rf"\b{FULL}\b", why) is not None


def _down(view: StoreView) -> Iterator[Finding]:
    if view.down_why is not None:
        yield Finding(
            what=f"it does not take what is put: {view.down_why}",
            told="it does not take what is put",
            do="`archiver check` tries the store now; what waits goes on by itself once it is back",
        )


def _full(view: StoreView) -> Iterator[Finding]:
    why = view.waiting.get("error") or ""
    if view.down_why is not None and _is_full(view.down_why):
        why = view.down_why
    if _is_full(why):
        media = f"{number(view.waiting['count'], 'medium waits', 'media wait')} for it" if view.waiting else "no room"
        yield Finding(
            what=f"{media}: {why}",
            told="it is full",
            do="make room there, or raise its quota; what waits goes on by itself",
            details=_named(view.waiting),
        )


def _refuses(view: StoreView) -> Iterator[Finding]:
    if (view.waiting.get("error") or "").startswith(REFUSED):
        do = (
            "it takes the others; mend what it says (its limit of size, names or rights), or give the source another"
            " store; tried again by itself"
        )
        yield _waits(view, do)


def _waiting(view: StoreView) -> Iterator[Finding]:
    why = view.waiting.get("error") or ""
    if view.waiting.get("count") and not why.startswith(REFUSED) and not _is_full(why):
        yield _waits(view, "`archiver check` tries the store now; what waits goes on by itself once it is back")


def _waits(view: StoreView, do: str) -> Finding:
    media = number(view.waiting["count"], "medium waits", "media wait")
    return Finding(
        what=f"{media} for it: {view.waiting['error']}",
        told=f"{media} for it",
        do=do,
        details=_named(view.waiting),
    )


def _named(waiting: Document) -> tuple[str, ...]:
    media = waiting.get("media", ())
    lines = [f"{m['source']} {m['recording_id']} {m['media_id']}: {m['error']}" for m in media]
    more = waiting.get("count", 0) - len(lines)
    return (*lines, *([f"and {more} more"] if more > 0 else []))


def _lacking(view: StoreView) -> Iterator[Finding]:
    if view.lacking:
        what = f"{number(view.lacking, 'medium was', 'media were')} archived before it was a store of their source"
        yield Finding(what=what, do=f"`archiver copy --to {view.name}` brings them there")


def _bad(view: StoreView) -> Iterator[Finding]:
    if view.bad:
        what = f"{number(view.bad, 'copy is', 'copies are')} bad or missing"
        do = f"`archiver verify --store {view.name}` repairs what another store or the source has"
        yield Finding(what=what, do=do)


def _unread(view: StoreView) -> Iterator[Finding]:
    if error := view.verify.get("error"):
        do = f"`archiver check` tries the store, `archiver verify --store {view.name}` goes on"
        yield Finding(what=f"its copies could not be read on: {error}", told="its copies could not be read on", do=do)


def _behind(view: StoreView) -> Iterator[Finding]:
    if behind := view.verify.get("behind"):
        yield Finding(what=behind, do="give [verify] a larger budget or a longer cycle")


def _overdue(view: StoreView) -> Iterator[Finding]:
    if view.verify_overdue:
        verify = f"`archiver verify --store {view.name}` does it now"
        if view.verify.get("overdue"):
            copies = number(view.verify["overdue"], "copy was", "copies were")
            what = f"{copies} not read back for longer than the verify cycle"
        else:
            days = (view.unverified or 0) / DAY
            what = f"copies were not read back for {days:.0f} days, longer than the verify cycle"
        by_itself = "the daemon does it bit by bit; " if view.verified_by_itself else ""
        yield Finding(what=what, do=by_itself + verify, news=view.verify_overdue > DAY)


def _spoilt(view: StoreView) -> Iterator[Finding]:
    if view.verify.get("found"):
        spoilt = number(view.verify["found"], "spoilt copy", "spoilt copies")
        yield Finding(
            what=f"verify found {spoilt}, {view.verify['repaired']} of them repaired",
            do="see what happens to that disk or bucket",
            details=tuple(_told_finding(finding) for finding in view.verify["findings"]),
        )


def _told_finding(f: Document) -> str:
    ended = f"repaired by {f['repaired_by']}" if f["repaired_at"] else "not repaired"
    return f"{f['last_at'][:19]} {f['key']}: {f['problem']}; {ended}"


CONDITIONS = (
    Condition(
        name="BadCopies",
        of=Of.STORE,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="copies are missing or hold other bytes",
        store=_bad,
    ),
    Condition(
        name="VerificationFailing",
        of=Of.STORE,
        level=Level.ERROR,
        severity=Severity.WARNING,
        about="reading back ended with an error",
        store=_unread,
    ),
    Condition(
        name="StoreDown",
        of=Of.STORE,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="it does not take what is put",
        store=_down,
        local=True,
        unready="store {}",
        tried=True,
    ),
    Condition(
        name="StoreFull",
        of=Of.STORE,
        level=Level.ERROR,
        severity=Severity.CRITICAL,
        about="it has no room",
        store=_full,
    ),
    Condition(
        name="ObjectsRefused",
        of=Of.STORE,
        level=Level.ERROR,
        severity=Severity.WARNING,
        about="it refuses some recordings and takes the others",
        store=_refuses,
    ),
    Condition(
        name="StoreWaiting",
        of=Of.STORE,
        level=Level.ERROR,
        severity=Severity.WARNING,
        about="recordings wait for it",
        store=_waiting,
    ),
    Condition(
        name="StoreLacking",
        of=Of.STORE,
        level=Level.WARNING,
        severity=Severity.INFO,
        about="it lacks what was archived before it came",
        store=_lacking,
    ),
    Condition(
        name="VerificationBehind",
        of=Of.STORE,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="the budget of `[verify]` is too small for what it holds",
        store=_behind,
    ),
    Condition(
        name="VerificationOverdue",
        of=Of.STORE,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="copies were not read back within the cycle of `[verify]` (alert: and a day more)",
        store=_overdue,
    ),
    Condition(
        name="CopiesSpoilt",
        of=Of.STORE,
        level=Level.WARNING,
        severity=Severity.WARNING,
        about="copies were found spoilt in the last 30 days, repaired or not",
        store=_spoilt,
    ),
)
