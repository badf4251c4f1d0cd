"""The HTTP client: one request, one answer, connections that are used again. Made of aiohttp's.

It follows no redirect, keeps no cookie, unpacks nothing and adds no credential: recorder.py and store.py decide about
those. Beside what aiohttp does it times progress (up and down, not in total), bounds an answer's head and reads heads
as sloppy as browsers do. exchange.py lists what it raises.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy
from pydantic import SecretStr
from yarl import URL

from ..common.words import one_line
from .connection import LONGEST_HEAD, Connection
from .exchange import Broken, Cut, NoConnection, NoHttp, Origin, ProxyRefused, Sendable
from .heads import NAME
from .proxies import Proxy, proxy_for

#: So many bytes of a body wait for their reader before the peer is made to wait.
_AHEAD = 1 << 20
_NOT_IN_TARGETS = re.compile(r"[\x00-\x20\x7f#]")
#: Done twice they leave what once leaves. GET, HEAD, PUT, DELETE and OPTIONS aiohttp itself sends once more where a
#: connection ends without an answer: most likely the server closed it while it was idle.
_ALSO_REPEATABLE = {"PROPFIND", "MKCOL", "MOVE"}
_TYPE = frozenset({"Content-Type"})


class Transport:
    """Connections to any number of origins, each used again until it was idle for ``keep`` seconds."""

    def __init__(
        self,
        *,
        timeout: float,
        connect_timeout: float,
        tls: ssl.SSLContext | bool = True,
        keep: float = 15.0,
        headers: Mapping[str, str] | None = None,
        proxy: SecretStr | None = None,
    ) -> None:
        """``timeout``: seconds without progress. ``proxy``: the config's; None: as the environment says."""
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._tls = tls
        self._keep = keep
        self._headers = {"Accept": "*/*", "Accept-Encoding": "identity", **(headers or {})}
        self._proxy = proxy
        self._proxies: dict[Origin, Proxy | None] = {}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            # The sockets are closed in the loop's next turn.
            await asyncio.sleep(0)

    async def send(
        self,
        method: str,
        origin: Origin,
        target: str,
        headers: Mapping[str, str],
        body: Sendable | bytes | None = None,
    ) -> Response:
        """One request; its answer, to be used as a context manager. ``target`` is what stands in the request line."""
        if not target.startswith("/") or _NOT_IN_TARGETS.search(target):
            raise ValueError("that is no path")
        for name, value in headers.items():
            if not NAME.fullmatch(name.encode()) or "\n" in value or "\r" in value or "\0" in value:
                raise ValueError(f"the header {name!r} can't be sent")
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(origin, self._proxy)
        proxy = self._proxies[origin]
        session = self._session or self._open()
        if proxy is not None and origin.scheme == "http":
            # In a tunnel only the proxy sees it.
            headers = {**headers, **proxy.login}
        url = URL(f"{origin.scheme}://{origin.authority}{target}", encoded=True)
        for last in (method not in _ALSO_REPEATABLE, True):
            try:
                response = await session.request(
                    method,
                    url,
                    headers=headers,
                    data=None if body is None else _Payload(body),
                    allow_redirects=False,
                    proxy=proxy.address if proxy else None,
                    proxy_headers=proxy.login if proxy and origin.scheme == "https" else None,
                    # What has no type is told without one.
                    skip_auto_headers=None if method == "GET" or "Content-Type" in headers else _TYPE,
                )
                return Response(response)
            except (aiohttp.ClientError, aiohttp.EofStream, OSError) as error:
                translated = _translated(error, proxy, origin.scheme)
                if last or not isinstance(translated, Broken):
                    raise translated from error
        raise AssertionError

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0, ssl=self._tls, keepalive_timeout=self._keep, resolver=aiohttp.ThreadedResolver()
        )
        # The one thing of aiohttp's that is not public.
        connector._factory = partial(Connection, self._timeout, connector._loop)  # type: ignore[assignment]
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            # Progress is watched by the connection.
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout),
            read_bufsize=_AHEAD // 2,
            max_line_size=LONGEST_HEAD,
            max_field_size=LONGEST_HEAD,
            max_headers=LONGEST_HEAD,
        )
        return self._session


