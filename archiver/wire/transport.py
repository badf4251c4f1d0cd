"""A small HTTP/1.1 client for the way of the bytes: one request, one answer, connections that are used again.

It knows no redirect, no cookie, no proxy and no credential; recorder.py and store.py decide about those. A general
client spends more on a request than PostgreSQL, the hash and the system calls of a recording together
(docs/performance.md), so this one does what RFC 9112 asks of a client and nothing beside.

Raises OSError: NoConnection, Broken (what came is no HTTP, or the connection ended), Cut (the body ended early), an
ssl.SSLError; TimeoutError where nothing moved for too long; ValueError for a header that HTTP can't express.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from types import TracebackType
from typing import NamedTuple, Protocol, Self, cast

from aiohappyeyeballs import start_connection
from multidict import CIMultiDict
from yarl import URL

#: So many bytes of a body wait for their reader before the peer is made to wait.
_AHEAD = 1 << 20
_LONGEST_HEAD = 1 << 16
_HEAD_ENDS = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\r\n]*))?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Several versions of OpenSSL on an answer that is no TLS.
_NO_TLS = {"HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "WRONG_VERSION_NUMBER"}
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_HEX = re.compile(rb"[0-9a-fA-F]{1,15}")
#: Sent once more where a connection ends without a word: done twice, they leave what once leaves.
_REPEATABLE = {"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PROPFIND", "MKCOL", "MOVE"}


class NoConnection(OSError):
    """Nobody answers at that address."""


class Broken(OSError):
    """The connection ended in the middle, or what came is no HTTP."""


class Cut(Broken):
    """A body ended before its end."""


class NoHttp(Broken):
    """What came is no HTTP."""


class Origin(NamedTuple):
    """Whom to connect to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: URL) -> Origin:
        return cls(url.scheme.lower(), (url.raw_host or "").lower(), url.port or 80)

    @property
    def authority(self) -> str:
        """For the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}.get(self.scheme) else f"{host}:{self.port}"


def hint(error: BaseException, origin: Origin) -> str:
    """What is likely wrong with the configured address, where an error of the wire tells; else nothing."""
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
        return f"port {origin.port} speaks no TLS: write http:// in the config, or the port that speaks https"
    if isinstance(error, NoHttp) and origin.scheme == "http":
        return f"port {origin.port} speaks no plain HTTP: write https:// in the config, or another port"
    proxy = next((name for name in _PROXIES if os.environ.get(name)), None)
    if isinstance(error, NoConnection) and proxy is not None:
        return f"archiver connects directly and does not use the proxy that {proxy} names"
    return ""


class Sendable(Protocol):
    """A body that knows its length and can be sent again."""

    @property
    def size(self) -> int: ...

    def chunks(self) -> AsyncIterator[bytes | memoryview]: ...


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
    ) -> None:
        """``timeout``: seconds without progress."""
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._tls = tls
        self._keep = keep
        self._idle: defaultdict[Origin, list[_Connection]] = defaultdict(list)
        self._all: set[_Connection] = set()
        self._common = {"Accept": "*/*", **(headers or {})}

    async def close(self) -> None:
        for connection in list(self._all):
            connection.abort()
        self._idle.clear()
        # The sockets are closed in the loop's next turn.
        await asyncio.sleep(0)

    async def send(
        self,
        method: str,
        origin: Origin,
        target: str,
        headers: Mapping[str, str],
        body: Sendable | bytes | None = None,
    ) -> Answer:
        """One request; its answer, to be used as a context manager. ``target`` is what stands in the request line."""
        length = len(body) if isinstance(body, bytes) else body.size if body is not None else None
        if length is not None:
            framing = f"Content-Length: {length}\r\n"
        else:
            framing = "Content-Length: 0\r\n" if method in {"POST", "PUT"} else ""
        start = f"{method} {target} HTTP/1.1\r\nHost: {origin.authority}\r\n"
        head = f"{start}{_fields({**self._common, **headers})}{framing}\r\n".encode()
        connection = self._reused(origin) or await self._connected(origin)
        try:
            return await connection.exchange(method, head, body)
        except Broken:
            if connection.heard or method not in _REPEATABLE:
                raise
        # Most likely the server closed it while it was idle; and who dropped a new one may take the next.
        connection = await self._connected(origin)
        return await connection.exchange(method, head, body)

    def _reused(self, origin: Origin) -> _Connection | None:
        idle = self._idle[origin]
        while idle:
            connection = idle.pop()
            if connection.usable(self._keep):
                return connection
            connection.abort()
        return None

    async def _connected(self, origin: Origin) -> _Connection:
        loop = asyncio.get_running_loop()
        secure = self._context() if origin.scheme == "https" else None
        try:
            async with asyncio.timeout(self._connect_timeout):
                found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
                sock = await start_connection(found, happy_eyeballs_delay=0.25)
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, origin, self._timeout, loop),
                    sock=sock,
                    ssl=secure,
                    server_hostname=origin.host if secure else None,
                )
        except (ssl.SSLError, TimeoutError):
            raise
        except OSError as error:
            silent = "it ended the connection during the TLS handshake" if secure else "it ended the connection"
            raise NoConnection(error.errno, error.strerror or str(error) or silent) from error
        return connection

    def _context(self) -> ssl.SSLContext:
        if not isinstance(self._tls, ssl.SSLContext):
            context = ssl.create_default_context()
            if not self._tls:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._tls = context
        return self._tls

    def opened(self, connection: _Connection) -> None:
        self._all.add(connection)

    def closed(self, connection: _Connection) -> None:
        self._all.discard(connection)
        idle = self._idle[connection.origin]
        if connection in idle:
            idle.remove(connection)

    def idle(self, connection: _Connection) -> None:
        idle = self._idle[connection.origin]
        idle.append(connection)
        if not idle[0].usable(self._keep):
            idle.pop(0).abort()


class Answer:
    """A status, headers, and a body that is read chunk by chunk."""

    __slots__ = ("_connection", "headers", "reason", "status")

    def __init__(self, connection: _Connection, status: int, reason: str, headers: CIMultiDict[str]) -> None:
        self._connection = connection
        self.status = status
        self.reason = reason
        self.headers = headers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.finish()

    async def read(self) -> bytes:
        """The next bytes of the body, as they came; none at its end. Raises Cut."""
        return await self._connection.next_chunk()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._connection.next_chunk():
            yield chunk

    @property
    def ended(self) -> bool:
        """Was the body read to its end?"""
        return self._connection.ended


class _Connection(asyncio.Protocol):
    """One connection: a request goes out, head and body of its answer come in."""

    def __init__(self, pool: Transport, origin: Origin, timeout: float, loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        #: Did any byte of an answer come?
        self.heard = False
        self._pool = pool
        self._timeout = timeout
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._moved_at = 0.0
        self._unsent = 0
        self._full = False
        self._method: str | None = None
        self._head = b""
        self._answer: Answer | None = None
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._halted = False
        #: Bytes of the body (of a chunk) that are still to come; None: until the connection ends.
        self._left: int | None = 0
        self._chunked = ""
        self._line = b""
        #: Bytes of trailers so far.
        self._trailed = 0
        self._whole = True
        self._reusable = False
        self._error: BaseException | None = None
        self._lost = False

    # -- what asyncio calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pool.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._pool.closed(self)
        self._stop_timer()
        if self._error is None and not self._whole:
            if self._answer is None:
                said = "it was reset" if exc is not None else "the server closed it"
                self._error = exc if isinstance(exc, ssl.SSLError) else Broken(said)
            elif self._left is None and not self._chunked and exc is None:
                self._whole = True
            else:
                self._error = Cut("the body was cut off")
        self._full = False
        self._wake()

    def eof_received(self) -> None:
        """Close; connection_lost tells the rest."""

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        self._moved_at = self._loop.time()
        self.heard = True
        if self._error is not None or self._method is None:
            # Nobody asked for this.
            self._reusable = False
            self.abort()
            return
        try:
            if self._answer is None:
                data = self._read_head(data)
            if data and self._answer is not None:
                self._read_body(data)
        except Broken as error:
            self._error = error
            self._reusable = False
            self.abort()
        self._wake()

    # -- one exchange ------------------------------------------------------------------------------------------------

    def usable(self, keep: float) -> bool:
        """May an idle connection be used once more?"""
        return not self._lost and not self._closing() and self._loop.time() - self._moved_at < keep

    @property
    def ended(self) -> bool:
        return self._whole and not self._chunks

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def exchange(self, method: str, head: bytes, body: Sendable | bytes | None) -> Answer:
        """Send the request; its answer as soon as its head is there, be it before all was sent."""
        assert self._transport is not None
        self.heard, self._whole, self._reusable = False, False, True
        self._method, self._answer, self._head = method, None, b""
        self._moved_at, self._unsent = self._loop.time(), 0
        self._start_timer()
        try:
            if self._lost or self._closing():
                raise Broken("the server closed it")
            self._transport.write(head)
            if isinstance(body, bytes):
                await self._push(body)
            elif body is not None:
                await self._upload(body)
            while self._answer is None:
                if self._error is not None:
                    raise self._error
                await self._wait()
        except BaseException:
            self._reusable = False
            self.finish()
            raise
        return self._answer

    async def _upload(self, body: Sendable) -> None:
        sent = 0
        async for chunk in body.chunks():
            if not await self._push(chunk):
                return
            sent += len(chunk)
        if sent != body.size:
            raise OSError(f"the body has {sent} bytes in place of {body.size}")

    async def _push(self, chunk: bytes | memoryview) -> bool:
        """Send; False where the server answered before it had everything, and so wants no more."""
        assert self._transport is not None
        if self._answer is not None:
            self._reusable = False
            return False
        if self._error is not None:
            raise self._error
        self._moved_at = self._loop.time()
        self._transport.write(chunk)
        while self._full and self._answer is None and self._error is None:
            await self._wait()
        return True

    async def next_chunk(self) -> bytes:
        while not self._chunks:
            if self._whole:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()
        chunk = self._chunks.popleft()
        self._held -= len(chunk)
        if self._halted and self._held < _AHEAD // 2 and self._transport is not None:
            self._halted = False
            self._moved_at = self._loop.time()
            self._transport.resume_reading()
        return chunk

    def finish(self) -> None:
        """The exchange is over: the connection waits for the next one, or ends where bytes are left to come."""
        self._stop_timer()
        whole, self._method = self._whole and not self._full, None
        self._chunks.clear()
        self._held = 0
        if whole and self._reusable and not self._lost and not self._closing() and self._unbuffered():
            self._moved_at = self._loop.time()
            self._pool.idle(self)
        else:
            self.abort()

    def _unbuffered(self) -> bool:
        return self._transport is not None and self._transport.get_write_buffer_size() == 0

    def _closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    # -- waiting -----------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _start_timer(self) -> None:
        self._timer = self._loop.call_later(self._timeout, self._look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """One timer an exchange, which looks whether anything moved: cheaper than one a read."""
        now = self._loop.time()
        unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if self._waiter is None or unsent != self._unsent:
            # It is ours to go on, or bytes still go out.
            self._unsent, self._moved_at = unsent, now
        left = self._moved_at + self._timeout - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
            return
        self._timer = None
        self._error = TimeoutError(f"nothing moved for {self._timeout:g} s")
        self._reusable = False
        self.abort()
        self._wake()

    # -- reading -----------------------------------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> bytes:
        """Take the head off; what follows it."""
        while True:
            data = self._head + data if self._head else data
            end = _HEAD_ENDS.search(data)
            if end is None:
                if len(data) > _LONGEST_HEAD or not data[:5].startswith(b"HTTP/"[: len(data)]):
                    raise NoHttp("the answer is no HTTP")
                self._head = data
                return b""
            head, data, self._head = data[: end.start()], data[end.end() :], b""
            lines = head.split(b"\n")
            said = _STATUS.fullmatch(lines[0].rstrip(b"\r"))
            if said is None or end.start() > _LONGEST_HEAD:
                raise NoHttp("the answer is no HTTP")
            status = int(said[2])
            # 100 Continue and its like come before the answer.
            if status >= 200 or status == 101:
                break
        headers = _headers(lines[1:])
        reason = (said[3] or b"").decode("utf-8", "replace")
        self._frame(status, headers, old=said[1] == b"0")
        self._answer = Answer(self, status, reason, headers)
        return data

    def _frame(self, status: int, headers: CIMultiDict[str], *, old: bool) -> None:
        """How long the body is (RFC 9112, 6.3), and whether another exchange may follow it."""
        options = headers.get("Connection", "").lower()
        self._reusable = self._reusable and "close" not in options and (not old or "keep-alive" in options)
        self._chunked, self._left, self._line = "", None, b""
        lengths = set(headers.getall("Content-Length", ()))
        if self._method == "HEAD" or status in {204, 304}:
            self._left = 0
        elif "Transfer-Encoding" in headers:
            if headers["Transfer-Encoding"].strip().lower() != "chunked":
                raise Broken("it uses a transfer encoding that nobody asked for")
            self._chunked = "size"
        elif lengths:
            length = lengths.pop()
            if lengths or not (length.isascii() and length.isdigit()) or len(length) > 18:
                raise Broken("it tells no usable length")
            self._left = int(length)
        else:
            self._reusable = False
        self._whole = self._left == 0

    def _read_body(self, data: bytes) -> None:
        if self._chunked:
            self._read_chunks(data)
        elif self._left is None:
            self._hold(data)
        else:
            if len(data) > self._left:
                # More than it promised: whatever that is, the connection is not to be trusted.
                data, self._reusable = data[: self._left], False
            self._left -= len(data)
            self._whole = self._left == 0
            self._hold(data)

    def _read_chunks(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._whole:
                self._reusable = False
                return
            if self._chunked == "data" and self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self._hold(piece)
                continue
            end = data.find(b"\n", at)
            line, at = data[at : end if end >= 0 else None], end + 1 or len(data)
            self._line += line
            if len(self._line) > _LONGEST_HEAD:
                raise Broken("a chunk's head is too long")
            if end < 0:
                return
            line, self._line = self._line.strip(), b""
            if self._chunked == "data":
                if line:
                    raise Broken("a chunk is longer than it said")
                self._chunked = "size"
            elif self._chunked == "size":
                size = line.partition(b";")[0].rstrip()
                if not _HEX.fullmatch(size):
                    raise Broken("a chunk tells no size")
                self._left = int(size, 16)
                self._chunked = "data" if self._left else "trailer"
                self._trailed = 0
            elif not line:
                self._whole = True
            else:
                self._trailed += len(line)
                if self._trailed > _LONGEST_HEAD:
                    raise Broken("its trailers are too long")

    def _hold(self, data: bytes) -> None:
        if not data:
            return
        self._chunks.append(data)
        self._held += len(data)
        if self._held > _AHEAD and not self._halted and not self._whole and self._transport is not None:
            self._halted = True
            self._transport.pause_reading()


def _headers(lines: list[bytes]) -> CIMultiDict[str]:
    return CIMultiDict([_known_header(line) if len(line) < 200 else _header(line) for line in lines])


def _header(line: bytes) -> tuple[str, str]:
    name, colon, value = line.decode("utf-8", "surrogateescape").partition(":")
    if not colon or not _NAME.fullmatch(name):
        raise Broken("the answer's headers are no HTTP")
    return name, value.strip()


#: Most lines are the same in every answer.
_known_header = lru_cache(1024)(_header)


def _fields(headers: Mapping[str, str]) -> str:
    """As they go on the wire. Raises ValueError."""
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or "\n" in value or "\r" in value or "\0" in value:
            raise ValueError(f"the header {name!r} can't be sent")
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
