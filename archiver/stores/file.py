"""A folder, on a local disk or a mounted one.

A file gets its name only when its bytes are on the disk: written under a temporary name beside it,
fsynced, linked (``link(2)`` never replaces a file), and the folder fsynced. One thread hop to a put.
"""

# System calls by their names: their order is the promise, and path objects cost time on every put.
# ruff: noqa: PTH102, PTH104, PTH108, PTH116, PTH118
from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import ClassVar, ParamSpec, TypeVar

from ..errors import StoreConflict, StoreDown, StoreError, StoreMissing, StoreRefused
from ..model import CHUNK, Body, Receipt
from ..options import StoreOptions
from ..ports import Sink
from .folders import Entries, fault_of, is_temporary, temporary_name, walk

P = ParamSpec("P")
T = TypeVar("T")

_FILE_MODE = 0o440
_FOLDER_MODE = 0o750
#: fsync waits for the disk, not for Python: many at once share one journal commit.
_THREADS = 32
#: Slower than this a disk is as good as dead.
_BYTES_A_SECOND = 1 << 20
#: A temporary this old belongs to nobody any more.
_STALE = 86400.0
#: Folders known to be on the disk; forgotten all at once, since each recording has one of its own.
_DURABLE_LIMIT = 1_000
#: File systems without hard links (FAT, some network mounts).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_OURS_TO_MEND = {
    errno.EACCES: "may not write there: give the archiver's user access",
    errno.EPERM: "may not write there: give the archiver's user access",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "a folder lies under that name",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.ELOOP: "the path runs through a circle of symbolic links",
}


class FileOptions(StoreOptions):
    #: Made where its parent folder exists (a missing parent is more likely a disk that is not mounted).
    path: Path


