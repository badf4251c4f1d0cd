"""Where bytes wait between source and store: in memory up to a cap for all, beyond it in files."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

import structlog

from ..common.room import NoRoom, lacking, taken
from ..common.words import reason_of
from ..errors import SpoolDown
from ..model import Body

log = structlog.get_logger()

_STEP = 1 << 20
#: A longer body goes to a file whatever room there is: joined it would take twice its length, and few are so long.
_LONGEST_IN_MEMORY = 8 << 20


class Spool:
    """Hands out sinks that share ``memory`` bytes; what does not fit goes to files in ``folder``."""

    def __init__(self, folder: Path, memory: int, reserve: int | None = None) -> None:
        """``reserve``: so much of its disk stays free (None: see room.py)."""
        self.folder = folder
        self.memory = memory
        self.reserve = reserve
        self._lacked = False
        self.used = 0
        folder.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Remove what a killed process left behind: files that no process holds a lock on."""
        for file in self.folder.glob("*.part"):
            with contextlib.suppress(OSError), file.open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink(missing_ok=True)

    def demand_room(self) -> None:
        """Raises SpoolDown where its disk, and that of an embedded database, is filled to the reserve."""
        self._said(why := lacking(self.folder, self.reserve))
        if why is not None:
            raise SpoolDown(why)

    @contextlib.contextmanager
    def room(self, wanted: int) -> Iterator[None]:
        """As :meth:`demand_room`, for so many bytes, until they are written."""
        try:
            with taken(self.folder, self.reserve, wanted):
                yield
        except NoRoom as error:
            self._said(str(error))
            raise SpoolDown(str(error)) from None

    def _said(self, why: str | None) -> None:
        """Log where it changed."""
        if (why is not None) != self._lacked:
            self._lacked = why is not None
            if why is not None:
                log.error("disk.reserve", error=f"{why}; nothing is downloaded until there is room")
            else:
                log.info("disk.room", path=str(self.folder))

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
        self._path: Path | None = None
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
        if self._file is None and self.length <= _LONGEST_IN_MEMORY and self._spool.take(len(chunk)):
            self._taken += len(chunk)
            # hashlib gives up the GIL for chunks like these, but a thread costs more than hashing them here.
            self._hash.update(chunk)
        elif self._file is None:
            unhashed = self._chunks.pop()
            await _in_thread(self._spill)
            self._chunks, self._waiting = [unhashed], len(unhashed)
        elif self._waiting >= _STEP:
            await _in_thread(self._append)

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
        await _in_thread(self._append)
        await _in_thread(self._file.flush)
        return Body(self.length, self._hash.hexdigest(), path=self._path)

    def sha256(self) -> str:
        """Of the bytes so far. Blocking where the last ones wait for the disk."""
        unhashed = self._hash.copy()
        for chunk in self._chunks if self._file is not None else ():
            unhashed.update(chunk)
        return unhashed.hexdigest()

    def _spill(self) -> None:
        """What is hashed already moves from memory to a new file."""
        joined = b"".join(self._chunks)
        with self._spool.room(len(joined)):
            self._file, self._path = _new_file(self._spool.folder)
            self._file.write(joined)
            self._file.flush()
        self._give_back()

    def _append(self) -> None:
        joined = b"".join(self._chunks)
        self._chunks, self._waiting = [], 0
        self._hash.update(joined)
        if self._file is not None:
            with self._spool.room(len(joined)):
                self._file.write(joined)
                self._file.flush()

    def _give_back(self) -> None:
        self._spool.used -= self._taken
        self._taken = 0

    def _forget(self) -> None:
        self._give_back()
        self._chunks, self._waiting = [], 0
        if self._file is not None and self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            # Raises where the disk is full: it writes what is left.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = self._path = None


def _new_file(folder: Path) -> tuple[BinaryIO, Path]:
    while True:
        handle, name = tempfile.mkstemp(suffix=".part", dir=folder)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if (path := Path(name)).exists():
            return os.fdopen(handle, "wb"), path
        # Another process's clear() was quicker.
        os.close(handle)


async def _in_thread(step: Callable[[], object]) -> None:
    """To its end, also where the waiting is cancelled: the sink may not be left while a thread works on it."""
    task = asyncio.ensure_future(asyncio.to_thread(step))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
    except OSError as error:
        raise SpoolDown(f"the spool in data_dir can't be written: {reason_of(error)}") from error
