"""Sinks before a sink: what a source wants to know of bytes on their way (see ports.Sink)."""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import io
from collections.abc import Awaitable, Callable
from typing import IO

from ...audio import Audio, inspect
from ...errors import Overflow
from ...model import Body
from ...ports import Sink

#: No API says more than that where audio should be.
_PEEK = 64 << 10
#: A check looks at no longer a recording.
_SAMPLE = 64 << 20
_BLANK = b"\xef\xbb\xbf \t\r\n"


class Capped:
    """Writes to a file that takes no more than so many bytes; Overflow names them by ``what`` and ``option``."""

    def __init__(self, file: IO[bytes], largest: int, what: str, option: str) -> None:
        self._file = file
        self._largest = largest
        self._refusal = f"the {what} is longer than {largest} bytes ({option})"
        self._held = 0

    async def write(self, chunk: bytes) -> None:
        self._held += len(chunk)
        if self._held > self._largest:
            raise Overflow(self._refusal)
        await asyncio.to_thread(self._file.write, chunk)

    def told(self, *, content_type: str | None = None) -> None:
        """Of no use here."""

    async def restart(self) -> None:
        self._held = 0
        self._file.seek(0)
        self._file.truncate()


async def sampled(fetch: Callable[[Sink], Awaitable[None]]) -> tuple[int, Audio]:
    """One medium, fetched to see what comes: its size, and what it is. Raises SourceError."""
    held = io.BytesIO()
    await fetch(Capped(held, _SAMPLE, "sample", "a check fetches no longer one"))
    body = Body.of(held.getvalue())
    return body.length, await asyncio.to_thread(inspect, body, opaque=True)


class Measured:
    """Passes bytes on, and knows their length and hash."""

    def __init__(self, into: Sink) -> None:
        self._into, self.size, self.digest = into, 0, hashlib.sha256()
        self.told = into.told

    async def write(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.digest.update(chunk)
        await self._into.write(chunk)

    async def restart(self) -> None:
        self.size, self.digest = 0, hashlib.sha256()
        await self._into.restart()


class AudioOnly:
    """Passes audio on, and keeps to itself an error that came as text in its place. End it with :meth:`finish`."""

    def __init__(self, into: Sink) -> None:
        self._into = into
        self._held = bytearray()
        self._open = False
        self._named_text = False

    def told(self, *, content_type: str | None = None) -> None:
        self._named_text = any(word in (content_type or "").lower() for word in ("json", "text", "xml"))
        self._into.told(content_type=content_type)

    async def write(self, chunk: bytes) -> None:
        if not self._open:
            if len(self._held) > _PEEK:
                return
            self._held += chunk
            if self._is_text():
                return
            chunk, self._held, self._open = bytes(self._held), bytearray(), True
        await self._into.write(chunk)

    async def restart(self) -> None:
        self._held.clear()
        self._open = False
        await self._into.restart()

    async def finish(self) -> bytes | None:
        """The text that came in place of audio, if so (of a long one its beginning)."""
        if not self._open and self._held.strip(_BLANK):
            return bytes(self._held)
        if self._held:
            await self._into.write(bytes(self._held))
        return None

    def _is_text(self) -> bool:
        """Does it begin as an answer does, and is it UTF-8, perhaps cut off, without a NUL?

        Encrypted bytes and silence are not.
        """
        begin = bytes(self._held.lstrip(_BLANK)[:1])
        if not self._named_text and begin not in {b"", b"{", b"[", b"<"}:
            return False
        try:
            codecs.getincrementaldecoder("utf-8")().decode(bytes(self._held))
        except UnicodeDecodeError:
            return False
        return b"\0" not in self._held
