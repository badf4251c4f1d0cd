"""What the stores that speak HTTP share: the session, bodies that can be sent again, errors, hostile XML."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from xml.etree import ElementTree  # no DTD gets in, see read_xml

import structlog
from pydantic import model_validator
from yarl import URL

from .. import __version__
from ..common.words import reason_of
from ..errors import ObjectFailed, StoreDown, StoreError, StoreFull, StoreRefused
from ..model import CHUNK, Body
from ..ports import Sink
from ..settings.options import ProxyOption, StoreOptions, own_certificate
from . import tls
from .exchange import Answer, Cut, NoConnection, NoHttp, Origin, ProxyRefused, hint
from .proxies import way

if TYPE_CHECKING:
    from .client import Transport

#: Shorter than the 5 s after which Apache closes an idle connection under the next request.
_KEEP_ALIVE = 4.0
_CONNECT = 10.0
#: What Apache, nginx and Go say to plain HTTP on a port for TLS.
_WANTS_TLS = re.compile(rb"(?i)plain HTTP request|speaking plain HTTP|HTTP request to an HTTPS server")


class HttpOptions(StoreOptions):
    #: The certificate of the issuer of the server's, where no public authority issued it.
    ca_file: Path | None = None
    verify_tls: bool = True
    #: What a server that asks who we are is shown: a certificate (PEM) and its key, which may be in the same file.
    client_cert: Path | None = None
    client_key: Path | None = None
    #: Requests go through this proxy; none: as HTTPS_PROXY, HTTP_PROXY and NO_PROXY say; "none": directly.
    proxy: ProxyOption | None = None

    @model_validator(mode="after")
    def _key_has_a_certificate(self) -> HttpOptions:
        own_certificate(self.client_cert, self.client_key)
        return self


def origin(url: str) -> str:
    """Validate a configured address: http or https, a host; no user, query or fragment."""
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
        raise ValueError('is no address; write it like "https://host:8333/", without user, query or fragment')
    return url


class Upload:
    """A body, or a part of one, as the transport sends it; it can be sent again."""

    def __init__(self, body: Body, offset: int = 0, length: int | None = None) -> None:
        self._body = body
        self._offset = offset
        self.size = body.length - offset if length is None else length

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        if self._body.data is not None:
            whole = memoryview(self._body.data)[self._offset : self._offset + self.size]
            for start in range(0, len(whole), 4 * CHUNK):
                yield whole[start : start + 4 * CHUNK]
        elif self._body.path is not None:
            file = await asyncio.to_thread(self._body.path.open, "rb")
            try:
                await asyncio.to_thread(file.seek, self._offset)
                left = self.size
                while left and (chunk := await asyncio.to_thread(file.read, min(left, 4 * CHUNK))):
                    left -= len(chunk)
                    yield chunk
            finally:
                file.close()


class Digest:
    """A sink that keeps only the length and the SHA-256."""

    def __init__(self) -> None:
        self.length = 0
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    async def write(self, chunk: bytes) -> None:
        self.length += len(chunk)
        self._hash.update(chunk)

    def told(self, *, content_type: str | None = None) -> None:
        """Headers don't matter here."""

    async def restart(self) -> None:
        self.__init__()  # type: ignore[misc]


class Wire:
    """One server's HTTP client. Follows no redirect, keeps no cookie; raises only errors.StoreError."""

    def __init__(self, name: str, options: HttpOptions, url: str) -> None:
        """``url``: any address of the server."""
        self._name = name
        self._options = options
        self._url = URL(url, encoded=True)
        self._origin = Origin.of(self._url)
        self._transport: Transport | None = None
        self._opening = asyncio.Lock()

    @property
    def authority(self) -> str:
        """As the Host header names it."""
        return self._origin.authority

    @property
    def way(self) -> list[str]:
        """What there is to say of a proxy, for people."""
        return list(filter(None, [way(self._origin, self._options.proxy)]))

    async def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    @asynccontextmanager
    async def request(
        self, method: str, target: str, headers: Mapping[str, str], data: Upload | bytes | None = None
    ) -> AsyncIterator[Answer]:
        """One request for a path and query that are encoded already; any status but a redirect is handed on.

        Raises StoreDown where the server can't be reached or stalls, StoreRefused for a redirect or a
        certificate that does not hold.
        """
        with translated(self._origin, self._options):
            transport = self._transport or await self._open()
            async with await transport.send(method, self._origin, target, headers, data) as answer:
                if 300 <= answer.status < 400 and "Location" in answer.headers:
                    if self._leads_to(answer) == self._url.join(URL(f"{target}/", encoded=True)):
                        raise ObjectFailed("a folder lies under that name")
                    raise StoreRefused(
                        f"it redirects to {self._elsewhere(answer)} ({answer.status}); nothing is sent there: "
                        "if that is the right server, put its address into the config"
                    )
                if answer.status == 407:
                    raise StoreRefused(
                        "a proxy in between wants a log-in (407): write it into proxy, like http://user:password@host:3128"
                    )
                if answer.status == 400 and self._origin.scheme == "http":
                    await self._demand_http(answer)
                yield answer

    async def _demand_http(self, answer: Answer) -> None:
        """Servers of TLS answer plain HTTP with a page of their own. Raises StoreRefused."""
        if "xml" in answer.headers.get("Content-Type", ""):
            return
        with contextlib.suppress(StoreDown):
            if _WANTS_TLS.search(await limited(answer, 1 << 16)):
                raise StoreRefused(
                    f"port {self._origin.port} speaks https only (400): write https:// in the config, or another port"
                )

    async def receive(self, answer: Answer, into: Sink) -> int:
        """The body of an answer into a sink; returns its length. Raises StoreDown where it was cut."""
        received = 0
        try:
            while chunk := await answer.read():
                received += len(chunk)
                await into.write(chunk)
        except Cut as cut:
            promised = answer.headers.get("Content-Length", "unknown")
            raise StoreDown(f"the answer was cut off after {cut.received} of {promised} bytes") from None
        return received

    async def _open(self) -> Transport:
        async with self._opening:
            if self._transport is None:
                from .client import Transport

                options = self._options
                secure: ssl.SSLContext | bool = options.verify_tls
                if not options.verify_tls:
                    structlog.get_logger(__name__).warning("tls_not_verified", store=self._name)
                issuer = options.ca_file if options.verify_tls else None
                own = own_certificate(options.client_cert, options.client_key)
                if issuer is not None or own is not None:
                    try:
                        secure = await asyncio.to_thread(tls.context, issuer, verify=options.verify_tls, own=own)
                    except tls.BadFile as error:
                        raise StoreRefused(reason_of(error)) from None
                patience = options.timeout.total_seconds()
                self._transport = Transport(
                    timeout=patience,
                    connect_timeout=min(_CONNECT, patience),
                    tls=secure,
                    proxy=options.proxy,
                    keep=_KEEP_ALIVE,
                    headers={"User-Agent": f"archiver/{__version__}", "Accept-Encoding": "identity"},
                )
            return self._transport

    def _leads_to(self, answer: Answer) -> URL | None:
        try:
            return self._url.join(URL(answer.headers["Location"], encoded=True))
        except (KeyError, ValueError):
            return None

    def _elsewhere(self, answer: Answer) -> str:
        there = self._leads_to(answer)
        return str(there.origin()) if there is not None and there.host else "an unknown place"


