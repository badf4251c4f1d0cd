"""One recorder's HTTP client: time-outs on progress, limits, the origin guard, status → error.

Credentials are headers that go to the configured origin only: never along a redirect to another one,
never to a URL that an answer named.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import json as jsonlib
import re
import ssl
import zlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote

from multidict import CIMultiDictProxy
from pydantic import SecretStr
from yarl import URL

from .. import __version__
from ..common.tally import Timings
from ..common.words import one_line, reason_of
from ..errors import (
    BadData,
    Busy,
    CatalogDown,
    Gone,
    NoAnswer,
    NotReady,
    Overflow,
    RecorderDown,
    Refused,
    SourceError,
    TooSlow,
    TryAgain,
)
from ..ports import Sink
from ..settings.options import SourceOptions, own_certificate
from . import tls
from .exchange import Answer, Cut, NoConnection, NoHttp, Origin, ProxyRefused, hint
from .login import basic as basic  # for the sources
from .pace import Pace

if TYPE_CHECKING:
    from .client import Response, Transport

#: A parsed answer may take twenty times its bytes; a listing that is longer is asked for in halves.
JSON_LIMIT = 32 << 20
#: No row nests deeper; what does, no database takes, nor Python's own JSON writer.
_DEEPEST = 64
#: So many time-outs long a body may drip; from then on this many bytes must have come in each.
_PATIENCE, _TRICKLE = 10, 1 << 10
#: So many bytes of an answer are looked at for a message.
_QUOTED = 400
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f]")
#: Registered names (IANA); those beside gzip and deflate can't be unpacked, and are refused.
_ENCODINGS = {"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress", "dcb", "dcz", "exi", "pack200-gzip"}
_REDIRECTS = {301, 302, 303, 307, 308}


class LastAnswer:
    """The last answer to a request within :func:`last_answer`, so far as it came."""

    def __init__(self) -> None:
        self._head: tuple[int, str] | None = None
        self._length = 0
        self._kept: list[bytes] = []
        #: When the request was sent, or bytes of its answer last came (monotonic); None: it waits for its turn.
        self.moved_at: float | None = None
        #: The longest time, in seconds, in which nothing came of an answer.
        self.longest_pause = 0.0

    def asked(self) -> None:
        self._head = None
        self.moved_at = monotonic()

    def begun(self, response: Answer) -> None:
        self._moved()
        self._head = response.status, _media_type(response.headers.get("Content-Type", "")[:200])
        self._length, self._kept = 0, []

    def came(self, chunk: bytes) -> None:
        self._moved()
        self._length += len(chunk)
        if self._length <= _KEPT:
            self._kept.append(chunk)
        else:
            self._kept.clear()

    def _moved(self) -> None:
        now = monotonic()
        if self.moved_at is not None:
            self.longest_pause = max(self.longest_pause, now - self.moved_at)
        self.moved_at = now

    def fingerprint(self, length: int, sha256: Callable[[], str]) -> str | None:
        """``503, text/html, 812 bytes, SHA-256 1f2e3d4c5b6a``; None where nothing was answered.

        A longer body's hash is that of the bytes that were handed on, where these are all.
        """
        if self._head is None:
            return None
        status, content_type = self._head
        told = [str(status), content_type or "no Content-Type", f"{self._length} bytes"]
        if self._length <= _KEPT:
            told.append(f"SHA-256 {hashlib.sha256(b''.join(self._kept)).hexdigest()[:12]}")
        elif self._length == length:
            told.append(f"SHA-256 {sha256()[:12]}")
        return ", ".join(told)


_LAST_ANSWER: ContextVar[LastAnswer | None] = ContextVar("last_answer", default=None)
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,40}/[a-z0-9.+-]{1,60}")


@lru_cache(256)
def _media_type(told: str) -> str:
    plain = told.split(";")[0].strip().lower()
    return plain if _MEDIA_TYPE.fullmatch(plain) else ""


#: So many bytes of a body are kept for their hash: an error is seldom longer.
_KEPT = 64 << 10


@contextmanager
def last_answer() -> Iterator[LastAnswer]:
    """What is answered meanwhile, to this task and those that it starts."""
    token = _LAST_ANSWER.set(last := LastAnswer())
    try:
        yield last
    finally:
        _LAST_ANSWER.reset(token)


class Gate:
    """Bounds how many requests run at once (``limit`` may change while they do) and how fast they start.

    With a ``pace`` fewer run than the limit allows where more would only wait at the recorder.
    """

    def __init__(
        self, limit: int, reserve: Callable[[], Awaitable[timedelta]] | None = None, pace: Pace | None = None
    ) -> None:
        self._limit = limit
        #: Takes the next place in the rate and says how long to wait for it.
        self.reserve = reserve
        #: Over all processes: how long until a listing may begin; that one ended, and how long to pause now.
        self.listing_wait: Callable[[], Awaitable[timedelta]] | None = None
        self.listing_ended: Callable[[timedelta], Awaitable[None]] | None = None
        self._listing_at = float("-inf")
        self._pace = pace
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.running = 0
        #: How many have started since the beginning.
        self.started = 0
        #: How many were answered with each status, how many broke, and how long the first byte took.
        self.answers: Counter[int] = Counter()
        self.broken = 0
        self.latency = Timings()
        #: When something last came or went, by the monotonic clock.
        self.active_at = monotonic()

    @property
    def limit(self) -> int:
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        """Let at most so many run; those already under way finish."""
        self._limit = limit
        self._admit()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def room(self) -> int:
        """How many more may start now."""
        width = self._limit if self._pace is None else min(self._limit, self._pace.width)
        return max(0, width - self.running)

    def answered(self, seconds: float) -> None:
        """The answer to a request for audio began so long after it."""
        if self._pace is not None:
            self._pace.answered(seconds, self._limit)
            self._admit()

    def refused(self) -> None:
        """The recorder says that it is asked too much."""
        if self._pace is not None:
            self._pace.refused()

    def _admit(self) -> None:
        while self._waiters and self.room:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.running += 1
                waiter.set_result(None)

    def _leave(self) -> None:
        self.running -= 1
        self._admit()

    async def _enter(self) -> None:
        if self.room and not self._waiters:
            self.running += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave()
            raise

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place, and for the moment at which the rate allows to begin."""
        await self._enter()
        try:
            if self.reserve is not None:
                pause = await self.reserve()
                if pause > timedelta():
                    await asyncio.sleep(pause.total_seconds())
            self.started += 1
            self.active_at = monotonic()
            yield
        except OSError:
            self.broken += 1
            raise
        finally:
            self.active_at = monotonic()
            self._leave()

    @asynccontextmanager
    async def listing(self, pause: timedelta) -> AsyncIterator[None]:
        """Begins no sooner than ``pause`` after the end of the last one, whichever process that was in."""
        wait = timedelta(seconds=max(0.0, self._listing_at - monotonic()))
        if self.listing_wait is not None:
            wait = max(wait, await self.listing_wait())
        # Another host's clock may be wrong.
        await asyncio.sleep(min(wait, pause).total_seconds())
        try:
            yield
        finally:
            self._listing_at = monotonic() + pause.total_seconds()
            if self.listing_ended is not None:
                with suppress(CatalogDown):
                    await self.listing_ended(pause)

    def count(self, status: int, seconds: float) -> None:
        """An answer came, so long after its request."""
        self.answers[status] += 1
        self.latency.add(seconds)


