"""What Genesys Web Services tells: rows as recordings, and the addresses in them. Pure.

Facts are from the vendor's page of Nov 2013 ("Recording Access").
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote

from ..errors import BadData
from ..model import Availability, CallEvent, Direction, Medium, Party, Recording
from .genesys_addresses import named_id
from .genesys_register import MARK
from .kit.descriptors import identity, is_encrypted
from .kit.rows import as_told, full_name, identifier, labelled, mapping, moment, objects, text

_TYPES = {".mp3": "audio/mpeg", ".wav": "audio/wav", ".ogg": "audio/ogg", ".opus": "audio/ogg"}
_DIRECTIONS = {d.value: d for d in (Direction.INBOUND, Direction.OUTBOUND, Direction.INTERNAL)}
#: What an archive's JSON shows of each medium, beside ``raw``.
KEPT = (
    "callUUID", "mediaId", "startTime", "stopTime", "type", "tenant", "ivrprofile", "parameters",
    "masks", "pkcs7", "certAlias", "partitions", "accessgroups",
)  # fmt: skip


def files(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A recording's media files; raises ValueError where they are none."""
    return objects(row, "mediaFiles")


def rows_of(answer: Mapping[str, Any]) -> list[Any]:
    """The recordings, or their URIs, of a list's answer. Raises BadData where it holds neither."""
    for name in ("recordings", "uris"):
        if isinstance(rows := answer.get(name), list):
            return rows
    raise BadData("the answer holds neither recordings nor uris")


def row_id(row: Any) -> str:
    """A recording's id, or the one in its address; the whole row where it has none."""
    if isinstance(row, str):
        return named_id(row) or row
    return (as_told(row.get("id")) if isinstance(row, Mapping) else None) or json.dumps(row)


def stopped(row: Mapping[str, Any], zone: tzinfo = UTC) -> datetime | None:
    """The last moment at which it or any of its media stops."""
    ends = [moment(each.get("stopTime"), zone) for each in (row, *files(row))]
    return max((at for at in ends if at is not None), default=None)


