"""The native API below ``/api/v1``: the JSON of `archiver list` and `why`, the archived bytes, the audit.

Refusals are RFC 9457 problems. What is out of scope is not found. A medium's audit event is committed before its first
byte; its SHA-256 is compared before that, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from ..errors import ArchiverError
from ..model import utc_text
from . import pages_text
from .desk import WHO, ArchiveDesk
from .pages_call import _wanted
from .pages_desk import Document, Filters, call_of, not_found
from .playback import NotPlayable, Playback, Unavailable

PREFIX = "/api/v1"
#: Recordings or events of one answer.
PAGE, MOST = 100, 500
_SEARCH = (
    "number", "caller", "callee", "agent", "queue", "source", "direction", "state", "flag", "text", "from", "to",
    "longer_than", "shorter_than", "order", "limit", "after",
)  # fmt: skip
_EVENTS = ("limit", "after")
_AUDIT = ("who", "action", "source", "recording", "from", "to", "limit", "after")
#: An empty text or time is as none; but these are a number or one of some words.
_NEVER_EMPTY = ("limit", "order", "direction", "state", "flag")
_TITLES = {
    400: "this can't be read",
    401: "not authenticated: Authorization: Bearer TOKEN (archiver token add)",
    403: "the role does not include it",
    404: "there is none, or it is out of scope",
    405: "this method is not for this address",
    409: "it can't be played",
    422: "a reason is required: X-Reason",
    429: "too many tries",
    503: "something that is needed can't be reached",
}


class _WhileItIsThere(web.FileResponse):
    """A file that is gone when the handler has returned: aiohttp prepares each answer once more then."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None if self.prepared else await super().prepare(request)


def problem(status: int, detail: str = "", allow: str | None = None) -> web.Response:
    """A refusal, as RFC 9457 has it. ``allow``: the methods that there are."""
    told: Document = {"type": "about:blank", "title": _TITLES.get(status, "that did not work"), "status": status}
    if detail:
        told["detail"] = detail
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Allow": allow} if allow else None
    return web.json_response(told, status=status, content_type="application/problem+json", headers=headers)


