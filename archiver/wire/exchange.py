"""Whom a request goes to, what is sent and answered, and what can go wrong; nothing here waits for the client's import.

All that can go wrong is an OSError. Beside these come ssl.SSLError, TimeoutError where nothing moved for too long, and
ValueError for what HTTP can't express.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from multidict import CIMultiDictProxy
from yarl import URL

#: Several versions of OpenSSL on an answer that is no TLS.
_NO_TLS = {"HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "WRONG_VERSION_NUMBER"}


class NoConnection(OSError):
    """Nobody answers at that address."""


class ProxyRefused(OSError):
    """The proxy wants a log-in that it does not get, or lets nobody through to that address."""


class Broken(OSError):
    """The connection ended in the middle."""


class Cut(Broken):
    """A body ended before its end."""

    def __init__(self, what: str, received: int) -> None:
        super().__init__(what)
        #: So many bytes of it came.
        self.received = received


class NoHttp(OSError):
    """What came is no valid HTTP. ``foreign``: it does not even begin like HTTP."""

    def __init__(self, what: str, *, foreign: bool = False) -> None:
        super().__init__(what)
        self.foreign = foreign

    @property
    def told(self) -> str:
        return f"its answer is no valid HTTP: {self}"


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


class Sendable(Protocol):
    """A body that knows its length and can be sent again."""

    @property
    def size(self) -> int: ...

    def chunks(self) -> AsyncIterator[bytes | memoryview]: ...


class Answer(Protocol):
    """A status, headers, and a body that is read chunk by chunk."""

    status: int
    reason: str | None
    headers: CIMultiDictProxy[str]

    async def read(self) -> bytes:
        """The next bytes of the body, as they came; none at its end. Raises Cut, NoHttp, TimeoutError."""

    @property
    def ended(self) -> bool:
        """Was the body read to its end?"""


def hint(error: BaseException, origin: Origin) -> str:
    """What is likely wrong with the configured address, where an error of the wire tells; else nothing."""
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
        return f"port {origin.port} speaks no TLS: write http:// in the config, or the port that speaks https"
    if isinstance(error, NoHttp) and error.foreign and origin.scheme == "http":
        return f"port {origin.port} speaks no plain HTTP: write https:// in the config, or another port"
    return ""
