"""A folder, on a local disk or a mounted one.

How a file gets there whole is in disk.py. Files that come while others are being put go together, in a process of
their own where that pays (apart.py); large ones, and those on file systems on which it does not pay, go by themselves.
"""

# System calls by their names, as in disk.py.
# ruff: noqa: PTH108, PTH116, PTH118, PTH123
from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ClassVar, ParamSpec, TypeVar

from ..common.room import NoRoom, taken
from ..common.words import reason_of
from ..errors import ArchiverError, ObjectFailed, StoreDown, StoreError, StoreFull, StoreRefused
from ..model import CHUNK, Body, Receipt
from ..ports import Sink
from ..settings.options import Size, StoreOptions
from .apart import ROOM, Apart, Unavailable
from .canary import canary_key, clear_canaries, of_the_store, prove, rehearse_names
from .disk import FEW, Disk, File, readable
from .folders import Entries, walk
from .names import MARKER, is_temporary

P = ParamSpec("P")
T = TypeVar("T")

#: fsync waits for the disk, not for Python: many at once share one journal commit.
_THREADS = 32
#: So many files go together at most; larger ones go alone.
_GROUP_FILES = 64
_LARGE = 4 << 20
#: A process that has nothing to do for so many seconds ends.
_REST = 60.0
#: Slower than this a disk is as good as dead.
_BYTES_A_SECOND = 1 << 20
#: A temporary this old belongs to nobody any more.
_STALE = 86400.0
_OURS_TO_MEND = {
    errno.EACCES: "may not write there: give the archiver's user access",
    errno.EPERM: "may not write there: give the archiver's user access",
}
#: What concerns one file only, whatever else the disk does.
_OF_THE_FILE = {
    errno.EFBIG: "the file is too large for this file system",
    errno.EILSEQ: "this file system can't express the name",
    errno.EISDIR: "a folder lies under that name",
    errno.ELOOP: "the path runs through a circle of symbolic links",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.ENOTDIR: "a part of the path is a file",
}


#: Files with whom to tell what came of each.
_Group = list[tuple[File, asyncio.Future[None]]]


class FileOptions(StoreOptions):
    #: Made where its parent folder exists (a missing parent is more likely a disk that is not mounted).
    path: Path
    #: So much of its disk stays free; none: 1 GiB or 2 % of it, whichever is more, but at most a tenth.
    reserve: Size | None = None


class _Unproven(Exception):
    """Another folder lies at the path than the one that was proved to be the store's."""


