"""The face as one web application: who may come in, which right each route needs, what every answer carries.

Every request passes the same gates in one order: its Host is ours, its answer gets the security headers, an unsafe
method comes from our own pages, somebody is logged in, and their role has the route's right. A route without a right
can't be added.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlsplit

import structlog
from aiohttp import web

from ..errors import ArchiverError, CatalogDown, ConfigError
from ..settings.tables import PORTS
from . import accounts, api, pages, pages_own, pages_search
from .desk import IDLE, LONGEST, WHO, ArchiveDesk, Who, address_of
from .pages_call import Calls
from .pages_desk import asked
from .pages_text import N_, clean
from .playback import Playback

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
#: Of a route: for everybody; for whoever is logged in; else the right that the role must have.
PUBLIC, LOGGED_IN = "public", "logged in"
RIGHTS = (PUBLIC, LOGGED_IN, "find", "hear", "download", "audit", "tokens")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
#: Wrong passwords of a name from one address, and of one address, in so many seconds.
TRIES, TRIES_OF_ADDRESS, TRIES_WITHIN = 5, 100, 900.0
#: Bytes of a form.
LARGEST = 64 << 10


class Face:
    """The application's gates and its log-in."""

    def __init__(self, desk: ArchiveDesk, playback: Playback, listen: tuple[str, int]) -> None:
        self.desk = desk
        self.calls = Calls(desk, playback)
        self.api = api.Api(desk, playback)
        url = desk.config.web.url
        self.secure = url is not None and url.startswith("https:")
        self.cookie = "__Host-archiver" if self.secure else "archiver"
        #: Origins that pages of ours may have.
        self.origins = {url} if url is not None else set()
        if url is None:
            self.listening(listen[1])
        self._failed: dict[tuple[str, ...], deque[float]] = defaultdict(deque)
        # 64 MiB each, and four threads: two at once are hardly faster, and the most memory that the pages ever need.
        self._hashing = asyncio.Semaphore(1)

    def listening(self, port: int) -> None:
        """Where no origin is configured: the loopback addresses at this port are."""
        if self.desk.config.web.url is None:
            self.origins = {f"http://{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")}

    def application(self) -> web.Application:
        """With every route and its right."""
        app = web.Application(middlewares=[self._gate], client_max_size=LARGEST)
        app.on_response_prepare.append(self._finish)
        routes = (
            ("GET", "/healthz", self._healthz, PUBLIC),
            ("GET", "/static/{name}", pages.static, PUBLIC),
            ("GET", "/login", self._login_page, PUBLIC),
            ("POST", "/login", self._login, PUBLIC),
            ("POST", "/logout", self._logout, LOGGED_IN),
            ("GET", "/", self._search, LOGGED_IN),
            ("GET", "/calls/{source}/{recording_id}", self._with_rights(self.calls.show), "find"),
            ("POST", "/calls/{source}/{recording_id}/listen", self._with_rights(self.calls.listen), "hear"),
            ("POST", "/calls/{source}/{recording_id}/download", self._with_rights(self.calls.download), "download"),
            ("GET", "/media/{grant}/{name}", self.calls.media, "hear"),
            ("GET", "/audit", self._with_desk(pages_own.audit), LOGGED_IN),
            ("GET", "/audit.csv", self._with_desk(pages_own.audit_csv), LOGGED_IN),
            ("GET", "/tokens", self._with_desk(pages_own.tokens), "tokens"),
            ("GET", "/me", self._with_desk(pages_own.me), LOGGED_IN),
            ("POST", "/me", pages_own.choose, LOGGED_IN),
            ("POST", "/me/sessions", self._end_session, LOGGED_IN),
            ("GET", api.PREFIX + "/recordings", self.api.recordings, "find"),
            ("GET", api.PREFIX + "/recordings/{source}/{recording_id}", self.api.recording, "find"),
            ("GET", api.PREFIX + "/recordings/{source}/{recording_id}/events", self.api.events, "find"),
            ("GET", api.PREFIX + "/recordings/{source}/{recording_id}/media/{media_id}", self.api.media, "hear"),
            ("GET", api.PREFIX + "/audit", self.api.audit, LOGGED_IN),
            ("GET", api.PREFIX + "/openapi.json", self.api.openapi, LOGGED_IN),
        )
        for method, path, handler, right in routes:
            add(app, method, path, handler, right)
        return app

    def may(self, who: Who) -> dict[str, bool]:
        """Each right, for the templates."""
        return {right: self.desk.may(who, right) for right in ("find", "hear", "download", "audit", "tokens")}

    # -- gates -------------------------------------------------------------------------------------------------------

    @web.middleware
    async def _gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/api/"):
            return await self._api(request, handler)
        try:
            return await self._admitted(request, handler)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            response = self._problem(request, error.status, (error.text or "") if error.status == 503 else "")
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
            return response
        except CatalogDown as error:
            log.warning("face.no_database", error=str(error))
            said = N_("The database of the archive can't be reached.")
            return self._problem(request, 503, pages.View(request).say(said))
        except ConfigError as error:
            log.error("face.accounts", error=str(error))
            return self._problem(request, 503, pages.View(request).say(N_("The file of accounts can't be read.")))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("face.failed", path=request.path)
            return self._problem(request, 500)

    async def _api(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await self._admitted(request, handler)
        except (web.HTTPException, ArchiverError, ValueError) as error:
            if isinstance(error, web.HTTPException) and error.status < 400:
                raise
            return api.refused(error)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("face.failed", path=request.path)
            return api.problem(500)

    async def _admitted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not any(_is_host_of(request.host, origin) for origin in self.origins):
            raise web.HTTPBadRequest
        # Raises what the router raises, where there is no such route.
        right = right_of(request)
        if request.method not in ("GET", "HEAD") and not self._is_ours(request):
            raise web.HTTPForbidden
        if right == PUBLIC:
            return await handler(request)
        who = await self._who(request)
        if who is None:
            if request.path.startswith("/api/"):
                raise web.HTTPUnauthorized
            if request.method == "GET" and not request.path.startswith("/media/"):
                raise web.HTTPSeeOther("/login?next=" + quote(request.path_qs, safe=""))
            raise web.HTTPNotFound
        request[WHO] = who
        if right != LOGGED_IN and not self.desk.may(who, right):
            await self.desk.record(request, "access.denied", **asked(request), outcome="denied")
            raise web.HTTPForbidden
        return await handler(request)

    def _is_ours(self, request: web.Request) -> bool:
        """An unsafe method must come from our own pages: the browser says so, or names an origin of ours."""
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None:
            return site in ("same-origin", "none")
        return request.headers.get("Origin", "").lower() in self.origins

    async def _who(self, request: web.Request) -> Who | None:
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and request.path.startswith("/api/"):
            token = (await asyncio.to_thread(self.desk.file.read)).token(bearer.strip())
            return Who(account=token, means="token", address=address_of(request)) if token is not None else None
        secret = request.cookies.get(self.cookie)
        if not secret:
            return None
        row = await self.desk.catalog.session(_digest(secret), IDLE, LONGEST)
        if row is None:
            return None
        told = (await asyncio.to_thread(self.desk.file.read)).users.get(row["name"])
        if told is None or not secrets.compare_digest(told.digest(), row["account"]):
            await self.desk.catalog.log_out(_digest(secret), row["name"])
            return None
        return Who(account=told, means="session", address=address_of(request), session=secret)

    async def _finish(self, _: web.Request, response: web.StreamResponse) -> None:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        if self.secure:
            response.headers["Strict-Transport-Security"] = "max-age=31536000"
        # Not which library of which version it is.
        response.headers["Server"] = "archiver"

    def _problem(self, request: web.Request, status: int, what: str = "") -> web.Response:
        who = request.get(WHO)
        if who is None:
            return pages.problem(request, status, what)
        return pages.problem(request, status, what, who=who, may=self.may(who))

    # -- pages -------------------------------------------------------------------------------------------------------

    def _with_rights(self, handler: Callable[..., Awaitable[web.StreamResponse]]) -> Handler:
        async def handled(request: web.Request) -> web.StreamResponse:
            return await handler(request, request[WHO], self.may(request[WHO]))

        return handled

    def _with_desk(self, handler: Callable[..., Awaitable[web.StreamResponse]]) -> Handler:
        async def handled(request: web.Request) -> web.StreamResponse:
            return await handler(request, self.desk, request[WHO], self.may(request[WHO]))

        return handled

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def _search(self, request: web.Request) -> web.Response:
        who = request[WHO]
        if not self.desk.may(who, "find"):
            # An administrator finds no calls; the first page is what there is for them.
            raise web.HTTPSeeOther("/tokens" if self.desk.may(who, "tokens") else "/me")
        return await pages_search.search(request, self.desk, who, self.may(who))

    async def _end_session(self, request: web.Request) -> web.Response:
        await self.desk.record(request, "session.ended")
        return await pages_own.end_session(request, self.desk, request[WHO])

    # -- log-in ------------------------------------------------------------------------------------------------------

    async def _login_page(self, request: web.Request) -> web.Response:
        return self._login_form(request, _local(request.query.get("next", "/")))

    def _login_form(
        self, request: web.Request, next_: str, name: str = "", said: str = "", status: int = 200
    ) -> web.Response:
        messages = [("bad", pages.View(request).say(said))] if said else []
        return pages.page(request, "login.html", status=status, next=next_, name=name, messages=messages)

    async def _login(self, request: web.Request) -> web.Response:
        form = await request.post()
        name, password = clean(form.get("name", "")).strip()[:64], str(form.get("password", ""))[:1000]
        next_, address = _local(str(form.get("next", "/"))), address_of(request)
        known = (await asyncio.to_thread(self.desk.file.read)).users.get(name)
        # Nothing is awaited between these two: of many tries at once no more pass than one after the other.
        wait = self._must_wait(name, address)
        if wait is not None:
            await self.desk.record(request, "login.failed", name=name, outcome="too many tries")
            response = self._problem(request, 429)
            response.headers["Retry-After"] = str(math.ceil(wait))
            return response
        self._count(name, address)
        async with self._hashing:
            right = await asyncio.to_thread(accounts.fits, known, password)
        if not right or known is None:
            await self.desk.record(request, "login.failed", name=name, outcome="refused")
            return self._login_form(request, next_, name, N_("Name or password is wrong."), status=401)
        self._forgive(name, address)
        secret = secrets.token_urlsafe(32)
        request[WHO] = Who(account=known, means="session", address=address, session=secret)
        await self.desk.record(request, "login")
        await self.desk.catalog.log_in(_digest(secret), name, known.digest(), address, IDLE)
        response = web.HTTPSeeOther(next_)
        response.set_cookie(
            self.cookie, secret, path="/", secure=self.secure, httponly=True, samesite="Lax",
            max_age=int(LONGEST.total_seconds()),
        )  # fmt: skip
        raise response

    async def _logout(self, request: web.Request) -> web.Response:
        who = request[WHO]
        await self.desk.record(request, "logout")
        await self.desk.catalog.log_out(_digest(who.session), who.name)
        response = web.HTTPSeeOther("/login")
        response.del_cookie(self.cookie, path="/", secure=self.secure, httponly=True, samesite="Lax")
        raise response

    def _must_wait(self, name: str, address: str) -> float | None:
        """Seconds until another try is taken; None: now.

        Wrong passwords from elsewhere lock nobody out: they count by name and address together.
        """
        now, waits = time.monotonic(), []
        for key, most in (((name, address), TRIES), ((address,), TRIES_OF_ADDRESS)):
            tries = self._failed.get(key)
            while tries and now - tries[0] > TRIES_WITHIN:
                tries.popleft()
            if tries and len(tries) >= most:
                waits.append(tries[len(tries) - most] + TRIES_WITHIN - now)
        return max(waits, default=None)

    def _count(self, name: str, address: str) -> None:
        """A try, which counts as a wrong one until its password is seen to be right."""
        if len(self._failed) > 10_000:
            self._failed.clear()
        for key in ((name, address), (address,)):
            self._failed[key].append(time.monotonic())

    def _forgive(self, name: str, address: str) -> None:
        """The password was right: the tries of this name from here count no more, and this one was no wrong one."""
        self._failed.pop((name, address), None)
        if tries := self._failed.get((address,)):
            tries.pop()


_RIGHT = "archiver_right"


def add(app: web.Application, method: str, path: str, handler: Handler, right: str) -> None:
    """A route with the right that it needs; GET answers HEAD too. Raises ValueError where the right is none of ours."""
    if right not in RIGHTS:
        raise ValueError(f"{method} {path} needs a right, and {right!r} is none")

    async def handled(request: web.Request) -> web.StreamResponse:
        return await handler(request)

    setattr(handled, _RIGHT, right)
    if method == "GET":
        app.router.add_get(path, handled, allow_head=True)
    else:
        app.router.add_route(method, path, handled)


def right_of(request: web.Request) -> str:
    """What the route of this request needs. Raises HTTPNotFound, HTTPMethodNotAllowed."""
    if (error := request.match_info.http_exception) is not None:
        raise error
    right: str = getattr(request.match_info.handler, _RIGHT)
    return right


def _is_host_of(host: str, origin: str) -> bool:
    """In any case, and with the scheme's own port or without."""
    parts = urlsplit(origin)
    return host.lower().removesuffix(PORTS[parts.scheme]) == parts.netloc


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _local(address: str) -> str:
    """A place of ours to go on to; never another site's."""
    parts = urlsplit(address)
    good = address.startswith("/") and not address.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return address if good and "\\" not in address and address.isprintable() else "/"
