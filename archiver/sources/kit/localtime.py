"""Times of a place, told without a zone: both moments of a doubled hour, none of a skipped one."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from ...model import Window

_SECOND, _QUARTER = timedelta(seconds=1), timedelta(minutes=15)


def meanings(local: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The moments in UTC that a place's clock may mean by it: one and the same but for doubled and skipped hours."""
    first, second = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return first, second


def utc(value: Any, zone: ZoneInfo, near: datetime | None = None) -> tuple[datetime, bool]:
    """An ISO 8601 time in UTC: in a double hour the moment nearest to ``near``, or, True, a guess (the first).

    Raises ValueError, OverflowError.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError("the row has no time")
    try:
        local = datetime.fromisoformat(value.strip())
    except ValueError:
        raise ValueError(f"the row's time can't be read: {value[:40]!r}") from None
    if local.tzinfo is not None:
        return local.astimezone(UTC), False
    first, second = meanings(local, zone)
    if first == second:
        return first, False
    if near is None or min(abs(first - near), abs(second - near)) > timedelta(hours=12):
        return first, True
    return min(first, second, key=lambda moment: abs(moment - near)), False


def bounds(window: Window, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The span of local time that holds every moment of the window, both folds of a double hour included.

    One second wider at its start ("after" may leave the second itself out), and never within a skipped hour.
    """
    moments = [*(window.start + timedelta(days=n) for n in range(window.length.days + 1)), window.end]
    offsets = [m.astimezone(zone).utcoffset() or timedelta() for m in moments]
    start, end = (m.astimezone(UTC).replace(tzinfo=None) for m in (window.start, window.end))
    first = start.replace(microsecond=0) + min(offsets) - _SECOND
    last = end.replace(microsecond=0) + max(offsets) + _SECOND * bool(end.microsecond)
    return _shown(first, zone, fold=1), _shown(last, zone, fold=0)


def _shown(local: datetime, zone: ZoneInfo, fold: int) -> datetime:
    """A time that the zone's clock does show: a skipped one goes to before (fold 1) or after (fold 0) the gap."""
    return local.replace(tzinfo=zone, fold=fold).astimezone(UTC).astimezone(zone)


def clock_hours(window: Window, zone: ZoneInfo) -> list[tuple[date, int]]:
    """The hours that the zone's clock shows within the window: a skipped one never, one shown twice once."""
    at = window.start.replace(minute=window.start.minute // 15 * 15, second=0, microsecond=0)
    seen: dict[tuple[date, int], None] = {}
    while at < window.end:
        local = at.astimezone(zone)
        seen[local.date(), local.hour] = None
        at += _QUARTER
    return list(seen)


def epoch(unique_id: str) -> int | None:
    """The second at which Asterisk made a unique id: ``[system-]1392271611.238``."""
    match = re.search(r"(?:^|\D)(\d{9,10})\.\d+\Z", unique_id, re.ASCII)
    return int(match[1]) if match else None


def made_at(unique_id: str) -> datetime | None:
    """:func:`epoch` as a moment: the one time in such a row that needs no zone."""
    second = epoch(unique_id)
    return None if second is None else datetime.fromtimestamp(second, UTC)


class ZoneProof:
    """Are the newest calls told for other moments than their ids hold, by what only a wrong zone can be wrong by?"""

    #: Of so many calls, so many at least, and more than half.
    NEWEST, ENOUGH = 20, 3
    #: Where too few are known, more are worth a request so often, in seconds.
    AGAIN = 3600.0

    def __init__(self, late: timedelta) -> None:
        """``late``: how long after its id was made a call may be told to begin."""
        self._late = late
        self._gaps: dict[str, timedelta] = {}
        self._asked = float("-inf")

    def wrong(self, starts: Iterable[tuple[str, datetime]]) -> str | None:
        """By how much, now that these calls (an id, and when they are told to begin) are known too; else None.

        Told once: it is proved anew by what is listed then, for the clock may have been set right.
        """
        for unique_id, start in starts:
            if (made := made_at(unique_id)) is not None:
                self._gaps.pop(unique_id, None)
                self._gaps[unique_id] = start - made
        for old in list(self._gaps)[: -self.NEWEST]:
            del self._gaps[old]
        off = Counter(
            q for gap in self._gaps.values() if timedelta(minutes=-1) < gap - (q := whole_quarters(gap)) < self._late
        )
        most, count = max(off.items(), key=lambda counted: counted[1], default=(timedelta(), 0))
        if not most or count < self.ENOUGH or count * 2 <= len(self._gaps):
            return None
        self._gaps.clear()
        self._asked = float("-inf")
        return f"{'-' if most < timedelta() else '+'}{abs(most)}"

    def wants_more(self) -> bool:
        """Are too few calls known to tell, and was that not said for a while?"""
        now = time.monotonic()
        if len(self._gaps) >= self.ENOUGH or now - self._asked < self.AGAIN:
            return False
        self._asked = now
        return True


def whole_quarters(gap: timedelta) -> timedelta:
    """The gap in whole quarters of an hour: what wrong time zones are wrong by."""
    return round(gap / _QUARTER) * _QUARTER