def storage(file: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The storage descriptor, which OPS admins are told."""
    for name in ("originalMediaDescriptor", "mediaDescriptor"):
        found = file.get(name)
        if isinstance(found, Mapping) and text(found.get("path")):
            return found
    return None


def merged(old: Any, new: Any) -> Any:
    """One recording told twice, by the page's rules; the later telling wins.

    Media are the same where their storage identity is (bucket and path, or path) or, where that is not told, their
    URI; events where time, event and the contact's phone number are.
    """
    try:
        media = {_medium_key(f): f for row in (old, new) for f in files(row)}
        events = {_event_key(e): e for row in (old, new) for e in objects(row, "eventHistory")}
    except (ValueError, TypeError, AttributeError):
        return new
    return {**old, **new, "mediaFiles": list(media.values()), "eventHistory": list(events.values())}


def _medium_key(file: Mapping[str, Any]) -> tuple[Any, ...]:
    if kept := storage(file):
        return identity(kept)
    where = file.get("mediaUri") or file.get("playPath")
    return (where,) if where else (file.get("mediaId"), file.get("callUUID"), file.get("startTime"))


def _event_key(event: Mapping[str, Any]) -> tuple[Any, ...]:
    contact = event.get("contact")
    number = contact.get("phoneNumber") if isinstance(contact, Mapping) else None
    return moment(event.get("occurredAt")) or event.get("occurredAt"), event.get("event"), number


def registered(row: Mapping[str, Any]) -> bool:
    """Did an archiver put this recording there?"""
    return bool(found := files(row)) and all(MARK in mapping(f.get("parameters")) for f in found)


def recording(
    row: Any,
    address: Callable[[str, Mapping[str, Any]], str | None],
    *,
    sizes: Literal["clear", "always", "never"] = "clear",
    zone: tzinfo = UTC,
) -> Recording:
    """A row as a recording. ``address`` says where to fetch a media file. Raises ValueError where it can't be read."""
    if not isinstance(row, Mapping):
        raise ValueError(row if isinstance(row, str) else "the row is no object")  # noqa: TRY004
    recording_id = identifier(row.get("id"), "id")
    begins = [at for f in files(row) if (at := moment(f.get("startTime"), zone))]
    ends = [at for f in files(row) if (at := moment(f.get("stopTime"), zone))]
    # The page: a start is not posted but evaluated as the least one of the media.
    started = moment(row.get("startTime"), zone) or min(begins, default=None)
    ended = moment(row.get("stopTime"), zone) or max(ends, default=None)
    if started is None:
        raise ValueError("neither it nor any of its media has a start time")
    media: dict[str, Medium] = {}
    told: dict[str, dict[str, Any]] = {}
    for file in files(row):
        where = address(recording_id, file)
        media_id = _media_id(file, where, media)
        media[media_id] = _medium(recording_id, media_id, file, where, sizes, zone)
        groups = {"accessgroups": file.get("accessgroups") or file.get("accessgroup")}
        told[media_id] = {k: v for k in KEPT if (v := {**file, **groups}.get(k)) not in (None, "", [], {})}
    contacts = [(e, mapping(e.get("contact"))) for e in objects(row, "eventHistory")]
    parties = tuple(dict.fromkeys(_party(contact) for _, contact in contacts if contact))
    data = {name: value for event, _ in contacts for name, value in mapping(event.get("data")).items()}
    # On the recording itself; a recorder may set it as a parameter of its media instead.
    types = (text(each.get("callType")) for each in (row, *(mapping(f.get("parameters")) for f in files(row))))
    if all(party.role != "agent" for party in parties) and (agent := _agent(files(row))) is not None:
        parties += (agent,)
    region = text(row.get("region"))
    return Recording(
        recording_id=recording_id,
        call_id=next((c for f in files(row) if (c := as_told(f.get("callUUID")))), None),
        started_at=started,
        ended_at=ended,
        duration=ended - started if ended is not None and ended >= started else None,
        direction=next((_DIRECTIONS[t.lower()] for t in types if t and t.lower() in _DIRECTIONS), Direction.UNKNOWN),
        caller=_number(row.get("callerPhoneNumber")),
        callee=_number(row.get("dialedPhoneNumber")),
        agent=next((labelled(p.name or p.user, p.number) for p in parties if p.role == "agent"), None),
        parties=parties,
        events=tuple(sorted(_events(contacts, zone), key=lambda event: event.at)),
        media=tuple(media.values()),
        attributes={**({"region": region} if region else {}), **({"data": data} if data else {}), "media": told},
        raw=row,
    )


def _medium(
    recording_id: str,
    media_id: str,
    file: Mapping[str, Any],
    where: str | None,
    sizes: Literal["clear", "always", "never"],
    zone: tzinfo,
) -> Medium:
    encrypted = is_encrypted(file)
    kept = storage(file)
    sized = sizes == "always" or (sizes == "clear" and not encrypted)
    ending = PurePosixPath((where or "").partition("?")[0]).suffix.lower()
    return Medium(
        recording_id=recording_id,
        media_id=media_id,
        availability=Availability.READY if where or kept else Availability.NOT_READY,
        size=_count(file.get("size")) if sized else None,
        # What a mask paused may be missing from the audio, or silent in it.
        duration=None if file.get("masks") else _length(file, zone),
        content_type=_TYPES.get(ending) or text(file.get("type")),
        opaque=encrypted,
        ref={**({"at": where} if where else {}), **({"storage": kept} if kept else {})},
    )


def _media_id(file: Mapping[str, Any], where: str | None, taken: Iterable[str]) -> str:
    """The name it is played under, without its ending: a uuid. A second one of that name adds its start."""
    name = unquote((where or "").partition("?")[0].rstrip("/").rsplit("/", 1)[-1])
    found = PurePosixPath(name).stem if name.strip(". ") else ""
    media_id = found or as_told(file.get("mediaId")) or as_told(file.get("callUUID")) or "medium"
    if media_id in taken:
        media_id = f"{media_id}@{text(file.get('startTime')) or as_told(file.get('mediaId')) or ''}"
    while media_id in taken:
        media_id += "+"
    return media_id


def _count(value: Any) -> int | None:
    """``"8544"``; None where it is zero or no number."""
    told = text(value)
    return int(told) or None if told and told.isdecimal() and len(told) < 19 else None


def _length(file: Mapping[str, Any], zone: tzinfo) -> timedelta | None:
    """Milliseconds by the page; newer servers tell seconds, most of them as a decimal number ("38.376")."""
    value = file.get("duration")
    told = str(value) if isinstance(value, float) else text(value) or ""
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]+)?", told, re.ASCII) or not float(told):
        return None
    begin, end = (moment(file.get(name), zone) for name in ("startTime", "stopTime"))
    span = end - begin if begin and end and end > begin else timedelta()
    # Whole seconds are told from milliseconds by what lies nearer to the medium's own times.
    in_seconds = "." in told or float(told) * 30 < span / timedelta(milliseconds=1)
    return timedelta(seconds=float(told)) if in_seconds else timedelta(milliseconds=float(told))


def _agent(media: Sequence[Mapping[str, Any]]) -> Party | None:
    """Whom the media's parameters name, where no event does."""
    for told in (mapping(file.get("parameters")) for file in media):
        contact = mapping(told.get("contact"))
        if user := text(told.get("agentId")) or text(contact.get("userName")):
            return Party(number=_number(contact.get("phoneNumber")), name=full_name(contact), user=user, role="agent")
    return None


def _number(value: Any) -> str | None:
    told = text(value)
    return None if told == "UNKNOWN" else told


def _party(contact: Mapping[str, Any]) -> Party:
    kind = (text(contact.get("type")) or "").lower()
    return Party(
        number=_number(contact.get("phoneNumber")),
        name=full_name(contact),
        user=text(contact.get("userName")),
        role="agent" if kind == "user" else kind or None,
    )


def _events(contacts: list[tuple[Mapping[str, Any], Mapping[str, Any]]], zone: tzinfo) -> Iterable[CallEvent]:
    for event, contact in contacts:
        at, what = moment(event.get("occurredAt"), zone), text(event.get("event"))
        if at is not None and what is not None:
            yield CallEvent(at=at, event=what.lower(), party=_number(contact.get("phoneNumber")))
