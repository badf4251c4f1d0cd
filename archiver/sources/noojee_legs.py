"""Noojee's rows, one a leg, as recordings: dates without a zone, two spellings of everything. Pure.

Facts: "4.1 Retrieve Meta Data" (dates ``2014-02-13 17:06:52.0``, directions 0 1 2) and "9.4 Retrieve recording list"
(``Tue Sep 14 15:03:30 AEST 2021``, words). A UniqueId begins with the second at which the call's channel was made.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from ..model import Availability, CallEvent, Direction, Medium, Party, Recording, Rejected
from .kit import rows as api
from .kit.localtime import made_at, meanings

#: A leg starts this long before its call, or before the end of the leg before it, at most.
_SLACK = timedelta(minutes=5)
_DIRECTIONS = {
    "0": Direction.INBOUND, "1": Direction.OUTBOUND, "2": Direction.INTERNAL,
    "inbound": Direction.INBOUND, "outbound": Direction.OUTBOUND, "internal": Direction.INTERNAL,
}  # fmt: skip

#: Rows as they came: dicts, where all is well.
Rows = Sequence[Any]


def moment(told: str, zone: ZoneInfo, after: datetime | None) -> datetime:
    """A date of either format in UTC; of two that it may mean, by its letters, else the first not before ``after``.

    The letters are trusted no further: EST is New York as well as Sydney. Raises ValueError.
    """
    parts = told.split()
    letters = parts.pop(4) if len(parts) == 6 else None
    if letters is not None:
        local = datetime.strptime(" ".join(parts), "%a %b %d %H:%M:%S %Y")  # noqa: DTZ007 - of the server's zone
    elif len(told) > 10:
        local = datetime.fromisoformat(told)
    else:
        raise ValueError(told)
    if local.tzinfo is not None:
        return local.astimezone(UTC)
    both = meanings(local, zone)
    meant = sorted([m for m in both if m.astimezone(zone).tzname() == letters] or both)
    return next((m for m in meant if after is None or m >= after - _SLACK), meant[-1])


def text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    return api.text(str(value) if isinstance(value, float) else value)


def leg_id(row: Mapping[str, Any]) -> str:
    """The id of the leg's database record; only where none is told, the leg's number."""
    return api.as_told(row.get("CallRecordId")) or f"leg-{text(row, 'Leg')}"


def merged(whole: Rows, some: Sequence[Mapping[str, Any]]) -> Rows:
    """The first rows, and those of the second whose legs are not among them."""
    have = {leg_id(row) for row in whole if isinstance(row, dict)}
    return [*whole, *(row for row in some if leg_id(row) not in have)]


def by_call(rows: Iterable[Any]) -> tuple[dict[str, list[dict[str, Any]]], list[Rejected]]:
    """The rows by their UniqueId, and those that have none."""
    calls: dict[str, list[dict[str, Any]]] = {}
    rejected = []
    for row in rows:
        try:
            unique_id = api.identifier(row.get("UniqueId"), "UniqueId")
        except api.UNREADABLE as error:
            rejected.append(api.rejected(row, error))
        else:
            calls.setdefault(unique_id, []).append(row)
    return calls, rejected


def begins(recording: Recording) -> bool:
    """Does it hold leg 1, by which it is told to begin?"""
    return bool(recording.media) and recording.media[0].ref["leg"].lstrip("0") == "1"


def quiet(recordings: Sequence[Recording], began: datetime, now: datetime) -> timedelta:
    """For how long nothing has happened in these calls, as far as one can see (none: since they began)."""
    if any(m.availability is Availability.NOT_READY for r in recordings for m in r.media):
        return timedelta()
    return max(timedelta(), now - max((r.ended_at or now for r in recordings), default=began))


@dataclass(frozen=True, slots=True)
class _Leg:
    row: Mapping[str, Any]
    number: str
    start: datetime
    end: datetime | None
    availability: Availability
    duration: timedelta | None

    def __getitem__(self, name: str) -> str | None:
        return text(self.row, name)

    @property
    def id(self) -> str:
        return leg_id(self.row)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the rows of one call."""

    zone: ZoneInfo
    #: Who owns legs that nobody has answered.
    default_user: str
    #: A leg without a duration is taken to run at most so long.
    longest_call: timedelta

    def recording(
        self, unique_id: str, rows: Sequence[Mapping[str, Any]], now: datetime, ended: Collection[str] = ()
    ) -> tuple[Recording | None, list[Rejected]]:
        """The call, and the legs nobody can read; ``ended`` are ids of legs that the server said have ended."""
        rows = sorted(rows, key=lambda row: (_number(row) or 0, leg_id(row)))
        after = made_at(unique_id)
        legs: dict[str, _Leg] = {}
        rejected = []
        for row in rows:
            if _number(row) is None:
                rejected.append(api.rejected(row, "it names no leg"))
                continue
            try:
                leg = self._leg(row, after, now, ended)
            except (ValueError, OverflowError):
                rejected.append(api.rejected(row, f"its date can't be read: {text(row, 'Start')}"))
            else:
                legs.setdefault(leg.id, leg)
                after = leg.end or leg.start
        return (self._call(unique_id, list(legs.values()), rows) if legs else None), rejected

    def _leg(self, row: Mapping[str, Any], after: datetime | None, now: datetime, ended: Collection[str]) -> _Leg:
        start = moment(text(row, "Start") or "", self.zone, after)
        told = text(row, "Duration") or ""
        lasted = timedelta(seconds=float(told)) if re.fullmatch(r"\d{1,8}(\.\d+)?", told, re.ASCII) else None
        callend = text(row, "callend")
        end = start + lasted if lasted is not None else moment(callend, self.zone, start) if callend else None
        # A leg that runs has no duration yet; one that is old has ended, whatever it says.
        number = api.as_told(row.get("Leg")) or ""
        over = bool(lasted) or callend or leg_id(row) in ended or now - start > self.longest_call
        return _Leg(
            row,
            number,
            start,
            end,
            Availability.READY if over else Availability.NOT_READY,
            lasted or None,
        )

    def _call(self, unique_id: str, legs: list[_Leg], rows: Sequence[Mapping[str, Any]]) -> Recording:
        first = legs[0]
        direction = _DIRECTIONS.get((first["Direction"] or "").lower(), Direction.UNKNOWN)
        answered = [leg for leg in legs if leg["Username"] not in {None, self.default_user}]
        told = [leg["Destination"] for leg in [*answered, *legs] if leg["Destination"]]
        callee = told[0] if told else None
        ends = [leg.end for leg in legs if leg.end is not None]
        start, end = min(leg.start for leg in legs), max(ends) if ends else None
        own = "Source" if direction is Direction.OUTBOUND else "Destination"
        agents = dict.fromkeys((leg[own], leg["Username"]) for leg in answered)
        tags = list(dict.fromkeys(leg["Tag"] for leg in legs if leg["Tag"]))
        did = next((leg["DID"] for leg in legs if leg["DID"] and leg["DID"] != "internal"), None)
        return Recording(
            recording_id=unique_id,
            call_id=unique_id,
            started_at=start,
            ended_at=end,
            duration=end - start if end else None,
            direction=direction,
            caller=first["Source"],
            callee=callee,
            agent=answered[0]["Username"] if answered else None,
            parties=(
                *(Party(number=first["Source"], role="caller") for _ in [0] if first["Source"]),
                *(Party(number=number, user=user, role="agent") for number, user in agents),
            ),
            events=tuple(
                CallEvent(at=leg.start, event=f"leg {leg.number}", party=leg["Username"] or leg["Destination"])
                for leg in legs
            ),
            attributes={**({"did": did} if did else {}), **({"tags": tags} if tags else {})},
            media=tuple(
                Medium(
                    recording_id=unique_id,
                    media_id=leg.id,
                    availability=leg.availability,
                    duration=leg.duration,
                    ref={
                        "uniqueId": unique_id,
                        "leg": leg.number,
                        "tag": api.as_told(leg.row.get("Tag")),
                        "callRecordId": api.as_told(leg.row.get("CallRecordId")),
                    },
                )
                for leg in legs
            ),
            raw={"legs": [dict(row) for row in rows]},
        )


def _number(row: Mapping[str, Any]) -> int | None:
    told = text(row, "Leg") or ""
    return int(told) if re.fullmatch(r"\d{1,6}", told, re.ASCII) else None
