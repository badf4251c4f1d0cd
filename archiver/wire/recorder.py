"""One recorder's HTTP client: time-outs on progress, limits, the origin guard, status → error.

Credentials are headers that go to the configured origin only: never along a redirect to another one,
never to a URL that an answer named.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import re
import ssl
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from multidict import CIMultiDictProxy
from pydantic import SecretStr
from yarl import URL

from .. import __version__
from ..common.words import one_line, reason_of
from ..errors import (
    BadData,
    Busy,
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
from .gate import Gate
from .hidden import Hidden
from .last_answer import LAST_ANSWER
from .login import basic as basic  # for the sources

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
        self._hidden = Hidden()
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
        last = LAST_ANSWER.get()
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
        last = LAST_ANSWER.get()
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
        if (last := LAST_ANSWER.get()) is not None:
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