class FileStore:
    """One folder. Raises only errors.StoreError."""

    Options: ClassVar[type[StoreOptions]] = FileOptions

    def __init__(self, name: str, options: StoreOptions) -> None:
        assert isinstance(options, FileOptions)
        self.name = name
        self.options = options
        self._threads: ThreadPoolExecutor | None = None
        self._durable: set[str] = set()
        #: The root without symbolic links, and which folder that was (device, inode).
        self._resolved: tuple[str, tuple[int, int]] | None = None
        self._shared = _SharedSync()

    def location(self, key: str) -> dict[str, str]:
        return {"kind": "file", "path": str(self.options.path / key)}

    async def close(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)

    async def check(self) -> str:
        """Put, get, compare and delete a canary; clear away what killed processes left."""
        body = Body.of(b"archiver canary " + secrets.token_bytes(32))
        key = f"{self.options.prefix}_canary/{secrets.token_hex(8)}"
        await self.put(key, body)
        digest = await self._run(body.length, self._digest, key)
        await self.delete(key)
        if digest != (body.length, body.sha256):
            raise StoreDown("the canary came back with other bytes")
        removed = await self.remove_temporaries()
        free = await self._run(0, lambda: shutil.disk_usage(self.options.path).free)
        cleared = f"; {removed} stale temporary files removed" if removed else ""
        return f"{self.options.path}: put, get, compare and delete work; {free / 1e9:.1f} GB free{cleared}"

    async def put(self, key: str, body: Body) -> Receipt:
        return await self._run(body.length, self._put, key, body)

    async def stat(self, key: str) -> Receipt | None:
        return await self._run(0, self._stat, key)

    async def get(self, key: str, into: Sink) -> None:
        file = await self._run(0, self._open, key)
        try:
            # pread: a thread left behind by a cancelled get must not move another file's position.
            offset = 0
            while chunk := await self._run(CHUNK, os.pread, file.fileno(), 4 * CHUNK, offset):
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
        await self._run(0, self._delete, key)

    async def remove_temporaries(self, older_than: float = _STALE) -> int:
        """Clear away what killed processes left, older than so many seconds; returns how many."""
        return await self._run(1 << 40, self._remove_temporaries, time.time() - older_than)

    async def _run(self, length: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Off the loop; a disk that hangs (a dead network mount) ends in StoreDown, its thread stays behind."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"store-{self.name}")
        patience = self.options.timeout.total_seconds() + length / _BYTES_A_SECOND
        try:
            async with asyncio.timeout(patience):
                return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))
        except TimeoutError:
            raise StoreDown(f"the disk under {self.options.path} made no progress for {patience:.0f} s") from None
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> StoreError:
        said = error.strerror or str(error)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return StoreDown(f"the disk under {self.options.path} is full ({said})")
        if error.errno == errno.EROFS:
            return StoreDown(f"the disk under {self.options.path} is read-only ({said})")
        remedy = _OURS_TO_MEND.get(error.errno or 0)
        if remedy is not None:
            return StoreRefused(f"{self.options.path}: {remedy} ({said})")
        return StoreDown(f"the disk under {self.options.path} failed: {said}")

    def _path(self, key: str) -> str:
        """The file's whole path. Raises StoreRefused where it would lie outside the root."""
        if fault := fault_of(key):
            raise StoreRefused(f"the key {key!r} {fault}")
        root = self._root()
        path = f"{root}/{key}"
        if not os.path.realpath(path).startswith(f"{root}/"):
            raise StoreRefused(f"the key {key!r} leads out of {self.options.path} along a symbolic link")
        return path

    def _root(self) -> str:
        """The root's real path, found anew when another folder lies there (a disk came or went, a link changed)."""
        try:
            there = os.stat(self.options.path)
        except FileNotFoundError:
            return os.path.realpath(self.options.path)
        known, now = self._resolved, (there.st_dev, there.st_ino)
        if known is None or known[1] != now:
            self._durable.clear()
            known = self._resolved = os.path.realpath(self.options.path), now
        return known[0]

    def _put(self, key: str, body: Body) -> Receipt:
        if fault := fault_of(key):
            raise StoreRefused(f"the key {key!r} {fault}")
        root = self._root()
        final = f"{root}/{key}"
        folder = final[: final.rindex("/")]
        temporary = f"{folder}/{temporary_name()}"
        try:
            # In a folder that we made a moment ago lies nothing yet, and no link leads out of it.
            if (folder in self._durable or not self._make(folder, root)) and os.path.lexists(self._path(key)):
                return self._same(key, body, folder)
            file = _create(temporary)
        except FileNotFoundError:
            # Somebody removed the folder since we saw it.
            self._durable.clear()
            self._make(folder, root)
            file = _create(temporary)
        try:
            try:
                self._fill(file, body)
            finally:
                os.close(file)
            _link(temporary, final)
        except FileExistsError:
            return self._same(key, body, folder)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        _sync(folder)
        return Receipt(key=key, size=body.length, sha256=body.sha256)

    def _fill(self, file: int, body: Body) -> None:
        digest = hashlib.sha256()
        length = 0
        for chunk in body.chunks():
            digest.update(chunk)
            length += len(chunk)
            left = memoryview(chunk)
            while left:
                left = left[os.write(file, left) :]
        if (length, digest.hexdigest()) != (body.length, body.sha256):
            raise StoreDown("the bytes do not have the length and hash they were announced with; nothing was put")
        os.fsync(file)

    def _demand_root(self) -> None:
        """Nothing is missing from a disk that is not there. Raises StoreRefused."""
        if not Path(os.path.realpath(self.options.path)).parent.is_dir():
            raise StoreRefused(
                f"{self.options.path} does not exist, nor does the folder it lies in; make it, or mount its disk"
            )

    def _make(self, folder: str, root: str) -> bool:
        """The folder and those above it up to the root, each made where it is missing, and durable.

        True where it was not there before. One that exists may have been made a moment ago by somebody who did not
        come to the fsync yet. Raises StoreRefused where it lies outside the root.
        """
        if folder != root:
            parent = folder[: folder.rindex("/")]
            if parent not in self._durable:
                self._make(parent, root)
        made = True
        try:
            if folder == root:
                self._demand_root()
            os.mkdir(folder, _FOLDER_MODE)
        except FileExistsError:
            made = False
            if not f"{os.path.realpath(folder)}/".startswith(f"{root}/"):
                inside = folder.removeprefix(f"{root}/")
                raise StoreRefused(
                    f"the key {inside!r} leads out of {self.options.path} along a symbolic link"
                ) from None
        self._shared.sync(folder[: folder.rindex("/")] or "/")
        if len(self._durable) >= _DURABLE_LIMIT:
            self._durable.clear()
        self._durable.add(folder)
        return made

    def _same(self, key: str, body: Body, folder: str) -> Receipt:
        if self._digest(key, body.length) != (body.length, body.sha256):
            raise StoreConflict(f"{key} holds other bytes and is not overwritten")
        # Whoever linked it may have been killed before the fsync.
        _sync(folder)
        return Receipt(key=key, size=body.length, sha256=body.sha256)

    def _digest(self, key: str, expected: int | None = None) -> tuple[int, str]:
        """Length and SHA-256; the hash is left out where the length is not the expected one."""
        with self._open(key) as file:
            size = os.fstat(file.fileno()).st_size
            if expected is not None and size != expected:
                return size, ""
            digest = hashlib.sha256()
            length = 0
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                length += len(chunk)
            return length, digest.hexdigest()

    def _open(self, key: str) -> FileIO:
        try:
            # Without O_NONBLOCK the open of a named pipe would wait for a writer for ever.
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            self._demand_root()
            raise StoreMissing(f"no file {key}") from None
        file = FileIO(descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            file.close()
            raise StoreRefused(f"{key} is no regular file")
        return file

    def _stat(self, key: str) -> Receipt | None:
        try:
            found = os.stat(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            self._demand_root()
            return None
        return Receipt(key=key, size=found.st_size) if stat.S_ISREG(found.st_mode) else None

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
            self._demand_root()
        return entries

    def _delete(self, key: str) -> None:
        path = self._path(key)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            self._demand_root()
            return
        _sync(path[: path.rindex("/")])

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


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)


def _link(temporary: str, final: str) -> None:
    """Give the file its name. Raises FileExistsError where the name is taken."""
    try:
        os.link(temporary, final, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Not atomic, but the best there is: two who rename here at once bring the same bytes (the key holds the hash).
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(temporary, final)


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _SharedSync:
    """The fsync of a folder in which many work at once (that of a day): one for all who asked before it began."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: dict[str, Future[None]] = {}
        self._next: dict[str, Future[None]] = {}

    def sync(self, folder: str) -> None:
        with self._lock:
            before = self._running.get(folder)
            turn, first = self._next.get(folder), False
            if turn is None:
                turn, first = self._next.setdefault(folder, Future()), True
        if first:
            if before is not None:
                # Ours to do, but it may have begun before what we made was there.
                before.exception()
            with self._lock:
                self._running[folder] = self._next.pop(folder)
            try:
                _sync(folder)
            except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it, whatever it is
                turn.set_exception(error)
            else:
                turn.set_result(None)
            with self._lock:
                if self._running.get(folder) is turn:
                    del self._running[folder]
        turn.result()
