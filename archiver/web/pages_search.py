"""The search page: filters in the address, newest first, the reader's zone named beside each time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from aiohttp import web

from ..model import utc_text
from . import pages, pages_text
from .pages import View
from .pages_desk import Desk, Filters, Found, Reader

#: Filters that stand under "more".
MORE = ("agent", "queue", "source", "direction", "state", "flag", "longer_than", "shorter_than", "order")
FILTERS = ("number", "text", "from", "to", *MORE)


def given(view: View, names: tuple[str, ...]) -> dict[str, str]:
    """The filters of the address that are not empty, as they were typed."""
    return {name: value for name in names if (value := view.request.query.get(name, "").strip())}


def in_utc(view: View, filters: Mapping[str, str]) -> dict[str, str]:
    """The same with times of the reader's zone as UTC. Raises ValueError."""
    told = dict(filters)
    for name in ("from", "to"):
        if (at := pages_text.local_moment(filters.get(name), view.zone)) is not None:
            told[name] = utc_text(at)
    return told


async def search(request: web.Request, desk: Desk, who: Reader, may: Mapping[str, bool]) -> web.Response:
    """The form, and what it finds."""
    view = View(request)
    filters = given(view, FILTERS)
    found, messages, status = Found(rows=[]), [], 200
    try:
        told = Filters(values=in_utc(view, filters), after=request.query.get("after"))
        if filters or told.after:
            await desk.record(request, "search", details=told.values)
        found = await desk.search(who, told)
    except ValueError as error:
        messages, status = [("bad", str(error))], 400
    here = {**filters, "tz": view.zone}
    response = pages.page(
        request,
        "search.html",
        status=status,
        view=view,
        who=who,
        may=may,
        here="search",
        messages=messages,
        f={name: filters.get(name, "") for name in FILTERS},
        zones=pages_text.zones(),
        more_used=any(name in filters for name in MORE),
        sources=[(name, name) for name in desk.sources(who)],
        directions=[(key, view.say(name)) for key, name in pages.DIRECTIONS.items()],
        states=[(key, view.say(name)) for key, name in pages.STATES.items()],
        flags=[(key, view.say(name)) for key, name in pages.FLAGS.items()],
        shortcuts=_shortcuts(view, here),
        understood=view.say(pages_text.N_("%(number)s, in all spellings"), number=found.number) if found.number else "",
        behind=_behind(view, found),
        rows=found.rows if status == 200 else None,
        heading=view.say(pages_text.N_("Calls found")) if filters else view.say(pages_text.N_("The newest calls")),
        next="/" + pages.query(here, after=found.next) if found.next else None,
    )
    if "tz" in request.query and view.zone == request.query["tz"]:
        pages.remember(response, "tz", view.zone, secure=request.secure)
    return response


def _behind(view: View, found: Found) -> str:
    if found.before is not None:
        return view.say(
            pages_text.N_("The search is being filled: calls from before %(when)s may be missing here."),
            when=pages_text.when(utc_text(found.before), view.zone),
        )
    if found.behind is None or found.behind < 5:
        return ""
    return view.say(
        pages_text.N_("The search is %(span)s behind: the newest calls may be missing here."),
        span=pages_text.span(found.behind),
    )


def _shortcuts(view: View, filters: Mapping[str, str]) -> list[tuple[str, str]]:
    """Today, yesterday, this week, the last 30 days: in the reader's zone, with the other filters kept."""
    today = datetime.now(UTC).astimezone(ZoneInfo(view.zone)).replace(hour=0, minute=0, second=0, microsecond=0)
    days = timedelta(days=1)
    spans = (
        (pages_text.N_("Today"), today, today + days),
        (pages_text.N_("Yesterday"), today - days, today),
        (pages_text.N_("This week"), today - today.weekday() * days, today + days),
        (pages_text.N_("The last 30 days"), today - 30 * days, today + days),
    )
    return [
        (
            view.say(name),
            "/" + pages.query(filters, **{"from": f"{start:%Y-%m-%dT%H:%M:%S}", "to": f"{end:%Y-%m-%dT%H:%M:%S}"}),
        )
        for name, start, end in spans
    ]