class _Hidden:
    """What no message may repeat: credentials, also as HTML, JSON and URLs spell them."""

    def __init__(self) -> None:
        self._forms: list[str] = []

    @property
    def longest(self) -> int:
        return len(self._forms[0]) if self._forms else 0

    def add(self, values: Iterable[str]) -> None:
        plain = set()
        for value in values:
            scheme, _, rest = value.partition(" ")
            plain |= {value, rest}
            if scheme.lower() == "basic":
                with suppress(ValueError):
                    login = base64.b64decode(rest).decode()
                    plain |= {login, login.partition(":")[2]}
        forms = set(self._forms)
        for secret in plain:
            forms |= {secret, html.escape(secret), html.escape(secret, quote=False), jsonlib.dumps(secret)[1:-1]}
            forms |= {quote(secret), quote(secret, safe=""), quote_plus(secret)}
        # What is shorter is no secret, and hiding it would hide the message.
        self._forms = sorted((form for form in forms if len(form) > 3), key=len, reverse=True)

    def hide(self, text: str, *, whole: bool = True) -> str:
        """``whole``: nothing of the text was cut off, and so no half of a secret stands at its end."""
        for form in self._forms:
            text = text.replace(form, "***")
        return text if whole or not self._forms else text[: 1 - self.longest]


