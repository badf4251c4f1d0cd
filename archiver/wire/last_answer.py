"""What a recorder answered last, for whoever must say later why a request failed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from time import monotonic

from .exchange import Answer

#: So many bytes of a body are kept for their hash: an error is seldom longer.
_KEPT = 64 << 10
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,40}/[a-z0-9.+-]{1,60}")


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


#: That of the task that asks, if anyone wants to know.
LAST_ANSWER: ContextVar[LastAnswer | None] = ContextVar("last_answer", default=None)


@contextmanager
def last_answer() -> Iterator[LastAnswer]:
    """What is answered meanwhile, to this task and those that it starts."""
    token = LAST_ANSWER.set(last := LastAnswer())
    try:
        yield last
    finally:
        LAST_ANSWER.reset(token)


@lru_cache(256)
def _media_type(told: str) -> str:
    plain = told.split(";")[0].strip().lower()
    return plain if _MEDIA_TYPE.fullmatch(plain) else ""
