"""A folder on a disk, and how a file gets there whole. All of it blocks; nothing here knows of the event loop.

A file gets its name only when its bytes are on the disk: written under a temporary name beside it, fsynced, linked
(``link(2)`` never replaces a file), and the folder fsynced. Many files go through these steps together: where the file
system promises as much, one syncfs stands for all their fsyncs. What it can't do at all (SMB, FUSE, FAT: a hard link,
the fsync of a folder) is no failure: another way is taken, and ``limits`` tells which.
"""

# System calls by their names: their order is the promise, and path objects cost time on every put.
# ruff: noqa: PTH102, PTH104, PTH108, PTH116
from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from threading import Lock

from ..common.words import reason_of
from ..errors import ObjectFailed, StoreConflict, StoreMissing, StoreRefused
from .names import fault_of, temporary_name
from .syncfs import stands_for_fsync, syncfs

_STEP = 1 << 20
_FILE_MODE = 0o440
_FOLDER_MODE = 0o750
#: Folders known to be on the disk; forgotten all at once, since each recording has one of its own.
_DURABLE_LIMIT = 1_000
#: Fewer files than these are fsynced each: syncfs waits for what other programs wrote, too. Where that took so many
#: seconds, each file is fsynced for a while.
FEW = 4
_LONG = 3.0
_WHILE = 600.0
#: How file systems say that they can't do something.
_CANT = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
#: The same of hard links: FAT, SMB servers of all ages, a project quota. A disk that failed refuses the rename too.
_NO_LINKS = _CANT | {errno.EACCES, errno.EIO, errno.EMLINK, errno.EPERM, errno.EXDEV}
#: And of the fsync of a folder, which may also be one that its owner does not let us read (that above the root).
_NO_FOLDER_FSYNC = _CANT | {errno.EACCES, errno.EBADF, errno.EISDIR, errno.EPERM}


@dataclass(slots=True, eq=False)
class File:
    """Bytes that are to lie under a key, and what came of it: ``failed``, or nothing when they do."""

    key: str
    size: int
    sha256: str
    chunks: Callable[[], Iterable[bytes | memoryview]]
    failed: Exception | None = None
    #: It lay there already.
    found: bool = False
    folder: str = ""
    final: str = ""
    temporary: str = ""
    descriptor: int = -1
    #: It is to be fsynced by itself.
    alone: bool = True


