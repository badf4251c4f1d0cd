"""One call's page, and hearing it: the reason, the audit event, then a media address for this log-in alone.

A grant is what a listen made possible: these media, for this session, for a quarter of an hour and twice the call's
length. Grants live in memory: after a restart one asks again, and is written down again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from aiohttp import web

from ..errors import StoreError
from . import pages, pages_text, waveform
from .pages import View
from .pages_desk import Desk, Document, Reader, call_of, not_found
from .pages_text import N_
from .playback import NotPlayable, Playable, Playback, Unavailable, Wanted

#: Seconds that a grant is good for, beside twice the call's length; and how many there may be.
GOOD_FOR, MOST = 900.0, 10_000
#: Seconds that a page waits for audio to be made ready.
PATIENCE = 20.0
_EXTENSIONS = {"audio/wav": "wav", "audio/mpeg": "mp3"}


@dataclass(slots=True, kw_only=True)
class Grant:
    """What one log-in may hear."""

    token: str
    session: str
    source: str
    recording_id: str
    until: float
    #: By SHA-256 of the archived bytes: what they are, how to read them, and what came of it where nothing is kept.
    media: dict[str, tuple[Document, Document]] = field(default_factory=dict)
    private: dict[str, Playable] = field(default_factory=dict)

    def close(self) -> None:
        """Give up what has no name on disk."""
        for playable in self.private.values():
            if playable.handle is not None:
                playable.handle.close()
        self.private.clear()


class Grants:
    """All that are good now."""

    def __init__(self) -> None:
        self._grants: dict[str, Grant] = {}

    def give(self, session: str, document: Document) -> Grant:
        """A new one for this call."""
        self._expire()
        if len(self._grants) >= MOST:
            self._grants.pop(next(iter(self._grants))).close()
        length = sum(float(m["duration"] or 0) for m in document["media"]) or float(document["duration"] or 0)
        grant = Grant(
            token=secrets.token_urlsafe(24),
            session=session,
            source=document["source"],
            recording_id=document["recording_id"],
            until=time.monotonic() + GOOD_FOR + 2 * length,
            media={m["sha256"]: (document, m) for m in document["media"] if m["state"] == "archived" and m["copies"]},
        )
        self._grants[grant.token] = grant
        return grant

    def of_call(self, session: str, source: str, recording_id: str) -> Grant | None:
        """The newest of this log-in for this call."""
        self._expire()
        for grant in reversed(self._grants.values()):
            if (grant.session, grant.source, grant.recording_id) == (session, source, recording_id):
                return grant
        return None

    def get(self, session: str, token: str) -> Grant | None:
        """By the token in a media address; another log-in's is none."""
        self._expire()
        grant = self._grants.get(token)
        return grant if grant is not None and secrets.compare_digest(grant.session, session) else None

    def close(self) -> None:
        """All of them."""
        for grant in self._grants.values():
            grant.close()
        self._grants.clear()

    def _expire(self) -> None:
        now = time.monotonic()
        for token in [token for token, grant in self._grants.items() if grant.until < now]:
            self._grants.pop(token).close()