class Client:
    """Speaks to one source. Raises only errors.SourceError."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout: timedelta = timedelta(seconds=60),
        gate: Gate | None = None,
        tls: ssl.SSLContext | bool = True,
        ca_file: Path | None = None,
        cookies: bool = False,
        largest: int = 8 << 30,
        proxy: SecretStr | None = None,
    ) -> None:
        self.base = URL(base_url.rstrip("/"))
        self._below = str(self.base).rstrip("/")
        self.gate = gate or Gate(64)
        self._timeout = timeout
        self._cookies = cookies
        self._largest = largest
        self._ca_file = ca_file
        self._credentials: dict[str, str] = {}
        self._hidden = _Hidden()
        self._origin = Origin.of(self.base)
        self._tls = tls
        self._proxy = proxy
        self._transport: Transport | None = None
        #: aiohttp's CookieJar, for our origin only: a jar knows hosts, not ports, and the cookie is a credential too.
        self._jar: Any = None

    @classmethod
    def of(cls, options: SourceOptions, gate: Gate | None = None, *, cookies: bool = False) -> Client:
        """The client that a source's options describe. Raises tls.BadFile where a certificate's file can't be used."""
        # Else it is made when it is needed: reading all public authorities takes a while.
        secure: ssl.SSLContext | bool = options.verify_tls
        issuer = options.ca_file if options.verify_tls else None
        own = own_certificate(options.client_cert, options.client_key)
        if issuer is not None or options.legacy_tls or own is not None:
            secure = tls.context(issuer, verify=options.verify_tls, legacy=options.legacy_tls, own=own)
        return cls(
            options.base_url,
            timeout=options.timeout,
            gate=gate or Gate(options.concurrency),
            tls=secure,
            ca_file=options.ca_file,
            cookies=cookies,
            largest=options.largest,
            proxy=options.proxy,
        )

    def authorise(self, headers: Mapping[str, str]) -> None:
        """From now on these headers go with every request to the configured origin."""
        self._credentials.update(headers)
        self._hidden.add(headers.values())

    async def close(self) -> None:
        if self._transport is not None:
            await self._transport.close()

    def _opened(self) -> Transport:
        if self._transport is None:
            # Here, for many commands ask no recorder and need not wait for its import.
            from .client import Transport

            self._transport = Transport(
                timeout=self._timeout.total_seconds(),
                connect_timeout=min(20.0, self._timeout.total_seconds()),
                tls=self._tls,
                headers={"User-Agent": f"archiver/{__version__}"},
                proxy=self._proxy,
            )
        return self._transport

    def url(self, path: str) -> URL:
        """A path below the base URL, or an absolute URL, as it goes on the wire (already encoded)."""
        path = path.replace(" ", "%20")
        try:
            if _NOT_IN_URLS.search(path):
                raise ValueError(path)
            if path.startswith("/"):
                return URL(f"{self._below}{path}", encoded=True)
            url = URL(path, encoded=True)
            if url.scheme not in {"http", "https"} or not url.host:
                raise ValueError(path)
        except ValueError:
            raise BadData("the answer named an address that is none") from None
        return url

    def is_ours(self, url: URL) -> bool:
        """Is this the configured origin (scheme, host and port)?"""
        return Origin.of(url) == self._origin

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        json: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        accept: frozenset[int] = frozenset({200}),
        paced: bool = False,
    ) -> AsyncIterator[Answer]:
        """One request within the gate; a GET follows up to five redirects. ``paced``: how long it takes counts.

        Raises what the status means (see :meth:`_refuse`) for any status that is not in ``accept``.
        """
        url = self.url(path)
        if url.user is not None:
            raise BadData("the answer named an address with a user in it")
        if params:
            url = url.extend_query({k: str(v) for k, v in params.items()})
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        if json is not None:
            data = jsonlib.dumps(json).encode()
            sent["Content-Type"] = "application/json"
        with self._translated():
            async with self.gate.slot():
                for _ in range(6):
                    began = monotonic()
                    ours = self.is_ours(url)
                    headers_now = {**sent, **self._credentials, **self._cookie(url)} if ours else sent
                    with self._unanswered():
                        answer = await self._sent(method, url, headers_now, data, paced=paced and ours)
                    async with answer as response:
                        self.gate.count(answer.status, monotonic() - began)
                        if ours and self._cookies:
                            self._keep_cookies(url, response)
                        if response.status in _REDIRECTS and response.status not in accept:
                            url = self._redirected(method, url, response)
                            continue
                        if response.status not in accept:
                            await self._refuse(response)
                        yield response
                        return
                raise TryAgain("it redirects in a circle")

    async def _sent(
        self, method: str, url: URL, headers: Mapping[str, str], data: bytes | None, *, paced: bool
    ) -> Response:
        began, patience = monotonic(), self._timeout.total_seconds() * _PATIENCE
        last = _LAST_ANSWER.get()
        if last is not None:
            last.asked()
        try:
            # A head may come byte by byte, and each is progress.
            async with asyncio.timeout(patience) as limit:
                answer = await self._opened().send(method, Origin.of(url), url.raw_path_qs, headers, data)
        except TimeoutError:
            if limit.expired():
                raise NoAnswer(f"{url.host}:{url.port} sent no whole head in {patience:g} s") from None
            raise
        if last is not None:
            last.begun(answer)
        if answer.status in {429, 503}:
            self.gate.refused()
        elif paced:
            self.gate.answered(monotonic() - began)
        return answer

    async def json(self, method: str, path: str, *, limit: int = JSON_LIMIT, **how: Any) -> Any:
        """The answer as JSON. Raises Overflow beyond ``limit`` bytes, TryAgain where it is no JSON."""
        async with self.request(method, path, **how) as response:
            body = bytearray()
            async for chunk in self._chunks(response):
                body += chunk
                if len(body) > limit:
                    raise Overflow(f"the answer is longer than {limit} bytes")
        try:
            return loads(body) if len(body) < 1 << 20 else await asyncio.to_thread(loads, body)
        except (ValueError, RecursionError):
            start = bytes(body[: _QUOTED + self._hidden.longest])
            raise TryAgain(f"the answer is no JSON: {self._excerpt(start, whole=len(start) == len(body))}") from None

    async def beginning(self, method: str, path: str, *, limit: int = 1 << 16, **how: Any) -> bytes:
        """The first bytes of the answer, all of a short one."""
        body = b""
        async with self.request(method, path, **how) as response:
            async for chunk in self._chunks(response):
                body += chunk
                if len(body) >= limit:
                    break
        return body[:limit]

    async def download(self, path: str, into: Sink, *, method: str = "GET", **how: Any) -> CIMultiDictProxy[str]:
        """The body, byte for byte, into the sink; returns the answer's headers.

        Raises TryAgain where fewer bytes come than the answer promised, and where it never ends.
        """
        async with self.request(method, path, paced=True, **how) as response:
            into.told(content_type=response.headers.get("Content-Type"))
            received = 0
            async for chunk in self._chunks(response):
                received += len(chunk)
                if received > self._largest:
                    raise TryAgain(f"the body is longer than {self._largest} bytes (largest)")
                await into.write(chunk)
            return response.headers

    async def _chunks(self, response: Answer) -> AsyncIterator[bytes]:
        told = ",".join(response.headers.getall("Content-Encoding", ())).lower().split(",")
        # What is no name of an encoding ("utf-8", "none") changes no byte.
        encoding = next((name for name in map(str.strip, told) if name in _ENCODINGS), None)
        unpack = None if encoding is None else zlib.decompressobj(47)
        received, began = 0, monotonic()
        last = _LAST_ANSWER.get()
        try:
            while chunk := await response.read():
                received += len(chunk)
                if last is not None:
                    last.came(chunk)
                self.gate.active_at = monotonic()
                spans = (monotonic() - began) / self._timeout.total_seconds()
                if spans > _PATIENCE and received < spans * _TRICKLE:
                    raise TooSlow(f"the body drips: {received} bytes in {monotonic() - began:.0f} s")
                if unpack is None:
                    yield chunk
                    continue
                while chunk:
                    # A gzip file may be several, one after the other (RFC 1952, 2.2).
                    unpack = zlib.decompressobj(47) if unpack.eof else unpack
                    while piece := unpack.decompress(chunk, 1 << 20):
                        yield piece
                        chunk = unpack.unconsumed_tail
                    chunk = unpack.unused_data
        except zlib.error:
            raise TryAgain(f"the body is no valid {encoding}") from None
        except Cut as cut:
            promised = response.headers.get("Content-Length", "an unknown number of")
            raise TryAgain(f"the body was cut off after {cut.received} of {promised} bytes") from None
        if unpack is not None and not unpack.eof:
            raise TryAgain(f"the {encoding} body was cut off after {received} bytes")

    def _cookie(self, url: URL) -> dict[str, str]:
        if self._jar is None:
            return {}
        cookies = [f"{c.key}={c.coded_value}" for c in self._jar.filter_cookies(url).values()]
        return {"Cookie": "; ".join(cookies)} if cookies else {}

    def _keep_cookies(self, url: URL, response: Answer) -> None:
        if self._jar is None:
            from aiohttp import CookieJar

            self._jar = CookieJar(unsafe=True)
        for told in response.headers.getall("Set-Cookie", ()):
            with suppress(CookieError):
                self._jar.update_cookies(SimpleCookie(told), url)

    def _redirected(self, method: str, url: URL, response: Answer) -> URL:
        if method != "GET":
            raise Refused(f"it redirects a {method} ({response.status}); is base_url right?")
        try:
            target = url.join(URL(response.headers["Location"]))
        except (KeyError, ValueError):
            raise TryAgain(f"it answered {response.status} without a usable Location") from None
        if target.scheme not in {"http", "https"} or not target.host:
            raise TryAgain(f"it redirects to something that is no web address ({response.status})")
        return target

    async def _refuse(self, response: Answer) -> None:
        """Raises what the status means: see :func:`_meaning`."""
        status = response.status
        body = bytearray()
        longest = _QUOTED + self._hidden.longest
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._timeout.total_seconds()):
                while len(body) < longest and (part := await response.read()):
                    body += part
        if (last := _LAST_ANSWER.get()) is not None:
            last.came(bytes(body))
        excerpt = self._excerpt(bytes(body[:longest]), whole=response.ended and len(body) <= longest)
        reason = self._excerpt((response.reason or "").encode("utf-8", "replace"))
        what = f"it answered {status} {reason}".rstrip() + (f": {excerpt}" if excerpt else "")
        if status == 407:
            what += "; a proxy wants a log-in: write it into proxy, like http://user:password@host:3128"
        error = _meaning(status)(what)
        error.status = status
        if isinstance(error, TryAgain):
            error.retry_after = _retry_after(response.headers.get("Retry-After"))
        raise error

    def _excerpt(self, body: bytes, *, whole: bool = True) -> str:
        text = self._hidden.hide(body.decode("utf-8", "replace"), whole=whole)
        return one_line(text)

    @property
    def _at(self) -> str:
        return f"{self.base.host}:{self.base.port}"

    @contextmanager
    def _unanswered(self) -> Iterator[None]:
        """What goes wrong before an answer came may concern the recorder; afterwards only what was asked for."""
        try:
            yield
        except ssl.SSLError:
            raise
        except NoConnection as error:
            self.gate.broken += 1
            text = f"can't connect to {self._at}: {reason_of(error)}"
            old = "where it speaks old TLS only, set legacy_tls = true" if "handshake" in str(error) else None
            raise RecorderDown("; ".join(filter(None, [text, hint(error, self._origin) or old]))) from None
        except TimeoutError:
            self.gate.broken += 1
            raise NoAnswer(f"{self._at} sent nothing for {self._timeout.total_seconds():g} s") from None
        except (NoHttp, ProxyRefused):
            raise
        except OSError as error:
            self.gate.broken += 1
            raise RecorderDown(self._broke(error)) from None

    def _broke(self, error: OSError) -> str:
        return f"the connection to {self._at} broke ({type(error).__name__}: {reason_of(error)})"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SourceError:
            raise
        except ssl.SSLError as error:
            remedy = tls.remedy(error, address="base_url", ca_file=self._ca_file, legacy="legacy_tls")
            raise Refused(f"TLS with {self._at} failed ({tls.reason(error)}); {remedy}") from None
        except TimeoutError:
            raise TooSlow(f"{self._at} sent nothing for {self._timeout.total_seconds():g} s") from None
        except NoHttp as error:
            # What answers something, whatever it is, is there.
            raise TryAgain("; ".join(filter(None, [error.told, hint(error, self._origin)]))) from None
        except ProxyRefused as error:
            raise Refused(f"{error}; mend proxy, or its rules") from None
        except OSError as error:
            raise TryAgain(self._broke(error)) from None
        except ValueError:
            raise BadData("the request or its answer can't be expressed in HTTP") from None