class Response:
    """A status, headers, and a body that is read chunk by chunk."""

    __slots__ = ("_connection", "_response", "headers", "reason", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        # None where the answer was whole with its head.
        self._connection = cast("Connection | None", response.connection and response.connection.protocol)
        if self._connection is not None:
            self._connection.waiting = False
        self.status = response.status
        self.reason = response.reason
        self.headers: CIMultiDictProxy[str] = response.headers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._response.content.is_eof():
            self._response.close()
        await self._response.wait_for_close()

    async def read(self) -> bytes:
        """The next bytes of the body, as they came; none at its end. Raises Cut, NoHttp."""
        connection, content = self._connection, self._response.content
        if connection is not None:
            connection.wait()
        try:
            return await content.readany()
        except aiohttp.ClientPayloadError as error:
            fault = connection.exception() if connection is not None else None
            if isinstance(fault, NoHttp):
                raise fault from error
            if isinstance(fault, HttpProcessingError):
                raise NoHttp(_line(fault.message)) from error
            raise Cut("the body was cut off", content.total_bytes) from error
        except aiohttp.ClientError as error:
            raise _translated(error) from error
        finally:
            if connection is not None:
                connection.waiting = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read():
            yield chunk

    @property
    def ended(self) -> bool:
        """Was the body read to its end?"""
        return self._response.content.at_eof()


class _Payload(aiohttp.Payload):
    """A body as aiohttp sends it; with the length that it told, or not at all."""

    def __init__(self, body: Sendable | bytes) -> None:
        super().__init__(body)
        self._size = len(body) if isinstance(body, bytes) else body.size

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002
        raise TypeError("a body is bytes")

    async def write(self, writer: AbstractStreamWriter) -> None:
        if isinstance(self._value, bytes):
            await writer.write(self._value)
            return
        sent = 0
        connection = cast("Connection", cast("Any", writer).protocol)
        # Else they would be joined with the first piece, which copies it.
        cast("Any", writer).send_headers()
        async with aclosing(cast("Any", self._value.chunks())) as chunks:
            connection.ours = True
            async for chunk in chunks:
                connection.ours = False
                connection.moved_at = asyncio.get_running_loop().time()
                await writer.write(chunk)
                sent += len(chunk)
                connection.ours = True
        connection.ours = False
        if sent != self._size:
            raise OSError(f"the body has {sent} bytes in place of {self._size}")


def _translated(error: BaseException, proxy: Proxy | None = None, scheme: str = "http") -> Exception:
    """An error of aiohttp's as exchange.py has them, or as Python does."""
    cause = error.__cause__
    if isinstance(error, TimeoutError):
        return TimeoutError(str(error))
    if isinstance(cause, ssl.SSLError | NoHttp):
        return cause
    if isinstance(error, aiohttp.ClientConnectorError):
        system = error.os_error
        silent = "it ended the connection" + (" during the TLS handshake" if scheme == "https" else "")
        what = system.strerror or str(system) or silent
        by = f"the proxy {proxy.name}: " if proxy and isinstance(error, aiohttp.ClientProxyConnectionError) else ""
        return NoConnection(system.errno, f"{by}{what}")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        told = f"the proxy {proxy.name if proxy else ''} answered {error.status} {_line(error.message)}".rstrip()
        return ProxyRefused(told) if error.status in {403, 407} else NoConnection(None, told)
    if isinstance(error, aiohttp.ClientResponseError):
        return NoHttp(_line(error.message))
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.EofStream):
        return Broken("the server closed it")
    if isinstance(error, aiohttp.ClientOSError) and type(cause) is OSError:
        # Of the body that was to be sent.
        return cause
    return Broken("it was reset")


def _line(message: str) -> str:
    """The first line of aiohttp's words, without the bytes that it quotes."""
    first = message.strip().partition("\n")[0].partition(": b'")[0].rstrip(":")
    return one_line(first, 100)