class Calls:
    """The pages of calls."""

    def __init__(self, desk: Desk, playback: Playback) -> None:
        self.desk = desk
        self.playback = playback
        self.grants = Grants()

    async def show(self, request: web.Request, who: Reader, may: Mapping[str, bool]) -> web.Response:
        """``GET /calls/{source}/{recording_id}``."""
        document = await call_of(self.desk, request, who)
        await self._record(request, "view", document)
        return await self._page(request, who, may, document)

    async def listen(self, request: web.Request, who: Reader, may: Mapping[str, bool]) -> web.Response:
        """``POST …/listen``: written down first; then the page plays it."""
        document = await call_of(self.desk, request, who)
        reason, case = await _reason(request)
        if self.desk.reason(who) == "required" and not reason:
            return await self._no_reason(request, who, may, document, case)
        await self._record(request, "listen", document, reason=reason, case=case)
        self.grants.give(self.desk.session(request), document)
        raise web.HTTPSeeOther(pages.call_address(document) + "#sound")

    async def download(self, request: web.Request, who: Reader, may: Mapping[str, bool]) -> web.StreamResponse:
        """``POST …/download``: the archived bytes of one medium, as the recorder made them."""
        document = await call_of(self.desk, request, who)
        reason, case = await _reason(request)
        media_id = (await request.post()).get("media_id")
        medium = next((m for m in document["media"] if m["media_id"] == media_id and m["state"] == "archived"), None)
        if medium is None:
            raise await not_found(self.desk, request)
        if self.desk.reason(who) == "required" and not reason:
            return await self._no_reason(request, who, may, document, case)
        await self._record(request, "download", document, reason=reason, case=case, medium=medium)
        wanted, copies = _wanted(medium), self.desk.reads(medium["copies"])
        try:
            async with self.playback.original(wanted, copies) as body:
                response = web.StreamResponse(headers={"Content-Disposition": _attachment(document, wanted)})
                response.content_type = "application/octet-stream"
                response.content_length = body.length
                await response.prepare(request)
                chunks = body.chunks()
                while chunk := await asyncio.to_thread(next, chunks, b""):
                    await response.write(chunk)
                await response.write_eof()
                return response
        except Unavailable as error:
            return pages.problem(request, 503, str(error), who=who, may=may)

    async def media(self, request: web.Request) -> web.StreamResponse:
        """``GET /media/{grant}/{sha256}.{wav|mp3|svg}``: for who was granted it alone, Range and HEAD included."""
        sha256, _, ext = request.match_info["name"].partition(".")
        grant = self.grants.get(self.desk.session(request), request.match_info["grant"])
        if grant is None or sha256 not in grant.media:
            raise web.HTTPNotFound
        try:
            playable = await self._playable(grant, sha256)
        except (NotPlayable, Unavailable) as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error
        if ext == "svg":
            drawn = await asyncio.to_thread(waveform.svg, playable.peaks)
            return web.Response(text=drawn, content_type="image/svg+xml")
        if ext != _EXTENSIONS[playable.content_type]:
            raise web.HTTPNotFound
        # "audio/vnd.wave", as some call it, is silence in Firefox.
        return web.FileResponse(playable.path, headers={"Content-Type": playable.content_type})

    async def _record(
        self,
        request: web.Request,
        action: str,
        document: Document,
        *,
        reason: str = "",
        case: str = "",
        medium: Document | None = None,
    ) -> None:
        await self.desk.record(
            request,
            action,
            source=document["source"],
            recording_id=document["recording_id"],
            reason=reason or None,
            case=case or None,
            details={"media_id": medium["media_id"]} if medium is not None else None,
        )

    async def _no_reason(
        self, request: web.Request, who: Reader, may: Mapping[str, bool], document: Document, case: str
    ) -> web.Response:
        view = View(request)
        said = view.say(N_("Your role needs a reason: say why, then you can hear it."))
        return await self._page(request, who, may, document, messages=[("bad", said)], case=case, status=422)

    async def _page(
        self,
        request: web.Request,
        who: Reader,
        may: Mapping[str, bool],
        document: Document,
        *,
        messages: list[tuple[str, str]] | None = None,
        case: str = "",
        status: int = 200,
    ) -> web.Response:
        view = View(request)
        source, recording_id = document["source"], document["recording_id"]
        grant = self.grants.of_call(self.desk.session(request), source, recording_id)
        shown, heard = await asyncio.gather(
            asyncio.gather(*(self._medium(view, document, medium, grant) for medium in document["media"])),
            self.desk.heard(who, source, recording_id),
        )
        archived = [m["media_id"] for m in document["media"] if m["state"] == "archived"]
        return pages.page(
            request,
            "call.html",
            status=status,
            view=view,
            who=who,
            may=may,
            here="call",
            messages=messages or [],
            r=document,
            recorder_zone=self.desk.zone(source),
            media=shown,
            playing=any(m["play"] for m in shown),
            ask=bool(archived) and may.get("hear") and grant is None,
            downloads=archived if may.get("download") else [],
            reason=self.desk.reason(who),
            given={"reason": "", "case": case},
            events=_events(document),
            heard=heard,
        )

    async def _medium(self, view: View, document: Document, medium: Document, grant: Grant | None) -> dict[str, Any]:
        """A medium as the page shows it: its player where it may be heard, else why there is none."""
        play, why = None, _why_silent(view, medium)
        if not why and grant is not None:
            try:
                async with asyncio.timeout(PATIENCE):
                    playable = await self._playable(grant, medium["sha256"])
            except TimeoutError:
                why = view.say(N_("It is being made ready for hearing; load this page again in a moment."))
            except NotPlayable as error:
                why = view.say(N_("It can't be heard here: %(why)s. The archived bytes can be downloaded."), why=error)
            except (Unavailable, StoreError) as error:
                why = view.say(N_("It can't be had just now: %(why)s. Nothing is lost; try again later."), why=error)
            else:
                play = {
                    "address": f"/media/{grant.token}/{medium['sha256']}",
                    "ext": _EXTENSIONS[playable.content_type],
                    "duration": round(playable.duration, 3),
                    "silences": playable.silences,
                    "channels": playable.channels,
                    "missing": playable.missing,
                    "as_is": playable.as_is,
                }
        length = play["duration"] if play else 0
        return {
            "media_id": medium["media_id"],
            "content_type": medium.get("content_type"),
            "coding": medium.get("coding"),
            "duration": medium.get("duration"),
            "size": medium.get("size"),
            "sha256": medium.get("sha256"),
            "copies": medium.get("copies") or [],
            "flags": [
                view.say(N_("Kept as evidence: %(flag)s."), flag=view.named(pages.FLAGS, flag))
                for flag in medium.get("flags") or []
            ],
            "play": play,
            "why": why,
            "marks": [e["offset"] for e in _events(document) if e["offset"] is not None and 0 < e["offset"] < length],
        }

    async def _playable(self, grant: Grant, sha256: str) -> Playable:
        """Raises NotPlayable and Unavailable."""
        if sha256 in grant.private:
            return grant.private[sha256]
        document, medium = grant.media[sha256]
        copies = self.desk.reads(medium["copies"])
        clear = self.desk.clear(document, medium["media_id"])
        if clear is None:
            return await self.playback.playable(_wanted(medium), copies)
        playable = await self.playback.private(_wanted(medium), copies, clear)
        if sha256 in grant.private or grant.until < time.monotonic():
            if playable.handle is not None:
                playable.handle.close()
            return await self._playable(grant, sha256) if sha256 in grant.private else playable
        grant.private[sha256] = playable
        return playable