class Disk:
    """The folder at a path. Raises OSError, and StoreError where it is known what to do about it."""

    def __init__(self, path: str) -> None:
        self.path = path
        #: Whether one syncfs does for many files, as far as known: the root is looked at with the first put.
        self.together = False
        #: Until one was refused.
        self._links = True
        self._fsyncs = True
        self._durable: set[str] = set()
        #: The root without symbolic links, and which folder that was (device, inode).
        self._resolved: tuple[str, tuple[int, int]] | None = None
        self._shared = SharedSync()
        self._alone_until = float("-inf")

    def put(self, file: File) -> None:
        """One file. Raises what went wrong."""
        self.put_all([file])
        if file.failed is not None:
            raise file.failed

    def put_all(self, files: Sequence[File]) -> None:
        """Each step for all of them before the next. What goes wrong with one is of no concern to the others."""
        root = self._root()
        # Opened before anything is written: it tells of the errors that come after.
        together = self.together and len(files) >= FEW and time.monotonic() >= self._alone_until
        disk = _open_folder(root) if together else None
        try:
            written = _each(files, lambda file: self._write(file, root, disk))
            if disk is not None:
                written = _all(written, lambda: self._syncfs(disk))
                self._durable.update(file.folder for file in written)
            begun = [file for file in files if file.temporary]
            _each(begun, _close)
            named = _each([file for file in written if file.failed is None], self._name)
            _each(begun, _tidy)
            if disk is not None:
                named = _all(named, lambda: self._syncfs(disk))
            _each([file for file in named if file.alone], _sync_folder)
        finally:
            if disk is not None:
                os.close(disk)

    def limits(self) -> list[str]:
        """In words: what this file system can't do, as a file put before and the root show, and what follows."""
        told = []
        if not self._links:
            told.append("takes no hard links: names are given by rename, after a look")
        if not self._fsyncs:
            told.append("can't fsync a file: a power cut may take what was put last")
        if not _sync(self._root()):
            told.append("can't fsync a folder: a power cut may take the newest names")
        return [f"this file system {each}" for each in told]

    def forget_limits(self) -> None:
        """Try again what was refused."""
        self._links = self._fsyncs = True

    def write_own(self, name: str, data: bytes) -> None:
        """A small file of the store's own in its root; one that is there stays."""
        root = self._root()
        self._make(root, root)
        temporary = f"{root}/{temporary_name()}"
        descriptor = _create(temporary)
        try:
            os.write(descriptor, data)
            self._fsync(descriptor)
            with contextlib.suppress(FileExistsError):
                if not _link(temporary, f"{root}/{name}"):
                    _rename(temporary, f"{root}/{name}")
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        _sync(root)

    def digest(self, key: str, expected: int | None = None) -> tuple[int, str]:
        """Length and SHA-256; the hash is left out where the length is not the expected one."""
        with self.open(key) as file, readable(key):
            size = os.fstat(file.fileno()).st_size
            if expected is not None and size != expected:
                return size, ""
            digest = hashlib.sha256()
            length = 0
            while chunk := file.read(_STEP):
                digest.update(chunk)
                length += len(chunk)
            return length, digest.hexdigest()

    def open(self, key: str) -> FileIO:
        try:
            # Without O_NONBLOCK the open of a named pipe would wait for a writer for ever.
            with readable(key):
                descriptor = os.open(self.real(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            self.demand_root()
            raise StoreMissing(f"no file {key}") from None
        file = FileIO(descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            file.close()
            raise ObjectFailed(f"{key} is no regular file")
        return file

    def size(self, key: str) -> int | None:
        """Bytes, or None where no regular file has that name."""
        try:
            found = os.stat(self.real(key))
        except (FileNotFoundError, NotADirectoryError):
            self.demand_root()
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def delete(self, key: str) -> None:
        path = self.real(key)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            self.demand_root()
            return
        _sync(path[: path.rindex("/")])

    def real(self, key: str) -> str:
        """The file's whole path. Raises ObjectFailed where it would lie outside the root."""
        if fault := fault_of(key):
            raise ObjectFailed(f"the key {key!r} {fault}")
        root = self._root()
        path = f"{root}/{key}"
        if not os.path.realpath(path).startswith(f"{root}/"):
            raise ObjectFailed(f"the key {key!r} leads out of {self.path} along a symbolic link")
        return path

    def demand_root(self) -> None:
        """Nothing is missing from a disk that is not there. Raises StoreRefused."""
        if Path(self.path).exists() and not Path(self.path).is_dir():
            raise StoreRefused(f"{self.path} is no folder; remove what lies there, or mount its disk")
        if not Path(os.path.realpath(self.path)).parent.is_dir():
            raise StoreRefused(
                f"{self.path} does not exist, nor does the folder it lies in; make it, or mount its disk"
            )

    def _root(self) -> str:
        """The root's real path, found anew when another folder lies there (a disk came or went, a link changed)."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            self.together = False
            return os.path.realpath(self.path)
        known, now = self._resolved, (there.st_dev, there.st_ino)
        if known is None or known[1] != now:
            self._durable.clear()
            if known is not None:
                self.forget_limits()
            known = os.path.realpath(self.path), now
            self.together = stands_for_fsync(known[0])
            self._resolved = known
        return known[0]

    def _write(self, file: File, root: str, disk: int | None) -> None:
        """The bytes under a temporary name beside their own, unless the file is there already.

        They are fsynced where nobody does a syncfs of their disk afterwards.
        """
        if fault := fault_of(file.key):
            raise ObjectFailed(f"the key {file.key!r} {fault}")
        file.final = f"{root}/{file.key}"
        file.folder = file.final[: file.final.rindex("/")]
        temporary = f"{file.folder}/{temporary_name()}"
        try:
            # In a folder that we made a moment ago lies nothing yet, and no link leads out of it.
            there_before = file.folder in self._durable or not self._make(file.folder, root, fsync=disk is None)
            if there_before and os.path.lexists(self.real(file.key)):
                self._demand_same(file)
                return
            file.descriptor = _create(temporary)
        except FileNotFoundError:
            # Somebody removed the folder since we saw it.
            self._durable.clear()
            self._make(file.folder, root, fsync=disk is None)
            file.descriptor = _create(temporary)
        file.temporary = temporary
        _fill(file)
        # Below the root another disk may be mounted.
        file.alone = disk is None or os.fstat(disk).st_dev != os.fstat(file.descriptor).st_dev
        if file.alone:
            self._fsync(file.descriptor)
            if disk is not None:
                self._shared.sync(_above(file.folder))

    def _syncfs(self, disk: int) -> None:
        began = time.monotonic()
        syncfs(disk)
        if time.monotonic() - began > _LONG:
            self._alone_until = time.monotonic() + _WHILE

    def _fsync(self, descriptor: int) -> None:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _CANT:
                raise
            self._fsyncs = False

    def _name(self, file: File) -> None:
        try:
            if not self._links or not _link(file.temporary, file.final):
                _rename(file.temporary, file.final)
                self._links = False
        except FileExistsError:
            self._demand_same(file)

    def _make(self, folder: str, root: str, *, fsync: bool = True) -> bool:
        """The folder and those above it up to the root, each made where it is missing, and durable.

        Without ``fsync`` it is left to the caller to make the last one durable. True where it was not there before. One
        that exists may have been made a moment ago by somebody who did not come to the fsync yet. Raises ObjectFailed
        where it lies outside the root.
        """
        if folder != root:
            parent = folder[: folder.rindex("/")]
            if parent not in self._durable:
                self._make(parent, root)
        made = True
        try:
            if folder == root:
                self.demand_root()
            os.mkdir(folder, _FOLDER_MODE)
        except FileExistsError:
            made = False
            if not f"{os.path.realpath(folder)}/".startswith(f"{root}/"):
                inside = folder.removeprefix(f"{root}/")
                raise ObjectFailed(f"the key {inside!r} leads out of {self.path} along a symbolic link") from None
        if len(self._durable) >= _DURABLE_LIMIT:
            self._durable.clear()
        if fsync:
            self._shared.sync(_above(folder))
            self._durable.add(folder)
        return made

    def _demand_same(self, file: File) -> None:
        """Raises StoreConflict where other bytes lie there."""
        if self.digest(file.key, file.size) != (file.size, file.sha256):
            raise StoreConflict(f"{file.key} holds other bytes and is not overwritten")
        # Whoever linked it may have been killed before the fsync.
        _sync(file.folder)
        file.found = True


@contextlib.contextmanager
def readable(key: str) -> Iterator[None]:
    """EIO while one file is read is that file's: a bad sector. A disk that is dead says so of a canary too."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise ObjectFailed(f"{key} can't be read ({reason_of(error)})") from None


def _above(folder: str) -> str:
    return folder[: folder.rindex("/")] or "/"


def _each(files: Sequence[File], step: Callable[[File], None]) -> list[File]:
    """A step for each; those that go on to the next."""
    for file in files:
        try:
            step(file)
        except Exception as error:  # noqa: BLE001 - whoever asked for it raises it
            file.failed = error
    return [file for file in files if file.failed is None and not file.found]


def _all(files: list[File], step: Callable[[], None]) -> list[File]:
    """One step for all; those that go on to the next: all or none."""
    try:
        if files:
            step()
    except OSError as error:
        for file in files:
            file.failed = error
        return []
    return files


def _fill(file: File) -> None:
    digest = hashlib.sha256()
    length = 0
    for chunk in file.chunks():
        digest.update(chunk)
        length += len(chunk)
        left = memoryview(chunk)
        while left:
            left = left[os.write(file.descriptor, left) :]
    if (length, digest.hexdigest()) != (file.size, file.sha256):
        raise ObjectFailed("the bytes do not have the length and hash they were announced with; nothing was put")


def _close(file: File) -> None:
    try:
        # Nobody reads it soon, and the next finds the memory that it took.
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file.descriptor)


def _sync_folder(file: File) -> None:
    _sync(file.folder)


def _tidy(file: File) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(file.temporary)


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)


def _link(temporary: str, final: str) -> bool:
    """Give the file its name; False where there are no hard links. Raises FileExistsError where the name is taken."""
    try:
        os.link(temporary, final, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _rename(temporary: str, final: str) -> None:
    """The same without a link. Raises FileExistsError.

    Not atomic, but the best there is: two who rename here at once bring the same bytes (the key holds the hash).
    """
    if os.path.lexists(final):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    os.rename(temporary, final)


def _open_folder(folder: str) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _sync(folder: str) -> bool:
    """False where this folder can't be fsynced at all."""
    try:
        descriptor = _open_folder(folder)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise
        return False
    return True


class SharedSync:
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
