"""What Imagicle's rows mean: a list row or a detail as a Recording. Pure.

Fields as in the vendor's pages 536 and 628; ``remoteParty`` and ``pbxInfo`` as in the API of 2025.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from ..model import Direction, Medium, Party, Recording
from .kit.localtime import utc
from .kit.rows import UNREADABLE, as_told, full_name, integer, labelled, text

HashCheck = Literal["strict", "warn", "off"]

_DIRECTIONS = {"1": Direction.INBOUND, "2": Direction.OUTBOUND}
_DURATION = re.compile(
    r"P(?=[\dT])(?:(?P<days>[\d.]+)D)?"
    r"(?:T(?=\d)(?:(?P<hours>[\d.]+)H)?(?:(?P<minutes>[\d.]+)M)?(?:(?P<seconds>[\d.]+)S)?)?",
    re.ASCII,
)


def read(row: Mapping[str, Any], zone: ZoneInfo, hash_check: HashCheck) -> Recording:
    """A list row, or one together with its detail; ``zone`` is that of times without one. Raises UNREADABLE."""
    started, _ = utc(row["startTime"], zone)
    lasted = duration(row.get("duration"))
    direction = _DIRECTIONS.get(str(row.get("direction")), Direction.UNKNOWN)
    local = text(row.get("localPartyNumber"))
    remote = text(row.get("remotePartyNumber")) or text(row.get("remoteParty"))
    # Who called whom is not told where the direction is unknown; both numbers are among the parties all the same.
    caller, callee, role = {
        Direction.INBOUND: (remote, local, "caller"),
        Direction.OUTBOUND: (local, remote, "callee"),
    }.get(direction, (None, None, None))
    owner = row.get("owner") or {"username": row.get("ownerUsername")}
    pbx = row.get("pbxInfo")
    medium = _medium(row, lasted, hash_check)
    return Recording(
        recording_id=medium.recording_id,
        call_id=as_told(row.get("pbxCallId")) or as_told(pbx.get("callId") if isinstance(pbx, Mapping) else pbx),
        started_at=started,
        ended_at=None if lasted is None else started + lasted,
        duration=lasted,
        direction=direction,
        caller=caller,
        callee=callee,
        agent=_label(owner),
        parties=(
            Party(number=local, name=full_name(owner), user=text(owner.get("username")), role="agent"),
            Party(number=remote, role=role),
        ),
        attributes=_attributes(row, owner, medium),
        media=(medium,),
        raw=row,
    )


def _attributes(row: Mapping[str, Any], owner: Mapping[str, Any], medium: Medium) -> dict[str, Any]:
    note, keeper = row.get("note") or {}, row.get("preservingUser") or {}
    told = {
        "referenceNumber": text(row.get("referenceNumber")),
        "group": text(owner.get("group")),
        "department": text(owner.get("department")),
        "note": text(note.get("text")),
        "noteOwner": _user(note.get("owner") or {}),
        "preservingUser": _user(keeper),
        "pbxInfo": row.get("pbxInfo") or None,
        "source_sha256": medium.ref.get("sha256"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _medium(row: Mapping[str, Any], lasted: timedelta | None, hash_check: HashCheck) -> Medium:
    """Size and hash bind with strict; with warn they lie in ``ref``, for the download to be compared with."""
    given = row["id"]
    facts: dict[str, Any] = {}
    if hash_check != "off":
        size, sha256 = integer(row.get("size")), text((row.get("hash") or {}).get("SHA256"))
        facts |= {"size": size} if size is not None and size >= 0 else {}
        facts |= {"sha256": _hex(sha256, hash_check)} if sha256 else {}
    bare = Medium(recording_id=str(UUID(given.strip())), media_id="audio", duration=lasted, ref={"id": given})
    if hash_check == "strict":
        return replace(bare, **facts)
    return replace(bare, ref={"id": given, **facts})


def _hex(given: str, hash_check: HashCheck) -> str:
    """A SHA-256 written in hex or base64, as hex. What is neither raises ValueError, with warn it stays as it is."""
    if re.fullmatch("[0-9a-fA-F]{64}", given.replace("-", "")):
        return given.replace("-", "").lower()
    try:
        digest = base64.b64decode(given.translate(_URLSAFE) + "=" * (-len(given) % 4), validate=True)
    except ValueError:
        digest = b""
    if len(digest) == 32:
        return digest.hex()
    if hash_check == "strict":
        raise ValueError('its SHA256 is neither hex nor base64; hash_check = "warn" takes it as it is')
    return given


_URLSAFE = str.maketrans("-_", "+/")


def duration(value: str | None) -> timedelta | None:
    """ISO 8601 of days and less: ``PT1H2M3.4567891S``. Raises ValueError, TypeError."""
    if value is None:
        return None
    match = _DURATION.fullmatch(value.strip().replace(",", "."))
    if match is None:
        raise ValueError(f"{value[:40]!r} is no ISO 8601 duration")
    return timedelta(**{unit: float(number) for unit, number in match.groupdict("0").items()})


def has_zone(row: Any) -> bool:
    """Does its start say of which zone it is? False for what can't be read."""
    try:
        return datetime.fromisoformat(row["startTime"].strip()).tzinfo is not None
    except UNREADABLE:
        return False


def guid(row: Any) -> str | None:
    """Its id in lower case; the vendor writes both."""
    try:
        return str(UUID(row["id"].strip()))
    except UNREADABLE:
        return None


def _label(user: Mapping[str, Any]) -> str | None:
    name = full_name(user)
    return labelled(name, text(user.get("phoneNumber"))) if name else text(user.get("username"))


def _user(user: Mapping[str, Any]) -> str | None:
    return text(user.get("username")) or _label(user)
