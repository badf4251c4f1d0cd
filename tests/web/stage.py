"""The pages on a stage: the real handlers, playback and templates over real HTTP, with calls that a test made up.

What stands behind them in `archiver serve` (accounts, catalog, stores) has tests of its own; here everything that a
page can be made to show is a few lines away.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from archiver.web import pages, pages_own, pages_search
from archiver.web.pages_call import Calls
from archiver.web.pages_desk import Found
from archiver.web.playback import Playback

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
BEGAN = "2024-05-17T11:45:32.000Z"


@dataclass
class Who:
    name: str = "Ada"
    role: str = "compliance"


def medium(data: bytes, ext: str, **more: Any) -> dict[str, Any]:
    sha256 = hashlib.sha256(data).hexdigest()
    return {
        "media_id": sha256[:8],
        "state": "archived",
        "content_type": None,
        "coding": ext,
        "size": len(data),
        "sha256": sha256,
        "duration": 10.0,
        "attempts": 1,
        "error": None,
        "flags": [],
        "copies": [
            {
                "store": "main",
                "key": f"hq/2024/05/17/x/{sha256[:12]}.{ext}",
                "archived_at": BEGAN,
                "verified_at": None,
                "sha256": sha256,
            }
        ],
        **more,
    }


def call(recording_id: str, *media: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "source": "hq",
        "kind": "chronicall",
        "recording_id": recording_id,
        "call_id": "c-1",
        "state": "archived",
        "started_at": BEGAN,
        "ended_at": "2024-05-17T11:46:21.000Z",
        "duration": 48.974,
        "direction": "inbound",
        "caller": "+16504668888",
        "callee": "+14155551234",
        "agent": "Joe Dalton (1573)",
        "queue": "hotline (3556)",
        "parties": [{"number": "+14103585834", "name": "Joe", "user": "jd", "role": "agent"}],
        "events": [{"at": "2024-05-17T11:45:36.000Z", "event": "joined", "party": "+14103585834"}],
        "attributes": {"color": "green"},
        "raw": {"id": recording_id},
        "media": list(media),
        **more,
    }


@dataclass
class StageDesk:
    """Calls and their bytes; what is written down is kept in order, with what was sent."""

    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    bytes: dict[str, bytes] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    reason_asked: str = "required"
    rights: set[str] = field(default_factory=lambda: {"find", "hear", "download", "audit", "tokens"})
    reads_done: int = 0

    def add(self, document: dict[str, Any], *media: bytes) -> None:
        self.calls[document["recording_id"]] = document
        for data in media:
            self.bytes[hashlib.sha256(data).hexdigest()] = data

    def who(self, request: web.Request) -> Who:
        return Who()

    def session(self, request: web.Request) -> str:
        return request.cookies.get("session", "one")

    def may(self, who: Any, right: str) -> bool:
        return right in self.rights

    def reason(self, who: Any) -> str:
        return self.reason_asked

    def sources(self, who: Any) -> list[str]:
        return ["hq", "branch"]

    def zone(self, source: str) -> str | None:
        return "America/Denver"

    def scope(self, who: Any) -> dict[str, list[str]]:
        return {"sources": ["hq"]}

    async def search(self, who: Any, filters: Any) -> Found:
        number = filters.values.get("number")
        wanted = "".join(c for c in number or "" if c.isdigit())
        return Found(rows=[c for c in self.calls.values() if wanted in (c["caller"] or "")], number=number, behind=12)

    async def call(self, who: Any, source: str, recording_id: str) -> dict[str, Any] | None:
        return self.calls.get(recording_id) if source == "hq" else None

    def reads(self, copies: list[dict[str, Any]]) -> list[Any]:
        def of(copy: dict[str, Any]) -> Any:
            async def read(sink: Any) -> None:
                self.reads_done += 1
                await sink.write(self.bytes[copy["sha256"]])

            return copy["store"], read

        return [of(copy) for copy in copies]

    def clear(self, document: Any, media_id: str) -> Any:
        return None

    async def record(self, request: web.Request, action: str, **told: Any) -> None:
        self.events.append({"at": datetime.now(UTC), "who": "Ada", "action": action, "reads": self.reads_done, **told})

    async def heard(self, who: Any, source: str, recording_id: str) -> list[dict[str, Any]]:
        rows = [e for e in self.events if e.get("recording_id") == recording_id]
        return [{"case": None, "reason": None, **row} for row in reversed(rows)]

    async def audit(self, who: Any, filters: Any) -> Found:
        empty = {"source": None, "recording_id": None, "reason": None, "case": None, "outcome": "ok", "address": "::1"}
        return Found(rows=[{**empty, "details": "", **row} for row in reversed(self.events)])

    async def tokens(self) -> list[dict[str, Any]]:
        return [{"name": "crm", "role": "auditor", "sources": [], "made": BEGAN, "expires": None, "used": None}]

    async def sessions(self, who: Any, request: web.Request) -> list[dict[str, Any]]:
        return [
            {"id": "1", "since": BEGAN, "seen": BEGAN, "address": "::1", "this": True},
            {"id": "2", "since": BEGAN, "seen": BEGAN, "address": "10.0.0.9", "this": False},
        ]

    async def end_session(self, who: Any, id_: str) -> None: ...


@dataclass
class Stage:
    desk: StageDesk
    calls: Calls
    url: str
    #: What was asked: method, path, status.
    seen: list[tuple[str, str, int]]


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    """The pages at an address of their own."""
    desk, playback = StageDesk(), Playback(folder / "web", 1 << 30, reserve=0)
    await playback.open()
    calls = Calls(desk, playback)
    seen: list[tuple[str, str, int]] = []

    @web.middleware
    async def guarded(request: web.Request, handler: Any) -> Any:
        try:
            response = await handler(request)
        except web.HTTPNotFound:
            response = pages.problem(request, 404)
        return response

    async def prepared(request: web.Request, response: web.StreamResponse) -> None:
        seen.append((request.method, request.path, response.status))
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["Content-Security-Policy"] = CSP
        response.headers["X-Content-Type-Options"] = "nosniff"

    def may() -> dict[str, bool]:
        return {right: right in desk.rights for right in ("find", "hear", "download", "audit", "tokens")}

    app = web.Application(middlewares=[guarded])
    app.on_response_prepare.append(prepared)

    def route(method: str, path: str, handler: Any, *parts: Any) -> None:
        async def handled(request: web.Request) -> Any:
            return await handler(request, *parts, Who(), may())

        app.router.add_route(method, path, handled)

    route("GET", "/", pages_search.search, desk)
    route("GET", "/calls/{source}/{recording_id}", calls.show)
    route("POST", "/calls/{source}/{recording_id}/listen", calls.listen)
    route("POST", "/calls/{source}/{recording_id}/download", calls.download)
    route("GET", "/audit", pages_own.audit, desk)
    route("GET", "/tokens", pages_own.tokens, desk)
    route("GET", "/me", pages_own.me, desk)
    app.router.add_get("/media/{grant}/{name}", calls.media)
    app.router.add_post("/me", pages_own.choose)
    app.router.add_get("/login", _login)
    app.router.add_get("/static/{name}", pages.static)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield Stage(desk, calls, f"http://{host}:{port}", seen)
    finally:
        calls.grants.close()
        await runner.cleanup()
        await playback.close()


async def _login(request: web.Request) -> web.Response:
    return pages.page(request, "login.html", next="/", name="")
