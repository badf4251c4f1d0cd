"""Reading what a recorder's API tells: values that may be anything, rows of which a bad one spoils no other. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, TypeVar
from urllib.parse import quote

from ...errors import NotReady, Scope, SourceError
from ...model import Listing, Recording, Rejected, holdable

#: What reading a row that is none may raise.
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS = timedelta(milliseconds=1)
_KEPT = 4096
_T = TypeVar("_T")


def listing(rows: Iterable[Any], read: Callable[[Any], Recording | None]) -> Listing:
    """The recordings that ``read`` makes of the rows (None leaves one out), the last telling of each id.

    Rows on which it raises UNREADABLE are among the rejected.
    """
    found: dict[str, Recording] = {}
    unread = []
    for row in rows:
        try:
            one = read(row)
        except UNREADABLE as error:
            unread.append(rejected(row, error))
        else:
            if one is not None:
                found[one.recording_id] = one
    return Listing([*found.values()], unread)


def alone(error: SourceError) -> bool:
    """Did only what was asked for fail, and not the recorder or the account?"""
    return error.scope is Scope.ITEM and error.status not in {429, 503}


async def looked_up(
    call_ids: Iterable[str], ask: Callable[[str], Awaitable[_T]]
) -> tuple[dict[str, _T], list[tuple[str, str]]]:
    """By id what ``ask`` answers (NotReady: nothing), and which ids failed alone, with the reason."""
    found: dict[str, _T] = {}
    failed: list[tuple[str, str]] = []
    for call_id in dict.fromkeys(i for i in call_ids if i.strip() and i not in {".", ".."}):
        try:
            found[call_id] = await ask(call_id)
        except NotReady:
            continue
        except SourceError as error:
            if not alone(error):
                raise
            failed.append((call_id, str(error)))
    return found, failed


def rejected(row: Any, why: str | Exception) -> Rejected:
    """A row that nobody can read, as it came, as far as that is worth keeping."""
    reason = str(why) if isinstance(why, str | ValueError) else f"{type(why).__name__}: {why}"
    return Rejected(raw=json.dumps(row, default=str)[:_KEPT], reason=reason[:200])


def text(value: Any) -> str | None:
    """Text (or a whole number) without spaces around it; None for what is empty or of another kind."""
    if isinstance(value, str):
        return value.strip() or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def integer(value: Any) -> int | None:
    """A whole number, told as a number or as (up to 18) digits."""
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else None


def as_told(value: Any) -> str | None:
    """An id exactly as it is told, spaces at its ends included: a text, or a whole number however that is written.

    None for what is blank, or of another kind: a number with a fraction has lost the zeros at its end.
    """
    if isinstance(value, str):
        return value if value.strip() else None
    number = integer(value)
    return None if number is None else str(number)


def identifier(value: Any, name: str) -> str:
    """:func:`as_told`, where the id stands in paths and in the catalog. Raises ValueError, which names it ``name``."""
    told = as_told(value)
    if told is None or told in {".", ".."} or holdable(told) != told:
        raise ValueError(f"the row has no usable {name}")
    return told


def segment(value: str) -> str:
    """As one segment of a path, or one value of a query, whatever it holds."""
    return quote(value, safe="", errors="replace")


def requoted(raw: str) -> str:
    """A segment of an address that an answer named, as it stands there; only what no address may hold is quoted."""
    return quote(raw, safe="%!$&'()*+,;=:@", errors="replace")


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, where it is an object; else one that holds nothing."""
    return value if isinstance(value, Mapping) else {}


def objects(row: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """A field that lists objects, or is missing. Raises ValueError where it is something else."""
    found = row.get(name) or []
    if not isinstance(found, list) or not all(isinstance(f, Mapping) for f in found):
        raise ValueError(f"{name} is no list of objects")
    return found


def moment(value: Any, zone: tzinfo = UTC) -> datetime | None:
    """``2013-05-17T19:45:32.000+0000`` (or -0800, Z, or epoch milliseconds) as UTC; None where it is none."""
    told = text(value)
    try:
        if told is None or told.isdecimal():
            return EPOCH + int(told) * MS if told else None
        parsed = datetime.fromisoformat(told)
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def labelled(name: str | None, number: str | None) -> str | None:
    """``Joe Dalton (1573)``, or what of it is told."""
    return f"{name} ({number})" if name and number else name or number


def full_name(person: Mapping[str, Any], first: str = "firstName", last: str = "lastName") -> str | None:
    return " ".join(filter(None, (text(person.get(first)), text(person.get(last))))) or None
