"""Where bytes wait between source and store: in memory up to a cap for all, beyond it in files."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import BinaryIO, Self

from .model import Body

_STEP = 1 << 20


class Spool:
    """Hands out sinks that share ``memory`` bytes; what does not fit goes to files in ``folder``."""

    def __init__(self, folder: Path, memory: int) -> None:
        self.folder = folder
        self.memory = memory
        self.used = 0
        folder.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Remove what a killed process left behind (files whose process is gone)."""
        for file in self.folder.glob("*.part"):
            pid = file.name.split("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                file.unlink(missing_ok=True)

    def sink(self) -> SpoolSink:
        return SpoolSink(self)

    def take(self, size: int) -> bool:
        if self.used + size > self.memory:
            return False
        self.used += size
        return True


class SpoolSink:
    """A ports.Sink. Use as a context manager: at its end the bytes are given up."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._chunks: list[bytes] = []
        self._taken = 0
        self._waiting = 0
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None
        self.length = 0
        self.content_type: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()

    def told(self, *, content_type: str | None = None) -> None:
        self.content_type = content_type

    async def write(self, chunk: bytes) -> None:
        self.length += len(chunk)
        self._chunks.append(chunk)
        self._waiting += len(chunk)
        if self._file is None and self._spool.take(len(chunk)):
            self._taken += len(chunk)
            # hashlib gives up the GIL for chunks like these, but a thread costs more than hashing them here.
            self._hash.update(chunk)
        elif self._file is None:
            unhashed = self._chunks.pop()
            await asyncio.to_thread(self._spill)
            self._chunks, self._waiting = [unhashed], len(unhashed)
        elif self._waiting >= _STEP:
            await asyncio.to_thread(self._append)

    async def restart(self) -> None:
        self._forget()
        self._hash = hashlib.sha256()
        self.length = 0

    async def body(self) -> Body:
        """All bytes that came. Only once; valid until the sink is left."""
        if self._file is None:
            data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks = [data]
            return Body(self.length, self._hash.hexdigest(), data=data)
        await asyncio.to_thread(self._append)
        await asyncio.to_thread(self._file.flush)
        return Body(self.length, self._hash.hexdigest(), path=Path(self._file.name))

    def _spill(self) -> None:
        """What is hashed already moves from memory to a new file."""
        handle, path = tempfile.mkstemp(prefix=f"{os.getpid()}-", suffix=".part", dir=self._spool.folder)
        os.close(handle)
        self._file = Path(path).open("wb")  # noqa: SIM115 - lives as long as the sink
        self._file.write(b"".join(self._chunks))
        self._give_back()

    def _append(self) -> None:
        joined = b"".join(self._chunks)
        self._chunks, self._waiting = [], 0
        self._hash.update(joined)
        if self._file is not None:
            self._file.write(joined)

    def _give_back(self) -> None:
        self._spool.used -= self._taken
        self._taken = 0

    def _forget(self) -> None:
        self._give_back()
        self._chunks, self._waiting = [], 0
        if self._file is not None:
            self._file.close()
            with contextlib.suppress(OSError):
                Path(self._file.name).unlink(missing_ok=True)
            self._file = None