class FileStore:
    """One folder. Raises only errors.StoreError."""

    Options: ClassVar[type[StoreOptions]] = FileOptions

    def __init__(self, name: str, options: StoreOptions) -> None:
        assert isinstance(options, FileOptions)
        self.name = name
        self.options = options
        self._threads: ThreadPoolExecutor | None = None
        self._disk = Disk(str(options.path))
        self._apart = Apart(str(options.path))
        self._busy = False
        self._rest: asyncio.TimerHandle | None = None
        #: What waits for the next group; the bytes of all that is being put together.
        self._waiting: deque[tuple[File, asyncio.Future[None]]] = deque()
        self._bytes = 0
        #: Asks which id the store's folder has; None: nobody knows, and any folder will do.
        self.known: Callable[[], Awaitable[str | None]] | None = None
        #: Which folder (device, inode) has it.
        self._proven: tuple[int, int] | None = None

    async def marker(self) -> str | None:
        """The id in the folder's root, where there is one."""
        return await self._asked(0, self._read_marker)

    async def mark(self) -> str:
        """Give the folder an id, unless it has one; that id."""
        return await self._asked(0, self._write_marker)

    def location(self, key: str) -> dict[str, str]:
        return {"kind": "file", "path": str(self.options.path / key)}

    async def close(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)
        await asyncio.to_thread(self._apart.close)
        if self._rest is not None:
            self._rest.cancel()

    async def check(self) -> str:
        """Put, get, compare, list and delete canaries, one with the name of a medium; clear away what was left."""
        self._disk.forget_limits()
        await self._rehearse(canary_key(self.options.prefix))
        long = await rehearse_names(self.options.prefix, self._rehearse)
        await clear_canaries(self, self.options.prefix)
        where = await self._run(0, mounted, self.options.path)
        notes = [f"{self.options.path} ({where}): put, get, compare and delete work"]
        with contextlib.suppress(StoreError):
            notes.append(f"{await self._run(0, lambda: shutil.disk_usage(self.options.path).free) / 1e9:.1f} GB free")
        if removed := await self.remove_temporaries():
            notes.append(f"{removed} stale temporary files removed")
        notes += await self._run(0, self._disk.limits)
        if long:
            notes.append(long)
        return "; ".join(notes)

    async def _rehearse(self, key: str) -> None:
        body = Body.of(b"archiver canary " + secrets.token_bytes(32))
        with of_the_store():
            await self.put(key, body)
        try:
            if await self._run(body.length, self._disk.digest, key) != (body.length, body.sha256):
                raise StoreDown("the canary came back with other bytes")
            if [receipt.key async for receipt in self.list(key)] != [key]:
                raise StoreRefused("the folder does not show a file that was just put")
        finally:
            with contextlib.suppress(StoreDown):
                await self.delete(key)

    async def alive(self) -> None:
        await prove(self, self.options.prefix)

    async def put(self, key: str, body: Body) -> Receipt:
        file = File(key, body.length, body.sha256, body.chunks)
        if self._disk.together and body.data is not None and body.length <= _LARGE:
            await self._put_together(file)
        else:
            await self._run(body.length, self._put_alone, file)
        return Receipt(key=key, size=body.length, sha256=body.sha256)

    async def stat(self, key: str) -> Receipt | None:
        size = await self._run(0, self._disk.size, key)
        return None if size is None else Receipt(key=key, size=size)

    async def get(self, key: str, into: Sink) -> None:
        file = await self._run(0, self._disk.open, key)
        try:
            # pread: a thread left behind by a cancelled get must not move another file's position.
            offset = 0
            while chunk := await self._run(CHUNK, _read, key, file.fileno(), offset):
                offset += len(chunk)
                await into.write(chunk)
        finally:
            file.close()

    def list(self, prefix: str, after: str = "") -> AsyncIterator[Receipt]:
        """One folder in memory at a time; temporaries and names that are no text are left out."""

        async def entries(folder: str) -> Entries:
            return await self._run(0, self._entries, folder)

        return walk(entries, prefix, after)

    async def delete(self, key: str) -> None:
        await self._run(0, self._disk.delete, key)

    async def remove_temporaries(self, older_than: float = _STALE) -> int:
        """Clear away what killed processes left, older than so many seconds; returns how many."""
        return await self._run(1 << 40, self._remove_temporaries, time.time() - older_than)

    async def _put_together(self, file: File) -> None:
        try:
            await self._join(file)
        except _Unproven:
            await self._prove_folder()
            await self._join(file)

    async def _join(self, file: File) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((file, done))
        self._bytes += file.size
        patience = self._patience(self._bytes)
        timer = loop.call_later(patience, _give_up, done)
        try:
            self._begin()
            with self._translated(patience):
                await done
        finally:
            timer.cancel()
            self._bytes -= file.size

    def _begin(self) -> None:
        """Put what waits, one group at a time: meanwhile the next comes together."""
        if self._busy or not (group := self._next_group()):
            return
        if self._rest is not None:
            self._rest.cancel()
        self._work(self._put_all, [file for file, _ in group]).add_done_callback(partial(self._ended, group))

    def _ended(self, group: _Group, ended: asyncio.Future[None]) -> None:
        _tell(group, ended)
        if not self._busy:
            self._rest = asyncio.get_running_loop().call_later(_REST, self._let_rest)

    def _next_group(self) -> _Group:
        group: _Group = []
        length = 0
        while self._waiting and len(group) < _GROUP_FILES and length + self._waiting[0][0].size <= ROOM:
            file, done = self._waiting.popleft()
            if not done.done():
                group.append((file, done))
                length += file.size
        return group

    def _put_alone(self, file: File) -> None:
        with self._room(file.size):
            self._disk.put(file)

    @contextlib.contextmanager
    def _room(self, length: int, files: int = 1) -> Iterator[None]:
        try:
            with taken(self.options.path, self.options.reserve, length, files):
                yield
        except NoRoom as why:
            raise StoreFull(str(why)) from None

    def _put_all(self, files: Sequence[File]) -> None:
        self._demand_folder()
        with self._room(sum(file.size for file in files), len(files)):
            if len(files) >= FEW:
                with contextlib.suppress(Unavailable):
                    self._apart.put_all(files)
                    return
            self._disk.put_all(files)

    def _let_rest(self) -> None:
        if not self._busy:
            self._work(self._apart.close)

    def _work(self, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[None]:
        """In a thread; what came together meanwhile follows."""
        self._busy = True

        def ended(_: asyncio.Future[None]) -> None:
            self._busy = False
            self._begin()

        running = asyncio.get_running_loop().run_in_executor(self._pool(), lambda: work(*args, **kwargs))
        running.add_done_callback(ended)
        return running

    async def _run(self, length: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As :meth:`_asked`, in the store's own folder only. Raises StoreRefused where another one is there."""

        def in_its_folder() -> T:
            self._demand_folder()
            return work(*args, **kwargs)

        try:
            return await self._asked(length, in_its_folder)
        except _Unproven:
            await self._prove_folder()
            return await self._asked(length, in_its_folder)

    def _demand_folder(self) -> None:
        if self.known is not None and self._folder() != self._proven:
            raise _Unproven

    def _folder(self) -> tuple[int, int]:
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(self.options.path)
            return there.st_dev, there.st_ino
        return -1, -1

    async def _prove_folder(self) -> None:
        """Is what lies at the path the store's? Raises StoreError."""
        assert self.known is not None
        folder = await self._asked(0, self._folder)
        try:
            expected = await self.known()
        except ArchiverError as error:
            raise StoreDown(f"nobody can tell which disk it is: {error}") from None
        found = await self._asked(0, self._read_marker)
        if expected is not None and found != expected:
            raise self.stranger(found)
        self._proven = folder

    def stranger(self, found: str | None) -> StoreRefused:
        """Another folder lies there, with that id or none."""
        what = "no marker of a store" if not found else "the marker of another one"
        return StoreRefused(
            f"{self.options.path}: another disk? It has {what} ({MARKER}); nothing is put there until the store's disk"
            f" is mounted, or `archiver store {self.name} --accept` says that this is it"
        )

    def _read_marker(self) -> str | None:
        try:
            with open(os.path.join(self.options.path, MARKER), "rb") as file:
                told = json.loads(file.read(4096))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            return ""
        return str(told.get("id", "")) if isinstance(told, dict) else ""

    def _write_marker(self) -> str:
        if found := self._read_marker():
            return found
        made = secrets.token_hex(16)
        text = "This folder is a store of archiver. Leave this file here: it tells its disk from another."
        self._disk.write_own(MARKER, json.dumps({"id": made, "about": text}).encode() + b"\n")
        return self._read_marker() or made

    async def _asked(self, length: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Off the loop; where the disk hangs (a dead network mount), the thread stays behind."""
        patience = self._patience(length)
        with self._translated(patience):
            async with asyncio.timeout(patience):
                return await asyncio.get_running_loop().run_in_executor(self._pool(), lambda: work(*args, **kwargs))

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"store-{self.name}")
        return self._threads

    def _patience(self, length: int) -> float:
        """So many seconds a disk may take for so many bytes."""
        return self.options.timeout.total_seconds() + length / _BYTES_A_SECOND

    @contextlib.contextmanager
    def _translated(self, patience: float) -> Iterator[None]:
        """Raises StoreError in place of TimeoutError and OSError."""
        try:
            yield
        except TimeoutError:
            raise StoreDown(f"the disk under {self.options.path} made no progress for {patience:.0f} s") from None
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> StoreError:
        said = reason_of(error)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return StoreFull(f"the disk under {self.options.path} is full ({said})")
        if error.errno == errno.EROFS:
            return StoreDown(f"the disk under {self.options.path} is read-only ({said})")
        number = error.errno or 0
        if number == errno.ENOTDIR and not self.options.path.is_dir():
            return StoreRefused(f"{self.options.path} is no folder; remove what lies there, or mount its disk ({said})")
        if number in _OF_THE_FILE:
            return ObjectFailed(f"{error.filename or self.options.path}: {_OF_THE_FILE[number]} ({said})")
        if number in _OURS_TO_MEND:
            return StoreRefused(f"{self.options.path}: {_OURS_TO_MEND[number]} ({said})")
        return StoreDown(f"the disk under {self.options.path} failed: {said}")

    def _entries(self, folder: str) -> Entries:
        entries: list[tuple[str, int | None]] = []
        try:
            with os.scandir(os.path.join(self.options.path, folder)) as found:
                for entry in found:
                    with contextlib.suppress(FileNotFoundError, UnicodeEncodeError):
                        entry.name.encode()
                        if entry.is_dir(follow_symlinks=False):
                            entries.append((entry.name, None))
                        elif entry.is_file(follow_symlinks=False):
                            entries.append((entry.name, entry.stat(follow_symlinks=False).st_size))
        except (FileNotFoundError, NotADirectoryError):
            self._disk.demand_root()
        return entries

    def _remove_temporaries(self, before: float) -> int:
        removed = 0
        for folder, _, names in os.walk(self.options.path / self.options.prefix):
            for name in filter(is_temporary, names):
                with contextlib.suppress(FileNotFoundError):
                    path = os.path.join(folder, name)
                    if os.stat(path).st_mtime < before:
                        os.unlink(path)
                        removed += 1
        return removed


def mounted(path: Path) -> str:
    """The device that a folder lies on, and where that is mounted."""
    real = os.path.realpath(path)
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
            rows = [row.split(" ")[:2] for row in mounts]
    except OSError:
        return "mount point unknown"
    found = ("an unknown device", "/")
    for device, point in rows:
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(found[1]):
            found = device, point
    return f"on {found[0]}, mounted at {found[1]}"


def _read(key: str, descriptor: int, offset: int) -> bytes:
    with readable(key):
        return os.pread(descriptor, 4 * CHUNK, offset)


def _give_up(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_exception(TimeoutError())


def _tell(group: _Group, ended: asyncio.Future[None]) -> None:
    defect = None if ended.cancelled() else ended.exception()
    for file, done in group:
        if ended.cancelled():
            done.cancel()
        elif not done.done():
            if failed := defect or file.failed:
                done.set_exception(failed)
            else:
                done.set_result(None)