def _wanted(medium: Document) -> Wanted:
    newest = max(medium["copies"], key=lambda c: c["archived_at"])
    return Wanted(
        sha256=medium["sha256"],
        ext=newest["key"].rpartition("/")[2].rpartition(".")[2],
        content_type=medium.get("content_type"),
    )


def _attachment(document: Document, wanted: Wanted) -> str:
    """Named by when the call began and the bytes' hash: nothing of the vendor's text comes into a file's name."""
    at = pages_text.moment(document["started_at"])
    name = f"{at:%Y%m%dT%H%M%SZ}-{wanted.sha256[:12]}.{quote(wanted.ext, safe='')}"
    return f'attachment; filename="{name}"'


async def _reason(request: web.Request) -> tuple[str, str]:
    """Reason and case number of the form, without what can't be seen."""
    form = await request.post()
    reason, case = (pages_text.clean(form.get(name, "")).strip() for name in ("reason", "case"))
    return reason[:500], case[:100]


def _events(document: Document) -> list[dict[str, Any]]:
    """What happened in the call, each with its second since the beginning."""
    began = pages_text.moment(document["started_at"])
    events = []
    for event in document.get("events") or []:
        at = pages_text.moment(event.get("at"))
        offset = round((at - began).total_seconds(), 3) if at is not None and began is not None else None
        events.append({**event, "offset": offset if offset is not None and 0 <= offset < 86400 else None})
    return events


def _why_silent(view: View, medium: Document) -> str:
    """Why there is nothing to hear, by the medium's state; nothing where there is."""
    why = {
        "pending": N_("It is not archived yet. %(error)s"),
        "failed": N_("It could not be archived; the administrator can try again. %(error)s"),
        "gone": N_("The recorder says that it was deleted, before it could be archived."),
        "empty": N_("The recorder holds no sound for it."),
    }.get(medium["state"])
    if why is not None:
        return view.say(why, error=pages_text.clean(medium.get("error") or "")).strip()
    return "" if medium.get("copies") else view.say(N_("No store of this archive holds a copy of it any more."))
