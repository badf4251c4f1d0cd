"""The pages of audit, tokens and oneself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from aiohttp import web

from ..common import cells
from . import pages, pages_text
from .pages import View
from .pages_desk import Desk, Filters, Found, Reader
from .pages_search import given, in_utc
from .pages_text import N_

#: Rows that are asked for at once.
MOST = 500
AUDIT_FILTERS = ("who", "action", "from", "to", "recording")


async def audit(request: web.Request, desk: Desk, who: Reader, may: Mapping[str, bool]) -> web.Response:
    """Who did what, newest first: of all for who may see that, else one's own."""
    view = View(request)
    filters = given(view, AUDIT_FILTERS)
    found, messages, status = Found(rows=[]), [], 200
    try:
        told = Filters(values=in_utc(view, filters), after=request.query.get("after"))
        await desk.record(request, "audit.read", details=told.values)
        found = await desk.audit(who, told)
    except ValueError as error:
        messages, status = [("bad", str(error))], 400
    note = (
        N_("Who searched, saw, heard and changed what, newest first.")
        if may.get("audit")
        else N_("What you yourself searched, saw and heard, newest first.")
    )
    return pages.page(
        request,
        "audit.html",
        status=status,
        view=view,
        who=who,
        may=may,
        here="audit",
        messages=messages,
        scope_note=view.say(note),
        f={name: filters.get(name, "") for name in AUDIT_FILTERS},
        actions=list(pages.ACTIONS),
        rows=found.rows,
        csv="/audit.csv" + pages.query({**filters, "tz": view.zone}),
        next="/audit" + pages.query({**filters, "tz": view.zone}, after=found.next) if found.next else None,
    )


async def audit_csv(request: web.Request, desk: Desk, who: Reader, may: Mapping[str, bool]) -> web.StreamResponse:
    """The same for a spreadsheet, all pages of it; times are UTC."""
    view = View(request)
    try:
        told = Filters(values=in_utc(view, given(view, AUDIT_FILTERS)))
        await desk.record(request, "audit.read", details={**told.values, "as": "csv"})
        rows, next_ = await desk.events(who, told, MOST)
    except ValueError as error:
        return pages.problem(request, 400, str(error), who=who, may=may)
    response = web.StreamResponse(headers={"Content-Disposition": 'attachment; filename="audit.csv"'})
    response.content_type, response.charset = "text/csv", "utf-8"
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    await response.write(cells.heading().encode())
    while rows:
        await response.write("".join(map(cells.row, rows)).encode())
        rows, next_ = await desk.events(who, replace(told, after=next_), MOST) if next_ else ([], None)
    await response.write_eof()
    return response


async def tokens(request: web.Request, desk: Desk, who: Reader, may: Mapping[str, bool]) -> web.Response:
    """The tokens there are; they are made on the host."""
    view = View(request)
    told = [{**token, "calls": _scope(view, token)} for token in await desk.tokens()]
    return pages.page(request, "tokens.html", view=view, who=who, may=may, here="tokens", tokens=told)


async def me(request: web.Request, desk: Desk, who: Reader, may: Mapping[str, bool]) -> web.Response:
    """Role, scope, choices, and where one is logged in."""
    view = View(request)
    return pages.page(
        request,
        "me.html",
        view=view,
        who=who,
        may=may,
        here="me",
        scope=_scope(view, desk.scope(who)),
        languages=list(pages_text.LANGUAGES.items()),
        zones=pages_text.zones(),
        sessions=await desk.sessions(who, request),
    )


async def choose(request: web.Request) -> web.Response:
    """``POST /me``: language, zone and colours, in cookies."""
    form = await request.post()
    response = web.HTTPSeeOther("/me")
    language, zone, theme = (str(form.get(name, "")) for name in ("language", "tz", "theme"))
    if language in pages_text.LANGUAGES:
        pages.remember(response, "lang", language, secure=request.secure)
    if zone == pages_text.chosen_zone(zone):
        pages.remember(response, "tz", zone, secure=request.secure)
    if theme in ("light", "dark"):
        pages.remember(response, "theme", theme, secure=request.secure)
    else:
        response.del_cookie("theme", path="/")
    raise response


async def end_session(request: web.Request, desk: Desk, who: Reader) -> web.Response:
    """``POST /me/sessions``: one of one's own log-ins ends."""
    await desk.end_session(who, str((await request.post()).get("end", "")))
    raise web.HTTPSeeOther("/me#sessions")


def _scope(view: View, scope: Mapping[str, object]) -> str:
    parts = {
        "sources": N_("recorders: %(names)s"),
        "queues": N_("queues: %(names)s"),
        "agents": N_("agents: %(names)s"),
    }
    told = [
        view.say(parts[key], names=", ".join(map(str, names)))
        for key, names in scope.items()
        if key in parts and isinstance(names, list | tuple) and names
    ]
    return "; ".join(told) or view.say(N_("all"))
