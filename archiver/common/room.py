"""Room on the disks that are written to: a reserve stays free, for what else lives there."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .words import size

#: Of any disk …
_LEAST, _SHARE = 1 << 30, 50
#: … but no more than this part of a small one.
_MOST_SHARE = 10
#: Files that must still be possible, or this part of all, where that is less.
_FILES, _FILES_SHARE = 1000, 100

#: What a file system gives out at once, on nearly every one.
_BLOCK = 4096

#: By device: the bytes that writers of this process may still write.
_taken: Counter[int] = Counter()
_lock = threading.Lock()


class NoRoom(Exception):
    """Says which disk is filled to its reserve."""


def reserve_of(total: int) -> int:
    """How much stays free of a disk of so many bytes: 1 GiB or 2 %, whichever is more, and never more than a tenth."""
    return min(max(_LEAST, total // _SHARE), total // _MOST_SHARE)


@contextlib.contextmanager
def taken(path: Path, reserve: int | None, wanted: int, files: int = 1) -> Iterator[None]:
    """Room for so many bytes in so many files below there, until they are written. Raises NoRoom where they don't fit.

    Who writes at the same time counts; else each would find the same room, and together they fill the reserve. What is
    written already and not yet let go counts twice: for that long a disk may seem fuller than it is. Blocks.
    """
    there = _existing(path)
    device = _device(there)
    # Each file ends within a block, and its folder may be new.
    whole = wanted + 2 * files * _BLOCK
    # Asked without the lock: a disk that hangs would hold up the writers of all others.
    _take(device, whole)
    try:
        if (why := _lacking(path, there, device, reserve)) is not None:
            raise NoRoom(why)
        yield
    finally:
        _take(device, -whole)


def lacking(path: Path, reserve: int | None) -> str | None:
    """Why nothing more may be written below there, if so. Blocks while the disk answers.

    ``reserve``: None: as :func:`reserve_of` says. What does not tell its size (some network file systems) has room.
    """
    there = _existing(path)
    return _lacking(path, there, _device(there), reserve)


def _lacking(path: Path, there: Path, device: int, reserve: int | None) -> str | None:
    try:
        disk = os.statvfs(there)
    except OSError:
        return None
    total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    keep = reserve_of(total) if reserve is None else reserve
    if total and free - _taken[device] < keep:
        return f"the disk of {path} has {size(free)} free, and {size(keep)} of it stay free (reserve)"
    if disk.f_files and disk.f_favail < max(1, min(_FILES, disk.f_files // _FILES_SHARE)):
        return f"the disk of {path} has room for {disk.f_favail} files only (df -i {there})"
    return None


def _take(device: int, wanted: int) -> None:
    with _lock:
        _taken[device] += wanted


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _device(there: Path) -> int:
    try:
        return there.stat().st_dev
    except OSError:
        return -1
