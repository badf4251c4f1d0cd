"""Reading Chronicall's rows: one row, one recording with one medium.

v1 tells keys, times, size and status; v2 (Xima CCaaS) adds the call, its parties, queue and tag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..model import Availability, Direction, Medium, Party, Recording
from .kit.rows import EPOCH, MS, as_told, identifier, integer, labelled, text

_PARTIES = {"caller": "callingParty", "callee": "receivingParty", "agent": "agent"}
_DIRECTIONS = {direction.value: direction for direction in Direction}


def recording(row: Any, *, call_id: str | None = None, sized: bool = True) -> Recording:
    """What a row tells.

    ``call_id`` stands in where the row names no call; ``sized``: the row's size is that of the bytes that will come.
    Raises rows.UNREADABLE where a row tells neither which recording it is nor when that began.
    """
    key = identifier(row.get("recordingKey") if isinstance(row, dict) else None, "recordingKey")
    started_at = EPOCH + _start(row, key) * MS
    length, size = integer(row.get("duration")), integer(row.get("size"))
    duration = length * MS if length is not None and 0 <= length < 1 << 40 else None
    availability, urgent = _availability(row.get("status"))
    medium = Medium(
        recording_id=key,
        media_id=key,
        availability=availability,
        size=size if sized and availability is Availability.READY and size and size > 0 else None,
        duration=duration,
        urgent=urgent,
    )
    people = {role: party for role, name in _PARTIES.items() if name in row and (party := _party(row[name], role))}
    return Recording(
        recording_id=key,
        started_at=started_at,
        media=(medium,),
        ended_at=started_at + duration if duration is not None else None,
        duration=duration,
        call_id=as_told(row.get("callKey")) or call_id,
        direction=_direction(row.get("callDirection")),
        caller=_address(people.get("caller")),
        callee=_address(people.get("callee")),
        agent=labelled(agent.name, agent.number) if (agent := people.get("agent")) else None,
        queue=text(row.get("skill")),
        parties=tuple(people.values()),
        attributes=_attributes(row),
        raw=row,
    )


def _start(row: Mapping[str, Any], key: str) -> int:
    """Milliseconds since 1970: startTime, else the tail of the key."""
    start = integer(row.get("startTime"))
    if start is not None:
        return start
    tail = re.search(r"-([0-9]{13})$", key)
    if tail is None:
        raise ValueError("neither startTime nor recordingKey tells when it began")
    return int(tail[1])


def _availability(status: Any) -> tuple[Availability, bool]:
    """A status, and whether it warns of deletion (the vendor's glossary: guide.ximasoftware.com/docs/authentication).

    A status that nobody knows may be PENDING's new name.
    """
    said = (text(status) or "").upper()
    if said == "SAVED":
        return Availability.READY, False
    if said.startswith("PENDING_DELETE_"):
        return Availability.READY, True
    return (Availability.DELETED if said.startswith("DELETED_") else Availability.NOT_READY), False


def _direction(told: Any) -> Direction:
    return _DIRECTIONS.get((text(told) or "").lower(), Direction.UNKNOWN)


def _party(told: Any, role: str) -> Party | None:
    """``18885553794``, ``Spencer Porter(253)`` or a name alone."""
    said = text(told)
    if said is None:
        return None
    parts = re.fullmatch(r"(.*?)\s*\(([+*#0-9]+)\)", said)
    if parts:
        return Party(number=parts[2], name=parts[1] or None, role=role)
    if re.fullmatch(r"[+*#0-9]+", said):
        return Party(number=said, role=role)
    return Party(name=said, role=role)


def _address(party: Party | None) -> str | None:
    return (party.number or party.name) if party else None


def _attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("tagData", "tenantName") if row.get(name)}