class Api:
    """Its handlers."""

    def __init__(self, desk: ArchiveDesk, playback: Playback) -> None:
        self.desk = desk
        self.playback = playback

    async def recordings(self, request: web.Request) -> web.Response:
        """``GET /recordings``: newest first, or ``order=oldest``; the next page's address is ``next``."""
        given, limit = _given(request, _SEARCH)
        after = given.pop("after", None)
        await self.desk.record(request, "search", details=given)
        found = await self.desk.search(request[WHO], Filters(values=given, after=after), limit)
        behind = {"behind": found.behind or 0.0, "before": utc_text(found.before) if found.before else None}
        return _page(request, "recordings", list(found.rows), found.next, {"search": behind})

    async def recording(self, request: web.Request) -> web.Response:
        """``GET /recordings/{source}/{recording_id}``; its ETag is made of all that it tells."""
        document = await call_of(self.desk, request, request[WHO])
        await self._record(request, "view", document)
        body = json.dumps(document).encode()
        # The revision alone does not change when a copy is read back.
        tag = hashlib.sha256(body).hexdigest()[:32]
        headers = {"ETag": f'"{tag}"'}
        if {known.value for known in request.if_none_match or ()} & {tag, "*"}:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type="application/json", charset="utf-8", headers=headers)

    async def events(self, request: web.Request) -> web.Response:
        """``GET …/events``: what `why` tells, and who saw and heard it."""
        given, limit = _given(request, _EVENTS)
        document = await call_of(self.desk, request, request[WHO])
        await self._record(request, "view", document, details={"what": "events"})
        call = document["source"], document["recording_id"]
        story = await self.desk.story(request[WHO], *call)
        if story is None:
            # Erased since.
            raise await not_found(self.desk, request)
        rows, next_ = await self.desk.heard_by(request[WHO], *call, after=given.get("after"), limit=limit)
        return _page(request, "audit", rows, next_, story)

    async def media(self, request: web.Request) -> web.StreamResponse:
        """``GET …/media/{media_id}``: the archived bytes, or ``?as=wav``: what every browser plays."""
        who = request[WHO]
        document = await call_of(self.desk, request, request[WHO])
        media_id = request.match_info["media_id"]
        medium = next((m for m in document["media"] if m["media_id"] == media_id and m["state"] == "archived"), None)
        if medium is None:
            raise await not_found(self.desk, request)
        shape = request.query.get("as")
        if shape not in (None, "wav"):
            raise ValueError('"as" knows wav; without it the archived bytes come')
        if shape is None and not self.desk.may(who, "download"):
            await self._record(request, "access.denied", document, details={"path": request.path}, outcome="denied")
            raise web.HTTPForbidden
        reason = pages_text.clean(request.headers.get("X-Reason", "")).strip()[:500]
        if self.desk.reason(who) == "required" and not reason:
            return problem(422)
        action = "listen" if shape else "download"
        await self._record(request, action, document, reason=reason, details={"media_id": media_id})
        wanted, reads = _wanted(medium), self.desk.reads(medium["copies"])
        try:
            if shape is None:
                async with self.playback.original(wanted, reads) as body:
                    if body.path is None:
                        return web.Response(body=body.read(), content_type="application/octet-stream")
                    kind = medium.get("content_type") or "application/octet-stream"
                    response = _WhileItIsThere(body.path, headers={"Content-Type": kind})
                    await response.prepare(request)
                    return response
            clear = self.desk.clear(document, media_id)
            if clear is not None:
                playable = await self.playback.private(wanted, reads, clear)
                try:
                    response = _WhileItIsThere(playable.path, headers={"Content-Type": playable.content_type})
                    await response.prepare(request)
                    return response
                finally:
                    if playable.handle is not None:
                        playable.handle.close()
            playable = await self.playback.playable(wanted, reads)
        except NotPlayable as error:
            return problem(409, str(error))
        except Unavailable as error:
            return problem(503, str(error))
        return web.FileResponse(playable.path, headers={"Content-Type": playable.content_type})

    async def audit(self, request: web.Request) -> web.Response:
        """``GET /audit``: of all for who may see that, else one's own."""
        given, limit = _given(request, _AUDIT)
        after = given.pop("after", None)
        await self.desk.record(request, "audit.read", details=given)
        rows, next_ = await self.desk.events(request[WHO], Filters(values=given, after=after), limit)
        return _page(request, "events", rows, next_)

    async def openapi(self, _: web.Request) -> web.Response:
        """``GET /openapi.json``."""
        return web.json_response(description())

    async def _record(
        self,
        request: web.Request,
        action: str,
        document: Document,
        *,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        outcome: str = "ok",
    ) -> None:
        call = {"source": document["source"], "recording_id": document["recording_id"]}
        await self.desk.record(request, action, **call, reason=reason or None, details=details, outcome=outcome)


def refused(error: Exception) -> web.Response:
    """What a handler raised, as a problem."""
    if isinstance(error, web.HTTPException):
        return problem(error.status, allow=error.headers.get("Allow"))
    if isinstance(error, ValueError):
        return problem(400, str(error))
    return problem(503 if isinstance(error, ArchiverError) else 500)


def _given(request: web.Request, known: tuple[str, ...]) -> tuple[dict[str, str], int]:
    """The parameters that are not empty, and the limit. Raises ValueError."""
    for name in request.query:
        if name not in known:
            raise ValueError(f'there is no parameter "{name}"; there are {", ".join(known)}')
        if name in _NEVER_EMPTY and not request.query[name]:
            raise ValueError(f"{name} is empty")
    given = {name: request.query[name] for name in known if request.query.get(name)}
    told = given.pop("limit", str(PAGE))
    if not told.isascii() or not told.isdigit() or not 1 <= int(told[:9]) <= MOST:
        raise ValueError(f"limit is a number from 1 to {MOST}")
    if given.get("order") not in (None, "newest", "oldest"):
        raise ValueError("order is newest or oldest")
    for name in ("from", "to"):
        if (at := pages_text.local_moment(given.get(name), "UTC")) is not None:
            given[name] = at.isoformat()
    return given, int(told)


def _page(
    request: web.Request, key: str, rows: list[Document], next_: str | None, more: Mapping[str, Any] | None = None
) -> web.Response:
    address, headers = None, {}
    if next_ is not None:
        address = str(request.rel_url.update_query({"after": next_}))
        headers["Link"] = f'<{address}>; rel="next"'
    return web.json_response({**(more or {}), key: rows, "next": address}, headers=headers)


@cache
def description() -> Document:
    """The API as OpenAPI 3.1."""
    text = (pages_text.FOLDER / "openapi.json").read_text("utf-8")
    told: Document = json.loads(text)
    return told
