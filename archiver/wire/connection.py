"""A connection of aiohttp's that mends the head of an answer before it is read, and watches that something moves."""

from __future__ import annotations

import asyncio
import fcntl
import re
import sys
import termios
from contextlib import suppress
from typing import Any

from aiohttp import ClientPayloadError
from aiohttp.client_proto import ResponseHandler

from .exchange import NoHttp
from .heads import mended

LONGEST_HEAD = 1 << 16
_HEAD_ENDS = re.compile(rb"\r?\n\r?\n")
_INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)\d\d")


class Connection(ResponseHandler):
    """One connection: mends the head of an answer before it is read, and watches that something moves."""

    def __init__(self, timeout: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._patience = timeout
        self._watch: asyncio.TimerHandle | None = None
        self._unsent = 0
        #: What came of a head so far; None where none is to come.
        self._head: bytes | None = None
        #: So many bytes came since the last one of a body.
        self._bare = 0
        #: When something last moved, by the loop's clock.
        self.moved_at = 0.0
        #: Does anybody wait for the peer? ``ours``: the next bytes to send are still fetched.
        self.waiting = self.ours = False

    # -- the head --------------------------------------------------------------------------------------------------

    def set_response_params(self, **how: Any) -> None:
        """A request begins."""
        self._head, self._bare = b"", 0
        self.wait()
        super().set_response_params(**how)

    def data_received(self, data: bytes) -> None:
        if not data:
            # Reading goes on where it was paused, in the midst of what had come.
            return super().data_received(data)
        self.moved_at = self._loop.time()
        while data and self._head is not None:
            data = (self._head + data).lstrip(b"\r\n")
            end = _HEAD_ENDS.search(data)
            if not data[:5].startswith(b"HTTP/"[: len(data)]):
                return self._refuse(NoHttp("it does not begin like one", foreign=True))
            if (end.start() if end else len(data)) > LONGEST_HEAD:
                return self._refuse(NoHttp(f"its head is longer than {LONGEST_HEAD} bytes"))
            if end is None:
                self._head = data
                return None
            head, data = data[: end.start()], data[end.end() :]
            # 100 Continue and its like come before the answer.
            self._head = b"" if _INTERIM.match(head) else None
            try:
                super().data_received(mended(head))
            except NoHttp as error:
                return self._refuse(error)
        if not data:
            return None
        if self._payload is None or self._payload.is_eof():
            # Nobody asked for this, or it is more than was promised.
            self.force_close()
            self.abort()
            return None
        payload, before = self._payload, self._payload.total_bytes
        super().data_received(data)
        self._bare = self._bare + len(data) if payload.total_bytes == before else 0
        if self._bare > LONGEST_HEAD and not payload.is_eof():
            return self._refuse(NoHttp(f"a chunk's head or its trailers are longer than {LONGEST_HEAD} bytes"))
        if self.exception() is not None and self.transport is not None:
            # Not only once all is sent.
            self.transport.abort()
        return None

    def _refuse(self, error: NoHttp) -> None:
        self.set_exception(error)
        if self.transport is not None:
            self.transport.abort()

    # -- progress --------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """From now on something must move."""
        self.waiting, self.moved_at = True, self._loop.time()
        if self._watch is None:
            self._watch = self._loop.call_later(self._patience, self._look)

    def _look(self) -> None:
        """One timer a connection, which looks whether anything moved: cheaper than one a read."""
        self._watch = None
        now = self._loop.time()
        unsent = self._sending()
        if unsent != self._unsent or self.ours:
            # Bytes still go out, or it is ours to go on.
            self._unsent, self.moved_at = unsent, now
        left = self.moved_at + self._patience - now
        if not self.waiting or self.transport is None:
            return
        if left > 0:
            self._watch = self._loop.call_later(left, self._look)
            return
        error = TimeoutError(f"nothing moved for {self._patience:g} s")
        payload = self._payload
        self.set_exception(error)
        if payload is not None:
            payload.set_exception(error)
        self.abort()

    def _sending(self) -> int:
        """So many bytes the peer has not taken yet, here and in the kernel."""
        if self.transport is None:
            return 0
        queued = bytearray(4)
        with suppress(OSError, AttributeError, ValueError):
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    # -- its end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """At once: what is still to be sent or to come is not wanted, and must not hold up anybody."""
        self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        payload = self._payload
        super().connection_lost(exc)
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            # Of a body that is no valid HTTP its reader is told nothing.
            payload.set_exception(ClientPayloadError("the body broke off"))