def below(base: URL, uri: str | None) -> str | None:
    """An address that an answer named, as a path below the base URL.

    Its host does not count: nodes tell internal ones. None where it is no such path.
    """
    if uri is None or not re.fullmatch(r"[!-~]+", uri) or {".", ".."} & set(re.split(r"[/\\?]", unquote(uri))):
        return None
    try:
        url = URL(uri, encoded=True)
    except ValueError:
        return None
    root = base.raw_path.rstrip("/")
    path = url.raw_path.removeprefix(root) if url.raw_path.startswith(f"{root}/") else url.raw_path
    if not path.startswith("/") or (url.host and root and path == url.raw_path):
        return None
    return path + (f"?{url.raw_query_string}" if url.raw_query_string else "")


def _meaning(status: int) -> type[SourceError]:
    """Whom it concerns stands in the type. What is none of these and below 500 is BadData."""
    known: dict[int, type[SourceError]] = {
        401: Refused,
        403: Refused,
        404: NotReady,
        407: Refused,
        410: Gone,
        429: Busy,
        503: Busy,
        504: TooSlow,
    }
    again = status in {408, 425} or status >= 500
    return known.get(status, TryAgain if again else BadData)


def loads(body: bytes | bytearray, *, deepest: int = _DEEPEST) -> Any:
    """JSON. Raises ValueError, RecursionError; also for what nests too deeply to be written again."""
    value = jsonlib.loads(body)
    level = [value]
    for _ in range(deepest):
        if not level:
            return value
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [child for each in inner for child in each if isinstance(child, dict | list)]
    raise ValueError("it nests too deeply")


def _retry_after(value: str | None) -> timedelta | None:
    """RFC 9110, 10.2.3: seconds or an HTTP date; at most a day, so that no answer parks a source for ever."""
    if not value:
        return None
    try:
        seconds = (
            float(value)
            if value.strip().isdigit()
            else (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        )
    except (ValueError, TypeError):
        return None
    return timedelta(seconds=min(max(seconds, 0.0), 86400.0))
