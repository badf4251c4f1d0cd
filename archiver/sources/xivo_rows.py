"""XiVO's search rows as recordings, and its local times without a zone as UTC. Pure.

The epoch in a file id (``xivocc_gateway-1459433866.13971``, an Asterisk unique id) is the one moment without a zone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from ..model import Availability, Medium, Party, Recording, Window, utc_text

#: What reading a row that is none may raise.
UNREADABLE = (ValueError, OverflowError)

_SECOND, _QUARTER = timedelta(seconds=1), timedelta(minutes=15)


def read(
    row: Mapping[str, Any], zone: ZoneInfo, *, mark: str | None, longest_call: timedelta, call_id: str | None = None
) -> Recording:
    """One row; ``mark`` is the key of the attached data that we write ourselves. Raises UNREADABLE."""
    recording_id = text(row.get("id"))
    if recording_id is None or recording_id in {".", ".."} or not recording_id.isprintable():
        raise ValueError("the row has no usable id")
    attached = row.get("attached_data")
    if isinstance(attached, dict) and mark in attached:
        # Our own mark is no news of the call: told on, writing it would look like a change of the call.
        attached = {k: v for k, v in attached.items() if k != mark}
        row = {**row, "attached_data": attached}
    started, guessed = utc(row.get("start"), zone, epoch(recording_id))
    lasted = length(row.get("duration"))
    ended = started + lasted if lasted is not None else None
    # A row that never got its duration is tried all the same once the call can't be running any more.
    running = lasted is None and datetime.now(UTC) - started < longest_call
    caller, callee, agent = (text(row.get(k)) for k in ("src_num", "dst_num", "agent"))
    name, number = numbered(agent)
    parties = [Party(number=n, role=role) for n, role in ((caller, "caller"), (callee, "callee")) if n]
    attributes = {"status": text(row.get("status")), "start_ambiguous": guessed or None}
    medium = Medium(
        recording_id=recording_id,
        media_id="audio",
        availability=Availability.NOT_READY if running else Availability.READY,
        ref={"ended": utc_text(ended or started)},
    )
    return Recording(
        recording_id=recording_id,
        started_at=started,
        ended_at=ended,
        duration=lasted,
        call_id=call_id,
        caller=caller,
        callee=callee,
        agent=agent,
        queue=text(row.get("queue")),
        parties=(*parties, *([Party(number=number, name=name, role="agent")] if agent else [])),
        attributes={
            **{k: v for k, v in attributes.items() if v is not None},
            **(attached if isinstance(attached, dict) else {}),
        },
        media=(medium,),
        raw=row,
    )


def why_missing(medium: Medium, settle: timedelta) -> str:
    """What a 404 on the audio may mean, so long after the call."""
    ended = datetime.fromisoformat(str(medium.ref.get("ended", "1970-01-01T00:00:00Z")))
    fresh = datetime.now(UTC) - ended < settle
    return "not copied from the gateway yet?" if fresh else "purged by the recorder, or is audio_path wrong?"


def bounds(window: Window, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The span of local time that holds every moment of the window, both folds of a double hour included.

    One second wider at its start ("after" leaves the second itself out), and never within a skipped hour.
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


def utc(value: Any, zone: ZoneInfo, near: datetime | None) -> tuple[datetime, bool]:
    """A local time in UTC: in a double hour the moment nearest to ``near``, or, True, a guess (the first).

    Raises UNREADABLE.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError("the row has no time")
    try:
        local = datetime.fromisoformat(value.strip())
    except ValueError:
        raise ValueError("the row's time can't be read") from None
    if local.tzinfo is not None:
        return local.astimezone(UTC), False
    first, second = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if first == second:
        return first, False
    if near is None or min(abs(first - near), abs(second - near)) > timedelta(hours=12):
        return first, True
    return min(first, second, key=lambda moment: abs(moment - near)), False


def epoch(unique_id: str) -> datetime | None:
    """When Asterisk made a unique id: the number behind the last ``-``, up to the dot."""
    match = re.fullmatch(r"(?:.*-)?(\d{9,10})\.\d+", unique_id, re.DOTALL | re.ASCII)
    return datetime.fromtimestamp(int(match[1]), UTC) if match else None


def zone_error(recordings: Sequence[Recording]) -> str | None:
    """By how much most of (at least three) calls stand away from the epochs of their ids, in quarters of an hour."""
    gaps = [r.started_at - made for r in recordings if (made := epoch(r.recording_id))]
    quarters = Counter(n for g in gaps if abs(g - (n := round(g / _QUARTER)) * _QUARTER) < timedelta(minutes=1))
    number, count = max(quarters.items(), key=lambda quarter: quarter[1], default=(0, 0))
    if not number or count < 3 or count * 2 <= len(gaps):
        return None
    return f"{'-' if number < 0 else '+'}{abs(number) * _QUARTER}"


def text(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return (value.strip() or None) if isinstance(value, str) else None


def numbered(named: str | None) -> tuple[str | None, str | None]:
    """``Joe Dalton (1573)`` as name and number; what is written otherwise is all name."""
    match = re.fullmatch(r"(.*?)\s*\((\w+)\)", named or "", re.DOTALL)
    return (match[1] or None, match[2]) if match else (named, None)


def length(value: Any) -> timedelta | None:
    """``HH:MM:SS``; None while the call runs (""). Raises UNREADABLE."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    match = re.fullmatch(r"\s*(\d{1,5}):(\d\d):(\d\d)\s*", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("the row's duration can't be read")
    return timedelta(hours=int(match[1]), minutes=int(match[2]), seconds=int(match[3]))