@contextmanager
def translated(origin: Origin, options: HttpOptions) -> Iterator[None]:
    """What goes wrong on the wire, as a StoreError that names the server and never a header or a query."""
    at = f"{origin.host}:{origin.port}"
    try:
        yield
    except StoreError:
        raise
    except ssl.SSLError as error:
        remedy = hint(error, origin) or tls.remedy(error, address="the config", ca_file=options.ca_file, legacy=None)
        raise StoreRefused(f"TLS with {at} failed ({tls.reason(error)}); {remedy}") from None
    except NoConnection as error:
        raise StoreDown(f"can't connect to {at}: {reason_of(error)}") from None
    except TimeoutError:
        raise StoreDown(f"{at} made no progress for {options.timeout.total_seconds():g} s") from None
    except NoHttp as error:
        wrong = hint(error, origin)
        # What answers something is there; but another program listens at a port that does not even speak HTTP.
        raise StoreRefused(f"{error.told}; {wrong}") if wrong else ObjectFailed(error.told) from None
    except ProxyRefused as error:
        raise StoreRefused(f"{error}; mend proxy, or its rules") from None
    except OSError as error:
        raise StoreDown(f"the connection to {at} broke ({type(error).__name__}: {reason_of(error)})") from None
    except ValueError:
        raise StoreDown(f"{at} answered something that is no HTTP") from None


def failure(status: int, what: str) -> StoreError:
    """What a status means where nothing better is known of it."""
    # Too large, and a name or headers (which the name decides) that are too long.
    if status in {413, 414, 431}:
        return ObjectFailed(what)
    if status == 507:
        return StoreFull(what)
    if status in {408, 409, 423, 425, 429} or status >= 500:
        return StoreDown(what)
    return StoreRefused(what)


async def limited(answer: Answer, limit: int) -> bytes:
    """The whole body, which may not be longer than ``limit`` bytes. Raises StoreDown."""
    body = bytearray()
    while chunk := await answer.read():
        body += chunk
        if len(body) > limit:
            raise StoreDown(f"the answer is longer than {limit} bytes")
    return bytes(body)


class _NoDoctype:
    """Hands a document's events on; a document type (and so any entity) is refused before it is read."""

    def __init__(self, target: Any) -> None:
        self.start, self.end, self.data, self.close = target.start, target.end, target.data, target.close

    def doctype(self, *_: object) -> NoReturn:
        raise ValueError("it has a document type")


class XmlReader:
    """Feeds a target (:class:`xml.etree.ElementTree.TreeBuilder` or the like) piece by piece.

    Raises StoreDown for what is no XML and for a document type: no entity is ever expanded.
    """

    def __init__(self, target: Any = None) -> None:
        self._parser = ElementTree.XMLParser(target=_NoDoctype(target or ElementTree.TreeBuilder()))  # noqa: S314

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.feed(chunk)
        except (ElementTree.ParseError, ValueError) as error:
            raise StoreDown(f"the answer is no usable XML: {error}") from None

    def close(self) -> Any:
        """What the target made of it."""
        try:
            return self._parser.close()
        except (ElementTree.ParseError, ValueError) as error:
            raise StoreDown(f"the answer is no usable XML: {error}") from None


def read_xml(text: bytes) -> ElementTree.Element:
    """A small document as a tree whose tags carry no namespace. Raises StoreDown."""
    reader = XmlReader()
    reader.feed(text)
    root: ElementTree.Element = reader.close()
    for element in root.iter():
        element.tag = local_name(element.tag)
    return root


def local_name(tag: str) -> str:
    return tag.rpartition("}")[2]
