"""XiVO's search rows as recordings. Pure.

The epoch in a file id (``xivocc_gateway-1459433866.13971``, an Asterisk unique id) is the one moment without a zone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from ..model import Availability, Medium, Party, Recording, utc_text
from .kit.localtime import made_at, utc
from .kit.rows import identifier, text


def read(
    row: Mapping[str, Any], zone: ZoneInfo, *, mark: str | None, longest_call: timedelta, call_id: str | None = None
) -> Recording:
    """One row; ``mark`` is the key of the attached data that we write ourselves. Raises UNREADABLE."""
    recording_id = identifier(row.get("id"), "id")
    attached = row.get("attached_data")
    if isinstance(attached, dict) and mark in attached:
        # Our own mark is no news of the call: told on, writing it would look like a change of the call.
        attached = {k: v for k, v in attached.items() if k != mark}
        row = {**row, "attached_data": attached}
    started, guessed = utc(row.get("start"), zone, made_at(recording_id))
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
        duration=lasted,
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
