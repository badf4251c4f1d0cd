"""What every page shares: templates, the reader's language and zone, error pages, the files beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..common.words import size
from . import pages_text as text
from .pages_text import N_

STATIC = text.FOLDER / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: Cookies of the reader's own choices; nothing secret, so the script may set the zone.
_YEAR = 365 * 24 * 3600

ROLES = {
    "agent": N_("agent"),
    "supervisor": N_("supervisor"),
    "compliance": N_("compliance"),
    "auditor": N_("auditor"),
    "admin": N_("administrator"),
}
STATES = {
    "archived": N_("archived"),
    "pending": N_("pending"),
    "failed": N_("failed"),
    "gone": N_("deleted in the recorder"),
    "empty": N_("no sound"),
}
DIRECTIONS = {
    "inbound": N_("inbound"),
    "outbound": N_("outbound"),
    "internal": N_("internal"),
    "unknown": N_("unknown"),
}
FLAGS = {
    "unfinished": N_("the end is missing"),
    "unchecked": N_("could not be checked"),
    "short": N_("shorter than told"),
}
ACTIONS = {
    "login": N_("logged in"),
    "login.failed": N_("failed to log in"),
    "logout": N_("logged out"),
    "search": N_("searched"),
    "view": N_("saw a call"),
    "listen": N_("listened"),
    "download": N_("downloaded"),
    "access.denied": N_("was refused"),
    "audit.read": N_("read the audit"),
    "token.made": N_("made a token"),
    "token.revoked": N_("revoked a token"),
    "token.used-first": N_("used a token for the first time"),
    "account.made": N_("made an account"),
    "account.changed": N_("changed an account"),
    "account.removed": N_("removed an account"),
    "session.ended": N_("ended a session"),
}


class View:
    """One reader's language, zone and colours, and the functions that templates call with them."""

    def __init__(self, request: web.Request) -> None:
        self.request = request
        self.language = text.chosen_language(request.cookies.get("lang"), request.headers.get("Accept-Language", ""))
        self.zone = text.chosen_zone(request.query.get("tz"), request.cookies.get("tz"))
        self.theme = request.cookies.get("theme") if request.cookies.get("theme") in ("light", "dark") else None

    def say(self, message: str, **values: Any) -> str:
        """A text of ours in the reader's language."""
        said = text.translations(self.language).gettext(message)
        return said % values if values else said

    def named(self, names: Mapping[str, str], key: Any) -> str:
        """The reader's word for a state, a role …; what has none shows as it is."""
        return self.say(names[key]) if key in names else text.clean(key)


@cache
def _environment(language: str) -> Environment:
    made = Environment(
        loader=FileSystemLoader(text.FOLDER / "templates"),
        autoescape=True,
        extensions=["jinja2.ext.i18n"],
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.install_gettext_translations(text.translations(language), newstyle=True)  # type: ignore[attr-defined]
    made.filters["vendor"] = text.vendor
    made.globals |= {"span": text.span, "pretty": text.pretty, "size": size, "call_address": call_address}
    return made


@cache
def version() -> str:
    """Changes when a file beside the pages does: browsers keep those for a year."""
    digest = hashlib.sha256()
    for path in sorted(STATIC.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def call_address(told: Mapping[str, Any]) -> str:
    """Where a call's page lies, by its source and id (of any characters)."""
    return f"/calls/{quote(told['source'], safe='')}/{quote(told['recording_id'], safe='')}"


def query(filters: Mapping[str, str | None], **more: str | None) -> str:
    """``?a=b`` of those that are not empty."""
    pairs = {key: value for key, value in {**filters, **more}.items() if value}
    return "?" + urlencode(pairs) if pairs else ""


def page(
    request: web.Request, template: str, *, status: int = 200, view: View | None = None, **values: Any
) -> web.Response:
    """A page in the reader's language. ``who``, ``may`` and ``here`` belong among the values of a page for somebody."""
    view = view or View(request)
    shown = {
        "who": None,
        "may": {},
        "here": None,
        "messages": [],
        "language": view.language,
        "theme": view.theme,
        "zone": view.zone,
        "version": version(),
        "now": datetime.now(UTC),
        "address": str(request.url.origin()) + request.path if request.url.is_absolute() else request.path,
        "when": lambda value, zone=None: text.when(value, zone or view.zone),
        "role_name": partial(view.named, ROLES),
        "state_name": partial(view.named, STATES),
        "direction_name": partial(view.named, DIRECTIONS),
        "action_name": partial(view.named, ACTIONS),
        **values,
    }
    body = _environment(view.language).get_template(template).render(shown)
    return web.Response(text=body, content_type="text/html", status=status)


def problem(request: web.Request, status: int, what: str = "", **values: Any) -> web.Response:
    """An error as a page. ``what``: one more sentence, in words of ours."""
    view = View(request)
    titles = {
        400: (N_("That can't be read"), N_("Something in the address or the form has another form than is expected.")),
        403: (N_("Not allowed"), N_("This came from another site, or your role does not include it.")),
        404: (N_("Not found"), N_("There is no such page or call, or your account may not see it.")),
        413: (N_("Too much"), N_("That was more than a form may hold.")),
        429: (N_("Too many tries"), N_("Wait a quarter of an hour, then try again.")),
        503: (N_("Not available just now"), N_("Something that is needed can't be reached. Nothing is lost.")),
    }
    title, said = titles.get(status, (N_("That did not work"), N_("The server's log says why.")))
    retry = request.path_qs if status in (500, 503) and request.method == "GET" else None
    return page(
        request, "error.html", status=status, view=view,
        title=view.say(title), text=view.say(said), what=what, retry=retry, **values,
    )  # fmt: skip


async def static(request: web.Request) -> web.StreamResponse:
    """A file beside the pages: the style sheet, the script, the icon."""
    path = STATIC / request.match_info["name"]
    if path.name not in _names() or path.parent != STATIC:
        raise web.HTTPNotFound
    response = web.FileResponse(path, headers={"Content-Type": _TYPES[path.suffix] + "; charset=utf-8"})
    response.headers["Cache-Control"] = f"public, max-age={_YEAR}, immutable"
    return response


@cache
def _names() -> frozenset[str]:
    return frozenset(path.name for path in STATIC.iterdir())


def remember(response: web.StreamResponse, name: str, value: str, *, secure: bool) -> None:
    """A choice of the reader's (language, zone, colours) for a year."""
    response.set_cookie(name, value, max_age=_YEAR, path="/", samesite="Lax", secure=secure)
