"""What pages say and how: the reader's language and time zone, and vendor text that can do no harm.

English is in the code and the templates; a language is a catalog of gettext, ``locale/{code}.po``, read at the start.
"""

from __future__ import annotations

import gettext
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from markupsafe import Markup, escape

from ..model import utc_text

FOLDER = Path(__file__).parent
LANGUAGES = {"en": "English", "de": "Deutsch"}
#: Characters that show nothing, or turn the order of what follows: controls, bidi marks, overrides and isolates.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
#: Longest text of a vendor that a table shows.
_LONGEST = 2000

Say = Callable[[str], str]


def N_(text: str) -> str:  # noqa: N802 – gettext's own name for "translate this later"
    """Marks a text for translation that is said elsewhere; returns it as it is."""
    return text


@lru_cache(maxsize=len(LANGUAGES))
def translations(language: str) -> gettext.NullTranslations:
    """The language's texts; English where it is none of ours."""
    path = FOLDER / "locale" / f"{language}.po"
    if language not in LANGUAGES or not path.is_file():
        return gettext.NullTranslations()
    compiled = io.BytesIO()
    with path.open("rb") as file:
        write_mo(compiled, read_po(file, locale=language))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


def chosen_language(wanted: str | None, accepted: str) -> str:
    """The one that was chosen (a cookie), else the first of a browser's ``Accept-Language`` that there is."""
    if wanted in LANGUAGES:
        return wanted
    ranked = []
    for part in accepted.split(","):
        name, _, weight = part.strip().partition(";q=")
        try:
            ranked.append((-float(weight or 1), name.lower().partition("-")[0]))
        except ValueError:
            continue
    return next((name for _, name in sorted(ranked, key=lambda r: r[0]) if name in LANGUAGES), "en")


@lru_cache(maxsize=1)
def zones() -> tuple[str, ...]:
    """Names of all time zones that people choose from."""
    return tuple(sorted(z for z in _known_zones() if "/" in z and not z.startswith(("Etc/", "posix", "right"))))


@cache
def _known_zones() -> frozenset[str]:
    # Each call of the library's reads hundreds of files.
    return frozenset(available_timezones())


def chosen_zone(*wanted: str | None) -> str:
    """The first of these that is a time zone; UTC where none is."""
    for name in wanted:
        if name == "UTC" or (name and name in _known_zones()):
            return name
    return "UTC"


def clean(text: Any) -> str:
    """Text from outside without characters that hide or turn text around; cut where it is very long."""
    plain = _HARMFUL.sub("", str(text))
    return plain if len(plain) <= _LONGEST else plain[:_LONGEST] + "…"


def vendor(text: Any) -> Markup:
    """Text from outside as HTML: escaped, and isolated, so that it can't turn what stands beside it around."""
    return Markup("<bdi>{}</bdi>").format(clean(text)) if text not in (None, "") else Markup()


def pretty(document: Any) -> str:
    """JSON to be read by people (the template escapes it)."""
    return _HARMFUL.sub("", json.dumps(document, ensure_ascii=False, indent=2, default=str))[:200_000]


def moment(value: Any) -> datetime | None:
    """A time of a JSON document; None where it is none."""
    if isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(value) if value else None
    except (TypeError, ValueError):
        return None


def when(value: Any, zone: str) -> Markup:
    """A time in a zone, with its offset, for an hour that exists twice must be told apart; UTC stands in its title."""
    at = moment(value)
    if at is None:
        return Markup("–")
    local = at.astimezone(ZoneInfo(zone))
    offset = local.strftime("%z")
    text = f"{local:%Y-%m-%d %H:%M:%S} {offset[:3]}:{offset[3:5]}"
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        utc_text(at), at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"), text
    )


def span(seconds: Any) -> str:
    """``1:02:03``, ``2:03``, ``0.4 s``; nothing where it is not known."""
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if seconds is None:
        return ""
    if 0 < seconds < 1:
        return f"{seconds:.1f} s"
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def local_moment(text: str | None, zone: str) -> datetime | None:
    """What a date field holds, in that zone, as UTC; None where it is empty. Raises ValueError."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f'"{clean(text)}" is no time; write it like 2024-05-17T11:45:00Z') from None
    try:
        return (at if at.tzinfo is not None else at.replace(tzinfo=ZoneInfo(zone))).astimezone(UTC)
    except OverflowError:
        raise ValueError(f'"{clean(text)}" is before the year 1 or after the year 9999 in UTC') from None


def escaped(text: Any) -> Markup:
    """Plain text as HTML."""
    return escape(text)
